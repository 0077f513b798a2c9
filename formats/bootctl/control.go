package bootctl

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Where the blocks are in the misc partition and how large they are, in bytes.
const (
	MessageOffset   = 0
	MessageSize     = 2048
	ControlOffset   = 2048
	ControlSize     = 32
	VirtualABOffset = 32768
	VirtualABSize   = 64
)

// Limits of a control block's fields.
const (
	MaxSlots    = 4
	MaxPriority = 15
	MaxTries    = 7
)

const (
	controlMagic   = 0x42414342
	controlVersion = 1
	activeTries    = 6
	controlCRC     = 28 // where the checksum is, and how much it covers
)

// Slot is what a control block says of one slot.
type Slot struct {
	Priority        uint8 // 0 to 15, the highest
	Tries           uint8 // 0 to 7; 0 is not bootable
	Successful      bool  // booted and found good: tries are not counted
	VerityCorrupted bool
	Reserved        uint8 // seven bits
}

// Bootable says whether a bootloader may start the slot.
func (s Slot) Bootable() bool { return s.Tries > 0 && !s.VerityCorrupted }

// Control is a bootloader control block. It is a plain value: a copy shares nothing
// with its original.
type Control struct {
	// Suffix is the slot that was booted last, "_a" or, by U-Boot, "a"; it is
	// informative, at most four bytes.
	Suffix        string
	Count         int   // how many slots there are, 1 to 4
	RecoveryTries uint8 // 0 to 7
	// Merge is for bootloaders that keep the status here. Android's library
	// keeps it in VirtualAB.
	Merge MergeStatus
	Slots [MaxSlots]Slot

	reservedFlags uint16 // flags 9 to 15
	reserved11    uint8
	reserved20    [8]byte
}

// ParseControl reads a control block from the first 32 bytes of b. The errors are
// ErrSize, ErrBlank, ErrChecksum, ErrMagic, ErrVersion and ErrValue.
func ParseControl(b []byte) (Control, error) {
	if len(b) < ControlSize {
		return Control{}, fmt.Errorf("%w: control block: expected %d bytes, found %d", ErrSize, ControlSize, len(b))
	}
	if b = b[:ControlSize]; blank(b) {
		return Control{}, fmt.Errorf("%w: control block: found %#x only", ErrBlank, b[0])
	}
	if err := checkControl(b); err != nil {
		return Control{}, err
	}
	flags := binary.LittleEndian.Uint16(b[9:])
	c := Control{Suffix: text(b[:4]), Count: int(flags & 7), RecoveryTries: uint8(flags >> 3 & 7), Merge: MergeStatus(flags >> 6 & 7),
		reservedFlags: flags >> 9, reserved11: b[11], reserved20: [8]byte(b[20:28])}
	for i := range c.Slots {
		c.Slots[i] = parseSlot(b[12+2*i:])
	}
	if err := c.check(); err != nil {
		return Control{}, err
	}
	return c, nil
}

func checkControl(b []byte) error {
	if want, found := crc32.ChecksumIEEE(b[:controlCRC]), binary.LittleEndian.Uint32(b[controlCRC:]); want != found {
		return fmt.Errorf("%w: control block: expected %#08x, found %#08x", ErrChecksum, want, found)
	}
	if magic := binary.LittleEndian.Uint32(b[4:]); magic != controlMagic {
		return fmt.Errorf("%w: control block: expected %#x, found %#x", ErrMagic, controlMagic, magic)
	}
	if b[8] != controlVersion {
		return fmt.Errorf("%w: control block: expected %d, found %d", ErrVersion, controlVersion, b[8])
	}
	return nil
}

func parseSlot(b []byte) Slot {
	return Slot{Priority: b[0] & 15, Tries: b[0] >> 4 & 7, Successful: b[0]&0x80 != 0, VerityCorrupted: b[1]&1 != 0, Reserved: b[1] >> 1}
}

// check tells whether the block can be written as it is.
func (c *Control) check() error {
	if c.Count < 1 || c.Count > MaxSlots {
		return fmt.Errorf("%w: control block: expected 1 to %d slots, found %d", ErrValue, MaxSlots, c.Count)
	}
	if !fits(c.Suffix, 4) {
		return fmt.Errorf("%w: control block: expected a suffix of at most 4 bytes, found %q", ErrValue, c.Suffix)
	}
	if c.RecoveryTries > 7 || c.Merge > 7 {
		return fmt.Errorf("%w: control block: expected recovery tries and merge status up to 7, found %d and %d", ErrValue, c.RecoveryTries, c.Merge)
	}
	for i, s := range c.Slots {
		if s.Priority > MaxPriority || s.Tries > MaxTries || s.Reserved > 127 {
			return fmt.Errorf("%w: slot %d: expected a priority up to %d and up to %d tries, found %+v", ErrValue, i, MaxPriority, MaxTries, s)
		}
	}
	return nil
}

// Marshal returns the 32 bytes of a block. The error is ErrValue.
func (c Control) Marshal() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	b := make([]byte, ControlSize)
	copy(b, c.Suffix)
	binary.LittleEndian.PutUint32(b[4:], controlMagic)
	b[8] = controlVersion
	binary.LittleEndian.PutUint16(b[9:], uint16(c.Count)|uint16(c.RecoveryTries)<<3|uint16(c.Merge)<<6|c.reservedFlags<<9)
	b[11] = c.reserved11
	for i, s := range c.Slots {
		s.put(b[12+2*i:])
	}
	copy(b[20:], c.reserved20[:])
	binary.LittleEndian.PutUint32(b[controlCRC:], crc32.ChecksumIEEE(b[:controlCRC]))
	return b, nil
}

func (s Slot) put(b []byte) {
	b[0], b[1] = s.Priority|s.Tries<<4, s.Reserved<<1
	if s.Successful {
		b[0] |= 0x80
	}
	if s.VerityCorrupted {
		b[1] |= 1
	}
}

// Default is the block for a system of that many slots that finds none, or one that is
// broken: all are on trial, but for the running slot, which evidently works. No slot
// is running if running is negative, as for the bootloader.
func Default(count, running int) (Control, error) {
	c := Control{Count: count}
	if running >= count {
		return Control{}, fmt.Errorf("%w: expected a running slot below %d, found %d", ErrSlot, count, running)
	}
	if err := c.check(); err != nil {
		return Control{}, err
	}
	for i := range count {
		c.Slots[i] = Slot{Priority: 7, Tries: MaxTries, Successful: i == running}
	}
	if running >= 0 {
		c.Suffix = Suffix(running)
	}
	return c, nil
}

// blank says whether all bytes are as in fresh or erased storage.
func blank(b []byte) bool {
	for _, x := range b {
		if x != b[0] {
			return false
		}
	}
	return b[0] == 0 || b[0] == 0xff
}
