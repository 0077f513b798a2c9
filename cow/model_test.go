package cow

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"testing"

	"cowbird/formats/cowfile"
)

// The merge as a state machine, small enough to visit every state.
//
// A case is a list of copies among a few blocks, in a valid merge order. Block
// b of the base holds the value b+1 at first; 0 is what a block of the scratch
// area holds before anything else. A state has
//
//	what is durable   base, scratch area, its entries, progress and state byte
//	what is pending   writes that no sync has made durable, in their order
//	the program       what the running merge still does: a list of steps
//	the view          what the running process knows: merged ops, the window
//
// The program is that of commits made inline. That the next batch may be written
// before the commit of one whose sources it leaves alone makes both, to a crash,
// one batch; TestCrashWalk has that at its worst.
//
// Which ops make up a batch, and whether they take the scratch area, is asked
// of the planner itself (planner.choose), with a COW of the same copies. A batch
// then is one of two programs,
//
//	batch    write base…, sync base, write progress, sync cow, publish
//	window   write scratch…, write entries, sync cow, write state, sync cow,
//	         show window, and then the steps of a batch, from the scratch area
//
// and a process that opens a COW with progress first writes it again and syncs
// it. From each state the next step may be done; or the power goes, and any
// subset of what is pending is lost; or the process is killed, and all of it
// stays pending. After both another process begins, which reads what it can see.
//
// In every state
//
//   - the view of every block is the target: by what the running process knows
//     (readers are served), and by what each crash leaves (the next ones are),
//   - the durable progress is no less than it was,
//   - and the merge can be finished: whatever program begins ends, with the base
//     equal to the target. (Programs only get shorter, so to walk is to end.)
//
// TestModelFinds switches steps off, or their order round, and expects the walk
// to fail each time. TestModelIsTheMerge shows that the durable states which the
// model reaches are exactly those that the real merge reaches.

const modelBlocks = 4 // at most

// copyOp is a copy of a case.
type copyOp struct{ to, from int8 }

// durable are the bytes that a power cut leaves.
type durable struct {
	base    [modelBlocks]int8
	scratch [modelBlocks]int8
	entries [modelBlocks + 1]int8 // of the window: block + 1, ended by 0
	merged  int8
	state   cowfile.State
}

// place is where a step writes.
type place struct {
	area  byte // 'b'ase, 's'cratch, 'e'ntries, 'p'rogress
	index int8
}

// modelStep is one of a program.
type modelStep struct {
	what  byte // 'w'rite, 's'ync base, sync 'c'ow, 'p'ublish, show 'w'indow
	name  string
	place place
	value int8
	state cowfile.State         // with progress
	list  [modelBlocks + 1]int8 // entries
}

const (
	doWrite      = 'w'
	doSyncBase   = 's'
	doSyncCow    = 'c'
	doPublish    = 'p'
	doShowWindow = 'v'
)

// modelState is a vertex of the graph. It is comparable by its key.
type modelState struct {
	d       durable
	pending []modelStep
	program []modelStep
	merged  int8 // that the process knows
	window  int8 // ops in the scratch area that it knows, from merged on
}

func (m modelState) key() string { return fmt.Sprint(m.d, m.pending, m.program, m.merged, m.window) }

func (d *durable) write(s modelStep) {
	switch s.place.area {
	case 'b':
		d.base[s.place.index] = s.value
	case 's':
		d.scratch[s.place.index] = s.value
	case 'e':
		d.entries = s.list
	case 'p':
		d.merged, d.state = s.value, s.state
	}
}

// seen is what the process reads: durable and pending writes.
func (m modelState) seen() durable {
	d := m.d
	for _, s := range m.pending {
		d.write(s)
	}
	return d
}

// model is a case and the rules under which it is walked.
type model struct {
	ops    []copyOp
	chosen []choice // the batch that follows so many merged ops
	mutate func(name string, program []modelStep) []modelStep
	limits mergeLimits
	sample sample // the same case for the real merge

	states  map[string]bool
	durable map[durable]bool // after crashes; what nobody reads is cleared
}

// choice is the planner's: the next n ops, through the scratch area or not.
type choice struct {
	n      int
	window bool
}

func (m *model) target() (t [modelBlocks]int8) {
	for b := range t {
		t[b] = int8(b + 1)
	}
	for _, o := range m.ops {
		t[o.to] = o.from + 1
	}
	return t
}

