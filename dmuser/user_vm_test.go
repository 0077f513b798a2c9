//go:build vmtest

package dmuser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/dm"
	"cowbird/tools/vmlab/vmtest"
)

// Several channels share the requests.
//
//vmtest:timeout 5m
func TestDmUserCarrierChannels(t *testing.T) {
	testCarrier(t, &userCarrier{buffers: buffers, channels: 3})
}

// A request that cannot have a buffer waits for the reserve.
func TestDmUserCarrierReserve(t *testing.T) {
	pool := newBufferPool(maxRead)
	pool.mmap = func(int) (*buffer, error) { return nil, unix.ENOMEM }
	c := &userCarrier{buffers: pool, channels: 1}
	testBufferedReads(t, c)
	testConcurrentReads(t, c)
	testReadError(t, c)
}

// The kernel asks for as much as one reader wants.
func TestDmUserCarrierLargeRequests(t *testing.T) {
	leavesNothing(t)
	d := attach(t, users, pattern(testSize))
	f := openDevice(t, d, unix.O_DIRECT)
	b := alignedBytes(t, 6<<20)
	for off := int64(0); off < 2<<20; off += 512 * 777 {
		checkRead(t, f, b, off)
	}
	must(t, f.Close())
	closeDevice(t, d)
}

// Sectors are the unit, whatever the blocks of a snapshot are.
func TestDmUserCarrierAlignments(t *testing.T) {
	leavesNothing(t)
	d := attach(t, users, pattern(testSize))
	f := openDevice(t, d, unix.O_DIRECT)
	b := alignedBytes(t, 64<<10)
	for _, sectors := range []int{1, 2, 7, 8, 9, 17, 128} {
		for _, at := range []int64{0, 1, 7, 8, 2047, testSize/512 - int64(sectors)} {
			checkRead(t, f, b[:sectors*512], at*512)
		}
	}
	must(t, f.Close())
	closeDevice(t, d)
}

// Any number of requests may be under way.
func TestDmUserCarrierDepths(t *testing.T) {
	d := attach(t, users, pattern(testSize))
	for _, readers := range []int{1, 2, 4, 16, 64} {
		stop, count := load(t, d.Path(), readers)
		vmtest.Eventually(t, "some reads", func() bool { return count.Load() > int64(4*readers) })
		must(t, stop())
	}
	closeDevice(t, d)
}

// One bad block fails what touches it, and nothing else, under load as well.
func TestDmUserCarrierOneBadBlock(t *testing.T) {
	bad := int64(testSize - 8192) // which load does not read
	d := attach(t, users, hooked{pattern(testSize), func(off int64, n int) error {
		if off < bad+4096 && off+int64(n) > bad {
			return unix.EBADMSG
		}
		return nil
	}})
	b := alignedBytes(t, 4096)
	f := openDevice(t, d, unix.O_DIRECT)
	stop, _ := load(t, d.Path(), 4)
	for range 100 {
		if _, err := f.ReadAt(b, bad); !errors.Is(err, unix.EIO) {
			t.Fatalf("expected EIO, found %v", err)
		}
		checkRead(t, f, b, bad+4096)
	}
	must(t, stop())
	must(t, f.Close())
	closeDevice(t, d)
}

// A read-only device of device-mapper's refuses writes before anybody is asked.
func TestDmUserCarrierWritesRefused(t *testing.T) {
	leavesNothing(t)
	d := attach(t, users, pattern(testSize))
	if ro, err := os.ReadFile("/sys/block/" + filepath.Base(d.Path()) + "/ro"); err != nil || string(ro) != "1\n" {
		t.Errorf("expected a read-only device, found %q, %v", ro, err)
	}
	for _, tool := range [][]string{
		{"dd", "if=/dev/zero", "of=" + d.Path(), "bs=4096", "count=1", "conv=notrunc,fsync"},
		{"blkdiscard", d.Path()}, {"blkdiscard", "-z", d.Path()}, {"blkdiscard", "-s", d.Path()},
	} {
		if out, err := exec.Command(tool[0], tool[1:]...).CombinedOutput(); err == nil {
			t.Errorf("%q: expected an error, found none: %s", tool, out)
		}
	}
	f := openDevice(t, d, unix.O_DIRECT)
	must(t, f.Sync())
	checkRead(t, f, alignedBytes(t, 1<<20), 0)
	must(t, f.Close())
	closeDevice(t, d)
}

