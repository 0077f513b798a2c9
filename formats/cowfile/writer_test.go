package cowfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
)

// disk is a device or file that keeps account of what is durable. Each write,
// cut and sync is a numbered point; at the chosen one the power goes.
type disk struct {
	b       []byte // what a reader sees
	durable []byte
	pending []change // since the last sync
	point   int
	failAt  int // −1: never
	failure error
}

// change is a write, or a new length if b is nil.
type change struct {
	off int64
	b   []byte
}

func newDisk(old []byte) *disk {
	return &disk{b: bytes.Clone(old), durable: bytes.Clone(old), failAt: -1}
}

func (c change) apply(b []byte) []byte {
	end := c.off + int64(len(c.b))
	if end > int64(len(b)) {
		b = append(b, make([]byte, end-int64(len(b)))...)
	}
	if c.b == nil {
		return b[:c.off]
	}
	copy(b[c.off:], c.b)
	return b
}

func (d *disk) step() error {
	if d.failure == nil && d.point == d.failAt {
		d.failure = errBroken
	}
	d.point++
	return d.failure
}

var errBroken = errors.New("broken device")

func (d *disk) change(c change) error {
	if err := d.step(); err != nil {
		// What was under way may have happened, or a part of it.
		d.pending = append(d.pending, c)
		return err
	}
	d.b = c.apply(d.b)
	d.pending = append(d.pending, c)
	return nil
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(d.b).ReadAt(p, off) }
func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.change(change{off, append([]byte{}, p...)}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (d *disk) Sync() error {
	if err := d.step(); err != nil {
		return err
	}
	d.durable, d.pending = bytes.Clone(d.b), nil
	return nil
}

// afterCut is what is found when the power comes back: of the unsynced changes
// those that kept picks, torn at sectors.
func (d *disk) afterCut(kept func() bool) []byte {
	b := bytes.Clone(d.durable)
	for _, c := range d.pending {
		switch {
		case c.b == nil && kept():
			b = c.apply(b)
		case c.b != nil:
			for i := int64(0); i < int64(len(c.b)); {
				n := min(int64(len(c.b))-i, 512-(c.off+i)%512)
				if kept() {
					b = change{c.off + i, c.b[i : i+n]}.apply(b)
				}
				i += n
			}
		}
	}
	return b
}

type diskFile struct{ *disk }

func (d diskFile) Truncate(size int64) error { return d.change(change{off: size}) }

type diskDevice struct {
	*disk
	capacity int64
}

func (d diskDevice) Capacity() int64 { return d.capacity }
func (d diskDevice) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > d.capacity {
		return 0, fmt.Errorf("write behind the end of the device: %w", io.ErrShortWrite)
	}
	return d.disk.WriteAt(p, off)
}

// history is a list of calls to a writer.
type history struct {
	opts  WriterOptions
	calls []call
}

type call struct {
	label  uint64 // 0: none
	seq    []uint32
	finish bool
	op     Op
	stored []byte
}

func (c call) do(w Writer) error {
	switch {
	case c.label > 0:
		return w.Label(c.label)
	case c.seq != nil:
		return w.Sequence(c.seq)
	case c.finish:
		_, err := w.Finish()
		return err
	}
	return w.Add(c.op, c.stored)
}

// generate makes a random history of n ops; stored bytes are not such that they
// could be decoded.
func generate(seed uint64, n int, opts WriterOptions) history {
	r := rand.New(rand.NewPCG(seed, 7))
	h := history{opts: opts}
	if opts.ClusterOps != Unclustered || opts.Version == 3 {
		seq := make([]uint32, 1+r.IntN(9))
		for i := range seq {
			seq[i] = uint32(1000 + i)
		}
		h.calls = append(h.calls, call{seq: seq})
	}
	label := uint64(0)
	for i := range n {
		o := Op{Type: []OpType{OpCopy, OpXor, OpZero, OpReplace}[r.IntN(4)], NewBlock: uint32(i)}
		var stored []byte
		switch o.Type {
		case OpCopy:
			o.Source = uint64(r.IntN(1 << 30))
		case OpXor:
			o.Source = r.Uint64N(1 << 40)
		}
		if o.Type == OpXor || o.Type == OpReplace {
			o.Compression = opts.Compression
			stored = make([]byte, 1+r.IntN(60))
			for k := range stored {
				stored[k] = byte(r.Uint32())
			}
		}
		h.calls = append(h.calls, call{op: o, stored: stored})
		if r.IntN(4) == 0 || i%8 == 7 {
			label += uint64(1 + r.IntN(3))
			h.calls = append(h.calls, call{label: label})
		}
		if r.IntN(15) == 0 {
			h.calls = append(h.calls, call{finish: true})
		}
	}
	h.calls = append(h.calls, call{finish: true})
	return h
}

