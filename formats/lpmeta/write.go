package lpmeta

import (
	"fmt"
	"io"
)

// Device is what metadata are written to.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error // returns when what was written is durable
}

// Update replaces the metadata of a slot; those of other slots are not touched.
// Whatever fails, or when the power is cut, Read then gives the old metadata or
// m, if it gave anything before. The geometry of m must be that of the device.
func Update(dev Device, slot int, m *Metadata) error {
	g, err := ReadGeometry(dev)
	if err != nil {
		return err
	}
	if m.Geometry != g {
		return refuse(ErrGeometry, "geometry", fmt.Sprintf("%+v, which only flashing changes", g), fmt.Sprintf("%+v", m.Geometry))
	}
	if err := g.checkSlot(slot); err != nil {
		return err
	}
	if err := m.Validate(); err != nil {
		return err
	}
	if err := heal(dev, g, slot); err != nil {
		return fmt.Errorf("bring the copies of slot %d into agreement: %w", slot, err)
	}
	for _, backup := range []bool{false, true} {
		if err := writeCopy(dev, slot, backup, m); err != nil {
			return err
		}
	}
	return nil
}

// Repair makes both copies of the geometry, and of the metadata of each slot, the same,
// where one is good; where none is nothing is changed. The primary one counts. A power
// cut leaves at least one good copy of what had one.
func Repair(dev Device) error {
	g, err := ReadGeometry(dev)
	if err != nil {
		return err
	}
	for _, backup := range []bool{false, true} {
		if found, err := readGeometryAt(dev, geometryOffset(backup)); err == nil && found == g {
			continue
		}
		if err := writeSync(dev, g.encode(), geometryOffset(backup), "geometry"); err != nil {
			return err
		}
	}
	for slot := range int(g.SlotCount) {
		if err := heal(dev, g, slot); err != nil {
			return fmt.Errorf("bring the copies of slot %d into agreement: %w", slot, err)
		}
	}
	return nil
}

// heal makes both copies of a slot the same, if one is good. The primary counts.
func heal(dev Device, g Geometry, slot int) error {
	c := readCopies(dev, g, slot)
	switch {
	case c.primary == nil && c.backup != nil:
		return writeCopy(dev, slot, false, c.backup)
	case c.primary != nil && c.backup == nil, c.differ():
		return writeCopy(dev, slot, true, c.primary)
	}
	return nil
}

func writeCopy(dev Device, slot int, backup bool, m *Metadata) error {
	name := map[bool]string{false: "primary", true: "backup"}[backup]
	return writeSync(dev, m.encode(), m.Geometry.Offset(slot, backup), fmt.Sprintf("%s copy of slot %d", name, slot))
}

func writeSync(dev Device, b []byte, off int64, what string) error {
	_, err := dev.WriteAt(b, off)
	if err == nil {
		err = dev.Sync()
	}
	if err != nil {
		return fmt.Errorf("write the %s: %w", what, err)
	}
	return nil
}

// Flash writes everything: the geometry and the metadata of each slot, in both
// copies, to a device of size bytes. Nothing is written unless all fits. While it
// is going on there is no geometry, so that one that was interrupted is not
// taken for complete.
func Flash(dev Device, size int64, slots []*Metadata) error {
	if err := checkFlash(size, slots); err != nil {
		return err
	}
	g := slots[0].Geometry
	if err := writeSync(dev, make([]byte, copiesStart), 0, "empty geometry"); err != nil {
		return err
	}
	for slot, m := range slots {
		for _, backup := range []bool{false, true} {
			if err := writeCopy(dev, slot, backup, m); err != nil {
				return err
			}
		}
	}
	for _, backup := range []bool{true, false} {
		if err := writeSync(dev, g.encode(), geometryOffset(backup), "geometry"); err != nil {
			return err
		}
	}
	return nil
}

func checkFlash(size int64, slots []*Metadata) error {
	if len(slots) == 0 {
		return refuse(ErrGeometry, "slots to flash", "1 or more", 0)
	}
	g := slots[0].Geometry
	if len(slots) != int(g.SlotCount) {
		return refuse(ErrGeometry, "slots to flash", g.SlotCount, len(slots))
	}
	for i, m := range slots {
		if m.Geometry != g {
			return refuse(ErrGeometry, fmt.Sprintf("geometry of slot %d", i), fmt.Sprintf("%+v", g), fmt.Sprintf("%+v", m.Geometry))
		}
		if err := m.Validate(); err != nil {
			return fmt.Errorf("slot %d: %w", i, err)
		}
		if d := m.BlockDevices[0]; int64(d.Size) > size {
			return refuse(ErrTooLarge, "size of the device for "+d.Name, fmt.Sprintf("at least %d", d.Size), size)
		}
	}
	return nil
}
