package vbmeta

import (
	"fmt"
	"io"
)

// Flags are what the metadata of a device turn off. Only those of the first
// metadata of a chain count.
type Flags uint32

// The flags.
const (
	HashtreeDisabled     Flags = 1 << iota // partitions are used without dm-verity
	VerificationDisabled                   // descriptors are not looked at
)

// VBMeta is what metadata say. To make some, fill in the exported fields and call
// Sign; what is parsed should not be changed.
type VBMeta struct {
	Algorithm             Algorithm // set by Parse only
	RequiredMinor         uint32    // the version 1.x that a reader needs
	RollbackIndex         uint64    // a device does not go back to a lower one
	RollbackIndexLocation uint32    // which of a device's indexes it is compared with
	Flags                 Flags
	Release               string // who made them, at most 47 bytes
	PublicKey             []byte // as EncodeKey gives it; Sign makes it of the key
	KeyMetadata           []byte // what the device's maker wants with the key
	Descriptors           []Descriptor

	size      int64
	hash      []byte
	signature []byte
	signed    [2][]byte // header and auxiliary block
}

// Size is how many bytes the parsed metadata have.
func (v *VBMeta) Size() int64 { return v.size }

// Parse reads metadata, of which it keeps b. What follows them is ignored. The error is
// one of the package's; nothing is verified.
func Parse(b []byte) (*VBMeta, error) {
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) < h.size() {
		return nil, refuse(ErrTruncated, "bytes of metadata", h.size(), len(b))
	}
	authentication := b[HeaderSize:][:h.authentication]
	auxiliary := b[HeaderSize+h.authentication:][:h.auxiliary]
	v := &VBMeta{Algorithm: h.algorithm, RequiredMinor: h.minor, RollbackIndex: h.rollbackIndex,
		RollbackIndexLocation: h.rollbackLocation, Flags: h.flags, Release: h.release,
		size: h.size(), signed: [2][]byte{b[:HeaderSize], auxiliary}}
	var descriptors []byte
	for _, part := range []struct {
		name string
		area
		block []byte
		to    *[]byte
	}{
		{"hash", h.hash, authentication, &v.hash},
		{"signature", h.signature, authentication, &v.signature},
		{"public key", h.key, auxiliary, &v.PublicKey},
		{"key metadata", h.metadata, auxiliary, &v.KeyMetadata},
		{"descriptors", h.descriptors, auxiliary, &descriptors},
	} {
		if *part.to, err = part.of(part.block, part.name); err != nil {
			return nil, err
		}
	}
	v.Descriptors, err = parseDescriptors(descriptors)
	return v, err
}

// read reads the metadata at an offset of so many bytes, of which no more than they
// say are looked at.
func read(r io.ReaderAt, offset, size int64) (*VBMeta, error) {
	b := make([]byte, max(0, min(size, HeaderSize)))
	if err := readFull(r, b, offset); err != nil {
		return nil, err
	}
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	if h.size() > size {
		return nil, refuse(ErrTruncated, "bytes of metadata", h.size(), size)
	}
	b = make([]byte, h.size())
	if err := readFull(r, b, offset); err != nil {
		return nil, err
	}
	return Parse(b)
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	if n, err := r.ReadAt(p, off); n < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}
