package lpmeta

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

func (b *Builder) find(name string) (*planned, error) {
	i := slices.IndexFunc(b.partitions, func(p planned) bool { return p.name == name })
	if i < 0 {
		return nil, refuse(ErrUnknown, "partition", "one of the metadata", fmt.Sprintf("%q", name))
	}
	return &b.partitions[i], nil
}

func (b *Builder) findGroup(name string) (*Group, error) {
	i := slices.IndexFunc(b.groups, func(g Group) bool { return g.Name == name })
	if i < 0 {
		return nil, refuse(ErrUnknown, "group", "one of the metadata", fmt.Sprintf("%q", name))
	}
	return &b.groups[i], nil
}

// Groups are all groups; the first is the default one.
func (b *Builder) Groups() []Group { return slices.Clone(b.groups) }

// Partitions are the names of all partitions, in their order.
func (b *Builder) Partitions() []string { return b.named(func(*planned) bool { return true }) }

// PartitionsIn are the names of the partitions of a group.
func (b *Builder) PartitionsIn(group string) []string {
	return b.named(func(p *planned) bool { return p.group == group })
}

func (b *Builder) named(which func(*planned) bool) (names []string) {
	for i := range b.partitions {
		if which(&b.partitions[i]) {
			names = append(names, b.partitions[i].name)
		}
	}
	return names
}

// Size is how many bytes a partition has; it is false if there is none.
func (b *Builder) Size(name string) (uint64, bool) {
	p, err := b.find(name)
	if err != nil {
		return 0, false
	}
	return p.sectors() * SectorSize, true
}

// AddGroup adds a group that may take so many bytes; 0 is no limit.
func (b *Builder) AddGroup(name string, maximumSize uint64) error {
	if err := checkName(ErrName, "group", name); err != nil {
		return err
	}
	if _, err := b.findGroup(name); err == nil {
		return refuse(ErrName, "name of a group", "a new one", fmt.Sprintf("%q", name))
	}
	b.groups = append(b.groups, Group{Name: name, MaximumSize: maximumSize})
	return nil
}

// RemoveGroup removes a group, other than the default one, and its partitions.
func (b *Builder) RemoveGroup(name string) error {
	if err := b.checkNotDefault(name); err != nil {
		return err
	}
	b.partitions = slices.DeleteFunc(b.partitions, func(p planned) bool { return p.group == name })
	b.groups = slices.DeleteFunc(b.groups, func(g Group) bool { return g.Name == name })
	return nil
}

func (b *Builder) checkNotDefault(name string) error {
	if name == DefaultGroup {
		return refuse(ErrName, "group", "any but default, which is always there without a limit", name)
	}
	_, err := b.findGroup(name)
	return err
}

// ResizeGroup changes how many bytes a group, other than the default one, may take;
// 0 is no limit. Its partitions must fit.
func (b *Builder) ResizeGroup(name string, maximumSize uint64) error {
	if err := b.checkNotDefault(name); err != nil {
		return err
	}
	g, err := b.findGroup(name)
	if err != nil {
		return err
	}
	if taken := b.takenBy(name); maximumSize != 0 && taken > maximumSize {
		return refuse(ErrNoSpace, "group "+name, fmt.Sprintf("at least %d bytes, which its partitions take", taken), maximumSize)
	}
	g.MaximumSize = maximumSize
	return nil
}

// takenBy is how many bytes of devices the partitions of a group take.
func (b *Builder) takenBy(group string) (n uint64) {
	for i := range b.partitions {
		if p := &b.partitions[i]; p.group == group {
			n += p.onDisk()
		}
	}
	return n
}

// checkRoom checks that a group can take more bytes.
func (b *Builder) checkRoom(group string, more uint64) error {
	g, err := b.findGroup(group)
	if err != nil || g.MaximumSize == 0 || more == 0 {
		return err
	}
	if taken := b.takenBy(group); taken > g.MaximumSize || more > g.MaximumSize-taken {
		return refuse(ErrNoSpace, fmt.Sprintf("group %s of at most %d bytes", group, g.MaximumSize), fmt.Sprintf("%d bytes left", more), g.MaximumSize-min(taken, g.MaximumSize))
	}
	return nil
}

// AddPartition adds an empty partition.
func (b *Builder) AddPartition(name, group string, attributes uint32) error {
	if err := checkName(ErrName, "partition", name); err != nil {
		return err
	}
	if _, err := b.find(name); err == nil {
		return refuse(ErrName, "name of a partition", "a new one", fmt.Sprintf("%q", name))
	}
	if _, err := b.findGroup(group); err != nil {
		return err
	}
	b.partitions = append(b.partitions, planned{name: name, group: group, attributes: attributes})
	return nil
}

// RemovePartition frees what the partition takes.
func (b *Builder) RemovePartition(name string) error {
	if _, err := b.find(name); err != nil {
		return err
	}
	b.partitions = slices.DeleteFunc(b.partitions, func(p planned) bool { return p.name == name })
	return nil
}

// SetAttributes replaces all attributes of a partition.
func (b *Builder) SetAttributes(name string, attributes uint32) error {
	p, err := b.find(name)
	if err == nil {
		p.attributes = attributes
	}
	return err
}

// ChangeGroup moves a partition to another group, if that has room.
func (b *Builder) ChangeGroup(name, group string) error {
	p, err := b.find(name)
	if err != nil || p.group == group {
		return err
	}
	if err := b.checkRoom(group, p.onDisk()); err != nil {
		return err
	}
	p.group = group
	return nil
}

