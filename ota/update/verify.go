package update

import (
	"cmp"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"cowbird/cow"
	"cowbird/formats/vbmeta"
	"cowbird/formats/verity"
)

// ErrUnverified: a partition is not what verified boot says of it.
var ErrUnverified = errors.New("partition does not verify")

// VerifiedBoot says what the running system's partitions are verified with.
type VerifiedBoot struct {
	// Key is a file, PEM, with the public key that the metadata are signed with.
	Key string `json:"key"`
	// Root is the partition whose metadata name all others; vbmeta if not given.
	Root string `json:"root,omitempty"`
	// Verity has Boot map dm-verity over the partitions that have hash trees.
	Verity bool `json:"verity,omitempty"`
	// OnCorruption is what dm-verity does about a bad block besides failing the read:
	// restart_on_corruption, panic_on_corruption, or nothing.
	OnCorruption string `json:"on_corruption,omitempty"`
	// WithoutFEC leaves error correction out, for kernels that have none.
	WithoutFEC bool `json:"without_fec,omitempty"`
}

// Verified is what was found of a partition.
type Verified struct {
	Partition string `json:"partition"`
	Good      bool   `json:"good"`
	BadBlocks int64  `json:"bad_blocks,omitempty"`
	Error     string `json:"error,omitempty"`
}

// Verify reads the running system's partitions, through their snapshots where they
// have some, and compares them with what the metadata of verified boot say. The error
// is ErrUnverified if one is wrong; the others are looked at all the same.
func (d *Device) Verify(ctx context.Context) ([]Verified, error) {
	v := &verifier{d: d}
	defer v.close()
	all, _, err := v.chain()
	if err != nil {
		return nil, err
	}
	var found []Verified
	var wrong error
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for _, descriptor := range all[name] {
			if ctx.Err() != nil {
				return found, ctx.Err()
			}
			one, known := v.partition(name, descriptor)
			if !known {
				continue
			}
			found = append(found, one)
			if !one.Good && wrong == nil {
				wrong = fmt.Errorf("%w: %s: %s", ErrUnverified, name, one.Error)
			}
		}
	}
	return found, wrong
}

type verifier struct {
	d    *Device
	open []*cow.FileDevice
}

func (v *verifier) close() {
	for _, f := range v.open {
		_ = f.Close()
	}
}

// chain gives the descriptors of all metadata, whose signatures are verified.
func (v *verifier) chain() (map[string][]vbmeta.Descriptor, vbmeta.Flags, error) {
	chain, err := v.d.verifiedChain(v.load)
	if err != nil {
		return nil, 0, err
	}
	return chain.Descriptors, chain.Flags(), nil
}

// verifiedChain reads a system's metadata of verified boot.
func (d *Device) verifiedChain(load vbmeta.Loader) (*vbmeta.Chain, error) {
	c := d.config.VerifiedBoot
	if c == nil {
		return nil, fmt.Errorf("%w: expected verified_boot, with the key, found none", ErrConfig)
	}
	key, err := readKey(c.Key)
	if err != nil {
		return nil, err
	}
	chain, err := vbmeta.VerifyChainFrom(load, cmp.Or(c.Root, vbmeta.RootPartition), key)
	if err != nil {
		return nil, fmt.Errorf("metadata of verified boot: %w", err)
	}
	return chain, nil
}

func readKey(path string) (*rsa.PublicKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s: expected a public key as PEM, found none", path)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := public.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s: expected an RSA key, found %T", path, public)
	}
	return key, nil
}

// load opens a partition of the running system: one that is mapped, or a static one.
func (v *verifier) load(partition string) (io.ReaderAt, int64, error) {
	current, _, err := v.d.suffixes()
	if err != nil {
		return nil, 0, err
	}
	path, mapped, err := v.d.Mapper.Path(partition + current)
	if err != nil {
		return nil, 0, err
	}
	if !mapped {
		if path, err = v.d.staticDevice(partition, current); err != nil {
			return nil, 0, err
		}
	}
	f, err := cow.OpenDevice(path, false)
	if err != nil {
		return nil, 0, err
	}
	v.open = append(v.open, f)
	return f, f.Size(), nil
}

// partition compares one; known is false for descriptors that say nothing of contents.
func (v *verifier) partition(name string, descriptor vbmeta.Descriptor) (one Verified, known bool) {
	one.Partition = name
	var err error
	switch d := descriptor.(type) {
	case *vbmeta.Hash:
		var r io.ReaderAt
		var size int64
		if r, size, err = v.load(name); err == nil {
			err = d.Check(r, size)
		}
	case *vbmeta.Hashtree:
		err = v.tree(&one, name, d)
	default:
		return one, false
	}
	if one.Good = err == nil; err != nil {
		one.Error = err.Error()
	}
	return one, true
}

// staticDevice is where a partition of a slot is that is not mapped.
func (d *Device) staticDevice(partition, suffix string) (string, error) {
	path := d.config.static(partition, suffix)
	if path == "" {
		return "", fmt.Errorf("%s is not mapped, and the configuration has no static partitions", partition+suffix)
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) { // one for both slots
		path = filepath.Join(filepath.Dir(path), partition)
	}
	return path, nil
}

func (v *verifier) tree(one *Verified, name string, d *vbmeta.Hashtree) error {
	r, size, err := v.load(name)
	if err != nil {
		return err
	}
	tree, err := verity.NewTree(d.Algorithm, d.Salt, d.HashBlockSize)
	if err != nil {
		return err
	}
	if d.ImageSize > size || d.TreeOffset > size-d.TreeSize || d.DataBlockSize != d.HashBlockSize {
		return fmt.Errorf("expected a hash tree within %d bytes, found one of %d bytes at %d for %d bytes", size, d.TreeSize, d.TreeOffset, d.ImageSize)
	}
	damage, err := tree.Check(r, d.ImageSize, io.NewSectionReader(r, d.TreeOffset, d.TreeSize), d.RootDigest)
	if err != nil {
		return err
	}
	one.BadBlocks = damage.Data.Count()
	return damage.Err()
}
