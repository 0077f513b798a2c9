package dmuser

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func eachMount(t *testing.T, test func(*testing.T, *fuseCarrier)) {
	needKernel(t)
	for name, classic := range map[string]bool{"Detached": false, "Classic": true} {
		t.Run(name, func(t *testing.T) {
			test(t, &fuseCarrier{buffers: newBufferPool(maxRead), classic: classic})
		})
	}
}

func TestFuse(t *testing.T) {
	eachMount(t, func(t *testing.T, c *fuseCarrier) { testCarrier(t, c) })
}

func bound(path string) bool {
	_, err := os.Stat("/sys/block/" + filepath.Base(path) + "/loop")
	return err == nil
}

func TestKilledServer(t *testing.T) {
	eachMount(t, func(t *testing.T, c *fuseCarrier) {
		leavesNothing(t)
		ch := startChild(t, c, testSize)
		if !bound(ch.path) {
			t.Fatalf("expected %s to be bound", ch.path)
		}
		ch.kill()
		eventually(t, ch.path+" gone", func() bool { return !bound(ch.path) })
	})
}

// A process that is gone may have left the kernel with read-ahead under way,
// which the last close of the device waits for.
func TestKilledServerWithReadAhead(t *testing.T) {
	eachMount(t, func(t *testing.T, c *fuseCarrier) {
		ch := startChild(t, c, 1<<30)
		must(t, ch.Process.Signal(unix.SIGSTOP))
		f, err := os.Open(ch.path)
		must(t, err)
		must(t, unix.Fadvise(int(f.Fd()), 0, 1<<20, unix.FADV_WILLNEED))
		must(t, f.Close())
		ch.kill()
		eventually(t, ch.path+" gone", func() bool { return !bound(ch.path) })
	})
}

func TestSweepKilledServer(t *testing.T) {
	eachMount(t, func(t *testing.T, c *fuseCarrier) {
		ch := startChild(t, c, testSize)
		letGo := hold(t, ch.path)
		expectUnswept(t, c, "child")
		ch.kill()
		_, err := c.Sweep()
		expectBusy(t, err, "(sleep)")
		expectBusy(t, err, "sweep child")
		letGo()
		eventually(t, ch.path+" gone", func() bool { return !bound(ch.path) })
		expectUnswept(t, c, "child")
	})
}

func TestSweepMountPoint(t *testing.T) {
	needKernel(t)
	stale := filepath.Join(os.TempDir(), mountPointPrefix+"2147483646.1-stale")
	target := filepath.Join(stale, mountPointFile)
	must(t, os.Mkdir(stale, 0o700))
	must(t, os.WriteFile(target, nil, 0o400))
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH); removeMountPoint(target) })
	must(t, unix.Mount("/proc/version", target, "", unix.MS_BIND, ""))
	removed, _ := fuse.Sweep()
	if !slices.Contains(removed, stale) {
		t.Errorf("expected %s removed, found %v", stale, removed)
	}
	if _, err := os.Lstat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("expected %s to be gone, found %v", stale, err)
	}
}

// A server that dies while a thread of it reads its own device cannot finish
// dying by itself.
func TestSweepServerStuckOnItself(t *testing.T) {
	eachMount(t, func(t *testing.T, c *fuseCarrier) {
		t.Setenv(stuckEnv, "1")
		ch := startChild(t, c, testSize)
		must(t, ch.Process.Kill())
		eventually(t, ch.path+" gone", func() bool {
			_, _ = c.Sweep() // busy until the process is gone
			return !bound(ch.path)
		})
	})
}

