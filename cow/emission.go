package cow

import (
	"context"
	"fmt"
	"io"

	"cowbird/formats/cowfile"
)

// Contents tell what is in a new COW, in ops and in bytes. HeaderBytes, OpBytes,
// XorBytes and ReplaceBytes add up to CowSize.
type Contents struct {
	Copy          int    `json:"copy_ops"`
	Xor           int    `json:"xor_ops"`
	Zero          int    `json:"zero_ops"`
	Replace       int    `json:"replace_ops"`
	ReplaceBlocks int    `json:"replace_blocks"`
	HeaderBytes   int64  `json:"header_bytes"`             // header and scratch area
	OpBytes       int64  `json:"op_bytes"`                 // op table, or clusters and footer
	XorBytes      int64  `json:"xor_bytes"`                // stored
	ReplaceBytes  int64  `json:"replace_bytes"`            // stored
	OpCapacity    uint64 `json:"table_capacity,omitempty"` // version 3: ops that the table has room for
	CowSize       int64  `json:"cow_size"`
}

// Ops is the number of ops of all kinds.
func (c *Contents) Ops() int { return c.Copy + c.Xor + c.Zero + c.Replace }

func (c *Contents) count(o cowfile.Op, stored int) {
	switch o.Type {
	case cowfile.OpCopy:
		c.Copy++
	case cowfile.OpXor:
		c.Xor++
		c.XorBytes += int64(stored)
	case cowfile.OpZero:
		c.Zero++
	case cowfile.OpReplace:
		c.Replace++
		c.ReplaceBlocks += int(o.Blocks())
		c.ReplaceBytes += int64(stored)
	}
}

// emitBatch is how many blocks of data a version 3 file is written in.
const emitBatch = 64

// emission writes a COW from the first op to the last.
type emission struct {
	w        cowfile.Writer
	out      *fitted // nil: the output has no end
	contents Contents
	progress *progressCounter
	onOp     func(o cowfile.Op, stored int) // or nil
}

// newEmission begins a COW. Its header comes last: until then the output is no
// COW.
func newEmission(out io.WriterAt, o cowfile.WriterOptions) (*emission, error) {
	o.Batch, o.HeaderLast = true, true
	if o.Version > 2 {
		o.ClusterOps = emitBatch
	}
	e := &emission{}
	if b, ok := out.(Bounded); ok {
		e.out = &fitted{out: b, end: b.Capacity()}
		out = e.out
	}
	var err error
	e.w, err = cowfile.NewWriter(cowfile.WriteOnly(out), o)
	return e, writing(err)
}

func writing(err error) error {
	if err != nil {
		return fmt.Errorf("write the COW: %w", err)
	}
	return nil
}

// run writes all ops of a job through a pipeline and ends the COW.
func (e *emission) run(ctx context.Context, p *pipeline, j job) (Contents, error) {
	j.add = e.add
	if err := p.run(ctx, j); err != nil {
		return e.contents, err
	}
	size, err := e.w.Finish()
	if err == nil && e.out != nil {
		err = e.out.verdict(size)
	}
	s := e.w.Size()
	e.contents.HeaderBytes, e.contents.OpBytes = s.Header, s.Ops
	e.contents.CowSize, e.contents.OpCapacity = size, s.OpCountMax
	return e.contents, writing(err)
}

func (e *emission) add(o cowfile.Op, stored []byte) error {
	if err := e.w.Add(o, stored); err != nil {
		return writing(err)
	}
	e.contents.count(o, len(stored))
	if e.onOp != nil {
		e.onOp(o, len(stored))
	}
	e.progress.add(int64(o.Blocks()) * blockSize)
	return nil
}

// Bounded is an output with an end, such as a block device.
type Bounded interface {
	io.WriterAt
	// Capacity is the length of the output in bytes.
	Capacity() int64
}

// Nowhere is an output that takes everything and keeps nothing: what is made
// into it tells what it would take.
var Nowhere io.WriterAt = nowhere{}

type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// fitted is an output with an end. What does not fit is not written, nor is
// anything after it, the header least of all; but it is taken, so that in the
// end the number of bytes is known that would have been enough.
type fitted struct {
	out  io.WriterAt
	end  int64
	over bool
}

func (f *fitted) WriteAt(p []byte, off int64) (int, error) {
	if f.over = f.over || int64(len(p)) > f.end-off; f.over {
		return len(p), nil
	}
	return f.out.WriteAt(p, off)
}

// verdict refuses a COW of size bytes if it did not fit.
func (f *fitted) verdict(size int64) error {
	if !f.over && size <= f.end {
		return nil
	}
	return refused(cowfile.ErrNoSpace, "the output", fmt.Sprintf("%d bytes, which the COW takes", size), f.end)
}
