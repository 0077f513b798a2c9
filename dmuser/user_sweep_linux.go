package dmuser

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/dm"
)

const (
	// lockPatience bounds the wait for another process that is changing a
	// device.
	lockPatience = 10 * time.Second
	lockBackoff  = 10 * time.Millisecond
)

// openMark makes a socket of an abstract name. Nobody else can have the name
// until this process closes it, or ends.
func openMark(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// userMark says that a device is served by the process that has a socket of this
// name. At a change of servers there are two for a while.
func userMark(info dm.Info, misc string) string {
	return fmt.Sprintf("%s%08x", userMarks(info), crc32.ChecksumIEEE([]byte(misc)))
}

func userMarks(info dm.Info) string { return "@cowbird-dm-user:" + mappedDisk(info) + ":" }

// lockUser keeps other processes from changing what tables a device has. It does
// not matter that two devices may share a lock.
func lockUser(ctx context.Context, name string) (unlock func(), err error) {
	mark := fmt.Sprintf("@cowbird-dm-user-lock:%08x", crc32.ChecksumIEEE([]byte(name)))
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for {
		fd, err := openMark(mark)
		if err == nil {
			return func() { _ = unix.Close(fd) }, nil
		}
		if err != unix.EADDRINUSE {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %s, by a process that is about to change it: %w", ErrBusy, name, ctx.Err())
		case <-time.After(lockBackoff):
		}
	}
}

// isServedUser is true when in doubt.
func isServedUser(ctl *dm.Control, info dm.Info) bool {
	status, err := ctl.Status(info.Name)
	if err != nil {
		return !errors.Is(err, dm.ErrNotFound)
	}
	return isServedTarget(status, info, func() (string, error) {
		table, err := os.ReadFile("/proc/net/unix")
		return string(table), err
	})
}

// isServedTarget asks the target how many channels are open. Android's does not
// say; then a server is known by its mark among the sockets.
func isServedTarget(status []dm.Target, info dm.Info, sockets func() (string, error)) bool {
	if len(status) != 1 || status[0].Type != userTarget {
		return false
	}
	if channels, ok := channelsOf(status[0].Args); ok {
		return channels > 0
	}
	table, err := sockets()
	return err != nil || strings.Contains(table, " "+userMarks(info))
}

// channelsOf reads the status of our module's targets: name, open channels,
// requests that none of them has taken.
func channelsOf(status string) (channels int, ok bool) {
	fields := strings.Fields(status)
	if len(fields) != 3 {
		return 0, false
	}
	channels, err := strconv.Atoi(fields[1])
	return channels, err == nil
}

// Sweep leaves alone what somebody has open: Attach goes on with it.
func (c *userCarrier) Sweep() ([]string, error) {
	ctl, err := openMapper()
	if err != nil {
		return nil, nil // nor has anybody made a device
	}
	defer ctl.Close()
	devices, err := ctl.List()
	if err != nil {
		return nil, err
	}
	var removed []string
	var failures []error
	for _, e := range devices {
		name, err := sweepMapped(ctl, e.Name)
		if err != nil {
			failures = append(failures, err)
		} else if name != "" {
			removed = append(removed, name)
		}
	}
	return removed, errors.Join(failures...)
}

// sweepMapped gives the name that the device was attached by, if it has removed
// it.
func sweepMapped(ctl *dm.Control, device string) (string, error) {
	info, err := ctl.Info(device)
	short, ours := strings.CutPrefix(info.UUID, userPrefix)
	if err != nil || !ours {
		return "", nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // who holds the lock serves the device presently
	unlock, err := lockUser(ctx, info.UUID)
	if err != nil {
		return "", nil
	}
	defer unlock()
	info, err = ctl.Info(device)
	if err != nil || info.UUID != userPrefix+short || isServedUser(ctl, info) {
		return "", nil
	}
	if err := removeMapped(ctl, info); err != nil {
		return "", fmt.Errorf("sweep %s: %w", short, err)
	}
	return short, nil
}
