package cow

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"cowbird/formats/cowfile"
)

var errPowerCut = errors.New("power cut")

// A power cut leaves of the writes that are pending any that it likes, each
// block of them whole, not at all or torn between sectors. A kill of the
// process leaves all of them, still pending: the next process sees them, and a
// later power cut may undo them.
//
// The steps of a run are recorded once, and what a cut at any of them leaves
// is computed from the record. So that only the merging goroutine writes, batches
// are committed inline or, which is the most that commits made aside can be
// behind, late.

// walker goes through what cuts leave, through what cuts of the recoveries from
// those leave, and so on, each storage once.
type walker struct {
	c      sample
	limits mergeLimits
	r      *rand.Rand
	depth  int  // cuts, one after the other
	take   int  // cuts of a run that are tried, about; 0 = all
	whole  bool // no block is torn; each set of them may be lost
	mutate func([]event) []event
	keyOf  func(storage) uint64 // tells storages apart; nil: by every byte

	seen  map[uint64]bool
	todo  []cutState
	share float64 // of the cuts of this run that are tried
	runs  int
}

type cutState struct {
	storage
	cuts   int
	merged int
	how    string
}

// walk returns an error that says which cuts one after the other lead to it.
func (w *walker) walk() error {
	if w.limits.commit == commitAside {
		w.limits.commit = commitInline
	}
	w.seen = map[uint64]bool{}
	w.add(cutState{storage: storageOf(w.c)})
	for len(w.todo) > 0 {
		s := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		w.runs++
		events, merged, err := mergeOn(s.storage, w.c, w.limits, s.cuts == 0)
		if err == nil && merged < s.merged {
			err = fmt.Errorf("expected %d merged ops at least, found %d", s.merged, merged)
		}
		if err != nil {
			return fmt.Errorf("%w, after%s", err, s.how)
		}
		if w.mutate != nil {
			events = w.mutate(events)
		}
		if s.cuts < w.depth {
			s.cuts, s.merged = s.cuts+1, merged
			w.cut(s, events)
		}
	}
	return nil
}

func (w *walker) add(s cutState) {
	key := storage.key
	if w.keyOf != nil {
		key = w.keyOf
	}
	if k := key(s.storage); !w.seen[k] {
		w.seen[k] = true
		w.todo = append(w.todo, s)
	}
}

// cut adds what cuts before, in and after each step of a run leave.
func (w *walker) cut(s cutState, events []event) {
	const each = 20 // cuts of a step, about
	w.share = 1
	if w.take > 0 {
		w.share = float64(w.take) / float64(each*len(events))
	}
	before := s.how
	for k := 0; ; k++ {
		s.how = fmt.Sprintf("%s, step %d of %d", before, k, len(events))
		w.powerCuts(s, "")
		w.try(s, " killed", func() storage { return w.killed(s.storage) })
		if k == len(events) {
			return
		}
		w.within(s, events[k])
		s.storage[events[k].disk].apply(events[k])
	}
}

// within cuts the power in a step that is a write.
func (w *walker) within(s cutState, e event) {
	n := len(e.data) / sector
	if n < 2 || w.whole {
		return
	}
	for _, keep := range []int{1, n / 2, n - 1} {
		torn := s
		torn.storage[e.disk].apply(event{disk: e.disk, write: write{e.off, e.data[:wholeSectors(e.off, keep)]}})
		w.powerCuts(torn, fmt.Sprintf(" in the %v, %d sectors written,", e, keep))
	}
}

// wholeSectors is the number of bytes from off to the end of the n-th sector.
func wholeSectors(off int64, n int) int64 { return int64(n)*sector - off%sector }

// killed is what another process finds after a kill. Where kills follow each
// other for ever, a write that is pending twice counts once: what one of two
// equal writes can leave, the other one can.
func (w *walker) killed(s storage) storage {
	if !w.whole {
		return s
	}
	for n := range s {
		var once []write
		for i, p := range s[n].pending {
			again := func(q write) bool { return q.off == p.off && bytes.Equal(q.data, p.data) }
			if !slices.ContainsFunc(s[n].pending[i+1:], again) {
				once = append(once, p)
			}
		}
		slices.SortStableFunc(once, func(a, b write) int { return cmp.Compare(a.off, b.off) })
		s[n].pending = once
	}
	return s
}

func (w *walker) try(s cutState, how string, left func() storage) {
	if w.share == 1 || w.r.Float64() < w.share {
		s.storage = left()
		s.how += how
		w.add(s)
	}
}

// Up to maxSubsets of pending blocks are lost in all possible ways, more in
// some.
const maxSubsets = 6