// view is what readers are served by a process that knows so much.
func (m *model) view(d durable, merged, window int8) [modelBlocks]int8 {
	v := d.base
	for i, o := range m.ops[merged:] {
		if i < int(window) {
			v[o.to] = d.scratch[i]
		} else {
			v[o.to] = d.base[o.from]
		}
	}
	return v
}

// check is the invariant.
func (m *model) check(s modelState) error {
	if got, want := m.view(s.seen(), s.merged, s.window), m.target(); got != want {
		return fmt.Errorf("expected the view %v, found %v", want, got)
	}
	return nil
}

// open is a process that begins with what is there.
func (m *model) open(d durable, pending []modelStep) (modelState, error) {
	s := modelState{d: d, pending: pending}
	seen := s.seen()
	s.merged = seen.merged
	if seen.state == cowfile.StateReadDone {
		for s.window < int8(len(m.ops))-s.merged && seen.entries[s.window] != 0 {
			if seen.entries[s.window] != m.ops[s.merged+s.window].to+1 {
				return s, fmt.Errorf("entries %v do not match the ops from %d", seen.entries, s.merged)
			}
			s.window++
		}
		if seen.entries[s.window] != 0 {
			return s, fmt.Errorf("too many entries %v", seen.entries)
		}
	}
	if s.merged > 0 || s.window > 0 {
		s.program = m.changed("confirm", []modelStep{progress("confirmed progress", s.merged, seen.state), {what: doSyncCow, name: "sync of the confirmed progress"}})
	}
	return s, nil
}

func progress(name string, merged int8, state cowfile.State) modelStep {
	return modelStep{what: doWrite, name: name, place: place{'p', 0}, value: merged, state: state}
}

// changed lets a test break a program.
func (m *model) changed(name string, program []modelStep) []modelStep {
	if m.mutate != nil {
		return m.mutate(name, program)
	}
	return program
}

// plan gives a process whose program has ended the next one. A batch reads its
// sources now; it could have done so at any time before, since the view of
// each of them was right all the time.
func (m *model) plan(s *modelState) {
	seen := s.seen()
	if s.window > 0 {
		s.program = m.changed("window", m.writeWindow(*s, seen, s.window))
		return
	}
	c := m.chosen[s.merged]
	ops := m.ops[s.merged:][:c.n]
	if !c.window {
		s.program = m.changed("batch", m.batch(*s, seen, ops))
		return
	}
	var p []modelStep
	entries := modelStep{what: doWrite, name: "entries", place: place{'e', 0}}
	for i, o := range ops {
		p = append(p, modelStep{what: doWrite, name: "scratch", place: place{'s', int8(i)}, value: seen.base[o.from]})
		entries.list[i] = o.to + 1
		seen.scratch[i] = seen.base[o.from]
	}
	p = append(p, entries, modelStep{what: doSyncCow, name: "sync of the scratch area"},
		progress("state", s.merged, cowfile.StateReadDone), modelStep{what: doSyncCow, name: "sync of the state"},
		modelStep{what: doShowWindow, value: int8(c.n)})
	s.program = m.changed("scratch", append(p, m.writeWindow(*s, seen, int8(c.n))...))
}

func (m *model) batch(s modelState, seen durable, ops []copyOp) (p []modelStep) {
	for _, o := range ops {
		p = append(p, modelStep{what: doWrite, name: "base", place: place{'b', o.to}, value: seen.base[o.from]})
	}
	return append(inBlockOrder(p), commitSteps(s.merged+int8(len(ops)))...)
}

func (m *model) writeWindow(s modelState, seen durable, n int8) (p []modelStep) {
	for i, o := range m.ops[s.merged:][:n] {
		p = append(p, modelStep{what: doWrite, name: "base", place: place{'b', o.to}, value: seen.scratch[i]})
	}
	return append(inBlockOrder(p), commitSteps(s.merged+n)...)
}

func inBlockOrder(p []modelStep) []modelStep {
	slices.SortFunc(p, func(a, b modelStep) int { return int(a.place.index) - int(b.place.index) })
	return p
}

func commitSteps(merged int8) []modelStep {
	return []modelStep{
		{what: doSyncBase, name: "sync of the base"},
		progress("progress", merged, cowfile.StateMerging), {what: doSyncCow, name: "sync of the progress"},
		{what: doPublish, value: merged},
	}
}

