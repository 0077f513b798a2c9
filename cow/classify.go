package cow

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"
	"sync"
)

const chunkBlocks = 256 // read at once: 1 MiB

var zeroBlock [blockSize]byte

// Progress of Build, shared by its workers.
type progressCounter struct {
	mu          sync.Mutex
	done, total int64
	report      func(done, total int64)
}

func (p *progressCounter) add(n int64) {
	if p.report == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	p.report(p.done, p.total)
}

// classify finds the blocks of the target that the base does not have in their
// place, and hashes them and all blocks of the base. The hash only proposes:
// findSources compares bytes. So its seed may differ from run to run.
func (b *builder) classify(ctx context.Context) error {
	b.kind, b.source = make([]kind, b.n), make([]uint32, b.n)
	b.hashes.target = make([]uint64, b.n)
	b.hashes.base = make([]uint64, b.o.Base.blocks())
	seed := maphash.MakeSeed()
	blocks := max(b.n, len(b.hashes.base))
	chunks := (blocks + chunkBlocks - 1) / chunkBlocks
	return inOrder(ctx, b.o.Workers, chunks, func() func(int) error {
		c := classifier{b: b, seed: seed, base: make([]byte, chunkBlocks*blockSize), target: make([]byte, chunkBlocks*blockSize)}
		return c.chunk
	})
}

type classifier struct {
	b            *builder
	seed         maphash.Seed
	base, target []byte
}

func (c *classifier) chunk(k int) error {
	first := k * chunkBlocks
	base, err := readBlocks(c.b.o.Base, "base", first, c.base)
	if err != nil {
		return err
	}
	target, err := readBlocks(c.b.o.Target, "target", first, c.target)
	if err != nil {
		return err
	}
	for i := 0; i < len(base); i += blockSize {
		c.b.hashes.base[first+i/blockSize] = c.hash(base[i : i+blockSize])
	}
	for i := 0; i < len(target); i += blockSize {
		block := target[i : i+blockSize]
		n := first + i/blockSize
		switch {
		case i < len(base) && bytes.Equal(block, base[i:i+blockSize]):
			c.b.kind[n] = same
		case bytes.Equal(block, zeroBlock[:]):
			c.b.kind[n] = zero
		default:
			c.b.kind[n] = fresh
			c.b.hashes.target[n] = c.hash(block)
		}
	}
	c.b.progress.add(int64(len(target)))
	return nil
}

func (c *classifier) hash(block []byte) uint64 { return maphash.Bytes(c.seed, block) }

// readBlocks reads whole blocks from block first into buf, as many as there
// are.
func readBlocks(img Image, name string, first int, buf []byte) ([]byte, error) {
	n := max(0, min(len(buf)/blockSize, img.blocks()-first)) * blockSize
	if n == 0 {
		return nil, nil
	}
	if err := readFull(img.R, buf[:n], int64(first)*blockSize); err != nil {
		return nil, fmt.Errorf("%s image: %w", name, err)
	}
	return buf[:n], nil
}
