package cow

import (
	"context"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// threadPriority is the nice value and the I/O class of the calling thread.
func threadPriority(t *testing.T) (nice, class int) {
	t.Helper()
	n, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	io, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, 0, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	return 20 - n, int(io) >> 13
}

// watching notes the priorities of the threads that read and write.
type watching struct {
	*memDevice
	t    *testing.T
	mu   sync.Mutex
	seen map[[2]int]int
}

func (d *watching) note() {
	nice, class := threadPriority(d.t)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen[[2]int{nice, class}]++
}

func (d *watching) ReadAt(p []byte, off int64) (int, error) {
	d.note()
	return d.memDevice.ReadAt(p, off)
}

func (d *watching) WriteAt(p []byte, off int64) (int, error) {
	d.note()
	return d.memDevice.WriteAt(p, off)
}

// A merge that is to stand back does so with all its threads, and with no
// others.
func TestPriority(t *testing.T) {
	c := generate(t, 3, 200, true)
	base := &watching{memDevice: newMem(c.base), t: t, seen: map[[2]int]int{}}
	s, err := Open(Options{Cow: newMem(c.cow), Base: base, Size: int64(len(c.target))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	nice, _ := threadPriority(t)
	if _, err := s.Merge(context.Background(), MergeOptions{Priority: Priority{Nice: 20}}); err == nil {
		t.Error("expected nice 20 to be refused")
	}
	clear(base.seen)
	if _, err := s.Merge(context.Background(), MergeOptions{Priority: Priority{IdleIO: true, Nice: 7}, limits: tight}); err != nil {
		t.Fatal(err)
	}
	if len(base.seen) != 1 || base.seen[[2]int{min(19, nice+7), 3}] == 0 {
		t.Errorf("expected nice %d and class 3 only, found %v", nice+7, base.seen)
	}
	clear(base.seen)
	readWhole(t, s, s.Size())
	if base.seen[[2]int{nice, 0}] != len(base.seen) && len(base.seen) != 1 {
		t.Errorf("reads: expected nice %d and no class, found %v", nice, base.seen)
	}
}
