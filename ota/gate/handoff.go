package gate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHandOff: what came over a hand-over socket is not what one process hands to
// another there.
var ErrHandOff = errors.New("bad hand-over of a socket")

const (
	// handOffCode is the byte that comes with the descriptor, and our ack.
	handOffCode = 'a'
	// handOffPatience bounds what either side waits for the other, once they
	// are connected.
	handOffPatience = 10 * time.Second
	// refusedPause and refusedMost are between attempts to reach a process that
	// has its socket, but does not listen yet: the first, and the longest.
	refusedPause = 20 * time.Millisecond
	refusedMost  = time.Second
)

// Inherit makes a Listener of a Unix stream socket that this process was started
// with. It belongs to the Listener from then on, but its path to whoever made it:
// Close lets that be.
func Inherit(fd int) (*Listener, error) {
	if err := expectSocket(fd, unix.SOCK_STREAM); err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, fmt.Errorf("listen on descriptor %d: %w", fd, err)
	}
	path := "a socket from elsewhere"
	if name, err := unix.Getsockname(fd); err == nil {
		if u, ok := name.(*unix.SockaddrUnix); ok {
			path = u.Name
		}
	}
	return &Listener{file: os.NewFile(uintptr(fd), path), path: path, foreign: true}, nil
}

// Path is where clients find the socket.
func (l *Listener) Path() string { return l.path }

// expectSocket fails unless fd is a Unix socket of that type.
func expectSocket(fd, kind int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("%w: expected descriptor %d to be a socket: %w", ErrHandOff, fd, err)
	}
	found, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || domain != unix.AF_UNIX || found != kind {
		return fmt.Errorf("%w: expected descriptor %d to be a Unix socket of type %d, found domain %d, type %d", ErrHandOff, fd, kind, domain, found)
	}
	return nil
}

// HandOver gives the socket server to the process that connects to proxy next, a
// Unix seqpacket socket that is bound already, and waits until that one has it.
// ready is called once proxy can be connected to. Both stay the caller's.
func HandOver(ctx context.Context, proxy, server int, ready func()) error {
	if err := errors.Join(expectSocket(proxy, unix.SOCK_SEQPACKET), expectSocket(server, unix.SOCK_STREAM)); err != nil {
		return err
	}
	// A copy, since closing it is what interrupts Accept.
	dup, err := unix.FcntlInt(uintptr(proxy), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	if err := errors.Join(unix.SetNonblock(dup, true), unix.Listen(dup, 1)); err != nil {
		_ = unix.Close(dup)
		return fmt.Errorf("listen for a process to hand over to: %w", err)
	}
	l := &Listener{file: os.NewFile(uintptr(dup), "hand-over socket"), foreign: true}
	defer l.Close()
	defer context.AfterFunc(ctx, l.Close)()
	ready()
	fd, err := l.Accept()
	if err != nil {
		return fmt.Errorf("wait for a process to hand over to: %w", errors.Join(err, context.Cause(ctx)))
	}
	conn := os.NewFile(uintptr(fd), "hand-over connection")
	defer conn.Close()
	if _, err := Admit(fd, NoGroup); err != nil {
		return err
	}
	return give(ctx, conn, server)
}

// give sends the descriptor and waits for the ack, of which only that there is one
// matters.
func give(ctx context.Context, conn *os.File, server int) error {
	defer boundTo(ctx, conn)()
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendmsg(int(fd), []byte{handOffCode}, unix.UnixRights(server), nil, unix.MSG_NOSIGNAL)
		return sent != unix.EAGAIN
	})
	if err := errors.Join(err, sent); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	if _, err := conn.Read(make([]byte, 64)); err != nil {
		return fmt.Errorf("%w: expected the other process to say that it has the socket: %w", ErrHandOff, err)
	}
	return nil
}

