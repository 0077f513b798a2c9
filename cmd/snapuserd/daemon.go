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
	"cowbird/ota/gate"
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
	case o.give != "":
		if err := dmuser.GiveNode(o.give); err != nil {
			fmt.Fprintf(stderr, "snapuserd: give-node %s: %v\n", o.give, err)
			return exitFailed
		}
		return exitOK
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
	if o.android.handOff {
		return o.android.handOver(ctx, log)
	}
	own, err := d.usable(o)
	if err != nil {
		return err
	}
	waiting := dmuser.NewWaiting(own, o.android.nodes)
	if err := openNodes(waiting, o.android.snapshots); err != nil {
		return err
	}
	if err := d.settled(o, log); err != nil {
		return fmt.Errorf("serve the root: %w", err)
	}
	procs := limitMemory()
	signal.Ignore(unix.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	carrier := dmuser.Carrier(waiting)
	if o.nbd != "" {
		clients, err := openExports(o.nbd, o.group, log)
		if err != nil {
			return err
		}
		defer clients.close()
		carrier = clients.exports.Carrier(carrier)
	}
	server, err := o.listen(carrier, procs, log)
	if err != nil {
		return err
	}
	return o.obey(ctx, server, carrier, log)
}

// usable is the carrier that makes devices of our own, or nil if that is no question
// to ask now.
func (d daemon) usable(o options) (dmuser.Carrier, error) {
	if o.android.early() && o.carrier == dmuser.Auto {
		c, err := d.carrier("dm-user")
		if errors.Is(err, dmuser.ErrUnsupported) {
			return nil, nil
		}
		return c, err
	}
	c, err := d.carrier(o.carrier)
	if err != nil {
		return nil, fmt.Errorf("carrier %s: %w", o.carrier, err)
	}
	if err := c.Probe(); err != nil {
		return nil, fmt.Errorf("carrier %s: %w: see snapuserd probe", o.carrier, err)
	}
	return c, nil
}

// listen makes the server and its control socket, unless that comes later.
func (o *options) listen(carrier dmuser.Carrier, procs int, log *slog.Logger) (*snapd.Server, error) {
	c := snapd.Config{
		Group: o.group, Carrier: attacher{carrier}, Log: log,
		Leaving: func() { notify(log, "STOPPING=1") }, Processors: procs, Priority: o.prio,
		Keep: o.leave || o.servesRoot(),
	}
	if o.android.noSocket {
		c.Later = func(ctx context.Context) *gate.Listener { return o.android.later(ctx, log) }
		return snapd.Listen(c)
	}
	var err error
	c.Listener, c.Socket, err = inherit(o.socket)
	if err != nil {
		return nil, err
	}
	o.socket = c.Socket
	return snapd.Listen(c)
}

func (o *options) servesRoot() bool { return o.root || o.android.early() }

// obey serves until the end.
func (o *options) obey(ctx context.Context, server *snapd.Server, carrier dmuser.Carrier, log *slog.Logger) error {
	if !o.android.early() {
		sweep(carrier, log)
	}
	failed := o.android.mapFirst(server, log)
	if failed != nil {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		ctx = gone
	} else {
		log.Info("ready", "socket", o.socket, "carrier", carrier.Name(), "pid", os.Getpid())
		notify(log, "READY=1")
		if !o.android.noSocket {
			o.android.tell(log, propertyReady)
		}
	}
	server.Serve(ctx)
	log.Info("left")
	return failed
}

// settled makes the process what it needs to be while it serves.
func (d daemon) settled(o options, log *slog.Logger) error {
	if d.settle == nil {
		return nil
	}
	return d.settle(resident.Options{ServesRoot: o.servesRoot(), Complain: func(what string, err error) {
		log.Debug("not allowed to "+what, "err", err)
	}})
}

// limitMemory returns how many processors the server may use when it is busy.
func limitMemory() int {
	runtime.MemProfileRate = 0 // nobody reads the profile
	debug.SetMemoryLimit(heapLimit)
	return min(max(2, runtime.GOMAXPROCS(1)), maxThreads)
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
