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
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser"
	"cowbird/ota/gate"
	"cowbird/ota/snapd"
)

// Android's names of what the daemon has to do with.
const (
	socketDir  = "/dev/socket"
	socketName = "snapuserd"
	proxyName  = "snapuserd_proxy"
	// propertySocket is the property service's.
	propertySocket = "/dev/socket/property_service"
	aliveFile      = "/metadata/ota/daemon-alive-indicator"
	propertyReady  = "snapuserd.ready"       // clients wait for it
	propertyProxy  = "snapuserd.proxy_ready" // Android's own daemon waits for it
	// systemGroup is the group of the sockets that init makes.
	systemGroup = 1000
)

// again is the pause after a hand-over that went wrong.
const again = time.Second

// errUblk: the platform would have the daemon make its devices in another way.
var errUblk = errors.New("expected dm-user, found --ublk: tables over ublk devices are not what this daemon serves; do not set ro.virtual_ab.ublk.enabled")

// androidOptions are what Android's init asks of a daemon.
type androidOptions struct {
	noSocket   bool             // serve snapshots, and wait for the socket
	first      bool             // before there is anything but a ramdisk
	handOff    bool             // only hand over
	snapshots  []snapd.Snapshot // of noSocket
	proxy      string           // where sockets are handed over
	alive      string           // is made once snapshots are served
	nodes      string           // of tables that init has loaded
	properties string           // the socket of the property service; empty: none
	ublk       bool
}

// Flags of Android's daemon about what is done otherwise here: switches, and those
// that take a value.
var (
	ignoredSwitches = [...]string{"io-uring", "o-direct", "skip-verification", "noublk"}
	ignoredValues   = [...]string{"cow-op-merge-size", "worker-count", "verify-block-size", "num-verify-threads", "fd-num"}
)

func (a *androidOptions) define(set *flag.FlagSet) {
	set.BoolVar(&a.noSocket, "no-socket", false, "serve the snapshots of the arguments NAME,COW,SOURCE,BASE, with a table\nfor each of them in place, as --serves-root does; then wait for a\ncontrol socket on --proxy-socket")
	set.BoolVar(&a.first, "user-snapshot", false, "run from Android's ramdisk: --serves-root, and look for nothing that is\nnot there yet")
	set.BoolVar(&a.handOff, "socket-handoff", false, "hand the control socket of Android's init over to the daemon of\n--no-socket, and end")
	set.StringVar(&a.proxy, "proxy-socket", filepath.Join(socketDir, proxyName), "where --no-socket is handed its socket; `path`")
	set.StringVar(&a.alive, "alive-file", aliveFile, "is made when all that --no-socket names is served; `path`")
	set.StringVar(&a.nodes, "node-dir", "/dev/dm-user", "`folder` of the nodes of tables that others have loaded")
	set.StringVar(&a.properties, "property-socket", "", "`path` of Android's property service, which is told that the daemon is ready\n(on Android, and with the flags that its init gives: "+propertySocket+")")
	set.BoolVar(&a.ublk, "ublk", false, "")
	ignore := func(string) error { return nil }
	for _, name := range ignoredSwitches {
		set.BoolFunc(name, "", ignore)
	}
	for _, name := range ignoredValues {
		set.Func(name, "", ignore)
	}
}

// printDefaults leaves out flags about which there is nothing to say.
func printDefaults(set *flag.FlagSet, w io.Writer) {
	shown := flag.NewFlagSet("", flag.ContinueOnError)
	shown.SetOutput(w)
	set.VisitAll(func(f *flag.Flag) {
		if f.Usage != "" {
			shown.Var(f.Value, f.Name, f.Usage)
			shown.Lookup(f.Name).DefValue = f.DefValue
		}
	})
	shown.PrintDefaults()
}

// withDashes spells flags as we do: Android's have underscores.
func withDashes(args []string) []string {
	spelt := make([]string, len(args))
	for i, a := range args {
		name, value, found := strings.Cut(a, "=")
		if strings.HasPrefix(a, "-") {
			name = strings.ReplaceAll(name, "_", "-")
		}
		spelt[i] = name
		if found {
			spelt[i] += "=" + value
		}
	}
	return spelt
}

