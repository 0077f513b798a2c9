package dmuser

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/volatile"
)

// showFile is a process with a file system of its own.
func showFile(dir string) int {
	p := &volatile.Power{}
	d := p.AddDisk("file", 512, make([]byte, 4096))
	p.On(0, 0, nil)
	s, err := volatile.Serve(dir, d)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(s.Path(d))
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = s.Close()
	return 0
}

// Whoever looks for the holders of a device looks at the open files of all processes.
// One on a file system whose server hangs holds up nobody.
func TestHoldersBesideHungServer(t *testing.T) {
	needKernel(t)
	dir := t.TempDir()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), hungEnv+"="+dir)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	path, err := bufio.NewReader(stdout).ReadString('\n')
	must(t, err)
	fd, err := unix.Open(path[:len(path)-1], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGCONT) // else the close waits, too
		_ = unix.Close(fd)
	})
	must(t, cmd.Process.Signal(unix.SIGSTOP))
	within(t, "look for holders", func() {
		if hasOpen("/proc/self", unix.Mkdev(7, 12345)) {
			t.Error("expected nobody to hold a device that is not there")
		}
	})
}