// AddExtent gives a partition an extent that the caller has chosen. It must lie
// within its device, behind the metadata, in sectors that nobody has.
func (b *Builder) AddExtent(name string, e Extent) error {
	p, err := b.find(name)
	if err != nil {
		return err
	}
	if err := (&Metadata{Geometry: b.geometry, BlockDevices: b.devices}).checkExtent(e); err != nil {
		return fmt.Errorf("partition %s: %w", name, err)
	}
	if n := p.sectors(); e.NumSectors > maxSectors-n {
		return refuse(ErrSize, "partition "+name, fmt.Sprintf("at most %d sectors", maxSectors), n)
	}
	if e.Type == Linear {
		wanted := Region{int(e.Source), e.Data, e.Data + e.NumSectors}
		if taken := Intersect(b.Used(), []Region{wanted}); len(taken) > 0 {
			return refuse(ErrNoSpace, "sectors for "+name, fmt.Sprintf("%+v to be free", wanted), fmt.Sprintf("that %+v is not", taken[0]))
		}
		if err := b.checkRoom(p.group, e.NumSectors*SectorSize); err != nil {
			return err
		}
	}
	p.add(e)
	return nil
}

// Resize makes a partition so many bytes long, rounded up to logical blocks. It
// shrinks at its end; it grows into the first free sectors. If within is not nil, it
// grows only into free sectors that are in one of these regions.
func (b *Builder) Resize(name string, bytes uint64, within []Region) error {
	p, err := b.find(name)
	if err != nil {
		return err
	}
	size, ok := alignTo(bytes, uint64(b.geometry.LogicalBlockSize))
	if !ok || size > math.MaxInt64 {
		return refuse(ErrSize, "partition "+name, "less than 2^63 bytes", bytes)
	}
	have, want := p.sectors(), size/SectorSize
	if want <= have {
		p.shrink(want)
		return nil
	}
	if err := b.checkRoom(p.group, (want-have)*SectorSize); err != nil {
		return fmt.Errorf("partition %s: %w", name, err)
	}
	extents, err := b.allocate(p, want-have, within)
	if err != nil {
		return fmt.Errorf("partition %s: %w", name, err)
	}
	for _, e := range extents {
		p.add(e)
	}
	return nil
}

func (p *planned) shrink(want uint64) {
	for have := p.sectors(); have > want; {
		last := &p.extents[len(p.extents)-1]
		if cut := have - want; cut < last.NumSectors {
			last.NumSectors -= cut
			return
		}
		have -= last.NumSectors
		p.extents = p.extents[:len(p.extents)-1]
	}
}

// allocate finds sectors for a partition to grow by.
func (b *Builder) allocate(p *planned, sectors uint64, within []Region) (extents []Extent, err error) {
	within = b.withinOwn(p.name, within)
	left := sectors
	take := func(r Region) {
		n := b.wholeBlocks(min(r.Sectors(), left))
		if n > 0 {
			extents = append(extents, Extent{n, Linear, r.Start, uint32(r.Device)})
			left -= n
		}
	}
	take(b.gapBehind(p, within))
	for _, r := range b.freeFor(p.name, within) {
		take(r)
	}
	if left > 0 {
		return nil, refuse(ErrNoSpace, "free sectors", sectors, sectors-left)
	}
	return extents, nil
}

// withinOwn are the regions that a partition is kept to; nil is no limit.
func (b *Builder) withinOwn(name string, within []Region) []Region {
	i := slices.IndexFunc(b.devices, func(d BlockDevice) bool { return d.Name == strings.TrimSuffix(name, Suffix(name)) })
	if !b.own || i < 0 {
		return within
	}
	own := []Region{{i, 0, maxSectors}}
	if within == nil {
		return own
	}
	return append([]Region{}, Intersect(own, within)...) // not nil
}

func (b *Builder) wholeBlocks(sectors uint64) uint64 {
	return sectors - sectors%uint64(b.geometry.LogicalBlockSize/SectorSize)
}

// gapBehind is what lies between the end of a partition and the next alignment,
// where no other partition can begin. It is empty if somebody has it.
func (b *Builder) gapBehind(p *planned, within []Region) (none Region) {
	if len(p.extents) == 0 || p.extents[len(p.extents)-1].Type != Linear {
		return none
	}
	last := p.extents[len(p.extents)-1]
	d, end := b.devices[last.Source], last.Data+last.NumSectors
	aligned, ok := alignSector(end, d.Alignment)
	gap := Region{int(last.Source), end, min(aligned, d.Size/SectorSize)}
	if !ok || gap.Start >= gap.End || len(Intersect(b.Used(), []Region{gap})) > 0 {
		return none
	}
	if within == nil {
		return gap
	}
	if inside := Intersect(within, []Region{gap}); len(inside) > 0 && inside[0].Start == gap.Start {
		return inside[0]
	}
	return none
}

// freeFor are the regions to grow into, in the order in which they are tried.
func (b *Builder) freeFor(name string, within []Region) []Region {
	free := b.Free()
	if within != nil {
		var aligned []Region
		for _, r := range Intersect(free, within) {
			aligned = appendAligned(aligned, b.devices[r.Device], r)
		}
		free = aligned
	}
	if b.halves && Suffix(name) == "_b" {
		return b.upperFirst(free)
	}
	return free
}

// upperFirst puts what is in the upper half of the first device before the rest.
func (b *Builder) upperFirst(free []Region) []Region {
	d := b.devices[0]
	end := d.Size / SectorSize
	middle, ok := alignSector(d.FirstLogicalSector+(end-d.FirstLogicalSector)/2, d.Alignment)
	if !ok {
		return free
	}
	upper := Intersect(free, []Region{{0, middle, end}})
	lower := []Region{{0, 0, middle}}
	for i := range b.devices[1:] {
		lower = append(lower, Region{i + 1, 0, maxSectors})
	}
	return append(upper, Intersect(free, lower)...)
}
