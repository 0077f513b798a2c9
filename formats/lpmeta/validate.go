package lpmeta

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// maxSectors keeps all sizes in bytes within an int64.
const maxSectors uint64 = math.MaxInt64 / SectorSize

// Validate checks every rule of the format that does not concern the bytes:
// Read, Update, Flash, WriteImage and Export have done so, for what comes out of
// them or goes in.
func (m *Metadata) Validate() error {
	if err := m.Geometry.check(ErrCorrupt); err != nil {
		return err
	}
	if m.Major != majorVersion || m.Minor > maxMinor {
		return refuse(ErrVersion, "version", fmt.Sprintf("%d.0 to %d.%d", majorVersion, majorVersion, maxMinor), fmt.Sprintf("%d.%d", m.Major, m.Minor))
	}
	if m.Flags != 0 && m.Minor < minorFlags {
		return refuse(ErrCorrupt, fmt.Sprintf("flags of version %d.%d", m.Major, m.Minor), 0, m.Flags)
	}
	if n, room := m.encodedSize(), int64(m.Geometry.MetadataMaxSize); n > room {
		return refuse(ErrTooLarge, "bytes of header and tables", fmt.Sprintf("at most %d", room), n)
	}
	for _, check := range []func() error{m.checkDevices, m.checkGroups, m.checkExtents, m.checkPartitions, m.checkOverlap} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// checkName refuses what cannot be the name of a device or of a file.
func checkName(kind error, what, name string) error {
	bad := name == "" || len(name) > MaxNameLength || name == "." || name == ".."
	for _, c := range []byte(name) {
		bad = bad || c <= ' ' || c > '~' || c == '/'
	}
	if bad {
		return refuse(kind, "name of a "+what, fmt.Sprintf("1 to %d characters that can be in a file's name", MaxNameLength), fmt.Sprintf("%q", name))
	}
	return nil
}

// names checks the names of a table, of which no two may be the same.
type names map[string]bool

func (n names) check(what, name string) error {
	if err := checkName(ErrCorrupt, what, name); err != nil {
		return err
	}
	if n[name] {
		return refuse(ErrCorrupt, fmt.Sprintf("name of a %s", what), "each name once", fmt.Sprintf("%q twice", name))
	}
	n[name] = true
	return nil
}

func (m *Metadata) checkDevices() error {
	if len(m.BlockDevices) == 0 {
		return refuse(ErrCorrupt, "block devices", "1 or more", 0)
	}
	seen := names{}
	for _, d := range m.BlockDevices {
		if err := seen.check("block device", d.Name); err != nil {
			return err
		}
		if d.Size > math.MaxInt64 {
			return refuse(ErrCorrupt, d.Name+": size", "less than 2^63", d.Size)
		}
		if end := d.Size / SectorSize; d.FirstLogicalSector > end {
			return refuse(ErrCorrupt, d.Name+": first_logical_sector", fmt.Sprintf("at most %d", end), d.FirstLogicalSector)
		}
	}
	super := m.BlockDevices[0]
	if need := m.Geometry.Reserved(); super.FirstLogicalSector*SectorSize < need {
		return refuse(ErrCorrupt, super.Name+": first_logical_sector", fmt.Sprintf("at least %d, behind the metadata", (need+SectorSize-1)/SectorSize), super.FirstLogicalSector)
	}
	return nil
}

func (m *Metadata) checkGroups() error {
	seen := names{}
	for _, g := range m.Groups {
		if err := seen.check("group", g.Name); err != nil {
			return err
		}
	}
	return nil
}

// checkExtents also looks at extents that no partition has.
func (m *Metadata) checkExtents() error {
	for i, e := range m.Extents {
		if err := m.checkExtent(e); err != nil {
			return fmt.Errorf("extent %d: %w", i, err)
		}
	}
	return nil
}

func (m *Metadata) checkExtent(e Extent) error {
	switch {
	case e.NumSectors > maxSectors:
		return refuse(ErrCorrupt, "num_sectors", fmt.Sprintf("at most %d", maxSectors), e.NumSectors)
	case e.Type == Zero:
		if e.Data != 0 || e.Source != 0 {
			return refuse(ErrCorrupt, "start and device of a zero extent", "0 and 0", fmt.Sprintf("%d and %d", e.Data, e.Source))
		}
		return nil
	case e.Type != Linear:
		return refuse(ErrCorrupt, "target_type", "0 or 1", e.Type)
	case int64(e.Source) >= int64(len(m.BlockDevices)):
		return refuse(ErrCorrupt, "target_source", fmt.Sprintf("less than %d", len(m.BlockDevices)), e.Source)
	}
	d := m.BlockDevices[e.Source]
	end := d.Size / SectorSize
	if e.Data < d.FirstLogicalSector || e.Data > end || e.NumSectors > end-e.Data {
		return refuse(ErrCorrupt, "sectors on "+d.Name, fmt.Sprintf("within %d to %d", d.FirstLogicalSector, end), fmt.Sprintf("%d from %d on", e.NumSectors, e.Data))
	}
	return nil
}

// attributesOf are those that a minor version knows.
func attributesOf(minor uint16) uint32 {
	if minor >= minorUpdated {
		return ReadOnly | SlotSuffixed | Updated | Disabled
	}
	return ReadOnly | SlotSuffixed
}

func (m *Metadata) checkPartitions() error {
	seen, extents := names{}, int64(0)
	for _, p := range m.Partitions {
		if err := seen.check("partition", p.Name); err != nil {
			return err
		}
		// Also keeps what follows from taking as long as the product of the tables.
		if extents += int64(p.NumExtents); extents > int64(len(m.Extents)) {
			return refuse(ErrCorrupt, "extents of all partitions up to "+p.Name, fmt.Sprintf("at most %d", len(m.Extents)), extents)
		}
		if err := m.checkPartition(p); err != nil {
			return fmt.Errorf("partition %s: %w", p.Name, err)
		}
	}
	return nil
}

func (m *Metadata) checkPartition(p Partition) error {
	if known := attributesOf(m.Minor); p.Attributes&^known != 0 {
		return refuse(ErrCorrupt, fmt.Sprintf("attributes in version %d.%d", m.Major, m.Minor), fmt.Sprintf("none but %#x", known), fmt.Sprintf("%#x", p.Attributes))
	}
	if int64(p.Group) >= int64(len(m.Groups)) {
		return refuse(ErrCorrupt, "group", fmt.Sprintf("less than %d", len(m.Groups)), p.Group)
	}
	if end := int64(p.FirstExtent) + int64(p.NumExtents); end > int64(len(m.Extents)) {
		return refuse(ErrCorrupt, "end of its extents", fmt.Sprintf("at most %d", len(m.Extents)), end)
	}
	var sectors uint64
	for _, e := range m.ExtentsOf(&p) {
		if sectors += e.NumSectors; sectors > maxSectors {
			return refuse(ErrCorrupt, "sectors", fmt.Sprintf("at most %d", maxSectors), sectors)
		}
	}
	return nil
}

// placed is an extent of a partition.
type placed struct {
	Extent
	owner string
}

// checkOverlap finds sectors that are in two extents.
func (m *Metadata) checkOverlap() error {
	var all []placed
	for _, p := range m.Partitions {
		for _, e := range m.ExtentsOf(&p) {
			if e.Type == Linear && e.NumSectors > 0 {
				all = append(all, placed{e, p.Name})
			}
		}
	}
	slices.SortFunc(all, func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Data, b.Data))
	})
	for i := 1; i < len(all); i++ {
		a, b := all[i-1], all[i]
		if a.Source == b.Source && a.Data+a.NumSectors > b.Data {
			return refuse(ErrCorrupt, fmt.Sprintf("sector %d of %s", b.Data, m.BlockDevices[b.Source].Name), "one partition", fmt.Sprintf("%s and %s", a.owner, b.owner))
		}
	}
	return nil
}
