package vbmeta

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"testing"
)

// device has the metadata of partitions.
type device map[string][]byte

func (d device) load(name string) (io.ReaderAt, int64, error) {
	b, ok := d[name]
	if !ok {
		return nil, 0, os.ErrNotExist
	}
	return bytes.NewReader(b), int64(len(b)), nil
}

func (d device) sign(t *testing.T, name string, bits int, v VBMeta) {
	t.Helper()
	a := SHA256RSA2048
	if bits == 4096 {
		a = SHA256RSA4096
	}
	b, err := Sign(&v, testKey(t, bits), a)
	if err != nil {
		t.Fatal(err)
	}
	d[name] = b
}

func newDevice(t *testing.T) device {
	d := device{}
	d.sign(t, "vbmeta", 4096, VBMeta{RollbackIndex: 10, Flags: HashtreeDisabled, Descriptors: []Descriptor{
		&Hash{Partition: "boot", Algorithm: "sha256"},
		&ChainPartition{1, "vbmeta_system", encoded(t, 2048), 0},
		&Property{"a", []byte("b")},
	}})
	d.sign(t, "vbmeta_system", 2048, VBMeta{RollbackIndex: 20, Descriptors: []Descriptor{
		&Hashtree{Partition: "system", Algorithm: "sha256", DataBlockSize: 4096, HashBlockSize: 4096},
		&Property{"c", []byte("d")},
	}})
	return d
}

func TestChain(t *testing.T) {
	c, err := VerifyChain(newDevice(t).load, &testKey(t, 4096).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Links) != 2 || c.Links[1].Partition != "vbmeta_system" || c.Flags() != HashtreeDisabled {
		t.Errorf("expected two links, found %+v", c.Links)
	}
	if got := slices.Sorted(maps.Keys(c.Descriptors)); !slices.Equal(got, []string{"boot", "system", "vbmeta", "vbmeta_system"}) || len(c.Descriptors["vbmeta_system"]) != 2 {
		t.Errorf("expected descriptors of four partitions, found %v", got)
	}
	if got := c.RollbackIndexes(); !maps.Equal(got, map[uint32]uint64{0: 10, 1: 20}) {
		t.Errorf("expected rollback indexes 10 and 20, found %v", got)
	}
}

func TestChainRefuses(t *testing.T) {
	chain := func(location uint32, name string, bits int) Descriptor {
		return &ChainPartition{location, name, encoded(t, bits), 0}
	}
	root := func(d device, all ...Descriptor) { d.sign(t, "vbmeta", 4096, VBMeta{Descriptors: all}) }
	for what, c := range map[string]struct {
		change func(d device)
		want   error
	}{
		"missing root":      {func(d device) { delete(d, "vbmeta") }, os.ErrNotExist},
		"missing partition": {func(d device) { delete(d, "vbmeta_system") }, os.ErrNotExist},
		"root's key":        {func(d device) { d.sign(t, "vbmeta", 2048, VBMeta{}) }, ErrKey},
		"another key":       {func(d device) { d.sign(t, "vbmeta_system", 4096, VBMeta{}) }, ErrKey},
		"changed":           {func(d device) { d["vbmeta_system"][119] ^= 1 }, ErrHash},
		"unsigned":          {func(d device) { d["vbmeta_system"], _ = Marshal(&VBMeta{}) }, ErrUnsigned},
		"flags":             {func(d device) { d.sign(t, "vbmeta_system", 2048, VBMeta{Flags: VerificationDisabled}) }, ErrChain},
		"itself":            {func(d device) { root(d, chain(1, "vbmeta", 4096)) }, ErrChain},
		"twice":             {func(d device) { root(d, chain(1, "vbmeta_system", 2048), chain(2, "vbmeta_system", 2048)) }, ErrChain},
		"root's location": {func(d device) {
			d.sign(t, "vbmeta", 4096, VBMeta{RollbackIndexLocation: 1, Descriptors: []Descriptor{chain(1, "vbmeta_system", 2048)}})
		}, ErrChain},
		"same location": {func(d device) {
			d.sign(t, "other", 2048, VBMeta{})
			root(d, chain(1, "vbmeta_system", 2048), chain(1, "other", 2048))
		}, ErrChain},
		"loop": {func(d device) {
			d.sign(t, "vbmeta_system", 2048, VBMeta{Descriptors: []Descriptor{chain(2, "other", 2048)}})
			d.sign(t, "other", 2048, VBMeta{Descriptors: []Descriptor{chain(3, "vbmeta_system", 2048)}})
		}, ErrChain},
		"too many": {func(d device) {
			for i := range 40 {
				d.sign(t, fmt.Sprint("p", i), 2048, VBMeta{Descriptors: []Descriptor{chain(uint32(i+2), fmt.Sprint("p", i+1), 2048)}})
			}
			root(d, chain(1, "p0", 2048))
		}, ErrChain},
	} {
		d := newDevice(t)
		c.change(d)
		if chain, err := VerifyChain(d.load, &testKey(t, 4096).PublicKey); !errors.Is(err, c.want) || chain != nil {
			t.Errorf("%s: expected %v, found %v", what, c.want, err)
		}
	}
	if _, err := VerifyChain(newDevice(t).load, &rsa.PublicKey{}); !errors.Is(err, ErrKey) {
		t.Errorf("no key: expected ErrKey, found %v", err)
	}
}

// A device that does not verify does not follow the chain either.
func TestChainDisabled(t *testing.T) {
	d := newDevice(t)
	d.sign(t, "vbmeta", 4096, VBMeta{Flags: VerificationDisabled, Descriptors: []Descriptor{&ChainPartition{1, "none", encoded(t, 2048), 0}}})
	c, err := VerifyChain(d.load, &testKey(t, 4096).PublicKey)
	if err != nil || len(c.Links) != 1 {
		t.Errorf("expected one link, found %+v, %v", c, err)
	}
}