// threads gives, of each thread of pid, how often it went to sleep, and how
// many of them sit in a read of /dev/fuse.
func threads(t *testing.T, pid int) (switches map[string]string, readers int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	must(t, err)
	switches = map[string]string{}
	for _, task := range tasks {
		status, _ := os.ReadFile(task + "/status")
		for line := range strings.Lines(string(status)) {
			if n, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
				switches[task] = strings.TrimSpace(n)
			}
		}
		var nr, fd int
		call, _ := os.ReadFile(task + "/syscall")
		if n, _ := fmt.Sscanf(string(call), "%d 0x%x", &nr, &fd); n == 2 && nr == unix.SYS_READ {
			if link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); link == fuseDevice {
				readers++
			}
		}
	}
	return switches, readers
}

// A busy connection has a thread of its own, which it gives up afterwards.
func TestIdle(t *testing.T) {
	eachMount(t, func(t *testing.T, c *fuseCarrier) {
		ch := startChild(t, c, testSize)
		f, err := os.Open(ch.path)
		must(t, err)
		checkRead(t, f, make([]byte, testSize), 0)
		must(t, f.Close())
		direct, err := os.OpenFile(ch.path, os.O_RDONLY|unix.O_DIRECT, 0)
		must(t, err)
		for buf, i := alignedBytes(t, 4096), 0; i < 2*busyFrom; i++ {
			checkRead(t, direct, buf, 0)
		}
		eventually(t, "a thread in a read", func() bool {
			_, readers := threads(t, ch.Process.Pid)
			return readers == 1
		})
		must(t, direct.Close())
		time.Sleep(2*quietAfter + quietAfter/2)
		// The runtime itself wakes up for a while after a burst of work, and
		// once in some minutes later on.
		for range 10 {
			before, readers := threads(t, ch.Process.Pid)
			time.Sleep(time.Second)
			after, _ := threads(t, ch.Process.Pid)
			if readers != 0 {
				t.Fatalf("expected no thread in a read of %s any more, found %d", fuseDevice, readers)
			}
			if fmt.Sprint(before) == fmt.Sprint(after) {
				return
			}
		}
		t.Error("expected a second without a wake-up, found none")
	})
}

func TestReserve(t *testing.T) {
	needKernel(t)
	leavesNothing(t) // the watch of quiet devices ends a moment after the last one
	pool := newBufferPool(maxRead)
	pool.mmap = func(int) (*buffer, error) { return nil, unix.ENOMEM }
	c := &fuseCarrier{buffers: pool}
	testDirectReads(t, c)
	testConcurrentReads(t, c)
	testReadError(t, c)
}

func TestRefusedConnection(t *testing.T) {
	needKernel(t)
	leavesNothing(t)
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	d := &fuseDev{}
	d.root, err = mountFuse(fd, false)
	must(t, err)
	d.server, err = newFuseServer(fd, d.root, pattern(testSize), newBufferPool(maxRead))
	must(t, err)
	init, ok := d.server.next()
	if !ok {
		t.Fatal("expected INIT, found the end")
	}
	d.server.replyError(init.unique, unix.EPROTO)
	go d.server.lead()
	if _, err := d.openFile(); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("expected ECONNREFUSED, found %v", err)
	}
	within(t, "stop", func() { d.stop(); <-d.server.done })
}

func TestConfigureInSteps(t *testing.T) {
	needKernel(t)
	f, err := os.CreateTemp(t.TempDir(), "")
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(testSize))
	ctl, err := unix.Open(loopControl, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(ctl)
	l, err := openFreeLoop(ctl)
	must(t, err)
	defer unix.Close(l.fd)
	file, err := unix.Open(f.Name(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(file)
	var info unix.LoopInfo64
	copy(info.File_name[:], "cowbird:steps:1.1")
	must(t, l.configureInSteps(file, &info, 4096))
	got, err := unix.IoctlLoopGetStatus64(l.fd)
	must(t, err)
	const want = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
	if got.Flags&want != want {
		t.Errorf("expected flags %#x, found %#x", want, got.Flags)
	}
	if sole, err := l.release(); !sole || err != nil {
		t.Errorf("expected the only descriptor, found %v, %v", sole, err)
	}
}
