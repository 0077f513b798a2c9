package verity

import (
	"bytes"
	"crypto/subtle"
	"fmt"
	"io"
)

// ReaderWriterAt is what can be repaired.
type ReaderWriterAt interface {
	io.ReaderAt
	io.WriterAt
}

// Repair corrects blocks of the size bytes that parity was built of. bad are those
// that are known to be wrong, and the only ones that are written; good tells whether
// contents are a block's, and may be called by several goroutines.
//
// For each byte of such a block there is a code word with a byte of 254 other blocks. In
// a code word as many bytes can be wrong as there are roots if all of them are in blocks
// known to be bad, and half as many otherwise. Each is tried, first as erasures, then
// as errors, until no more blocks become good.
//
// repaired are the blocks that were written. Errors are of reading and writing; that
// blocks stay bad is none.
func (f FEC) Repair(area ReaderWriterAt, size int64, parity io.ReaderAt, bad *Blocks, good func(block int64, contents []byte) bool) (repaired *Blocks, err error) {
	if err := f.check(size); err != nil {
		return nil, err
	}
	repaired = NewBlocks(size / f.BlockSize)
	rounds := f.rounds(size)
	wanted := NewBlocks(rounds)
	for block := range bad.All() {
		wanted.Add(block % rounds)
	}
	err = parallel(rounds, 1, func(_ []byte, i int64) error {
		if !wanted.Has(i) {
			return nil
		}
		r := &round{FEC: f, area: area, size: size, number: i, rounds: rounds, good: good}
		for block := i; block < size/f.BlockSize; block += rounds {
			if bad.Has(block) {
				r.bad = append(r.bad, int((block-i)/rounds))
			}
		}
		if err := r.read(parity); err != nil {
			return err
		}
		return r.repair(repaired)
	})
	return repaired, err
}

// round is the code words whose bytes are in the same blocks, one for each byte of
// a block.
type round struct {
	FEC
	area           ReaderWriterAt
	size           int64
	number, rounds int64
	good           func(block int64, contents []byte) bool

	bad    []int  // positions in the code words
	blocks []byte // by position; what is behind the end is zero
	parity []byte
}

func (r *round) block(position int) int64 { return r.number + int64(position)*r.rounds }

func (r *round) contents(position int) []byte {
	return r.blocks[int64(position)*r.BlockSize:][:r.BlockSize]
}

func (r *round) read(parity io.ReaderAt) error {
	n := codeWord - r.Roots
	r.blocks = make([]byte, int64(n)*r.BlockSize)
	for position := range n {
		if err := readPadded(r.area, r.contents(position), r.block(position)*r.BlockSize, r.size); err != nil {
			return err
		}
	}
	r.parity = make([]byte, int64(r.Roots)*r.BlockSize)
	return readFull(parity, r.parity, r.number*int64(len(r.parity)))
}

// repair goes on as long as it finds something to do.
func (r *round) repair(repaired *Blocks) error {
	for {
		before := len(r.bad)
		for _, erased := range [][]int{r.bad, nil} {
			if len(erased) > r.Roots || len(r.bad) == 0 {
				continue
			}
			if err := r.attempt(erased, repaired); err != nil {
				return err
			}
		}
		if len(r.bad) == before || len(r.bad) == 0 {
			return nil
		}
	}
}

// attempt corrects all code words, and keeps of the bad blocks those that became good.
func (r *round) attempt(erased []int, repaired *Blocks) error {
	corrected := r.correct(erased)
	var left []int
	for i, position := range r.bad {
		block := r.block(position)
		if !r.good(block, corrected[i]) {
			left = append(left, position)
			continue
		}
		if _, err := r.area.WriteAt(corrected[i], block*r.BlockSize); err != nil {
			return fmt.Errorf("write block %d: %w", block, err)
		}
		copy(r.contents(position), corrected[i])
		repaired.Add(block)
	}
	r.bad = left
	return nil
}

