package vbmeta

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
)

// RootPartition is where a device begins.
const RootPartition = "vbmeta"

// maxLinks is how many partitions a chain may have; devices have as many rollback
// indexes.
const maxLinks = 32

// Loader opens a partition, named without the slot's suffix, and tells how many bytes
// it has.
type Loader func(partition string) (io.ReaderAt, int64, error)

// Link is verified metadata of one partition.
type Link struct {
	Partition             string
	RollbackIndexLocation uint32 // of VBMeta.RollbackIndex
	*VBMeta
}

// Chain is verified metadata that name each other.
type Chain struct {
	Links []Link // RootPartition's first, each before those it names

	// Descriptors by the partition that they are about; those that are about none
	// by the partition that has them.
	Descriptors map[string][]Descriptor
}

// Flags are those that count, the first link's.
func (c *Chain) Flags() Flags { return c.Links[0].Flags }

// RollbackIndexes are the rollback indexes by location.
func (c *Chain) RollbackIndexes() map[uint32]uint64 {
	indexes := map[uint32]uint64{}
	for _, l := range c.Links {
		indexes[l.RollbackIndexLocation] = l.RollbackIndex
	}
	return indexes
}

// VerifyChain verifies the metadata of RootPartition with the key, and those of each
// partition that they chain with the key that they give for it. Where the flag
// VerificationDisabled is set nothing is followed, as on a device.
//
// The error wraps the one of the partition that is wrong; or ErrChain if a partition or a
// rollback index location is chained twice, which a loop does as well, if there are
// too many, or if a chained partition has flags.
func VerifyChain(load Loader, key *rsa.PublicKey) (*Chain, error) {
	return VerifyChainFrom(load, RootPartition, key)
}

// VerifyChainFrom is VerifyChain for devices that begin with another partition, such
// as boot.
func VerifyChainFrom(load Loader, root string, key *rsa.PublicKey) (*Chain, error) {
	w := walk{load, map[string]bool{}, map[uint32]string{}, &Chain{Descriptors: map[string][]Descriptor{}}}
	v, err := w.verify(root, key)
	if err != nil {
		return nil, err
	}
	w.locations[v.RollbackIndexLocation] = root
	if err := w.follow(Link{root, v.RollbackIndexLocation, v}); err != nil {
		return nil, err
	}
	return w.chain, nil
}

type walk struct {
	load       Loader
	partitions map[string]bool
	locations  map[uint32]string
	chain      *Chain
}

func (w *walk) verify(partition string, key *rsa.PublicKey) (*VBMeta, error) {
	w.partitions[partition] = true
	r, size, err := w.load(partition)
	if err != nil {
		return nil, fmt.Errorf("partition %s: %w", partition, err)
	}
	v, err := FromPartition(r, size)
	if err == nil {
		err = v.Verify(key)
	}
	if err != nil {
		return nil, fmt.Errorf("partition %s: %w", partition, err)
	}
	return v, nil
}

// follow adds a link and whatever it names.
func (w *walk) follow(l Link) error {
	w.chain.Links = append(w.chain.Links, l)
	disabled := w.chain.Flags()&VerificationDisabled != 0
	var failures []error
	for _, d := range l.Descriptors {
		about := Named(d)
		if about == "" {
			about = l.Partition
		}
		w.chain.Descriptors[about] = append(w.chain.Descriptors[about], d)
		if c, ok := d.(*ChainPartition); ok && !disabled {
			failures = append(failures, w.chained(l.Partition, c))
		}
	}
	return errors.Join(failures...)
}

func (w *walk) chained(from string, c *ChainPartition) error {
	where := fmt.Sprintf("partition %s, chained by %s", c.Partition, from)
	if w.partitions[c.Partition] {
		return refuse(ErrChain, where, "a partition that was not there before", "one that was")
	}
	if other, used := w.locations[c.RollbackIndexLocation]; used {
		return refuse(ErrChain, where, "a rollback index location of its own", fmt.Sprintf("%d, which is %s's", c.RollbackIndexLocation, other))
	}
	if len(w.chain.Links) >= maxLinks {
		return refuse(ErrChain, where, fmt.Sprintf("at most %d partitions", maxLinks), "more")
	}
	w.locations[c.RollbackIndexLocation] = c.Partition
	key, err := DecodeKey(c.PublicKey)
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	v, err := w.verify(c.Partition, key)
	if err != nil {
		return fmt.Errorf("chained by %s: %w", from, err)
	}
	if v.Flags != 0 {
		return refuse(ErrChain, where, "no flags, which are the first partition's", fmt.Sprintf("%#x", uint32(v.Flags)))
	}
	return w.follow(Link{c.Partition, c.RollbackIndexLocation, v})
}
