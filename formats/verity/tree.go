package verity

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/bits"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/crypto/blake2b"
)

var (
	// ErrUnsupported: an algorithm or a size that is not known here.
	ErrUnsupported = errors.New("unsupported kind of hash tree")
	// ErrSize: data that are no whole blocks.
	ErrSize = errors.New("not a whole number of blocks")
	// ErrCorrupt: blocks are not what was hashed.
	ErrCorrupt = errors.New("damaged blocks")
	// ErrRoot: data have another root.
	ErrRoot = errors.New("wrong root of the hash tree")
)

// Tree is a kind of hash tree. It is immutable and safe for concurrent use.
type Tree struct {
	hash      func() hash.Hash
	digest    int // bytes, padded
	salt      []byte
	blockSize int64
}

// Algorithms are the hashes that NewTree knows.
var Algorithms = []string{"sha256", "sha1", "blake2b-256"}

// NewTree gives the trees by one of Algorithms with a salt, over blocks of so many
// bytes, a power of two.
func NewTree(algorithm string, salt []byte, blockSize int64) (*Tree, error) {
	t := &Tree{salt: salt, blockSize: blockSize}
	switch algorithm {
	case "sha1":
		t.hash = sha1.New
	case "sha256":
		t.hash = sha256.New
	case "blake2b-256":
		t.hash = newBlake2b
	default:
		return nil, fmt.Errorf("%w: expected %s, found %q", ErrUnsupported, strings.Join(Algorithms, ", "), algorithm)
	}
	t.digest = 1 << bits.Len(uint(t.hash().Size()-1))
	if blockSize < 512 || blockSize > 1<<20 || blockSize&(blockSize-1) != 0 {
		return nil, fmt.Errorf("%w: expected blocks of a power of two bytes, found %d", ErrUnsupported, blockSize)
	}
	return t, nil
}

func newBlake2b() hash.Hash {
	h, err := blake2b.New256(nil)
	if err != nil {
		panic(err) // only a key can be wrong
	}
	return h
}

// levels are the sizes in bytes of the levels for so many bytes of data, the
// lowest first.
func (t *Tree) levels(data int64) (sizes []int64) {
	for n := data; n > t.blockSize; {
		hashes := n / t.blockSize * int64(t.digest)
		n = (hashes + t.blockSize - 1) / t.blockSize * t.blockSize
		sizes = append(sizes, n)
	}
	return sizes
}

// Size is how many bytes the tree for so many bytes of data has.
func (t *Tree) Size(data int64) (n int64) {
	for _, l := range t.levels(data) {
		n += l
	}
	return n
}

// RootSize is how many bytes a root has.
func (t *Tree) RootSize() int { return t.hash().Size() }

// Build reads size bytes of data, whole blocks, and writes the tree to out, a level
// at a time. It gives the root's hash. Besides the tree, which is kept in
// memory until then, it needs 1 MiB a processor.
func (t *Tree) Build(data io.ReaderAt, size int64, out io.Writer) (root []byte, err error) {
	if size <= 0 || size%t.blockSize != 0 {
		return nil, fmt.Errorf("%w: expected a multiple of %d bytes, found %d", ErrSize, t.blockSize, size)
	}
	sizes := t.levels(size)
	tree := make([]byte, t.Size(size))
	from, fromSize, end := data, size, int64(len(tree))
	for _, n := range sizes {
		level := tree[end-n : end]
		if err := t.level(from, fromSize, level); err != nil {
			return nil, err
		}
		from, fromSize = memory(level), n
		end -= n
	}
	top := make([]byte, t.blockSize)
	if err := readFull(from, top, 0); err != nil {
		return nil, err
	}
	for at, i := int64(0), len(sizes)-1; i >= 0; i-- {
		if _, err := out.Write(tree[at : at+sizes[i]]); err != nil {
			return nil, fmt.Errorf("write the hash tree: %w", err)
		}
		at += sizes[i]
	}
	return t.newHasher().sum(top), nil
}

// hasher hashes blocks, one at a time.
type hasher struct {
	hash.Hash
	salt []byte
	out  []byte
}

func (t *Tree) newHasher() *hasher { return &hasher{Hash: t.hash(), salt: t.salt} }

// sum is valid until the next one.
func (h *hasher) sum(block []byte) []byte {
	h.Reset()
	h.Write(h.salt)
	h.Write(block)
	h.out = h.Sum(h.out[:0])
	return h.out
}

// is tells whether a block has the hash that want begins with.
func (h *hasher) is(block, want []byte) bool {
	return bytes.HasPrefix(want, h.sum(block))
}

// level hashes the blocks of what is below.
func (t *Tree) level(from io.ReaderAt, size int64, level []byte) error {
	return parallel(size, 1<<20, func(buf []byte, off int64) error {
		if err := readFull(from, buf, off); err != nil {
			return err
		}
		h := t.newHasher()
		for at := int64(0); at < int64(len(buf)); at += t.blockSize {
			copy(level[(off+at)/t.blockSize*int64(t.digest):], h.sum(buf[at:at+t.blockSize]))
		}
		return nil
	})
}

// parallel cuts size bytes into pieces, and has them done by as many workers as
// there are processors.
func parallel(size, piece int64, do func(buf []byte, off int64) error) error {
	var mu sync.Mutex
	var failure error
	next := int64(0)
	take := func() (int64, bool) {
		mu.Lock()
		defer mu.Unlock()
		off := next
		next += piece
		return off, off < size && failure == nil
	}
	var wg sync.WaitGroup
	for range min(int64(runtime.GOMAXPROCS(0)), (size+piece-1)/piece) {
		wg.Go(func() {
			buf := make([]byte, piece)
			for {
				off, more := take()
				if !more {
					return
				}
				if err := do(buf[:min(piece, size-off)], off); err != nil {
					mu.Lock()
					failure = err
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return failure
}

// memory is bytes to be read at.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, m[min(off, int64(len(m))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	if n, err := r.ReadAt(p, off); n < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}
