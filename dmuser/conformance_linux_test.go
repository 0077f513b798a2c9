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
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"cowbird/tools/fixture"
)

const testSize = 8<<20 + 12<<10

// testCarrier is what every carrier must do.
func testCarrier(t *testing.T, c Carrier) {
	for name, test := range map[string]func(*testing.T, Carrier){
		"Sizes":           testSizes,
		"BadSize":         testBadSize,
		"BufferedReads":   testBufferedReads,
		"DirectReads":     testDirectReads,
		"ConcurrentReads": testConcurrentReads,
		"ReadError":       testReadError,
		"ShortRead":       testShortRead,
		"SlowRead":        testSlowRead,
		"ReadOnly":        testReadOnly,
		"CloseBusy":       testCloseBusy,
		"CloseMounted":    testCloseMounted,
		"CloseAgain":      testCloseAgain,
		"AbortUnused":     testAbortUnused,
		"AbortInFlight":   testAbortInFlight,
		"SetUpCancelled":  testSetUpCancelled,
		"SweepLiving":     testSweepLiving,
	} {
		t.Run(name, func(t *testing.T) { leavesNothing(t); test(t, c) })
	}
}

// leavesNothing checks, after all other cleanup, that descriptors, mounts and
// devices are what they were.
func leavesNothing(t *testing.T) {
	before := traces(t)
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		eventually(t, "nothing left behind, expected "+before+"found others", func() bool { return traces(t) == before })
	})
}

func traces(t *testing.T) string {
	var b strings.Builder
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && !strings.HasPrefix(link, "/proc/") {
			fmt.Fprintln(&b, "fd", link)
		}
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, "cowbird") {
			b.WriteString(line)
		}
	}
	for _, dir := range mountPointDirs() {
		left, _ := filepath.Glob(filepath.Join(dir, mountPointPrefix+self().String()+"*"))
		fmt.Fprintln(&b, left)
	}
	for _, l := range ourLoops() {
		fmt.Fprintln(&b, l)
	}
	disks, _ := filepath.Glob("/sys/block/nbd*")
	for _, path := range disks {
		identifier, _ := os.ReadFile(path + "/backend")
		fmt.Fprintln(&b, path, string(identifier))
	}
	channels, _ := filepath.Glob(channelClass + userPrefix + "*")
	mapped, _ := filepath.Glob("/sys/block/dm-*/dm/uuid")
	fmt.Fprintln(&b, channels, mapped)
	ublk, _ := filepath.Glob("/sys/class/ublk-char/*")
	fmt.Fprintln(&b, ublk)
	return b.String()
}

// ourLoops gives the labels of this process's loop devices.
func ourLoops() []string {
	var labels []string
	bound, _ := filepath.Glob("/sys/block/loop*/loop")
	for _, path := range bound {
		fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(path)), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		l := loopDevice{fd: fd}
		name, _, _ := l.status()
		_ = unix.Close(fd)
		if _, o, ok := parseLabel(name); ok && o == self() {
			labels = append(labels, name)
		}
	}
	return labels
}

func attach(t *testing.T, c Carrier, b Backend) Device {
	t.Helper()
	d, err := c.Attach(context.Background(), strings.ReplaceAll(t.Name(), "/", "."), b)
	must(t, err)
	t.Cleanup(func() { _ = d.Abort() })
	return d
}

func closeDevice(t *testing.T, d Device) {
	t.Helper()
	within(t, "Close", func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-d.Done():
	default:
		t.Error("expected Done to be closed after Close")
	}
}

