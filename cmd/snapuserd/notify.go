package main

import (
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// notify tells the service manager about state, if it has asked to be told. A
// name that begins with @ is an abstract socket.
func notify(log *slog.Logger, state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if err := sendTo(path, state); err != nil {
		log.Warn("service manager not told", "state", state, "socket", path, "err", err)
	}
}

func sendTo(path, message string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte(message), unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: path})
}