// boundTo has reads and writes of conn end with ctx, or after handOffPatience. The
// function that it returns must be called.
func boundTo(ctx context.Context, conn *os.File) (release func()) {
	_ = conn.SetDeadline(time.Now().Add(handOffPatience))
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// Receive waits, as long as ctx wants, until a process can be reached at path that
// hands over a socket ([HandOver]), and takes it. While there is nothing at path the
// caller costs nothing but a parked goroutine.
func Receive(ctx context.Context, path string) (*Listener, error) {
	conn, err := reach(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("wait for %s: %w", path, err)
	}
	defer conn.Close()
	fd, err := take(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("socket from %s: %w", path, err)
	}
	l, err := Inherit(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("socket from %s: %w", path, err)
	}
	if _, err := conn.Write([]byte{handOffCode}); err != nil {
		l.Close()
		return nil, fmt.Errorf("tell %s that its socket is here: %w", path, err)
	}
	return l, nil
}

// take receives one descriptor. Descriptors too many are closed.
func take(ctx context.Context, conn *os.File) (fd int, err error) {
	defer boundTo(ctx, conn)()
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	var n, control int
	body, oob := make([]byte, 16), make([]byte, unix.CmsgSpace(4*4))
	var received error
	err = raw.Read(func(s uintptr) bool {
		n, control, _, _, received = unix.Recvmsg(int(s), body, oob, unix.MSG_CMSG_CLOEXEC)
		return received != unix.EAGAIN
	})
	if err := errors.Join(err, received); err != nil {
		return -1, err
	}
	fds := descriptors(oob[:control])
	if n != 1 || body[0] != handOffCode || len(fds) != 1 {
		for _, other := range fds {
			_ = unix.Close(other)
		}
		return -1, fmt.Errorf("%w: expected %q and one descriptor, found %q and %d", ErrHandOff, handOffCode, body[:max(n, 0)], len(fds))
	}
	return fds[0], nil
}

func descriptors(oob []byte) (all []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err == nil {
			all = append(all, fds...)
		}
	}
	return all
}

// reach connects to path, which need not be there yet.
func reach(ctx context.Context, path string) (*os.File, error) {
	for pause := refusedPause; ; {
		conn, err := connectPacket(path)
		switch {
		case err == nil:
			return conn, nil
		case errors.Is(err, unix.ENOENT):
			if err := appears(ctx, path); err != nil {
				return nil, err
			}
			pause = refusedPause
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-time.After(pause):
			}
			pause = min(2*pause, refusedMost)
		default:
			return nil, err
		}
	}
}

func connectPacket(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// appears waits until something has been made on the way to path.
func appears(ctx context.Context, path string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch for a file: %w", err)
	}
	watch := os.NewFile(uintptr(fd), "inotify")
	defer watch.Close()
	missing, err := watchAbove(fd, path)
	if err != nil {
		return fmt.Errorf("watch for %s: %w", path, err)
	}
	if _, err := os.Stat(missing); err == nil { // made before the watch was
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = watch.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := watch.Read(make([]byte, unix.SizeofInotifyEvent+unix.NAME_MAX+1)); err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return nil
}

// watchAbove watches the lowest folder on the way to path that is there, and says
// what is missing in it.
func watchAbove(fd int, path string) (missing string, err error) {
	for missing = path; ; missing = filepath.Dir(missing) {
		dir := filepath.Dir(missing)
		_, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR)
		if err == nil || dir == missing || !errors.Is(err, unix.ENOENT) {
			return missing, err
		}
	}
}

// InitSocket is the descriptor of the socket that Android's init has made for the
// service and its name, as the environment tells.
func InitSocket(name string, getenv func(string) string) (fd int, ok bool) {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, name)
	value := getenv("ANDROID_SOCKET_" + clean)
	for _, digit := range value {
		if digit < '0' || digit > '9' || fd > 1<<20 {
			return 0, false
		}
		fd = fd*10 + int(digit-'0')
	}
	return fd, value != ""
}
