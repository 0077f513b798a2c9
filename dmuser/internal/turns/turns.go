// Package turns lets a few goroutines share one stream of requests: one of them,
// the leader, reads; it serves what is quickly done itself, and hands the lead
// to another before it does anything that takes long.
//
//	leader ── read ── small? ── serve ─┐         nobody else was woken
//	   ▲         │                     │
//	   │         └── large, or slow ── HandOver ── serve ── Reclaim ── leads, or ends
//	   └───────────────────────────────┘
//
// Waking another thread takes longer than a fast backend needs for 4 KiB, and
// copying a large reply takes longer than waking one. A timer takes the lead from
// a leader that serves for longer than it should, so that one slow request does
// not hold others back. While nothing is asked, one goroutine waits and no timer
// runs.
//
// Serving costs the system calls of the leader and next to nothing else, which
// is what the rest of this package is about: the timer is not set anew for each
// request, the clock is asked at every few, and the runtime has no reason to look
// after the leader.
package turns

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Large requests, in bytes, are served by several goroutines at a time.
	Large = 128 << 10
	// slowBackend is the time of a small request above which several
	// goroutines are worth waking for those too, on a machine that is not slow
	// itself.
	slowBackend = 50 * time.Microsecond
	// slowCalls is how many of the shortest system calls take as long as that
	// on a slow machine, where waking a thread takes longer as well.
	slowCalls = 256
	// slowRequest is how long a request may hold back the ones behind it, at
	// least, and twice that at most. Both double with every calmLooks at what is
	// served that have found nothing slow, up to longestWatch.
	//
	// With each look the leader lets the runtime's scheduler have one as well: from
	// a goroutine that it has not seen for 10 ms it takes the processor, and after
	// that it wakes a thread every 20 µs for a while.
	slowRequest  = time.Millisecond
	calmLooks    = 16
	longestWatch = 8 * time.Millisecond
	// sampleEvery of the small requests one is timed, unless they are slow.
	sampleEvery = 32
)

// epoch is what the clock is read against.
var epoch = time.Now()

func clock() int64 { return int64(time.Since(epoch)) }

// worthWaking is the time of a small request, in nanoseconds, above which a
// backend is slow.
var worthWaking = sync.OnceValue(func() int64 {
	const tries, calls = 8, 4
	least := int64(time.Second)
	for range tries {
		start := clock()
		for range calls {
			os.Getppid()
		}
		least = min(least, (clock()-start)/calls)
	}
	return max(int64(slowBackend), least*slowCalls)
})

// Turns is the state of one stream. None of its methods allocates.
type Turns struct {
	lead     func()
	last     func()
	relieved func() // may be nil

	// begun is the token of the last request that a leader began to serve.
	begun atomic.Uint32
	// inline is the token of the request that the leader serves without having
	// given up the lead, else 0. Whoever changes a token to 0 has the lead.
	inline atomic.Uint32

	watchdog *time.Timer
	watching atomic.Bool   // the timer is set, or about to be
	watched  atomic.Uint32 // what had begun when it looked last
	calm     atomic.Int32  // how often it has found nothing slow

	slow   int64         // worthWaking
	recent atomic.Int64  // nanoseconds that small requests took lately
	count  atomic.Uint32 // of small requests
	yield  atomic.Bool   // the next to begin shall

	mu     sync.Mutex
	limit  int  // goroutines at a time
	busy   int  // those that do not lead
	vacant bool // nobody leads: for the next one that is free
	ended  bool // nobody will lead any more
}

// New makes the turns of a stream. lead is run by each new leader, and returns
// when it does not lead any more; the first is started by the caller. last is
// called once, when the stream has ended and nobody serves any more. At most
// limit goroutines serve or lead at a time.
func New(limit int, lead, last func()) *Turns {
	t := &Turns{lead: lead, last: last, limit: limit, slow: worthWaking()}
	t.watchdog = time.AfterFunc(time.Hour, t.relieve)
	t.watchdog.Stop()
	return t
}

// OnRelief has f called, on a goroutine of its own, each time the lead has been
// taken from a leader. It comes before the first leader is started.
func (t *Turns) OnRelief(f func()) { t.relieved = f }

// DefaultLimit is two goroutines for each processor that may be used, but two at
// least and eight at most.
func DefaultLimit() int {
	return min(8, max(2, 2*min(runtime.GOMAXPROCS(0), runtime.NumCPU())))
}

// Slow tells whether small requests took long lately.
func (t *Turns) Slow() bool { return t.recent.Load() > t.slow }

// Sample is what is known when a small request begins to be served: nothing of
// most of them.
type Sample struct{ wall, cpu, sleeps int64 }

