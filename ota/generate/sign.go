package generate

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"hash"
	"io"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// Signer signs a SHA-256, with a key of its own or somewhere else's. RSA signatures are
// PKCS #1 v1.5, ECDSA's ASN.1.
type Signer interface {
	// Size is the most bytes that a signature has.
	Size() int
	Sign(digest [sha256.Size]byte) ([]byte, error)
}

// KeySigner signs with a private key.
type KeySigner struct{ crypto.Signer }

// ParsePrivateKey reads a key of RSA or ECDSA, PEM, as PKCS #8 or in its own form.
func ParsePrivateKey(b []byte) (KeySigner, error) {
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			continue
		}
		if err != nil {
			return KeySigner{}, fmt.Errorf("private key: %w", err)
		}
		switch k := key.(type) {
		case *rsa.PrivateKey:
			return KeySigner{k}, nil
		case *ecdsa.PrivateKey:
			return KeySigner{k}, nil
		}
		return KeySigner{}, fmt.Errorf("%w: expected a key of RSA or ECDSA, found %T", ErrInput, key)
	}
	return KeySigner{}, fmt.Errorf("%w: expected a private key as PEM without a password, found none", ErrInput)
}

// Size implements Signer.
func (k KeySigner) Size() int {
	switch key := k.Public().(type) {
	case *rsa.PublicKey:
		return key.Size()
	case *ecdsa.PublicKey:
		return 2*((key.Curve.Params().BitSize+7)/8) + 9 // two numbers with sign bits, and ASN.1's lengths
	}
	return 0
}

// Sign implements Signer.
func (k KeySigner) Sign(digest [sha256.Size]byte) ([]byte, error) {
	return k.Signer.Sign(rand.Reader, digest[:], crypto.SHA256)
}

// Later leaves room for a signature of so many bytes, which Sign puts in.
type Later int

// Size implements Signer.
func (l Later) Size() int { return int(l) }

// Sign implements Signer: there is nothing yet.
func (l Later) Sign([sha256.Size]byte) ([]byte, error) { return nil, nil }

// Written is what Write tells of a payload.
type Written struct {
	Properties payload.Properties
	// MetadataDigest and PayloadDigest are what the two signatures are of, SHA-256.
	MetadataDigest, PayloadDigest [sha256.Size]byte
}

// Write writes the payload with a signature by each signer, or without any.
func (p *Payload) Write(w io.Writer, signers []Signer) (*Written, error) {
	m := proto.Clone(p.Manifest).(*pb.DeltaArchiveManifest)
	room := int64(0)
	if len(signers) > 0 {
		room = int64(len(placeholder(signers)))
		m.SignaturesOffset, m.SignaturesSize = proto.Uint64(uint64(p.size)), proto.Uint64(uint64(room))
	}
	metadata, err := payload.AppendMetadata(nil, m, make([]byte, room))
	if err != nil {
		return nil, err
	}
	metadata = metadata[:int64(len(metadata))-room]
	out := &Written{MetadataDigest: sha256.Sum256(metadata)}
	whole, signed := sha256.New(), sha256.New()
	t := &teeing{w: w, hashes: []hash.Hash{whole, signed}}
	t.write(metadata)
	t.hashes = t.hashes[:1]
	t.sign(signers, out.MetadataDigest)
	t.hashes = []hash.Hash{whole, signed}
	report := begin(p.onProgress, Writing, p.size)
	t.copy(counted{io.NewSectionReader(p.blobs, 0, p.size), report})
	report.end()
	t.hashes = t.hashes[:1]
	out.PayloadDigest = [sha256.Size]byte(signed.Sum(nil))
	t.sign(signers, out.PayloadDigest)
	out.Properties = payload.Properties{FileHash: whole.Sum(nil), FileSize: t.n, MetadataHash: out.MetadataDigest[:], MetadataSize: int64(len(metadata))}
	return out, t.err
}

// teeing writes and hashes until something fails.
type teeing struct {
	w      io.Writer
	hashes []hash.Hash
	n      int64
	err    error
}

func (t *teeing) Write(b []byte) (int, error) {
	n, err := t.w.Write(b)
	for _, h := range t.hashes {
		h.Write(b[:n])
	}
	t.n += int64(n)
	return n, err
}

func (t *teeing) write(b []byte) {
	if t.err == nil {
		_, t.err = t.Write(b)
	}
}

func (t *teeing) copy(r io.Reader) {
	if t.err == nil {
		_, t.err = io.Copy(t, r)
	}
}

