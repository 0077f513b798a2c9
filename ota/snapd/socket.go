package snapd

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

// listener is the control socket. Waiting for a client parks a goroutine and
// takes no thread.
type listener struct {
	file *os.File
	path string
	node unix.Stat_t // of path, to see later whether it is still ours
	once sync.Once   // close
}

// listen makes the control socket at path, for owner and group to use. A socket
// that a dead daemon has left there is replaced.
func listen(path string, group int) (*listener, error) {
	if err := clearStale(path); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l := &listener{file: os.NewFile(uintptr(fd), path), path: path}
	if err := l.bind(fd, group); err != nil {
		_ = l.file.Close()
		return nil, err
	}
	return l, nil
}

func (l *listener) bind(fd, group int) error {
	old := unix.Umask(0o117) // never reachable by others, not even for a moment
	err := unix.Bind(fd, &unix.SockaddrUnix{Name: l.path})
	unix.Umask(old)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("bind control socket %s: %w: make the folder %s first, or give another --socket", l.path, err, filepath.Dir(l.path))
	}
	if err != nil {
		return fmt.Errorf("bind control socket %s: %w", l.path, err)
	}
	if err := unix.Lstat(l.path, &l.node); err != nil {
		return fmt.Errorf("control socket %s: %w", l.path, err)
	}
	if group != NoGroup {
		err = unix.Chown(l.path, -1, group)
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		l.remove()
		return fmt.Errorf("control socket %s: %w", l.path, err)
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
		return fmt.Errorf("control socket %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("control socket %s: expected nothing there, or a socket; found another kind of file", path)
	}
	if answers(path) {
		return fmt.Errorf("%w: %s: stop it first, or give another --socket", ErrRunning, path)
	}
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return fmt.Errorf("stale control socket %s: %w", path, err)
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

// accept waits for a client. It returns os.ErrClosed after close.
func (l *listener) accept() (fd int, err error) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return -1, err
	}
	waitErr := raw.Read(func(lfd uintptr) bool {
		fd, _, err = unix.Accept4(int(lfd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return err != unix.EAGAIN
	})
	if waitErr != nil {
		return -1, waitErr
	}
	return fd, err
}

// close stops accept and removes the socket. A second call waits for the first.
func (l *listener) close() {
	l.once.Do(func() {
		_ = l.file.Close()
		l.remove()
	})
}

// remove takes the socket away unless another daemon's has come in its place.
func (l *listener) remove() {
	var st unix.Stat_t
	if unix.Lstat(l.path, &st) == nil && st.Dev == l.node.Dev && st.Ino == l.node.Ino {
		_ = unix.Unlink(l.path)
	}
}