// run makes the calls from the i-th on, until one fails. It returns how many
// have been made up to and including the last label.
func (h history) run(w Writer, i int) (resumeAt int, err error) {
	for ; i < len(h.calls); i++ {
		if err := h.calls[i].do(w); err != nil {
			return resumeAt, err
		}
		if h.calls[i].label > 0 {
			resumeAt = i + 1
		}
	}
	return resumeAt, nil
}

// resume continues after the first done calls, the last of which is a label;
// or from the start.
func (h history) resume(d Device, size int64, done int) error {
	var w Writer
	var err error
	if done > 0 {
		w, err = OpenWriter(d, size, h.calls[done-1].label, h.opts)
	} else {
		w, err = NewWriter(d, h.opts)
	}
	if err != nil {
		return err
	}
	_, err = h.run(w, done)
	return err
}

func histories() (all []history) {
	for i, o := range []WriterOptions{
		{Version: 2, ClusterOps: 2}, {Version: 2, ClusterOps: 3, Batch: true}, {Version: 2, ClusterOps: 7}, {Version: 2, ClusterOps: 9, Batch: true},
		{Version: 2, ClusterOps: Unclustered}, {Version: 2, ClusterOps: Unclustered, Batch: true}, {Version: 2, ClusterOps: 40, Batch: true},
		{Version: 3, OpCountMax: 60}, {Version: 3, OpCountMax: 64, ClusterOps: Unclustered}, {Version: 3, OpCountMax: 33, ClusterOps: 4},
	} {
		o.NoScratch, o.Compression = true, LZ4
		all = append(all, generate(uint64(i), 30, o))
	}
	return all
}

func (h history) String() string {
	return fmt.Sprintf("v%d/cluster%d/batch_%v", h.opts.Version, h.opts.ClusterOps, h.opts.Batch)
}

// reference is the file that the history makes undisturbed.
func (h history) reference(t testing.TB) []byte {
	t.Helper()
	d := newDisk(nil)
	if err := h.resume(diskFile{d}, 0, 0); err != nil {
		t.Fatal(err)
	}
	if len(d.pending) > 0 {
		t.Fatalf("%d changes are not durable after Finish", len(d.pending))
	}
	return d.b
}

// same compares with the reference; a resume point that was made twice has been
// counted twice.
func same(t testing.TB, h history, want, got []byte) {
	t.Helper()
	want = bytes.Clone(want)
	if h.opts.Version == 3 && len(got) > 50 {
		copy(want[46:50], got[46:50])
	}
	if !bytes.Equal(want, got) {
		for i := range min(len(want), len(got)) {
			if want[i] != got[i] {
				t.Fatalf("%d and %d bytes, the first difference at %d", len(want), len(got), i)
			}
		}
		t.Fatalf("expected %d bytes, found %d", len(want), len(got))
	}
}

// The power goes before, within and after every write; any of the unsynced ones
// are lost. The file continues at the last label that was given, to the same
// end; in version 3 it is also readable at any time.
func TestWriterPowerCuts(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for _, h := range histories() {
		t.Run(h.String(), func(t *testing.T) {
			want := h.reference(t)
			old := append(bytes.Repeat(want, 2), want[:100]...) // on a device: another COW before
			for _, device := range []bool{false, true} {
				for point, done := 0, false; !done; point++ {
					done = h.cutAt(t, r, point, device, want, old)
				}
			}
		})
	}
}

