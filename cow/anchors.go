package cow

import (
	"encoding/binary"
	"math/bits"
)

// An anchor is a place whose next anchorSize bytes have a certain property, which
// one in so many places has. The same bytes are an anchor wherever they are, so
// that two versions of a file have the same anchors where they are the same,
// whatever was inserted before.
const anchorSize = 16

// index finds the anchors of parts of the base by their contents. It is a table
// of fixed size, which forgets what finds no room near its place; what is found
// only proposes. It is filled by one goroutine; then any number may look.
type index struct {
	table []uint64 // place, and some bits of the hash above it; 0 is empty
	rate  uint     // one place of 1<<rate is an anchor, on average
}

const (
	placeBits = 40 // places behind the first TiB are not kept
	maxProbes = 8
	minRate   = 2
)

// newIndex makes an index for size bytes, of at most so many anchors.
func newIndex(size int64, most int) *index {
	x := &index{rate: minRate}
	for size>>x.rate > int64(most) {
		x.rate++
	}
	x.table = make([]uint64, 1<<bits.Len64(uint64(size>>x.rate)*3/2|63))
	return x
}

// anchors calls found with the place in b and the hash of each anchor. (The first
// eight bytes decide. Zeros never are one.)
func (x *index) anchors(b []byte, found func(at int, hash uint64)) {
	shift := 64 - x.rate
	want := uint64(1)<<x.rate - 1
	for i := 0; i+anchorSize <= len(b); i++ {
		v := binary.LittleEndian.Uint64(b[i:]) * 0x9E3779B97F4A7C15
		if v>>shift != want {
			continue
		}
		h := (v ^ v>>29 ^ binary.LittleEndian.Uint64(b[i+8:])) * 0xD6E8FEB86659FD93
		found(i, h^h>>32)
	}
}

func tagOf(hash uint64) uint64 { return hash >> placeBits << placeBits }

func (x *index) slot(hash uint64, probe int) int {
	return int((hash + uint64(probe)) & uint64(len(x.table)-1))
}

func (x *index) add(hash uint64, place int64) {
	if place >= 1<<placeBits {
		return
	}
	for probe := range maxProbes {
		if s := x.slot(hash, probe); x.table[s] == 0 {
			x.table[s] = tagOf(hash) | uint64(place)
			return
		}
	}
}

// places appends to all the places of an anchor, less by.
func (x *index) places(all []int64, hash uint64, by int64) []int64 {
	for probe := range maxProbes {
		e := x.table[x.slot(hash, probe)]
		if e == 0 {
			break
		}
		if tagOf(e) == tagOf(hash) {
			all = append(all, int64(e&(1<<placeBits-1))-by)
		}
	}
	return all
}

// addAll adds the anchors of some ranges of an image, as far as it has them.
func (x *index) addAll(img Image, ranges []Range) error {
	buf := make([]byte, 256<<10)
	for _, r := range ranges {
		off, end := r.bounds(img)
		for off < end {
			b := buf[:min(int64(len(buf)), end-off)]
			if err := readSource(img, b, off); err != nil {
				return err
			}
			x.anchors(b, func(at int, hash uint64) { x.add(hash, off+int64(at)) })
			if off += int64(len(b)); off < end {
				off -= anchorSize - 1
			}
		}
	}
	return nil
}

// bounds is the part of a range that is in the whole blocks of an image.
func (r Range) bounds(img Image) (off, end int64) {
	size := int64(img.blocks()) * blockSize
	if r.Offset < 0 || r.Length <= 0 || r.Offset >= size {
		return 0, 0
	}
	return r.Offset, r.Offset + min(r.Length, size-r.Offset)
}

// total is the length of some ranges.
func total(ranges []Range) (n int64) {
	for _, r := range ranges {
		n += min(max(0, r.Length), maxSize)
	}
	return min(n, maxSize)
}
