package zucchini

import (
	"cmp"
	"slices"
	"testing"
)

// lcg is a generator that is easy to write in any language.
type lcg uint64

func (s *lcg) next(n uint32) uint32 {
	*s = *s*6364136223846793005 + 1442695040888963407
	return uint32(uint64(*s>>33) % uint64(n))
}

// tied makes n equivalences in the order of the target whose sources are below
// r, so that many are equal.
func tied(n, r, pattern uint32) []equivalence {
	s := lcg(n*31 + r*7 + pattern)
	all := make([]equivalence, n)
	for i := range n {
		k := uint32(uint64(i) * uint64(r) / uint64(n))
		switch {
		case pattern == 0, pattern == 1 && s.next(20) == 0:
			k = s.next(r)
		case pattern == 2 && i < n/2:
			k = i % r
		case pattern == 2:
			k = (n - i) % r
		}
		all[i] = equivalence{k, i, 1}
	}
	return all
}

func hashOrder(o tieOrder, n uint32) uint64 {
	h := uint64(1469598103934665603)
	for _, r := range []uint32{1, 2, 10, n/4 + 1, n, 4 * n} {
		for pattern := range uint32(4) {
			for _, e := range o.sorted(tied(n, r, pattern)) {
				h = (h ^ uint64(e.dst)) * 1099511628211
			}
		}
	}
	return h
}

// The orders are those of the libraries themselves: hashes come from a C++
// program that sorts the same elements with std::sort, built with GNU's library
// of GCC 12 and LLVM's of releases 14, 15, 16 (all alike) and 19.
func TestTieOrders(t *testing.T) {
	for _, c := range []struct {
		n                       uint32
		gnu, llvmBefore17, llvm uint64
	}{
		{10, 0x9f743788e9ced2bf, 0x9f743788e9ced2bf, 0x9f743788e9ced2bf},
		{24, 0x73701d945ce78d67, 0x9b4e1b2dd3cd9367, 0xec713ff149fa241f},
		{31, 0xdad6348cd114bddd, 0x18d3633887b91873, 0x5ea81df3746e095b},
		{100, 0xf183f226ff39d20f, 0x64ee532f07b6b203, 0x28f64a47814e45b5},
		{129, 0x692b771e1cc0279b, 0x376bfa4d330191ad, 0x68e0ba587fece44b},
		{150, 0x809d9fcac8f5d3cd, 0x58b2d85b33633fbd, 0x0a3f18881da26565},
		{500, 0xb6b4d22452a85b67, 0x1cdf9bb84da8d8e3, 0xaf868bfd95282381},
		{999, 0xae523a76b6697e13, 0x1d9739a2e7c3812b, 0x190f30039029e3e5},
		{1000, 0x624f3251642e614f, 0xcb904e26bc91e68b, 0x40bdec8529af8c91},
		{1500, 0x01c074a6ce62dd8d, 0x5a2af9ee74958449, 0x82a4ad29fdad0eb5},
		{5000, 0x097735fc5f080273, 0xd9bc84241a7a8a41, 0x85fd9875ec867cb3},
	} {
		for o, want := range map[tieOrder]uint64{libstdcxx: c.gnu, libcxxOld: c.llvmBefore17, libcxx: c.llvm} {
			if h := hashOrder(o, c.n); h != want {
				t.Errorf("order %d of %d elements: expected %016x, found %016x", o, c.n, want, h)
			}
		}
	}
}

func TestOrdersSort(t *testing.T) {
	for o := stable; o < tieOrders; o++ {
		for n := uint32(1); n < 300; n += 3 {
			all := tied(n, n/3+1, n%4)
			sorted := o.sorted(all)
			if !slices.IsSortedFunc(sorted, bySource) {
				t.Fatalf("order %d of %d elements does not sort", o, n)
			}
			slices.SortFunc(sorted, func(a, b equivalence) int { return cmp.Compare(a.dst, b.dst) })
			if !slices.Equal(all, sorted) {
				t.Fatalf("order %d of %d elements loses some", o, n)
			}
		}
	}
}
