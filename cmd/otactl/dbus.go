package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/ota/dbus"
	"cowbird/ota/gate"
	"cowbird/ota/update"
)

// dialWait is how long the bus may take to let the service in.
const dialWait = 20 * time.Second

// What the service is called on the bus.
const (
	busName   = "org.cowbird.Update1"
	busObject = "/org/cowbird/Update1"
)

func (r *remote) dbusCommand() *cobra.Command {
	s := &service{whole: &whole{remote: r}}
	address := ""
	cmd := &cobra.Command{
		Use:   "dbus",
		Short: "Serve the update on D-Bus, for user interfaces",
		Long: `Serves the update of this device as org.cowbird.Update1 on the system bus, which
starts it when somebody calls, and where it ends when nobody has for a while. Everybody
may read and follow how the update stands; only root, the members of --gid and, with
--polkit, whom polkit lets, may install, cancel, merge, roll back or mark a system as
successful.

An installation that runs when the service is told to end goes on where it was when it
is asked for again. Properties, methods and signals: see docs/events.md.`,
		Example: `  otactl dbus --polkit        # as the system bus starts it
  busctl get-property org.cowbird.Update1 /org/cowbird/Update1 org.cowbird.Update1 State
  gdbus monitor --system --dest org.cowbird.Update1`,
		Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.idle < 0 {
				return cli.Usagef("--idle: expected 0 or more, found %v", s.idle)
			}
			return s.serve(cmd, address)
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "where the bus is, such as unix:path=/run/dbus/system_bus_socket; none is the system's `ADDRESS`")
	cmd.Flags().IntVar(&s.group, "gid", gate.NoGroup, "`GROUP` whose members may change things too, a number; -1 for none")
	cmd.Flags().BoolVar(&s.polkit, "polkit", false, "ask polkit about others who want to change things")
	cmd.Flags().DurationVar(&s.idle, "idle", 30*time.Second, "end when nobody has asked for so long; 0 is never")
	return s.flags(cmd)
}

// serve runs the service on a bus.
func (s *service) serve(cmd *cobra.Command, address string) error {
	if address == "" {
		address = dbus.SystemBus()
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	dialing, done := context.WithTimeout(ctx, dialWait)
	defer done()
	conn, err := dbus.Dial(dialing, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	s.conn, s.device = conn, &commandDevice{s.whole, cmd}
	s.log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	if err := conn.Own(dialing, busName); err != nil {
		return err
	}
	return s.run(ctx)
}

// busDevice is what the service does to the device. Its methods are safe for concurrent
// use.
type busDevice interface {
	// look tells how the update stands.
	look(context.Context) (event, *standing, error)
	install(ctx context.Context, source string, restart bool, progress func(done, total int64)) error
	cancel(context.Context) error
	merge(context.Context) error
	rollback(context.Context) error
	markSuccessful(context.Context) error
}

// commandDevice opens the device anew for each of these, as the commands do.
type commandDevice struct {
	whole *whole
	cmd   *cobra.Command
}

func (c *commandDevice) with(ctx context.Context, f func(context.Context, *whole, *update.Device) error) error {
	w := c.whole.clone()
	return w.within(ctx, c.cmd, func(ctx context.Context, d *update.Device) error { return f(ctx, w, d) })
}

func (c *commandDevice) look(ctx context.Context) (e event, st *standing, err error) {
	err = c.with(ctx, func(ctx context.Context, w *whole, d *update.Device) error {
		e, st, err = w.now(ctx, d)
		return err
	})
	return e, st, err
}

func (c *commandDevice) install(ctx context.Context, source string, restart bool, progress func(done, total int64)) error {
	i := &installation{whole: *c.whole.clone(), restart: restart, progress: progress}
	return i.run(ctx, c.cmd, cli.Output{Quiet: true, Stdout: io.Discard, Stderr: io.Discard}, source)
}

func (c *commandDevice) cancel(ctx context.Context) error {
	return c.with(ctx, func(ctx context.Context, _ *whole, d *update.Device) error { return d.Cancel(ctx) })
}

func (c *commandDevice) merge(ctx context.Context) error {
	return c.with(ctx, func(ctx context.Context, w *whole, d *update.Device) error { return w.mergeUpdate(ctx, d, true) })
}

func (c *commandDevice) rollback(ctx context.Context) error {
	return c.with(ctx, func(ctx context.Context, _ *whole, d *update.Device) error { return d.Rollback(ctx) })
}

func (c *commandDevice) markSuccessful(ctx context.Context) error {
	return c.with(ctx, func(ctx context.Context, _ *whole, d *update.Device) error { return mark(ctx, d, false) })
}

var errBusGone = errors.New("the message bus has gone")
