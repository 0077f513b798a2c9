//go:build vmbench

package dmuser

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/tools/fio"
	"cowbird/tools/vmlab/vmtest"
)

// A contender serves a file as a block device.
type contender struct {
	name  string
	start func(t *testing.T, file string) (device string, pid int)
	rows  [][]float64 // one a round, of columns
}

var benchColumns = []string{"4 KiB, 1 in flight, IOPS", "16 in flight", "64 in flight", "1 MiB, 4 in flight, MB/s",
	"server's CPU, µs a 4 KiB request (16)", "server's CPU, s a GiB (1 MiB)"}

// TestCompareCarriers has every carrier serve the same plain file of an ext4 file system,
// and other servers beside them, all in the page cache, in turns. It prints medians.
//
//vmtest:timeout 40m
func TestCompareCarriers(t *testing.T) {
	file := filepath.Join(ext4Folder(t), "image")
	content := make([]byte, 64<<20)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(content)
	must(t, os.WriteFile(file, content, 0o600))
	contenders := append(ourContenders(t), peers()...)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.NumCPU()))) // as the daemon has it while it serves
	for range 5 {
		for i := range contenders {
			c := &contenders[i]
			t.Run(c.name, func(t *testing.T) { c.rows = append(c.rows, c.measure(t, file)) })
		}
	}
	fmt.Printf("| %s | %s |\n|%s\n", vmtest.Vehicle(), strings.Join(benchColumns, " | "), strings.Repeat("---|", len(benchColumns)+1))
	for _, c := range contenders {
		fmt.Printf("| %s |", c.name)
		for i := range benchColumns {
			fmt.Printf(" %.4g |", c.median(i))
		}
		fmt.Println()
	}
}

// ext4Folder is a file system like those of devices: tmpfs cannot tell whether it would
// have to wait.
func ext4Folder(t *testing.T) string {
	t.Helper()
	image, folder := filepath.Join(t.TempDir(), "ext4"), t.TempDir()
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 100<<20))
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", image).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	out, err := exec.Command("losetup", "-f", "--show", image).Output()
	must(t, err)
	device := strings.TrimSpace(string(out))
	must(t, unix.Mount(device, folder, "ext4", 0, ""))
	t.Cleanup(func() {
		must(t, unix.Unmount(folder, 0))
		must(t, exec.Command("losetup", "-d", device).Run())
	})
	return folder
}

func (c *contender) median(column int) float64 {
	var v []float64
	for _, r := range c.rows {
		if r != nil {
			v = append(v, r[column])
		}
	}
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[len(v)/2]
}

func (c *contender) measure(t *testing.T, file string) []float64 {
	device, pid := c.start(t, file)
	job := func(args []string) (r fio.Report, cpu time.Duration) {
		before := processorTime(t, pid)
		r, err := fio.Read(device, time.Second, args...)
		must(t, err)
		return r, processorTime(t, pid) - before
	}
	one, _ := job(fio.Random(1))
	sixteen, cpu16 := job(fio.Random(16))
	many, _ := job(fio.Random(64))
	long, cpuLong := job(fio.Sequential(4))
	return []float64{one.IOPS, sixteen.IOPS, many.IOPS, long.BytesPerSecond / 1e6,
		cpu16.Seconds() * 1e6 / (sixteen.Bytes / 4096), cpuLong.Seconds() / (long.Bytes / (1 << 30))}
}

// processorTime is what a process has used, all its threads together.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var user, system int64
	_, err = fmt.Sscan(f[11]+" "+f[12], &user, &system)
	must(t, err)
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ
}

// plainFile is a backend that is a file.
type plainFile struct{ *os.File }

func (f plainFile) Size() int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

func (f plainFile) HoldFile(off int64, _ int) (int, int64, bool) { return int(f.Fd()), off, true }
func (f plainFile) ReleaseFile()                                 {}

func ourContenders(t *testing.T) (out []contender) {
	carriers := []struct {
		name string
		c    Carrier
	}{
		{"fuse + loop", fuse}, {"nbd", nbds}, {"dm-user", users},
		{"ublk, user copy", &ublkCarrier{buffers: buffers, mode: ublkUserCopy}},
		{"ublk, user copy, 2 queues", &ublkCarrier{buffers: buffers, mode: ublkUserCopy, queues: 2}},
		{"ublk, copy", &ublkCarrier{buffers: buffers, mode: ublkCopy}},
		{"ublk, copy, 2 queues", &ublkCarrier{buffers: buffers, mode: ublkCopy, queues: 2}},
		{"ublk, zero copy", &ublkCarrier{buffers: buffers, mode: ublkZeroCopy}},
	}
	for _, c := range carriers {
		if err := c.c.Probe(); err != nil {
			t.Logf("%s is left out: %v", c.name, err)
			continue
		}
		out = append(out, contender{name: c.name, start: func(t *testing.T, file string) (string, int) {
			f, err := os.Open(file)
			must(t, err)
			d := attach(t, c.c, plainFile{f})
			t.Cleanup(func() { closeDevice(t, d); _ = f.Close() })
			return d.Path(), os.Getpid()
		}})
	}
	return out
}

func peers() []contender {
	return []contender{
		{name: "qemu-nbd + nbd-client", start: func(t *testing.T, file string) (string, int) {
			return overNbd(t, "qemu-nbd", "-r", "-t", "-f", "raw", "--cache=writeback", "-k", "SOCKET", file)
		}},
		{name: "nbdkit + nbd-client", start: func(t *testing.T, file string) (string, int) {
			return overNbd(t, "nbdkit", "-f", "-r", "-U", "SOCKET", "file", file)
		}},
		{name: "loop", start: func(t *testing.T, file string) (string, int) {
			out, err := exec.Command("losetup", "-r", "-f", "--show", file).Output()
			must(t, err)
			device := strings.TrimSpace(string(out))
			t.Cleanup(func() { must(t, exec.Command("losetup", "-d", device).Run()) })
			return device, 2 // kthreadd: the kernel does it all, in threads that are nobody's
		}},
	}
}

// overNbd has the kernel's driver ask a server on a socket.
func overNbd(t *testing.T, args ...string) (device string, pid int) {
	socket := filepath.Join(t.TempDir(), "socket")
	for i := range args {
		if args[i] == "SOCKET" {
			args[i] = socket
		}
	}
	server := exec.Command(args[0], args[1:]...)
	server.Stderr = os.Stderr
	must(t, server.Start())
	t.Cleanup(func() { _ = server.Process.Signal(unix.SIGTERM); _ = server.Wait() })
	eventually(t, "a socket", func() bool { _, err := os.Stat(socket); return err == nil })
	device = "/dev/nbd15"
	out, err := exec.Command("nbd-client", "-unix", socket, device, "-R").CombinedOutput()
	if err != nil {
		t.Fatalf("nbd-client: %v\n%s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("nbd-client", "-d", device).Run() })
	return device, server.Process.Pid
}