func (t *teeing) sign(signers []Signer, digest [sha256.Size]byte) {
	if t.err != nil || len(signers) == 0 {
		return
	}
	all := make([]payload.Signature, len(signers))
	for i, s := range signers {
		b, err := s.Sign(digest)
		if err == nil && len(b) > s.Size() {
			err = fmt.Errorf("signature: expected at most %d bytes, found %d", s.Size(), len(b))
		}
		if err != nil {
			t.err = err
			return
		}
		all[i] = payload.Signature{Data: append(b, make([]byte, s.Size()-len(b))...), Size: len(b)}
	}
	t.write(payload.AppendSignatures(nil, all))
}

// placeholder is a signatures message as long as theirs will be.
func placeholder(signers []Signer) []byte {
	all := make([]payload.Signature, len(signers))
	for i, s := range signers {
		all[i] = payload.Signature{Data: make([]byte, s.Size())}
	}
	return payload.AppendSignatures(nil, all)
}

// File is where a payload lies that is signed afterwards.
type File interface {
	io.ReaderAt
	io.WriterAt
}

// Sign puts signatures into a payload of size bytes that has been written with Later:
// those of the metadata and of the payload, each by the same keys in the same order. It
// returns the digests and properties of what it has become.
func Sign(f File, size int64, metadata, whole [][]byte) (*Written, error) {
	m, err := payload.Read(io.NewSectionReader(f, 0, size), size, payload.Limits{})
	if err != nil {
		return nil, err
	}
	meta, err := fit(m.Signatures, metadata)
	if err != nil {
		return nil, fmt.Errorf("metadata signatures: %w", err)
	}
	at, n := m.BlobOffset()+int64(m.Manifest.GetSignaturesOffset()), int64(m.Manifest.GetSignaturesSize())
	if m.Manifest.SignaturesOffset == nil || at+n != size || n != m.SignatureSize() {
		return nil, fmt.Errorf("%w: expected room for %d bytes of signatures at the end, found %d at %d of %d", ErrInput, m.SignatureSize(), n, at, size)
	}
	tail, err := fit(m.Signatures, whole)
	if err != nil {
		return nil, fmt.Errorf("payload signatures: %w", err)
	}
	if _, err := f.WriteAt(meta, m.Size()); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(tail, at); err != nil {
		return nil, err
	}
	return describe(f, size, m, at)
}

// fit puts signatures into the room that is there.
func fit(room []payload.Signature, signatures [][]byte) ([]byte, error) {
	if len(room) != len(signatures) || len(room) == 0 {
		return nil, fmt.Errorf("%w: expected %d, found %d", ErrInput, len(room), len(signatures))
	}
	all := make([]payload.Signature, len(room))
	for i, s := range signatures {
		if n := len(room[i].Data); len(s) > n || len(s) == 0 {
			return nil, fmt.Errorf("%w: expected at most %d bytes, found %d", ErrInput, n, len(s))
		}
		all[i] = payload.Signature{Data: append(s[:len(s):len(s)], make([]byte, len(room[i].Data)-len(s))...), Size: len(s)}
	}
	return payload.AppendSignatures(nil, all), nil
}

// Describe tells of a payload of size bytes what Write did.
func Describe(f io.ReaderAt, size int64) (*payload.Metadata, *Written, error) {
	m, err := payload.Read(io.NewSectionReader(f, 0, size), size, payload.Limits{})
	if err != nil {
		return nil, nil, err
	}
	for _, s := range m.Signatures {
		if len(bytes.Trim(s.Data, "\x00")) == 0 {
			return nil, nil, fmt.Errorf("%w: expected signatures, found room for them: put them in first, with cowtool payload sign", ErrInput)
		}
	}
	end := size
	if m.Manifest.SignaturesOffset != nil {
		end = min(end, m.BlobOffset()+int64(m.Manifest.GetSignaturesOffset()))
	}
	w, err := describe(f, size, m, end)
	return m, w, err
}

func describe(f io.ReaderAt, size int64, m *payload.Metadata, end int64) (*Written, error) {
	out := &Written{MetadataDigest: sha256.Sum256(m.Signed)}
	whole, signed := sha256.New(), sha256.New()
	signed.Write(m.Signed)
	if _, err := io.Copy(signed, io.NewSectionReader(f, m.BlobOffset(), end-m.BlobOffset())); err != nil {
		return nil, err
	}
	if _, err := io.Copy(whole, io.NewSectionReader(f, 0, size)); err != nil {
		return nil, err
	}
	out.PayloadDigest = [sha256.Size]byte(signed.Sum(nil))
	out.Properties = payload.Properties{FileHash: whole.Sum(nil), FileSize: size, MetadataHash: out.MetadataDigest[:], MetadataSize: m.Size()}
	return out, nil
}
