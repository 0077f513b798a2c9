package main

import (
	"errors"
	"fmt"

	"cowbird/cow"
	"cowbird/ota/claim"
)

// devices are open inputs.
type devices []*cow.FileDevice

func (d devices) close() {
	for _, dev := range d {
		_ = dev.Close()
	}
}

// openAll opens images or COWs for reading.
func openAll(paths ...string) (devices, error) {
	var all devices
	for _, p := range paths {
		d, err := cow.OpenDevice(p, false)
		if err != nil {
			all.close()
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// openForMerge opens the COW, claimed, and the base for writing.
func openForMerge(cowPath, basePath string) (c, base *cow.FileDevice, err error) {
	if c, err = claim.Open(cowPath); err != nil {
		return nil, nil, err
	}
	if base, err = cow.OpenDevice(basePath, true); err != nil {
		return nil, nil, errors.Join(err, c.Close())
	}
	return c, base, nil
}

func asImage(d *cow.FileDevice) cow.Image { return cow.Image{R: d, Size: d.Size()} }

// openSnapshot opens base + COW for reading. The devices stay open until all is
// done.
func openSnapshot(d devices, size int64) (*cow.Snapshot, error) {
	s, err := cow.Open(cow.Options{Cow: d[0], Base: d[1], Size: size})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d[0].Path(), err)
	}
	return s, nil
}
