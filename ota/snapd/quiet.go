package snapd

import (
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// gcPercent is the runtime's own: a busy daemon collects when its heap has
// grown to 4 MiB, which serving alone does not make it do.
const gcPercent = 100

// quiet notices that nothing has happened for a while, once, and that something
// happens again. While all is quiet it has no timer running.
type quiet struct {
	after time.Duration
	rest  func() // gives memory back
	wake  func() // undoes what rest has switched off
	busy  func() // is called now and then while things go on for longer than after
	crowd func() // is called when two things are under way at a time

	active atomic.Int64 // things under way
	state  atomic.Uint32
	timer  *time.Timer

	mu     sync.Mutex // orders rest and wake
	asleep bool
	spells int // of after in which something happened, since the last rest
}

// wakeAfter is how long after the end of a pause things may go on as at rest. The
// one that ends it is a request that somebody waits for.
const wakeAfter = 5 * time.Millisecond

const (
	resting uint32 = iota // no timer
	waiting               // timer runs, nothing happened since it was set
	touched               // timer runs, something did
)

func newQuiet(after time.Duration, rest, wake, busy, crowd func()) *quiet {
	q := &quiet{after: after, rest: rest, wake: wake, busy: busy, crowd: crowd, asleep: true}
	q.timer = time.AfterFunc(time.Hour, q.expire)
	q.timer.Stop()
	return q
}

// begin says that something is under way until end.
func (q *quiet) begin() {
	if q.active.Add(1) > 1 {
		q.crowd()
	}
	q.touch()
}

func (q *quiet) end() {
	q.active.Add(-1)
	q.touch()
}

// touch costs one load when things are busy, and never waits.
func (q *quiet) touch() {
	if q.state.Load() != touched && q.state.Swap(touched) == resting {
		q.timer.Reset(wakeAfter)
	}
}

func (q *quiet) expire() {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.asleep:
		q.asleep = false
		q.wake()
		q.timer.Reset(q.after)
	case q.active.Load() == 0 && q.state.CompareAndSwap(waiting, resting):
		// A touch from here on sets the timer, which has to wait for the mutex.
		q.rest()
		q.asleep, q.spells = true, 0
	default:
		if q.state.CompareAndSwap(touched, waiting) {
			q.spells++
		}
		if q.spells > 1 {
			q.busy()
		}
		q.timer.Reset(q.after)
	}
}

func (q *quiet) stop() { q.timer.Stop() }

// restHeapLimit is what the heap may hold at rest without being collected. A
// collection costs the runtime about 1 MiB of tables that it never gives back,
// so that it does not pay for less garbage than that. Serving makes none.
const restHeapLimit = 1280 << 10

// restHeap gives the heap back if that is worth it, and keeps the periodic
// collection from waking an idle process every two minutes. A memory limit
// still holds.
func restHeap() {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > restHeapLimit {
		debug.SetGCPercent(gcPercent)
		runtime.GC() // what lies in a sync.Pool survives one collection
		debug.FreeOSMemory()
	}
	debug.SetGCPercent(-1)
}

// restThreads is about what a daemon at rest needs: the runtime's two, the one that
// watches for requests, and one to run whatever comes.
const restThreads = 4

// dropThreads ends threads that a busy time has left behind: the runtime never does,
// but one whose goroutine ends while it is locked to it ends as well. With some
// carriers each device has one that waits, which cannot be told from the others.
func dropThreads(devices int) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil || len(tasks) <= restThreads+devices {
		return // not Linux, or not worth it
	}
	var held sync.WaitGroup
	release := make(chan struct{})
	for range len(tasks) - restThreads {
		held.Add(1)
		go func() {
			runtime.LockOSThread()
			held.Done()
			<-release
		}()
	}
	held.Wait()
	close(release)
}

func wakeHeap() { debug.SetGCPercent(gcPercent) }

// processors is how many the runtime may use. Each one that has run Go code
// keeps memory of its own, so that there is one at rest, and all of them only when
// two things are to be done at a time. Once requests have come for a while there is a
// second one that has nothing to do: the runtime takes its only processor from a
// thread that waits in a system call for 20 µs, and has another thread wait beside
// it, which would be two more of them woken for each request.
type processors struct {
	most int // 0: leave the runtime alone
	now  atomic.Int32
	mu   sync.Mutex
}

func (p *processors) widen()  { p.raise(p.most) }
func (p *processors) spare()  { p.raise(min(2, p.most)) }
func (p *processors) narrow() { p.set(1, func(now int) bool { return now > 1 }) }

func (p *processors) raise(n int) {
	if int(p.now.Load()) < n {
		p.set(n, func(now int) bool { return now < n })
	}
}

// set changes the number if the present one makes that right.
func (p *processors) set(n int, right func(now int) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.most > 1 && right(int(p.now.Load())) {
		runtime.GOMAXPROCS(n)
		p.now.Store(int32(n))
	}
}
