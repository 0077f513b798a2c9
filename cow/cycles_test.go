package cow

import (
	"context"
	"math/bits"
	"testing"

	"pgregory.net/rapid"
)

// drawOps is a builder with ordered ops of which many read two blocks.
func drawOps(t *rapid.T, most int) *builder {
	b := &builder{n: rapid.IntRange(1, most).Draw(t, "blocks")}
	b.kind, b.source, b.shifts = make([]kind, b.n), make([]uint32, b.n), make([]uint16, b.n)
	b.own, b.delta = make([]uint16, b.n), make([]uint16, b.n)
	for i := range b.n {
		b.kind[i] = rapid.SampledFrom([]kind{same, fresh, changed, changed, changed}).Draw(t, "kind")
		b.source[i] = uint32(rapid.IntRange(0, b.n).Draw(t, "source"))
		b.shifts[i] = rapid.SampledFrom([]uint16{0, 1, 4095}).Draw(t, "shift")
		b.own[i] = uint16(rapid.IntRange(1, 100).Draw(t, "own"))
	}
	return b
}

// Whatever ops read, also two blocks or their own, what is left can be ordered.
func TestOrderOfShifted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawOps(t, 300)
		if err := b.orderOps(context.Background()); err != nil {
			t.Fatal(err)
		}
		checkOrder(t, b)
	})
}

// What is given up to break rings is no less than the best choice, and no more
// than it times the number of blocks; nothing is given up without need.
func TestCyclesNearBest(t *testing.T) {
	worst := 1.0
	rapid.Check(t, func(t *rapid.T) {
		b := drawOps(t, 10)
		before := append([]kind(nil), b.kind...)
		best := leastCost(b)
		if err := b.breakCycles(); err != nil {
			t.Fatal(err)
		}
		given := 0
		for i := range b.n {
			if b.kind[i] != before[i] {
				given += b.saved(i)
			}
		}
		if int64(given) != b.stats.CycleBytes {
			t.Errorf("expected %d bytes to be counted, found %d", given, b.stats.CycleBytes)
		}
		switch {
		case hasRing(b):
			t.Error("a ring is left")
		case given < best || best == 0 && given > 0 || given > best*b.n:
			t.Errorf("expected about %d bytes to be given up, found %d", best, given)
		case best > 0:
			worst = max(worst, float64(given)/float64(best))
		}
	})
	t.Logf("at worst %.2f times the best", worst)
}

// leastCost tries all choices of blocks to replace.
func leastCost(b *builder) int {
	was := append([]kind(nil), b.kind...)
	defer copy(b.kind, was)
	best := 1 << 30
	for choice := range uint(1) << b.n {
		cost := 0
		for i := range b.n {
			b.kind[i] = was[i]
			if choice>>i&1 != 0 {
				b.kind[i] = fresh
				cost += b.saved(i)
			}
		}
		if cost < best && bits.OnesCount(choice) <= b.n && !hasRing(b) {
			best = cost
		}
	}
	return best
}

// hasRing takes away ops that read no block of an op that is left, until none is.
func hasRing(b *builder) bool {
	var gone uint
	for again := true; again; {
		again = false
		for i := range b.n {
			waits := false
			for slot := range 2 {
				s, ok := b.successor(i, slot)
				waits = waits || ok && gone>>s&1 == 0
			}
			if b.kind[i].ordered() && gone>>i&1 == 0 && !waits {
				gone |= 1 << i
				again = true
			}
		}
	}
	for i := range b.n {
		if b.kind[i].ordered() && gone>>i&1 == 0 {
			return true
		}
	}
	return false
}
