package generate

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"cowbird/cow/filemap"
	"cowbird/formats/lz4diff"
)

// Cluster is blocks whose contents erofs has compressed together with LZ4, or that it
// has as they are: then they are as long as their contents.
type Cluster struct {
	Blocks uint64
	Length int64 // of the contents, in bytes
}

func (c Cluster) compressed() bool { return c.Length > int64(c.Blocks)*blockSize }

// Packing is how erofs has compressed a file: clusters, one behind the other in the
// file's blocks.
type Packing struct {
	Padded   bool // clusters begin with zeros if they are not full
	Clusters []Cluster
}

const paddedWord = "padded"

// MarshalText is the form that plans have it in, as BLOCKS:LENGTH of each cluster.
func (p *Packing) MarshalText() ([]byte, error) {
	var b []byte
	if p.Padded {
		b = append(b, paddedWord...)
	}
	for _, c := range p.Clusters {
		b = fmt.Appendf(b, " %d:%d", c.Blocks, c.Length)
	}
	return b, nil
}

// UnmarshalText reads what MarshalText has written.
func (p *Packing) UnmarshalText(b []byte) error {
	words := strings.Fields(string(b))
	if p.Padded = len(words) > 0 && words[0] == paddedWord; p.Padded {
		words = words[1:]
	}
	p.Clusters = make([]Cluster, len(words))
	for i, w := range words {
		blocks, length, _ := strings.Cut(w, ":")
		n, err := strconv.ParseUint(blocks, 10, 32)
		m, err2 := strconv.ParseUint(length, 10, 32)
		if err = errors.Join(err, err2); err != nil {
			return fmt.Errorf("expected BLOCKS:LENGTH of a cluster, found %q: %w", w, err)
		}
		p.Clusters[i] = Cluster{n, int64(m)}
	}
	return nil
}

// packingOf is how a file is compressed; nil if it is not, or not with LZ4 in whole
// blocks.
func packingOf(f filemap.File, padded bool) *Packing {
	p := &Packing{Padded: padded}
	any := false
	for _, e := range f.Extents {
		c := Cluster{uint64((e.Stored + blockSize - 1) / blockSize), e.Length}
		if e.Compressed && (e.Algorithm != 0 || e.Stored%blockSize != 0) {
			return nil
		}
		if !e.Compressed || !c.compressed() {
			c.Length = int64(c.Blocks) * blockSize
		}
		any = any || c.compressed()
		p.Clusters = append(p.Clusters, c)
	}
	if !any || p.length() > largestDiff {
		return nil
	}
	return p
}

// appendShape appends all that a packing says to a list of numbers.
func (p *Packing) appendShape(s []uint64) []uint64 {
	if p == nil {
		return s
	}
	kind := uint64(1)
	if p.Padded {
		kind = 2
	}
	s = append(s, kind, uint64(len(p.Clusters)))
	for _, c := range p.Clusters {
		s = append(s, c.Blocks, uint64(c.Length))
	}
	return s
}

// length is that of the contents, in bytes.
func (p *Packing) length() (n int64) {
	for _, c := range p.Clusters {
		n += c.Length
	}
	return n
}

// leastHeader is what a patch takes at least to tell the clusters, in bytes.
func (p *Packing) leastHeader() int { return 8 * len(p.Clusters) }

var errPacking = errors.New("expected clusters of the file's blocks, found others")

// check compares a packing, which may be nil, with the file's blocks.
func (p *Packing) check(file []Range) error {
	if p == nil {
		return nil
	}
	blocks, length, total := uint64(0), int64(0), count(file)
	for _, c := range p.Clusters {
		if c.Blocks == 0 || c.Blocks > total-blocks || c.Length < int64(c.Blocks)*blockSize || c.Length > largestDiff-length {
			return errPacking
		}
		blocks, length = blocks+c.Blocks, length+c.Length
	}
	if blocks != total {
		return errPacking
	}
	return nil
}

// file is what lz4diff wants to know. The algorithm has no meaning yet.
func (p *Packing) file() lz4diff.File {
	f := lz4diff.File{Algorithm: lz4diff.LZ4HC, ZeroPadding: p.Padded}
	for _, c := range p.Clusters {
		f.Clusters = append(f.Clusters, lz4diff.Cluster{Length: c.Length, Stored: int64(c.Blocks) * blockSize})
	}
	return f
}

// stretch is a part of a file's contents that an item makes, in bytes.
type stretch struct{ inFile, inItem, length int64 }

// made is the packing of the blocks that an item makes, whose places it gets for each
// block of the file, −1 for others (Item.inFile), and where their contents are. Of a
// compressed cluster an item makes all or nothing; ok is false if that is not so.
func (p *Packing) made(in []int) (item Packing, stretches []stretch, ok bool) {
	item.Padded = p.Padded
	next, inFile, inItem := 0, int64(0), int64(0) // place in the item, bytes
	add := func(c Cluster, at int64) {
		item.Clusters = append(item.Clusters, c)
		if n := len(stretches); n > 0 && stretches[n-1].inFile+stretches[n-1].length == at {
			stretches[n-1].length += c.Length
		} else {
			stretches = append(stretches, stretch{at, inItem, c.Length})
		}
		inItem += c.Length
	}
	for _, c := range p.Clusters {
		blocks := in[:c.Blocks]
		in = in[c.Blocks:]
		taken := 0
		for k, at := range blocks {
			if at < 0 {
				continue
			}
			if at != next {
				return item, nil, false
			}
			taken, next = taken+1, next+1
			if !c.compressed() {
				add(Cluster{1, blockSize}, inFile+int64(k)*blockSize)
			}
		}
		if c.compressed() && taken > 0 {
			if taken < len(blocks) {
				return item, nil, false
			}
			add(c, inFile)
		}
		inFile += c.Length
	}
	item.join()
	return item, stretches, next > 0
}

// join makes one cluster of neighbours that are not compressed.
func (p *Packing) join() {
	joined := p.Clusters[:0]
	for _, c := range p.Clusters {
		if n := len(joined); n > 0 && !c.compressed() && !joined[n-1].compressed() {
			joined[n-1].Blocks += c.Blocks
			joined[n-1].Length += c.Length
		} else {
			joined = append(joined, c)
		}
	}
	p.Clusters = joined
}
