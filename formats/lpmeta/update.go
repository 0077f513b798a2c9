package lpmeta

import (
	"fmt"
	"slices"
	"strings"
)

// ForUpdate begins the metadata of the other slot of a Virtual A/B device. What has
// the source suffix gets the target suffix and keeps its extents, since the new
// partitions will be where the old ones are; these partitions are Updated, and
// the metadata VirtualAB. What has the target suffix is dropped. Suffixes are _a
// and _b. source is not changed.
func ForUpdate(source *Metadata, sourceSuffix, targetSuffix string) (*Builder, error) {
	for _, s := range []string{sourceSuffix, targetSuffix} {
		if s != "_a" && s != "_b" || sourceSuffix == targetSuffix {
			return nil, refuse(ErrSlot, "suffixes of source and target", "_a and _b, or _b and _a", sourceSuffix+" and "+targetSuffix)
		}
	}
	b, err := FromMetadata(source)
	if err != nil {
		return nil, err
	}
	b.suffix, b.flags = targetSuffix, b.flags|VirtualAB
	rename := func(name *string) bool {
		if Suffix(*name) != sourceSuffix {
			return false
		}
		*name = strings.TrimSuffix(*name, sourceSuffix) + targetSuffix
		return true
	}
	b.partitions = slices.DeleteFunc(b.partitions, func(p planned) bool { return Suffix(p.name) == targetSuffix })
	for i := range b.partitions {
		p := &b.partitions[i]
		if Suffix(p.group) == targetSuffix {
			return nil, refuse(ErrCorrupt, "group of partition "+p.name, "one that does not belong to slot "+targetSuffix, p.group)
		}
		if rename(&p.name) {
			p.attributes |= Updated
		}
		rename(&p.group)
	}
	b.groups = slices.DeleteFunc(b.groups, func(g Group) bool { return Suffix(g.Name) == targetSuffix })
	for i := range b.groups {
		rename(&b.groups[i].Name)
	}
	return b, nil
}