func (w *walker) powerCuts(s cutState, how string) {
	pieces := s.pieces()
	for _, kept := range w.subsets(len(pieces)) {
		w.try(s, fmt.Sprint(how, " power cut, kept ", kept), func() storage { return s.survivor(pieces, kept) })
	}
	if len(pieces) > 0 && !w.whole {
		w.try(s, how+" power cut, torn", func() storage { return s.torn(pieces, w.r) })
	}
}

// pieces are the blocks that are pending, on both devices.
func (s storage) pieces() (all []event) {
	for n := range s {
		for _, p := range s[n].pending {
			for _, piece := range p.pieces() {
				all = append(all, event{disk: n, write: piece})
			}
		}
	}
	return all
}

// subsets lists which of n pieces survive: all subsets, or for many pieces
// all, none, all but one, one alone, the first, the last, and at random.
func (w *walker) subsets(n int) (all [][]bool) {
	add := func(in func(i int) bool) {
		s := make([]bool, n)
		for i := range s {
			s[i] = in(i)
		}
		all = append(all, s)
	}
	if n <= maxSubsets || w.whole {
		for m := range 1 << n {
			add(func(i int) bool { return m>>i&1 != 0 })
		}
		return all
	}
	add(func(int) bool { return true })
	add(func(int) bool { return false })
	for range 4 {
		k := w.r.IntN(n)
		add(func(i int) bool { return i != k })
		add(func(i int) bool { return i == k })
		add(func(i int) bool { return i < k })
		add(func(i int) bool { return i >= k })
		add(func(int) bool { return w.r.IntN(2) == 0 })
	}
	return all
}

// survivor is what a power cut leaves.
func (s storage) survivor(pieces []event, kept []bool) storage {
	left := storage{{durable: s[0].durable.clone()}, {durable: s[1].durable.clone()}}
	for i, p := range pieces {
		if kept[i] {
			left[p.disk].durable.write(p.data, p.off)
		}
	}
	return left
}

// torn leaves some sectors of what is pending.
func (s storage) torn(pieces []event, r *rand.Rand) storage {
	left := s.survivor(pieces, make([]bool, len(pieces)))
	for _, p := range pieces {
		for len(p.data) > 0 {
			n := min(int64(len(p.data)), sector-p.off%sector)
			if r.IntN(2) == 0 {
				left[p.disk].durable.write(p.data[:n], p.off)
			}
			p.off, p.data = p.off+n, p.data[n:]
		}
	}
	return left
}

// tight makes batches and windows so small that a handful of blocks needs
// several of each.
var tight = mergeLimits{batch: 5, window: 4, worth: 3, zeros: 2}

func firstDifference(got, want []byte) string {
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			return fmt.Sprintf("first difference in block %d at byte %d", i/blockSize, i%blockSize)
		}
	}
	return "no difference"
}

// few is the number of cases: all, or some under the race detector or -short.
func few(all, some int) int {
	if raceDetector || testing.Short() {
		return some
	}
	return all
}

// SNU-007, SNU-008…015, SNU-031, SNU-033: power cuts and kills at every point of
// a merge, at every point of the recoveries from them, and in larger cases at
// many; whatever remains reads as the target, and merges to it. The first merge
// of each case is also read whole after each of its steps.
func TestCrashWalk(t *testing.T) {
	var runs atomic.Int64
	t.Cleanup(func() { t.Logf("%d recoveries in all", runs.Load()) })
	for _, tc := range []struct {
		name         string
		cases, short int
		blocks, more int // of the first case, and of each one after it
		depth, take  int
		limits       mergeLimits
	}{
		{"twice at every point", 8, 3, 3, 1, 2, 0, tight},
		{"once at every point", 16, 4, 8, 2, 1, 0, tight},
		{"three times at some points", 12, 2, 30, 10, 3, 4, mergeLimits{batch: 32, window: 16, worth: 8}},
		{"twice at some points", 12, 2, 200, 30, 2, 4, mergeLimits{}},
	} {
		for seed := range uint64(few(tc.cases, tc.short)) {
			c := generate(t, uint64(len(tc.name))*1000+seed, tc.blocks+tc.more*int(seed), seed%3 > 0)
			t.Run(tc.name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				limits := tc.limits
				limits.commit = [...]commitTime{commitInline, commitLate}[seed%2]
				w := &walker{c: c, limits: limits, r: rand.New(rand.NewPCG(seed, 1)), depth: tc.depth, take: tc.take}
				if err := w.walk(); err != nil {
					t.Fatal(err)
				}
				runs.Add(int64(w.runs))
				t.Logf("%d recoveries", w.runs)
			})
		}
	}
}

