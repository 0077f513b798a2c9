package puffin

import (
	"errors"
	"fmt"
	"io"
)

// writer takes the puffed form of a file and writes the file.
type writer struct {
	*layout
	dst  io.Writer
	bits bitWriter // what has not been written yet
	done uint64    // bits written

	huffer huffer
	i      int   // the raw stretch or puff that is being written
	pos    int64 // in the puffed file
	puff   []byte
	err    error
}

const flushSize = 64 << 10

func (w *writer) Write(b []byte) (n int, err error) {
	if w.err != nil {
		return 0, w.err
	}
	for n < len(b) && err == nil {
		var m int
		if raw := w.rawStart(w.i) + w.rawLen(w.i) - w.pos; raw > 0 {
			m = int(min(raw, int64(len(b)-n)))
			err = w.raw(b[n:n+m], w.pos-w.rawStart(w.i))
		} else if w.i == len(w.puffs) {
			err = refuse(ErrCorrupt, "puffed target", fmt.Sprintf("%d bytes", w.puffedSize), "more")
		} else {
			m, err = w.part(b[n:])
		}
		n += m
		w.pos += int64(m)
		if err == nil && len(w.bits.out) >= flushSize {
			err = w.flush()
		}
	}
	w.err = err
	return n, err
}

// raw writes bytes of the raw stretch, from its byte at on. The first and the
// last may be a few bits only.
func (w *writer) raw(b []byte, at int64) error {
	from, to := w.rawBits(w.i), w.rawEnd(w.i)
	for len(b) > 0 {
		first := (from/8 + uint64(at)) * 8
		lo, hi := max(first, from), min(first+8, to)
		if hi-lo < 8 {
			if b[0]>>(hi-lo) != 0 {
				return refuse(ErrCorrupt, fmt.Sprintf("byte %d of the puffed target", w.rawStart(w.i)+at), fmt.Sprintf("%d bits", hi-lo), b[0])
			}
			w.bits.put(uint32(b[0]), uint(hi-lo))
			b = b[1:]
			at++
			continue
		}
		w.bits.align()
		n := min(int64(len(b)), int64(to/8)-int64(first/8))
		w.bits.out = append(w.bits.out, b[:n]...)
		b = b[n:]
		at += n
	}
	return nil
}

// part gathers bytes of the puff, and huffs it once it is complete.
func (w *writer) part(b []byte) (int, error) {
	size := int(w.puffs[w.i].length)
	have := len(w.puff)
	if have == 0 && len(b) >= size {
		return size, w.huff(b[:size])
	}
	n := min(size-have, len(b))
	w.puff = append(w.puff, b[:n]...)
	if len(w.puff) < size {
		return n, nil
	}
	err := w.huff(w.puff)
	w.puff = w.puff[:0]
	return n, err
}

func (w *writer) huff(puff []byte) error {
	want := w.deflates[w.i].Length
	before := w.bits.written()
	err := w.huffer.huff(&w.bits, puff)
	if n := w.bits.written() - before; err == nil && n != want {
		err = refuse(ErrPuff, "deflate", fmt.Sprintf("%d bits", want), n)
	}
	if err != nil {
		return fmt.Errorf("puff %d of the target: %w", w.i, err)
	}
	w.i++
	return nil
}

// flush writes the whole bytes.
func (w *writer) flush() error {
	w.bits.align()
	n, err := w.dst.Write(w.bits.out)
	if err == nil && n < len(w.bits.out) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("writing the target of a puffin patch: %w", err)
	}
	w.done += uint64(n) * 8
	w.bits.out = w.bits.out[:0]
	return nil
}

// Close writes the rest, and fails if anything is missing.
func (w *writer) Close() error {
	if w.err == nil {
		w.err = w.flush()
	}
	if w.err == nil && (w.pos != w.puffedSize || w.done != uint64(w.size)*8) {
		w.err = refuse(ErrCorrupt, "puffed target", fmt.Sprintf("%d bytes", w.puffedSize), w.pos)
	}
	err := w.err
	if err == nil {
		w.err = errors.New("puffin writer is closed")
	}
	return err
}
