//go:build vmtest

package dmuser

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/dm"
	"cowbird/dmuser/internal/ublkctl"
	"cowbird/tools/vmlab/vmtest"
)

// ublkFeatures asks the guest's driver.
func ublkFeatures(t *testing.T) ublkctl.Flags {
	t.Helper()
	ctl, err := ublks.open()
	must(t, err)
	defer ctl.Close()
	f, err := ctl.Features()
	must(t, err)
	return f
}

// ublkModes gives a carrier for each mode that the guest's driver has, and one with
// two queues.
func ublkModes(t *testing.T) map[string]*ublkCarrier {
	t.Helper()
	modes := map[string]*ublkCarrier{
		"UserCopy":  {buffers: buffers, mode: ublkUserCopy},
		"Copy":      {buffers: buffers, mode: ublkCopy},
		"TwoQueues": {buffers: buffers, queues: 2},
	}
	zero := &ublkCarrier{buffers: buffers, mode: ublkZeroCopy}
	switch err := zero.Probe(); {
	case err == nil:
		modes["ZeroCopy"] = zero
	case vmtest.Vehicle() == "uml" || !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "zero copy"):
		t.Errorf("expected zero copy, or to be told that it is missing, found %v", err)
	}
	return modes
}

//vmtest:timeout 10m
func TestUblk(t *testing.T) {
	must(t, ublks.Probe())
	t.Logf("the driver has %#x: %v", uint64(ublkFeatures(t)), ublkFeatures(t))
	for name, c := range ublkModes(t) {
		t.Run(name, func(t *testing.T) { testCarrier(t, c) })
	}
}

// A request that cannot have a buffer waits for the reserve.
func TestUblkReserve(t *testing.T) {
	pool := newBufferPool(maxRead)
	pool.mmap = func(int) (*buffer, error) { return nil, unix.ENOMEM }
	c := &ublkCarrier{buffers: pool}
	testDirectReads(t, c)
	testConcurrentReads(t, c)
	testReadError(t, c)
}

// A user who is no administrator serves a device of his own, once somebody gives him the
// nodes of what the driver says is his. When he closes it nothing is left, and what a
// server leaves that is killed he can sweep.
func TestUblkUnprivileged(t *testing.T) {
	const user = 65534
	nobody := &syscall.Credential{Uid: user, Gid: user}
	must(t, os.Chmod(ublkctl.Path, 0o666))
	defer os.Chmod(ublkctl.Path, 0o600)
	defer giveNodes(t)()

	before := ublkIDs()
	c := startChildAs(t, ublks, testSize, nobody)
	got, err := os.ReadFile(c.path)
	want := make([]byte, testSize)
	_, _ = pattern(testSize).ReadAt(want, 0)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("expected the pattern, found %d bytes, %v", len(got), err)
	}
	var st unix.Stat_t
	if err := unix.Stat(c.path, &st); err != nil || st.Uid != user {
		t.Errorf("expected a device of user %d, found one of %d, %v", user, st.Uid, err)
	}
	// To the driver it is a device like others, with a server that lives.
	if removed, err := ublks.Sweep(); len(removed) > 0 || err != nil {
		t.Errorf("expected nothing to be swept, found %q, %v", removed, err)
	}
	must(t, c.stdin.Close())
	if err := c.Wait(); err != nil {
		t.Errorf("expected the device to be closed, found %v", err)
	}
	if left := ublkIDs(); !slices.Equal(left, before) {
		t.Errorf("expected the devices %v, found %v", before, left)
	}

	for who, credential := range map[string]*syscall.Credential{"the user": nobody, "root": nil} {
		startChildAs(t, ublks, testSize, nobody).kill()
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), sweepEnv+"=1", carrierEnv+"="+ublks.Name())
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "[child] <nil>\n" {
			t.Errorf("expected %s to sweep what was left, found %s, %v", who, out, err)
		}
		if left := ublkIDs(); !slices.Equal(left, before) {
			t.Errorf("expected the devices %v, found %v", before, left)
		}
	}
}

