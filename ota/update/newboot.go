package update

import (
	"errors"
	"fmt"
	"io"

	"cowbird/cow"
	"cowbird/formats/payload"
	"cowbird/formats/vbmeta"
	"cowbird/ota/install"
	"cowbird/ota/verify"
)

// newSystem is what has been written, before the boot loader is told of it.
type newSystem struct {
	d      *Device
	places map[string]install.Partition
	sizes  map[string]int64 // bytes, of the payload's partitions
	close  []func() error
}

// checkNewSystem looks at the new system's metadata of verified boot as its boot loader
// will: whether they are signed by the key of the configuration, and no rollback index
// is lower than the running system's. Without verified boot there is nothing to do.
func (d *Device) checkNewSystem(m *payload.Metadata, c *install.Config, allowDowngrade bool) (err error) {
	if d.config.VerifiedBoot == nil {
		return nil
	}
	n := &newSystem{d: d, places: c.Partitions, sizes: map[string]int64{}}
	defer func() {
		for _, f := range n.close {
			err = errors.Join(err, f())
		}
	}()
	for _, p := range m.Manifest.GetPartitions() {
		n.sizes[p.GetPartitionName()] = int64(p.GetNewPartitionInfo().GetSize())
	}
	chain, err := d.verifiedChain(n.load)
	if err != nil {
		return &verify.Error{Code: verify.NewRootfsVerificationError, Err: fmt.Errorf("the new system's %w", err),
			Next: "ask the producer of the update for one that this device's verified boot takes"}
	}
	if allowDowngrade {
		return nil
	}
	return d.checkRollback(chain)
}

// checkRollback compares the rollback indexes with those of the running system, if that
// verifies.
func (d *Device) checkRollback(next *vbmeta.Chain) error {
	v := &verifier{d: d}
	defer v.close()
	running, err := d.verifiedChain(v.load)
	if err != nil {
		d.log().Warn("rollback indexes are not compared, since the running system does not verify", "err", err)
		return nil
	}
	old := running.RollbackIndexes()
	for _, l := range next.Links {
		if l.RollbackIndex < old[l.RollbackIndexLocation] {
			return &verify.Error{Code: verify.PayloadTimestampError, Next: "get a newer update, or allow downgrades",
				Err: fmt.Errorf("%s: expected a rollback index of %d or more, found %d", l.Partition, old[l.RollbackIndexLocation], l.RollbackIndex)}
		}
	}
	return nil
}

// load is a vbmeta.Loader of the new system: what the payload has brought, and of the
// rest what the other slot has or, in super, the running system.
func (n *newSystem) load(partition string) (io.ReaderAt, int64, error) {
	place, size := n.places[partition], n.sizes[partition]
	_, written := n.sizes[partition]
	switch {
	case !written:
		path, err := n.kept(partition)
		if err != nil {
			return nil, 0, err
		}
		f, err := n.open(path)
		if err != nil {
			return nil, 0, err
		}
		return f, f.Size(), nil
	case place.New != "":
		f, err := n.open(place.New)
		if err != nil {
			return nil, 0, err
		}
		return f, f.Size(), nil // its footer is at the end of the partition
	}
	s, err := n.snapshot(place, size)
	return s, size, err
}

func (n *newSystem) kept(partition string) (string, error) {
	current, other, err := n.d.suffixes()
	if err != nil {
		return "", err
	}
	if path, mapped, err := n.d.Mapper.Path(partition + current); mapped || err != nil {
		return path, err
	}
	return n.d.staticDevice(partition, other)
}

func (n *newSystem) open(path string) (*cow.FileDevice, error) {
	f, err := cow.OpenDevice(path, false)
	if err == nil {
		n.close = append(n.close, f.Close)
	}
	return f, err
}

// snapshot opens what a COW makes of the old partition.
func (n *newSystem) snapshot(place install.Partition, size int64) (io.ReaderAt, error) {
	c, err := n.open(place.Cow)
	if err != nil {
		return nil, err
	}
	var base cow.Device = nothing{}
	if place.Old != "" {
		if base, err = n.open(place.Old); err != nil {
			return nil, err
		}
	}
	s, err := cow.Open(cow.Options{Base: base, Cow: c, Size: size})
	if err == nil {
		n.close = append(n.close, s.Close)
	}
	return s, err
}

// nothing is the base of a partition that was not there before.
type nothing struct{}

func (nothing) ReadAt([]byte, int64) (int, error)  { return 0, io.EOF }
func (nothing) WriteAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }
func (nothing) Sync() error                        { return nil }
func (nothing) Size() int64                        { return 0 }
