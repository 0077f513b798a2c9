package snapd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// A signal in a merge: what is merged is committed, the next daemon goes on.
func TestLeaveInMerge(t *testing.T) {
	l := newLab(t, nil)
	w := l.dial()
	base, target := l.mapped(w, "sys")
	device := l.carrier.device("sys")
	device.hold("process 1 (init)")
	w.expect("cowbird,merge,sys,262144", "success")
	for l.status(w, "sys").MergedOps == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	l.end()
	if !device.aborted {
		t.Error("expected the device in use to be aborted")
	}
	if exists(l.cfg.Socket) {
		t.Error("expected the socket to be removed")
	}
	l.start()
	w = l.dial()
	w.expect("init,sys,"+filepath.Join(l.dir, "sys.cow")+","+base+","+base, "success,2048")
	if s := l.status(w, "sys"); s.MergedOps == 0 {
		t.Error("expected the merge to have been committed, found 0 ops merged")
	}
	w.expect("start,sys", "success")
	w.expect("initiate_merge,sys", "success")
	w.until("getstatus,sys", "snapshot-merge-complete")
	if now, _ := os.ReadFile(base); !bytes.Equal(now, target) {
		t.Error("expected the base to be the target")
	}
}

// Devices in use are left to the next daemon where that is wanted and possible.
func TestLeaveKept(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Keep = true })
	w := l.dial()
	for _, name := range []string{"unused", "left", "stays", "lasts"} {
		l.mapped(w, name)
		d := l.carrier.device(name)
		d.stays, d.lasts = name == "stays", name == "lasts"
		if name != "unused" {
			d.hold("process 1 (init)")
		}
	}
	l.end()
	for name, want := range map[string]struct{ closed, left, aborted bool }{
		"unused": {true, false, false}, "left": {true, true, false}, "stays": {true, false, true}, "lasts": {false, true, false},
	} {
		d := l.carrier.device(name)
		if d.closed != want.closed || d.left != want.left || d.aborted != want.aborted {
			t.Errorf("%s: expected closed, left and aborted to be %v, found %v, %v, %v", name, want, d.closed, d.left, d.aborted)
		}
	}
	block := make([]byte, 4096)
	if _, err := l.carrier.device("lasts").backend.ReadAt(block, 0); err != nil {
		t.Errorf("a device that is served until the end: expected a read, found %v", err)
	}
}

func TestStop(t *testing.T) {
	var told atomic.Bool
	l := newLab(t, func(c *Config) { c.Leaving = func() { told.Store(true) } })
	w := l.dial()
	l.mapped(w, "sys")
	w.send("stop")
	if got := w.reply(); got != "EOF" {
		t.Errorf("stop: expected no reply, found %q", got)
	}
	l.waitEnd()
	if d := l.carrier.device("sys"); !d.closed || d.aborted {
		t.Errorf("expected the device to be closed and not aborted, found closed %v, aborted %v", d.closed, d.aborted)
	}
	if !told.Load() {
		t.Error("expected Leaving to be called")
	}
}

// After detach the daemon is passive and leaves with its last device.
func TestDetach(t *testing.T) {
	l := newLab(t, nil)
	w, late := l.dial(), l.dial()
	late.expect("query", "active")
	base, cowPath, _ := l.images("other")
	l.mapped(w, "sys")
	w.send("detach")
	late.until("query", "passive")
	late.expect("init,other,"+cowPath+","+base+","+base, "fail")
	late.expect("initiate_merge,sys", "fail")
	for exists(l.cfg.Socket) {
		time.Sleep(time.Millisecond)
	}
	late.expect("get_device_name,sys", "success,/dev/fake-sys")
	late.expect("delete,sys", "success")
	l.waitEnd()
}

func TestDetachWithoutDevices(t *testing.T) {
	l := newLab(t, nil)
	l.dial().send("detach")
	l.waitEnd()
}

