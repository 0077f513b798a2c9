package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/job"
)

// environment is what a test or shell gets.
func environment(j *job.Job) []string {
	return append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/tmp", "TMPDIR=/tmp", "TERM=linux", "VMLAB_VEHICLE=" + j.Vehicle,
	}, j.Env...)
}

// runTest runs one test between its marks and writes down how it ended. What
// the test leaves running is killed.
func runTest(j *job.Job, i int) {
	t := j.Tests[i]
	say("%s %d %s", job.Begin, i, t.Name)
	how := outcome(j, i)
	_ = unix.Kill(-1, unix.SIGKILL)
	reap()
	if err := os.WriteFile(filepath.Join(job.Dir, job.ExitFile(i)), []byte(how), 0o644); err != nil {
		say("failed: %v", err)
	}
	say("%s %d", job.End, i)
}

func outcome(j *job.Job, i int) string {
	t := j.Tests[i]
	out, err := os.Create(filepath.Join(job.Dir, job.OutputFile(i)))
	if err != nil {
		return err.Error()
	}
	defer out.Close()
	binary, err := localCopy(filepath.Join(job.Dir, t.Binary))
	if err != nil {
		return err.Error()
	}
	cmd := exec.Command(binary, "-test.run=^"+t.Name+"$", "-test.v", "-test.count=1", "-test.paniconexit0", "-test.timeout="+t.Timeout.String())
	cmd.Dir, cmd.Env = t.Dir, environment(j)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err.Error()
	}
	return await(cmd, t.Timeout+job.Grace/2, out)
}

// await is how a process ended. One that outlives the limit is killed; if even
// that does not end it, it is left behind, and out tells where it sleeps.
func await(cmd *exec.Cmd, limit time.Duration, out io.Writer) string {
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	select {
	case <-ended:
		return cmd.ProcessState.String()
	case <-time.After(limit):
	}
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	select {
	case <-ended:
		return fmt.Sprintf("killed after %v", limit)
	case <-time.After(job.Grace / 4):
		stacks(out)
		return fmt.Sprintf("hangs in the kernel, not even killed after %v", limit)
	}
}

// localCopy brings a test binary into the guest's memory: over 9p every page
// of it would be a message.
func localCopy(path string) (string, error) {
	local := filepath.Join("/run", filepath.Base(path))
	if _, err := os.Stat(local); err == nil {
		return local, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return local, os.WriteFile(local, b, 0o755)
}

func reap() {
	for {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
			return
		}
	}
}

// stacks writes where in the kernel the threads sleep that no signal wakes.
func stacks(out io.Writer) {
	tasks, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	for _, task := range tasks {
		status, _ := os.ReadFile(task + "/status")
		if !strings.Contains(string(status), "State:\tD") {
			continue
		}
		comm, _ := os.ReadFile(task + "/comm")
		stack, _ := os.ReadFile(task + "/stack")
		fmt.Fprintf(out, "%s %s%s", task, comm, stack)
	}
}

// shell runs an interactive shell until it exits.
func shell(j *job.Job) error {
	console, err := os.OpenFile(j.Shell.Console, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer console.Close()
	cmd := exec.Command("/bin/bash", "--norc", "-i")
	cmd.Dir = j.Shell.Dir
	cmd.Env = append(environment(j), "PS1="+j.Vehicle+":\\w# ")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = console, console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	_ = cmd.Run()
	return nil
}