// What Abort has left is mended by who attaches next, for those who have it open.
func TestDmUserCarrierAfterAbort(t *testing.T) {
	leavesNothing(t)
	d := attach(t, users, pattern(testSize))
	f := openDevice(t, d, unix.O_DIRECT)
	expectBusy(t, d.Abort(), "")
	if _, err := f.ReadAt(alignedBytes(t, 4096), 0); !errors.Is(err, unix.EIO) {
		t.Errorf("expected EIO, found %v", err)
	}
	again := attach(t, users, pattern(testSize))
	if again.Path() != d.Path() {
		t.Errorf("expected %s, found %s", d.Path(), again.Path())
	}
	must(t, d.Close())
	checkRead(t, f, alignedBytes(t, 4096), 0)
	must(t, f.Close())
	closeDevice(t, again)
}

// A second daemon takes the device over while it is read as hard as can be: the
// first one's device ends, and no read fails.
//
//vmtest:timeout 5m
func TestDmUserCarrierReplace(t *testing.T) {
	ch := startChild(t, users, testSize)
	stop, count := load(t, ch.path, 16)
	for range 10 {
		eventually(t, "some reads", func() bool { return count.Load() > 50 })
		next := startChild(t, users, testSize)
		if next.path != ch.path {
			t.Fatalf("expected the successor to go on with %s, found %s", ch.path, next.path)
		}
		must(t, ch.stdin.Close()) // and the first one leaves it alone
		must(t, ch.Wait())
		ch = next
		count.Store(0)
	}
	eventually(t, "reads after the last change", func() bool { return count.Load() > 50 })
	must(t, stop())
	must(t, ch.stdin.Close())
	must(t, ch.Wait())
	expectUnswept(t, users, "child")
}

// The same within one process: what is under way is answered by the one that it
// was asked of.
func TestDmUserCarrierReplaceWaits(t *testing.T) {
	leavesNothing(t)
	g := newGate(t)
	first := attach(t, users, g.backend(gateAt))
	f := openDevice(t, first, unix.O_DIRECT)
	slow, b := make(chan error, 1), alignedBytes(t, 4096)
	go func() { _, err := f.ReadAt(b, gateAt); slow <- err }()
	<-g.entered

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := users.Attach(ctx, t.Name(), pattern(testSize)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("expected the deadline to pass, found %v", err)
	}
	second := make(chan Device, 1)
	go func() { second <- attach(t, users, pattern(testSize)) }()
	select {
	case <-second:
		t.Error("expected Attach to wait for the slow read, found that it did not")
	case <-first.Done():
		t.Error("expected the first device to go on, found that it has ended")
	case <-time.After(100 * time.Millisecond):
	}
	g.release()
	must(t, <-slow)
	within(t, "the change", func() { <-first.Done() })
	d := <-second
	if !first.(*userDev).Replaced() || d.(*userDev).Replaced() {
		t.Error("expected the first device to be replaced, and not the second")
	}
	must(t, first.Close())
	must(t, first.Abort())
	checkRead(t, f, b, gateAt)
	must(t, f.Close())
	closeDevice(t, d)
}

// Attach gives up, and the device stays with its server.
func TestDmUserCarrierReplaceGivenUp(t *testing.T) {
	leavesNothing(t)
	g := newGate(t)
	first := attach(t, users, g.backend(gateAt))
	f := openDevice(t, first, unix.O_DIRECT)
	slow, b := make(chan error, 1), alignedBytes(t, 4096)
	go func() { _, err := f.ReadAt(b, gateAt); slow <- err }()
	<-g.entered
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := users.Attach(ctx, t.Name(), pattern(testSize)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("expected the deadline to pass, found %v", err)
	}
	g.release()
	must(t, <-slow)
	checkRead(t, f, b, 0)
	select {
	case <-first.Done():
		t.Error("expected the first device to go on, found that it has ended")
	default:
	}
	must(t, f.Close())
	closeDevice(t, first)
}

