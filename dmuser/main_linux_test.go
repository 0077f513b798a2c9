package dmuser

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/tools/fixture"
)

const (
	helperEnv  = "DMUSER_HELPER" // size of the device a child process is to serve
	classicEnv = "DMUSER_CLASSIC"
	stuckEnv   = "DMUSER_STUCK" // the child reads its own device, and never answers
	janitorEnv = "DMUSER_JANITOR"
	sweepEnv   = "DMUSER_SWEEP"   // the child says what it has swept
	hungEnv    = "DMUSER_HUNG"    // a folder in which the child shows a file
	carrierEnv = "DMUSER_CARRIER" // of the child; fuse unless given
)

// patience is how long tests wait for what must happen.
var patience = 10 * time.Second

func TestMain(m *testing.M) {
	if size := os.Getenv(helperEnv); size != "" {
		os.Exit(helper(size))
	}
	if dir := os.Getenv(hungEnv); dir != "" {
		os.Exit(showFile(dir))
	}
	if os.Getenv(janitorEnv) != "" {
		os.Exit(janitor())
	}
	if os.Getenv(sweepEnv) != "" {
		c, _ := childCarrier()
		fmt.Println(c.Sweep())
		os.Exit(0)
	}
	// A test that panics while a thread reads a device of this very process
	// would stay for good: see abortConnection.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), janitorEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	os.Exit(code)
}

// janitor sweeps when the tests' process has died.
func janitor() int {
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGTERM)
	<-died
	time.Sleep(100 * time.Millisecond)
	for _, c := range Carriers() {
		_, _ = c.Sweep()
	}
	return 0
}

// helper serves a pattern until its standard input ends, or for good if it is
// killed before. It says on standard output where.
func helper(size string) int {
	var n int64
	if _, err := fmt.Sscan(size, &n); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	c, err := childCarrier()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	var b Backend = pattern(n)
	entered := make(chan struct{})
	stuck := os.Getenv(stuckEnv) != ""
	if stuck {
		b = hooked{b, func(int64, int) error { close(entered); select {} }}
	}
	d, err := c.Attach(context.Background(), "child", b)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if stuck {
		go func() { _, _ = os.ReadFile(d.Path()) }()
		<-entered
	}
	fmt.Println(d.Path())
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := d.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func childCarrier() (Carrier, error) {
	if name := os.Getenv(carrierEnv); name != "" {
		return Select(name)
	}
	return &fuseCarrier{buffers: buffers, classic: os.Getenv(classicEnv) != ""}, nil
}

type child struct {
	*exec.Cmd
	path  string
	stdin io.Closer
}

// startChild serves a device from another process, which dies with the test.
func startChild(t *testing.T, c Carrier, size int64) *child {
	t.Helper()
	return startChildAs(t, c, size, nil)
}

// startChildAs does so as another user.
func startChildAs(t *testing.T, c Carrier, size int64, who *syscall.Credential) *child {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", helperEnv, size))
	if f, ok := c.(*fuseCarrier); !ok {
		cmd.Env = append(cmd.Env, carrierEnv+"="+c.Name())
	} else if f.classic {
		cmd.Env = append(cmd.Env, classicEnv+"=1")
	}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	ch := &child{Cmd: cmd, stdin: stdin}
	t.Cleanup(ch.kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("child did not serve: %v", err)
	}
	ch.path = strings.TrimSpace(line)
	t.Cleanup(func() { forceGone(ch.path, "child") })
	return ch
}

func (c *child) kill() {
	_ = c.Process.Kill()
	_ = c.Wait()
}

// forceGone clears what a failed test left, if it is still ours.
func forceGone(path, name string) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	l := loopDevice{path: path, fd: fd}
	if file, _, err := l.status(); err == nil && strings.HasPrefix(file, labelPrefix+name+":") {
		_, _ = l.release()
	}
}

// needKernel skips the test where there is no carrier to be had, which must
// not go unnoticed in CI.
func needKernel(t *testing.T) {
	t.Helper()
	err := fuse.Probe()
	if err == nil && os.Geteuid() != 0 {
		err = fmt.Errorf("expected to run as root, found user %d", os.Geteuid())
	}
	if err != nil {
		fixture.Missing(t, "no carrier: %v", err)
	}
}

// pattern is a backend of that many bytes of noise, which repeats itself at no
// round distance.
type pattern int64

var noise = func() []byte {
	b := make([]byte, 1048573) // a prime
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return b
}()

func (p pattern) Size() int64 { return int64(p) }

func (p pattern) ReadAt(b []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(b)), int64(p)-off)))
	for i := 0; i < n; {
		i += copy(b[i:n], noise[(off+int64(i))%int64(len(noise)):])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// hooked asks hook before each read; what hook gives is the read's outcome
// unless it is nil.
type hooked struct {
	Backend
	hook func(off int64, n int) error
}

func (h hooked) ReadAt(b []byte, off int64) (int, error) {
	if err := h.hook(off, len(b)); err != nil {
		return 0, err
	}
	return h.Backend.ReadAt(b, off)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok, and fails the test if that takes too long.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v not yet: %s", patience, what)
		}
	}
}

func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("after %v not yet: %s", patience, what)
	}
}