// found is the number of calls up to the last label at which a file can be continued.
func (h history) found(b []byte) (done int) {
	labels, _ := Labels(bytes.NewReader(b), int64(len(b)))
	for _, label := range labels {
		if _, err := Open(bytes.NewReader(b), int64(len(b)), &Options{Label: &label}); err != nil || label == 0 {
			continue
		}
		if i := slices.IndexFunc(h.calls, func(c call) bool { return c.label == label }); i >= 0 {
			done = max(done, i+1)
		}
	}
	return done
}

func (h history) cutAt(t *testing.T, r *rand.Rand, point int, device bool, want, old []byte) (done bool) {
	t.Helper()
	open := func(b []byte) (*disk, Device) {
		d := newDisk(b)
		if device {
			return d, diskDevice{d, int64(len(old))}
		}
		return d, diskFile{d}
	}
	if !device {
		old = nil
	}
	d, dev := open(old)
	d.failAt = point
	var label int
	w, err := NewWriter(dev, h.opts)
	if err == nil {
		label, err = h.run(w, 0)
	}
	if err == nil {
		return true
	}
	if !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	if w != nil {
		for _, c := range []call{{label: 9}, {finish: true}, {seq: []uint32{1}}, {op: Op{Type: OpZero}}} {
			if again := c.do(w); !errors.Is(again, errBroken) {
				t.Fatalf("after a failure: expected the same error, found %v", again)
			}
		}
	}
	for _, kept := range []func() bool{
		func() bool { return false }, func() bool { return true }, func() bool { return r.IntN(2) == 0 }, func() bool { return r.IntN(5) > 0 },
	} {
		after := d.afterCut(kept)
		_, err := Open(bytes.NewReader(after), int64(len(after)), nil)
		if w != nil && h.opts.Version == 3 && err != nil && !errors.Is(err, ErrMergeOrder) && !missingOps(err) {
			t.Fatalf("point %d: not readable after the cut: %v", point, err)
		}
		// An installer that comes back knows no more than what it finds. On a device a
		// torn label may be followed by what an earlier COW has left there.
		resumeAt := []int{label}
		if found := h.found(after); !device && found > label {
			resumeAt = append(resumeAt, found)
		}
		for _, at := range resumeAt {
			d, dev := open(after)
			if err := h.resume(dev, int64(len(after)), at); err != nil {
				t.Fatalf("point %d, resumed after call %d: %v", point, at, err)
			}
			same(t, h, want, d.b[:len(want)])
			if !device {
				same(t, h, want, d.b)
			}
		}
	}
	return false
}

// missingOps: the sequence names blocks whose ops are not written yet.
func missingOps(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Expected == "a block with an op"
}

// A device of exactly the size works; on any smaller one the writer fails, and
// the last label can be continued on a larger device to the same end.
func TestWriterNoSpace(t *testing.T) {
	for _, h := range histories() {
		t.Run(h.String(), func(t *testing.T) {
			want := h.reference(t)
			d := newDisk(nil)
			if err := h.resume(diskDevice{d, int64(len(want))}, 0, 0); err != nil {
				t.Fatal(err)
			}
			same(t, h, want, d.b)
			for capacity := range len(want) {
				h.noSpace(t, int64(capacity), want)
			}
		})
	}
}

func (h history) noSpace(t *testing.T, capacity int64, want []byte) {
	t.Helper()
	d := newDisk(make([]byte, capacity))
	label := 0
	w, err := NewWriter(diskDevice{d, capacity}, h.opts)
	if err == nil {
		label, err = h.run(w, 0)
		for _, c := range []call{{label: 99}, {finish: true}, {op: Op{Type: OpZero}}} {
			if again := c.do(w); again != err {
				t.Fatalf("capacity %d: expected %v again, found %v", capacity, err, again)
			}
		}
	}
	var e *Error
	if !errors.As(err, &e) || e.Kind != ErrNoSpace || e.Where == "" || e.Expected == "" || e.Found == "" {
		t.Fatalf("capacity %d: expected ErrNoSpace, found %v", capacity, err)
	}
	if label == 0 {
		return
	}
	larger := newDisk(append(d.durable, make([]byte, len(want)-len(d.durable))...))
	if err := h.resume(diskDevice{larger, int64(len(want))}, int64(len(want)), label); err != nil {
		t.Fatalf("capacity %d, resumed after call %d: %v", capacity, label, err)
	}
	same(t, h, want, larger.b)
}

