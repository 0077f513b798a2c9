package lpmeta

import (
	"fmt"
	"io"
	"slices"
)

// Read reads the metadata of a slot from a super partition: geometry and metadata
// each from the primary copy, or if that is no good from the backup. Names that
// were left open have the suffix of the slot.
func Read(r io.ReaderAt, slot int) (*Metadata, error) {
	g, err := ReadGeometry(r)
	if err != nil {
		return nil, err
	}
	if err := g.checkSlot(slot); err != nil {
		return nil, err
	}
	c := readCopies(r, g, slot)
	m := c.good()
	if m == nil {
		return nil, fmt.Errorf("slot %d: both copies are unusable: primary: %w; backup: %w", slot, c.primaryErr, c.backupErr)
	}
	if m, err = m.ForSlot(slot); err != nil {
		return nil, fmt.Errorf("slot %d: %w", slot, err)
	}
	return m, nil
}

// copies are both copies of a slot; one that is no good is nil.
type copies struct {
	primary, backup       *Metadata
	primaryErr, backupErr error
}

func readCopies(r io.ReaderAt, g Geometry, slot int) (c copies) {
	c.primary, c.primaryErr = readMetadata(r, g.Offset(slot, false), g)
	c.backup, c.backupErr = readMetadata(r, g.Offset(slot, true), g)
	return c
}

func (c copies) good() *Metadata {
	if c.primary == nil {
		return c.backup
	}
	return c.primary
}

// differ tells that both are good, and not the same.
func (c copies) differ() bool {
	return c.primary != nil && c.backup != nil && !c.primary.Equal(c.backup)
}

// Equal tells whether m and o are the same in everything.
func (m *Metadata) Equal(o *Metadata) bool {
	return m.Geometry == o.Geometry && m.Major == o.Major && m.Minor == o.Minor && m.Flags == o.Flags && slices.Equal(m.Partitions, o.Partitions) &&
		slices.Equal(m.Extents, o.Extents) && slices.Equal(m.Groups, o.Groups) && slices.Equal(m.BlockDevices, o.BlockDevices)
}

// Clone is a copy that shares nothing with m.
func (m *Metadata) Clone() *Metadata {
	c := *m
	c.Partitions, c.Extents = slices.Clone(m.Partitions), slices.Clone(m.Extents)
	c.Groups, c.BlockDevices = slices.Clone(m.Groups), slices.Clone(m.BlockDevices)
	return &c
}

// ForSlot is a copy of m in which the names that were left open have the suffix of
// a slot, 0 or 1. m without such names is for any slot.
func (m *Metadata) ForSlot(slot int) (*Metadata, error) {
	c, suffix := m.Clone(), SuffixOf(slot)
	resolve := func(name *string, flags *uint32, flag uint32) {
		if *flags&flag != 0 {
			*name += suffix
			*flags &^= flag
		}
	}
	for i := range c.Partitions {
		resolve(&c.Partitions[i].Name, &c.Partitions[i].Attributes, SlotSuffixed)
	}
	for i := range c.Groups {
		if g := &c.Groups[i]; g.Name == DefaultGroup {
			g.Flags &^= GroupSlotSuffixed
		} else {
			resolve(&g.Name, &g.Flags, GroupSlotSuffixed)
		}
	}
	for i := range c.BlockDevices {
		resolve(&c.BlockDevices[i].Name, &c.BlockDevices[i].Flags, DeviceSlotSuffixed)
	}
	if c.Equal(m) {
		return c, nil
	}
	if suffix == "" {
		return nil, refuse(ErrSlot, "slot of names that get a suffix", "0 or 1", slot)
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// Condition tells of the two copies of something. An error is nil for a copy that
// is good; both may be good and yet Differ.
type Condition struct {
	Primary, Backup error
	Differ          bool
}

// Good tells whether both copies are good and the same.
func (c Condition) Good() bool { return c.Primary == nil && c.Backup == nil && !c.Differ }

// Usable tells whether there is a good copy.
func (c Condition) Usable() bool { return c.Primary == nil || c.Backup == nil }

// Inspect reads every copy of everything: of the geometry, and of the metadata of
// each slot, if there is a geometry. Where both copies are good but differ, the
// primary is the one that counts.
func Inspect(r io.ReaderAt) (geometry Condition, slots []Condition) {
	g, err := readGeometryAt(r, geometryOffset(false))
	other, backupErr := readGeometryAt(r, geometryOffset(true))
	geometry = Condition{err, backupErr, err == nil && backupErr == nil && g != other}
	if !geometry.Usable() {
		return geometry, nil
	}
	if err != nil {
		g = other
	}
	for slot := range int(g.SlotCount) {
		c := readCopies(r, g, slot)
		slots = append(slots, Condition{c.primaryErr, c.backupErr, c.differ()})
	}
	return geometry, slots
}