// Import takes partitions over from other metadata of the same devices, with
// their attributes, groups by name, and extents, which must be free. A partition that is
// there is replaced.
func (b *Builder) Import(m *Metadata, names ...string) error {
	if err := m.Validate(); err != nil {
		return err
	}
	return b.all(func(b *Builder) error {
		for _, name := range names {
			if _, err := b.find(name); err == nil {
				_ = b.RemovePartition(name)
			}
		}
		for _, name := range names {
			if err := b.importOne(m, name); err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *Builder) importOne(m *Metadata, name string) error {
	p := m.Partition(name)
	if p == nil {
		return refuse(ErrUnknown, "partition to import", "one of the other metadata", fmt.Sprintf("%q", name))
	}
	if err := b.AddPartition(name, m.Groups[p.Group].Name, p.Attributes); err != nil {
		return err
	}
	for _, e := range m.ExtentsOf(p) {
		if e.Type == Linear {
			d := m.BlockDevices[e.Source]
			i := slices.IndexFunc(b.devices, func(o BlockDevice) bool { return o.Name == d.Name })
			if i < 0 {
				return refuse(ErrUnknown, "block device", "one of the metadata", fmt.Sprintf("%q", d.Name))
			}
			e.Source = uint32(i)
		}
		if err := b.AddExtent(name, e); err != nil {
			return err
		}
	}
	return nil
}

// GroupPlan is a group as it should become, PartitionPlan a partition. Names are
// with the suffix of the slot that is planned for, sizes in bytes.
type (
	GroupPlan struct {
		Name        string
		MaximumSize uint64 // 0 is no limit
		Partitions  []PartitionPlan
	}
	PartitionPlan struct {
		Name string
		Size uint64
	}
)

// Apply makes the groups and partitions of the slot that is planned for what the
// plan says, in such an order that space is freed before it is needed. Partitions
// and groups of the slot that are not in the plan are removed, a group with all that is
// in it; others are not changed. New partitions are ReadOnly and Updated.
//
// The slot is that of ForUpdate's target; for another builder it is what has no
// suffix.
func (b *Builder) Apply(groups []GroupPlan) error { return b.apply(groups, false) }

// ApplyPartial is Apply for a plan that does not name everything: nothing is
// removed.
func (b *Builder) ApplyPartial(groups []GroupPlan) error { return b.apply(groups, true) }

func (b *Builder) apply(groups []GroupPlan, partial bool) error {
	p := plan{groups: groups, group: map[string]uint64{}, of: map[string]string{}, size: map[string]uint64{}}
	if err := p.index(b.suffix); err != nil {
		return err
	}
	steps := []func(*Builder) error{p.shrinkPartitions, p.removePartitions, p.leaveGroups, p.shrinkGroups, p.removeGroups,
		p.addGroups, p.growGroups, p.addPartitions, p.growPartitions, p.joinGroups}
	if partial {
		steps = slices.Delete(steps, 4, 5)
		steps = slices.Delete(steps, 1, 2)
	}
	return b.all(steps...)
}

// plan is what Apply is given, with indices by name.
type plan struct {
	groups []GroupPlan
	group  map[string]uint64 // maximum size
	of     map[string]string // a partition's group
	size   map[string]uint64 // a partition's size
}

// index also refuses names that are there twice or belong to another slot.
func (p *plan) index(suffix string) error {
	check := func(name string, twice bool) error {
		if twice {
			return refuse(ErrName, "plan", "each name once", fmt.Sprintf("%q twice", name))
		}
		if Suffix(name) != suffix {
			return refuse(ErrName, "plan", fmt.Sprintf("names with the suffix %q", suffix), fmt.Sprintf("%q", name))
		}
		return nil
	}
	for _, g := range p.groups {
		_, twice := p.group[g.Name]
		if err := check(g.Name, twice); err != nil {
			return err
		}
		p.group[g.Name] = g.MaximumSize
		for _, part := range g.Partitions {
			_, twice := p.of[part.Name]
			if err := check(part.Name, twice); err != nil {
				return err
			}
			p.of[part.Name], p.size[part.Name] = g.Name, part.Size
		}
	}
	return nil
}

// each does something for each partition of the plan, in its order.
func (p *plan) each(do func(name string, size uint64) error) error {
	for _, g := range p.groups {
		for _, part := range g.Partitions {
			if err := do(part.Name, part.Size); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *plan) shrinkPartitions(b *Builder) error {
	return p.each(func(name string, size uint64) error {
		if have, ok := b.Size(name); !ok || have <= size {
			return nil
		}
		return b.Resize(name, size, nil)
	})
}

func (p *plan) removePartitions(b *Builder) error {
	b.partitions = slices.DeleteFunc(b.partitions, func(part planned) bool {
		_, stays := p.of[part.name]
		return !stays && Suffix(part.name) == b.suffix
	})
	return nil
}

// leaveGroups moves partitions that change their group to the default one, which
// has no limit.
func (p *plan) leaveGroups(b *Builder) error {
	for i := range b.partitions {
		part := &b.partitions[i]
		if group, ok := p.of[part.name]; ok && group != part.group {
			part.group = DefaultGroup
		}
	}
	return nil
}

func (p *plan) shrinkGroups(b *Builder) error {
	return p.resizeGroups(b, func(from, to uint64) bool { return to != 0 && (from == 0 || to < from) })
}

func (p *plan) growGroups(b *Builder) error {
	return p.resizeGroups(b, func(from, to uint64) bool { return from != 0 && (to == 0 || to > from) })
}

func (p *plan) resizeGroups(b *Builder, which func(from, to uint64) bool) error {
	for _, g := range b.Groups() {
		if to, ok := p.group[g.Name]; ok && which(g.MaximumSize, to) {
			if err := b.ResizeGroup(g.Name, to); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *plan) removeGroups(b *Builder) error {
	for _, g := range b.Groups() {
		if _, stays := p.group[g.Name]; stays || Suffix(g.Name) != b.suffix || g.Name == DefaultGroup {
			continue
		}
		if err := b.RemoveGroup(g.Name); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) addGroups(b *Builder) error {
	for _, g := range p.groups {
		if _, err := b.findGroup(g.Name); err == nil {
			continue
		}
		if err := b.AddGroup(g.Name, g.MaximumSize); err != nil {
			return err
		}
	}
	return nil
}

// addPartitions adds empty ones, which grow with the others.
func (p *plan) addPartitions(b *Builder) error {
	return p.each(func(name string, _ uint64) error {
		if _, err := b.find(name); err == nil {
			return nil
		}
		return b.AddPartition(name, p.of[name], ReadOnly|Updated)
	})
}

func (p *plan) growPartitions(b *Builder) error {
	return p.each(func(name string, size uint64) error { return b.Resize(name, size, nil) })
}

func (p *plan) joinGroups(b *Builder) error {
	return p.each(func(name string, _ uint64) error { return b.ChangeGroup(name, p.of[name]) })
}
