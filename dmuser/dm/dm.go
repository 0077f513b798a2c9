package dm

import "fmt"

// A Version is that of the interface or of a target.
type Version struct{ Major, Minor, Patch uint32 }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// A Target is one line of a table, or of its status, where Args is what the
// target says of itself.
type Target struct {
	Start, Sectors uint64
	Type           string
	Args           string
}

func (t Target) String() string {
	return fmt.Sprintf("%d %d %s %s", t.Start, t.Sectors, t.Type, t.Args)
}

// A TargetType is a kind of target that the kernel has.
type TargetType struct {
	Name    string
	Version Version
}

// An Entry is a device in a list. Dev is its number, in the kernel's encoding.
type Entry struct {
	Name string
	Dev  uint64
}

// Info is the state of a device.
type Info struct {
	Name, UUID string
	Dev        uint64 // its number, in the kernel's encoding
	Open       int    // how many times it is open
	Targets    int    // in the active table
	Event      uint32 // counts what its targets tell
	ReadOnly   bool
	Suspended  bool
	Active     bool // has an active table
	Inactive   bool // has an inactive table
	Leaving    bool // goes when nobody has it open any more
}

// Node is where the kernel puts the device: /dev/dm-N.
func (i Info) Node() string { return fmt.Sprintf("/dev/dm-%d", minor(i.Dev)) }

// Numbers are the two parts of the device number.
func (i Info) Numbers() (major, min uint32) { return uint32(i.Dev >> 8 & 0xfff), minor(i.Dev) }

// minor takes a device number apart as the kernel packs it for this interface.
func minor(dev uint64) uint32 { return uint32(dev&0xff | dev>>12&0xfff00) }

// LoadFlag changes how a table is loaded.
type LoadFlag uint32

// ReadOnly makes the device refuse writes.
const ReadOnly LoadFlag = flagReadOnly

// SuspendFlag changes how a device is suspended.
type SuspendFlag uint32

const (
	// NoFlush keeps requests that have not been issued for later, instead of
	// waiting for them.
	NoFlush SuspendFlag = flagNoFlush
	// SkipLockFS does not have a file system on the device brought in order.
	SkipLockFS SuspendFlag = flagSkipLockFS
)

const (
	flagReadOnly    = 1 << 0
	flagSuspend     = 1 << 1
	flagStatusTable = 1 << 4
	flagActive      = 1 << 5
	flagInactive    = 1 << 6
	flagBufferFull  = 1 << 8
	flagSkipLockFS  = 1 << 10
	flagNoFlush     = 1 << 11
	flagQueryOther  = 1 << 12
	flagDeferred    = 1 << 17
)
