package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// output runs a command and returns its standard output; its standard error
// becomes part of the error.
func output(name string, args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, lastLine(errs.String()))
	}
	return out.String(), nil
}

// seconds runs a command and returns its wall time.
func seconds(name string, args ...string) (float64, error) {
	start := time.Now()
	_, err := output(name, args...)
	return time.Since(start).Seconds(), err
}

// twoCores prefixes a command so that it has two cores, as promised figures
// are for two.
func twoCores(args ...string) []string { return append([]string{"taskset", "-c", "0,1"}, args...) }

// server is a process that runs until it is stopped.
type server struct {
	cmd *exec.Cmd
	log bytes.Buffer
}

// startServer starts a process; it is stopped at the end of the run at latest.
func (b *bench) startServer(name string, args ...string) (*server, error) {
	s := &server{cmd: exec.Command(name, args...)}
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	b.later(s.stop)
	return s, nil
}

func (s *server) pid() int { return s.cmd.Process.Pid }

func (s *server) stop() {
	if s.cmd.ProcessState != nil {
		return
	}
	_ = s.cmd.Process.Signal(unix.SIGTERM)
	_ = s.cmd.Wait()
}

// until calls ready every 50 ms until it holds, for at most 15 s.
func (s *server) until(what string, ready func() bool) error {
	for start := time.Now(); time.Since(start) < 15*time.Second; time.Sleep(50 * time.Millisecond) {
		if ready() {
			return nil
		}
	}
	return fmt.Errorf("%s: expected %s within 15 s: %s", filepath.Base(s.cmd.Path), what, lastLine(s.log.String()))
}

// footprint is what a process holds.
type footprint struct {
	rss, anonymous, privateDirty int64 // bytes
	threads                      int
}

// observe reads the memory of a process and counts its threads.
func observe(pid int) (f footprint, err error) {
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return f, err
	}
	kb := fields(rollup)
	f.rss, f.anonymous, f.privateDirty = kb["Rss"]<<10, kb["Anonymous"]<<10, kb["Private_Dirty"]<<10
	tasks, err := switches(pid)
	f.threads = len(tasks)
	return f, err
}

// wakeups counts what happened between two looks at a process's threads: the
// switches of those that are there, and one for each that has ended, which had
// to wake up for that.
func wakeups(before, after map[string]int64) (n int64) {
	for thread, count := range after {
		n += count - before[thread]
	}
	for thread := range before {
		if _, there := after[thread]; !there {
			n++
		}
	}
	return n
}

// switches tells for each thread of a process how often it has gone to sleep.
func switches(pid int) (map[string]int64, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		return nil, fmt.Errorf("process %d: expected threads, found none", pid)
	}
	counts := map[string]int64{}
	for _, t := range tasks {
		status, err := os.ReadFile(t)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // ended meanwhile
		} else if err != nil {
			return nil, err
		}
		counts[t] = fields(status)["voluntary_ctxt_switches"]
	}
	return counts, nil
}

// fields parses the "Name: number [kB]" lines of a file in /proc.
func fields(text []byte) map[string]int64 {
	values := map[string]int64{}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		name, rest, ok := strings.Cut(s.Text(), ":")
		words := strings.Fields(rest)
		if !ok || len(words) == 0 {
			continue
		}
		if n, err := strconv.ParseInt(words[0], 10, 64); err == nil {
			values[name] = n
		}
	}
	return values
}

func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, model, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(model)
		}
	}
	return "unknown processor"
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	release, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	return release
}
