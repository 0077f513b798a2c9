package payload

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload/pb"
)

const (
	// HeaderSize is where the manifest begins, in bytes.
	HeaderSize = 24
	// Magic is how a payload begins.
	Magic = "CrAU"
	// Major is the version of the container.
	Major = 2
	// MostMinor is the highest minor version that the producer's rules are
	// known of.
	MostMinor = 9
)

// DefaultManifest and DefaultSignature are the Limits where none are set. A manifest
// takes some 17 times its length when it is parsed, and a hostile one up to 80 times;
// those of large updates have a few MiB.
const (
	DefaultManifest  = 32 << 20
	DefaultSignature = 1 << 20
)

// Limits bound what Read holds in memory, in bytes. 0 means the default.
type Limits struct {
	Manifest  int64
	Signature int64
}

func (l Limits) complete() Limits {
	if l.Manifest == 0 {
		l.Manifest = DefaultManifest
	}
	if l.Signature == 0 {
		l.Signature = DefaultSignature
	}
	return l
}

// Metadata is what comes before the blobs. It is not changed after Read or Parse,
// and may then be used concurrently.
type Metadata struct {
	// Signed is the header and the manifest as they are in the file: what
	// both signatures are of.
	Signed []byte
	// SignatureBytes is the metadata signature as it is in the file.
	SignatureBytes []byte
	// Signatures is what SignatureBytes says: none if the payload is unsigned.
	Signatures []Signature
	// Manifest is what Signed says.
	Manifest *pb.DeltaArchiveManifest

	size int64 // of the payload; 0: unknown
}

// Signature is one of the signatures of the same bytes, by different keys.
type Signature struct {
	// Data is the signature, padded with zeros to the most that the key's are.
	Data []byte
	// Size is the number of bytes of Data that are the signature.
	Size int
}

// Bytes is the signature without padding.
func (s Signature) Bytes() []byte { return s.Data[:s.Size] }

// Size is that of header and manifest in bytes: the "metadata size" of properties
// files, which does not count the metadata signature.
func (m *Metadata) Size() int64 { return int64(len(m.Signed)) }

// SignatureSize is that of the metadata signature in bytes, with its framing.
func (m *Metadata) SignatureSize() int64 { return int64(len(m.SignatureBytes)) }

// BlobOffset is where in the payload data_offset 0 is, in bytes.
func (m *Metadata) BlobOffset() int64 { return m.Size() + m.SignatureSize() }

// IsDelta tells whether old partitions are needed.
func (m *Metadata) IsDelta() bool {
	if m.Manifest.GetPartialUpdate() {
		return true
	}
	for _, p := range m.Manifest.GetPartitions() {
		if p.OldPartitionInfo != nil {
			return true
		}
	}
	return false
}

// Read takes the metadata from the beginning of a payload, and not a byte more.
// size is that of the payload in bytes, or 0 if it is not known. Read looks at
// the form only: Check looks at what the manifest says.
func Read(r io.Reader, size int64, l Limits) (*Metadata, error) {
	m, err := ReadSigned(r, size, l)
	if err != nil {
		return nil, err
	}
	if err := m.Parse(); err != nil {
		return nil, err
	}
	return m, nil
}

// ReadSigned is Read without the manifest, for those who look at the signatures
// first: Manifest is nil until Parse.
func ReadSigned(r io.Reader, size int64, l Limits) (*Metadata, error) {
	l = l.complete()
	var head [HeaderSize]byte
	if n, err := io.ReadFull(r, head[:]); err != nil {
		if n >= len(Magic) && string(head[:len(Magic)]) != Magic {
			return nil, magicError(head[:])
		}
		return nil, truncated("header", HeaderSize, int64(n), err)
	}
	manifestSize, signatureSize, err := parseHeader(&head, size, l)
	if err != nil {
		return nil, err
	}
	m := &Metadata{size: size}
	if m.Signed, err = readPart(r, head[:], manifestSize, "manifest"); err != nil {
		return nil, err
	}
	if m.SignatureBytes, err = readPart(r, nil, signatureSize, "metadata signature"); err != nil {
		return nil, err
	}
	if m.Signatures, err = ParseSignatures(m.SignatureBytes); err != nil {
		return nil, err
	}
	return m, nil
}

