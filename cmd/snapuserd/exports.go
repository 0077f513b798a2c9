package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser"
	"cowbird/ota/gate"
)

// exportGate is the socket for NBD clients.
type exportGate struct {
	exports  *dmuser.Exports
	listener *gate.Listener
	group    int
	log      *slog.Logger
	left     chan struct{} // closed when no client is accepted any more
}

// openExports makes the socket at path and serves clients on it until close.
func openExports(path string, group int, log *slog.Logger) (*exportGate, error) {
	l, err := gate.Listen(path, group)
	if errors.Is(err, gate.ErrTaken) {
		return nil, fmt.Errorf("NBD socket: %w: stop it first, or give another --nbd-socket", err)
	}
	if err != nil {
		return nil, fmt.Errorf("NBD socket: %w", err)
	}
	g := &exportGate{
		exports: dmuser.NewExports(dmuser.DefaultClients), listener: l, group: group, log: log, left: make(chan struct{}),
	}
	go g.acceptAll()
	log.Info("exporting to NBD clients", "socket", path)
	return g, nil
}

func (g *exportGate) close() {
	g.listener.Close()
	<-g.left
	g.exports.Close()
}

func (g *exportGate) acceptAll() {
	defer close(g.left)
	for {
		fd, err := g.listener.Accept()
		switch {
		case err == nil:
			g.welcome(fd)
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED):
		default:
			// Out of descriptors or memory, which passes.
			g.log.Error("accept an NBD client", "err", err)
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func (g *exportGate) welcome(fd int) {
	conn := os.NewFile(uintptr(fd), "NBD connection")
	pid, err := gate.Admit(fd, g.group)
	if err == nil {
		err = g.exports.Handle(conn, clientName(pid))
	}
	if err != nil {
		_ = conn.Close()
		g.log.Warn("NBD client turned away", "err", err)
	}
}

// clientName is how people know a process.
func clientName(pid int) string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name)))
}