// unknownUsage looks like a thread that sleeps all the time.
func unknownUsage() (cpu, sleeps int64) { return 0, clock() }

// Start is called before the backend is asked for a small request, and Note after
// it with what Start gave.
func (t *Turns) Start() (s Sample) {
	if t.count.Add(1)%sampleEvery == 1 || t.Slow() {
		s.cpu, s.sleeps = usage()
		s.wall = clock()
	}
	return s
}

// Note tells that the backend has answered. The last four requests that were timed
// weigh most.
func (t *Turns) Note(s Sample) {
	if s == (Sample{}) {
		return
	}
	wall := clock() - s.wall
	cpu, sleeps := usage()
	t.note(took(wall, cpu-s.cpu, sleeps-s.sleeps))
}

// took is the time of a request. When the thread has not slept, what others had of
// the processor meanwhile does not count: on a machine that is busy it would look
// like a slow backend, and serving several requests at a time would make it worse.
// A goroutine that has changed threads has slept.
func took(wall, cpu, sleeps int64) int64 {
	if sleeps == 0 && cpu >= 0 {
		return min(wall, cpu)
	}
	return wall
}

func (t *Turns) note(took int64) {
	if took >= int64(slowRequest) {
		t.calm.Store(0)
	}
	old := t.recent.Load()
	t.recent.Store(old + (took-old)/4)
}

// Begin is called by the leader before it serves a request without giving up
// the lead. What it read with must be done with: the lead may be taken from it.
func (t *Turns) Begin() (token uint32) {
	if t.yield.Load() {
		t.yield.Store(false)
		runtime.Gosched()
	}
	token = max(1, t.begun.Load()+1) // nobody else begins
	t.begun.Store(token)
	t.inline.Store(token)
	if !t.watching.Load() && t.watching.CompareAndSwap(false, true) {
		t.watched.Store(token)
		t.watchdog.Reset(t.watch())
	}
	return token
}

// End ends what Begin began. True means that the caller leads.
func (t *Turns) End(token uint32) bool { return t.Kept(token) || t.Reclaim() }

// Kept is End for a leader that wants to know whether the lead has been taken from
// it. If it has, Reclaim must follow.
func (t *Turns) Kept(token uint32) bool { return t.inline.CompareAndSwap(token, 0) }

// watch is how long the timer is set for.
func (t *Turns) watch() time.Duration {
	return min(slowRequest<<min(t.calm.Load()/calmLooks, 10), longestWatch)
}

// relieve takes the lead from a leader that serves the same request as when it
// was called last, and goes on until it finds that none was begun since.
func (t *Turns) relieve() {
	token, begun := t.inline.Load(), t.begun.Load()
	seen := t.watched.Swap(begun) == begun
	switch {
	case seen && token == 0:
		t.watching.Store(false)
		// A leader that has begun just before that relies on the timer.
		if t.inline.Load() == 0 || !t.watching.CompareAndSwap(false, true) {
			return
		}
	case seen && token == begun:
		t.note(int64(slowRequest))
		if t.inline.CompareAndSwap(token, 0) {
			t.HandOver()
			if t.relieved != nil {
				go t.relieved() // it may take long
			}
		}
	default:
		t.calm.Add(1)
		t.yield.Store(true)
	}
	t.watchdog.Reset(t.watch())
}

// HandOver makes a worker of the leader, and a leader of a new goroutine unless
// there are enough. Reclaim must follow.
func (t *Turns) HandOver() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy++
	if t.busy < t.limit {
		go t.lead()
	} else {
		t.vacant = true
	}
}

// Widen lets n more goroutines serve, and has one lead if nobody does: all may be
// held by requests that take for ever.
func (t *Turns) Widen(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limit += n
	if t.vacant && t.busy < t.limit {
		t.vacant = false
		go t.lead()
	}
}

// Reclaim ends a worker's work. True means that the caller leads from now on.
func (t *Turns) Reclaim() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy--
	if t.vacant {
		t.vacant = false
		return true
	}
	t.finishIfLast()
	return false
}

// Finish is the last act of the last leader: the stream has ended. f is called
// under a lock that Unfinished takes as well.
func (t *Turns) Finish(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
	t.ended = true
	t.finishIfLast()
}

// Unfinished calls f if the stream has not ended, and tells whether it has not.
func (t *Turns) Unfinished(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended {
		f()
	}
	return !t.ended
}

func (t *Turns) finishIfLast() {
	if t.ended && t.busy == 0 {
		t.watchdog.Stop()
		t.last()
	}
}
