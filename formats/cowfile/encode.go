package cowfile

import "fmt"

// Encoder turns units into what a file stores for them: compressed, or as they
// are where that is no gain (section 5.1). It belongs to one goroutine.
type Encoder struct {
	c        Compression
	version  int
	compress func(dst, unit []byte) ([]byte, error)
	buf      []byte
}

// NewEncoder returns an encoder for a file of the given version. compress
// appends the compressed form of a unit to dst (package formats/compress has
// compressors); it is not used when c is None.
func NewEncoder(version int, c Compression, compress func(dst, unit []byte) ([]byte, error)) *Encoder {
	return &Encoder{c: c, version: version, compress: compress}
}

// Encode returns what the file stores for unit, and with which compression:
// None when the unit is stored as it is. The result is valid until the next
// call.
func (e *Encoder) Encode(unit []byte) (stored []byte, c Compression, err error) {
	if e.c == None {
		return unit, None, nil
	}
	if e.buf, err = e.compress(e.buf[:0], unit); err != nil {
		return nil, None, fmt.Errorf("%v: %w", e.c, err)
	}
	// Version 2 has no way to mark a raw block under these two.
	alwaysStream := e.version < 3 && (e.c == GZ || e.c == Brotli)
	if len(e.buf) >= len(unit) && !alwaysStream {
		return unit, None, nil
	}
	return e.buf, e.c, nil
}
