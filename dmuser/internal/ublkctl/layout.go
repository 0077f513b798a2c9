package ublkctl

import (
	"math/bits"
	"strings"
	"unsafe"
)

// Flags are the driver's features, and those of a device.
type Flags uint64

// The flags that this package's users know.
const (
	ZeroCopy     Flags = 1 << 0
	Recovery     Flags = 1 << 3 // the device outlives its server
	Reissue      Flags = 1 << 4 // and what was under way is asked again
	Unprivileged Flags = 1 << 5
	IoctlCodes   Flags = 1 << 6
	UserCopy     Flags = 1 << 7
	AutoRegister Flags = 1 << 11
	Quiesce      Flags = 1 << 12
	SafeStop     Flags = 1 << 17
	NoPartitions Flags = 1 << 18 // do not look for any
)

// since says which kernel first had a flag, for people.
var since = map[Flags]string{
	ZeroCopy:     "zero copy (Linux 6.15)",
	Recovery:     "user recovery (6.1)",
	Reissue:      "reissue after recovery (6.1)",
	Unprivileged: "unprivileged devices (6.3)",
	IoctlCodes:   "ioctl-style commands (6.4)",
	UserCopy:     "user copy (6.5)",
	AutoRegister: "automatic buffers (6.16)",
	Quiesce:      "quiesce (6.16)",
	SafeStop:     "stopping only what is closed (7.0)",
	NoPartitions: "no search for partitions (7.0)",
}

// String names the flags and the kernels that brought them.
func (f Flags) String() string {
	var names []string
	for rest := f; rest != 0; rest &= rest - 1 {
		bit := Flags(1) << bits.TrailingZeros64(uint64(rest))
		name, known := since[bit]
		if !known {
			name = "feature " + itoa(bits.TrailingZeros64(uint64(rest)))
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

// States of a device.
const (
	Dead     = 0 // not started, or stopped
	Live     = 1
	Quiesced = 2 // its server is gone; requests wait for another
)

// AnyID lets the driver choose a device's number.
const AnyID = 1<<32 - 1

// Info is a device as the driver knows it.
type Info struct {
	Queues, Depth, State, DescSize uint16
	MaxIO                          uint32 // bytes of a request
	ID                             uint32
	PID                            int32 // of the server, -1 when there is none
	_                              uint32
	Flags                          Flags
	Private                        uint64 // the server's own
	UID, GID                       uint32
	_                              [2]uint64
}

// Params are a device's limits.
type Params struct {
	Len, Types uint32
	Basic      Basic
	// The driver keeps these sections and looks at those that Types names.
	Discard [20]byte
	Devices [4]uint32 // major, minor of the character device; of the disk
	Zoned   [32]byte
}

// Basic is the section that every device has. Sizes that end in Shift are the
// binary logarithm of bytes.
type Basic struct {
	Attrs                                               uint32
	LogicalShift, PhysicalShift, OptimalShift, MinShift uint8
	MaxSectors, ChunkSectors                            uint32
	Sectors                                             uint64 // the size, of 512 bytes
	BoundaryMask                                        uint64
}

const (
	// ParamsSize is the length of Params to the driver.
	ParamsSize = 108
	// TypeBasic says that the basic section counts.
	TypeBasic = 1 << 0
	// ReadOnly is an attribute.
	ReadOnly = 1 << 0
)

// Desc is what the driver asks: the descriptor of one tag.
type Desc struct {
	OpFlags uint32
	Sectors uint32
	Start   uint64 // sector
	Addr    uint64
}

// Operations of a Desc.
const (
	OpRead  = 0
	OpFlush = 2
)

// Op is the operation.
func (d *Desc) Op() uint8 { return uint8(d.OpFlags) }

// Unregistered tells that a request's buffer could not be registered.
func (d *Desc) Unregistered() bool { return d.OpFlags>>17&1 != 0 }

// IO is the area of a command about one tag.
type IO struct {
	Queue, Tag uint16
	Result     int32 // bytes, or a negated errno
	Addr       uint64
}

// command is the area of a control command.
type command struct {
	id         uint32
	queue, len uint16
	addr, data uint64
	pathLen    uint16
	_          uint16
	_          uint32
}

// Codes of commands about a tag.
const (
	Fetch          = 0xc0107520
	CommitAndFetch = 0xc0107521
)

// Codes of control commands.
const (
	codeInfo          = 0x80207502
	codeAdd           = 0xc0207504
	codeDelete        = 0xc0207505
	codeStart         = 0xc0207506
	codeStop          = 0xc0207507
	codeSetParams     = 0xc0207508
	codeParams        = 0x80207509
	codeStartRecovery = 0xc0207510
	codeEndRecovery   = 0xc0207511
	codeInfoByPath    = 0x80207512
	codeFeatures      = 0x80207513
	codeDeleteAsync   = 0x80207514
	codeQuiesce       = 0xc0207516
	codeTryStop       = 0xc0207517
)

const (
	maxDepth = 4096
	// DescSize is the length of a descriptor unless a device was told otherwise.
	DescSize = 24

	copyBase   = 0x80000000
	tagShift   = 25
	queueShift = tagShift + 16
	// MaxCopy is the most that one request can have, in bytes.
	MaxCopy = 1 << tagShift
)

// CopyOffset is where in the character device the data of a request lies, for
// user copy.
func CopyOffset(queue, tag uint16) int64 {
	return copyBase + int64(queue)<<queueShift + int64(tag)<<tagShift
}

// DescOffset is where in the character device the descriptors of a queue are
// mapped from.
func DescOffset(queue uint16, pageSize int) int64 {
	return int64(queue) * int64(roundUp(maxDepth*DescSize, pageSize))
}

// DescLength is how many bytes of them must be mapped, no more and no less.
func DescLength(depth uint16, pageSize int) int { return roundUp(int(depth)*DescSize, pageSize) }

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

// AutoBuffer is the Addr of an entry that has the driver put a request's buffer
// into the ring's table at index, and deliver the request anyway if it cannot.
func AutoBuffer(index uint16) uint64 { return uint64(index) | 1<<16 }

// Each of these fails to compile when our layout is not the kernel's.
var (
	_ [64]byte         = [unsafe.Sizeof(Info{})]byte{}
	_ [24]byte         = [unsafe.Offsetof(Info{}.Flags)]byte{}
	_ [40]byte         = [unsafe.Offsetof(Info{}.UID)]byte{}
	_ [8]byte          = [unsafe.Offsetof(Params{}.Basic)]byte{}
	_ [32]byte         = [unsafe.Sizeof(Basic{})]byte{}
	_ [60]byte         = [unsafe.Offsetof(Params{}.Devices)]byte{}
	_ [ParamsSize]byte = [unsafe.Offsetof(Params{}.Zoned) + unsafe.Sizeof(Params{}.Zoned)]byte{}
	_ [DescSize]byte   = [unsafe.Sizeof(Desc{})]byte{}
	_ [16]byte         = [unsafe.Sizeof(IO{})]byte{}
	_ [32]byte         = [unsafe.Sizeof(command{})]byte{}
)
