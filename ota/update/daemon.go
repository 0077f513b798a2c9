package update

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/ota/control"
)

// Snapuserd is the Daemon that listens on a control socket.
type Snapuserd struct {
	Socket string
	// Timeout is how long to wait for it to come up.
	Timeout time.Duration
	// Rate is how many bytes a second each merge writes at most; 0: no limit.
	Rate int64
}

func (d Snapuserd) with(ctx context.Context, f func(*control.Client) error) error {
	return d.within(ctx, d.Timeout, f)
}

// within is with for a daemon that may not run; see control.DialWithin.
func (d Snapuserd) within(ctx context.Context, patience time.Duration, f func(*control.Client) error) error {
	dialing, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	c, err := control.DialWithin(dialing, d.Socket, patience)
	if err != nil {
		return fmt.Errorf("snapuserd: %w", err)
	}
	defer c.Close()
	return f(c)
}

// Map implements Daemon. A snapshot that is mapped already is fine.
func (d Snapuserd) Map(ctx context.Context, name, cow, source, base string) (device string, err error) {
	err = d.with(ctx, func(c *control.Client) error {
		names, err := c.Names(ctx)
		if err != nil {
			return err
		}
		if slices.Contains(names, name) {
			device, err = c.Device(ctx, name)
			return err
		}
		if _, err := c.Init(ctx, name, cow, source, base); err != nil {
			return err
		}
		if err = c.Do(ctx, control.Start, name); err == nil {
			device, err = c.Device(ctx, name)
		}
		if err != nil {
			return errors.Join(err, c.Do(ctx, control.Delete, name))
		}
		return nil
	})
	return device, err
}

// State implements Daemon.
func (d Snapuserd) State(ctx context.Context, name string) (state string, err error) {
	err = d.with(ctx, func(c *control.Client) error {
		s, err := c.Status(ctx, name)
		state = s.State
		return err
	})
	return state, err
}

// Merge implements Daemon.
func (d Snapuserd) Merge(ctx context.Context, name string) error {
	return d.with(ctx, func(c *control.Client) error { return c.Merge(ctx, name, d.Rate) })
}

// Pause implements Daemon.
func (d Snapuserd) Pause(ctx context.Context, on bool) error {
	command := control.ResumeMerge
	if on {
		command = control.PauseMerge
	}
	return d.with(ctx, func(c *control.Client) error { return c.Do(ctx, command) })
}

// Delete implements Daemon. Without a daemon there are no snapshots.
func (d Snapuserd) Delete(ctx context.Context, name string) error {
	err := d.within(ctx, 200*time.Millisecond, func(c *control.Client) error { return c.Do(ctx, control.Delete, name) })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	return err
}
