package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/job"
)

// guest is one machine that is about to boot.
type guest struct {
	kernel string // folder of the cache
	folder string // of the job, on the host
	init   string // guestinit, on the host
	initrd string // QEMU only
	memory string
	cpus   int
	shell  bool
}

// A vehicle is a way to run guests.
type vehicle struct {
	name    string
	batch   int // how many tests a guest takes; 0: all
	memory  string
	cpus    int
	console string // the terminal of a shell
	kernel  func(*lab, context.Context, bool) (string, error)
	command func(context.Context, guest) *exec.Cmd
}

var vehicles = []vehicle{
	{"uml", 1, "768M", 1, "/dev/tty0", (*lab).uml, umlGuest},
	{"qemu", 0, "1024M", 2, "/dev/ttyS0", (*lab).qemu, qemuGuest},
}

// follow runs a guest to its end, which it brings about itself if the guest
// does not keep to the watch's deadlines. It returns how the guest ended, "" if
// as it should.
func follow(cmd *exec.Cmd, w *watch) (string, error) {
	console, err := start(cmd)
	if err != nil {
		return "", err
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for r := bufio.NewReader(console); ; {
			s, err := r.ReadString('\n')
			if s != "" {
				lines <- s
			}
			if err != nil {
				return
			}
		}
	}()
	killed := false
	timer := time.NewTimer(time.Until(w.deadline))
	defer timer.Stop()
	for open := true; open; {
		select {
		case s, more := <-lines:
			if open = more; more {
				w.line(s, time.Now())
				timer.Reset(time.Until(w.deadline))
			}
		case <-timer.C:
			killed = true
			_ = cmd.Cancel()
			timer.Reset(time.Hour)
		}
	}
	_ = cmd.Wait()
	return w.end(killed, cmd.ProcessState.String()), nil
}

// start starts a guest in a process group of its own, which is killed as one:
// a UML kernel is many processes. All of its output is the console.
func start(cmd *exec.Cmd) (io.Reader, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// collect reads what a guest has left of its tests.
func collect(folder, vehicle string, tests []guestTest, w *watch, guestEnd string) (reports []*report) {
	for i := range w.tests {
		t := &w.tests[i]
		if t.begun.IsZero() {
			continue
		}
		output, _ := os.ReadFile(filepath.Join(folder, job.OutputFile(i)))
		exit, _ := os.ReadFile(filepath.Join(folder, job.ExitFile(i)))
		r := &report{guestTest: tests[i], vehicle: vehicle, output: string(output), kernel: t.kernel}
		if end := t.ended; !end.IsZero() {
			r.seconds = end.Sub(t.begun).Seconds()
		}
		r.verdict, r.why = judge(t, strings.TrimSpace(string(exit)), r.output, guestEnd)
		reports = append(reports, r)
	}
	// A guest that broke after its last test broke because of it.
	if n := len(reports); n > 0 && guestEnd != "" && !slices.Contains(reports[n-1].why, guestEnd) {
		last := reports[n-1]
		last.verdict, last.why = fail, append(last.why, guestEnd)
	}
	return reports
}

// errNoGuest: a guest did not even begin with its first test.
var errNoGuest = errors.New("the guest did not come up")
