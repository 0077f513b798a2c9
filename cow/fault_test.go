package cow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cowbird/formats/cowfile"

	"golang.org/x/sys/unix"
)

// fault is one call of a device's method that fails.
type fault struct {
	disk   int
	method string
	how    string
	err    error // what the caller is to see

	mu    sync.Mutex
	calls int // until it happens
	hit   bool
}

// The ways in which a method can fail. A failed sync may have done its work,
// may do it when it is called again, or may have lost the writes for good:
// Linux marks pages clean whose writing failed, and the next sync succeeds.
var faults = []fault{
	{disk: cowDisk, method: "read", how: "fails", err: unix.EIO},
	{disk: cowDisk, method: "read", how: "short", err: io.ErrUnexpectedEOF},
	{disk: cowDisk, method: "write", how: "fails", err: unix.EIO},
	{disk: cowDisk, method: "write", how: "short", err: unix.ENOSPC},
	{disk: cowDisk, method: "sync", how: "done", err: unix.EIO},
	{disk: cowDisk, method: "sync", how: "not done", err: unix.EIO},
	{disk: cowDisk, method: "sync", how: "writes lost", err: unix.EIO},
	{disk: baseDisk, method: "read", how: "fails", err: unix.EIO},
	{disk: baseDisk, method: "read", how: "short", err: io.ErrUnexpectedEOF},
	{disk: baseDisk, method: "write", how: "fails", err: unix.EIO},
	{disk: baseDisk, method: "write", how: "short", err: unix.ENOSPC},
	{disk: baseDisk, method: "sync", how: "done", err: unix.EIO},
	{disk: baseDisk, method: "sync", how: "not done", err: unix.EIO},
	{disk: baseDisk, method: "sync", how: "writes lost", err: unix.EIO},
	{disk: baseDisk, method: "grow", how: "fails", err: unix.ENOSPC},
}

func (f *fault) String() string { return fmt.Sprintf("%s %s %s", diskNames[f.disk], f.method, f.how) }

// now tells whether this call is the one.
func (f *fault) now(disk int, method string) bool {
	if disk != f.disk || method != f.method {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls--
	if f.calls != -1 {
		return false
	}
	f.hit = true
	return true
}

// over keeps a fault that has not happened from happening.
func (f *fault) over() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = -1
}

// faultyDisk is a disk with a fault.
type faultyDisk struct {
	*disk
	f *fault
}

func (d faultyDisk) ReadAt(p []byte, off int64) (int, error) {
	if !d.f.now(d.n, "read") {
		return d.disk.ReadAt(p, off)
	}
	if d.f.how == "short" {
		return d.disk.ReadAt(p[:len(p)/2], off)
	}
	return 0, d.f.err
}

func (d faultyDisk) WriteAt(p []byte, off int64) (int, error) {
	if !d.f.now(d.n, "write") {
		return d.disk.WriteAt(p, off)
	}
	n := 0
	if half := len(p) / sector / 2; d.f.how == "short" && half > 0 {
		n, _ = d.disk.WriteAt(p[:wholeSectors(off, half)], off)
	}
	return n, d.f.err
}

func (d faultyDisk) Sync() error {
	if !d.f.now(d.n, "sync") {
		return d.disk.Sync()
	}
	switch d.f.how {
	case "done":
		_ = d.disk.Sync()
	case "writes lost":
		d.r.held[d.n].pending = nil
	}
	return d.f.err
}

func (d faultyDisk) Grow(size int64) error {
	if d.f.now(d.n, "grow") {
		return d.f.err
	}
	return d.disk.Grow(size)
}

// where is what the error of a failed method must tell: the device, and which
// bytes, block or area of it.
var where = map[string]*regexp.Regexp{
	"cow read":   regexp.MustCompile(`COW|scratch area`),
	"cow write":  regexp.MustCompile(`(progress|scratch area|journal).* COW`),
	"cow sync":   regexp.MustCompile(`sync the COW`),
	"base read":  regexp.MustCompile(`source of op .* read \d+ bytes at \d+`),
	"base write": regexp.MustCompile(`write \d+ bytes at block \d+ of the base`),
	"base sync":  regexp.MustCompile(`sync the base`),
	"base grow":  regexp.MustCompile(`grow the base`),
}

// SNU-033, SNU-034, SNU-038: any call of a device that a merge makes fails once.
// The merge says so, the snapshot serves on, the power may go, and the next
// merge goes on to the end.
func TestFaultEveryCall(t *testing.T) {
	for seed := range uint64(few(10, 2)) {
		c := generate(t, 400+seed, 10+4*int(seed), seed%3 > 0)
		t.Run(c.name, func(t *testing.T) {
			goroutines, n := runtime.NumGoroutine(), 0
			for i := range faults {
				for calls := 0; ; calls++ {
					f := fault{disk: faults[i].disk, method: faults[i].method, how: faults[i].how, err: faults[i].err, calls: calls}
					hit, err := mergeWithFault(c, &f)
					if err != nil {
						t.Errorf("%v, call %d: %v", &f, calls, err)
					}
					if !hit || err != nil {
						break
					}
					n++
				}
			}
			settle(t, goroutines)
			t.Logf("%d faults", n)
		})
	}
}

// settle waits until no more goroutines run than before.
func settle(t *testing.T, before int) {
	t.Helper()
	for range 1000 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	b := make([]byte, 1<<16)
	t.Errorf("expected %d goroutines, found %d:\n%s", before, runtime.NumGoroutine(), b[:runtime.Stack(b, true)])
}

