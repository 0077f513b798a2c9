package dmuser

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/internal/turns"
	"cowbird/dmuser/internal/ublkctl"
)

// leastWorkers is how many reads of a device's backend there may be at a time,
// however few processors there are: storage wants several.
const leastWorkers = 4

// ublkWork is what the workers of a device have to do. They come when there is
// work, and go when there is none.
type ublkWork struct {
	running atomic.Int32 // queues
	worker  func()

	mu          sync.Mutex
	jobs        []ublkJob // a ring
	first, have int
	busy, limit int    // workers
	last        func() // once there are no queues: to be called when no worker is left
}

func (w *ublkWork) init(jobs, queues int) {
	w.running.Store(int32(queues))
	w.jobs = make([]ublkJob, jobs)
	w.limit = max(leastWorkers, turns.DefaultLimit())
	w.worker = w.run
}

// add never blocks: there are as many places as tags.
func (w *ublkWork) add(j ublkJob) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jobs[(w.first+w.have)%len(w.jobs)] = j
	w.have++
	if w.busy < w.limit {
		w.busy++
		go w.worker()
	}
}

func (w *ublkWork) run() {
	for {
		j, ok := w.take()
		if !ok {
			return
		}
		j.q.finished(ublkResult{tag: j.tag, turn: j.turn, res: j.q.d.answer(&j)})
	}
}

// take gives the next job, or ends a worker.
func (w *ublkWork) take() (j ublkJob, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.have == 0 {
		w.busy--
		w.finishIfLast()
		return j, false
	}
	j = w.jobs[w.first]
	w.first = (w.first + 1) % len(w.jobs)
	w.have--
	return j, true
}

// drop forgets what no worker has begun.
func (w *ublkWork) drop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.have = 0
}

// finish calls last when no worker is left.
func (w *ublkWork) finish(last func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = last
	w.finishIfLast()
}

func (w *ublkWork) finishIfLast() {
	if w.last != nil && w.busy == 0 {
		w.last()
		w.last = nil
	}
}

// answer reads the backend for a job and gives the request's outcome.
func (d *ublkDev) answer(j *ublkJob) int32 {
	if d.mode == ublkCopy {
		if errno := fill(d.backend, j.q.buffer(j.tag)[:j.n], j.off); errno != 0 {
			return -int32(errno)
		}
		return j.n
	}
	buf := d.carrier.buffers.getFor(int(j.n), d.spare)
	defer d.carrier.buffers.put(buf)
	data := buf.data()[:j.n]
	errno := fill(d.backend, data, j.off)
	if errno == 0 {
		errno = d.deliver(j, data)
	}
	if errno != 0 {
		return -int32(errno)
	}
	return j.n
}

// deliver writes the data of a request to the character device.
func (d *ublkDev) deliver(j *ublkJob, data []byte) unix.Errno {
	for at := ublkctl.CopyOffset(j.q.id, j.tag); len(data) > 0; {
		n, err := unix.Pwrite(d.char, data, at)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return unix.EIO // the request is not ours any more
		case n == 0:
			return unix.EIO
		default:
			at += int64(n)
			data = data[n:]
		}
	}
	return 0
}
