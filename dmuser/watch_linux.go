package dmuser

import (
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// watches is the process's readWatch, which is there as long as somebody has
// joined it.
var watches watchUsers

// A readWatch is one thread that waits for many files to become readable. The
// runtime's own poller would do but for one thing: it cannot be told to leave a
// file alone, and would wake up for each request of a connection that is busy.
type readWatch struct {
	epoll int
	end   int // an eventfd

	mu      sync.Mutex
	waiting map[int]chan<- struct{} // by descriptor
}

type watchUsers struct {
	mu    sync.Mutex
	users int
	watch *readWatch
}

func (u *watchUsers) join() (w *readWatch, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.users == 0 {
		if u.watch, err = newReadWatch(); err != nil {
			return nil, err
		}
		go u.watch.run()
	}
	u.users++
	return u.watch, nil
}

// leave forgets a descriptor, and ends the watch with the last of them.
func (u *watchUsers) leave(fd int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.watch.forget(fd)
	if u.users--; u.users == 0 {
		one := [8]byte{1}
		_, _ = unix.Write(u.watch.end, one[:])
		u.watch = nil
	}
}

func newReadWatch() (*readWatch, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	end, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, end, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(end)})
	}
	if err != nil {
		_ = unix.Close(end)
		_ = unix.Close(epoll)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &readWatch{epoll: epoll, end: end, waiting: map[int]chan<- struct{}{}}, nil
}

// once has ready, which has room for one, sent to when fd can be read. Until it is
// asked again it leaves the file alone.
func (w *readWatch) once(fd int, ready chan<- struct{}) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	how := unix.EPOLL_CTL_MOD
	if w.waiting[fd] == nil {
		how = unix.EPOLL_CTL_ADD
	}
	w.waiting[fd] = ready
	err := unix.EpollCtl(w.epoll, how, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(fd)})
	if err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// forget may come for a descriptor that is another file by now.
func (w *readWatch) forget(fd int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiting, fd)
	_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, fd, nil)
}

func (w *readWatch) run() {
	defer unix.Close(w.end)
	defer unix.Close(w.epoll)
	events := make([]unix.EpollEvent, 8)
	for {
		n, err := unix.EpollWait(w.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("epoll_wait: %v", err)) // no cause but a wrong descriptor
		}
		for _, e := range events[:max(n, 0)] {
			if int(e.Fd) == w.end {
				return
			}
			w.tell(int(e.Fd))
		}
		// Whoever was told goes on with this thread, which has a processor.
		runtime.Gosched()
	}
}

func (w *readWatch) tell(fd int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case w.waiting[fd] <- struct{}{}: // a nil channel takes nothing
	default:
	}
}
