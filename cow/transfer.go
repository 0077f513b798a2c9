package cow

import (
	"context"
	"fmt"
	"runtime/debug"
)

// carriage takes the blocks of a batch from the goroutine that reads and
// decodes to the one that writes. Blocks that follow each other travel in one
// buffer and are written at once.
type carriage struct {
	m    *merger
	full chan load
	cur  load
	buf  []byte // of cur, whole
}

// load is a run of consecutive blocks in a buffer.
type load struct {
	block uint32
	b     []byte
}

func (l load) end() uint32 { return l.block + uint32(len(l.b)/blockSize) }

// room returns the place for the next n blocks, from block on. The caller fills
// it before it asks for more.
func (c *carriage) room(block uint32, n int) []byte {
	fits := len(c.cur.b)+n*blockSize <= len(c.buf) && len(c.cur.b) < bufferBlocks*blockSize
	if len(c.cur.b) > 0 && (block != c.cur.end() || !fits) {
		c.send()
	}
	if c.buf == nil {
		c.buf = <-c.m.free
	}
	if len(c.cur.b) == 0 {
		c.cur = load{block, c.buf[:0]}
	}
	start := len(c.cur.b)
	c.cur.b = c.cur.b[:start+n*blockSize]
	return c.cur.b[start:]
}

func (c *carriage) send() {
	if len(c.cur.b) > 0 {
		c.full <- c.cur
		c.buf, c.cur = nil, load{}
	}
}

// transfer writes to the base what prepare, in a goroutine of its own, reads
// and decodes. Nothing is durable when it returns.
//
// That prepare reads ahead of the writes is safe: no op reads a block that an
// earlier op, or another op of its batch, writes.
func (m *merger) transfer(ctx context.Context, prepare func(*carriage) error) error {
	c := &carriage{m: m, full: make(chan load, buffers)}
	prepared := make(chan error, 1)
	go func() { prepared <- c.run(prepare) }()
	var failed error
	for l := range c.full {
		if failed == nil {
			failed = m.writeBase(ctx, l)
		}
		m.free <- l.b[:cap(l.b)]
	}
	if err := <-prepared; err != nil {
		return err
	}
	return failed
}

func (c *carriage) run(prepare func(*carriage) error) (err error) {
	defer close(c.full)
	defer func() {
		if c.buf != nil {
			c.m.free <- c.buf
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
func (m *merger) writeBase(ctx context.Context, l load) error {
	m.throttle.wait(ctx, len(l.b))
	off := int64(l.block) * blockSize
	if _, err := m.s.base.WriteAt(l.b, off); err != nil {
		return fmt.Errorf("write %d bytes at block %d of the base: %w", len(l.b), l.block, err)
	}
	m.stats.BlocksWritten += int64(len(l.b) / blockSize)
	return nil
}