// mergeWithFault merges twice, with the fault in the way if it is hit.
func mergeWithFault(c sample, f *fault) (hit bool, err error) {
	r := newRecorder(storageOf(c))
	s, err := Open(Options{Cow: faultyDisk{r.cow(), f}, Base: faultyDisk{r.base(), f}, Size: int64(len(c.target))})
	if err != nil {
		if !f.hit || !errors.Is(err, f.err) && !errors.Is(err, cowfile.ErrTruncated) {
			return f.hit, fmt.Errorf("open: expected %v, found %v", f.err, err)
		}
		return true, nil
	}
	defer s.Close()
	if f.hit { // a short read that had all that was needed
		return true, checkView(s, c)
	}
	_, failed := s.Merge(context.Background(), MergeOptions{limits: inSteps})
	f.over()
	if f.hit {
		if err := checkFailed(s, c, f, failed); err != nil {
			return true, err
		}
		left, steps := r.held, len(r.events)
		if _, err := s.Merge(context.Background(), MergeOptions{limits: inSteps}); err != nil {
			return true, fmt.Errorf("second merge: %w", err)
		}
		if err := cutAfterFault(c, left, r.events[steps:]); err != nil {
			return true, fmt.Errorf("second merge: %w", err)
		}
	} else if failed != nil {
		return false, failed
	}
	if err := r.checkBase(c); err != nil {
		return f.hit, err
	}
	return f.hit, checkView(s, c)
}

func checkFailed(s *Snapshot, c sample, f *fault, failed error) error {
	w := where[diskNames[f.disk]+" "+f.method]
	if !errors.Is(failed, f.err) || !w.MatchString(failed.Error()) {
		return fmt.Errorf("expected %v and %v, found %v", f.err, w, failed)
	}
	if p := s.Progress(); p.Status != StatusFailed || !errors.Is(p.Err, f.err) {
		return fmt.Errorf("expected a failed merge, found %+v", p)
	}
	return checkView(s, c)
}

// cutAfterFault cuts the power between a fault and the end of the next merge:
// before it, somewhere in it, and behind it, where nothing may be missing.
func cutAfterFault(c sample, left storage, events []event) error {
	r := rand.New(rand.NewPCG(uint64(len(events)), 4))
	cuts := map[int]bool{0: true, len(events): true, r.IntN(len(events) + 1): true, r.IntN(len(events) + 1): true}
	for k := 0; ; k++ {
		if cuts[k] {
			pieces := left.pieces()
			for _, st := range []storage{left.survivor(pieces, make([]bool, len(pieces))), left.torn(pieces, r)} {
				if _, _, err := mergeOn(st, c, tight, false); err != nil {
					return fmt.Errorf("%w, after a cut at step %d of %d", err, k, len(events))
				}
			}
		}
		if k == len(events) {
			break
		}
		left[events[k].disk].apply(events[k])
	}
	if got := left[baseDisk].durable.bytes(); string(got) != string(c.target) && len(got) == len(c.target) {
		return errors.New("expected the merged base to be durable")
	}
	return nil
}

// A merge beside readers that meet the failures, too: each call sees its own
// error or the right bytes.
func TestFaultsBesideReaders(t *testing.T) {
	c := generate(t, 450, 60, true)
	for i := range faults {
		f := &faults[i]
		t.Run(strings.ReplaceAll(f.String(), " ", "_"), func(t *testing.T) {
			goroutines := runtime.NumGoroutine()
			for n := 0; n < 40; n += 3 {
				mergeFaultyBesideReaders(t, c, &fault{disk: f.disk, method: f.method, how: f.how, err: f.err, calls: n})
			}
			settle(t, goroutines)
		})
	}
}

func mergeFaultyBesideReaders(t *testing.T, c sample, f *fault) {
	t.Helper()
	r := newRecorder(storageOf(c))
	never := &fault{disk: -1}
	armed := atomic.Pointer[fault]{}
	armed.Store(never)
	s, err := Open(Options{Cow: armedDisk{r.cow(), &armed}, Base: armedDisk{r.base(), &armed}, Size: int64(len(c.target))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	armed.Store(f)
	stop := readRandomly(t, s, c, func(err error) bool { return errors.Is(err, f.err) })
	_, err = s.Merge(context.Background(), MergeOptions{limits: tight})
	stop()
	if err != nil && !errors.Is(err, f.err) {
		t.Errorf("%v: %v", f, err)
	}
	armed.Store(never)
	if _, err := s.Merge(context.Background(), MergeOptions{limits: tight}); err != nil {
		t.Errorf("%v: %v", f, err)
	}
	if err := r.checkBase(c); err != nil {
		t.Errorf("%v: %v", f, err)
	}
}

// armedDisk is a disk whose fault can be chosen while it is in use.
type armedDisk struct {
	*disk
	f *atomic.Pointer[fault]
}

func (d armedDisk) ReadAt(p []byte, off int64) (int, error) {
	return faultyDisk{d.disk, d.f.Load()}.ReadAt(p, off)
}

func (d armedDisk) WriteAt(p []byte, off int64) (int, error) {
	return faultyDisk{d.disk, d.f.Load()}.WriteAt(p, off)
}
func (d armedDisk) Sync() error        { return faultyDisk{d.disk, d.f.Load()}.Sync() }
func (d armedDisk) Grow(n int64) error { return faultyDisk{d.disk, d.f.Load()}.Grow(n) }