// Parse makes the Manifest of what ReadSigned has read.
func (m *Metadata) Parse() error {
	manifest := &pb.DeltaArchiveManifest{}
	if err := proto.Unmarshal(m.Signed[HeaderSize:], manifest); err != nil {
		return fmt.Errorf("%w: %d bytes at %d: %w", ErrManifest, len(m.Signed)-HeaderSize, HeaderSize, err)
	}
	m.Manifest = manifest
	return nil
}

func magicError(head []byte) error {
	return fmt.Errorf("%w: expected %q at 0, found %q", ErrMagic, Magic, head[:len(Magic)])
}

// parseHeader checks in the order of Android's client (specs/payload.md 1).
func parseHeader(head *[HeaderSize]byte, size int64, l Limits) (manifest, signature int64, err error) {
	if string(head[:len(Magic)]) != Magic {
		return 0, 0, magicError(head[:])
	}
	if v := binary.BigEndian.Uint64(head[4:]); v != Major {
		return 0, 0, fmt.Errorf("%w: expected %d at 4, found %d", ErrVersion, Major, v)
	}
	m, s := binary.BigEndian.Uint64(head[12:]), int64(binary.BigEndian.Uint32(head[20:]))
	if m > math.MaxInt64-HeaderSize-math.MaxUint32 {
		return 0, 0, fmt.Errorf("%w: expected a manifest of at most %d bytes at 12, found %d", ErrTooLarge, l.Manifest, m)
	}
	manifest = int64(m)
	if end := HeaderSize + manifest + s; size > 0 && end > size {
		return 0, 0, fmt.Errorf("%w: expected %d bytes of metadata, found a payload of %d", ErrTruncated, end, size)
	}
	if manifest > l.Manifest {
		return 0, 0, fmt.Errorf("%w: expected a manifest of at most %d bytes, found %d", ErrTooLarge, l.Manifest, manifest)
	}
	if s > l.Signature {
		return 0, 0, fmt.Errorf("%w: expected a metadata signature of at most %d bytes, found %d", ErrTooLarge, l.Signature, s)
	}
	return manifest, s, nil
}

// readPart reads n bytes behind what is there already. Memory grows with what
// comes, not with what is announced.
func readPart(r io.Reader, before []byte, n int64, what string) ([]byte, error) {
	b := bytes.NewBuffer(append(make([]byte, 0, int64(len(before))+min(n, 1<<20)), before...))
	got, err := io.CopyN(b, r, n)
	if err != nil {
		return nil, truncated(what, n, got, err)
	}
	return b.Bytes(), nil
}

func truncated(what string, want, got int64, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s: expected %d bytes, found %d", ErrTruncated, what, want, got)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// ParseSignatures takes a signatures message apart. No bytes are no signatures.
func ParseSignatures(b []byte) ([]Signature, error) {
	var message pb.Signatures
	if err := proto.Unmarshal(b, &message); err != nil {
		return nil, fmt.Errorf("%w: %d bytes: %w", ErrSignatures, len(b), err)
	}
	var out []Signature
	for i, s := range message.GetSignatures() {
		n := len(s.GetData())
		if s.UnpaddedSignatureSize != nil {
			if n = int(s.GetUnpaddedSignatureSize()); n > len(s.GetData()) {
				return nil, fmt.Errorf("%w: signature %d: expected at least %d bytes, found %d", ErrSignatures, i, n, len(s.GetData()))
			}
		}
		out = append(out, Signature{s.GetData(), n})
	}
	return out, nil
}

// AppendSignatures appends the message of some signatures.
func AppendSignatures(b []byte, signatures []Signature) []byte {
	var message pb.Signatures
	for _, s := range signatures {
		message.Signatures = append(message.Signatures, &pb.Signatures_Signature{
			Data: s.Data, UnpaddedSignatureSize: proto.Uint32(uint32(s.Size))})
	}
	out, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, &message)
	if err != nil {
		panic(err) // there are no required fields
	}
	return out
}

// AppendMetadata appends what comes before the blobs. The signature's size is a
// field of the bytes that are signed, so it has to be known before the signature
// is: give zeros first.
func AppendMetadata(b []byte, manifest *pb.DeltaArchiveManifest, signature []byte) ([]byte, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(manifest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	b = append(b, Magic...)
	b = binary.BigEndian.AppendUint64(b, Major)
	b = binary.BigEndian.AppendUint64(b, uint64(len(body)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(signature)))
	return append(append(b, body...), signature...), nil
}