// advance does the next step.
func (m *model) advance(s modelState) modelState {
	step := s.program[0]
	s.program = s.program[1:]
	switch step.what {
	case doWrite:
		s.pending = pendingWith(s.pending, step)
	case doSyncBase, doSyncCow:
		s.sync(step.what == doSyncBase)
	case doShowWindow:
		s.window = step.value
	case doPublish:
		s.merged, s.window = step.value, 0
	}
	return s
}

// pendingWith adds a write, in the order of places, which are independent. The
// same write to the same place, made before by a process that was killed, adds
// nothing to what can be left or seen.
func pendingWith(pending []modelStep, step modelStep) (all []modelStep) {
	for _, w := range pending {
		if w != step {
			all = append(all, w)
		}
	}
	all = append(all, step)
	slices.SortStableFunc(all, func(a, b modelStep) int {
		return cmp.Or(int(a.place.area)-int(b.place.area), int(a.place.index)-int(b.place.index))
	})
	return all
}

func (s *modelState) sync(base bool) {
	var left []modelStep
	for _, w := range s.pending {
		if (w.place.area == 'b') == base {
			s.d.write(w)
		} else {
			left = append(left, w)
		}
	}
	s.pending = left
}

// walk visits every state.
func (m *model) walk() error {
	m.states, m.durable = map[string]bool{}, map[durable]bool{}
	d := durable{}
	for b := range d.base {
		d.base[b] = int8(b + 1)
	}
	return m.begin(d, nil)
}

func (m *model) begin(d durable, pending []modelStep) error {
	s, err := m.open(d, pending)
	if err != nil {
		return err
	}
	return m.visit(s)
}

func (m *model) visit(s modelState) error {
	k := s.key()
	if m.states[k] {
		return nil
	}
	m.states[k] = true
	if err := m.check(s); err != nil {
		return err
	}
	if err := m.crash(s); err != nil {
		return err
	}
	if len(s.program) == 0 {
		if int(s.merged) == len(m.ops) {
			return m.checkEnd(s)
		}
		m.plan(&s)
	}
	return m.visit(m.advance(s))
}

func (m *model) checkEnd(s modelState) error {
	if want := m.target(); s.d.base != want {
		return fmt.Errorf("expected the merged base to be %v, found %v", want, s.d.base)
	}
	return nil
}

// crash begins a process after a kill, and after each power cut.
func (m *model) crash(s modelState) error {
	if err := m.begin(s.d, s.pending); err != nil {
		return fmt.Errorf("%w; killed", err)
	}
	for kept := range 1 << len(s.pending) {
		d := s.d
		for i, w := range s.pending {
			if kept>>i&1 != 0 {
				d.write(w)
			}
		}
		if d.merged < s.d.merged {
			return fmt.Errorf("expected %d merged ops at least, found %d", s.d.merged, d.merged)
		}
		m.durable[d.meaning()] = true
		if err := m.begin(d, nil); err != nil {
			return fmt.Errorf("%w; power cut, kept %b of %v", err, kept, s.pending)
		}
	}
	return nil
}

// meaning clears what nobody reads: the scratch area unless it holds a window.
func (d durable) meaning() durable {
	if d.state != cowfile.StateReadDone {
		d.entries, d.state = [modelBlocks + 1]int8{}, cowfile.StateMerging
		d.scratch = [modelBlocks]int8{}
	}
	for i := range d.scratch {
		if i >= slices.Index(d.entries[:], 0) {
			d.scratch[i] = 0
			d.entries[i] = 0
		}
	}
	return d
}

// cases lists all valid merge orders of copies among n blocks, those included
// that read the block they write. The blocks' numbers matter only to the order
// of writes within a batch, of which any subset may be lost anyway; so among
// many blocks the first op is taken to write block 0.
func cases(n int, ops []copyOp, visit func([]copyOp)) {
	if len(ops) > 0 {
		visit(ops)
	}
	written := map[int8]bool{}
	for _, o := range ops {
		written[o.to] = true
	}
	for to := range int8(n) {
		if written[to] || n == modelBlocks && len(ops) == 0 && to > 0 {
			continue
		}
		for from := range int8(n) {
			if !written[from] {
				cases(n, append(slices.Clip(ops), copyOp{to, from}), visit)
			}
		}
	}
}

