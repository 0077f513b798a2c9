package bsdiff

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"sync"
)

const bufferSize = 64 << 10

// buffers are shared, as most patches are shorter than one.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Apply writes the target, TargetSize bytes, to dst. source holds sourceSize
// bytes. After an error an unknown part of the target has been written. An
// error of source, dst or the patch's reader is returned wrapped.
func (p *Patch) Apply(dst io.Writer, source io.ReaderAt, sourceSize int64) error {
	a := applier{
		control: open(p.parts[0], p.r), diff: open(p.parts[1], p.r), extra: open(p.parts[2], p.r),
		source: window{r: source, size: sourceSize},
		out:    output{w: dst},
	}
	for _, b := range []**[bufferSize]byte{&a.source.buf, &a.out.buf} {
		*b = buffers.Get().(*[bufferSize]byte)
		defer buffers.Put(*b)
	}
	a.control.r = bufio.NewReaderSize(a.control.r, 4<<10)
	for _, s := range []*stream{a.diff, a.extra} {
		s.prepare()
		defer s.close()
	}
	if err := a.run(p.targetSize); err != nil {
		return err
	}
	for _, s := range []*stream{a.control, a.diff, a.extra} {
		if err := s.end(); err != nil {
			return err
		}
	}
	return a.out.flush()
}

type applier struct {
	control, diff, extra *stream
	source               window
	pos                  int64 // in the source, or outside of it
	out                  output
}

// run follows the triples until the target is complete. Encoders write at most
// one a byte; a control stream of billions of empty ones is an attack.
func (a *applier) run(size int64) error {
	idle := 0
	for left := size; left > 0; {
		x, y, z, err := a.triple(left)
		if err != nil {
			return err
		}
		if err := a.add(x); err != nil {
			return err
		}
		if err := a.insert(y); err != nil {
			return err
		}
		if a.pos, err = move(a.pos, z); err != nil {
			return err
		}
		left -= x + y
		if idle, err = a.idle(idle, x+y); err != nil {
			return err
		}
	}
	return nil
}

const maxIdle = 1024

// idle counts triples that make nothing.
func (a *applier) idle(n int, made int64) (int, error) {
	switch {
	case made > 0:
		return 0, nil
	case n == maxIdle:
		return n, refuse(ErrCorrupt, "control stream", "data", fmt.Sprintf("%d triples without any", n+1))
	}
	return n + 1, nil
}

// triple reads the next one and checks that it stays in the target, of which
// left bytes are missing.
func (a *applier) triple(left int64) (x, y, z int64, err error) {
	at := a.control.read
	var b [24]byte
	if err = a.control.full(b[:]); err != nil {
		return
	}
	x, y, z = parseInt(b[:]), parseInt(b[8:]), parseInt(b[16:])
	if x < 0 || x > left {
		err = refuse(ErrCorrupt, fmt.Sprintf("diff length at byte %d of the control stream", at), fmt.Sprintf("0 to %d", left), x)
	} else if y < 0 || y > left-x {
		err = refuse(ErrCorrupt, fmt.Sprintf("extra length at byte %d of the control stream", at+8), fmt.Sprintf("0 to %d", left-x), y)
	}
	return
}

func move(pos, by int64) (int64, error) {
	if by > 0 && pos > math.MaxInt64-by || by < 0 && pos < math.MinInt64-by {
		return 0, refuse(ErrCorrupt, "position in the source", "63 bits", fmt.Sprintf("%d%+d", pos, by))
	}
	return pos + by, nil
}

// add writes n bytes of source and diff.
func (a *applier) add(n int64) error {
	if _, err := move(a.pos, n); err != nil {
		return err
	}
	for n > 0 {
		b, err := a.out.room(n)
		if err != nil {
			return err
		}
		if err := a.diff.full(b); err != nil {
			return err
		}
		if err := a.source.addTo(b, a.pos); err != nil {
			return err
		}
		a.out.take(len(b))
		a.pos += int64(len(b))
		n -= int64(len(b))
	}
	return nil
}

// insert writes n bytes of extra.
func (a *applier) insert(n int64) error {
	for n > 0 {
		b, err := a.out.room(n)
		if err != nil {
			return err
		}
		if err := a.extra.full(b); err != nil {
			return err
		}
		a.out.take(len(b))
		n -= int64(len(b))
	}
	return nil
}

// output gathers what many short triples make.
type output struct {
	w   io.Writer
	buf *[bufferSize]byte
	n   int
}

// room is a place for at most n bytes, at least one.
func (o *output) room(n int64) ([]byte, error) {
	if o.n == len(o.buf) {
		if err := o.flush(); err != nil {
			return nil, err
		}
	}
	return o.buf[o.n:][:min(n, int64(len(o.buf)-o.n))], nil
}

func (o *output) take(n int) { o.n += n }

func (o *output) flush() error {
	n, err := o.w.Write(o.buf[:o.n])
	if err == nil && n < o.n {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("writing the target of a bsdiff patch: %w", err)
	}
	o.n = 0
	return nil
}

// window is a stretch of the source, kept because the next triple mostly goes
// on nearby.
type window struct {
	r    io.ReaderAt
	size int64
	buf  *[bufferSize]byte
	at   int64
	n    int
}

// addTo adds the source's bytes from pos on to b. Outside of the source they
// are zero (specs/payload.md 7).
func (w *window) addTo(b []byte, pos int64) error {
	if pos < 0 {
		b = b[min(-uint64(pos), uint64(len(b))):]
		pos = 0
	}
	if pos >= w.size {
		return nil
	}
	b = b[:min(int64(len(b)), w.size-pos)]
	for len(b) > 0 {
		have, err := w.get(pos, len(b))
		if err != nil {
			return err
		}
		addBytes(b[:len(have)], have)
		b = b[len(have):]
		pos += int64(len(have))
	}
	return nil
}

// get returns at least one and at most n bytes from pos, which is inside.
func (w *window) get(pos int64, n int) ([]byte, error) {
	if pos < w.at || pos >= w.at+int64(w.n) {
		if err := w.fill(pos, n); err != nil {
			return nil, err
		}
	}
	have := w.buf[pos-w.at : w.n]
	return have[:min(n, len(have))], nil
}

// fill reads at least 8 KiB where it can, a little of it before pos: triples
// jump back as well.
func (w *window) fill(pos int64, n int) error {
	const least, before = 8 << 10, 1 << 10
	from := pos
	if n < least {
		n = least
		from = max(0, pos-before)
	}
	n = int(min(int64(n), w.size-from))
	w.n = 0
	if _, err := io.ReadFull(io.NewSectionReader(w.r, from, int64(n)), w.buf[:n]); err != nil {
		return fmt.Errorf("reading the source of a bsdiff patch at byte %d: %w", from, err)
	}
	w.at, w.n = from, n
	return nil
}

// addBytes adds src to dst, which are equally long, byte by byte modulo 256:
// eight at a time, of which the highest bits are kept from carrying.
func addBytes(dst, src []byte) {
	const low = 0x7f7f7f7f7f7f7f7f
	for len(dst) >= 8 && len(src) >= 8 {
		d, s := binary.LittleEndian.Uint64(dst), binary.LittleEndian.Uint64(src)
		binary.LittleEndian.PutUint64(dst, (d&low+s&low)^(d^s)&^low)
		dst, src = dst[8:], src[8:]
	}
	for i := range dst {
		dst[i] += src[i]
	}
}
