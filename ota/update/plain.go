package update

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cowbird/cow"
	"cowbird/formats/lpmeta"
)

// A device without a super partition has a file in its place, with metadata that
// say: each partition is all of a block device of its own, and another device is
// free, for COWs. From there on everything is as with super.
//
// A partition may become shorter than its device, and then COWs may lie behind it,
// but it stays there.
//
//	file "super"    geometry, metadata of both slots, and a block that nobody gets
//	device system   system_a, all of it
//	device vendor   vendor_a, all of it
//	device cow      free
const (
	plainMetadata = 65536 // bytes of a slot's
	plainGroup    = "plain"
	plainNobody   = "nobody" // has the file's own block, and no suffix, so that it stays
)

// Plain are the partitions of a device without super.
type Plain struct {
	// Partitions are block devices by the name that payloads have for them,
	// without suffix: there is one for both slots.
	Partitions map[string]string `json:"partitions"`
	// Cow is the block device for COWs.
	Cow string `json:"cow"`
}

const plainCow = "cow"

func (p *Plain) check() error {
	if len(p.Partitions) == 0 || p.Cow == "" {
		return fmt.Errorf("%w: plain: expected partitions and cow, found %d partitions and %q", ErrConfig, len(p.Partitions), p.Cow)
	}
	for _, name := range []string{"super", plainCow, plainNobody} {
		if p.Partitions[name] != "" {
			return fmt.Errorf("%w: plain: expected no partition of the name %s", ErrConfig, name)
		}
	}
	return nil
}

// devices are the block devices by their names in the metadata.
func (p *Plain) devices() map[string]string {
	all := maps.Clone(p.Partitions)
	all[plainCow] = p.Cow
	return all
}

// create makes the file unless it is there, and its folder. slot is the one that runs,
// whose partitions are what is on the devices.
func (p *Plain) create(path string, slot int) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	sizes, err := p.sizes()
	if err != nil {
		return err
	}
	slots, err := p.metadata(sizes, slot)
	if err != nil {
		return fmt.Errorf("metadata of plain partitions: %w", err)
	}
	dir, err := OpenDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(writePlain(dir, filepath.Base(path), slots), dir.Close())
}

// sizes are those of the block devices, in bytes.
func (p *Plain) sizes() (map[string]uint64, error) {
	sizes := map[string]uint64{}
	for name, device := range p.devices() {
		f, err := cow.OpenDevice(device, false)
		if err != nil {
			return nil, fmt.Errorf("plain partition %s: %w", name, err)
		}
		sizes[name] = uint64(f.Size())
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	return sizes, nil
}

// metadata are those of both slots, of which the other one has no partitions.
func (p *Plain) metadata(sizes map[string]uint64, slot int) ([]*lpmeta.Metadata, error) {
	names := append(slices.Sorted(maps.Keys(p.Partitions)), plainCow)
	for _, name := range names {
		if sizes[name] == 0 || sizes[name]%blockSize != 0 {
			return nil, fmt.Errorf("%w: %s: expected a device of whole blocks of %d bytes, found %d bytes", ErrConfig, name, blockSize, sizes[name])
		}
	}
	slots := make([]*lpmeta.Metadata, 2)
	for i := range slots {
		slots[i] = emptyPlain(names, sizes)
	}
	addPlain(slots[slot], names, lpmeta.SuffixOf(slot))
	return slots, nil
}

func plainGeometry() lpmeta.Geometry {
	return lpmeta.Geometry{MetadataMaxSize: plainMetadata, SlotCount: 2, LogicalBlockSize: blockSize}
}

// plainSize is how long the file is: the metadata, and a block, since a device
// without any is none.
func plainSize() uint64 { return plainGeometry().Reserved() + blockSize }

// emptyPlain has the devices, of which only that for COWs is free.
func emptyPlain(names []string, sizes map[string]uint64) *lpmeta.Metadata {
	own := plainGeometry().Reserved() / sectorSize
	m := &lpmeta.Metadata{
		Geometry: plainGeometry(), Major: 10, Minor: 2, Flags: lpmeta.VirtualAB,
		Groups:       []lpmeta.Group{{Name: lpmeta.DefaultGroup}},
		Partitions:   []lpmeta.Partition{{Name: plainNobody, Attributes: lpmeta.ReadOnly | lpmeta.Disabled, NumExtents: 1}},
		Extents:      []lpmeta.Extent{{NumSectors: blockSize / sectorSize, Data: own}},
		BlockDevices: []lpmeta.BlockDevice{{Name: "super", Size: plainSize(), FirstLogicalSector: own}},
	}
	for _, name := range names {
		m.BlockDevices = append(m.BlockDevices, lpmeta.BlockDevice{Name: name, Size: sizes[name], Alignment: blockSize})
	}
	return m
}

// addPlain gives each device but the last, which is for COWs, to a partition.
func addPlain(m *lpmeta.Metadata, names []string, suffix string) {
	m.Groups = append(m.Groups, lpmeta.Group{Name: plainGroup + suffix})
	for i, name := range names[:len(names)-1] {
		device := uint32(i + 1)
		m.Partitions = append(m.Partitions, lpmeta.Partition{
			Name: name + suffix, Attributes: lpmeta.ReadOnly, FirstExtent: uint32(len(m.Extents)), NumExtents: 1, Group: 1,
		})
		m.Extents = append(m.Extents, lpmeta.Extent{NumSectors: m.BlockDevices[device].Size / sectorSize, Source: device})
	}
}

// isPlain tells whether metadata are of a device without super.
func isPlain(m *lpmeta.Metadata) bool { return m.Partition(plainNobody) != nil }

// checkPlain refuses partitions that have no device.
func checkPlain(m *lpmeta.Metadata, groups []lpmeta.GroupPlan) error {
	for _, g := range groups {
		for _, p := range g.Partitions {
			name := strings.TrimSuffix(p.Name, lpmeta.Suffix(p.Name))
			if name == plainCow || !slices.ContainsFunc(m.BlockDevices[1:], func(d lpmeta.BlockDevice) bool { return d.Name == name }) {
				return fmt.Errorf("%w: expected a block device for partition %s, found none", ErrManifest, name)
			}
		}
	}
	return nil
}

// writePlain makes the file as a whole or not at all, unless another process has
// made it in the meantime.
func writePlain(f Files, name string, slots []*lpmeta.Metadata) error {
	image := make(plainImage, plainSize())
	if err := lpmeta.Flash(image, int64(len(image)), slots); err != nil {
		return err
	}
	unlock, err := f.Lock(true)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := f.Read(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return put(f, name, image)
}

// plainImage is the file in memory.
type plainImage []byte

func (i plainImage) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(i).ReadAt(p, off)
}
func (i plainImage) WriteAt(p []byte, off int64) (int, error) { return copy(i[off:], p), nil }
func (i plainImage) Sync() error                              { return nil }
