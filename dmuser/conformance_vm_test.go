//go:build vmtest

package dmuser

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/internal/ublkctl"
	"cowbird/tools/vmlab/vmtest"
)

// Guests share a slow machine, and their kernel checks itself.
func init() { patience = time.Minute }

//vmtest:timeout 15m
func TestConformanceFuse(t *testing.T) { conform(t, fuse, diesWithServer) }

//vmtest:timeout 15m
func TestConformanceNbd(t *testing.T) { conform(t, nbds, outlivesServer) }

//vmtest:timeout 15m
func TestConformanceUblk(t *testing.T) { conform(t, ublks, outlivesServer) }

//vmtest:timeout 15m
func TestConformanceDmUser(t *testing.T) { conform(t, users, diesWithServer) }

// ending is what becomes of a device when its server is killed.
type ending int

const (
	diesWithServer ending = iota // whoever uses it gets errors, or did while there was no server
	outlivesServer               // the server's successor goes on with it, and nobody notices
)

// conform is what every carrier must do on a kernel that may break, beside what it
// must do anywhere.
func conform(t *testing.T, c Carrier, e ending) {
	must(t, c.Probe())
	_, _ = c.Sweep() // what other tests of a shared guest have left
	testCarrier(t, c)
	for _, test := range []struct {
		name string
		run  func(*testing.T, Carrier)
	}{
		{"Ext4", testExt4},
		{"Erofs", testErofs},
		{"Verity", testVerity},
		{"Fio", testFio},
		{"Many", testMany},
		{"AbortUnderLoad", testAbortUnderLoad},
		{"Killed", e.test()},
		{"Leave", testLeave},
		{"Idle", testIdle},
		{"Cycles", testCycles}, // the longest
	} {
		t.Run(test.name, func(t *testing.T) { leavesNothing(t); test.run(t, c) })
	}
}

func (e ending) test() func(*testing.T, Carrier) {
	if e == outlivesServer {
		return testSuccession
	}
	return testKilled
}

// census counts what an attached device must not leave behind.
func census(t *testing.T) string {
	t.Helper()
	count := func(dir string) int {
		entries, err := os.ReadDir(dir)
		must(t, err)
		return len(entries)
	}
	return fmt.Sprintf("%d descriptors, %d goroutines, %d disks, %d other devices",
		count("/proc/self/fd"), runtime.NumGoroutine(), count("/sys/block"), count("/sys/class/misc"))
}

// testCycles attaches and closes a thousand devices, or as many as an emulated
// machine has time for.
func testCycles(t *testing.T, c Carrier) {
	n := 1000
	if vmtest.Vehicle() == "qemu" {
		n = 100
	}
	b := alignedBytes(t, 64<<10)
	cycle := func() {
		d, err := c.Attach(t.Context(), "cycle", pattern(testSize))
		must(t, err)
		f, err := os.OpenFile(d.Path(), os.O_RDONLY|unix.O_DIRECT, 0)
		must(t, err)
		checkRead(t, f, b, 1<<20)
		must(t, f.Close())
		closeDevice(t, d)
	}
	for range 20 { // what the runtime keeps, it has then
		cycle()
	}
	time.Sleep(2 * quietAfter)
	before, threadsBefore, size := census(t), count(t, "Threads:"), count(t, "VmSize:")
	for range n {
		cycle()
	}
	now := census(t)
	for deadline := time.Now().Add(patience); now != before && time.Now().Before(deadline); now = census(t) {
		time.Sleep(5 * time.Millisecond)
	}
	if now != before {
		t.Errorf("after %d devices: expected %s, found %s", n, before, now)
	}
	if k := count(t, "Threads:"); k > threadsBefore+4 {
		t.Errorf("expected %d threads after %d devices, found %d", threadsBefore, n, k)
	}
	// A device has 1 MiB in reserve; a thread's stack of the runtime's is 64 KiB.
	if grown := count(t, "VmSize:") - size; grown > 20<<10 {
		t.Errorf("expected nothing left mapped, found %d KiB more after %d devices", grown, n)
	}
}

