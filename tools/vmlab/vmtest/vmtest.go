// Package vmtest is for tests that run in a guest of the VM lab. Such a test is
// an ordinary Go test in a file with the build tag vmtest; it is root on a
// machine of its own, may break what it likes, and finds the host's programs.
//
//	//go:build vmtest
//
//	func TestSplat(t *testing.T) {
//		vmtest.Allow(t, `WARNING: .* at drivers/md/`)
//		...
//
// A kernel warning fails the test that caused it, unless the test allows it. A
// comment "//vmtest:timeout 3m" above a test gives it more than the usual time.
package vmtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/job"
)

// Vehicle is what the guest runs on, "uml" or "qemu".
func Vehicle() string { return os.Getenv("VMLAB_VEHICLE") }

// Module is the file of one of our kernel modules, as built for this guest's
// kernel. It is loaded when a test begins.
func Module(name string) string { return filepath.Join(job.Dir, name+".ko") }

// Load inserts a kernel module.
func Load(t testing.TB, file, parameters string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), parameters, 0); err != nil {
		t.Fatalf("loading %s: %v", filepath.Base(file), err)
	}
}

// Allow says that this test makes the kernel log lines that match, which fail
// it otherwise.
func Allow(t testing.TB, pattern string) {
	t.Helper()
	if _, err := regexp.Compile(pattern); err != nil {
		t.Fatal(err)
	}
	say(t, job.Allow+" "+pattern)
}

func say(t testing.TB, line string) {
	t.Helper()
	if err := os.WriteFile("/dev/kmsg", []byte("<6>"+job.Prefix+line+"\n"), 0); err != nil {
		t.Fatal(err)
	}
}

// A Log is a place in the kernel log.
type Log struct{ fd int }

// KernelLog is the end of the kernel log as it is now.
func KernelLog(t testing.TB) *Log {
	t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &Log{fd}
}

// Lines are the lines that have come since the last call.
func (l *Log) Lines(t testing.TB) (lines []string) {
	t.Helper()
	record := make([]byte, 8192)
	for {
		n, err := unix.Read(l.fd, record)
		switch err {
		case nil:
			_, text, _ := strings.Cut(string(record[:n]), ";")
			text, _, _ = strings.Cut(text, "\n")
			lines = append(lines, text)
		case unix.EPIPE: // overwritten meanwhile: go on with the next
		case unix.EAGAIN:
			return lines
		default:
			t.Fatalf("kernel log: %v", err)
		}
	}
}

// Patience is how long Eventually waits: long, since a guest shares a slow
// machine.
const Patience = 20 * time.Second

// Eventually waits until ok, and fails the test if that takes too long.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v not yet: %s", Patience, what)
		}
	}
}
