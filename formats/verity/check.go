package verity

import (
	"bytes"
	"fmt"
	"io"
)

// Damage is which blocks are not what was hashed.
type Damage struct {
	Data *Blocks
	Tree *Blocks // of the tree as it is stored, numbered from its start
}

// Err is nil if there is none, and otherwise wraps ErrCorrupt.
func (d *Damage) Err() error {
	switch data, tree := d.Data.Count(), d.Tree.Count(); {
	case tree > 0 && data > 0:
		return fmt.Errorf("%w: expected none, found %d of data, the first %d, and %d of the hash tree, the first %d", ErrCorrupt, data, d.Data.First(), tree, d.Tree.First())
	case tree > 0:
		return fmt.Errorf("%w: expected none, found %d of the hash tree, the first %d", ErrCorrupt, tree, d.Tree.First())
	case data > 0:
		return fmt.Errorf("%w: expected none, found %d of data, the first %d", ErrCorrupt, data, d.Data.First())
	}
	return nil
}

// level is the blocks whose hashes are stored together. A level's blocks are
// numbered from its start.
type level struct {
	offset int64 // bytes, in the tree or in the data
	blocks int64
	hashes int64 // where in the tree, or -1 for what has its hash in the root
}

// plan lists the levels from the top to the data.
func (t *Tree) plan(size int64) (all []level) {
	sizes, offset, hashes := t.levels(size), int64(0), int64(-1)
	for i := len(sizes) - 1; i >= 0; i-- {
		all = append(all, level{offset, sizes[i] / t.blockSize, hashes})
		offset, hashes = offset+sizes[i], offset
	}
	return append(all, level{0, size / t.blockSize, hashes})
}

// Check compares size bytes of data, whole blocks, with a tree and that with the root.
// Only the root is believed, but each block is compared with the hash that the tree
// has for it even if that part of the tree is damaged: so good blocks of data are not
// blamed for the tree, but are proved to be good only if all the tree is.
//
// It reads everything once, and needs 1 MiB a processor and a bit for each block. The
// error is of reading, or says that size or root cannot be; what the data is worth is
// in Damage.
func (t *Tree) Check(data io.ReaderAt, size int64, tree io.ReaderAt, root []byte) (*Damage, error) {
	if err := t.checkArguments(size, root); err != nil {
		return nil, err
	}
	found, err := t.checkLevels(data, size, tree, root)
	if err != nil {
		return nil, err
	}
	return t.damage(size, found), nil
}

func (t *Tree) checkArguments(size int64, root []byte) error {
	if size <= 0 || size%t.blockSize != 0 {
		return fmt.Errorf("%w: expected a multiple of %d bytes, found %d", ErrSize, t.blockSize, size)
	}
	if n := t.hash().Size(); len(root) != n {
		return fmt.Errorf("%w: expected a root of %d bytes, found %d", ErrUnsupported, n, len(root))
	}
	return nil
}

// checkLevels gives the bad blocks of each level.
func (t *Tree) checkLevels(data io.ReaderAt, size int64, tree io.ReaderAt, root []byte) (found []*Blocks, err error) {
	plan := t.plan(size)
	for i, l := range plan {
		from := tree
		if i == len(plan)-1 {
			from = data
		}
		bad, err := t.checkLevel(l, from, tree, root)
		if err != nil {
			return nil, err
		}
		found = append(found, bad)
	}
	return found, nil
}

func (t *Tree) checkLevel(l level, from, tree io.ReaderAt, root []byte) (*Blocks, error) {
	bad := NewBlocks(l.blocks)
	err := parallel(l.blocks*t.blockSize, 1<<20, func(buf []byte, off int64) error {
		if err := readFull(from, buf, l.offset+off); err != nil {
			return err
		}
		first, n := off/t.blockSize, int64(len(buf))/t.blockSize
		want, err := t.hashes(l, first, n, tree, root)
		if err != nil {
			return err
		}
		h := t.newHasher()
		for i := range n {
			if !h.is(buf[i*t.blockSize:][:t.blockSize], want[i*int64(t.digest):]) {
				bad.Add(first + i)
			}
		}
		return nil
	})
	return bad, err
}

// hashes are those that n blocks of a level should have.
func (t *Tree) hashes(l level, first, n int64, tree io.ReaderAt, root []byte) ([]byte, error) {
	if l.hashes < 0 {
		return root, nil
	}
	b := make([]byte, n*int64(t.digest))
	return b, readFull(tree, b, l.hashes+first*int64(t.digest))
}

// damage puts the levels of a tree together, as they are stored.
func (t *Tree) damage(size int64, found []*Blocks) *Damage {
	plan, last := t.plan(size), len(found)-1
	d := &Damage{Data: found[last], Tree: NewBlocks(t.Size(size) / t.blockSize)}
	for i, bad := range found[:last] {
		for block := range bad.All() {
			d.Tree.Add(plan[i].offset/t.blockSize + block)
		}
	}
	return d
}

// Root computes the root over size bytes of data, whole blocks, as Build does, and
// with the memory that it needs.
func (t *Tree) Root(data io.ReaderAt, size int64) ([]byte, error) {
	return t.Build(data, size, io.Discard)
}

// CheckRoot compares the data with the root alone, for which the tree is computed. It
// cannot tell which block is wrong; the error wraps ErrRoot then.
func (t *Tree) CheckRoot(data io.ReaderAt, size int64, root []byte) error {
	found, err := t.Root(data, size)
	if err == nil && !bytes.Equal(found, root) {
		err = fmt.Errorf("%w: expected %x, found %x", ErrRoot, root, found)
	}
	return err
}
