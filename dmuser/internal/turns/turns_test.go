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

// One slow request holds those behind it back for a millisecond, and fast ones
// are served without another goroutine.
func TestSlowOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream(2, false)
		for range 10 {
			s.next <- time.Microsecond
		}
		start := time.Now()
		s.next <- time.Hour
		s.next <- 0
		if took := time.Since(start); took > 2*slowRequest {
			t.Errorf("expected a wait of %v, found %v", slowRequest, took)
		}
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
		s.Note(time.Millisecond)
	}
	if !s.Slow() {
		t.Error("expected it to be slow")
	}
	for range 40 {
		s.Note(time.Microsecond)
	}
	if s.Slow() {
		t.Error("expected it to be fast again")
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
