package generate

import (
	"io"
	"sync"
	"time"
)

// Step is a part of the work, as a word for users.
type Step string

const (
	Reading   Step = "reading"   // images, to find what is the same
	Naming    Step = "naming"    // items of a plan for others, by hashes of their blocks
	Comparing Step = "comparing" // making items; bytes are those of the new partitions
	Checking  Step = "checking"  // what copies read, installing, and reading what was installed
	Writing   Step = "writing"   // the payload, with its hashes
)

// Progress is how far a step has got, in bytes.
type Progress struct {
	Step        Step
	Done, Total int64
}

// beat is the longest time between two reports, also if nothing has ended meanwhile.
const beat = time.Second / 2

// progress reports a step at a time. It is safe for concurrent use. A nil one reports
// nothing.
type progress struct {
	tell func(Progress)
	quit chan struct{}
	wait sync.WaitGroup

	mu  sync.Mutex
	now Progress
}

// begin starts with a step; end must follow.
func begin(tell func(Progress), step Step, total int64) *progress {
	p := &progress{tell: tell, quit: make(chan struct{})}
	p.next(step, total)
	if tell != nil {
		p.wait.Go(p.beat)
	}
	return p
}

func (p *progress) beat() {
	t := time.NewTicker(beat)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.add(0)
		case <-p.quit:
			return
		}
	}
}

// end waits until the last report has been made.
func (p *progress) end() {
	close(p.quit)
	p.wait.Wait()
}

func (p *progress) next(step Step, total int64) { p.set(Progress{step, 0, total}) }

func (p *progress) set(now Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = now
	p.report()
}

func (p *progress) add(n int64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.Done += n
	p.report()
}

func (p *progress) report() {
	if p.tell != nil {
		p.tell(p.now)
	}
}

// installed is for what tells how much of something has been done.
func (p *progress) installed() func(done, total int64) {
	grown := p.grown()
	return func(done, _ int64) { grown(done) }
}

// grown adds by how much a number has grown. Numbers may come out of order.
func (p *progress) grown() func(done int64) {
	var mu sync.Mutex
	last := int64(0)
	return func(done int64) {
		mu.Lock()
		defer mu.Unlock()
		if done > last {
			p.add(done - last)
			last = done
		}
	}
}

// counted is a reader whose bytes are progress.
type counted struct {
	io.Reader
	p *progress
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.p.add(int64(n))
	return n, err
}
