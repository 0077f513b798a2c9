package cow

import (
	"context"
	"crypto/subtle"
	"fmt"
	"io"

	"cowbird/formats/cowfile"
)

// emit writes the ops: the ordered ones in merge order, then zero and replace
// ops by block. Workers compress ahead; one goroutine writes.
func (b *builder) emit(ctx context.Context, out io.WriterAt) error {
	units := b.unordered()
	total := len(b.order) + len(units)
	e, err := newEmission(out, cowfile.WriterOptions{
		Version: b.o.Version, Compression: b.o.Compression, MaxUnit: b.o.MaxUnit, OpCountMax: uint32(total),
		ScratchSize: b.o.ScratchSize,
	})
	if err != nil {
		return err
	}
	e.progress, e.onOp = &b.progress, b.o.OnOp
	p := pipeline{newEncoder: b.newEncoder, threads: b.o.Workers, maxUnit: b.o.MaxUnit, spare: blockSize}
	k := -1
	b.stats.Contents, err = e.run(ctx, &p, job{
		next: func() (o cowfile.Op, ok bool) {
			if k++; k < total {
				return b.opAt(k, units), true
			}
			return o, false
		},
		fill: b.fill,
	})
	return err
}

func (b *builder) newEncoder() (*cowfile.Encoder, error) {
	return newEncoder(b.o.Version, b.o.Compression, b.o.NewCompressor)
}

func newEncoder(version int, c cowfile.Compression, newCompressor func() (func(dst, unit []byte) ([]byte, error), error)) (*cowfile.Encoder, error) {
	if c == cowfile.None {
		return cowfile.NewEncoder(version, cowfile.None, nil), nil
	}
	compress, err := newCompressor()
	if err != nil {
		return nil, err
	}
	return cowfile.NewEncoder(version, c, compress), nil
}

// unordered returns the zero and replace ops by ascending block.
func (b *builder) unordered() []cowfile.Op {
	var ops []cowfile.Op
	for i := 0; i < b.n; i++ {
		switch b.kind[i] {
		case zero:
			ops = append(ops, cowfile.Op{Type: cowfile.OpZero, NewBlock: uint32(i)})
		case fresh:
			n := i + 1
			for n < b.n && b.kind[n] == fresh {
				n++
			}
			ops = appendUnits(ops, uint32(i), uint32(n-i), uint32(b.o.MaxUnit/blockSize))
			i = n - 1
		case same:
			b.stats.UnchangedBlocks++
		}
	}
	return ops
}

func (b *builder) opAt(k int, units []cowfile.Op) cowfile.Op {
	if k >= len(b.order) {
		return units[k-len(b.order)]
	}
	i := b.order[k]
	if b.kind[i] == copied {
		return cowfile.Op{Type: cowfile.OpCopy, NewBlock: i, Source: uint64(b.source[i])}
	}
	return cowfile.Op{Type: cowfile.OpXor, NewBlock: i, Source: uint64(b.source[i])*blockSize + uint64(b.shift(int(i)))}
}

func readSource(base Image, buf []byte, off int64) error {
	if err := readFull(base.R, buf, off); err != nil {
		return fmt.Errorf("base image: %w", err)
	}
	return nil
}

// fill reads the unit of an op from the images.
func (b *builder) fill(o cowfile.Op, buf []byte) ([]byte, error) {
	unit, source := buf[:o.Unit()], buf[o.Unit():][:blockSize]
	if _, err := readBlocks(b.o.Target, "target", int(o.NewBlock), unit); err != nil {
		return nil, err
	}
	if o.Type == cowfile.OpXor {
		if err := readSource(b.o.Base, source, int64(o.Source)); err != nil {
			return nil, err
		}
		subtle.XORBytes(unit, unit, source)
	}
	return unit, nil
}