// A user to whom nobody gives nodes is told so, and the device goes with root's next
// sweep.
func TestUblkNotGiven(t *testing.T) {
	must(t, os.Chmod(ublkctl.Path, 0o666))
	defer os.Chmod(ublkctl.Path, 0o600)
	before := ublkIDs()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", helperEnv, testSize), carrierEnv+"="+ublks.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	for _, want := range []string{"permission denied", "/dev/ublkc0 to user 65534", "70-cowbird-ublk.rules", "until root's snapuserd starts"} {
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("expected %q, found %s, %v", want, out, err)
		}
	}
	if removed, err := ublks.Sweep(); len(removed) != 1 || err != nil {
		t.Errorf("expected one device to be swept, found %q, %v", removed, err)
	}
	if left := ublkIDs(); !slices.Equal(left, before) {
		t.Errorf("expected the devices %v, found %v", before, left)
	}
}

// The memory that each request has in mode ublkCopy goes back when nobody asks any more, but
// for a page, and not before; what was in it has arrived, and comes again.
func TestUblkCopyMemory(t *testing.T) {
	quiet := make(chan struct{}, 16)
	OnQuiet(func() { quiet <- struct{}{} })
	defer OnQuiet(nil)
	d := attach(t, &ublkCarrier{buffers: buffers, mode: ublkCopy}, pattern(testSize))
	q := d.(*ublkDev).queues[0]
	f := openDevice(t, d, unix.O_DIRECT)
	for range 2 {
		stop, count := load(t, d.Path(), 8)
		eventually(t, "reads", func() bool { return count.Load() > 100 })
		if n := resident(t, q.memory); n <= ublkDepth {
			t.Errorf("under load: expected the pages of long requests, found %d", n)
		}
		must(t, stop())
		<-quiet
		if n := resident(t, q.memory); n > ublkDepth {
			t.Errorf("after a pause: expected a page for each of %d requests, found %d", ublkDepth, n)
		}
		checkRead(t, f, alignedBytes(t, 1<<20), 4096)
		<-quiet
	}
	must(t, f.Close())
	closeDevice(t, d)
}

