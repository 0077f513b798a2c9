package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"

	"cowbird/cow"
	"cowbird/dmuser"
	"cowbird/ota/snapd"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

const usage = `Usage: snapuserd [flags]         serve until SIGTERM
       snapuserd [flags] probe   print which carriers this kernel offers, and which one
                                 --carrier auto picks
       snapuserd give-node NODE  give a node of ublk, as ublkc0, to the user whose device
                                 it is: for a rule of udev

Serves snapshots (base + COW) as block devices and merges them, for clients
such as otactl on the control socket. Runs in the foreground.

Examples:
  snapuserd --socket /run/snapuserd.sock
  snapuserd --carrier fuse --log-level debug
  snapuserd --nbd-socket /run/snapuserd-nbd.sock   and any NBD client reads what is
        mapped: nbdinfo --list 'nbd+unix://?socket=/run/snapuserd-nbd.sock'
  snapuserd --gid 1000      members of group 1000 may use the socket too
  snapuserd --serves-root   from an initramfs, before the root is mounted, and later
        from that root
  snapuserd --merge-idle-io --merge-nice 10   merges stand back behind other work
  snapuserd --no-socket NAME,COW,SOURCE,BASE...   as Android's init starts it: serve the
        tables that it has loaded, and wait for a control socket to be handed over
  snapuserd --socket-handoff    hand the sockets of Android's init over to that one

Flags:
`

const usageEnd = `
Clients, those of --nbd-socket as well, must be root, run as the daemon's own
user, or belong to --gid.
A daemon that is not root's serves with ublk alone, and with that only where root has
installed the rule for it (udev/70-cowbird-ublk.rules).
Once it is ready it cannot run programs any more, and has given up most of a
root user's rights.
A --socket without a slash is that of Android's init, if the environment tells of one
of that name. A snapshot for which there is a node
/dev/dm-user/NAME already is served there, whatever the --carrier. Underscores
in the names of flags are as good as dashes, and the other flags of Android's daemon
do nothing, but for --ublk, which is refused.
On SIGTERM and SIGINT merges commit what they are at, devices are closed, and
the sockets are removed. Whoever has a device open gets I/O errors then. With
--leave-devices they wait until the next daemon maps the snapshot again, for good
on ublk and dm-user, 30 seconds on nbd; fuse cannot do that. With NOTIFY_SOCKET set, readiness is told to systemd.

Exit codes: 0 ok, 1 failed or refused, 2 usage.
`

type options struct {
	socket  string
	carrier string
	nbd     string
	group   int
	level   slog.Level
	prio    cow.Priority
	root    bool
	leave   bool
	probe   bool
	give    string // a node
	android androidOptions
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	set := flag.NewFlagSet("snapuserd", flag.ContinueOnError)
	set.SetOutput(stderr)
	set.Usage = func() {
		fmt.Fprint(stderr, usage)
		printDefaults(set, stderr)
		fmt.Fprint(stderr, usageEnd)
	}
	set.StringVar(&o.socket, "socket", defaultSocket(runtime.GOOS), "`path` of the control socket")
	set.StringVar(&o.carrier, "carrier", dmuser.Auto, "how the kernel asks: ublk, dm-user, fuse or nbd, or auto, the first of them that\nthere is; `name`")
	set.StringVar(&o.nbd, "nbd-socket", "", "`path` of a socket on which mapped snapshots are exported, by name and\nread-only, to NBD clients (none)")
	set.IntVar(&o.group, "gid", snapd.NoGroup, "group whose members may use the sockets too; `number`, -1 for none")
	set.BoolVar(&o.prio.IdleIO, "merge-idle-io", false, "merge when nobody else uses the storage (I/O class idle)")
	set.IntVar(&o.prio.Nice, "merge-nice", 0, "merge at a nice value higher by so much; `number`, 0 to 19")
	set.BoolVar(&o.root, "serves-root", false, "the program may lie on a device that it serves: keep it in memory (some\n0.4 MB more), and do not start if that cannot be had")
	set.BoolVar(&o.leave, "leave-devices", false, "when the daemon is told to end, leave devices that are in use to the next\none; --serves-root does that, too")
	set.TextVar(&o.level, "log-level", slog.LevelInfo, "debug, info, warn or error; `level`")
	o.android.define(set)
	rest, err := parseFlags(set, args, stderr)
	if err != nil {
		return o, err
	}
	o.onAndroid()
	return o, o.takeArgs(rest)
}

// parseFlags takes flags between arguments, too, and gives those. It keeps the flag
// package from printing all of the usage for one wrong flag.
func parseFlags(set *flag.FlagSet, args []string, stderr io.Writer) (rest []string, err error) {
	help := set.Usage
	set.Usage = func() {}
	set.SetOutput(io.Discard)
	for args = withDashes(args); err == nil; args = set.Args()[1:] {
		err = set.Parse(args)
		if err != nil || set.NArg() == 0 {
			break
		}
		rest = append(rest, set.Arg(0))
	}
	if errors.Is(err, flag.ErrHelp) {
		set.SetOutput(stderr)
		help()
	}
	return rest, err
}

func (o *options) takeArgs(args []string) error {
	if err := o.prio.Check(); err != nil {
		return err
	}
	if handled, err := o.android.takeArgs(args); handled {
		return err
	}
	switch {
	case len(args) == 0:
		return nil
	case len(args) == 1 && args[0] == "probe":
		o.probe = true
		return nil
	case len(args) == 2 && args[0] == "give-node":
		o.give = args[1]
		return nil
	}
	return fmt.Errorf("expected no argument, probe, or give-node and a node; found %q", strings.Join(args, " "))
}

// defaultSocket is where clients look for the daemon.
func defaultSocket(goos string) string {
	if goos == "android" {
		return "/dev/socket/snapuserd"
	}
	return "/run/snapuserd.sock"
}
