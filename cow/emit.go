package cow

import (
	"context"
	"crypto/subtle"
	"fmt"
	"io"

	"cowbird/formats/cowfile"
)

func (b *builder) newEncoder() (*cowfile.Encoder, error) {
	if b.o.Compression == cowfile.None {
		return cowfile.NewEncoder(b.o.Version, cowfile.None, nil), nil
	}
	compress, err := b.o.NewCompressor()
	if err != nil {
		return nil, err
	}
	return cowfile.NewEncoder(b.o.Version, b.o.Compression, compress), nil
}

// emit writes the ops: the ordered ones in merge order, then zero and replace
// ops by block. Workers compress ahead; one goroutine writes.
func (b *builder) emit(ctx context.Context, out io.WriterAt) error {
	units := b.unordered()
	w, err := cowfile.NewWriter(out, cowfile.WriterOptions{
		Version: b.o.Version, Compression: b.o.Compression, MaxUnit: b.o.MaxUnit, OpCountMax: len(b.order) + len(units),
	})
	if err != nil {
		return err
	}
	if err := b.compress(ctx, units, w); err != nil {
		return err
	}
	b.stats.CowSize, err = w.Finish()
	if err != nil {
		return fmt.Errorf("write the COW: %w", err)
	}
	return nil
}

// unordered returns the zero and replace ops by ascending block. Runs of fresh
// blocks are cut into the largest units that fit.
func (b *builder) unordered() []cowfile.Op {
	var ops []cowfile.Op
	largest := uint32(b.o.MaxUnit / blockSize)
	for i := 0; i < b.n; {
		switch b.kind[i] {
		case zero:
			ops = append(ops, cowfile.Op{Type: cowfile.OpZero, NewBlock: uint32(i)})
		case fresh:
			n := i
			for n < b.n && b.kind[n] == fresh {
				n++
			}
			for i < n {
				u := largest
				for u > uint32(n-i) {
					u /= 2
				}
				ops = append(ops, cowfile.Op{Type: cowfile.OpReplace, NewBlock: uint32(i), Factor: cowfile.FactorOf(u)})
				i += int(u)
			}
			continue
		case same:
			b.stats.UnchangedBlocks++
		}
		i++
	}
	return ops
}

// part is a stretch of ops that one worker prepares.
type part struct {
	ops    []cowfile.Op
	stored []byte // data of the ops, one after the other
	err    error
	ready  chan struct{}
}

const partOps = 64

// compress prepares all ops and adds them to w in order. At most a few parts a
// worker are in memory.
func (b *builder) compress(ctx context.Context, units []cowfile.Op, w cowfile.Writer) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	total := len(b.order) + len(units)
	todo := make(chan *part)
	queue := make(chan *part, 4*b.o.Workers)
	go func() {
		defer close(todo)
		defer close(queue)
		for first := 0; first < total; first += partOps {
			p := &part{ready: make(chan struct{})}
			for k := first; k < min(total, first+partOps); k++ {
				p.ops = append(p.ops, b.opAt(k, units))
			}
			select {
			case queue <- p: // first, so that the writer waits for it
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
	}()
	for range b.o.Workers {
		go b.worker(todo)
	}
	for p := range queue {
		<-p.ready
		if p.err != nil {
			return p.err
		}
		if err := b.add(w, p); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (b *builder) opAt(k int, units []cowfile.Op) cowfile.Op {
	if k >= len(b.order) {
		return units[k-len(b.order)]
	}
	i := b.order[k]
	if b.kind[i] == copied {
		return cowfile.Op{Type: cowfile.OpCopy, NewBlock: i, Source: uint64(b.source[i])}
	}
	return cowfile.Op{Type: cowfile.OpXor, NewBlock: i, Source: uint64(b.source[i]) * blockSize}
}

func (b *builder) worker(todo <-chan *part) {
	enc, err := b.newEncoder()
	unit, source := make([]byte, b.o.MaxUnit), make([]byte, blockSize)
	for p := range todo {
		for k := range p.ops {
			if err == nil {
				err = b.prepare(p, &p.ops[k], enc, unit, source)
			}
		}
		p.err = err
		close(p.ready)
	}
}

// prepare encodes the data of one op.
func (b *builder) prepare(p *part, o *cowfile.Op, enc *cowfile.Encoder, unit, source []byte) error {
	if o.Type != cowfile.OpReplace && o.Type != cowfile.OpXor {
		return nil
	}
	unit = unit[:o.Unit()]
	if _, err := readBlocks(b.o.Target, "target", int(o.NewBlock), unit); err != nil {
		return err
	}
	if o.Type == cowfile.OpXor {
		if _, err := readBlocks(b.o.Base, "base", int(o.Source/blockSize), source); err != nil {
			return err
		}
		subtle.XORBytes(unit, unit, source)
	}
	stored, c, err := enc.Encode(unit)
	if err != nil {
		return err
	}
	o.Compression, o.DataLength = c, uint32(len(stored))
	p.stored = append(p.stored, stored...)
	return nil
}

func (b *builder) add(w cowfile.Writer, p *part) error {
	stored := p.stored
	for _, o := range p.ops {
		n := int64(o.DataLength)
		if err := w.Add(o, stored[:n]); err != nil {
			return fmt.Errorf("write the COW: %w", err)
		}
		stored = stored[n:]
		switch o.Type {
		case cowfile.OpCopy:
			b.stats.Copy++
		case cowfile.OpXor:
			b.stats.Xor++
			b.stats.XorBytes += n
		case cowfile.OpZero:
			b.stats.Zero++
		case cowfile.OpReplace:
			b.stats.Replace++
			b.stats.ReplaceBlocks += int(o.Blocks())
			b.stats.ReplaceBytes += n
		}
		b.progress.add(int64(o.Blocks()) * blockSize)
	}
	return nil
}