// resident counts the pages of a mapping that are in memory.
func resident(t *testing.T, mapping []byte) (n int) {
	t.Helper()
	pages := make([]byte, len(mapping)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapping[0])), uintptr(len(mapping)), uintptr(unsafe.Pointer(&pages[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	for _, p := range pages {
		n += int(p & 1)
	}
	return n
}

// giveNodes gives the nodes of devices to whom they belong, as a rule of udev does,
// until the function that it returns is called.
func giveNodes(t *testing.T) (stop func()) {
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			for _, id := range ublkIDs() {
				_ = GiveNode(ublkCharName(id)) // or there is none any more
				_ = GiveNode(ublkName(id))
			}
			select {
			case <-stopped:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() { close(stopped); <-done }
}

// fileBackend is a pattern, stretches of which lie in a file.
type fileBackend struct {
	pattern
	file *os.File
	mu   *sync.RWMutex
	held func(n int)
}

const fileAt = 1 << 20 // in the file is what begins here

func newFileBackend(t *testing.T) *fileBackend {
	t.Helper()
	content := make([]byte, testSize/2)
	_, _ = pattern(testSize).ReadAt(content, fileAt)
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, content, 0o600))
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return &fileBackend{pattern: testSize, file: f, mu: &sync.RWMutex{}, held: func(int) {}}
}

func (b *fileBackend) HoldFile(off int64, n int) (int, int64, bool) {
	if off < fileAt || off+int64(n) > fileAt+testSize/2 || !b.mu.TryRLock() {
		return 0, 0, false
	}
	b.held(n)
	return int(b.file.Fd()), off - fileAt, true
}

func (b *fileBackend) ReleaseFile() { b.mu.RUnlock() }

// What lies in a file is read there, and the hold on it always ends.
func TestUblkFile(t *testing.T) {
	for name, c := range ublkModes(t) {
		t.Run(name, func(t *testing.T) {
			leavesNothing(t)
			b := newFileBackend(t)
			held := 0
			var mu sync.Mutex
			b.held = func(n int) { mu.Lock(); held += n; mu.Unlock() }
			d := attach(t, c, b)
			f := openDevice(t, d, unix.O_DIRECT)
			buf := alignedBytes(t, 1<<20)
			for _, n := range []int{4096, 64 << 10, 1 << 20} {
				for off := int64(0); off < testSize; off += 300 << 10 {
					checkRead(t, f, buf[:n], off)
				}
			}
			stop, count := load(t, d.Path(), 8)
			eventually(t, "reads", func() bool { return count.Load() > 300 })
			must(t, stop())
			must(t, f.Close())
			closeDevice(t, d)
			if !b.mu.TryLock() {
				t.Error("expected no hold to be left")
			}
			mu.Lock()
			defer mu.Unlock()
			if held == 0 {
				t.Error("expected the file to be used")
			}
		})
	}
}

// A file that ends too early, or cannot be read, is not the end: the backend is asked.
func TestUblkFileShort(t *testing.T) {
	for name, c := range ublkModes(t) {
		t.Run(name, func(t *testing.T) {
			b := newFileBackend(t)
			must(t, os.Truncate(b.file.Name(), 100<<10))
			d := attach(t, c, b)
			f := openDevice(t, d, unix.O_DIRECT)
			for off := int64(fileAt); off < fileAt+1<<20; off += 64 << 10 {
				checkRead(t, f, alignedBytes(t, 64<<10), off)
			}
			must(t, f.Close())
			closeDevice(t, d)
		})
	}
}

// From 1 to 64 requests are under way, of all sizes.
//
//vmtest:timeout 5m
func TestUblkInFlight(t *testing.T) {
	for name, c := range ublkModes(t) {
		t.Run(name, func(t *testing.T) {
			leavesNothing(t)
			d := attach(t, c, pattern(testSize))
			for _, readers := range []int{1, 4, 16, 64} {
				stop, count := load(t, d.Path(), readers)
				eventually(t, "reads", func() bool { return count.Load() > 200 })
				must(t, stop())
			}
			closeDevice(t, d)
		})
	}
}

// Removal under load: readers get errors, nobody hangs, nothing stays.
//
//vmtest:timeout 5m
func TestUblkAbortUnderLoad(t *testing.T) {
	for name, c := range ublkModes(t) {
		t.Run(name, func(t *testing.T) {
			leavesNothing(t)
			for range 4 {
				d := attach(t, c, newFileBackend(t))
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
		})
	}
}

//vmtest:timeout 5m
func TestUblkLeave(t *testing.T) {
	for name, c := range ublkModes(t) {
		t.Run(name, func(t *testing.T) { leavesNothing(t); testLeave(t, c) })
	}
}

func TestUblkSweep(t *testing.T) {
	ch := startChild(t, ublks, testSize)
	expectUnswept(t, ublks, "child")
	letGo := hold(t, ch.path)
	ch.kill()
	for range 2 {
		removed, err := ublks.Sweep()
		expectBusy(t, err, "(sleep)")
		if len(removed) != 0 {
			t.Errorf("expected nothing removed, found %q", removed)
		}
	}
	letGo()
	removed, err := ublks.Sweep()
	if err != nil || !slices.Equal(removed, []string{"child"}) {
		t.Errorf("expected child removed, found %q, %v", removed, err)
	}
	expectUnswept(t, ublks, "child")
	// A device that another process serves by now is not what was left.
	first := startChild(t, ublks, testSize)
	second := startChild(t, ublks, testSize)
	if first.path == second.path {
		t.Errorf("expected two devices, found %s twice", first.path)
	}
	expectUnswept(t, ublks, "child")
}

// A device that nobody began to serve is removed, and one of another server stays.
func TestUblkSweepHalfMade(t *testing.T) {
	_, _ = ublks.Sweep() // what children of other tests have left
	ctl, err := ublks.open()
	must(t, err)
	half := ublkctl.Info{Queues: 1, Depth: 1, MaxIO: 4096, ID: ublkctl.AnyID, Private: ublkIdentity("half")}
	must(t, ctl.Add(&half))
	foreign := ublkctl.Info{Queues: 1, Depth: 1, MaxIO: 4096, ID: ublkctl.AnyID}
	must(t, ctl.Add(&foreign))
	defer ctl.Close()
	removed, err := ublks.Sweep()
	if err != nil || !slices.Equal(removed, []string{ublkName(half.ID)}) {
		t.Errorf("expected %s removed, found %q, %v", ublkName(half.ID), removed, err)
	}
	must(t, ctl.Delete(foreign.ID))
}

// A device of another size, or name, is another device.
func TestUblkOtherSize(t *testing.T) {
	ch := startChild(t, ublks, testSize)
	letGo := hold(t, ch.path)
	ch.kill()
	next := startChild(t, ublks, testSize+4096)
	other := attach(t, ublks, pattern(testSize))
	if next.path == ch.path || other.Path() == ch.path {
		t.Errorf("expected other devices than %s", ch.path)
	}
	letGo()
}

// The backend hangs, and the caller does not wait.
func TestUblkAttachGivenUp(t *testing.T) {
	leavesNothing(t)
	if ublkFeatures(t)&ublkctl.NoPartitions != 0 {
		t.Log("this driver does not read the device when it starts")
		return
	}
	g := newGate(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-g.entered; cancel(); g.release() }()
	_, err := ublks.Attach(ctx, "hangs", g.backend(0))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("expected context.Canceled, found %v", err)
	}
}

// Somebody else removes the device.
func TestUblkForeignDelete(t *testing.T) {
	leavesNothing(t)
	d := attach(t, ublks, pattern(testSize))
	ctl, err := ublks.open()
	must(t, err)
	must(t, ctl.Delete(d.(*ublkDev).info.ID))
	ctl.Close()
	within(t, "Done", func() { <-d.Done() })
	other := attach(t, ublks, pattern(testSize))
	must(t, d.Close()) // and does not take the number's next owner with it
	f := openDevice(t, other, unix.O_DIRECT)
	checkRead(t, f, alignedBytes(t, 4096), 0)
	must(t, f.Close())
	closeDevice(t, other)
}

// A table above the device is replaced by one above another device, under load.
func TestUblkBelowDeviceMapper(t *testing.T) {
	leavesNothing(t)
	ctl, err := dm.Open()
	must(t, err)
	defer ctl.Close()
	c := &ublkCarrier{buffers: buffers}
	first, err := c.Attach(t.Context(), "first", pattern(testSize))
	must(t, err)
	second, err := c.Attach(t.Context(), "second", pattern(testSize))
	must(t, err)
	linear := func(d Device) []dm.Target {
		return []dm.Target{{Sectors: testSize / 512, Type: "linear", Args: d.Path() + " 0"}}
	}
	info, err := ctl.Create("stack", "")
	must(t, err)
	_, err = ctl.Load("stack", linear(first), dm.ReadOnly)
	must(t, err)
	_, err = ctl.Resume("stack")
	must(t, err)
	must(t, dm.WaitNode(t.Context(), info.Node()))
	stop, count := load(t, info.Node(), 8)
	eventually(t, "reads", func() bool { return count.Load() > 50 })
	expectBusy(t, first.Close(), "dm-")
	_, err = ctl.Load("stack", linear(second), dm.ReadOnly)
	must(t, err)
	_, err = ctl.Suspend("stack", 0)
	must(t, err)
	_, err = ctl.Resume("stack")
	must(t, err)
	closeDevice(t, first)
	count.Store(0)
	eventually(t, "reads of the second", func() bool { return count.Load() > 50 })
	must(t, stop())
	eventually(t, "removed", func() bool { return ctl.Remove("stack") == nil })
	closeDevice(t, second)
}
