package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// noteFile is where an installation says how far it is, for those who watch from other
// processes. It goes with the power. Tests have one of their own.
var noteFile = "/run/cowbird/install.json"

const (
	// noteEvery is the least time between two notes.
	noteEvery = time.Second
	// noteStale is when an installation that has said nothing counts as killed.
	noteStale = time.Minute
)

// pace is how far something is, and how fast. Its methods are safe for concurrent use.
type pace struct {
	mu          sync.Mutex
	began       time.Time
	first       int64 // bytes that were there when it began
	done, total int64
}

func (p *pace) update(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.IsZero() {
		p.began, p.first = time.Now(), done
	}
	p.done, p.total = done, total
}

// report is what a pace comes to.
type report struct {
	Done        int64 `json:"done"` // bytes
	Total       int64 `json:"total"`
	SecondsLeft int64 `json:"seconds_left"` // at the rate so far; 0: not known
}

func (p *pace) now() report {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := report{Done: p.done, Total: p.total}
	if p.done > p.first {
		n.SecondsLeft = int64(time.Since(p.began).Seconds() * float64(p.total-p.done) / float64(p.done-p.first))
	}
	return n
}

// show puts a report into an event.
func (e *event) show(n report) {
	if n.Total <= 0 {
		return
	}
	e.Written, e.Total, e.SecondsLeft = n.Done, n.Total, n.SecondsLeft
	e.Percent = float64(e.Written*1000/e.Total) / 10
}

// notes writes a pace down now and then. Where that cannot be done nobody is told.
type notes struct {
	pace pace
	mu   sync.Mutex
	last time.Time
}

func (n *notes) update(done, total int64) {
	n.pace.update(done, total)
	n.mu.Lock()
	defer n.mu.Unlock()
	if time.Since(n.last) < noteEvery {
		return
	}
	n.last = time.Now()
	b, err := json.Marshal(n.pace.now())
	if err == nil {
		err = os.MkdirAll(filepath.Dir(noteFile), 0o755)
	}
	if err == nil && os.WriteFile(noteFile+".new", b, 0o644) == nil {
		_ = os.Rename(noteFile+".new", noteFile)
	}
}

func (n *notes) end() { _ = os.Remove(noteFile) }

// readNote is what the installation that goes on has noted, if it is not too old.
func readNote() (n report) {
	st, err := os.Stat(noteFile)
	if err != nil || time.Since(st.ModTime()) > noteStale {
		return report{}
	}
	b, err := os.ReadFile(noteFile)
	if err != nil || json.Unmarshal(b, &n) != nil {
		return report{}
	}
	return n
}