// A daemon is killed: what it was asked fails at once, and so does what is asked
// until its successor is there. Then all is well.
//
//vmtest:timeout 5m
func TestDmUserCarrierKill(t *testing.T) {
	ch := startChild(t, users, testSize)
	f, err := os.OpenFile(ch.path, os.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	b := alignedBytes(t, 64<<10)
	for range 5 {
		stop, count := load(t, ch.path, 8)
		eventually(t, "some reads", func() bool { return count.Load() > 50 })
		ch.kill()
		within(t, "the readers", func() {
			if err := stop(); !errors.Is(err, unix.EIO) {
				t.Errorf("expected EIO, found %v", err)
			}
		})
		start := time.Now()
		if _, err := f.ReadAt(b, 0); !errors.Is(err, unix.EIO) || time.Since(start) > 3*time.Second {
			t.Errorf("expected EIO at once, found %v after %v", err, time.Since(start))
		}
		_, err := users.Sweep()
		expectBusy(t, err, "sweep child")
		next := startChild(t, users, testSize)
		if next.path != ch.path {
			t.Fatalf("expected the successor to go on with %s, found %s", ch.path, next.path)
		}
		ch = next
		checkRead(t, f, b, 0)
	}
	must(t, f.Close())
	must(t, ch.stdin.Close())
	must(t, ch.Wait())
	expectUnswept(t, users, "child")
}

func TestDmUserCarrierSweep(t *testing.T) {
	ch := startChild(t, users, testSize)
	expectUnswept(t, users, "child")
	letGo := hold(t, ch.path)
	ch.kill()
	for range 2 {
		removed, err := users.Sweep()
		expectBusy(t, err, "(sleep)")
		if len(removed) != 0 {
			t.Errorf("expected nothing removed, found %q", removed)
		}
	}
	letGo()
	removed, err := users.Sweep()
	if err != nil || !slices.Equal(removed, []string{"child"}) {
		t.Errorf("expected child removed, found %q, %v", removed, err)
	}
	expectUnswept(t, users, "child")
}

// A daemon that dies between its steps leaves something that Sweep removes, or
// Attach goes on with; what is not ours is left alone.
func TestDmUserCarrierHalfMade(t *testing.T) {
	leavesNothing(t)
	ctl, err := dm.Open()
	must(t, err)
	defer ctl.Close()
	table := func(misc string) []dm.Target {
		return []dm.Target{{Sectors: testSize / 512, Type: "user", Args: fmt.Sprintf("0 %d %s", testSize/512, misc)}}
	}
	_, err = ctl.Create("cowbird-foreign", "other-uuid")
	must(t, err)
	t.Cleanup(func() { _ = ctl.Remove("cowbird-foreign") })
	if _, err := users.Attach(t.Context(), "foreign", pattern(testSize)); !errors.Is(err, ErrBusy) {
		t.Errorf("a device that is not ours: expected ErrBusy, found %v", err)
	}
	steps := []func(name string) error{
		func(name string) error { _, err := ctl.Create(name, name); return err },
		func(name string) error { _, err := ctl.Load(name, table(name+"-1"), dm.ReadOnly); return err },
		func(name string) error { _, err := ctl.Resume(name); return err },
		func(name string) error { _, err := ctl.Load(name, table(name+"-2"), dm.ReadOnly); return err },
		func(name string) error { _, err := ctl.Suspend(name, 0); return err },
	}
	for n := range steps {
		name := fmt.Sprintf("half%d", n)
		for range 2 {
			for _, step := range steps[:n+1] {
				must(t, step(userName(name)))
			}
			removed, err := users.Sweep()
			if err != nil || !slices.Equal(removed, []string{name}) {
				t.Errorf("after step %d: expected %s removed, found %q, %v", n, name, removed, err)
			}
		}
		for _, step := range steps[:n+1] {
			must(t, step(userName(name)))
		}
		d, err := users.Attach(t.Context(), name, pattern(testSize))
		must(t, err)
		f := openDevice(t, d, unix.O_DIRECT)
		checkRead(t, f, alignedBytes(t, 4096), 4096)
		must(t, f.Close())
		closeDevice(t, d)
	}
	if _, err := ctl.Info("cowbird-foreign"); err != nil {
		t.Errorf("expected the other device to be left alone, found %v", err)
	}
}

// A device of another size is not the one that is attached: an unused one makes
// room, one in use stays.
func TestDmUserCarrierOtherSize(t *testing.T) {
	ch := startChild(t, users, testSize)
	attachOther := func() (Device, error) { return users.Attach(t.Context(), "child", pattern(testSize+4096)) }
	if _, err := attachOther(); !errors.Is(err, ErrBusy) {
		t.Errorf("expected ErrBusy, found %v", err)
	}
	letGo := hold(t, ch.path)
	ch.kill()
	_, err := attachOther()
	expectBusy(t, err, "(sleep)")
	letGo()
	d, err := attachOther()
	must(t, err)
	f := openDevice(t, d, 0)
	if end, err := f.Seek(0, io.SeekEnd); err != nil || end != testSize+4096 {
		t.Errorf("expected %d bytes, found %d, %v", testSize+4096, end, err)
	}
	must(t, f.Close())
	closeDevice(t, d)
}

// Somebody else removes the device.
func TestDmUserCarrierForeignRemoval(t *testing.T) {
	leavesNothing(t)
	d := attach(t, users, pattern(testSize))
	tool(t, "dmsetup", "remove", "--noudevsync", "--noudevrules", userName(t.Name()))
	within(t, "Done", func() { <-d.Done() })
	if d.(*userDev).Replaced() {
		t.Error("expected a device that was removed not to be replaced")
	}
	other := attach(t, users, pattern(testSize))
	must(t, d.Close()) // and does not take the next one with it
	f := openDevice(t, other, unix.O_DIRECT)
	checkRead(t, f, alignedBytes(t, 4096), 0)
	must(t, f.Close())
	closeDevice(t, other)
}
