//go:build vmtest

package dmuser

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/vmtest"
)

// A request that cannot have a buffer waits for the reserve.
func TestNbdReserve(t *testing.T) {
	pool := newBufferPool(maxRead)
	pool.mmap = func(int) (*buffer, error) { return nil, unix.ENOMEM }
	c := &nbdCarrier{buffers: pool}
	testDirectReads(t, c)
	testConcurrentReads(t, c)
	testReadError(t, c)
}

// The driver may ask for more than a buffer holds, if it is told to.
func TestNbdLargeRequests(t *testing.T) {
	leavesNothing(t)
	d := attach(t, nbds, pattern(testSize))
	limit := "/sys/block/" + filepath.Base(d.Path()) + "/queue/max_sectors_kb"
	got, err := os.ReadFile(limit)
	must(t, err)
	if strings.TrimSpace(string(got)) != "1024" {
		t.Errorf("expected requests of 1024 KiB at most, found %s", got)
	}
	must(t, os.WriteFile(limit, []byte("8192"), 0))
	f := openDevice(t, d, unix.O_DIRECT)
	b := alignedBytes(t, 6<<20)
	for off := int64(0); off < 2<<20; off += 4096 * 77 {
		checkRead(t, f, b, off)
	}
	must(t, f.Close())
	closeDevice(t, d)
}

// Without a successor reads fail when the timeouts are over, and not before.
//
//vmtest:timeout 5m
func TestNbdDeadTimeout(t *testing.T) {
	ch := startChild(t, nbds, testSize)
	f, err := os.OpenFile(ch.path, os.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	ch.kill()
	start := time.Now()
	_, err = f.ReadAt(alignedBytes(t, 4096), 1<<20)
	took := time.Since(start)
	if !errors.Is(err, unix.EIO) || took < (nbdDeadTimeout-2)*time.Second || took > (nbdTimeout+nbdDeadTimeout+10)*time.Second {
		t.Errorf("expected EIO after some %d seconds, found %v after %v", nbdDeadTimeout, err, took)
	}
	// Late is better than never.
	next := startChild(t, nbds, testSize)
	if next.path != ch.path {
		t.Errorf("expected %s, found %s", ch.path, next.path)
	}
	checkRead(t, f, alignedBytes(t, 4096), 1<<20)
	must(t, f.Close())
}

func TestNbdSweep(t *testing.T) {
	ch := startChild(t, nbds, testSize)
	expectUnswept(t, nbds, "child")
	letGo := hold(t, ch.path)
	ch.kill()
	for range 2 {
		removed, err := nbds.Sweep()
		expectBusy(t, err, "(sleep)")
		if len(removed) != 0 {
			t.Errorf("expected nothing removed, found %q", removed)
		}
	}
	letGo()
	removed, err := nbds.Sweep()
	if err != nil || !slices.Equal(removed, []string{"child"}) {
		t.Errorf("expected child removed, found %q, %v", removed, err)
	}
	expectUnswept(t, nbds, "child")
	// A device that another process serves by now is not what was left.
	first := startChild(t, nbds, testSize)
	second := startChild(t, nbds, testSize)
	if first.path == second.path {
		t.Errorf("expected two devices, found %s twice", first.path)
	}
	expectUnswept(t, nbds, "child")
}

// A device of another size is another device.
func TestNbdOtherSize(t *testing.T) {
	ch := startChild(t, nbds, testSize)
	letGo := hold(t, ch.path)
	ch.kill()
	next := startChild(t, nbds, testSize+4096)
	if next.path == ch.path {
		t.Errorf("expected another device than %s", ch.path)
	}
	letGo()
}

// A request may take longer than the driver is willing to wait. It is asked again
// on a new connection, and succeeds when the backend does.
//
//vmtest:timeout 3m
func TestNbdSlowBackend(t *testing.T) {
	leavesNothing(t)
	g := newGate(t)
	d := attach(t, nbds, g.backend(gateAt))
	f := openDevice(t, d, unix.O_DIRECT)
	slow := make(chan error, 1)
	b := alignedBytes(t, 4096)
	start := time.Now()
	go func() { _, err := f.ReadAt(b, gateAt); slow <- err }()
	<-g.entered
	<-g.entered // on another connection
	if took := time.Since(start); took < (nbdTimeout-2)*time.Second {
		t.Errorf("expected the driver to ask again after %d s, found it after %v", nbdTimeout, took)
	}
	checkRead(t, f, alignedBytes(t, 1<<20), 0)
	g.release()
	if err := <-slow; err != nil {
		t.Errorf("expected the slow read to succeed, found %v", err)
	}
	checkRead(t, f, b, gateAt)
	must(t, f.Close())
	closeDevice(t, d)
}

// Somebody else disconnects the device.
func TestNbdForeignDisconnect(t *testing.T) {
	leavesNothing(t)
	d := attach(t, nbds, pattern(testSize))
	tool(t, "nbd-client", "-d", d.Path())
	within(t, "Done", func() { <-d.Done() })
	other := attach(t, nbds, pattern(testSize))
	must(t, d.Close()) // and does not take the number's next owner with it
	f := openDevice(t, other, unix.O_DIRECT)
	checkRead(t, f, alignedBytes(t, 4096), 0)
	must(t, f.Close())
	closeDevice(t, other)
}

// The kernel's search for partitions hangs, and the caller does not wait.
func TestNbdAttachGivenUp(t *testing.T) {
	leavesNothing(t)
	g := newGate(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-g.entered; cancel(); time.Sleep(100 * time.Millisecond); g.release() }()
	_, err := nbds.Attach(ctx, "hangs", g.backend(0))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("expected context.Canceled, found %v", err)
	}
}

// The kernel's driver as a client that negotiates, by way of nbd-client.
func TestNbdKernelClientOfExport(t *testing.T) {
	s := openShop(t, DefaultClients)
	s.offer(t, "system_a", pattern(testSize))
	tool(t, "nbd-client", "-unix", s.socket, "-N", "system_a", "/dev/nbd5", "-b", "4096", "-C", "2")
	t.Cleanup(func() { _, _ = runTool(t, "nbd-client", "-d", "/dev/nbd5") })
	stop, count := load(t, "/dev/nbd5", 4)
	vmtest.Eventually(t, "some reads", func() bool { return count.Load() > 50 })
	must(t, stop())
	got, err := os.ReadFile("/dev/nbd5")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(t.TempDir(), "x"), got, 0o600))
	if len(got) != testSize {
		t.Errorf("expected %d bytes, found %d", testSize, len(got))
	}
	if f, err := os.OpenFile("/dev/nbd5", os.O_RDWR, 0); err == nil {
		if _, err = f.WriteAt(make([]byte, 4096), 0); err == nil && f.Sync() == nil {
			t.Error("expected a write to fail, found that it did not")
		}
		_ = f.Close()
	}
}
