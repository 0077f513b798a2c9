// Package gate is a Unix stream socket at a path, for the daemon's clients: made
// so that only its owner and one group can connect, and able to tell who did.
//
// A socket that a dead process has left is replaced; one on which somebody
// answers is not. Waiting for a client parks a goroutine and takes no thread.
//
// A socket may also come from elsewhere: Android's init makes those of its services
// ([InitSocket], [Inherit]), and passes one by way of a second process to a daemon
// that has been running since before there were any:
//
//	init ── both sockets ──► proxy                        daemon
//	                         HandOver ◄── seqpacket ───── Receive
//	                                  ─── 'a', socket ──►
//	                                  ◄── 'a' ───────────
package gate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// backlog is how many clients may wait to be accepted.
const backlog = 16

var (
	// ErrTaken: another process answers on the socket.
	ErrTaken = errors.New("another process answers on the socket")
	// ErrPeer: a client that may not use the socket.
	ErrPeer = errors.New("client is neither root nor in the group of the socket")
)

// Listener is a socket on which clients are awaited. Its methods are safe for
// concurrent use.
type Listener struct {
	file *os.File
	path string
	// foreign: somebody else has made the socket, and takes it away.
	foreign bool
	node    unix.Stat_t // of path, to see later whether it is still ours
	once    sync.Once   // close
}

// Listen makes a socket at path, for owner and group to use. A socket that a dead
// process has left there is replaced.
func Listen(path string, group int) (*Listener, error) {
	if err := clearStale(path); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	l := &Listener{file: os.NewFile(uintptr(fd), path), path: path}
	if err := l.bind(fd, group); err != nil {
		_ = l.file.Close()
		return nil, err
	}
	return l, nil
}

func (l *Listener) bind(fd, group int) error {
	old := unix.Umask(0o117) // never reachable by others, not even for a moment
	err := unix.Bind(fd, &unix.SockaddrUnix{Name: l.path})
	unix.Umask(old)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("bind socket %s: %w: make the folder %s first, or give another path", l.path, err, filepath.Dir(l.path))
	}
	if err != nil {
		return fmt.Errorf("bind socket %s: %w", l.path, err)
	}
	if err := unix.Lstat(l.path, &l.node); err != nil {
		return fmt.Errorf("socket %s: %w", l.path, err)
	}
	if group != NoGroup {
		err = unix.Chown(l.path, -1, group)
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		l.remove()
		return fmt.Errorf("socket %s: %w", l.path, err)
	}
	return nil
}

// clearStale removes a socket on which nobody answers.
func clearStale(path string) error {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("socket %s: expected nothing there, or a socket; found another kind of file", path)
	}
	if answers(path) {
		return fmt.Errorf("%w: %s", ErrTaken, path)
	}
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return fmt.Errorf("stale socket %s: %w", path, err)
	}
	return nil
}

// answers is true when in doubt: only a refused connection means that the
// socket has no owner.
func answers(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	return err != unix.ECONNREFUSED && err != unix.ENOENT
}

// Accept waits for a client and gives a descriptor that does not block. It
// returns os.ErrClosed after Close.
func (l *Listener) Accept() (fd int, err error) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return -1, os.ErrClosed
	}
	closed := raw.Read(func(lfd uintptr) bool {
		fd, _, err = unix.Accept4(int(lfd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return err != unix.EAGAIN
	})
	if closed != nil {
		return -1, os.ErrClosed
	}
	return fd, err
}

// Close stops Accept and removes the socket if it was made by Listen. A second call
// waits for the first.
func (l *Listener) Close() {
	l.once.Do(func() {
		_ = l.file.Close()
		if !l.foreign {
			l.remove()
		}
	})
}

// remove takes the socket away unless another process's has come in its place.
func (l *Listener) remove() {
	var st unix.Stat_t
	if unix.Lstat(l.path, &st) == nil && st.Dev == l.node.Dev && st.Ino == l.node.Ino {
		_ = unix.Unlink(l.path)
	}
}
