package userstream

import (
	"encoding/binary"
	"unsafe"
)

const (
	sector = 512
	// HeaderSize is the length of a header in bytes.
	HeaderSize = 40
)

// header begins each message; what its type is depends on the direction.
type header struct {
	seq    uint64
	typ    uint64 // an operation, or a result
	flags  uint64
	sector uint64
	length uint64 // of the payload in bytes, for a discard of what is meant
}

// This fails to compile when our layout is not the kernel's.
var _ [HeaderSize]byte = [unsafe.Sizeof(header{})]byte{}

// The operations. Those from 7 to 12 concern zones.
const (
	opRead = iota
	opWrite
	opFlush
	opDiscard
	opSecureErase
	opWriteSame
	opWriteZeroes
	opZoneResetAll = 12
)

// The results.
const (
	resultSuccess = iota
	resultError
	resultUnsupported
)

func parseHeader(b []byte) header {
	u := binary.NativeEndian.Uint64
	return header{u(b), u(b[8:]), u(b[16:]), u(b[24:]), u(b[32:])}
}

func (h header) put(b []byte) {
	for i, v := range [...]uint64{h.seq, h.typ, h.flags, h.sector, h.length} {
		binary.NativeEndian.PutUint64(b[8*i:], v)
	}
}

// hasPayload tells whether bytes follow the request.
func (h header) hasPayload() bool { return h.typ == opWrite && h.length > 0 }

// isFlush tells whether the request only wants that what was written stays
// written.
func (h header) isFlush() bool { return h.typ == opFlush || h.typ == opWrite && h.length == 0 }

// fits tells whether a read lies within a device of size bytes.
func (h header) fits(size uint64) bool {
	return h.sector <= size/sector && h.length <= size-h.sector*sector
}
