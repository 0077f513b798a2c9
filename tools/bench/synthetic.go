package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"cowbird/formats/compress"
	"cowbird/formats/cowfile"
)

// Generated COW files, each for one thing that the image pair does not show.

// million is the number of ops of the COW files for the index.
const million = 1 << 20

// writeCow makes a COW file with the ops that add gives.
func writeCow(path string, o cowfile.WriterOptions, add func(cowfile.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := cowfile.NewWriter(f, o)
	if err != nil {
		return err
	}
	if err := add(w); err != nil {
		return err
	}
	if _, err := w.Finish(); err != nil {
		return err
	}
	return f.Sync()
}

// runLike is n ops as updates have them: files that have moved, every eighth with
// small changes. Their sources end before block 3n.
func runLike(path string, n uint32) error {
	const runBlocks = 200
	compressor, err := compress.New("lz4", 0, blockSize)
	if err != nil {
		return err
	}
	enc := cowfile.NewEncoder(3, cowfile.LZ4, compressor)
	delta := make([]byte, blockSize)
	return writeCow(path, cowfile.WriterOptions{Version: 3, Compression: cowfile.LZ4, OpCountMax: n}, func(w cowfile.Writer) error {
		for i := range n {
			o := cowfile.Op{Type: cowfile.OpCopy, NewBlock: i + i/runBlocks*3, Source: uint64(i) + 2*uint64(n)}
			var stored []byte
			if i/runBlocks%8 == 0 {
				o.Type, o.Source = cowfile.OpXor, o.Source*blockSize
				delta[0], delta[1] = byte(i), byte(i>>8)
				var err error
				if stored, o.Compression, err = enc.Encode(delta); err != nil {
					return err
				}
			}
			if err := w.Add(o, stored); err != nil {
				return err
			}
		}
		return nil
	})
}

// scattered is a million ops none of which is next to another: the worst case
// of the index.
func scattered(path string) error {
	order := rand.New(rand.NewPCG(1, 2)).Perm(million)
	return writeCow(path, cowfile.WriterOptions{Version: 3, OpCountMax: million}, func(w cowfile.Writer) error {
		for _, i := range order {
			if err := w.Add(cowfile.Op{Type: cowfile.OpZero, NewBlock: uint32(2 * i)}, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// extent is blocks that move together, at most longestMove.
type extent struct{ to, from, blocks uint32 }

const longestMove = 516

// movedApart fills the first half of an image with extents of its second half,
// in another order: copies that do not overlap.
func movedApart(blocks uint32) (moves []extent) {
	r := rand.New(rand.NewPCG(3, 4))
	half := blocks / 2
	for at := uint32(0); at < half; {
		n := min(16+r.Uint32N(500), half-at)
		moves = append(moves, extent{from: half + at, blocks: n})
		at += n
	}
	r.Shuffle(len(moves), func(i, j int) { moves[i], moves[j] = moves[j], moves[i] })
	at := uint32(0)
	for i := range moves {
		moves[i].to = at
		at += moves[i].blocks
	}
	return moves
}

// movedALittle moves extents by less than their length: all of them overlap.
func movedALittle(blocks uint32) (moves []extent) {
	r := rand.New(rand.NewPCG(5, 6))
	for at := uint32(0); at+600 < blocks; {
		n, by := 100+r.Uint32N(400), 1+r.Uint32N(60)
		moves = append(moves, extent{to: at, from: at + by, blocks: n})
		at += n + by
	}
	return moves
}

// movedByOne moves all blocks but the last by one.
func movedByOne(blocks uint32) (moves []extent) {
	for at := uint32(0); at < blocks-1; at += longestMove {
		moves = append(moves, extent{to: at, from: at + 1, blocks: min(longestMove, blocks-1-at)})
	}
	return moves
}

// copies writes the COW that makes these moves, which must be in an order in
// which they can be made.
func copies(path string, moves []extent) error {
	ops := 0
	for _, m := range moves {
		ops += int(m.blocks)
	}
	return writeCow(path, cowfile.WriterOptions{Version: 3, OpCountMax: uint32(ops)}, func(w cowfile.Writer) error {
		for _, m := range moves {
			for k := range m.blocks {
				if err := w.Add(cowfile.Op{Type: cowfile.OpCopy, NewBlock: m.to + k, Source: uint64(m.from + k)}, nil); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// noiseFile makes a file of blocks that all differ.
func noiseFile(path string, blocks uint32) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{1}), int64(blocks)*blockSize); err != nil {
		return err
	}
	return f.Sync()
}

// dense makes a file of the blocks of an image that are not zero.
func dense(path, image string) error {
	in, err := os.ReadFile(image)
	if err != nil {
		return err
	}
	zero, out := string(make([]byte, blockSize)), in[:0]
	for off := 0; off+blockSize <= len(in); off += blockSize {
		if b := in[off : off+blockSize]; string(b) != zero {
			out = append(out, b...)
		}
	}
	if len(out) == 0 {
		return fmt.Errorf("%s: expected contents, found zeros only", image)
	}
	return os.WriteFile(path, out, 0o600)
}
