package snapd

import (
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// gcPercent keeps the heap of a busy daemon small: with 4 MiB as the
// runtime's least heap at 100 percent, a collection begins at about 1 MiB.
const gcPercent = 25

// quiet notices that nothing has happened for a while, once, and that something
// happens again. While all is quiet it has no timer running.
type quiet struct {
	after time.Duration
	rest  func() // gives memory back
	wake  func() // undoes what rest has switched off

	active atomic.Int64 // things under way
	state  atomic.Uint32
	mu     sync.Mutex // orders rest and wake
	timer  *time.Timer
}

const (
	resting uint32 = iota // no timer
	waiting               // timer runs, nothing happened since it was set
	touched               // timer runs, something did
)

func newQuiet(after time.Duration, rest, wake func()) *quiet {
	q := &quiet{after: after, rest: rest, wake: wake}
	q.timer = time.AfterFunc(time.Hour, q.expire)
	q.timer.Stop()
	return q
}

// begin says that something is under way until end.
func (q *quiet) begin() {
	q.active.Add(1)
	q.touch()
}

func (q *quiet) end() {
	q.active.Add(-1)
	q.touch()
}

// touch costs one load when things are busy.
func (q *quiet) touch() {
	if q.state.Load() == touched || q.state.Swap(touched) != resting {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wake()
	q.timer.Reset(q.after)
}

func (q *quiet) expire() {
	if q.active.Load() > 0 || q.state.CompareAndSwap(touched, waiting) {
		q.timer.Reset(q.after)
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	// From here on a touch finds resting and waits for the mutex to wake up.
	if !q.state.CompareAndSwap(waiting, resting) {
		q.timer.Reset(q.after)
		return
	}
	q.rest()
}

func (q *quiet) stop() { q.timer.Stop() }

// restHeap gives the heap back and keeps the periodic collection from waking
// an idle process every two minutes. A memory limit still holds.
func restHeap() {
	debug.SetGCPercent(gcPercent)
	runtime.GC() // what lies in a sync.Pool survives one collection
	debug.FreeOSMemory()
	debug.SetGCPercent(-1)
}

func wakeHeap() { debug.SetGCPercent(gcPercent) }
