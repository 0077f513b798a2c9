package cow

import (
	"context"
	"sync"

	"cowbird/formats/cowfile"
)

// A pipeline encodes the data of ops and hands them on in order. Its encoders
// live as long as it does; run is called by one goroutine at a time.
type pipeline struct {
	newEncoder func() (*cowfile.Encoder, error)
	threads    int // goroutines that encode; 0: the caller does
	maxUnit    int
	spare      int // bytes that fill may use beside the unit
	workers    []*worker
}

// job is what goes through a pipeline.
type job struct {
	next func() (cowfile.Op, bool) // the ops, in order
	// keep returns what is stored for an op with data and sets its
	// compression, or returns false if the unit is to be encoded. May be nil;
	// else as fill.
	keep func(o *cowfile.Op, buf []byte) (stored []byte, ok bool, err error)
	// fill returns the unit of an op with data. It may use buf, which has
	// room for the largest unit and spare bytes. Called by any worker.
	fill func(o cowfile.Op, buf []byte) ([]byte, error)
	// add takes an op and what is stored for it, in the order of next.
	add func(o cowfile.Op, stored []byte) error
}

// worker is what one goroutine needs to encode.
type worker struct {
	enc *cowfile.Encoder
	buf []byte
}

func (p *pipeline) worker(i int) (*worker, error) {
	for len(p.workers) <= i {
		enc, err := p.newEncoder()
		if err != nil {
			return nil, err
		}
		p.workers = append(p.workers, &worker{enc, make([]byte, p.maxUnit+p.spare)})
	}
	return p.workers[i], nil
}

// encode returns what is stored for an op, valid until the next call.
func (w *worker) encode(j *job, o *cowfile.Op) ([]byte, error) {
	if o.Type != cowfile.OpReplace && o.Type != cowfile.OpXor {
		return nil, nil
	}
	if j.keep != nil {
		stored, ok, err := j.keep(o, w.buf)
		if o.DataLength = uint32(len(stored)); ok || err != nil {
			return stored, err
		}
	}
	unit, err := j.fill(*o, w.buf)
	if err != nil {
		return nil, err
	}
	stored, c, err := w.enc.Encode(unit)
	o.Compression, o.DataLength = c, uint32(len(stored))
	return stored, err
}

// part is a stretch of ops that one worker prepares.
type part struct {
	ops    []cowfile.Op
	stored []byte // data of the ops, one after the other
	err    error
	ready  chan struct{}
}

// A part has this many ops, or fewer if their units fill partBytes.
const (
	partOps   = 64
	partBytes = 1 << 20
)

func (j *job) nextPart() *part {
	p := &part{ready: make(chan struct{})}
	for n := 0; len(p.ops) < partOps && n < partBytes; {
		o, ok := j.next()
		if !ok {
			break
		}
		p.ops = append(p.ops, o)
		n += o.Unit()
	}
	return p
}

// run encodes and adds all ops. At most 5 parts a worker are in memory. When it
// returns, nobody uses what fill returned.
func (p *pipeline) run(ctx context.Context, j job) error {
	if p.threads == 0 {
		return p.inline(ctx, &j)
	}
	ctx, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	todo := make(chan *part)
	queue := make(chan *part, 4*p.threads)
	for i := range p.threads {
		w, err := p.worker(i)
		if err != nil {
			close(todo)
			return err
		}
		all.Go(func() { w.serve(&j, todo) })
	}
	all.Go(func() { feed(ctx, &j, todo, queue) })
	for part := range queue {
		<-part.ready
		if err := part.addTo(&j); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (p *pipeline) inline(ctx context.Context, j *job) error {
	w, err := p.worker(0)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		o, ok := j.next()
		if !ok {
			return nil
		}
		stored, err := w.encode(j, &o)
		if err != nil {
			return err
		}
		if err := j.add(o, stored); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// feed gives each part to the queue first, where its place is, and then to a
// worker.
func feed(ctx context.Context, j *job, todo, queue chan<- *part) {
	defer close(todo)
	defer close(queue)
	for p := j.nextPart(); len(p.ops) > 0; p = j.nextPart() {
		select {
		case queue <- p:
		case <-ctx.Done():
			return
		}
		select {
		case todo <- p:
		case <-ctx.Done():
			p.err = ctx.Err()
			close(p.ready)
			return
		}
	}
}

func (w *worker) serve(j *job, todo <-chan *part) {
	for p := range todo {
		for k := range p.ops {
			var stored []byte
			if stored, p.err = w.encode(j, &p.ops[k]); p.err != nil {
				break
			}
			p.stored = append(p.stored, stored...)
		}
		close(p.ready)
	}
}

func (p *part) addTo(j *job) error {
	if p.err != nil {
		return p.err
	}
	stored := p.stored
	for _, o := range p.ops {
		if err := j.add(o, stored[:o.DataLength]); err != nil {
			return err
		}
		stored = stored[o.DataLength:]
	}
	return nil
}

// appendUnits cuts n blocks from first into the largest units of at most
// largest blocks that fit, and appends an op for each.
func appendUnits(ops []cowfile.Op, first, n, largest uint32) []cowfile.Op {
	for n > 0 {
		u := largest
		for u > n {
			u /= 2
		}
		ops = append(ops, cowfile.Op{Type: cowfile.OpReplace, NewBlock: first, Factor: cowfile.FactorOf(u)})
		first, n = first+u, n-u
	}
	return ops
}
