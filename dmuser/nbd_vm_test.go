//go:build vmtest

package dmuser

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/vmtest"
)

// Guests share a slow machine, and their kernel checks itself.
func init() { patience = time.Minute }

//vmtest:timeout 5m
func TestNbd(t *testing.T) {
	must(t, nbds.Probe())
	testCarrier(t, nbds)
}

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

// census counts what an attached device must not leave behind.
func census(t *testing.T) string {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	disks, _ := filepath.Glob("/sys/block/nbd*")
	return fmt.Sprintf("%d descriptors, %d goroutines, %d disks", len(fds), runtime.NumGoroutine(), len(disks))
}

// mapped is how many KiB this process has mapped.
func mapped(t *testing.T) (kib int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	_, rest, _ := strings.Cut(string(status), "VmSize:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

//vmtest:timeout 5m
func TestNbdCycles(t *testing.T) {
	cycle := func() {
		d := attach(t, nbds, pattern(testSize))
		f := openDevice(t, d, unix.O_DIRECT)
		checkRead(t, f, alignedBytes(t, 64<<10), 1<<20)
		must(t, f.Close())
		closeDevice(t, d)
	}
	cycle()
	time.Sleep(2 * quietAfter)
	before, size := census(t), mapped(t)
	for range 150 {
		cycle()
	}
	eventually(t, "nothing left of 150 devices, expected "+before, func() bool { return census(t) == before })
	// A device has 1 MiB in reserve; a thread's stack of the runtime's is 64 KiB.
	if grown := mapped(t) - size; grown > 20<<10 {
		t.Errorf("expected nothing left mapped, found %d KiB more after 150 devices", grown)
	}
}

// Devices beyond those that the driver has made beforehand go as they came.
func TestNbdMany(t *testing.T) {
	leavesNothing(t)
	var all []Device
	for i := range 32 {
		d, err := nbds.Attach(t.Context(), fmt.Sprintf("many%d", i), pattern(testSize+int64(i)*4096))
		must(t, err)
		t.Cleanup(func() { _ = d.Abort() })
		all = append(all, d)
	}
	var wg sync.WaitGroup
	for i, d := range all {
		f := openDevice(t, d, unix.O_DIRECT)
		end, err := f.Seek(0, io.SeekEnd)
		if must(t, err); end != testSize+int64(i)*4096 {
			t.Errorf("device %d: expected %d bytes, found %d", i, testSize+i*4096, end)
		}
		b := alignedBytes(t, 128<<10)
		wg.Go(func() { checkRead(t, f, b, int64(i)*65536); _ = f.Close() })
	}
	wg.Wait()
	for _, d := range all {
		closeDevice(t, d)
	}
}

// load reads at random until stop is called, which gives the first error.
func load(t *testing.T, path string, readers int) (stop func() error, count *atomic.Int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	count = &atomic.Int64{}
	var ended atomic.Bool
	var wg sync.WaitGroup
	failed := make(chan error, readers)
	for range readers {
		b := alignedBytes(t, 64<<10)
		want := make([]byte, len(b))
		wg.Go(func() {
			for !ended.Load() {
				off, n := 4096*rand.Int64N((testSize-64<<10)/4096), 4096*(1+rand.IntN(16))
				if _, err := f.ReadAt(b[:n], off); err != nil {
					failed <- err
					return
				}
				_, _ = pattern(testSize).ReadAt(want[:n], off)
				if !bytes.Equal(b[:n], want[:n]) {
					failed <- fmt.Errorf("%d bytes at %d differ", n, off)
					return
				}
				count.Add(1)
			}
		})
	}
	return func() error {
		ended.Store(true)
		wg.Wait()
		_ = f.Close()
		select {
		case err := <-failed:
			return err
		default:
			return nil
		}
	}, count
}

// Removal under load: readers get errors, nobody hangs, nothing stays.
//
//vmtest:timeout 5m
func TestNbdAbortUnderLoad(t *testing.T) {
	leavesNothing(t)
	for range 8 {
		d := attach(t, nbds, pattern(testSize))
		stop, count := load(t, d.Path(), 8)
		eventually(t, "some reads", func() bool { return count.Load() > 5 })
		expectBusy(t, d.Close(), "")
		within(t, "Abort", func() { expectBusy(t, d.Abort(), "") })
		within(t, "the readers", func() {
			if err := stop(); !errors.Is(err, unix.EIO) {
				t.Errorf("expected EIO, found %v", err)
			}
		})
		within(t, "Done", func() { <-d.Done() })
	}
}

// A daemon is killed while its device is read; its successor goes on, and no
// read fails.
//
//vmtest:timeout 5m
func TestNbdTakeOver(t *testing.T) {
	ch := startChild(t, nbds, testSize)
	stop, count := load(t, ch.path, 8)
	for range 3 {
		eventually(t, "some reads", func() bool { return count.Load() > 50 })
		ch.kill()
		_, err := nbds.Sweep()
		expectBusy(t, err, "sweep child")
		next := startChild(t, nbds, testSize)
		if next.path != ch.path {
			t.Fatalf("expected the successor to go on with %s, found %s", ch.path, next.path)
		}
		ch = next
		count.Store(0)
	}
	// Requests that were under way when a server died wait for nbdTimeout.
	vmtest.Eventually(t, "reads after the last change", func() bool { return count.Load() > 50 })
	must(t, stop())
	must(t, ch.stdin.Close())
	must(t, ch.Wait())
	expectUnswept(t, nbds, "child")
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

// fio reads as hard as it can, all at once and at all sizes.
func TestNbdFio(t *testing.T) {
	d := attach(t, nbds, pattern(testSize))
	out, err := exec.Command("fio", "--name=x", "--filename="+d.Path(), "--readonly", "--rw=randread", "--bsrange=4k-256k",
		"--direct=1", "--ioengine=libaio", "--iodepth=64", "--numjobs=2", "--time_based", "--runtime=5", "--group_reporting").CombinedOutput()
	if err != nil {
		t.Fatalf("fio: %v: %s", err, out)
	}
	closeDevice(t, d)
}

// An idle device is one thread that waits.
func TestNbdIdle(t *testing.T) {
	ch := startChild(t, nbds, testSize)
	f, err := os.Open(ch.path)
	must(t, err)
	checkRead(t, f, make([]byte, testSize), 0)
	must(t, f.Close())
	time.Sleep(2*quietAfter + quietAfter/2)
	for range 10 {
		before, _ := threads(t, ch.Process.Pid)
		time.Sleep(time.Second)
		after, _ := threads(t, ch.Process.Pid)
		if fmt.Sprint(before) == fmt.Sprint(after) {
			return
		}
	}
	t.Error("expected a second without a wake-up, found none")
}