// count is a number in this process's status.
func count(t *testing.T, name string) (n int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	_, rest, _ := strings.Cut(string(status), name)
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// testMany serves more devices than drivers have made beforehand. Each is its
// own.
func testMany(t *testing.T, c Carrier) {
	var all []Device
	for i := range 32 {
		d, err := c.Attach(t.Context(), fmt.Sprintf("many%d", i), pattern(testSize+int64(i)*4096))
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

// testAbortUnderLoad removes a device that is read: readers get errors, nobody
// hangs, nothing stays.
func testAbortUnderLoad(t *testing.T, c Carrier) {
	for range 8 {
		d := attach(t, c, pattern(testSize))
		stop, count := load(t, d.Path(), 8)
		eventually(t, "some reads", func() bool { return count.Load() > 5 })
		expectBusy(t, d.Close(), "")
		within(t, "Abort", func() { expectBusy(t, d.Abort(), "") })
		within(t, "the readers", func() {
			if err := stop(); !isGone(err) {
				t.Errorf("expected EIO, found %v", err)
			}
		})
		within(t, "Done", func() { <-d.Done() })
	}
}

// isGone tells whether a device's reader learned that it is no more.
func isGone(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}

// testSuccession kills a server while its device is read. Its successor goes on,
// and no read fails.
func testSuccession(t *testing.T, c Carrier) {
	ch := startChild(t, c, testSize)
	stop, count := load(t, ch.path, 8)
	for range 3 {
		eventually(t, "some reads", func() bool { return count.Load() > 50 })
		ch.kill()
		_, err := c.Sweep()
		expectBusy(t, err, "sweep child")
		next := startChild(t, c, testSize)
		if next.path != ch.path {
			t.Fatalf("expected the successor to go on with %s, found %s", ch.path, next.path)
		}
		ch = next
		count.Store(0)
	}
	// The nbd driver asks again only after a while for what was under way when a
	// server died.
	vmtest.Eventually(t, "reads after the last change", func() bool { return count.Load() > 50 })
	must(t, stop())
	must(t, ch.stdin.Close())
	must(t, ch.Wait())
	expectUnswept(t, c, "child")
}

// testLeave: a server leaves a device, and another one goes on, in this process and
// under load. What cannot be left is served as before.
func testLeave(t *testing.T, c Carrier) {
	d := attach(t, c, newFileBackend(t))
	stop, count := load(t, d.Path(), 8)
	rounds := 25 // the driver's and the queues' ends have raced
	switch u, isUblk := d.(*ublkDev); {
	case c == fuse:
		rounds = 0
		if serving, err := d.Leave(); !serving || !errors.Is(err, ErrUnsupported) {
			t.Errorf("expected to serve and ErrUnsupported, found %v, %v", serving, err)
		}
	case isUblk && u.info.Flags&ublkctl.Quiesce == 0: // see snapuserd's tests for what follows
		rounds = 0
		if serving, err := d.Leave(); !serving || err != nil {
			t.Errorf("expected to serve until the end, found %v, %v", serving, err)
		}
	}
	for range rounds {
		count.Store(0)
		eventually(t, "some reads", func() bool { return count.Load() > 50 })
		within(t, "Leave", func() { mustLeave(t, d) })
		must(t, d.Close()) // takes nothing away
		next := attach(t, c, newFileBackend(t))
		if next.Path() != d.Path() {
			t.Errorf("expected %s again, found %s", d.Path(), next.Path())
		}
		<-d.Done()
		d = next
	}
	count.Store(0)
	eventually(t, "reads after the last change", func() bool { return count.Load() > 50 })
	must(t, stop())
	closeDevice(t, d)
}

// testKilled kills a server while its device is read: whoever reads learns of it,
// and another server is not in its way.
func testKilled(t *testing.T, c Carrier) {
	for range 3 {
		ch := startChild(t, c, testSize)
		stop, count := load(t, ch.path, 8)
		eventually(t, "some reads", func() bool { return count.Load() > 50 })
		ch.kill()
		within(t, "the readers", func() {
			if err := stop(); !isGone(err) {
				t.Errorf("expected EIO, found %v", err)
			}
		})
		next := startChild(t, c, testSize)
		f, err := os.OpenFile(next.path, os.O_RDONLY|unix.O_DIRECT, 0)
		must(t, err)
		checkRead(t, f, alignedBytes(t, 1<<20), 0)
		must(t, f.Close())
		must(t, next.stdin.Close())
		must(t, next.Wait())
		eventually(t, "nothing to be swept", func() bool {
			removed, err := c.Sweep()
			return err == nil && len(removed) == 0
		})
	}
}

// testFio reads with 1 to 64 requests in flight what fio has written, each block
// with a checksum and its own place in it.
func testFio(t *testing.T, c Carrier) {
	image := filepath.Join(t.TempDir(), "image")
	job := []string{"--name=x", "--bs=4k", "--verify=crc32c", "--verify_fatal=1", "--size=8m", "--randrepeat=1"}
	tool(t, "fio", append(job, "--filename="+image, "--rw=write", "--do_verify=0")...)
	content, err := os.ReadFile(image)
	must(t, err)
	d := attach(t, c, memory{bytes.NewReader(content)})
	for _, depth := range []string{"1", "4", "16", "64"} {
		tool(t, "fio", append(job, "--filename="+d.Path(), "--readonly", "--rw=randread", "--direct=1", "--ioengine=libaio", "--iodepth="+depth)...)
	}
	tool(t, "fio", "--name=x", "--filename="+d.Path(), "--readonly", "--rw=randread", "--bsrange=4k-256k", "--direct=1", "--ioengine=libaio",
		"--iodepth=64", "--numjobs=2", "--time_based", "--runtime=3", "--group_reporting")
	closeDevice(t, d)
}

// tree makes a directory to put into an image.
func tree(t *testing.T) (dir string, want []byte) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "tree")
	must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755))
	want = bytes.Repeat([]byte("content of a file, again and again; "), 40000)
	must(t, os.WriteFile(filepath.Join(dir, "a", "b", "file"), want, 0o644))
	return dir, want
}