// sampleOf writes a case as a COW whose blocks have contents to tell them by.
func sampleOf(t testing.TB, ops []copyOp) sample {
	t.Helper()
	mem := &growMem{}
	w, err := cowfile.NewWriter(cowfile.WriteOnly(mem), cowfile.WriterOptions{Version: 3, OpCountMax: modelBlocks})
	if err != nil {
		t.Fatal(err)
	}
	base := make([]byte, modelBlocks*blockSize)
	for i := range base {
		base[i] = byte(i/blockSize + 1)
	}
	c := sample{name: fmt.Sprint(ops), base: base, target: slices.Clone(base)}
	for _, o := range ops {
		if err := w.Add(cowfile.Op{Type: cowfile.OpCopy, NewBlock: uint32(o.to), Source: uint64(o.from)}, nil); err != nil {
			t.Fatal(err)
		}
		copy(c.target[int(o.to)*blockSize:][:blockSize], base[int(o.from)*blockSize:])
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	c.cow = mem.b
	return c
}

// small are the limits under which three or four ops make several batches.
var small = []mergeLimits{{batch: 2, window: 2, worth: 2}, {batch: 3, window: 2, worth: 3}, {batch: 4, window: 4, worth: 1}, {batch: 1, window: 1, worth: 1}}

// newModels are the models of a case under all limits, with the planner's own
// choice of batches.
func newModels(t testing.TB, ops []copyOp) (all []*model) {
	t.Helper()
	c := sampleOf(t, ops)
	s, err := newRecorder(storageOf(c)).open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, l := range small {
		m := &model{ops: ops, limits: l, sample: c}
		l.complete(modelBlocks)
		for merged := range ops {
			m.chosen = append(m.chosen, choiceOf(s, l, merged))
		}
		all = append(all, m)
	}
	return all
}

func choiceOf(s *Snapshot, l mergeLimits, merged int) choice {
	b := &batch{ops: make([]batchOp, 0, modelBlocks)}
	q := &queue{}
	q.pace.limit.Store(int64(l.batch))
	p := &planner{s: s, q: q, limits: l, it: s.file.Merge(merged), peeked: -1, planned: merged, b: b}
	p.reads.words, p.before.words = make([]uint64, 1), make([]uint64, 1)
	p.choose()
	return choice{len(b.ops), b.window}
}

// Every valid order of up to four copies among up to four blocks, under different
// limits: no state breaks an invariant.
func TestModel(t *testing.T) {
	if raceDetector {
		t.Skip("one goroutine: left to the run without the race detector")
	}
	total, orders := 0, 0
	for n := 2; n <= few(modelBlocks, 3); n++ {
		cases(n, nil, func(ops []copyOp) {
			orders++
			for _, m := range newModels(t, ops) {
				if err := m.walk(); err != nil {
					t.Errorf("%v, %+v: %v", ops, m.limits, err)
				}
				total += len(m.states)
			}
		})
	}
	t.Logf("%d orders, %d states", orders, total)
}

// without drops the steps of a name.
func without(name string) func(string, []modelStep) []modelStep {
	return func(_ string, p []modelStep) []modelStep {
		return slices.DeleteFunc(p, func(s modelStep) bool { return s.name == name })
	}
}

// before moves all steps of a name in front of those of another one.
func before(name, other string) func(string, []modelStep) []modelStep {
	return func(_ string, p []modelStep) []modelStep {
		k := slices.IndexFunc(p, func(s modelStep) bool { return s.name == other })
		if k < 0 {
			return p
		}
		named := func(s modelStep) bool { return s.name == name }
		first := slices.Clone(p[:k])
		for _, s := range p[k:] {
			if named(s) {
				first = append(first, s)
			}
		}
		return append(first, slices.DeleteFunc(p[k:], named)...)
	}
}

// Without any one of its steps, or with two of them the other way round, the
// walk of some case fails: the model tells right from wrong, and no step is
// there for nothing.
func TestModelFinds(t *testing.T) {
	if raceDetector {
		t.Skip("one goroutine: left to the run without the race detector")
	}
	for _, tc := range []struct {
		name   string
		mutate func(string, []modelStep) []modelStep
	}{
		{"no sync of the scratch area", without("sync of the scratch area")},
		{"no sync of the state", without("sync of the state")},
		{"no sync of the base", without("sync of the base")},
		{"no sync of the progress", without("sync of the progress")},
		{"no confirmed progress", func(name string, p []modelStep) []modelStep {
			if name == "confirm" {
				return nil
			}
			return p
		}},
		{"no sync of the confirmed progress", without("sync of the confirmed progress")},
		{"no entries", without("entries")},
		{"no state", without("state")},
		{"progress before the base's sync", before("progress", "sync of the base")},
		{"progress before the base", before("progress", "base")},
		{"state before the scratch area", before("state", "scratch")},
		{"state before the scratch area's sync", before("state", "sync of the scratch area")},
		{"base before the state's sync", before("base", "sync of the state")},
		{"base before the state", before("base", "state")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := findIn(t, 3, func(m *model) { m.mutate = tc.mutate }); err == nil {
				t.Error("expected a walk to fail")
			} else {
				t.Log(err)
			}
		})
	}
	t.Run("batches with conflicts", func(t *testing.T) {
		err := findIn(t, 3, func(m *model) {
			for merged := range m.chosen {
				m.chosen[merged] = choice{n: min(2, len(m.ops)-merged)}
			}
		})
		if err == nil {
			t.Error("expected a walk to fail")
		}
	})
}

