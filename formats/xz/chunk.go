package xz

import "encoding/binary"

// Chunks of LZMA2 have at most so many bytes, data and coded.
const (
	maxChunk = 1 << 21
	maxCoded = 1 << 16
	// longestSymbol is more than a symbol takes, and flush what the range coder has left.
	longestSymbol = 32
	flushed       = 5
)

// Control bytes. A chunk that is coded begins with one that also says what is reset: the
// model's state, its properties, the dictionary; each with all of those before it.
const (
	endOfChunks    = 0
	storedFirst    = 1 // resets the dictionary
	storedNext     = 2
	coded          = 0x80
	resetNothing   = 0
	resetState     = 1
	resetNewProps  = 2
	resetAll       = 3
	propertiesByte = (2*5+0)*9 + 3 // of pb, lp and lc
)

// lzma2 appends data as chunks.
func (e *Encoder) lzma2(dst, data []byte, dictionary int, level Level) []byte {
	e.data, e.done, e.dst = data, 0, dst
	e.f.reset(data, dictionary, level)
	reset := byte(resetAll)
	for e.done < len(data) {
		if reset != resetNothing {
			e.m.reset()
		}
		reset = e.chunk(reset, level)
	}
	e.data, e.f.data = nil, nil // holds on to nothing
	return append(e.dst, endOfChunks)
}

// chunk appends one chunk, or what it stands for uncompressed, and tells what the next
// one has to reset.
func (e *Encoder) chunk(reset byte, level Level) byte {
	from, start := e.done, len(e.dst)
	head := 5
	if reset >= resetNewProps {
		head++
	}
	e.dst = append(e.dst, make([]byte, head)...)
	e.rc.start(e.dst)
	if level == Best {
		e.cheapest(min(len(e.data), from+maxChunk))
	} else {
		e.lazy(min(len(e.data), from+maxChunk))
	}
	e.rc.flush()
	e.dst = e.rc.out
	size, packed := e.done-from, len(e.dst)-start-head
	if packed >= size {
		e.dst = appendStored(e.dst[:start], e.data[from:e.done], reset == resetAll)
		return min(max(reset, resetState), resetNewProps)
	}
	h := e.dst[start:]
	h[0] = coded | reset<<5 | byte((size-1)>>16)
	binary.BigEndian.PutUint16(h[1:], uint16(size-1))
	binary.BigEndian.PutUint16(h[3:], uint16(packed-1))
	if head > 5 {
		h[5] = propertiesByte
	}
	return resetNothing
}

// room tells whether a symbol more has room in the chunk that began in the output at
// its range coder's start.
func (e *Encoder) room() bool {
	return e.rc.size() < maxCoded-longestSymbol-flushed
}

// appendStored appends data as they are, in chunks of at most 64 KiB.
func appendStored(dst, data []byte, first bool) []byte {
	for len(data) > 0 {
		n := min(len(data), maxCoded)
		control := byte(storedNext)
		if first {
			control, first = storedFirst, false
		}
		dst = append(binary.BigEndian.AppendUint16(append(dst, control), uint16(n-1)), data[:n]...)
		data = data[n:]
	}
	return dst
}