func openDevice(t *testing.T, d Device, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(d.Path(), os.O_RDONLY|flags, 0)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// alignedBytes are fit for direct I/O. They are never unmapped: a test that
// fails may leave a reader behind.
func alignedBytes(t *testing.T, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	must(t, err)
	return b
}

func checkRead(t *testing.T, f *os.File, b []byte, off int64) {
	t.Helper()
	n, err := f.ReadAt(b, off)
	if err != nil && !(err == io.EOF && off+int64(n) == testSize) {
		t.Errorf("read of %d bytes at %d: %v", len(b), off, err)
		return
	}
	want := make([]byte, n)
	_, _ = pattern(testSize).ReadAt(want, off)
	if !bytes.Equal(b[:n], want) {
		t.Errorf("%d bytes at %d differ", n, off)
	}
}

func testSizes(t *testing.T, c Carrier) {
	for size, block := range map[int64]int{4096: 4096, testSize: 4096, testSize + 512: 512, 512: 512} {
		if c.Name() == "dm-user" {
			block = 512 // whatever the size
		}
		d := attach(t, c, pattern(size))
		f := openDevice(t, d, 0)
		end, err := f.Seek(0, io.SeekEnd)
		must(t, err)
		sector, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
		must(t, err)
		if end != size || sector != block {
			t.Errorf("expected %d bytes in blocks of %d, found %d in blocks of %d", size, block, end, sector)
		}
		must(t, f.Close())
		closeDevice(t, d)
	}
}

func testBadSize(t *testing.T, c Carrier) {
	for _, size := range []int64{-4096, 0, 1, 511, 4097} {
		if _, err := c.Attach(context.Background(), "bad", pattern(size)); !errors.Is(err, ErrBadSize) {
			t.Errorf("size %d: expected ErrBadSize, found %v", size, err)
		}
	}
}

func testBufferedReads(t *testing.T, c Carrier) {
	d := attach(t, c, pattern(testSize))
	f := openDevice(t, d, 0)
	for range 200 {
		checkRead(t, f, make([]byte, 1+rand.IntN(20000)), rand.Int64N(testSize))
	}
	checkRead(t, f, make([]byte, testSize), 0)
	if n, err := f.ReadAt(make([]byte, 10), testSize+4096); n != 0 || err != io.EOF {
		t.Errorf("past the end: expected 0 bytes and EOF, found %d and %v", n, err)
	}
	must(t, f.Close())
	closeDevice(t, d)
}

func testDirectReads(t *testing.T, c Carrier) {
	d := attach(t, c, pattern(testSize))
	f := openDevice(t, d, unix.O_DIRECT)
	b := alignedBytes(t, 1<<20)
	for range 200 {
		checkRead(t, f, b[:4096*(1+rand.IntN(64))], 4096*rand.Int64N(testSize/4096))
	}
	for off := int64(0); off < testSize; off += int64(len(b)) {
		checkRead(t, f, b, off)
	}
	must(t, f.Close())
	closeDevice(t, d)
}

func testConcurrentReads(t *testing.T, c Carrier) {
	d := attach(t, c, pattern(testSize))
	f := openDevice(t, d, unix.O_DIRECT)
	var wg sync.WaitGroup
	for range 16 {
		b := alignedBytes(t, 256<<10)
		wg.Go(func() {
			for range 100 {
				checkRead(t, f, b[:4096*(1+rand.IntN(64))], 4096*rand.Int64N(testSize/4096))
			}
		})
	}
	within(t, "concurrent reads", wg.Wait)
	must(t, f.Close())
	closeDevice(t, d)
}

func testReadError(t *testing.T, c Carrier) {
	const bad = 1 << 20
	for _, fault := range []error{
		errors.New("no number"), unix.EIO, fmt.Errorf("wrapped: %w", unix.EILSEQ), unix.Errno(5000), unix.Errno(0),
	} {
		b := hooked{pattern(testSize), func(off int64, n int) error {
			if off < bad+4096 && off+int64(n) > bad {
				return fault
			}
			return nil
		}}
		d := attach(t, c, b)
		f := openDevice(t, d, unix.O_DIRECT)
		buf := alignedBytes(t, 4096)
		for range 3 {
			if _, err := f.ReadAt(buf, bad); err == nil {
				t.Errorf("%v: expected an error, found none", fault)
			}
			checkRead(t, f, buf, bad-4096)
			checkRead(t, f, buf, bad+4096)
		}
		must(t, f.Close())
		closeDevice(t, d)
	}
}

// shortBackend breaks the rules of io.ReaderAt.
type shortBackend struct{ pattern }

func (s shortBackend) ReadAt(b []byte, off int64) (int, error) {
	if off != 4096 {
		return s.pattern.ReadAt(b, off)
	}
	return len(b) - 1, nil
}

func testShortRead(t *testing.T, c Carrier) {
	d := attach(t, c, shortBackend{testSize})
	f := openDevice(t, d, unix.O_DIRECT)
	b := alignedBytes(t, 4096)
	if _, err := f.ReadAt(b, 4096); !errors.Is(err, unix.EIO) {
		t.Errorf("expected EIO, found %v", err)
	}
	checkRead(t, f, b, 8192)
	must(t, f.Close())
	closeDevice(t, d)
}

// gateAt is where the tests hold reads back. The kernel looks at the first and the
// last blocks of a device when it is opened first, to find partitions.
const gateAt = 6 << 20

// gate blocks reads of one block until it is opened.
type gate struct {
	entered, open chan struct{}
	once          sync.Once
}

func newGate(t *testing.T) *gate {
	g := &gate{entered: make(chan struct{}, 100), open: make(chan struct{})}
	t.Cleanup(g.release)
	return g
}

func (g *gate) release() { g.once.Do(func() { close(g.open) }) }

func (g *gate) backend(at int64) Backend {
	return hooked{pattern(testSize), func(off int64, n int) error {
		if off <= at && at < off+int64(n) {
			g.entered <- struct{}{}
			<-g.open
		}
		return nil
	}}
}

func testSlowRead(t *testing.T, c Carrier) {
	g := newGate(t)
	d := attach(t, c, g.backend(gateAt))
	f := openDevice(t, d, unix.O_DIRECT)
	slow, fast := alignedBytes(t, 4096), alignedBytes(t, 4096)
	done := make(chan struct{})
	go func() { defer close(done); checkRead(t, f, slow, gateAt) }()
	<-g.entered
	within(t, "reads beside a slow one", func() {
		for i := range int64(200) {
			checkRead(t, f, fast, 4096*(1+i))
		}
	})
	select {
	case <-done:
		t.Error("expected the slow read to wait, found it done")
	default:
	}
	g.release()
	within(t, "the slow read", func() { <-done })
	must(t, f.Close())
	closeDevice(t, d)
}

func testReadOnly(t *testing.T, c Carrier) {
	d := attach(t, c, pattern(testSize))
	f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
	if err == nil {
		if _, err = f.WriteAt(make([]byte, 4096), 0); err == nil {
			err = f.Sync()
		}
		_ = f.Close()
	}
	if err == nil {
		t.Error("expected a write to fail, found that it did not")
	}
	closeDevice(t, d)
}

// hold keeps the device open in another process.
func hold(t *testing.T, path string) (letGo func()) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	cmd := exec.Command("sleep", "300")
	cmd.Stdin = f
	must(t, cmd.Start())
	var once sync.Once
	letGo = func() { once.Do(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }) }
	t.Cleanup(letGo)
	return letGo
}