// correct gives the bad blocks as they would be.
func (r *round) correct(erased []int) [][]byte {
	out := make([][]byte, len(r.bad))
	for i, position := range r.bad {
		out[i] = bytes.Clone(r.contents(position))
	}
	syndromes := r.syndromes()
	if len(erased) > 0 {
		r.fill(out, erased, syndromes)
	}
	r.correctEach(out, erased, syndromes)
	return out
}

// fill does what is needed in most code words, all of them at once: it fills in the erased
// bytes, and leaves the syndromes of what else is wrong.
func (r *round) fill(out [][]byte, erased []int, syndromes []byte) {
	n := int(r.BlockSize)
	values := make([][]byte, len(erased))
	for j, w := range weights(erased) {
		values[j] = make([]byte, n)
		for i := range erased {
			addProducts(values[j], syndromes[i*n:][:n], w[i])
		}
		addProducts(out[j], values[j], 1)
	}
	for j, position := range erased {
		x, power := over(1, locatorOf(position)), byte(1)
		for i := range r.Roots {
			addProducts(syndromes[i*n:][:n], values[j], power)
			power = times(power, x)
		}
	}
}

// correctEach corrects those code words in which something is wrong. Where that is too
// much, the bytes are left as they were: some may be right.
func (r *round) correctEach(out [][]byte, erased []int, syndromes []byte) {
	place := map[int]int{}
	for i, position := range r.bad {
		place[position] = i
	}
	c, one := newCorrector(r.Roots), make([]byte, r.Roots)
	for k := range int(r.BlockSize) {
		wrong := byte(0)
		for i := range one {
			one[i] = syndromes[i*int(r.BlockSize)+k]
			wrong |= one[i]
		}
		if wrong == 0 {
			continue
		}
		found, ok := c.correct(one, erased)
		if !ok {
			for i, position := range r.bad {
				out[i][k] = r.contents(position)[k]
			}
			continue
		}
		for _, e := range found {
			if i, wanted := place[e.position]; wanted {
				out[i][k] ^= e.value
			}
		}
	}
}

// syndromes are the values of all code words at each of the generator's roots: those
// at the first root, then at the second, and so on.
func (r *round) syndromes() []byte {
	n := int(r.BlockSize)
	out := make([]byte, r.Roots*n)
	for i := range r.Roots {
		var products [256]byte
		for b := range products {
			products[b] = times(byte(b), exponents[i])
		}
		sums := out[i*n:][:n]
		for position := range codeWord - r.Roots {
			if i == 0 { // the first root is 1
				subtle.XORBytes(sums, sums, r.contents(position))
				continue
			}
			for k, b := range r.contents(position) {
				sums[k] = products[sums[k]] ^ b
			}
		}
		for p := range r.Roots {
			for k := range sums {
				sums[k] = products[sums[k]] ^ r.parity[k*r.Roots+p]
			}
		}
	}
	return out
}

// Protected is data with its hash tree and error correction. The area is what
// error correction was built of: the data, then the tree, and it may have more.
type Protected struct {
	Tree       *Tree
	Root       []byte
	Size       int64 // bytes of data
	TreeOffset int64 // bytes, in the area
	FEC        FEC   // its blocks are as large as the tree's
	AreaSize   int64 // bytes
	Parity     io.ReaderAt
}

// Repair corrects the damaged blocks of tree and data as far as that is possible, from
// the top of the tree down, so that each block that is written is proved by the root. It
// gives the blocks that it has written, and those that are still damaged, which below
// a damaged block of the tree is not certain.
func (p *Protected) Repair(area ReaderWriterAt) (repaired, left *Damage, err error) {
	if err := p.check(); err != nil {
		return nil, nil, err
	}
	w := &repairer{Protected: p, area: area, tree: offsetReader{area, p.TreeOffset}, plan: p.Tree.plan(p.Size)}
	if w.bad, err = p.Tree.checkLevels(area, p.Size, w.tree, p.Root); err != nil {
		return nil, nil, err
	}
	var fixed []*Blocks
	changed := false
	for i := range w.plan {
		f, err := w.level(i, changed)
		if err != nil {
			return nil, nil, err
		}
		changed = changed || f.Count() > 0
		fixed = append(fixed, f)
	}
	return p.Tree.damage(p.Size, fixed), p.Tree.damage(p.Size, w.bad), nil
}

