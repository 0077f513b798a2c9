package cow

import (
	"context"
	"sync"
	"time"
)

// Status is the state of a snapshot in the words of Android's control protocol.
type Status string

// The states of a snapshot.
const (
	StatusSnapshot Status = "snapshot"                // not being merged
	StatusMerging  Status = "snapshot-merge"          // a merge is running
	StatusComplete Status = "snapshot-merge-complete" // the base is the target
	StatusFailed   Status = "snapshot-merge-failed"   // still served
)

// Progress is how far a merge is.
type Progress struct {
	Status       Status `json:"status"`
	MergedOps    int    `json:"merged_ops"`
	TotalOps     int    `json:"total_ops"`
	OrderedOps   int    `json:"ordered_ops"`
	BytesWritten int64  `json:"bytes_written"` // of the blocks that the ops cover
	BytesTotal   int64  `json:"bytes_total"`
	Paused       bool   `json:"paused"`
	// Left is how long the rest takes at the rate of this merge so far; 0
	// when that is not known.
	Left time.Duration `json:"left_ns"`
	Err  error         `json:"-"` // of the last merge, if it failed
}

// Progress tells how far the merge is.
func (s *Snapshot) Progress() Progress {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p := Progress{
		Status: StatusSnapshot, MergedOps: s.merged, TotalOps: s.file.NumOps(), OrderedOps: s.file.OrderedOps(),
		BytesWritten: s.bytes.written.Load(), BytesTotal: s.bytes.total.Load(),
	}
	running, paused, err := s.merge.state()
	p.Paused = paused
	if running && !paused {
		p.Left = s.merge.left(p.BytesWritten, p.BytesTotal)
	}
	switch {
	case s.complete:
		p.Status = StatusComplete
	case running:
		p.Status = StatusMerging
	case err != nil:
		p.Status, p.Err = StatusFailed, err
	}
	return p
}

// Pause stops the merge after the batch that is under way, until Resume. A
// merge that begins later waits too.
func (s *Snapshot) Pause() { s.merge.pause(true) }

// Resume lets a paused merge go on.
func (s *Snapshot) Resume() { s.merge.pause(false) }

// mergeControl is what other goroutines may know of a merge and do to it.
type mergeControl struct {
	mu      sync.Mutex
	running bool
	paused  bool
	resumed chan struct{} // closed and renewed by each Resume
	pausing chan struct{} // closed by Pause, renewed by Resume
	err     error

	began     time.Time // the merge, or its last resumption
	beganWith int64     // bytes that were written then
}

func (c *mergeControl) init() { c.resumed, c.pausing = make(chan struct{}), make(chan struct{}) }

// interrupt is closed while the merge is paused.
func (c *mergeControl) interrupt() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pausing
}

// begin notes that a merge begins with so many bytes written, unless one is
// running.
func (c *mergeControl) begin(written int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running {
		return false
	}
	c.running, c.err = true, nil
	c.began, c.beganWith = time.Now(), written
	return true
}

// goOn notes that a merge that was paused goes on.
func (c *mergeControl) goOn(written int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.began, c.beganWith = time.Now(), written
}

// left is how long writing the rest of total bytes will take.
func (c *mergeControl) left(written, total int64) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if done := written - c.beganWith; done > 0 {
		return time.Duration(float64(total-written) / float64(done) * float64(time.Since(c.began)))
	}
	return 0
}

func (c *mergeControl) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = false
	if err != context.Canceled && err != context.DeadlineExceeded {
		c.err = err
	}
}

func (c *mergeControl) state() (running, paused bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running, c.paused, c.err
}

func (c *mergeControl) pause(p bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.paused == p:
		return
	case p:
		close(c.pausing)
	default:
		close(c.resumed)
		c.resumed, c.pausing = make(chan struct{}), make(chan struct{})
	}
	c.paused = p
}

// mayProceed tells whether the merge is neither paused nor cancelled.
func (c *mergeControl) mayProceed(ctx context.Context) bool {
	_, paused, _ := c.state()
	return !paused && ctx.Err() == nil
}

// proceed waits while the merge is paused.
func (c *mergeControl) proceed(ctx context.Context) error {
	for {
		c.mu.Lock()
		paused, resumed := c.paused, c.resumed
		c.mu.Unlock()
		if !paused || ctx.Err() != nil {
			return ctx.Err()
		}
		select {
		case <-resumed:
		case <-ctx.Done():
		}
	}
}

// throttle keeps a merge at a byte rate.
type throttle struct {
	rate      int64 // bytes a second, 0 = none
	interrupt func() <-chan struct{}
	debt      time.Duration
	last      time.Time
	slept     time.Duration // in all
}

// limit shortens a batch of n blocks to what the rate allows in about a second,
// so that a slow merge still stops soon when it is told to.
func (t *throttle) limit(n int) int {
	if t.rate <= 0 {
		return n
	}
	return int(min(int64(n), max(1, t.rate/blockSize)))
}

// wait sleeps until n bytes may be written. It returns early when ctx ends or
// the merge is paused: the batch is to be finished then.
func (t *throttle) wait(ctx context.Context, n int) {
	if t.rate <= 0 {
		return
	}
	now := time.Now()
	if !t.last.IsZero() {
		t.debt = max(0, t.debt-now.Sub(t.last))
	}
	t.last = now
	t.debt += time.Duration(float64(n) / float64(t.rate) * float64(time.Second))
	select {
	case <-time.After(t.debt):
	case <-ctx.Done():
	case <-t.interrupt():
	}
	t.slept += time.Since(now)
}
