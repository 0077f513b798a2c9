package cow

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cowbird/formats/cowfile"

	"golang.org/x/sys/unix"
)

func openSample(t testing.TB, c sample) (s *Snapshot, cow, base *memDevice) {
	t.Helper()
	cow, base = newMem(c.cow), newMem(c.base)
	s, err := Open(Options{Cow: cow, Base: base, Size: int64(len(c.target))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, cow, base
}

// SNU-005, SNU-032: readers see the target at every moment of a merge, windows
// and commits included.
func TestReadersDuringMerge(t *testing.T) {
	for seed := range uint64(6) {
		c := generate(t, 50+seed, 300, seed%2 == 0)
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, _, base := openSample(t, c)
			var stop atomic.Bool
			var wg sync.WaitGroup
			for k := range 3 {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(seed, uint64(k)))
					for !stop.Load() && !t.Failed() {
						off := r.IntN(len(c.target))
						b := make([]byte, min(1+r.IntN(40000), len(c.target)-off))
						if err := readFull(s, b, int64(off)); err != nil || !bytes.Equal(b, c.target[off:off+len(b)]) {
							t.Errorf("%d bytes at %d: %v, %s", len(b), off, err, firstDifference(b, c.target[off:]))
						}
					}
				})
			}
			_, err := s.Merge(context.Background(), MergeOptions{limits: tight})
			stop.Store(true)
			wg.Wait()
			if err != nil || !bytes.Equal(base.data, c.target) {
				t.Fatalf("merge: %v, %s", err, firstDifference(base.data, c.target))
			}
		})
	}
}

