package xz

import "encoding/binary"

const (
	// ringStart is what a ring has at first, in bytes. It grows as it is filled.
	ringStart = 64 << 10
	// ringSlack is what it has over the dictionary, for copies that write a few bytes
	// more than they have to. It is a multiple of 16, as what contexts know of a
	// position is its place in the ring.
	ringSlack = 64
)

// ring has the data that matches refer to, the latest before pos. It is used as a ring, as
// soon as it has as many as the dictionary is long.
type ring struct {
	buf     []byte
	size    int // of the dictionary
	pos     int
	wrapped bool
}

// reset begins anew: nothing came before.
func (w *ring) reset(size int) {
	w.buf = w.buf[:min(cap(w.buf), full(size))]
	w.size, w.pos, w.wrapped = size, 0, false
}

// full is how many bytes a ring has at most.
func full(size int) int { return (size+15)&^15 + ringSlack }

// room makes room for more, at most n bytes, and tells where it ends.
func (w *ring) room(n int) int {
	if w.pos == len(w.buf) {
		if most := full(w.size); len(w.buf) < most {
			grown := make([]byte, min(max(2*len(w.buf), ringStart), most))
			copy(grown, w.buf)
			w.buf = grown
		} else {
			w.pos, w.wrapped = 0, true
		}
	}
	return w.pos + min(n, len(w.buf)-w.pos)
}

// last is the latest byte, 0 if there is none.
func (w *ring) last() uint32 {
	switch {
	case w.pos > 0:
		return uint32(w.buf[w.pos-1])
	case w.wrapped:
		return uint32(w.buf[len(w.buf)-1])
	}
	return 0
}

// before is the byte at a distance, from 0 on, before pos.
func (w *ring) before(pos int, distance uint32) uint32 {
	from := pos - int(distance) - 1
	if from < 0 {
		from += len(w.buf)
	}
	return uint32(w.buf[from])
}

// copyMatch copies n bytes to pos, which have room there, from a distance, from 0 on,
// before it. Up to 7 bytes after them are overwritten. It gives false if there is nothing
// at that distance.
func (w *ring) copyMatch(pos int, distance uint, n int) bool {
	switch {
	case distance >= uint(w.size):
		return false
	case distance >= uint(pos):
		return w.copyAround(pos, int(distance)+1, n)
	}
	from := pos - int(distance) - 1
	if pos+n+8 > len(w.buf) || distance < 7 {
		copyExact(w.buf, from, pos, n)
		return true
	}
	src, dst := w.buf[from:from+n+8], w.buf[pos:pos+n+8]
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(dst[i:], binary.LittleEndian.Uint64(src[i:]))
	}
	return true
}

// copyExact writes n bytes and no more. What lies between from and pos repeats: so each
// time there is twice as much of it.
func copyExact(buf []byte, from, pos, n int) {
	for to := buf[pos : pos+n]; len(to) > 0; {
		k := copy(to, buf[from:pos])
		to = to[k:]
		pos += k
	}
}

// copyAround copies from behind pos, where the ring's oldest data are.
func (w *ring) copyAround(pos, distance, n int) bool {
	if !w.wrapped {
		return false
	}
	from := pos - distance + len(w.buf)
	for i := range n {
		w.buf[pos+i] = w.buf[from]
		if from++; from == len(w.buf) {
			from = 0
		}
	}
	return true
}
