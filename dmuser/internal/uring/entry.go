package uring

import "unsafe"

// Operations of an Entry.
const (
	OpReadFixed = 4
	OpRead      = 22
	OpCommand   = 46
)

// Entry is the first half of what is submitted. In a ring of Large entries there
// are 64 bytes more behind it; see Area.
type Entry struct {
	Op          uint8
	Flags       uint8
	Priority    uint16
	FD          int32
	Off         uint64 // in the file, in bytes; of a command see SetCommand
	Addr        uint64
	Len         uint32
	OpFlags     uint32
	UserData    uint64
	BufIndex    uint16
	Personality uint16
	Splice      int32
	area        [16]byte
}

// Completion tells the outcome of an entry: at least 0, or a negated errno.
type Completion struct {
	UserData uint64
	Res      int32
	Flags    uint32
}

const (
	entrySize = 64
	areaAt    = 48 // where a command's own bytes begin
)

// Each of these fails to compile when our layout is not the kernel's.
var (
	_ [entrySize]byte  = [unsafe.Sizeof(Entry{})]byte{}
	_ [areaAt]byte     = [unsafe.Offsetof(Entry{}.area)]byte{}
	_ [16]byte         = [unsafe.Sizeof(Completion{})]byte{}
	_ [paramsSize]byte = [unsafe.Sizeof(params{})]byte{}
	_ [40]byte         = [unsafe.Sizeof(offsets{})]byte{}
)

// SetCommand makes the entry a command to the driver of file fd.
func (e *Entry) SetCommand(fd int, code uint32) {
	*e = Entry{Op: OpCommand, FD: int32(fd)}
	*(*uint32)(unsafe.Pointer(&e.Off)) = code
}

// Command is the code that SetCommand was given.
func (e *Entry) Command() uint32 { return *(*uint32)(unsafe.Pointer(&e.Off)) }

// Area is where a command's own bytes go: 16.
func (e *Entry) Area() unsafe.Pointer { return unsafe.Pointer(&e.area) }

const paramsSize = 120

// params is what a ring is asked for, and what came of it.
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wq uint32
	_                                                                    [3]uint32
	sq, cq                                                               offsets
}

// offsets says where in the mapped ring the parts of a queue are. The kernel gives
// two layouts names of their own; they have the same size.
type offsets struct {
	head, tail, mask, entries uint32
	flags                     uint32 // of the completion queue: overflow
	dropped                   uint32 // of the completion queue: entries
	array                     uint32 // of the completion queue: flags
	_                         uint32
	_                         uint64
}

const (
	setupLarge        = 1 << 10
	setupExclusive    = 1<<12 | 1<<13 // one submitter, which does the kernel's part when it waits
	featureOneMap     = 1 << 0
	enterGetEvents    = 1 << 0
	unregisterBuffers = 1
	registerBuffers2  = 15
	registerSparse    = 1 << 0
)

// buffersArg is the argument of registerBuffers2.
type buffersArg struct {
	count, flags uint32
	_            [3]uint64
}

var _ [32]byte = [unsafe.Sizeof(buffersArg{})]byte{}
