package cow

import (
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// queue is a merge's pipeline and the memory for it. A planner cuts the merge
// order into batches and loads, fillers read and decode the loads, and the
// merger writes and commits them in the planned order.
//
// That blocks are read long before earlier ones are written is safe: no op
// reads a block that an earlier op, or another op of its batch, writes.
type queue struct {
	mem   []byte      // one mapping for everything
	zeros []byte      // as many as fit in a load; never touched, so that they cost nothing
	sets  [2]blockSet // the planner's
	pace  pace
	lists chan *batch // batches that nobody owns
	free  chan *load  // loads that nobody owns

	work    chan *load     // from the planner to the fillers
	full    chan *load     // from the planner to the merger, who waits until they are filled
	flush   chan extent    // from the merger to the flusher: written to the base
	commit  chan *batch    // from the merger to the committer: written
	done    chan error     // from the committer to the merger
	helpers sync.WaitGroup // fillers, flusher and committer
	err     error          // the planner's; valid once full is closed
	quit    chan struct{}  // closed when the merger has enough
}

// batch is a stretch of the merge order that is committed at once.
type batch struct {
	ops    []batchOp // never longer than its capacity
	window bool      // goes through the scratch area
}

// batchOp is an op and its first block.
type batchOp struct {
	block uint32
	op    uint32
}

// load is a buffer of blocks of one batch, and where they go.
type load struct {
	buf   []byte // the blocks, one after the other
	runs  []loadRun
	ops   []batchOp // of the batch, whose blocks they are
	batch *batch
	last  bool // of the batch
	// overwrites what ops of the batch before its own read.
	overwrites bool
	filled     chan error // once a round
}

// loadRun is a number of consecutive blocks of a load. Zeros take no place in
// the buffer.
type loadRun struct {
	block uint32
	bytes int
	zero  bool
}

// extent is a range of a device, in bytes.
type extent struct{ off, end int64 }

const (
	loadBlocks = 64 // blocks of a load: 256 KiB, as large as any unit
	loads      = 16 // on their way at a time
	lists      = 4  // batches on their way at a time
	maxFillers = 4
)

// newQueue takes memory for batches of at most ops ops, and starts fillers.
func newQueue(s *Snapshot, ops, readWords int, prio Priority) (*queue, error) {
	const opSize = int(unsafe.Sizeof(batchOp{}))
	stored := storedAtOnce(s.file)
	fillers, spare := min(runtime.GOMAXPROCS(0), maxFillers), blockSize+stored
	mem, err := mapAnonymous((loads+1)*loadBlocks*blockSize + (lists*ops+2*readWords)*opSize + fillers*spare)
	if err != nil {
		return nil, err
	}
	q := &queue{
		mem: mem, lists: make(chan *batch, lists), free: make(chan *load, loads),
		work: make(chan *load, loads), full: make(chan *load, loads), flush: make(chan extent, loads),
		commit: make(chan *batch), done: make(chan error, 1), quit: make(chan struct{}),
	}
	cut := func(n int) []byte { b := mem[:n:n]; mem = mem[n:]; return b }
	q.zeros = cut(loadBlocks * blockSize)
	for range loads {
		q.free <- &load{buf: cut(loadBlocks * blockSize)[:0], filled: make(chan error, 1)}
	}
	for range lists {
		q.lists <- &batch{ops: batchOpsIn(cut(ops * opSize))}
	}
	for k := range q.sets {
		q.sets[k].words = words(cut(readWords * 8))
	}
	for range fillers {
		f := &filler{s: s, delta: cut(blockSize), stored: cut(stored)}
		q.help(prio, func() { f.run(q) })
	}
	if d, ok := s.base.(Flushing); ok {
		q.help(prio, func() { q.runFlusher(d) })
	}
	return q, nil
}

// help runs f beside the merger until close, with the priority that it was
// granted.
func (q *queue) help(prio Priority, f func()) {
	q.helpers.Add(1)
	go func() {
		defer q.helpers.Done()
		_ = prio.run(func() error { f(); return nil })
	}()
}

// runFlusher sees to it that the storage is at work while a batch is being
// written, and not only when it is synced.
func (q *queue) runFlusher(d Flushing) {
	for e := range q.flush {
		d.Flush(e.off, e.end-e.off)
	}
}

// written tells the flusher that a load is in the base now. What it does not
// keep up with is left to the sync.
func (q *queue) written(l *load) {
	if len(l.runs) == 0 {
		return
	}
	e := extent{off: int64(l.runs[0].block) * blockSize}
	for _, r := range l.runs {
		off := int64(r.block) * blockSize
		e.off, e.end = min(e.off, off), max(e.end, off+int64(r.bytes))
	}
	select {
	case q.flush <- e:
	default:
	}
}

// next returns the next load, filled; the merger gives it back. Without one the
// planner has come to the end of the merge order, or to an error.
func (q *queue) next() (*load, error) {
	l, ok := <-q.full
	if !ok {
		return nil, q.err
	}
	return l, <-l.filled
}

func (q *queue) giveBack(l *load) {
	l.buf, l.runs, l.ops, l.overwrites = l.buf[:0], l.runs[:0], nil, false
	q.free <- l
}

func (q *queue) recycle(b *batch) {
	b.ops, b.window = b.ops[:0], false
	q.lists <- b
}

// close ends the planner and the helpers, and frees the memory.
func (q *queue) close() {
	close(q.quit)
	close(q.flush)
	close(q.commit)
	q.helpers.Wait()
	_ = unix.Munmap(q.mem)
}
