package lpmeta

import (
	"fmt"
	"math"
	"slices"
)

// DeviceInfo is a device that logical partitions can lie on.
type DeviceInfo struct {
	Name             string
	Size             uint64 // bytes, whole blocks
	Alignment        uint32 // bytes; extents begin at multiples. 0 is none
	AlignmentOffset  uint32 // bytes, see the package's page
	LogicalBlockSize uint32 // bytes, whole sectors; the same for all devices
}

// Builder plans metadata: it has partitions and groups by name, and knows where
// there is space. A method that returns an error has changed nothing.
type Builder struct {
	geometry   Geometry
	minor      uint16 // the least to export
	flags      uint32
	devices    []BlockDevice
	groups     []Group // the first is the default one
	partitions []planned
	suffix     string // of the slot that is planned for, if it is for one
	halves     bool
	own        bool
}

// planned is a partition of a builder.
type planned struct {
	name       string
	attributes uint32
	group      string
	extents    []Extent
}

func (p *planned) sectors() (n uint64) {
	for _, e := range p.extents {
		n += e.NumSectors
	}
	return n
}

// onDisk is how many bytes of devices it takes.
func (p *planned) onDisk() (n uint64) {
	for _, e := range p.extents {
		if e.Type == Linear {
			n += e.NumSectors * SectorSize
		}
	}
	return n
}

// add appends an extent, or makes the last one longer if it goes on there.
func (p *planned) add(e Extent) {
	if n := len(p.extents); n > 0 {
		last := &p.extents[n-1]
		if last.Type == e.Type && last.Source == e.Source && (e.Type == Zero || last.Data+last.NumSectors == e.Data) {
			last.NumSectors += e.NumSectors
			return
		}
	}
	p.extents = append(p.extents, e)
}

// NewBuilder begins without partitions. The metadata are on the first device, as
// many bytes for each of so many slots, rounded up to sectors.
func NewBuilder(devices []DeviceInfo, metadataMaxSize, slots uint32) (*Builder, error) {
	if len(devices) == 0 {
		return nil, refuse(ErrUnknown, "block devices", "1 or more", 0)
	}
	size, _ := alignTo(uint64(metadataMaxSize), SectorSize)
	b := &Builder{geometry: Geometry{uint32(min(size, math.MaxUint32)), slots, devices[0].LogicalBlockSize}, groups: []Group{{Name: DefaultGroup}}}
	if err := b.geometry.check(ErrSize); err != nil {
		return nil, err
	}
	for i, info := range devices {
		// The first sector of a device without metadata may have a partition table.
		from := uint64(SectorSize)
		if i == 0 {
			from = b.geometry.Reserved()
		}
		d, err := b.newDevice(info, from)
		if err != nil {
			return nil, err
		}
		b.devices = append(b.devices, d)
	}
	return b, nil
}

// newDevice places the first sector at or behind a byte.
func (b *Builder) newDevice(info DeviceInfo, from uint64) (d BlockDevice, err error) {
	block := b.geometry.LogicalBlockSize
	if err := checkName(ErrName, "block device", info.Name); err != nil {
		return d, err
	}
	if slices.ContainsFunc(b.devices, func(d BlockDevice) bool { return d.Name == info.Name }) {
		return d, refuse(ErrName, "name of a block device", "each name once", fmt.Sprintf("%q twice", info.Name))
	}
	if info.LogicalBlockSize != block {
		return d, refuse(ErrSize, info.Name+": logical block", fmt.Sprintf("%d bytes, as on all devices", block), info.LogicalBlockSize)
	}
	if info.Size%uint64(block) != 0 || info.Size > math.MaxInt64 {
		return d, refuse(ErrSize, info.Name+": size", fmt.Sprintf("a multiple of %d", block), info.Size)
	}
	alignment := info.Alignment
	if alignment == 0 {
		alignment = block
	}
	first, ok := alignSector((from+SectorSize-1)/SectorSize, alignment)
	if need := first*SectorSize + uint64(block); !ok || need > info.Size {
		return d, refuse(ErrSize, info.Name+": size", fmt.Sprintf("at least %d bytes, the metadata and a block", need), info.Size)
	}
	return BlockDevice{first, info.Alignment, info.AlignmentOffset, info.Size, info.Name, 0}, nil
}