// takeArgs reports whether the arguments were its to take.
func (a *androidOptions) takeArgs(args []string) (handled bool, err error) {
	switch {
	case a.ublk:
		return true, errUblk
	case a.noSocket && a.handOff:
		return true, errors.New("expected one of --no-socket and --socket-handoff, found both")
	case !a.noSocket:
		return false, nil
	case len(args) == 0:
		return true, errors.New("--no-socket: expected NAME,COW,SOURCE,BASE, found no argument")
	}
	for _, arg := range args {
		f := strings.Split(arg, ",")
		if len(f) != 4 || f[0] == "" || f[1] == "" || f[2] == "" || f[3] == "" {
			return true, fmt.Errorf("--no-socket: expected NAME,COW,SOURCE,BASE, found %q", arg)
		}
		a.snapshots = append(a.snapshots, snapd.Snapshot{Name: f[0], Cow: f[1], Source: f[2], Base: f[3]})
	}
	return true, nil
}

// onAndroid has what is usual there hold for whoever was started by its init: the
// program in a ramdisk is one for Linux.
func (o *options) onAndroid() {
	if runtime.GOOS != "android" && !o.android.early() && !o.android.handOff {
		return
	}
	if o.android.properties == "" {
		o.android.properties = propertySocket
	}
	if o.android.early() && o.group == snapd.NoGroup {
		o.group = systemGroup
	}
}

// early is when nothing may be asked but what init has prepared: a driver's module
// that the kernel would load lies on a device that is not served yet.
func (a *androidOptions) early() bool { return a.noSocket || a.first }

// inherit gives the socket that init has made for this service, or nil. Without one
// path is where it would be.
func inherit(socket string) (l *gate.Listener, path string, err error) {
	if strings.Contains(socket, "/") {
		return nil, socket, nil
	}
	fd, ok := gate.InitSocket(socket, os.Getenv)
	if ok {
		if l, err = gate.Inherit(fd); err != nil {
			return nil, socket, fmt.Errorf("socket of init's: %w", err)
		}
		return l, l.Path(), nil
	}
	if runtime.GOOS == "android" {
		return nil, filepath.Join(socketDir, socket), nil
	}
	return nil, socket, nil
}

// later waits for the socket. No hand-over that goes wrong is the last.
func (a *androidOptions) later(ctx context.Context, log *slog.Logger) *gate.Listener {
	for ctx.Err() == nil {
		l, err := gate.Receive(ctx, a.proxy)
		if err == nil {
			log.Info("control socket handed over", "socket", l.Path())
			a.tell(log, propertyReady)
			return l
		}
		if ctx.Err() == nil {
			log.Error("control socket not handed over", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(again):
			}
		}
	}
	return nil
}

// openNodes comes first of all, since targets do not wait long for that.
func openNodes(w *dmuser.Waiting, all []snapd.Snapshot) (err error) {
	for _, s := range all {
		err = errors.Join(err, w.Open(s.Name))
	}
	return err
}

// mapFirst serves what init has named, and says so.
func (a *androidOptions) mapFirst(server *snapd.Server, log *slog.Logger) error {
	if !a.noSocket {
		return nil
	}
	if err := server.Map(a.snapshots); err != nil {
		return err
	}
	log.Info("all snapshots are served", "snapshots", len(a.snapshots))
	if err := os.WriteFile(a.alive, []byte("1"), 0o600); err != nil {
		log.Error("cannot say that the daemon is alive", "err", err) // init only waits in vain
	}
	return nil
}

// handOver is all that the process between init and the daemon does.
func (a *androidOptions) handOver(ctx context.Context, log *slog.Logger) error {
	signal.Ignore(unix.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	fds := [2]int{}
	for i, name := range []string{proxyName, socketName} {
		fd, ok := gate.InitSocket(name, os.Getenv)
		if !ok {
			return fmt.Errorf("--socket-handoff: expected ANDROID_SOCKET_%s in the environment, found none: this is for a service of Android's init", name)
		}
		fds[i] = fd
	}
	err := gate.HandOver(ctx, fds[0], fds[1], func() { a.tell(log, propertyProxy) })
	if err == nil {
		log.Info("control socket handed over")
	}
	return err
}

// tell sets a property to true where there are properties.
func (a *androidOptions) tell(log *slog.Logger, property string) {
	if a.properties == "" {
		return
	}
	err := setProperty(a.properties, property, "true")
	switch {
	case errors.Is(err, unix.ENOENT): // init's first stage has none yet
		log.Debug("property not set", "property", property, "err", err)
	case err != nil:
		log.Warn("property not set", "property", property, "err", err)
	}
}
