package cow

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// gate is a device whose writes and syncs block while it is shut. arrived
// hears of each that does.
type gate struct {
	Device
	blocked string // "write" or "sync"

	mu      sync.Mutex
	open    chan struct{}
	arrived chan struct{}
	skip    int // calls that pass first
}

func newGate(d Device, blocked string, skip int) *gate {
	return &gate{Device: d, blocked: blocked, skip: skip, open: make(chan struct{}), arrived: make(chan struct{}, 1)}
}

func (g *gate) wait(method string) {
	if method != g.blocked {
		return
	}
	g.mu.Lock()
	g.skip--
	stuck := g.skip == -1
	g.mu.Unlock()
	if stuck {
		g.arrived <- struct{}{}
		<-g.open
	}
}

func (g *gate) WriteAt(p []byte, off int64) (int, error) {
	g.wait("write")
	return g.Device.WriteAt(p, off)
}

func (g *gate) Sync() error {
	g.wait("sync")
	return g.Device.Sync()
}

func (g *gate) Grow(n int64) error { return g.Device.(Growing).Grow(n) }

// guard is how long something may take that must not hang.
const guard = 20 * time.Second

// SNU-005, SNU-032: no read waits for a batch. Each write and each sync of a
// merge in turn gets stuck; every block can be read meanwhile, one by one and in
// one request, and so it can be by readers that were there before.
func TestReadsWhileStuck(t *testing.T) {
	for seed := range uint64(few(4, 2)) {
		c := generate(t, 500+seed, 30, seed%2 == 0)
		for _, where := range []struct{ device, method string }{{"base", "write"}, {"base", "sync"}, {"cow", "write"}, {"cow", "sync"}} {
			t.Run(c.name+"/"+where.device+"_"+where.method, func(t *testing.T) {
				t.Parallel()
				n := 0
				for ; readWhileStuck(t, c, where.device, where.method, n); n++ {
				}
				if n == 0 {
					t.Errorf("expected a merge to need a %s of the %s", where.method, where.device)
				}
			})
		}
	}
}

// readWhileStuck reports whether the merge has got as far as the n-th call.
func readWhileStuck(t *testing.T, c sample, device, method string, n int) bool {
	t.Helper()
	cow, base := Device(newMem(c.cow)), Device(newMem(c.base))
	var g *gate
	if device == "cow" {
		g = newGate(cow, method, n)
		cow = g
	} else {
		g = newGate(base, method, n)
		base = g
	}
	s, err := Open(Options{Cow: cow, Base: base, Size: int64(len(c.target))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	merged := make(chan error, 1)
	go func() {
		_, err := s.Merge(context.Background(), MergeOptions{limits: tight})
		merged <- err
	}()
	stuck := false
	select {
	case <-g.arrived:
		stuck = true
		readAll(t, s, c)
		close(g.open)
		err = <-merged
	case err = <-merged:
	}
	if err != nil {
		t.Fatal(err)
	}
	return stuck && !t.Failed()
}

// readAll reads each block and the whole, within the guard.
func readAll(t *testing.T, s *Snapshot, c sample) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		b := make([]byte, blockSize)
		for off := 0; off < len(c.target); off += blockSize {
			if err := readFull(s, b, int64(off)); err != nil || !bytes.Equal(b, c.target[off:off+blockSize]) {
				done <- errors.Join(err, errors.New(firstDifference(b, c.target[off:])))
				return
			}
		}
		done <- checkView(s, c)
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(guard):
		t.Error("reads wait for the merge")
	}
}

// slowReads is a device on which one read can be held.
type slowReads struct {
	Device
	mu   sync.Mutex
	held chan struct{} // nil: not now
	in   chan struct{}
}

func (d *slowReads) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	held := d.held
	d.held = nil
	d.mu.Unlock()
	if held != nil {
		d.in <- struct{}{}
		<-held
	}
	return d.Device.ReadAt(p, off)
}

// The other way round: while a read of a source block is under way, the merge
// does not overwrite that block, however long it takes.
func TestMergeWaitsForReads(t *testing.T) {
	for seed := range uint64(few(20, 6)) {
		c := generate(t, 520+seed, 30, seed%2 == 0)
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for block := range len(c.target) / blockSize {
				slow := &slowReads{Device: newMem(c.base), in: make(chan struct{}, 1)}
				s, err := Open(Options{Cow: newMem(c.cow), Base: growing{slow}, Size: int64(len(c.target))})
				if err != nil {
					t.Fatal(err)
				}
				holdOneRead(t, s, c, slow, block)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// growing lends a device the Grow of the one within it.
type growing struct{ *slowReads }

func (g growing) Grow(n int64) error { return g.Device.(Growing).Grow(n) }

func holdOneRead(t *testing.T, s *Snapshot, c sample, slow *slowReads, block int) {
	t.Helper()
	held := make(chan struct{})
	slow.held = held
	read := make(chan error, 1)
	b := make([]byte, blockSize)
	go func() { read <- readFull(s, b, int64(block)*blockSize) }()
	var err error
	select {
	case <-slow.in:
		merged := make(chan error, 1)
		go func() {
			_, err := s.Merge(context.Background(), MergeOptions{limits: tight})
			merged <- err
		}()
		select {
		case err = <-merged:
			merged <- err
		case <-time.After(2 * time.Millisecond): // it waits, or will soon
		}
		close(held)
		err = errors.Join(<-read, <-merged)
	case err = <-read: // no block of the base
	}
	if err != nil || !bytes.Equal(b, c.target[block*blockSize:][:blockSize]) {
		t.Errorf("block %d: %v, %s", block, err, firstDifference(b, c.target[block*blockSize:]))
	}
}

// SNU-005, SNU-006, SNU-018…020, SNU-032: readers of random, unaligned and
// sequential ranges see the target at every moment, while the merge is paused,
// resumed, cancelled and begun again.
func TestReadsWhileMergeIsDisturbed(t *testing.T) {
	for seed := range uint64(few(12, 4)) {
		c := generate(t, 540+seed, 150, seed%3 > 0)
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, _, base := openSample(t, c)
			stop := readRandomly(t, s, c, func(error) bool { return false })
			disturb(t, s, rand.New(rand.NewPCG(seed, 5)))
			stop()
			if !bytes.Equal(base.data, c.target) {
				t.Errorf("the merged base: %s", firstDifference(base.data, c.target))
			}
		})
	}
}

// disturb merges in many runs, each cancelled or paused after some batches.
func disturb(t *testing.T, s *Snapshot, r *rand.Rand) {
	t.Helper()
	for run := 0; s.Progress().Status != StatusComplete; run++ {
		ctx, cancel := context.WithCancel(context.Background())
		batches, pause := 1+r.IntN(3), r.IntN(2) == 0
		limits := mergeLimits{batch: 2 + r.IntN(6), window: 1 + r.IntN(5), worth: 1 + r.IntN(4)}
		_, err := s.Merge(ctx, MergeOptions{limits: limits, OnProgress: func(Progress) {
			if batches--; batches > 0 {
				return
			}
			if !pause {
				cancel()
				return
			}
			s.Pause()
			time.AfterFunc(time.Duration(r.IntN(3))*time.Millisecond, s.Resume)
			batches = 3
		}})
		cancel()
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
}