func expectBusy(t *testing.T, err error, holder string) {
	t.Helper()
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), holder) {
		t.Errorf("expected ErrBusy naming %q, found %v", holder, err)
	}
}

func testCloseBusy(t *testing.T, c Carrier) {
	d := attach(t, c, pattern(testSize))
	letGo := hold(t, d.Path())
	for range 2 {
		expectBusy(t, d.Close(), "(sleep)")
	}
	f := openDevice(t, d, unix.O_DIRECT)
	checkRead(t, f, alignedBytes(t, 1<<20), 0)
	must(t, f.Close())
	letGo()
	closeDevice(t, d)
}

// fileSystem is an ext4 image in memory.
func fileSystem(t *testing.T) Backend {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, testSize))
	out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", image).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		fixture.Missing(t, "mke2fs is not installed")
	}
	if err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	content, err := os.ReadFile(image)
	must(t, err)
	return memory{bytes.NewReader(content)}
}

type memory struct{ *bytes.Reader }

func (m memory) Size() int64 { return m.Reader.Size() }

func mountDevice(t *testing.T, path string) (point string, unmount func()) {
	t.Helper()
	point = t.TempDir()
	must(t, unix.Mount(path, point, "ext4", unix.MS_RDONLY, ""))
	unmount = func() { _ = unix.Unmount(point, 0) }
	t.Cleanup(unmount)
	return point, unmount
}

func testCloseMounted(t *testing.T, c Carrier) {
	d := attach(t, c, fileSystem(t))
	point, unmount := mountDevice(t, d.Path())
	expectBusy(t, d.Close(), "mount on "+point)
	if _, err := os.ReadDir(point); err != nil {
		t.Errorf("still mounted: %v", err)
	}
	unmount()
	closeDevice(t, d)
}

func testCloseAgain(t *testing.T, c Carrier) {
	d := attach(t, c, pattern(testSize))
	closeDevice(t, d)
	closeDevice(t, d)
	must(t, d.Abort())
}

func testAbortUnused(t *testing.T, c Carrier) {
	d := attach(t, c, pattern(testSize))
	within(t, "Abort", func() {
		if err := d.Abort(); err != nil {
			t.Error(err)
		}
		<-d.Done()
	})
}

func testAbortInFlight(t *testing.T, c Carrier) {
	g := newGate(t)
	d := attach(t, c, g.backend(gateAt))
	f := openDevice(t, d, unix.O_DIRECT)
	failed := make(chan error)
	for range 12 { // more than are served at a time
		b := alignedBytes(t, 4096)
		go func() { _, err := f.ReadAt(b, gateAt); failed <- err }()
	}
	<-g.entered
	within(t, "Abort", func() { expectBusy(t, d.Abort(), "") })
	within(t, "the reads in flight", func() {
		for range 12 {
			if err := <-failed; err == nil {
				t.Error("expected the read in flight to fail, found that it did not")
			}
		}
	})
	select {
	case <-d.Done():
		t.Error("expected Done to wait for the backend, found it closed")
	default:
	}
	g.release()
	within(t, "Done", func() { <-d.Done() })
	if _, err := f.ReadAt(alignedBytes(t, 4096), 1<<20); err == nil {
		t.Error("expected a read after Abort to fail, found that it did not")
	}
	must(t, f.Close())
}

func testSetUpCancelled(t *testing.T, c Carrier) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Attach(ctx, "cancelled", pattern(testSize)); !errors.Is(err, context.Canceled) {
		t.Errorf("expected context.Canceled, found %v", err)
	}
}

// expectUnswept sweeps, and minds one device only: others may be about.
func expectUnswept(t *testing.T, c Carrier, name string) {
	t.Helper()
	removed, err := c.Sweep()
	if strings.Contains(fmt.Sprint(removed, err), name) {
		t.Errorf("expected %s to be left alone, found %v, %v", name, removed, err)
	}
}

func testSweepLiving(t *testing.T, c Carrier) {
	d := attach(t, c, pattern(testSize))
	expectUnswept(t, c, "SweepLiving")
	f := openDevice(t, d, 0)
	checkRead(t, f, make([]byte, 1<<20), 0)
	must(t, f.Close())
	closeDevice(t, d)
}
