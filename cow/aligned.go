package cow

import (
	"bytes"
	"context"
	"crypto/subtle"

	"cowbird/formats/cowfile"
)

// findAligned is findDeltas with whole blocks: those tried are the blocks at the
// distance of the nearest decided neighbour before and behind. (The block's own
// place is not: an op that reads what it writes cannot be batched.)
func (b *builder) findAligned(ctx context.Context) error {
	tries := b.predictions()
	const group = 64
	defer func() { b.progress.add(b.deltaWork()) }()
	return inOrder(ctx, b.o.Workers, (len(tries)+group-1)/group, func() func(int) error {
		d := deltaFinder{b: b}
		return func(k int) error {
			for _, t := range tries[k*group : min(len(tries), (k+1)*group)] {
				if err := d.try(t); err != nil {
					return err
				}
			}
			return nil
		}
	})
}

type deltaFinder struct {
	b                    *builder
	enc                  *cowfile.Encoder
	block, source, delta [blockSize]byte
}

// A delta with more bytes that differ is not worth compressing, and one that
// takes more than worthDelta of the block's own size is no gain: an xor op has
// a table entry of its own and tears a unit apart.
const (
	maxDiffering = blockSize / 2
	worthDelta   = 0.6
)

func (d *deltaFinder) try(p prediction) error {
	b := d.b
	loaded, own, best := false, 0, 0
	for _, s := range p.sources {
		if s < 0 || s >= int64(b.o.Base.blocks()) || s == int64(p.block) || b.kind[p.block] == changed && s == int64(b.source[p.block]) {
			continue
		}
		if !loaded {
			if _, err := readBlocks(b.o.Target, "target", int(p.block), d.block[:]); err != nil {
				return err
			}
			loaded = true
		}
		if _, err := readBlocks(b.o.Base, "base", int(s), d.source[:]); err != nil {
			return err
		}
		subtle.XORBytes(d.delta[:], d.block[:], d.source[:])
		if blockSize-bytes.Count(d.delta[:], []byte{0}) > maxDiffering {
			continue
		}
		size, err := d.size(d.delta[:])
		if err != nil {
			return err
		}
		if own == 0 {
			if own, err = d.size(d.block[:]); err != nil {
				return err
			}
			best = int(worthDelta * float64(own))
		}
		if size < best {
			b.kind[p.block], b.source[p.block] = changed, uint32(s)
			best = size
		}
	}
	return nil
}

func (d *deltaFinder) size(block []byte) (int, error) {
	if d.enc == nil {
		var err error
		if d.enc, err = d.b.newEncoder(); err != nil {
			return 0, err
		}
	}
	stored, _, err := d.enc.Encode(block)
	return len(stored), err
}
