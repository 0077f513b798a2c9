// Command guestinit is process 1 of a lab guest: it makes the host's root a
// system that a test can use, runs the tests of its job one after the other,
// and turns the machine off. It is of no use anywhere else.
//
// What it has to say goes to the kernel log: see package job.
package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/job"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guestinit: expected to be process 1 of a guest")
		os.Exit(2)
	}
	if err := run(); err != nil {
		say("failed: %v", err)
	}
	unix.Sync()
	say(job.Done)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	if err := enterRoot(); err != nil {
		return err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if err := mountJob(argument(string(cmdline), job.FolderKey)); err != nil {
		return err
	}
	j, err := job.Read(job.Dir)
	if err != nil {
		return err
	}
	if err := prepare(j); err != nil {
		return err
	}
	say(job.Ready)
	if j.Shell != nil {
		return shell(j)
	}
	for i := range j.Tests {
		runTest(j, i)
	}
	return nil
}

// argument finds a key=value among the words of the kernel's command line.
func argument(cmdline, key string) string {
	for _, word := range strings.Fields(cmdline) {
		if value, found := strings.CutPrefix(word, key); found {
			return value
		}
	}
	return ""
}

// say writes a line to the kernel log, as important as "info".
func say(format string, args ...any) {
	line := append([]byte("<6>"+job.Prefix), fmt.Appendf(nil, format, args...)...)
	line = append(bytes.ReplaceAll(line, []byte("\n"), []byte(" ")), '\n')
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		_, _ = os.Stderr.Write(line[3:])
		return
	}
	defer kmsg.Close()
	_, _ = kmsg.Write(line)
}
