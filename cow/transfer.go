package cow

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
)

// carriage takes the blocks of a batch from the goroutine that reads and
// decodes to the one that writes, a full buffer at a time. Blocks that follow
// each other are written at once.
type carriage struct {
	m    *merger
	full chan *load
	cur  *load
}

// load is a buffer of blocks and where they go.
type load struct {
	buf  []byte // the blocks, one after the other
	runs []loadRun
}

// loadRun is a number of consecutive blocks of a load.
type loadRun struct {
	block uint32
	bytes int
}

func (l *load) end() uint32 {
	r := l.runs[len(l.runs)-1]
	return r.block + uint32(r.bytes/blockSize)
}

// room returns the place for the next n blocks, from block on. The caller fills
// it before it asks for more.
func (c *carriage) room(block uint32, n int) []byte {
	if l := c.cur; l != nil && (len(l.buf) >= bufferBlocks*blockSize || len(l.buf)+n*blockSize > cap(l.buf)) {
		c.send()
	}
	if c.cur == nil {
		c.cur = <-c.m.free
	}
	l := c.cur
	if len(l.runs) == 0 || l.end() != block {
		l.runs = append(l.runs, loadRun{block: block})
	}
	l.runs[len(l.runs)-1].bytes += n * blockSize
	start := len(l.buf)
	l.buf = l.buf[:start+n*blockSize]
	return l.buf[start:]
}

// left is the number of blocks that room can give without a new buffer.
func (c *carriage) left() int {
	if c.cur == nil || len(c.cur.buf) >= bufferBlocks*blockSize {
		return bufferBlocks
	}
	return bufferBlocks - len(c.cur.buf)/blockSize
}

func (c *carriage) send() {
	if c.cur != nil {
		c.full <- c.cur
		c.cur = nil
	}
}

// giveBack makes a load free again.
func (m *merger) giveBack(l *load) {
	l.buf, l.runs = l.buf[:0], l.runs[:0]
	m.free <- l
}

// transfer writes to the base what prepare, in a goroutine of its own, reads
// and decodes. Nothing is durable when it returns.
//
// That prepare reads ahead of the writes is safe: no op reads a block that an
// earlier op, or another op of its batch, writes.
func (m *merger) transfer(ctx context.Context, prepare func(*carriage) error) error {
	c := &carriage{m: m, full: make(chan *load, buffers)}
	prepared := make(chan error, 1)
	go func() { prepared <- c.run(prepare) }()
	var failed error
	for l := range c.full {
		if failed == nil {
			failed = m.writeBase(ctx, l)
		}
		m.giveBack(l)
	}
	if err := <-prepared; err != nil {
		return err
	}
	return failed
}

func (c *carriage) run(prepare func(*carriage) error) (err error) {
	defer close(c.full)
	defer func() {
		if c.cur != nil {
			c.m.giveBack(c.cur)
		}
	}()
	defer faultToError(debug.SetPanicOnFault(true), &err)
	if err := prepare(c); err != nil {
		return err
	}
	c.send()
	return nil
}

// writeBase writes a load to the base, no faster than asked.
func (m *merger) writeBase(ctx context.Context, l *load) error {
	b := l.buf
	for _, r := range l.runs {
		m.throttle.wait(ctx, r.bytes)
		if _, err := m.s.base.WriteAt(b[:r.bytes], int64(r.block)*blockSize); err != nil {
			return fmt.Errorf("write %d bytes at block %d of the base: %w", r.bytes, r.block, err)
		}
		m.stats.BlocksWritten += int64(r.bytes / blockSize)
		b = b[r.bytes:]
	}
	return nil
}

// readStretches reads n pieces of a block's size into dst, the k-th from at(k).
// Pieces that follow each other on the device, upwards or downwards, are read
// at once: a merge order that goes backwards must not cost a read a block.
func readStretches(d io.ReaderAt, dst []byte, n int, at func(k int) int64) error {
	for k := 0; k < n; {
		start, count, step := at(k), 1, int64(blockSize)
		if k+1 < n && at(k+1) == start-blockSize {
			step = -blockSize
		}
		for k+count < n && at(k+count) == start+int64(count)*step {
			count++
		}
		b := dst[k*blockSize : (k+count)*blockSize]
		if err := readFull(d, b, min(start, start+int64(count-1)*step)); err != nil {
			return err
		}
		if step < 0 {
			reverseBlocks(b)
		}
		k += count
	}
	return nil
}

func reverseBlocks(b []byte) {
	var spare [blockSize]byte
	for i, j := 0, len(b)-blockSize; i < j; i, j = i+blockSize, j-blockSize {
		copy(spare[:], b[i:])
		copy(b[i:i+blockSize], b[j:])
		copy(b[j:], spare[:])
	}
}
