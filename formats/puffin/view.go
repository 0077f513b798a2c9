package puffin

import (
	"container/list"
	"fmt"
	"io"
)

// view is the puffed form of a file, made where it is read. It keeps the puffs
// that were used last. It is not safe for concurrent use.
type view struct {
	*layout
	file  io.ReaderAt
	limit int64 // of the bytes kept

	puffer  puffer
	deflate []byte
	kept    map[int]*list.Element // of *keptPuff
	recent  list.List             // the most recent in front
	size    int64
}

type keptPuff struct {
	i int
	b []byte
}

func newView(l *layout, file io.ReaderAt, limit int64) *view {
	return &view{layout: l, file: file, limit: limit, kept: map[int]*list.Element{}}
}

// ReadAt fills b with puffed bytes from off on.
func (v *view) ReadAt(b []byte, off int64) (n int, err error) {
	if off < 0 || off > v.puffedSize {
		return 0, fmt.Errorf("puffed byte %d of %d: %w", off, v.puffedSize, io.EOF)
	}
	if int64(len(b)) > v.puffedSize-off {
		b, err = b[:v.puffedSize-off], io.EOF
	}
	for i := v.stretch(off); n < len(b); {
		var m int
		pos := off + int64(n)
		if i < len(v.puffs) && pos >= v.puffs[i].offset {
			puff, err := v.puff(i)
			if err != nil {
				return n, err
			}
			m = copy(b[n:], puff[pos-v.puffs[i].offset:])
			i++
		} else {
			m = int(min(int64(len(b)-n), v.rawStart(i)+v.rawLen(i)-pos))
			if err := v.raw(b[n:n+m], i, pos-v.rawStart(i)); err != nil {
				return n, err
			}
		}
		n += m
	}
	return n, err
}

// raw reads raw stretch i from its byte at on. Bits of deflates in its first and
// last byte are taken away (specs/payload.md 8.2).
func (v *view) raw(b []byte, i int, at int64) error {
	from, to := v.rawBits(i), v.rawEnd(i)
	off := int64(from/8) + at
	if err := readAll(v.file, b, off); err != nil {
		return err
	}
	if last := len(b) - 1; uint64(off+int64(last)+1)*8 > to {
		b[last] &= 1<<(to%8) - 1
	}
	if at == 0 {
		b[0] >>= from % 8
	}
	return nil
}

func readAll(r io.ReaderAt, b []byte, off int64) error {
	if n, err := r.ReadAt(b, off); n < len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("reading the source of a puffin patch at byte %d: %w", off, err)
	}
	return nil
}

// puff returns puff i, which the caller may use until the next call.
func (v *view) puff(i int) ([]byte, error) {
	if e, ok := v.kept[i]; ok {
		v.recent.MoveToFront(e)
		return e.Value.(*keptPuff).b, nil
	}
	b, err := v.make(i)
	if err != nil {
		return nil, fmt.Errorf("deflate %d of the source: %w", i, err)
	}
	v.keep(i, b)
	return b, nil
}

func (v *view) make(i int) ([]byte, error) {
	d, want := v.deflates[i], int(v.puffs[i].length)
	first := d.Offset / 8
	n := int((d.End()+7)/8 - first)
	if cap(v.deflate) < n {
		v.deflate = make([]byte, n)
	}
	packed := v.deflate[:n]
	if err := readAll(v.file, packed, int64(first)); err != nil {
		return nil, err
	}
	b, err := v.puffer.puff(make([]byte, 0, want), packed, BitExtent{d.Offset % 8, d.Length}, want)
	if err == nil && len(b) != want {
		err = refuse(ErrDeflate, "puff", fmt.Sprintf("%d bytes", want), len(b))
	}
	return b, err
}

// keep adds a puff and drops the oldest ones while there are too many, though
// not the last one.
func (v *view) keep(i int, b []byte) {
	v.kept[i] = v.recent.PushFront(&keptPuff{i, b})
	v.size += int64(len(b))
	for v.size > v.limit && v.recent.Len() > 1 {
		old := v.recent.Remove(v.recent.Back()).(*keptPuff)
		delete(v.kept, old.i)
		v.size -= int64(len(old.b))
	}
}