// SNU-006: a pause stops progress within a batch, and a resume ends it.
func TestPause(t *testing.T) {
	c := generate(t, 7, 200, true)
	s, _, base := openSample(t, c)
	reached := make(chan Progress, 1)
	merged := make(chan error, 1)
	var once sync.Once
	go func() {
		_, err := s.Merge(context.Background(), MergeOptions{limits: tight, OnProgress: func(p Progress) {
			once.Do(func() { s.Pause(); reached <- p })
		}})
		merged <- err
	}()
	at := <-reached
	select {
	case err := <-merged:
		t.Fatalf("the paused merge ended: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if p := s.Progress(); p.MergedOps != at.MergedOps || !p.Paused || p.Status != StatusMerging {
		t.Errorf("while paused: expected %d merged ops, found %+v", at.MergedOps, p)
	}
	readPieces(t, s, c.target)
	s.Resume()
	if err := <-merged; err != nil || !bytes.Equal(base.data, c.target) {
		t.Fatalf("after the pause: %v", err)
	}
	if p := s.Progress(); p.Status != StatusComplete {
		t.Errorf("after the merge: %+v", p)
	}
}

// A cancelled merge, paused or not, has committed what it did; the next one
// goes on from there.
func TestCancel(t *testing.T) {
	c := generate(t, 8, 200, true)
	s, cow, base := openSample(t, c)
	ctx, cancel := context.WithCancel(context.Background())
	first, err := s.Merge(ctx, MergeOptions{limits: tight, OnProgress: func(p Progress) {
		if p.MergedOps > p.TotalOps/2 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || s.Progress().Status != StatusSnapshot {
		t.Fatalf("expected a cancelled merge and no failure, found %v, %+v", err, s.Progress())
	}
	done := s.Progress().MergedOps
	s2, err := Open(Options{Cow: cow, Base: base, Size: int64(len(c.target))})
	if err != nil {
		t.Fatal(err)
	}
	defer s2.Close()
	if got := s2.Progress().MergedOps; got != done || done == 0 {
		t.Errorf("merged ops on disk: expected %d, found %d", done, got)
	}
	second, err := s.Merge(context.Background(), MergeOptions{})
	if err != nil || !bytes.Equal(base.data, c.target) {
		t.Fatal(err)
	}
	if first.BlocksWritten == 0 || second.BlocksWritten == 0 {
		t.Errorf("blocks written: %d, then %d", first.BlocksWritten, second.BlocksWritten)
	}
}

// A target that is longer and has no ops makes the base longer all the same.
func TestMergeGrowsWithoutOps(t *testing.T) {
	base := step{count: 1}.data()
	h := history{blocks: 1, grown: 1}
	s, _, b := openSample(t, sample{cow: h.cowOf(t, format{version: 3}, nil), base: base, target: make([]byte, 2*blockSize)})
	if _, err := s.Merge(context.Background(), MergeOptions{}); err != nil {
		t.Fatal(err)
	}
	if want := append(base, make([]byte, blockSize)...); !bytes.Equal(b.data, want) {
		t.Errorf("expected %d bytes, found %d: %s", len(want), len(b.data), firstDifference(b.data, want))
	}
}

func TestOneMergeAtATime(t *testing.T) {
	c := generate(t, 9, 100, true)
	s, _, _ := openSample(t, c)
	s.Pause()
	ctx, cancel := context.WithCancel(context.Background())
	merged := make(chan error)
	go func() { _, err := s.Merge(ctx, MergeOptions{}); merged <- err }()
	for s.Progress().Status != StatusMerging {
		time.Sleep(time.Millisecond)
	}
	if _, err := s.Merge(context.Background(), MergeOptions{}); !errors.Is(err, ErrMerging) {
		t.Errorf("expected ErrMerging, found %v", err)
	}
	cancel()
	if err := <-merged; !errors.Is(err, context.Canceled) {
		t.Errorf("expected a cancelled merge, found %v", err)
	}
}

// The rate holds over the whole merge, whatever its batches.
func TestRate(t *testing.T) {
	c := generate(t, 10, 100, true)
	s, _, _ := openSample(t, c)
	const rate = 4 << 20
	start := time.Now()
	stats, err := s.Merge(context.Background(), MergeOptions{Rate: rate})
	if err != nil {
		t.Fatal(err)
	}
	atLeast := time.Duration(float64(stats.BlocksWritten*blockSize) / rate * float64(time.Second) / 2)
	if took := time.Since(start); took < atLeast {
		t.Errorf("%d blocks at %d bytes a second: expected at least %v, took %v", stats.BlocksWritten, rate, atLeast, took)
	}
}

// awaitedContext tells when somebody waits for its end, which a merge does only
// while it keeps to a rate or is paused.
type awaitedContext struct {
	context.Context
	awaited chan struct{}
	once    sync.Once
}

func (c *awaitedContext) Done() <-chan struct{} {
	c.once.Do(func() { close(c.awaited) })
	return c.Context.Done()
}

// A pause does not wait for a rate: the batch under way is finished at once.
func TestPauseInterruptsThrottle(t *testing.T) {
	c := generate(t, 10, 100, true)
	s, _, _ := openSample(t, c)
	cancellable, cancel := context.WithCancel(context.Background())
	ctx := &awaitedContext{Context: cancellable, awaited: make(chan struct{})}
	merged := make(chan error)
	committed := make(chan Progress, 1)
	go func() {
		_, err := s.Merge(ctx, MergeOptions{Rate: 1, OnProgress: func(p Progress) { committed <- p }})
		merged <- err
	}()
	<-ctx.awaited // a merge that is paused earlier does not begin
	s.Pause()
	select {
	case p := <-committed:
		if !p.Paused || p.MergedOps == 0 || p.Status != StatusMerging {
			t.Errorf("expected a paused merge with a batch done, found %+v", p)
		}
	case <-time.After(time.Minute):
		t.Error("the paused merge waits for its rate of a byte a second")
	}
	cancel()
	if err := <-merged; !errors.Is(err, context.Canceled) {
		t.Errorf("expected a cancelled merge, found %v", err)
	}
}

// The time that is left follows from what this merge has written, not from what
// earlier ones had.
func TestTimeLeft(t *testing.T) {
	var c mergeControl
	c.init()
	if !c.begin(500) {
		t.Fatal("expected the merge to begin")
	}
	if got := c.left(500, 1000); got != 0 {
		t.Errorf("before anything is written: expected nothing known, found %v", got)
	}
	c.began = c.began.Add(-10 * time.Second)
	if got := c.left(600, 1000); got < 40*time.Second || got > 50*time.Second {
		t.Errorf("100 bytes in 10 s: expected 40 s for 400, found %v", got)
	}
	if got := c.left(1000, 1000); got != 0 {
		t.Errorf("at the end: found %v", got)
	}
}

// Batches are as long as what the storage takes in batchTime.
func TestPace(t *testing.T) {
	p := pace{most: 4096}
	for _, c := range []struct {
		blocks int64
		took   time.Duration
		want   int64
	}{
		{4096, 10 * time.Millisecond, 4096},
		{4096, 400 * time.Millisecond, 1024},
		{1024, 50 * time.Millisecond, 2048},
		{1024, 100 * time.Second, leastBatch},
		{0, time.Second, leastBatch}, // nothing learnt
		{128, 0, 4096},
		{1, time.Millisecond, 4096}, // nor from a moment
	} {
		p.adapt(c.blocks, c.took)
		if got := p.limit.Load(); got != c.want {
			t.Errorf("after %d blocks in %v: expected %d, found %d", c.blocks, c.took, c.want, got)
		}
	}
}

// BatchBytes bounds what lies between two commits.
func TestBatchBytes(t *testing.T) {
	c := generate(t, 10, 200, true)
	s, _, _ := openSample(t, c)
	last := s.Progress().BytesWritten
	_, err := s.Merge(context.Background(), MergeOptions{BatchBytes: 2 * blockSize, OnProgress: func(p Progress) {
		// The last unit of a batch may be longer than what is left of it.
		if n := p.BytesWritten - last; n > 2*blockSize+int64(s.File().MaxUnit()) {
			t.Errorf("expected at most 2 blocks and a unit between two commits, found %d bytes", n)
		}
		last = p.BytesWritten
	}})
	if err != nil {
		t.Fatal(err)
	}
}

// SNU-038: data that do not decode end the merge, and it says so; everything
// else is served on.
func TestMergeOfBrokenData(t *testing.T) {
	c, broken := brokenUnit(t)
	s, _, _ := openSample(t, c)
	for range 2 { // the second try meets the same error
		if _, err := s.Merge(context.Background(), MergeOptions{}); !errors.Is(err, cowfile.ErrDecode) {
			t.Fatalf("expected ErrDecode, found %v", err)
		}
		if p := s.Progress(); p.Status != StatusFailed || !errors.Is(p.Err, cowfile.ErrDecode) {
			t.Errorf("progress: %+v", p)
		}
	}
	checkOnlyBroken(t, s, c, broken)
}

// SNU-034: an error concerns the blocks of that request only.
func TestReadOfBrokenData(t *testing.T) {
	c, broken := brokenUnit(t)
	s, _, _ := openSample(t, c)
	checkOnlyBroken(t, s, c, broken)
}

// brokenUnit is a sample in which the data of one op were overwritten.
func brokenUnit(t *testing.T) (sample, cowfile.Op) {
	t.Helper()
	for seed := uint64(0); ; seed++ {
		c := generate(t, seed, 60, true)
		f, err := cowfile.Open(bytes.NewReader(c.cow), int64(len(c.cow)), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range f.NumOps() {
			o := f.Op(i)
			if o.Type == cowfile.OpReplace && o.Compression != cowfile.None {
				off := f.DataOffset(i, o)
				for k := range int64(o.DataLength) {
					c.cow[off+k] = 0xff
				}
				return c, o
			}
		}
	}
}

func checkOnlyBroken(t *testing.T, s *Snapshot, c sample, broken cowfile.Op) {
	t.Helper()
	b := make([]byte, blockSize)
	for block := range len(c.target) / blockSize {
		err := readFull(s, b, int64(block)*blockSize)
		inside := uint32(block) >= broken.NewBlock && uint32(block) < broken.NewBlock+broken.Blocks()
		switch {
		case inside && !errors.Is(err, cowfile.ErrDecode):
			t.Errorf("block %d: expected ErrDecode, found %v", block, err)
		case !inside && (err != nil || !bytes.Equal(b, c.target[block*blockSize:][:blockSize])):
			t.Errorf("block %d is not served: %v", block, err)
		}
	}
}

// A device that fails at once, for one range of bytes.
type faulty struct {
	Device
	from, to int64
}

func (d *faulty) ReadAt(p []byte, off int64) (int, error) {
	if off < d.to && off+int64(len(p)) > d.from {
		return 0, unix.EIO
	}
	return d.Device.ReadAt(p, off)
}

// A merge that meets a failing device leaves a snapshot that serves, and ends
// well once the device works again.
func TestMergeRetries(t *testing.T) {
	c := generate(t, 12, 120, true)
	base := &faulty{Device: newMem(c.base)}
	s, err := Open(Options{Cow: newMem(c.cow), Base: base, Size: int64(len(c.target))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if g := int64(len(c.target)); g > base.Size() {
		_ = base.Device.(Growing).Grow(g)
	}
	base.from, base.to = 60*blockSize, 61*blockSize
	if _, err := s.Merge(context.Background(), MergeOptions{limits: tight}); !errors.Is(err, unix.EIO) {
		t.Fatalf("expected EIO, found %v", err)
	}
	base.to = 0
	if got := readWhole(t, s, s.Size()); !bytes.Equal(got, c.target) {
		t.Fatal("after the failure: " + firstDifference(got, c.target))
	}
	if _, err := s.Merge(context.Background(), MergeOptions{limits: tight}); err != nil {
		t.Fatal(err)
	}
	if got := base.Device.(*memDevice).data; !bytes.Equal(got, c.target) {
		t.Fatal("after the retry: " + firstDifference(got, c.target))
	}
}

// stuckBase is a base whose syncs wait until blocks from second on were written.
type stuckBase struct {
	*memDevice
	second  int64
	written chan struct{}
	once    sync.Once
}

func (d *stuckBase) WriteAt(p []byte, off int64) (int, error) {
	if off >= d.second*blockSize {
		d.once.Do(func() { close(d.written) })
	}
	return d.memDevice.WriteAt(p, off)
}

func (d *stuckBase) Sync() error {
	select {
	case <-d.written:
		return d.memDevice.Sync()
	case <-time.After(20 * time.Second):
		return errors.New("nothing was written meanwhile")
	}
}

// A batch is written while the one before it is still being committed: here the
// first commit cannot end before that.
func TestCommitAside(t *testing.T) {
	const n, from = 10, 50 // ops, which read what nobody writes
	mem := &growMem{}
	w, err := cowfile.NewWriter(cowfile.WriteOnly(mem), cowfile.WriterOptions{Version: 3, NoScratch: true, OpCountMax: n})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint32(n) {
		if err := w.Add(cowfile.Op{Type: cowfile.OpCopy, NewBlock: i, Source: uint64(i + from)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	base := make([]byte, (n+from)*blockSize)
	for i := range base {
		base[i] = byte(i / blockSize)
	}
	target := append(bytes.Clone(base[from*blockSize:]), base[n*blockSize:]...)
	d := &stuckBase{memDevice: newMem(base), second: int64(tight.batch), written: make(chan struct{})}
	s, err := Open(Options{Cow: newMem(mem.b), Base: d})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if stats, err := s.Merge(t.Context(), MergeOptions{limits: tight}); err != nil || stats.Batches != n/int64(tight.batch) {
		t.Fatalf("expected %d batches, found %+v, %v", n/tight.batch, stats, err)
	}
	got := make([]byte, len(base))
	if err := readFull(d, got, 0); err != nil || !bytes.Equal(got, target) {
		t.Errorf("the base is not the target: %v %s", err, firstDifference(got, target))
	}
}

// guardedBase is a base of which one block must not be written before the first
// sync, which waits for a write of many others.
type guardedBase struct {
	*memDevice
	guarded, last int64 // blocks
	seen          chan struct{}
	synced        atomic.Bool
	early         atomic.Bool
}

func (d *guardedBase) WriteAt(p []byte, off int64) (int, error) {
	first, end := off/blockSize, (off+int64(len(p)))/blockSize
	if first <= d.guarded && d.guarded < end && !d.synced.Load() {
		d.early.Store(true)
	}
	if first <= d.last && d.last < end && !d.synced.Load() {
		close(d.seen)
	}
	return d.memDevice.WriteAt(p, off)
}

func (d *guardedBase) Sync() error {
	if !d.synced.Load() {
		<-d.seen
		time.Sleep(10 * time.Millisecond) // for whoever would not wait
	}
	defer d.synced.Store(true)
	return d.memDevice.Sync()
}

// A batch that is longer than the pipeline, and whose last block is what the batch
// before it reads: the merger begins to write it when nobody has seen its end yet,
// and must not come to that block before the first commit.
func TestOverwritesLate(t *testing.T) {
	const n = (loads + 8) * loadBlocks
	mem := &growMem{}
	w, err := cowfile.NewWriter(cowfile.WriteOnly(mem), cowfile.WriterOptions{Version: 3, NoScratch: true, OpCountMax: n + 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(cowfile.Op{Type: cowfile.OpCopy, NewBlock: n + 1, Source: n - 1}, nil); err != nil {
		t.Fatal(err)
	}
	target := make([]byte, (n+2)*blockSize)
	for i := range uint32(n) {
		b := target[i*blockSize:][:blockSize]
		b[0], b[1] = byte(i), byte(i>>8)|1
		if err := w.Add(cowfile.Op{Type: cowfile.OpReplace, NewBlock: i}, b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	base := make([]byte, len(target))
	copy(base[(n-1)*blockSize:], "what is read")
	copy(target[(n+1)*blockSize:], "what is read")
	d := &guardedBase{memDevice: newMem(base), guarded: n - 1, seen: make(chan struct{})}
	s, err := Open(Options{Cow: newMem(mem.b), Base: d})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if i, more := s.file.Merge(n).Next(); !more || s.file.Op(i).NewBlock != n-1 {
		t.Fatalf("expected block %d to come last, found %v", n-1, s.file.Op(i))
	}
	d.last = n - 1 - loadBlocks
	if _, err := s.Merge(t.Context(), MergeOptions{}); err != nil {
		t.Fatal(err)
	}
	if d.early.Load() {
		t.Errorf("block %d was written before the op that reads it was committed", n-1)
	}
	if got := readWhole(t, s, s.Size()); !bytes.Equal(got, target) {
		t.Error(firstDifference(got, target))
	}
}
