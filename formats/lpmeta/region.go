package lpmeta

import (
	"cmp"
	"slices"
)

// Region is some sectors of a block device: from Start up to, and without, End.
type Region struct {
	Device     int // index into BlockDevices
	Start, End uint64
}

// Sectors is how many there are.
func (r Region) Sectors() uint64 { return r.End - r.Start }

// normal gives the same sectors sorted, in as few regions as can be.
func normal(regions []Region) (out []Region) {
	sorted := slices.Clone(regions)
	slices.SortFunc(sorted, func(a, b Region) int {
		return cmp.Or(cmp.Compare(a.Device, b.Device), cmp.Compare(a.Start, b.Start))
	})
	for _, r := range sorted {
		if r.Start >= r.End {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Device == r.Device && out[n-1].End >= r.Start {
			out[n-1].End = max(out[n-1].End, r.End)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// Intersect gives the sectors that are in both, sorted by device and sector.
// Neither needs to be sorted.
func Intersect(a, b []Region) (both []Region) {
	a, b = normal(a), normal(b)
	for len(a) > 0 && len(b) > 0 {
		x, y := a[0], b[0]
		if start, end := max(x.Start, y.Start), min(x.End, y.End); x.Device == y.Device && start < end {
			both = append(both, Region{x.Device, start, end})
		}
		if cmp.Or(cmp.Compare(x.Device, y.Device), cmp.Compare(x.End, y.End)) < 0 {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return both
}

// Used are the sectors of all partitions, sorted by device and sector.
func (b *Builder) Used() []Region {
	var used []Region
	for _, p := range b.partitions {
		for _, e := range p.extents {
			if e.Type == Linear {
				used = append(used, Region{int(e.Source), e.Data, e.Data + e.NumSectors})
			}
		}
	}
	return normal(used)
}

// Free are the sectors that partitions can grow into, sorted by device and
// sector. Each region begins at the device's alignment.
func (b *Builder) Free() (free []Region) {
	used := b.Used()
	for i, d := range b.devices {
		at := d.FirstLogicalSector
		for len(used) > 0 && used[0].Device == i {
			free = appendAligned(free, d, Region{i, at, used[0].Start})
			at, used = used[0].End, used[1:]
		}
		free = appendAligned(free, d, Region{i, at, d.Size / SectorSize})
	}
	return free
}

// appendAligned appends what is left of a region when it begins at the
// alignment of its device, if anything is.
func appendAligned(regions []Region, d BlockDevice, r Region) []Region {
	start, ok := alignSector(r.Start, d.Alignment)
	if !ok || start >= r.End {
		return regions
	}
	return append(regions, Region{r.Device, start, r.End})
}

// alignSector rounds a sector up to an alignment in bytes, which need not be whole
// sectors. It is false if the outcome does not fit.
func alignSector(sector uint64, alignment uint32) (uint64, bool) {
	if sector > maxSectors {
		return 0, false
	}
	n, ok := alignTo(sector*SectorSize, uint64(alignment))
	if ok {
		n, ok = alignTo(n, SectorSize)
	}
	return n / SectorSize, ok
}
