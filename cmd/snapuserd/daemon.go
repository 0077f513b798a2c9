package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser"
	"cowbird/ota/resident"
	"cowbird/ota/snapd"
)

const (
	// maxThreads bounds the goroutines that run at a time: each costs the
	// runtime memory of its own, and the disk is the limit anyway.
	maxThreads = 4
	// heapLimit is when the garbage collector works also while it is told to
	// stay away. Request buffers are not on the heap.
	heapLimit = 32 << 20
)

// daemon is the program, with what tests replace.
type daemon struct {
	carrier func(name string) (dmuser.Carrier, error) // nil: dmuser.Select
	settle  func(resident.Options) error              // nil: the process stays as it is
}

// run returns the exit code. The daemon ends with ctx, or on SIGTERM or SIGINT.
func (d daemon) run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if d.carrier == nil {
		d.carrier = dmuser.Select
	}
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "snapuserd: %v: see snapuserd --help\n", err)
		return exitUsage
	case o.probe:
		return d.probe(stdout)
	}
	log := newLog(stderr, o.level)
	if err := d.serve(ctx, o, log); err != nil {
		log.Error("snapuserd cannot run", "err", err)
		if errors.Is(err, dmuser.ErrUnknownCarrier) {
			return exitUsage
		}
		return exitFailed
	}
	return exitOK
}

// newLog writes times in UTC, for the local zone would have to be read from a
// file first, which may lie on a device that this process serves.
func newLog(w io.Writer, level slog.Level) *slog.Logger {
	utc := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
			a.Value = slog.TimeValue(a.Value.Time().UTC())
		}
		return a
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: utc}))
}

func (d daemon) serve(ctx context.Context, o options, log *slog.Logger) error {
	carrier, err := d.carrier(o.carrier)
	if err != nil {
		return fmt.Errorf("carrier %s: %w", o.carrier, err)
	}
	if err := carrier.Probe(); err != nil {
		return fmt.Errorf("carrier %s: %w: see snapuserd probe", o.carrier, err)
	}
	if err := d.settled(o, log); err != nil {
		return fmt.Errorf("serve the root: %w", err)
	}
	procs := limitMemory()
	signal.Ignore(unix.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	if o.nbd != "" {
		gate, err := openExports(o.nbd, o.group, log)
		if err != nil {
			return err
		}
		defer gate.close()
		carrier = gate.exports.Carrier(carrier)
	}
	server, err := snapd.Listen(snapd.Config{
		Socket: o.socket, Group: o.group, Carrier: attacher{carrier}, Log: log,
		Leaving: func() { notify(log, "STOPPING=1") }, Processors: procs, Priority: o.prio,
		Keep: o.leave || o.root,
	})
	if err != nil {
		return err
	}
	sweep(carrier, log)
	log.Info("ready", "socket", o.socket, "carrier", carrier.Name(), "pid", os.Getpid())
	notify(log, "READY=1")
	server.Serve(ctx)
	log.Info("left")
	return nil
}

// settled makes the process what it needs to be while it serves.
func (d daemon) settled(o options, log *slog.Logger) error {
	if d.settle == nil {
		return nil
	}
	return d.settle(resident.Options{ServesRoot: o.root, Complain: func(what string, err error) {
		log.Debug("not allowed to "+what, "err", err)
	}})
}

// limitMemory returns how many processors the server may use when it is busy.
func limitMemory() int {
	runtime.MemProfileRate = 0 // nobody reads the profile
	debug.SetMemoryLimit(heapLimit)
	return min(runtime.GOMAXPROCS(1), maxThreads)
}

// sweepWait bounds how long the daemon waits for the sweep before it serves:
// opening a block device whose server hangs can take for ever.
const sweepWait = 3 * time.Second

// sweep removes what a killed daemon has left behind.
func sweep(c dmuser.Carrier, log *slog.Logger) {
	swept := make(chan struct{})
	go func() {
		defer close(swept)
		logSweep(c, log)
	}()
	select {
	case <-swept:
	case <-time.After(sweepWait):
		log.Warn("still looking for block devices of an earlier daemon; serving meanwhile")
	}
}

// logSweep says what was left. What somebody still uses stays, and is no reason
// not to serve.
func logSweep(c dmuser.Carrier, log *slog.Logger) {
	removed, err := c.Sweep()
	for _, name := range removed {
		log.Info("removed a block device that an earlier daemon left", "name", name)
	}
	if err != nil {
		log.Warn("block devices of an earlier daemon are left", "err", err)
	}
}

// attacher lets the server make devices without knowing the carriers.
type attacher struct{ dmuser.Carrier }

func (a attacher) Attach(ctx context.Context, name string, b snapd.Backend) (snapd.Device, error) {
	d, err := a.Carrier.Attach(ctx, name, b)
	if err != nil {
		return nil, err // not a Device that holds nil
	}
	return d, nil
}

// probe prints a line for each carrier, and what auto makes of that. It fails when
// there is none to use.
func (d daemon) probe(stdout io.Writer) int {
	for _, name := range []string{"ublk", "dm-user", "fuse", "nbd"} {
		c, err := d.carrier(name)
		if err == nil {
			err = c.Probe()
		}
		if err != nil {
			fmt.Fprintf(stdout, "%-8s no: %v\n", name, err)
		} else {
			fmt.Fprintf(stdout, "%-8s yes\n", name)
		}
	}
	c, err := d.carrier(dmuser.Auto)
	if err != nil {
		fmt.Fprintf(stdout, "%-8s none\n", dmuser.Auto)
		return exitFailed
	}
	fmt.Fprintf(stdout, "%-8s %s, the first that is to be had\n", dmuser.Auto, c.Name())
	return exitOK
}
