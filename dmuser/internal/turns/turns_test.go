package turns

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// stream hands out requests, each a time that it takes to serve.
type stream struct {
	t       *Turns
	next    chan time.Duration
	large   bool
	leading atomic.Int32
	serving atomic.Int32
	most    atomic.Int32
	served  atomic.Int32
	over    chan struct{}
}

func newStream(limit int, large bool) *stream {
	s := &stream{next: make(chan time.Duration), large: large, over: make(chan struct{})}
	s.t = New(limit, s.lead, func() { close(s.over) })
	go s.lead()
	return s
}

func (s *stream) lead() {
	for {
		if s.leading.Add(1) != 1 {
			panic("two leaders")
		}
		d, ok := <-s.next
		s.leading.Add(-1)
		if !ok {
			s.t.Finish(func() {})
			return
		}
		if !s.serveOne(d) {
			return
		}
	}
}

func (s *stream) serveOne(d time.Duration) bool {
	if s.large {
		s.t.HandOver()
		s.serve(d)
		return s.t.Reclaim()
	}
	token := s.t.Begin()
	s.serve(d)
	return s.t.End(token)
}

func (s *stream) serve(d time.Duration) {
	n := s.serving.Add(1)
	for most := s.most.Load(); n > most && !s.most.CompareAndSwap(most, n); most = s.most.Load() {
	}
	time.Sleep(d)
	s.serving.Add(-1)
	s.served.Add(1)
}

func (s *stream) finish() {
	close(s.next)
	<-s.over
}

// Requests are served as many at a time as there may be, and no more; there is
// one leader; the end waits for all.
func TestLimit(t *testing.T) {
	for _, large := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := newStream(3, large)
			start := time.Now()
			for range 30 {
				s.next <- time.Second
			}
			s.finish()
			if most, served := s.most.Load(), s.served.Load(); most != 3 || served != 30 {
				t.Errorf("expected 30 served and 3 at a time, found %d and %d", served, most)
			}
			if took := time.Since(start); took < 10*time.Second || took > 11*time.Second {
				t.Errorf("expected 10 seconds, found %v", took)
			}
		})
	}
}

// One slow request holds those behind it back for a millisecond or two, and fast
// ones are served without another goroutine. Who has the lead taken from it is told.
func TestSlowOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream(2, false)
		var reliefs atomic.Int32
		s.t.OnRelief(func() { reliefs.Add(1) })
		for range 10 {
			s.next <- time.Microsecond
		}
		s.waitFor(t, time.Hour, 2*slowRequest)
		s.finish()
		if n := reliefs.Load(); n != 1 {
			t.Errorf("expected the lead taken once, found %d times", n)
		}
	})
}

// waitFor has a request that takes d, and wants the next to wait for so long.
func (s *stream) waitFor(t *testing.T, d, longest time.Duration) {
	t.Helper()
	s.next <- d
	start := time.Now()
	s.next <- 0
	if took := time.Since(start); took > longest {
		t.Errorf("expected a wait of up to %v, found %v", longest, took)
	}
}

// After many fast ones a slow one is found later, but those that follow it are not.
func TestCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream(4, false)
		for range 1000 {
			s.next <- slowRequest / 2
		}
		if w := s.t.watch(); w != longestWatch {
			t.Errorf("expected a look every %v, found %v", longestWatch, w)
		}
		s.waitFor(t, time.Hour, 2*longestWatch)
		s.waitFor(t, time.Hour, 2*slowRequest)
		s.finish()
	})
}

// While the leader waits no timer runs, and it does again with the next request.
func TestNoTimerAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream(2, false)
		for range 5 {
			s.next <- time.Microsecond
			time.Sleep(2 * longestWatch)
			if s.t.watching.Load() {
				t.Fatal("expected no timer, found one")
			}
		}
		s.waitFor(t, time.Hour, 2*slowRequest)
		s.finish()
	})
}

func TestFastOnesInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream(8, false)
		for range 1000 {
			s.next <- slowRequest / 2
		}
		s.finish()
		if most := s.most.Load(); most != 1 {
			t.Errorf("expected one at a time, found %d", most)
		}
	})
}

func TestNote(t *testing.T) {
	s := New(1, nil, nil)
	if s.Slow() {
		t.Error("expected nothing known yet")
	}
	for range 4 {
		s.note(s.slow * 10)
	}
	if !s.Slow() {
		t.Error("expected it to be slow")
	}
	for range 2 {
		if s.Start() == (Sample{}) {
			t.Error("expected slow ones to be timed, found that one is not")
		}
	}
	for range 40 {
		s.note(int64(time.Microsecond))
	}
	if s.Slow() {
		t.Error("expected it to be fast again")
	}
}

// A few requests are timed, the first of them too.
func TestSample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(1, nil, nil)
		timed := 0
		for i := range 10 * sampleEvery {
			began := s.Start()
			if i == 0 && began == (Sample{}) {
				t.Error("expected the first to be timed, found that it is not")
			}
			if began != (Sample{}) {
				timed++
			}
			s.Note(began)
		}
		if timed != 10 {
			t.Errorf("expected 10 to be timed, found %d", timed)
		}
	})
}

// A thread that had to wait for a processor has not waited for the backend.
func TestTook(t *testing.T) {
	for _, c := range []struct{ wall, cpu, sleeps, want int64 }{
		{100, 100, 0, 100}, {100, 7, 0, 7}, {100, 7, 1, 100}, {100, 120, 0, 100}, {100, -5, 0, 100}, {100, 0, -3, 100},
	} {
		if got := took(c.wall, c.cpu, c.sleeps); got != c.want {
			t.Errorf("%+v: found %d", c, got)
		}
	}
}

// A backend that sleeps is slow, however little it computes.
func TestUsage(t *testing.T) {
	s := New(1, nil, nil)
	for range 4 * sampleEvery {
		began := s.Start()
		time.Sleep(time.Duration(s.slow) * 4)
		s.Note(began)
	}
	if !s.Slow() {
		t.Errorf("expected it to be slow, found %v", time.Duration(s.recent.Load()))
	}
}

// What is slow is a matter of the machine.
func TestWorthWaking(t *testing.T) {
	if w := worthWaking(); w < int64(slowBackend) || w > int64(time.Second) {
		t.Errorf("expected %v or more, found %v", slowBackend, time.Duration(w))
	}
}

func TestUnfinished(t *testing.T) {
	var last sync.WaitGroup
	last.Add(1)
	s := New(1, nil, last.Done)
	if !s.Unfinished(func() {}) {
		t.Error("expected it to go on")
	}
	s.Finish(func() {})
	last.Wait()
	if s.Unfinished(func() { t.Error("expected no call") }) {
		t.Error("expected it to have ended")
	}
}

// Who may serve is held, and one more is let in.
func TestWiden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream(2, true)
		s.next <- time.Hour
		s.next <- time.Hour
		synctest.Wait()
		if n := s.leading.Load(); n != 0 {
			t.Fatalf("expected no leader, found %d", n)
		}
		s.t.Widen(1)
		synctest.Wait()
		if n := s.leading.Load(); n != 1 {
			t.Fatalf("expected a leader, found %d", n)
		}
		s.t.Widen(1)
		synctest.Wait()
		if n := s.leading.Load(); n != 1 {
			t.Errorf("expected one leader still, found %d", n)
		}
		close(s.next)
		<-s.over
		if n := s.served.Load(); n != 2 {
			t.Errorf("expected 2 served, found %d", n)
		}
	})
}
