package verity

import (
	"iter"
	"math/bits"
	"sync"
)

// Blocks is a set of block numbers, of a bit each. It may be changed and read by
// several goroutines, but for All.
type Blocks struct {
	mu    sync.Mutex
	words []uint64
	count int64
}

// NewBlocks is an empty set of numbers below n.
func NewBlocks(n int64) *Blocks { return &Blocks{words: make([]uint64, (n+63)/64)} }

// Add adds a number, if it is not there, and must be below NewBlocks's n.
func (b *Blocks) Add(block int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w, bit := &b.words[block/64], uint64(1)<<(block%64); *w&bit == 0 {
		*w |= bit
		b.count++
	}
}

func (b *Blocks) remove(block int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w, bit := &b.words[block/64], uint64(1)<<(block%64); *w&bit != 0 {
		*w &^= bit
		b.count--
	}
}

// Has tells whether a number is in the set.
func (b *Blocks) Has(block int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.words[block/64]&(1<<(block%64)) != 0
}

// Count is how many there are.
func (b *Blocks) Count() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count
}

// First is the lowest number, or -1 if there is none.
func (b *Blocks) First() int64 {
	for block := range b.All() {
		return block
	}
	return -1
}

// All are the numbers, rising. The set must not change meanwhile.
func (b *Blocks) All() iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for i, w := range b.words {
			for ; w != 0; w &= w - 1 {
				if !yield(int64(i)*64 + int64(bits.TrailingZeros64(w))) {
					return
				}
			}
		}
	}
}