// A file system without room says so by ENOSPC.
type fullFile struct {
	*disk
	left, writes int
}

func (f *fullFile) WriteAt(p []byte, off int64) (int, error) {
	if f.writes++; f.writes > f.left {
		return 0, fmt.Errorf("write x.cow: %w", syscall.ENOSPC)
	}
	return f.disk.WriteAt(p, off)
}

func TestWriterFileSystemFull(t *testing.T) {
	for _, h := range histories() {
		enough := &fullFile{disk: newDisk(nil), left: 1 << 30}
		if err := h.resume(enough, 0, 0); err != nil {
			t.Fatal(err)
		}
		for left := range enough.writes {
			f := &fullFile{disk: newDisk(nil), left: left}
			if err := h.resume(f, 0, 0); !errors.Is(err, ErrNoSpace) {
				t.Fatalf("%v, %d writes: expected ErrNoSpace, found %v", h, left, err)
			}
		}
	}
}

// Each label of a file, finished or not, on a device or not, with garbage
// behind or not, is where it can be continued: COW-022, COW-024, COW-025,
// COW-026, COW-031, COW-032.
func TestWriterResumesAtEachLabel(t *testing.T) {
	for _, h := range histories() {
		t.Run(h.String(), func(t *testing.T) {
			want := h.reference(t)
			garbage := append(bytes.Clone(want), bytes.Repeat([]byte{4, 0, 9}, 300)...)
			newest := ResumePoints // resume points of version 3
			for done := len(h.calls); done > 0; done-- {
				label := h.calls[done-1].label
				if label == 0 {
					continue
				}
				newest--
				d := newDisk(garbage)
				err := h.resume(diskFile{d}, int64(len(garbage)), done)
				if h.opts.Version == 3 && newest < 0 {
					if !errors.Is(err, ErrNoLabel) {
						t.Errorf("label %d: expected ErrNoLabel, found %v", label, err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("label %d: %v", label, err)
				}
				same(t, h, want, d.b)
			}
		})
	}
}

// What is behind the label is gone when the writer has been opened, whatever
// the power does: a later label must not come back to life among new ops.
func TestDroppedLabelsStayDropped(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	for _, h := range histories() {
		want := h.reference(t)
		var labels []int // calls
		for i, c := range h.calls {
			if c.label > 0 {
				labels = append(labels, i)
			}
		}
		first, last := labels[len(labels)-4], h.calls[labels[len(labels)-1]].label
		next := labels[len(labels)-3]
		for _, device := range []bool{false, true} {
			for point := 0; ; point++ {
				d := newDisk(want)
				var dev Device = diskFile{d}
				if device {
					dev = diskDevice{d, int64(len(want))}
				}
				w, err := OpenWriter(dev, int64(len(want)), h.calls[first].label, h.opts)
				if err != nil {
					t.Fatal(err)
				}
				d.point, d.failAt = 0, point
				for i := first + 1; i < next && err == nil; i++ {
					err = h.calls[i].do(w)
				}
				for range 8 {
					after := d.afterCut(func() bool { return r.IntN(2) == 0 })
					f, err := Open(bytes.NewReader(after), int64(len(after)), &Options{Label: &last})
					if err == nil {
						t.Fatalf("%v, device %v, point %d: label %d is back, with %d ops", h, device, point, last, f.NumOps())
					}
				}
				if err == nil {
					h.staysDropped(t, d, w, last)
					break
				}
			}
		}
	}
}

// staysDropped finishes with more ops than there were, and no labels.
func (h history) staysDropped(t *testing.T, d *disk, w Writer, label uint64) {
	t.Helper()
	d.failAt = -1
	for i := range uint32(min(w.OpsLeft(), 60)) {
		if err := w.Add(Op{Type: OpZero, NewBlock: 5000 + i}, nil); errors.Is(err, ErrNoSpace) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil && !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	if _, err := Open(bytes.NewReader(d.b), int64(len(d.b)), &Options{Label: &label}); !errors.Is(err, ErrNoLabel) {
		t.Fatalf("%v: label %d after finishing: expected ErrNoLabel, found %v", h, label, err)
	}
}

// On a device that holds another COW, finished and with labels, nothing of that
// is taken for the new one.
func TestWriterOverOlderCow(t *testing.T) {
	for _, h := range histories() {
		t.Run(h.String(), func(t *testing.T) {
			old := h.reference(t)
			d := newDisk(old)
			w, err := NewWriter(diskDevice{d, int64(len(old))}, h.opts)
			if err != nil {
				t.Fatal(err)
			}
			given := map[uint64]bool{}
			for _, c := range h.calls {
				for _, o := range h.calls {
					if o.label == 0 || given[o.label] {
						continue
					}
					if _, err := Open(d, int64(len(old)), &Options{Label: &o.label}); !errors.Is(err, ErrNoLabel) {
						t.Fatalf("label %d, not given yet: expected ErrNoLabel, found %v", o.label, err)
					}
				}
				if _, err := Open(d, int64(len(old)), nil); h.opts.Version == 2 && !errors.Is(err, ErrTruncated) {
					t.Fatalf("not finished: expected ErrTruncated, found %v", err)
				}
				if c.finish {
					return
				}
				if err := c.do(w); err != nil {
					t.Fatal(err)
				}
				given[c.label] = true
			}
		})
	}
}

// A table that the device has no room for is found out at once.
func TestWriterTableTooLarge(t *testing.T) {
	opts := WriterOptions{Version: 3, OpCountMax: 100, NoScratch: true}
	end := int64(78 + 64 + 1600)
	for capacity, ok := range map[int64]bool{end - 1: false, end: true} {
		if _, err := NewWriter(diskDevice{newDisk(nil), capacity}, opts); (err == nil) != ok || !ok && !errors.Is(err, ErrNoSpace) {
			t.Errorf("capacity %d: %v", capacity, err)
		}
	}
}

// A size is the sum of its causes, at any time and in every layout; data are
// what the ops have stored.
func TestSizeByCause(t *testing.T) {
	for _, o := range []WriterOptions{
		{Version: 2}, {Version: 2, ClusterOps: 3, Batch: true}, {Version: 2, ClusterOps: Unclustered, NoScratch: true}, {Version: 3, OpCountMax: 100},
	} {
		w, err := NewEstimator(o)
		if err != nil {
			t.Fatal(err)
		}
		if o.ClusterOps != Unclustered {
			if err := w.Sequence([]uint32{1, 2, 3}); err != nil {
				t.Fatal(err)
			}
		}
		header := map[int]int64{2: 38, 3: 78}[o.Version] + int64(o.scratch())
		for n := range 10 {
			s := w.Size()
			if s.Bytes != s.Header+s.Ops+s.Data || s.Header != header || s.Data != int64(n/2*BlockSize) {
				t.Errorf("%+v: after %d ops: found %+v", o, n, s)
			}
			op := Op{Type: OpZero, NewBlock: uint32(n)}
			var stored []byte
			if n%2 > 0 {
				op.Type, stored = OpReplace, make([]byte, BlockSize)
			}
			if err := w.Add(op, stored); err != nil {
				t.Fatal(err)
			}
		}
		size, err := w.Finish()
		if err != nil || size != w.Size().Bytes {
			t.Errorf("%+v: expected %d bytes, found %d, %v", o, w.Size().Bytes, size, err)
		}
	}
}

// Version 3 can begin with progress only if no header is written before the ops
// that it counts.
func TestProgressOfNewV3(t *testing.T) {
	o := WriterOptions{Version: 3, OpCountMax: 2, NumMergeOps: 2}
	if _, err := NewEstimator(o); !errors.Is(err, ErrRequest) {
		t.Errorf("header first: expected ErrRequest, found %v", err)
	}
	o.HeaderLast = true
	w, err := NewEstimator(o)
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint32(2) {
		if _, err := w.Finish(); !errors.Is(err, ErrRequest) {
			t.Errorf("%d ops of 2: expected ErrRequest, found %v", n, err)
		}
		if err := w.Add(Op{Type: OpZero, NewBlock: n}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Error(err)
	}
}