func (p *Protected) check() error {
	if err := p.Tree.checkArguments(p.Size, p.Root); err != nil {
		return err
	}
	if err := p.FEC.check(p.AreaSize); err != nil {
		return err
	}
	if p.FEC.BlockSize != p.Tree.blockSize {
		return fmt.Errorf("%w: expected error correction of blocks of %d bytes, found %d", ErrUnsupported, p.Tree.blockSize, p.FEC.BlockSize)
	}
	if end := p.AreaSize - p.Tree.Size(p.Size); p.TreeOffset < p.Size || p.TreeOffset > end || p.TreeOffset%p.Tree.blockSize != 0 {
		return fmt.Errorf("%w: expected the hash tree at a block between byte %d and %d, found it at %d", ErrSize, p.Size, end, p.TreeOffset)
	}
	return nil
}

type repairer struct {
	*Protected
	area ReaderWriterAt
	tree io.ReaderAt
	plan []level
	bad  []*Blocks // by level
}

// first is the block of the area that a level begins with.
func (w *repairer) first(i int) int64 {
	if i == len(w.plan)-1 {
		return 0
	}
	return (w.TreeOffset + w.plan[i].offset) / w.FEC.BlockSize
}

// level repairs one level. If blocks above it have changed, which of its own are bad is
// found out anew.
func (w *repairer) level(i int, changed bool) (fixed *Blocks, err error) {
	l, from := w.plan[i], w.tree
	if i == len(w.plan)-1 {
		from = w.area
	}
	if changed {
		if w.bad[i], err = w.Tree.checkLevel(l, from, w.tree, w.Root); err != nil {
			return nil, err
		}
	}
	fixed = NewBlocks(l.blocks)
	if w.bad[i].Count() == 0 {
		return fixed, nil
	}
	first := w.first(i)
	good := func(block int64, contents []byte) bool {
		if block -= first; block < 0 || block >= l.blocks || !w.believed(i, block) {
			return false
		}
		want, err := w.Tree.hashes(l, block, 1, w.tree, w.Root)
		return err == nil && w.Tree.newHasher().is(contents, want)
	}
	repaired, err := w.FEC.Repair(w.area, w.AreaSize, w.Parity, w.erased(), good)
	if err != nil {
		return nil, err
	}
	for block := range repaired.All() {
		fixed.Add(block - first)
		w.bad[i].remove(block - first)
	}
	return fixed, nil
}

// believed tells whether a block's hash is in a good block.
func (w *repairer) believed(i int, block int64) bool {
	return i == 0 || !w.bad[i-1].Has(block/w.fanout())
}

// fanout is how many blocks have their hashes in one.
func (w *repairer) fanout() int64 { return w.Tree.blockSize / int64(w.Tree.digest) }

// erased are the bad blocks of all levels, numbered in the area, but for those that
// only a block of nonsense says are bad.
func (w *repairer) erased() *Blocks {
	all := NewBlocks(w.AreaSize / w.FEC.BlockSize)
	for i, bad := range w.bad {
		for block := range bad.All() {
			if w.believed(i, block) || w.anyGood(i, block/w.fanout()) {
				all.Add(w.first(i) + block)
			}
		}
	}
	return all
}

// anyGood tells whether a block of the tree has the right hash for any of the blocks
// that it is about. If so, most of it is right, even if it is bad itself.
func (w *repairer) anyGood(i int, parent int64) bool {
	first := parent * w.fanout()
	for block := first; block < min(first+w.fanout(), w.plan[i].blocks); block++ {
		if !w.bad[i].Has(block) {
			return true
		}
	}
	return false
}

// offsetReader begins at an offset.
type offsetReader struct {
	io.ReaderAt
	offset int64
}

func (o offsetReader) ReadAt(p []byte, off int64) (int, error) {
	return o.ReaderAt.ReadAt(p, o.offset+off)
}
