package dmuser

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// busyFrom is how many requests in a row, without quietAfter between them, make a
// connection busy.
const busyFrom = 32

// errWaitEnded: nobody shall wait any more.
var errWaitEnded = errors.New("the connection is being ended")

// fuseWait is how the leader waits for the next request. On a busy connection it
// blocks in a read, which is the fastest, but takes a thread for as long as it
// lasts. On others it has itself woken by the watch, whose one thread does for all
// of them.
//
//	     busyFrom requests
//	watch ────────────────► blocking read
//	      ◄────────────────
//	     none for quietAfter: the file is made non-blocking, and
//	     a question wakes the reader, who notices
type fuseWait struct {
	fd, root int
	watch    *readWatch
	ready    chan struct{} // a request is there
	ended    chan struct{}

	used  atomic.Bool  // since the timer was set
	burst atomic.Int32 // requests since it was quiet
	timer *time.Timer  // runs unless it is quiet

	mu       sync.Mutex // for changes of how to wait
	blocking atomic.Bool

	expiring sync.Mutex // held by expire, and to end it
	stopped  bool
}

func newFuseWait(fd, root int) (*fuseWait, error) {
	w := &fuseWait{fd: fd, root: root, ready: make(chan struct{}, 1), ended: make(chan struct{})}
	err := unix.SetNonblock(fd, true)
	if err == nil {
		w.watch, err = watches.join()
	}
	if err != nil {
		return nil, fmt.Errorf("wait for requests: %w", err)
	}
	w.timer = time.AfterFunc(time.Hour, w.expire)
	w.timer.Stop()
	return w, nil
}

// read waits for a request and reads it into p.
func (w *fuseWait) read(p []byte) (int, error) {
	for {
		n, err := unix.Read(w.fd, p)
		if err != unix.EAGAIN {
			w.noteRequest()
			return n, err
		}
		if err := w.watch.once(w.fd, w.ready); err != nil {
			return 0, err
		}
		select {
		case <-w.ready:
		case <-w.ended:
			return 0, errWaitEnded
		}
	}
}

// noteRequest makes a busy connection a blocking one.
func (w *fuseWait) noteRequest() {
	if !w.used.Load() {
		w.used.Store(true)
	}
	switch w.burst.Add(1) {
	case 1:
		w.timer.Reset(quietAfter)
	case busyFrom:
		w.setBlocking(true)
		w.timer.Reset(quietAfter)
	}
}

// setBlocking reports whether it changed anything.
func (w *fuseWait) setBlocking(on bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.blocking.Load() == on || unix.SetNonblock(w.fd, !on) != nil {
		return false
	}
	w.blocking.Store(on)
	return true
}

func (w *fuseWait) expire() {
	w.expiring.Lock()
	defer w.expiring.Unlock()
	if w.stopped {
		return
	}
	if w.used.Swap(false) {
		w.timer.Reset(quietAfter)
		return
	}
	w.burst.Store(0)
	if w.setBlocking(false) {
		var fs unix.Statfs_t
		_ = unix.Fstatfs(w.root, &fs) // is answered by the leader, whom it wakes
	}
}

// end ends a wait for the watch, which learns nothing of the connection's end.
func (w *fuseWait) end() { close(w.ended) }

// stop returns when nobody asks anything any more.
func (w *fuseWait) stop() {
	w.timer.Stop()
	w.expiring.Lock()
	defer w.expiring.Unlock()
	w.stopped = true
}

// close follows the last read, and comes before fd is closed.
func (w *fuseWait) close() {
	w.timer.Stop()
	watches.leave(w.fd)
}
