package cow

import (
	"bytes"
	"cmp"
	"crypto/subtle"
	"slices"

	"cowbird/formats/cowfile"
)

// trier compares fresh blocks with places of the base: one of several workers.
type trier struct {
	b                 *builder
	trial, real       *cowfile.Encoder // made when needed
	places            []int64          // bytes of the base that try tries; those named most come first
	votes             []int64
	ranked            []ranked
	unit              []byte
	block, src, delta [blockSize]byte
}

// ranked is a place with a count: votes, or bytes in common.
type ranked struct {
	place int64
	count int
}

func newTrier(b *builder) *trier { return &trier{b: b, unit: make([]byte, b.o.MaxUnit)} }

const (
	// opCost is what an op takes in the table.
	opCost = 16
	// ownPlaceCost is what an op must save to read the block that it writes,
	// which makes a merge write it twice.
	ownPlaceCost = 64
	// maxTornBytes is how many bytes of a block may differ from its source: a
	// delta of more is not worth compressing.
	maxTornBytes = blockSize * 7 / 8
)

func (t *trier) size(e **cowfile.Encoder, data []byte) (int, error) {
	if *e == nil {
		compressor := t.b.o.NewCompressor
		if e == &t.trial && t.b.o.NewTrial != nil {
			compressor = t.b.o.NewTrial
		}
		var err error
		if *e, err = newEncoder(t.b.o.Version, t.b.o.Compression, compressor); err != nil {
			return 0, err
		}
	}
	stored, _, err := (*e).Encode(data)
	return len(stored), err
}

// weigh finds what the blocks of a run take.
func (t *trier) weigh(r run) error {
	data, err := readBlocks(t.b.o.Target, "target", int(r.first), t.unit[:int(r.n)*blockSize])
	if err != nil {
		return err
	}
	together, err := t.unitSizes(&t.trial, data)
	if err != nil {
		return err
	}
	alone, sum := make([]int, r.n), 0
	for k := range alone {
		if alone[k], err = t.size(&t.trial, data[k*blockSize:][:blockSize]); err != nil {
			return err
		}
		sum += alone[k]
	}
	for k, n := range alone {
		t.b.own[int(r.first)+k] = uint16(min(blockSize, max(1, n*together/sum)))
	}
	return nil
}

// unitSizes is what some blocks take, cut into units as they will be.
func (t *trier) unitSizes(e **cowfile.Encoder, data []byte) (size int, err error) {
	for _, o := range appendUnits(nil, 0, uint32(len(data)/blockSize), uint32(t.b.o.MaxUnit/blockSize)) {
		n, err := t.size(e, data[int(o.NewBlock)*blockSize:][:o.Unit()])
		if err != nil {
			return 0, err
		}
		size += n + opCost
	}
	return size, nil
}

// search looks for some fresh blocks in an index. Each is tried with the distance
// of the one before it, too.
func (t *trier) search(x *index, blocks []uint32) error {
	distance, known := int64(0), false
	for _, i := range blocks {
		if err := t.b.readTarget(i, t.block[:]); err != nil {
			return err
		}
		t.propose(x)
		if known {
			t.places = append(t.places, int64(i)*blockSize+distance)
		}
		if err := t.try(i); err != nil {
			return err
		}
		if t.b.kind[i] == changed {
			distance, known = t.b.sourceByte(i)-int64(i)*blockSize, true
		}
	}
	return nil
}

func (b *builder) readTarget(i uint32, buf []byte) error {
	_, err := readBlocks(b.o.Target, "target", int(i), buf)
	return err
}

func (b *builder) sourceByte(i uint32) int64 {
	return int64(b.source[i])*blockSize + int64(b.shifts[i])
}

// propose sets places to those that the anchors of the block name most.
func (t *trier) propose(x *index) {
	t.votes = t.votes[:0]
	x.anchors(t.block[:], func(at int, hash uint64) { t.votes = x.places(t.votes, hash, int64(at)) })
	slices.Sort(t.votes)
	t.ranked = t.ranked[:0]
	for k := 0; k < len(t.votes); {
		n := 1
		for k+n < len(t.votes) && t.votes[k+n] == t.votes[k] {
			n++
		}
		t.ranked = append(t.ranked, ranked{t.votes[k], n})
		k += n
	}
	compared, _ := t.b.o.Effort.tries()
	t.rank()
	t.places = t.places[:0]
	for _, r := range t.ranked[:min(len(t.ranked), compared)] {
		t.places = append(t.places, r.place)
	}
}