// FromMetadata begins with what m has. It keeps nothing of m.
func FromMetadata(m *Metadata) (*Builder, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	b := &Builder{geometry: m.Geometry, flags: m.Flags, devices: slices.Clone(m.BlockDevices), groups: []Group{{Name: DefaultGroup}}}
	if m.Minor >= minorFlags {
		b.minor = minorFlags
	}
	for _, g := range m.Groups {
		if g.Name == DefaultGroup {
			b.groups[0] = g
		} else {
			b.groups = append(b.groups, g)
		}
	}
	for i := range m.Partitions {
		p := &m.Partitions[i]
		b.partitions = append(b.partitions, planned{p.Name, p.Attributes, m.Groups[p.Group].Name, slices.Clone(m.ExtentsOf(p))})
	}
	return b, nil
}

// Export gives the metadata, in the least version that can say all.
func (b *Builder) Export() (*Metadata, error) {
	m := &Metadata{Geometry: b.geometry, Major: majorVersion, Minor: b.minor, Flags: b.flags, Groups: slices.Clone(b.groups), BlockDevices: slices.Clone(b.devices)}
	if b.flags != 0 {
		m.Minor = minorFlags
	}
	index := map[string]uint32{}
	for i, g := range b.groups {
		index[g.Name] = uint32(i)
	}
	for _, p := range b.partitions {
		if p.attributes&(Updated|Disabled) != 0 {
			m.Minor = max(m.Minor, minorUpdated)
		}
		m.Partitions = append(m.Partitions, Partition{p.name, p.attributes, uint32(len(m.Extents)), uint32(len(p.extents)), index[p.group]})
		m.Extents = append(m.Extents, p.extents...)
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return m, nil
}

// Geometry is that of the metadata to be exported.
func (b *Builder) Geometry() Geometry { return b.geometry }

// SetFlags sets the flags of the metadata, such as VirtualAB.
func (b *Builder) SetFlags(flags uint32) { b.flags = flags }

// ExpandHeader exports a header with room for flags, also if there are none.
func (b *Builder) ExpandHeader() { b.minor = minorFlags }

// PreferHalves makes partitions whose names end with _b grow into the upper half
// of the first device first, so that the slots of an A/B device without snapshots
// keep out of each other's way.
func (b *Builder) PreferHalves() { b.halves = true }

// OwnDevices makes a partition grow only on the block device that has its name, without
// suffix, if there is one.
func (b *Builder) OwnDevices() { b.own = true }

// LeaveSlotOpen marks all names to get the suffix of the slot that is read; none
// should have one.
func (b *Builder) LeaveSlotOpen() {
	for i := range b.partitions {
		b.partitions[i].attributes |= SlotSuffixed
	}
	for i := range b.groups[1:] {
		b.groups[i+1].Flags |= GroupSlotSuffixed
	}
	for i := range b.devices {
		b.devices[i].Flags |= DeviceSlotSuffixed
	}
}

// UpdateDevice takes the alignment of a device as it is now into account; zeros
// leave what is known. It is an error if the size is another or if its blocks are
// no part of those of the metadata. Smaller blocks change nothing.
func (b *Builder) UpdateDevice(info DeviceInfo) error {
	i := slices.IndexFunc(b.devices, func(d BlockDevice) bool { return d.Name == info.Name })
	if i < 0 {
		return refuse(ErrUnknown, "block device", "one of the metadata", fmt.Sprintf("%q", info.Name))
	}
	d := &b.devices[i]
	if info.Size != d.Size {
		return refuse(ErrSize, d.Name+": size", d.Size, info.Size)
	}
	if n, block := info.LogicalBlockSize, b.geometry.LogicalBlockSize; n != 0 && (n%SectorSize != 0 || block%n != 0) {
		return refuse(ErrSize, d.Name+": logical block", fmt.Sprintf("whole sectors, of which a multiple is %d", block), n)
	}
	if info.Alignment != 0 {
		d.Alignment = info.Alignment
	}
	if info.AlignmentOffset != 0 {
		d.AlignmentOffset = info.AlignmentOffset
	}
	return nil
}

// clone is a copy that shares nothing with b.
func (b *Builder) clone() *Builder {
	c := *b
	c.devices, c.groups, c.partitions = slices.Clone(b.devices), slices.Clone(b.groups), slices.Clone(b.partitions)
	for i := range c.partitions {
		c.partitions[i].extents = slices.Clone(c.partitions[i].extents)
	}
	return &c
}

// all does some steps on a copy of b, and keeps it if none fails.
func (b *Builder) all(steps ...func(b *Builder) error) error {
	c := b.clone()
	for _, step := range steps {
		if err := step(c); err != nil {
			return err
		}
	}
	*b = *c
	return nil
}
