package dmuser

import (
	"fmt"
	"unsafe"
)

// The part of the kernel's FUSE protocol (linux/fuse.h) that a file system of
// one read-only file needs. Everything is in the host's byte order.

const (
	fuseMajor = 7
	fuseMinor = 31 // the newest whose features are used: 7.28, max_pages

	rootNode = 1
)

type opcode uint32

const (
	opForget      opcode = 2
	opGetattr     opcode = 3
	opSetattr     opcode = 4
	opSymlink     opcode = 6
	opMknod       opcode = 8
	opMkdir       opcode = 9
	opUnlink      opcode = 10
	opRmdir       opcode = 11
	opRename      opcode = 12
	opLink        opcode = 13
	opOpen        opcode = 14
	opRead        opcode = 15
	opWrite       opcode = 16
	opStatfs      opcode = 17
	opRelease     opcode = 18
	opSetxattr    opcode = 21
	opRemovexattr opcode = 24
	opFlush       opcode = 25
	opInit        opcode = 26
	opAccess      opcode = 34
	opCreate      opcode = 35
	opInterrupt   opcode = 36
	opDestroy     opcode = 38
	opNotifyReply opcode = 41
	opBatchForget opcode = 42
	opFallocate   opcode = 43
	opRename2     opcode = 45
)

const (
	initAsyncRead = 1 << 0
	initAsyncDIO  = 1 << 15
	initMaxPages  = 1 << 22

	openDirectIO  = 1 << 0
	openKeepCache = 1 << 1
)

type inHeader struct {
	Len    uint32
	Opcode opcode
	Unique uint64
	Nodeid uint64
	UID    uint32
	GID    uint32
	PID    uint32
	ExtLen uint16 // in units of 8 bytes, at the end of the request
	_      uint16
}

type outHeader struct {
	Len    uint32
	Error  int32
	Unique uint64
}

// initIn is what every kernel since 2.6 sends; newer ones append flags that
// this server has no use for.
type initIn struct {
	Major        uint32
	Minor        uint32
	MaxReadahead uint32
	Flags        uint32
}

type initOut struct {
	Major               uint32
	Minor               uint32
	MaxReadahead        uint32
	Flags               uint32
	MaxBackground       uint16
	CongestionThreshold uint16
	MaxWrite            uint32
	TimeGran            uint32
	MaxPages            uint16
	MapAlignment        uint16
	Flags2              uint32
	Unused              [7]uint32
}

type readIn struct {
	Fh        uint64
	Offset    uint64
	Size      uint32
	ReadFlags uint32
	LockOwner uint64
	Flags     uint32
	_         uint32
}

type openOut struct {
	Fh        uint64
	OpenFlags uint32
	BackingID int32
}

type attrOut struct {
	Valid     uint64 // seconds
	ValidNsec uint32
	_         uint32
	Ino       uint64
	Size      uint64
	Blocks    uint64 // of 512 bytes
	Times     [3]uint64
	TimesNsec [3]uint32
	Mode      uint32
	Nlink     uint32
	UID       uint32
	GID       uint32
	Rdev      uint32
	Blksize   uint32
	Flags     uint32
}

type statfsOut struct {
	Blocks  uint64
	Bfree   uint64
	Bavail  uint64
	Files   uint64
	Ffree   uint64
	Bsize   uint32
	Namelen uint32
	Frsize  uint32
	_       [7]uint32
}

// A wrong size does not compile.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(inHeader{})-40]
	_ = [1]struct{}{}[unsafe.Sizeof(outHeader{})-16]
	_ = [1]struct{}{}[unsafe.Sizeof(initIn{})-16]
	_ = [1]struct{}{}[unsafe.Sizeof(initOut{})-64]
	_ = [1]struct{}{}[unsafe.Sizeof(readIn{})-40]
	_ = [1]struct{}{}[unsafe.Sizeof(openOut{})-16]
	_ = [1]struct{}{}[unsafe.Sizeof(attrOut{})-104]
	_ = [1]struct{}{}[unsafe.Sizeof(statfsOut{})-80]
)

const (
	inHeaderSize  = int(unsafe.Sizeof(inHeader{}))
	outHeaderSize = int(unsafe.Sizeof(outHeader{}))
)

// request is one request by value: it holds nothing of the buffer it was read
// into, so that the buffer can pass to the next reader at once.
type request struct {
	op     opcode
	unique uint64
	offset uint64 // opRead
	size   uint32 // opRead, bytes
	init   initIn // opInit
}

// wantsReply is false for the opcodes whose answer the kernel would refuse.
func (r *request) wantsReply() bool {
	return r.op != opForget && r.op != opBatchForget && r.op != opNotifyReply
}

// parseRequest reads one request out of b, which is what one read of /dev/fuse
// gave. When the header can be understood and the rest cannot, the request
// comes back together with the error, so that it can be answered.
func parseRequest(b []byte) (request, error) {
	var h inHeader
	if !decode(&h, b) {
		return request{}, fmt.Errorf("%w: expected %d bytes of header, found %d",
			errMalformed, inHeaderSize, len(b))
	}
	r := request{op: h.Opcode, unique: h.Unique}
	if uint64(h.Len) != uint64(len(b)) {
		return r, fmt.Errorf("%w: expected %d bytes as its header says, found %d",
			errMalformed, h.Len, len(b))
	}
	body := b[inHeaderSize:]
	ext := int(h.ExtLen) * 8
	if ext > len(body) {
		return r, fmt.Errorf("%w: expected %d bytes of extensions, found %d bytes of body",
			errMalformed, ext, len(body))
	}
	return r, r.parseBody(body[:len(body)-ext])
}

func (r *request) parseBody(body []byte) error {
	switch r.op {
	case opInit:
		if !decode(&r.init, body) {
			return shortBody("INIT", unsafe.Sizeof(r.init), body)
		}
	case opRead:
		var in readIn
		if !decode(&in, body) {
			return shortBody("READ", unsafe.Sizeof(in), body)
		}
		r.offset, r.size = in.Offset, in.Size
	}
	return nil
}

func shortBody(op string, want uintptr, body []byte) error {
	return fmt.Errorf("%w: expected %d bytes of %s, found %d", errMalformed, want, op, len(body))
}

// decode copies the start of b into dst, a struct of plain integers, and
// reports whether there was enough of it. b need not be aligned.
func decode[T any](dst *T, b []byte) bool {
	to := bytesOf(dst)
	return copy(to, b) == len(to)
}

// bytesOf gives the memory of v, a struct of plain integers without padding.
func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