// findIn returns the first failure among all the cases of n blocks.
func findIn(t *testing.T, n int, change func(*model)) (found error) {
	t.Helper()
	cases(n, nil, func(ops []copyOp) {
		if found != nil {
			return
		}
		for _, m := range newModels(t, ops) {
			change(m)
			if err := m.walk(); err != nil {
				found = fmt.Errorf("%v, %+v: %w", ops, m.limits, err)
			}
		}
	})
	return found
}

// The real merge on a device that loses any subset of pending blocks, with
// crash after crash until there is nothing new, leaves the same durable states
// as the model: each that the model has, and none that it has not.
func TestModelIsTheMerge(t *testing.T) {
	orders, states := 0, 0
	cases(3, nil, func(ops []copyOp) {
		if orders++; orders%few(1, 9) != 0 {
			return
		}
		for k, m := range newModels(t, ops) {
			if k != orders%len(small) {
				continue
			}
			if err := m.walk(); err != nil {
				t.Fatal(err)
			}
			states += len(m.durable)
			m.compare(t, realStates(t, m.sample, m.limits))
		}
	})
	t.Logf("%d orders, %d durable states", orders, states)
}

func (m *model) compare(t *testing.T, merge map[durable]bool) {
	t.Helper()
	for d := range m.durable {
		if !merge[d] {
			t.Errorf("%v, %+v: the merge never leaves %+v", m.ops, m.limits, d)
		}
	}
	for d := range merge {
		if !m.durable[d] {
			t.Errorf("%v, %+v: the model never leaves %+v", m.ops, m.limits, d)
		}
	}
}

// realStates are the durable states that the merge leaves, in the model's words.
// Storages of which a merge sees the same are taken for one: that it does not
// look at the rest is for TestCrashWalk.
func realStates(t *testing.T, c sample, limits mergeLimits) map[durable]bool {
	t.Helper()
	all := map[durable]bool{}
	keyOf := func(s storage) uint64 {
		d := modelOf(s)
		var h maphash.Hash
		h.SetSeed(pageSeed)
		maphash.WriteComparable(&h, d)
		for _, p := range s.pieces() {
			maphash.WriteComparable(&h, p.disk)
			maphash.WriteComparable(&h, p.off)
			_, _ = h.Write(p.data)
		}
		if len(s.pieces()) == 0 {
			all[d] = true
		}
		return h.Sum64()
	}
	w := &walker{c: c, limits: limits, depth: math.MaxInt, whole: true, keyOf: keyOf}
	if err := w.walk(); err != nil {
		t.Fatal(err)
	}
	return all
}

// modelOf reads what is durable in a storage, by the offsets of the format.
func modelOf(s storage) (d durable) {
	cow := s[cowDisk].durable
	for b, p := range s[baseDisk].durable.pages {
		d.base[b] = int8(p.b[0])
	}
	const headerSize, entrySize = 78, 16
	first := cow.pages[0].b[:]
	d.merged, d.state = int8(first[progressOffset]), cowfile.State(first[headerSize])
	for i := range d.scratch {
		e := first[headerSize+1+i*entrySize:]
		off := binary.LittleEndian.Uint64(e[8:])
		if off == 0 || d.state != cowfile.StateReadDone {
			break
		}
		d.entries[i], d.scratch[i] = int8(e[0])+1, int8(cow.pages[off/blockSize].b[off%blockSize])
	}
	return d.meaning()
}
