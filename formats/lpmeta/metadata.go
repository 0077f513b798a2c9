package lpmeta

import (
	"slices"
	"strings"
)

// SectorSize is the unit of extents, in bytes.
const SectorSize = 512

// Limits on what is read and made here.
const (
	MaxMetadataSize = 16 << 20 // bytes of a slot
	MaxSlots        = 64
	MaxNameLength   = 36 // bytes; a name may fill the field
)

// Types of extents.
const (
	Linear = 0 // sectors of a device
	Zero   = 1 // reads as zeros
)

// Attributes of partitions.
const (
	ReadOnly     = 1 << iota
	SlotSuffixed // the name gets the suffix of the slot that is read
	Updated      // its contents come with the update that is not merged yet
	Disabled     // to be deleted at the next chance
)

// Flags of the metadata, from minor version 2 on.
const (
	VirtualAB      = 1 << iota // the device updates by Virtual A/B
	OverlaysActive             // overlays lie over its partitions
)

// GroupSlotSuffixed and DeviceSlotSuffixed are the flags of groups and block
// devices whose names get the suffix of the slot that is read.
const (
	GroupSlotSuffixed  = 1
	DeviceSlotSuffixed = 1
)

// DefaultGroup is the name of group 0, which has no limit.
const DefaultGroup = "default"

// Metadata are what one slot says of the super partition.
type Metadata struct {
	Geometry     Geometry
	Major, Minor uint16
	Flags        uint32
	Partitions   []Partition
	Extents      []Extent
	Groups       []Group
	BlockDevices []BlockDevice // the first one holds the metadata
}

// Partition is a logical partition. Its extents are Extents[FirstExtent:][:NumExtents],
// its group is Groups[Group].
type Partition struct {
	Name        string
	Attributes  uint32
	FirstExtent uint32
	NumExtents  uint32
	Group       uint32
}

// Extent is a piece of a partition.
type Extent struct {
	NumSectors uint64
	Type       uint32 // Linear or Zero
	Data       uint64 // first sector on the device; 0 for Zero
	Source     uint32 // index of the block device; 0 for Zero
}

// Group limits what some partitions may take together.
type Group struct {
	Name        string
	Flags       uint32
	MaximumSize uint64 // bytes, 0 is no limit
}

// BlockDevice is a device that extents lie on.
type BlockDevice struct {
	FirstLogicalSector uint64 // what is before is no extent's
	Alignment          uint32 // bytes, 0 is none
	AlignmentOffset    uint32 // bytes, see the package's page
	Size               uint64 // bytes
	Name               string // the partition's, such as super
	Flags              uint32
}

// Partition finds a partition by its name. It is nil if there is none; what it
// points to is part of m.
func (m *Metadata) Partition(name string) *Partition {
	i := slices.IndexFunc(m.Partitions, func(p Partition) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return &m.Partitions[i]
}

// ExtentsOf are the extents of p, a part of m.
func (m *Metadata) ExtentsOf(p *Partition) []Extent {
	return m.Extents[p.FirstExtent:][:p.NumExtents]
}

// Size is how many bytes p has.
func (m *Metadata) Size(p *Partition) uint64 {
	var sectors uint64
	for _, e := range m.ExtentsOf(p) {
		sectors += e.NumSectors
	}
	return sectors * SectorSize
}

// Beginning are the extents of the first bytes of p, rounded up to whole sectors,
// or all of them if p has no more.
func (m *Metadata) Beginning(p *Partition, bytes uint64) (begin []Extent) {
	sectors := bytes/SectorSize + min(bytes%SectorSize, 1)
	for _, e := range m.ExtentsOf(p) {
		if sectors == 0 {
			break
		}
		e.NumSectors = min(e.NumSectors, sectors)
		sectors -= e.NumSectors
		begin = append(begin, e)
	}
	return begin
}

// Line is a line of a device-mapper table that makes a partition out of its
// extents: a linear target, or a zero one.
type Line struct {
	Start, Length uint64 // sectors of the partition
	Zero          bool
	Device        int    // index into BlockDevices
	Data          uint64 // first sector on that device
}

// Table is the table for p, a line for each extent that is not empty. If p is
// ReadOnly, so must be the device that it makes.
func (m *Metadata) Table(p *Partition) (lines []Line) {
	start := uint64(0)
	for _, e := range m.ExtentsOf(p) {
		if e.NumSectors > 0 {
			lines = append(lines, Line{start, e.NumSectors, e.Type == Zero, int(e.Source), e.Data})
		}
		start += e.NumSectors
	}
	return lines
}

// Suffix is the slot suffix that a name ends with, _a or _b, or "".
func Suffix(name string) string {
	if len(name) > 2 && (strings.HasSuffix(name, "_a") || strings.HasSuffix(name, "_b")) {
		return name[len(name)-2:]
	}
	return ""
}

// SlotOf is the number of the slot with a suffix: 1 for _b and b, otherwise 0.
func SlotOf(suffix string) int {
	if suffix == "_b" || suffix == "b" {
		return 1
	}
	return 0
}

// SuffixOf is the suffix of slot 0 or 1; other slots have none.
func SuffixOf(slot int) string {
	switch slot {
	case 0:
		return "_a"
	case 1:
		return "_b"
	}
	return ""
}