// checkMount mounts the device twice, the second time with nothing cached, and
// reads the tree's file.
func checkMount(t *testing.T, path, kind, options string, want []byte) {
	t.Helper()
	for range 2 {
		must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
		point := t.TempDir()
		must(t, unix.Mount(path, point, kind, unix.MS_RDONLY, options))
		got, err := os.ReadFile(filepath.Join(point, "a", "b", "file"))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("expected the file of %d bytes, found %d, %v", len(want), len(got), err)
		}
		must(t, unix.Unmount(point, 0))
	}
}

// serveFile attaches an image.
func serveFile(t *testing.T, c Carrier, image string) Device {
	t.Helper()
	content, err := os.ReadFile(image)
	must(t, err)
	return attach(t, c, memory{bytes.NewReader(content)})
}

func testExt4(t *testing.T, c Carrier) {
	dir, want := tree(t)
	image := filepath.Join(t.TempDir(), "image")
	tool(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", dir, image, "8M")
	d := serveFile(t, c, image)
	checkMount(t, d.Path(), "ext4", "noload", want)
	closeDevice(t, d)
}

func testErofs(t *testing.T, c Carrier) {
	dir, want := tree(t)
	image := filepath.Join(t.TempDir(), "image")
	tool(t, "mkfs.erofs", image, dir)
	d := serveFile(t, c, image)
	checkMount(t, d.Path(), "erofs", "", want)
	closeDevice(t, d)
}

// testVerity puts dm-verity on a device, as phones do: what is right can be
// mounted, and a byte that is not makes an error.
func testVerity(t *testing.T, c Carrier) {
	t.Setenv("DM_DISABLE_UDEV", "1")
	dir, want := tree(t)
	image := filepath.Join(t.TempDir(), "image")
	const size = 8 << 20
	tool(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", dir, image, "8M")
	out := tool(t, "veritysetup", "format", "--hash-offset", fmt.Sprint(size), image, image)
	_, root, _ := strings.Cut(out, "Root hash:")
	root = strings.TrimSpace(root)
	content, err := os.ReadFile(image)
	must(t, err)
	content = append(content, make([]byte, -len(content)&4095)...)
	var broken atomic.Int64
	d := attach(t, c, flipping{memory{bytes.NewReader(content)}, &broken})
	open := func() {
		tool(t, "veritysetup", "open", "--hash-offset", fmt.Sprint(size), d.Path(), "verified", d.Path(), root)
	}
	open()
	checkMount(t, "/dev/mapper/verified", "ext4", "noload", want)
	tool(t, "veritysetup", "close", "verified")

	vmtest.Allow(t, `device-mapper: verity: .* data block 17 is corrupted`)
	vmtest.Allow(t, `I/O error.* dev dm-`)
	broken.Store(17*4096 + 5)
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	open()
	f, err := os.OpenFile("/dev/mapper/verified", os.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	b := alignedBytes(t, 4096)
	if _, err := f.ReadAt(b, 17*4096); !errors.Is(err, unix.EIO) {
		t.Errorf("expected EIO for the block that has been changed, found %v", err)
	}
	if _, err := f.ReadAt(b, 18*4096); err != nil || !bytes.Equal(b, content[18*4096:19*4096]) {
		t.Errorf("expected the block beside it to be right, found %v", err)
	}
	must(t, f.Close())
	tool(t, "veritysetup", "close", "verified")
	closeDevice(t, d)
}

// flipping changes the byte at an offset, unless that is 0.
type flipping struct {
	memory
	at *atomic.Int64
}

func (f flipping) ReadAt(b []byte, off int64) (int, error) {
	n, err := f.memory.ReadAt(b, off)
	if k := f.at.Load() - off; f.at.Load() != 0 && 0 <= k && k < int64(n) {
		b[k] ^= 1
	}
	return n, err
}

// testIdle: an idle device is a thread that waits.
func testIdle(t *testing.T, c Carrier) {
	ch := startChild(t, c, testSize)
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
			must(t, ch.stdin.Close())
			must(t, ch.Wait())
			return
		}
	}
	t.Error("expected a second without a wake-up, found none")
}