func TestSocket(t *testing.T) {
	l := newLab(t, nil)
	st, err := os.Stat(l.cfg.Socket)
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("expected mode 0660, found %v, %v", st.Mode(), err)
	}
	if _, err := Listen(l.cfg); !errors.Is(err, ErrRunning) {
		t.Errorf("second daemon: expected ErrRunning, found %v", err)
	}
	l.dial().expect("query", "active")
}

func TestQuiet(t *testing.T) {
	var rests, wakes, busy, crowds atomic.Int32
	q := newQuiet(20*time.Millisecond, func() { rests.Add(1) }, func() { wakes.Add(1) }, func() { busy.Add(1) }, func() { crowds.Add(1) })
	defer q.stop()
	settle := func() { time.Sleep(120 * time.Millisecond) }
	settle()
	if rests.Load() != 0 {
		t.Error("expected no rest before the first touch")
	}
	q.touch()
	q.touch()
	settle()
	if rests.Load() != 1 || wakes.Load() != 1 {
		t.Errorf("expected one wake and one rest, found %d and %d", wakes.Load(), rests.Load())
	}
	q.begin()
	settle()
	if rests.Load() != 1 || crowds.Load() != 0 {
		t.Error("expected neither a rest nor a crowd while one thing is under way")
	}
	q.begin()
	q.end()
	if crowds.Load() != 1 {
		t.Errorf("expected a crowd of two, found %d", crowds.Load())
	}
	q.end()
	if busy.Load() != 0 {
		t.Error("expected it not to be busy yet")
	}
	for range 20 {
		q.touch()
		time.Sleep(5 * time.Millisecond)
	}
	if busy.Load() == 0 {
		t.Error("expected it to be busy after a while")
	}
	settle()
	if rests.Load() != 2 || wakes.Load() != 2 {
		t.Errorf("expected two of each, found %d wakes and %d rests", wakes.Load(), rests.Load())
	}
}

// Threads that were blocked together are not kept for good.
func TestDropThreads(t *testing.T) {
	threads := func() int {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Skip("needs /proc: ", err)
		}
		return len(tasks)
	}
	const blocked = 24
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for range blocked {
		readers.Go(func() { _, _ = unix.Read(fds[0], make([]byte, 1)) })
	}
	for threads() < blocked {
		time.Sleep(time.Millisecond)
	}
	_ = unix.Close(fds[1])
	readers.Wait()
	_ = unix.Close(fds[0])
	before := threads()
	dropThreads(before)
	if got := threads(); got < blocked {
		t.Errorf("expected nothing to be done for that many devices, found %d threads of %d", got, before)
	}
	dropThreads(0)
	for end := time.Now().Add(10 * time.Second); threads() > before-blocked/2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("expected most of %d threads to end, found %d", before, threads())
		}
	}
}

// Each burst of requests is followed by one rest.
func TestServerRests(t *testing.T) {
	rested := make(chan struct{}, 16)
	l := newLab(t, func(c *Config) {
		c.Quiet = 30 * time.Millisecond
		c.restHook = func() { rested <- struct{}{} }
	})
	w := l.dial()
	l.mapped(w, "sys")
	for range 3 {
		_, _ = l.carrier.device("sys").backend.ReadAt(make([]byte, 4096), 0)
		select {
		case <-rested:
		case <-time.After(5 * time.Second):
			t.Fatal("no rest")
		}
	}
	time.Sleep(150 * time.Millisecond)
	if n := len(rested); n > 1 {
		t.Errorf("expected no more rests without requests, found %d", n)
	}
}

func TestProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, c := range []struct{ most, spare, wide int }{{0, 1, 1}, {1, 1, 1}, {2, 2, 2}, {4, 2, 4}} {
		p := processors{most: c.most}
		for _, step := range []struct {
			do   func()
			want int
		}{{p.spare, c.spare}, {p.widen, c.wide}, {p.spare, c.wide}, {p.narrow, 1}, {p.widen, c.wide}, {p.narrow, 1}} {
			step.do()
			if got := runtime.GOMAXPROCS(0); got != step.want {
				t.Errorf("%d at most: expected %d, found %d", c.most, step.want, got)
			}
		}
	}
}
