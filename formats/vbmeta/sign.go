package vbmeta

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"strings"
)

// Verify proves that the metadata are signed with the key: that they name it, that the
// hash is theirs and that the signature is the key's. The error wraps ErrUnsigned if
// their algorithm is None, or ErrKey, ErrHash or ErrSignature.
func (v *VBMeta) Verify(key *rsa.PublicKey) error {
	if v.Algorithm == None {
		return fmt.Errorf("%w: expected a signature, found algorithm %v", ErrUnsigned, v.Algorithm)
	}
	encoded, err := EncodeKey(key)
	if err != nil {
		return err
	}
	if !bytes.Equal(encoded, v.PublicKey) {
		return refuse(ErrKey, "SHA-256 of the public key", KeyDigest(encoded), KeyDigest(v.PublicKey))
	}
	return v.verify(key)
}

// VerifyEmbedded proves that the metadata are signed with the key that they bring
// along, and gives it; whether it may be trusted is up to the caller. Errors are
// Verify's.
func (v *VBMeta) VerifyEmbedded() (*rsa.PublicKey, error) {
	if v.Algorithm == None {
		return nil, fmt.Errorf("%w: expected a signature, found algorithm %v", ErrUnsigned, v.Algorithm)
	}
	key, err := DecodeKey(v.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := v.verify(key); err != nil {
		return nil, err
	}
	return key, nil
}

func (v *VBMeta) verify(key *rsa.PublicKey) error {
	f, err := v.Algorithm.facts()
	if err != nil {
		return err
	}
	if key.N.BitLen() != f.bits {
		return refuse(ErrKey, "bits of the key", f.bits, key.N.BitLen())
	}
	digest := f.sum(v.signed[:]...)
	if !bytes.Equal(digest, v.hash) {
		return refuse(ErrHash, f.hash.String(), fmt.Sprintf("%x", v.hash), fmt.Sprintf("%x", digest))
	}
	if err := rsa.VerifyPKCS1v15(key, f.hash, digest, v.signature); err != nil {
		return refuse(ErrSignature, v.Algorithm.String(), "a signature by key "+KeyDigest(v.PublicKey), err)
	}
	return nil
}

func (a algorithm) sum(parts ...[]byte) []byte {
	h := a.hash.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// KeyDigest is the SHA-256 of an encoded key in hexadecimal, which people know keys by.
func KeyDigest(encoded []byte) string { return fmt.Sprintf("%x", sha256.Sum256(encoded)) }

// Marshal gives metadata that are not signed. Errors are Sign's.
func Marshal(v *VBMeta) ([]byte, error) { return Sign(v, nil, None) }

// Sign gives the bytes of metadata, signed with a key of as many bits as the algorithm
// has. With None the key is nil and the public key of v is kept. Same metadata, same
// bytes. The error is that with which Parse would refuse them; ErrKey if the key
// does not fit; ErrAlgorithm.
func Sign(v *VBMeta, key *rsa.PrivateKey, a Algorithm) ([]byte, error) {
	f, err := a.facts()
	if err != nil {
		return nil, err
	}
	public, err := f.publicKey(v, key)
	if err != nil {
		return nil, err
	}
	if len(v.Release) >= releaseSize || strings.ContainsRune(v.Release, 0) {
		return nil, refuse(ErrCorrupt, "release", fmt.Sprintf("at most %d bytes of text", releaseSize-1), fmt.Sprintf("%.80q", v.Release))
	}
	var descriptors []byte
	for i, d := range v.Descriptors {
		if err := d.check(); err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", i, err)
		}
		descriptors = append(descriptors, d.encode()...)
	}
	h := v.layOut(a, f, len(descriptors), len(public))
	if h.size() > MaxSize {
		return nil, refuse(ErrTooLarge, "metadata", fmt.Sprintf("at most %d bytes", MaxSize), h.size())
	}
	out := make([]byte, h.size())
	copy(out, h.encode())
	auxiliary := out[HeaderSize+h.authentication:]
	join(auxiliary, descriptors, public, v.KeyMetadata)
	if a != None {
		if err := f.sign(out[HeaderSize:], key, out[:HeaderSize], auxiliary); err != nil {
			return nil, err
		}
	}
	_, err = Parse(out)
	return out, err
}

// publicKey is what stands in the metadata.
func (a algorithm) publicKey(v *VBMeta, key *rsa.PrivateKey) ([]byte, error) {
	switch {
	case a.bits == 0 && key != nil:
		return nil, refuse(ErrKey, "key for "+a.name, "none", "one")
	case a.bits == 0:
		return v.PublicKey, nil
	case key == nil:
		return nil, refuse(ErrKey, "key for "+a.name, fmt.Sprintf("%d bits", a.bits), "none")
	case key.N.BitLen() != a.bits:
		return nil, refuse(ErrKey, "key for "+a.name, fmt.Sprintf("%d bits", a.bits), key.N.BitLen())
	}
	return EncodeKey(&key.PublicKey)
}

// layOut makes the header: the hash before the signature, the descriptors before
// the key and what belongs to it.
func (v *VBMeta) layOut(a Algorithm, f algorithm, descriptors, public int) *header {
	round := func(n uint64) uint64 { return (n + blockAlign - 1) &^ (blockAlign - 1) }
	h := &header{major: major, minor: v.minor(), algorithm: a, rollbackIndex: v.RollbackIndex, flags: v.Flags,
		rollbackLocation: v.RollbackIndexLocation, release: v.Release}
	h.hash = area{0, uint64(f.hashSize())}
	h.signature = area{h.hash.size, uint64(f.signatureSize())}
	h.descriptors = area{0, uint64(descriptors)}
	h.key = area{h.descriptors.size, uint64(public)}
	h.metadata = area{h.key.offset + h.key.size, uint64(len(v.KeyMetadata))}
	h.authentication = round(h.hash.size + h.signature.size)
	h.auxiliary = round(h.metadata.offset + h.metadata.size)
	return h
}

// minor is the version that understands what is used: flags of partitions came with 1.1,
// the location of the rollback index with 1.2, flags of chains with 1.3.
func (v *VBMeta) minor() uint32 {
	least := v.RequiredMinor
	if v.RollbackIndexLocation > 0 {
		least = max(least, 2)
	}
	for _, d := range v.Descriptors {
		switch d := d.(type) {
		case *Hashtree:
			if d.Flags != 0 || len(d.RootDigest) == 0 {
				least = max(least, 1)
			}
		case *Hash:
			if d.Flags != 0 || len(d.Digest) == 0 {
				least = max(least, 1)
			}
		case *ChainPartition:
			if d.Flags != 0 {
				least = max(least, 3)
			}
		}
	}
	return least
}

// sign fills in the authentication block.
func (a algorithm) sign(authentication []byte, key *rsa.PrivateKey, parts ...[]byte) error {
	digest := a.sum(parts...)
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.Hash(a.hash), digest)
	if err != nil {
		return fmt.Errorf("sign the metadata: %w", err)
	}
	join(authentication, digest, signature)
	return nil
}
