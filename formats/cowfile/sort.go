package cowfile

import (
	"cmp"
	"math/bits"
	"slices"
)

// sortRuns sorts runs by block, in place: by the leading bits of the block
// first, each bucket by the bits that follow, and what is short by comparing.
// A million runs in no order take an eighth of the time of a sort that only
// compares.
func sortRuns(runs []run) {
	byBlock := func(a, b run) int { return cmp.Compare(a.block, b.block) }
	if slices.IsSortedFunc(runs, byBlock) {
		return
	}
	highest := uint32(0)
	for _, r := range runs {
		highest = max(highest, r.block)
	}
	sortByBits(runs, bits.Len32(highest))
}

const (
	digitBits = 8
	digits    = 1 << digitBits
	shortRuns = 24 // as many are sorted by insertion
)

// sortByBits sorts runs whose blocks differ in their n lowest bits at most.
func sortByBits(runs []run, n int) {
	if n == 0 { // equal ones: the caller refuses them
		return
	}
	if len(runs) <= shortRuns {
		insertRuns(runs)
		return
	}
	shift := max(0, n-digitBits)
	var next, end [digits]int
	for _, r := range runs {
		end[r.block>>shift&(digits-1)]++
	}
	at := 0
	for d, count := range end {
		next[d] = at
		at += count
		end[d] = at
	}
	// Each run goes to its bucket; the one that lies there moves on.
	for d := range next {
		for next[d] < end[d] {
			r := runs[next[d]]
			for to := r.block >> shift & (digits - 1); int(to) != d; to = r.block >> shift & (digits - 1) {
				runs[next[to]], r = r, runs[next[to]]
				next[to]++
			}
			runs[next[d]] = r
			next[d]++
		}
	}
	at = 0
	for _, e := range end {
		sortByBits(runs[at:e], shift)
		at = e
	}
}

func insertRuns(runs []run) {
	for i := 1; i < len(runs); i++ {
		r, k := runs[i], i
		for ; k > 0 && runs[k-1].block > r.block; k-- {
			runs[k] = runs[k-1]
		}
		runs[k] = r
	}
}
