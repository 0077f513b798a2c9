package bootctl

import (
	"encoding/binary"
	"fmt"
)

// MergeStatus tells the bootloader how far a Virtual A/B update is.
type MergeStatus uint8

const (
	MergeNone        MergeStatus = iota // no update
	MergeUnknown                        // cannot be told
	MergeSnapshotted                    // written, not merged: can be dropped
	Merging                             // cannot be dropped
	MergeCancelled                      // dropped by the bootloader, as when flashed over
)

func (s MergeStatus) String() string {
	names := [...]string{"none", "unknown", "snapshotted", "merging", "cancelled"}
	if int(s) >= len(names) {
		return fmt.Sprintf("merge status %d", uint8(s))
	}
	return names[s]
}

// MayErase says whether userdata, metadata and misc may be erased or flashed.
func (s MergeStatus) MayErase() bool { return s != MergeSnapshotted && s != Merging }

// MaySetActive says whether the active slot may be changed from the bootloader.
func (s MergeStatus) MaySetActive() bool { return s != Merging }

const (
	virtualABMagic   = 0x56740ab0
	virtualABVersion = 2
)

// NoSlot is the source slot of a message of version 1, which does not have it.
const NoSlot = -1

// VirtualAB is the message that a merge status is in.
type VirtualAB struct {
	Version int // 2, or 1 of old systems; 0 is written as 2
	Status  MergeStatus
	// Source is the slot that ran when the status was written, or NoSlot. Android
	// writes 255 if it did not know.
	Source int

	reserved [57]byte
}

// NewVirtualAB is the message that a system running in that slot writes. The error is
// ErrSlot.
func NewVirtualAB(status MergeStatus, running int) (VirtualAB, error) {
	if running < 0 || running >= MaxSlots {
		return VirtualAB{}, fmt.Errorf("%w: expected a running slot below %d, found %d", ErrSlot, MaxSlots, running)
	}
	return VirtualAB{Version: virtualABVersion, Status: status, Source: running}, nil
}

// ParseVirtualAB reads a message from the first 64 bytes of b. It has no checksum. The
// errors are ErrSize, ErrBlank, ErrMagic, ErrVersion and ErrValue; after ErrBlank a
// system takes the status for MergeNone.
func ParseVirtualAB(b []byte) (VirtualAB, error) {
	if len(b) < VirtualABSize {
		return VirtualAB{}, fmt.Errorf("%w: virtual A/B message: expected %d bytes, found %d", ErrSize, VirtualABSize, len(b))
	}
	if b = b[:VirtualABSize]; blank(b) {
		return VirtualAB{}, fmt.Errorf("%w: virtual A/B message: found %#x only", ErrBlank, b[0])
	}
	if magic := binary.LittleEndian.Uint32(b[1:]); magic != virtualABMagic {
		return VirtualAB{}, fmt.Errorf("%w: virtual A/B message: expected %#x, found %#x", ErrMagic, virtualABMagic, magic)
	}
	m := VirtualAB{Version: int(b[0]), Status: MergeStatus(b[5]), Source: int(b[6]), reserved: [57]byte(b[7:])}
	if m.Version == 1 {
		m.Source = NoSlot
	}
	if err := m.check(); err != nil {
		return VirtualAB{}, err
	}
	return m, nil
}

func (m *VirtualAB) check() error {
	if m.Version != 1 && m.Version != virtualABVersion {
		return fmt.Errorf("%w: virtual A/B message: expected 1 or %d, found %d", ErrVersion, virtualABVersion, m.Version)
	}
	if m.Status > MergeCancelled {
		return fmt.Errorf("%w: virtual A/B message: expected a status up to %d, found %d", ErrValue, MergeCancelled, m.Status)
	}
	if m.Source < NoSlot || m.Source > 255 || (m.Source == NoSlot) != (m.Version == 1) {
		return fmt.Errorf("%w: virtual A/B message of version %d: expected a source slot up to 255, found %d", ErrValue, m.Version, m.Source)
	}
	return nil
}

// Marshal returns the 64 bytes of a message. The errors are ErrVersion and ErrValue.
func (m VirtualAB) Marshal() ([]byte, error) {
	if m.Version == 0 {
		m.Version = virtualABVersion
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	b := make([]byte, VirtualABSize)
	b[0], b[5] = byte(m.Version), byte(m.Status)
	if m.Source != NoSlot {
		b[6] = byte(m.Source)
	}
	binary.LittleEndian.PutUint32(b[1:], virtualABMagic)
	copy(b[7:], m.reserved[:])
	return b, nil
}

// Seen is the status as a system running in that slot has to take it: an update that
// was written but not booted may be dropped, so it counts as none.
func (m VirtualAB) Seen(running int) MergeStatus {
	if m.Status == MergeSnapshotted && m.Source == running {
		return MergeNone
	}
	return m.Status
}
