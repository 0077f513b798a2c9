package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"cowbird/ota/control"
)

// survivor begins the first word of a process that systemd leaves alive when it ends
// all others, at the switch of the root and at the shutdown.
const survivor = "@"

// starter says how the daemon is started, if it does not run.
type starter struct {
	program string // "": not at all
	root    string // what becomes its root; "": it keeps the one of this process
	socket  string
}

func (s starter) flags() []string { return []string{"--socket", s.socket, "--serves-root"} }

// start leaves a daemon behind that does not end with this program, nor when an init
// ends everything that it does not know.
func (s starter) start() error {
	quick := remote{socket: s.socket, timeout: 50 * time.Millisecond}
	if quick.with(context.Background(), func(*control.Client) error { return nil }) == nil {
		return nil // it runs
	}
	cmd := exec.Command(s.program, s.flags()...)
	cmd.Args[0] = survivor + filepath.Base(s.program)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		defer f.Close()
		cmd.Stdout, cmd.Stderr = f, f
	}
	if err := detach(cmd, s.root); err != nil {
		return fmt.Errorf("a root for the daemon: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	return cmd.Process.Release()
}
