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
// copying a large reply takes longer than waking one. A one-shot timer takes the
// lead from a leader that serves for longer than a millisecond, so that one slow
// request does not hold others back. While nothing is asked, one goroutine waits
// and no timer runs.
package turns

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Large requests, in bytes, are served by several goroutines at a time.
	Large = 128 << 10
	// slowBackend is the time of a small request above which several
	// goroutines are worth waking for those too.
	slowBackend = 50 * time.Microsecond
	// slowRequest is how long a request may hold back the ones behind it.
	slowRequest = time.Millisecond
)

// Turns is the state of one stream. None of its methods allocates.
type Turns struct {
	lead func()
	last func()

	// token is the leader's own.
	token uint32
	// inline is the token of the request that the leader serves without having
	// given up the lead, else 0. Whoever changes a token to 0 has the lead.
	inline   atomic.Uint32
	watchdog *time.Timer
	recent   atomic.Int64 // nanoseconds that small requests took lately

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
	t := &Turns{lead: lead, last: last, limit: limit}
	t.watchdog = time.AfterFunc(time.Hour, t.relieve)
	t.watchdog.Stop()
	return t
}

// DefaultLimit is two goroutines a processor, but two at least and eight at
// most.
func DefaultLimit() int { return min(8, max(2, 2*runtime.GOMAXPROCS(0))) }

// Slow tells whether small requests took long lately.
func (t *Turns) Slow() bool { return t.recent.Load() > int64(slowBackend) }

// Note tells what a small request took. The last four weigh most.
func (t *Turns) Note(d time.Duration) {
	old := t.recent.Load()
	t.recent.Store(old + (int64(d)-old)/4)
}

// Begin is called by the leader before it serves a request without giving up
// the lead. What it read with must be done with: the lead may be taken from it.
func (t *Turns) Begin() (token uint32) {
	t.token++
	if t.token == 0 {
		t.token++
	}
	token = t.token
	t.inline.Store(token)
	t.watchdog.Reset(slowRequest)
	return token
}

// End ends what Begin began. True means that the caller leads.
func (t *Turns) End(token uint32) bool {
	return t.inline.CompareAndSwap(token, 0) || t.Reclaim()
}

// relieve takes the lead from a leader that is busy for too long. It may come
// early for a later request than the one it was meant for, which does no harm.
func (t *Turns) relieve() {
	token := t.inline.Load()
	if token != 0 && t.inline.CompareAndSwap(token, 0) {
		t.HandOver()
	}
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