// rank sorts by count, the highest first, and then by place.
func (t *trier) rank() {
	slices.SortFunc(t.ranked, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(b.count, a.count), cmp.Compare(a.place, b.place))
	})
}

// try compares block i with the places, and makes it a changed one if the delta
// to the best of them takes less than what is known.
func (t *trier) try(i uint32) error {
	if err := t.b.readTarget(i, t.block[:]); err != nil {
		return err
	}
	if err := t.compare(); err != nil {
		return err
	}
	_, compressed := t.b.o.Effort.tries()
	for _, r := range t.ranked[:min(len(t.ranked), compressed)] {
		if err := t.load(r.place); err != nil {
			return err
		}
		n, err := t.size(&t.trial, t.delta[:])
		if err != nil {
			return err
		}
		t.take(i, r.place, n)
	}
	return nil
}

// take makes block i a changed one if that takes the least.
func (t *trier) take(i uint32, place int64, n int) {
	b := t.b
	best := int(b.own[i])
	if b.kind[i] == changed {
		best = int(b.delta[i])
	}
	cost := n
	if d := place - int64(i)*blockSize; d > -blockSize && d < blockSize {
		cost += ownPlaceCost
	}
	if b.kind[i] != changed {
		cost += opCost
	}
	if cost >= best {
		return
	}
	b.kind[i], b.delta[i] = changed, uint16(min(n, blockSize))
	b.source[i], b.shifts[i] = uint32(place/blockSize), uint16(place%blockSize)
}

// load sets delta to the difference between the block and a place of the base.
func (t *trier) load(place int64) error {
	if err := readSource(t.b.o.Base, t.src[:], place); err != nil {
		return err
	}
	subtle.XORBytes(t.delta[:], t.block[:], t.src[:])
	return nil
}

// compare ranks the places that are in the base, each once, by the bytes that they
// have in common with the block, and drops those that have too few.
func (t *trier) compare() error {
	last := int64(t.b.o.Base.blocks()-1) * blockSize
	slices.Sort(t.places)
	t.places = slices.Compact(t.places)
	t.ranked = t.ranked[:0]
	for _, p := range t.places {
		if p < 0 || p > last {
			continue
		}
		if err := t.load(p); err != nil {
			return err
		}
		if n := bytes.Count(t.delta[:], []byte{0}); n >= blockSize-maxTornBytes {
			t.ranked = append(t.ranked, ranked{p, n})
		}
	}
	t.rank()
	return nil
}

// settle compares what has been found for a run with the run as it is, in the
// sizes that will be stored.
func (t *trier) settle(r run) error {
	b := t.b
	kinds := b.kind[r.first:][:r.n]
	if !slices.Contains(kinds, changed) {
		return nil
	}
	data, err := readBlocks(b.o.Target, "target", int(r.first), t.unit[:int(r.n)*blockSize])
	if err != nil {
		return err
	}
	whole, err := t.unitSizes(&t.real, data)
	if err != nil {
		return err
	}
	mixed, err := t.mixedSize(r, data)
	if err == nil && mixed >= whole {
		for k := range kinds {
			kinds[k] = fresh
		}
	}
	return err
}

// mixedSize is what a run takes with the deltas that have been found, which it
// remembers.
func (t *trier) mixedSize(r run, data []byte) (size int, err error) {
	b := t.b
	for k := 0; k < int(r.n); {
		i, n := r.first+uint32(k), 1
		took := 0
		if b.kind[i] == changed {
			copy(t.block[:], data[k*blockSize:])
			if err = t.load(b.sourceByte(i)); err != nil {
				return 0, err
			}
			took, err = t.size(&t.real, t.delta[:])
			b.delta[i] = uint16(min(took, blockSize))
			took += opCost
		} else {
			for k+n < int(r.n) && b.kind[int(i)+n] == fresh {
				n++
			}
			took, err = t.unitSizes(&t.real, data[k*blockSize:(k+n)*blockSize])
		}
		if err != nil {
			return 0, err
		}
		size, k = size+took, k+n
	}
	return size, nil
}
