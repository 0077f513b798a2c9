package main

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cowbird/cmd/internal/cli"
	"cowbird/ota/control"
)

// remote is where the daemon is and how to talk to it.
type remote struct {
	socket  string
	timeout time.Duration
}

func newRoot() *cobra.Command {
	r := &remote{}
	root := &cobra.Command{
		Use:   "otactl",
		Short: "Install payloads; map, merge and unmap snapshots",
		Long: `otactl installs payloads, and maps, merges and unmaps snapshots through the daemon
snapuserd.

A snapshot is a base (the partition as it is) and a COW (the difference to the
target), served together as one read-only block device with the contents of the
target. A merge writes the target into the base while the device goes on being
used; it survives power cuts and is taken up where it was.

` + cli.ExitCodes,
		Example: `  otactl install --config ota.json ota.zip              # makes update.cow
  otactl map system --base /dev/sda3 --cow update.cow   # prints /dev/loop7
  mount -o ro /dev/loop7 /mnt                           # look, test, boot
  otactl merge system --wait                            # make it permanent
  umount /mnt && otactl unmap system`,
	}
	root.PersistentFlags().StringVar(&r.socket, "socket", defaultSocket(runtime.GOOS), "path of snapuserd's control socket")
	root.PersistentFlags().DurationVar(&r.timeout, "timeout", 5*time.Second, "how long to wait for the daemon to come up")
	root.AddCommand(r.mapCommand(), r.statusCommand(), r.mergeCommand(), r.pauseCommand(true), r.pauseCommand(false), r.unmapCommand(), r.installCommand(),
		r.bootCommand(), r.updateCommand(), r.watchCommand(), r.markCommand(), r.cancelCommand(), r.rollbackCommand(),
		r.slotsCommand(), r.verifyCommand(), r.doctorCommand(), r.beforeWipeCommand(), r.dbusCommand())
	return root
}

// defaultSocket is snapuserd's own default.
func defaultSocket(goos string) string {
	if goos == "android" {
		return "/dev/socket/snapuserd"
	}
	return "/run/snapuserd.sock"
}

// with connects and calls f.
func (r *remote) with(ctx context.Context, f func(*control.Client) error) error {
	dialing, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	c, err := control.Dial(dialing, r.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// advice says what to do about an error of which that is known.
func advice(err error) string {
	if a := installAdvice(err); a != "" {
		return a
	}
	if a := deviceAdvice(err); a != "" {
		return a
	}
	text := err.Error()
	switch {
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		return "run it as root, or join the group that snapuserd was given with --gid"
	case errors.Is(err, control.ErrMessage):
		return ""
	case strings.Contains(text, "unknown snapshot"):
		return "see otactl status for what is mapped"
	case strings.Contains(text, "device is in use"):
		return "unmount it or end the process, then try again"
	}
	return ""
}

// completeNames offers the names of the snapshots that are mapped.
func (r *remote) completeNames(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	quick := remote{socket: r.socket, timeout: 200 * time.Millisecond}
	_ = quick.with(cmd.Context(), func(c *control.Client) (err error) {
		names, err = c.Names(cmd.Context())
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}
