package cow

import (
	"fmt"
	"io"
	"runtime/debug"

	"cowbird/formats/cowfile"
)

// filler reads and decodes the blocks of loads: one of several workers.
type filler struct {
	s      *Snapshot
	delta  []byte // decoded data of an xor op
	stored []byte // compressed data
}

func (f *filler) run(q *queue) {
	for l := range q.work {
		l.filled <- f.fill(l)
	}
}

func (f *filler) fill(l *load) (err error) {
	defer faultToError(debug.SetPanicOnFault(true), &err)
	if len(l.ops) > 0 && f.s.file.Op(int(l.ops[0].op)).Type.Ordered() {
		return f.ordered(l.ops, l.buf)
	}
	return f.unordered(l.ops, l.buf)
}

// ordered reads the new contents of ordered ops, a block each, into dst.
func (f *filler) ordered(ops []batchOp, dst []byte) error {
	file := f.s.file
	k, err := readStretches(f.s.source, dst, len(ops), func(k int) int64 {
		off, _ := file.Op(int(ops[k].op)).SourceRange()
		return off
	})
	if err != nil {
		i := int(ops[k].op)
		return fmt.Errorf("source of op %d (%v) and what follows it: %w", i, file.Op(i), err)
	}
	for k, b := range ops {
		o := file.Op(int(b.op))
		if o.Type != cowfile.OpXor {
			continue
		}
		if err := f.s.decode(int(b.op), o, f.delta, f.stored); err != nil {
			return err
		}
		xorBytes(dst[k*blockSize:(k+1)*blockSize], f.delta)
	}
	return nil
}

// unordered decodes the data of replace ops. Zeros are the merger's business.
func (f *filler) unordered(ops []batchOp, dst []byte) error {
	for len(ops) > 0 {
		i := int(ops[0].op)
		o := f.s.file.Op(i)
		n, err := 1, error(nil)
		switch {
		case o.Type == cowfile.OpZero:
		case o.Compression == cowfile.None:
			err = f.s.decode(i, o, dst[:o.Unit()], nil)
		default:
			n, err = f.s.decodeUnits(i, neighbours(ops), dst, f.stored)
		}
		if err != nil {
			return err
		}
		if o.Type != cowfile.OpZero {
			dst = dst[n*o.Unit():]
		}
		ops = ops[n:]
	}
	return nil
}

// neighbours is the number of ops at the front that follow each other in the
// file.
func neighbours(ops []batchOp) int {
	n := 1
	for n < len(ops) && ops[n].op == ops[n-1].op+1 {
		n++
	}
	return n
}

// readStretches reads n pieces of a block's size into dst, the k-th from at(k).
// Pieces that follow each other on the device, upwards or downwards, are read
// at once: a merge order that goes backwards must not cost a read a block. With
// an error comes the first piece of the stretch that could not be read.
func readStretches(d io.ReaderAt, dst []byte, n int, at func(k int) int64) (failed int, err error) {
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
			return k, err
		}
		if step < 0 {
			reverseBlocks(b)
		}
		k += count
	}
	return n, nil
}

func reverseBlocks(b []byte) {
	var spare [blockSize]byte
	for i, j := 0, len(b)-blockSize; i < j; i, j = i+blockSize, j-blockSize {
		copy(spare[:], b[i:])
		copy(b[i:i+blockSize], b[j:])
		copy(b[j:], spare[:])
	}
}
