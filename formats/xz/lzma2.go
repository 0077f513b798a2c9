package xz

import (
	"encoding/binary"
	"io"
)

// piece is how many bytes are decoded at once: few enough that they still lie in the
// processor's cache when they are checked and copied.
const piece = 64 << 10

// chunks decodes the chunks of a block.
type chunks struct {
	in      *input
	d       decoder
	w       ring
	left    int   // bytes of the chunk that are not decoded
	packed  int   // how long it is coded, 0 if it is stored
	start   int64 // where it begins in the input
	missing byte  // what the next chunk has to reset at least
	ended   bool
}

func (c *chunks) reset(in *input, dictionary int) {
	c.in, c.left, c.missing, c.ended = in, 0, resetAll, false
	c.w.reset(dictionary)
}

// more gives data that come next, io.EOF behind the last. They are valid until the next
// call.
func (c *chunks) more() ([]byte, error) {
	if c.left == 0 {
		if err := c.next(); err != nil {
			return nil, err
		}
	}
	limit := c.w.room(min(c.left, piece))
	from := c.w.pos
	if c.packed == 0 {
		if err := c.in.read(c.w.buf[from:limit], "stored chunk"); err != nil {
			return nil, err
		}
		c.w.pos = limit
	} else if !c.d.decode(&c.w, limit) {
		return nil, c.corrupt("match", "a distance within the data", "a longer one")
	}
	c.left -= limit - from
	if c.left == 0 && c.packed > 0 {
		if err := c.finish(); err != nil {
			return nil, err
		}
	}
	return c.w.buf[from:limit], nil
}

// finish checks that a chunk ends where its last symbol does.
func (c *chunks) finish() error {
	r := c.d.rc.normal()
	switch {
	case c.d.left > 0:
		return c.corrupt("chunk's data", "their end", "a match that goes on")
	case r.at != c.packed:
		return c.corrupt("coded bytes", c.packed, r.at)
	case r.code != 0:
		return c.corrupt("end of the range coder", 0, r.code)
	}
	return nil
}

// next begins a chunk.
func (c *chunks) next() error {
	if c.ended {
		return io.EOF
	}
	c.start = c.in.n
	control, err := c.in.ReadByte()
	switch {
	case err != nil:
		return err
	case control == endOfChunks:
		c.ended = true
		return io.EOF
	case control >= coded:
		return c.nextCoded(control)
	case control > storedNext:
		return c.corrupt("control byte", "0 to 2, or 128 and more", control)
	}
	if control == storedFirst {
		c.w.reset(c.w.size)
		c.missing = resetNewProps
	} else if c.missing == resetAll {
		return c.corrupt("first chunk", "a reset of the dictionary", "none")
	}
	h, err := c.in.take(2, "chunk header")
	if err != nil {
		return err
	}
	c.left, c.packed = int(binary.BigEndian.Uint16(h))+1, 0
	return nil
}

func (c *chunks) nextCoded(control byte) error {
	resets := control >> 5 & 3
	if resets < c.missing {
		return c.corrupt("what a chunk resets", c.missing, resets)
	}
	c.missing = resetNothing
	n := 4
	if resets >= resetNewProps {
		n++
	}
	h, err := c.in.take(n, "chunk header")
	if err != nil {
		return err
	}
	c.left = int(control&0x1f)<<16 + int(binary.BigEndian.Uint16(h)) + 1
	c.packed = int(binary.BigEndian.Uint16(h[2:])) + 1
	if resets == resetAll {
		c.w.reset(c.w.size)
	}
	if resets >= resetNewProps && !c.d.setProperties(h[4]) {
		return c.corrupt("properties", "lc + lp of at most 4, and pb", h[4])
	}
	if resets >= resetState {
		c.d.reset()
	}
	if c.packed < rangeStart {
		return c.corrupt("coded bytes", "at least 5", c.packed)
	}
	if err := c.in.read(c.d.in[:c.packed], "chunk"); err != nil {
		return err
	}
	if c.d.in[0] != 0 {
		return c.corrupt("first coded byte", 0, c.d.in[0])
	}
	c.d.rc = startRange(&c.d.in)
	return nil
}

func (c *chunks) corrupt(what string, expected, found any) error {
	return refuse(ErrCorrupt, at(what, c.start), expected, found)
}