const progressOffset = 26 // of num_merge_ops in the COW (specification: cow-format, section 2)

// role says what a sync in a list of steps is for.
func role(events []event, k int) string {
	e := events[k]
	if e.data != nil || e.size > 0 || k == 0 {
		return ""
	}
	last := events[k-1]
	switch {
	case e.disk == baseDisk:
		return "base"
	case last.off != progressOffset:
		return "scratch area"
	case last.data[len(last.data)-1] == byte(cowfile.StateReadDone):
		return "state"
	}
	return "progress"
}

// dropSyncs makes a device of which the syncs for one purpose do nothing.
func dropSyncs(purpose string) func([]event) []event {
	return func(events []event) (kept []event) {
		for k, e := range events {
			if role(events, k) != purpose {
				kept = append(kept, e)
			}
		}
		return kept
	}
}

// commitEarly moves each write of the progress before the sync of the base.
func commitEarly(events []event) []event {
	events = slices.Clone(events)
	for k := range max(0, len(events)-1) {
		if role(events, k) == "base" {
			events[k], events[k+1] = events[k+1], events[k]
		}
	}
	return events
}

// The walk finds each sync that is missing, and a commit that comes too early.
func TestCrashWalkFinds(t *testing.T) {
	for name, mutate := range map[string]func([]event) []event{
		"no sync of the base":         dropSyncs("base"),
		"no sync of the scratch area": dropSyncs("scratch area"),
		"no sync of the state":        dropSyncs("state"),
		"no sync of the progress":     dropSyncs("progress"),
		"commit before the sync":      commitEarly,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(40) {
				c := generate(t, seed, 20, true)
				w := &walker{c: c, limits: tight, r: rand.New(rand.NewPCG(1, 1)), depth: 1, take: 100, mutate: mutate}
				if err := w.walk(); err != nil {
					t.Logf("%s: %v", c.name, err)
					return
				}
			}
			t.Error("expected the walk to fail")
		})
	}
}

// SNU-005, SNU-011: the power goes while reads run. What they had returned until
// then was right, and so is what is left.
func TestCrashWhileReading(t *testing.T) {
	for seed := range uint64(few(6, 2)) {
		c := generate(t, 300+seed, 40, seed%2 == 0)
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := &walker{r: rand.New(rand.NewPCG(seed, 3))}
			for point := 0; ; point++ {
				left, cut := cutWhileReading(t, c, point)
				if !cut {
					return
				}
				pieces := left.pieces()
				for _, kept := range w.subsets(len(pieces)) {
					if _, _, err := mergeOn(left.survivor(pieces, kept), c, tight, false); err != nil {
						t.Fatalf("point %d: %v", point, err)
					}
				}
			}
		})
	}
}

func cutWhileReading(t *testing.T, c sample, point int) (left storage, cut bool) {
	t.Helper()
	r := newRecorder(storageOf(c))
	r.before = func(event) error {
		if len(r.events) == point {
			r.off.Store(true)
		}
		if r.off.Load() {
			return errPowerCut
		}
		return nil
	}
	s, err := r.open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	stop := readRandomly(t, s, c, func(err error) bool { return errors.Is(err, errPowerCut) && r.off.Load() })
	_, err = s.Merge(context.Background(), MergeOptions{limits: tight})
	stop()
	if err != nil && !errors.Is(err, errPowerCut) {
		t.Fatal(err)
	}
	return r.held, err != nil
}

// readRandomly lets readers of random ranges and one of sequential pieces
// compare with the target until stop is called. Errors that are expected end a
// reader.
func readRandomly(t *testing.T, s *Snapshot, c sample, expected func(error) bool) (stop func()) {
	var done atomic.Bool
	var wg sync.WaitGroup
	for k := range 3 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(len(c.target)), uint64(k)))
			for at := 0; !done.Load() && !t.Failed(); {
				off, n := r.IntN(len(c.target)), 1+r.IntN(40000)
				if k == 0 {
					off, n = at, 1+3*blockSize/2
					at = (off + n) % len(c.target)
				}
				b := make([]byte, min(n, len(c.target)-off))
				err := readFull(s, b, int64(off))
				if err != nil && expected(err) {
					return
				}
				if err != nil || !bytes.Equal(b, c.target[off:off+len(b)]) {
					t.Errorf("%d bytes at %d: %v, %s", len(b), off, err, firstDifference(b, c.target[off:]))
				}
			}
		})
	}
	return func() { done.Store(true); wg.Wait() }
}
