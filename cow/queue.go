package cow

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// queue is what lies between the goroutine that plans, reads and decodes (the
// preparer) and the one that writes and commits (the merger): batches and their
// blocks in merge order, and the memory for them.
//
// That blocks are read long before earlier ones are written is safe: no op
// reads a block that an earlier op, or another op of its batch, writes.
type queue struct {
	mem   []byte      // one mapping for everything
	lists chan *batch // batches that nobody owns
	free  chan *load  // loads that nobody owns

	full chan *load    // from the preparer to the merger
	err  error         // the preparer's; valid once full is closed
	quit chan struct{} // closed when the merger has enough
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
	batch *batch
	last  bool // of its batch
}

// loadRun is a number of consecutive blocks of a load.
type loadRun struct {
	block uint32
	bytes int
}

const (
	loadBlocks = 64 // blocks of a load: 256 KiB, as large as any unit
	loads      = 16 // on their way at a time
	lists      = 3  // batches on their way at a time
)

// newQueue takes memory for batches of at most ops ops, and extra bytes for the
// preparer.
func newQueue(ops, extra int) (q *queue, spare []byte, err error) {
	const opSize = int(unsafe.Sizeof(batchOp{}))
	q = &queue{lists: make(chan *batch, lists), free: make(chan *load, loads), full: make(chan *load, loads), quit: make(chan struct{})}
	if q.mem, err = mapAnonymous(loads*loadBlocks*blockSize + lists*ops*opSize + extra); err != nil {
		return nil, nil, err
	}
	rest := q.mem
	cut := func(n int) []byte { b := rest[:n:n]; rest = rest[n:]; return b }
	for range loads {
		q.free <- &load{buf: cut(loadBlocks * blockSize)[:0]}
	}
	for range lists {
		q.lists <- &batch{ops: batchOpsIn(cut(ops * opSize))}
	}
	return q, rest, nil
}

// next returns the next load; the merger gives it back. Without one the
// preparer has come to the end of the merge order, or to an error.
func (q *queue) next() (*load, error) {
	if l, ok := <-q.full; ok {
		return l, nil
	}
	return nil, q.err
}

func (q *queue) giveBack(l *load) {
	l.buf, l.runs, l.last = l.buf[:0], l.runs[:0], false
	q.free <- l
}

func (q *queue) recycle(b *batch) {
	b.ops, b.window = b.ops[:0], false
	q.lists <- b
}

// close waits until the preparer has stopped, and frees the memory.
func (q *queue) close() {
	close(q.quit)
	for range q.full {
	}
	_ = unix.Munmap(q.mem)
}
