package verify

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strconv"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// Policy is what a payload is held against. The zero Policy takes nothing: there is no
// key.
type Policy struct {
	// Keys are those whose signatures are trusted.
	Keys Keys
	// Unsigned takes payloads without a good signature. What is in them is
	// trusted then for where they come from.
	Unsigned bool
	// Properties are what was said of the payload beforehand; nil: nothing.
	Properties *payload.Properties
	// Device is what runs.
	Device Device
	// Downgrade takes payloads older than what runs.
	Downgrade bool
	// SPLDowngrade takes payloads with an older security patch level.
	SPLDowngrade bool
	// Unhashed takes data without a hash.
	Unhashed bool
}

// Device is what is known of the system that runs; what is not known is not compared.
type Device struct {
	// Timestamp is when it was built, in seconds; 0: not known.
	Timestamp int64
	// Versions of partitions, as numbers in decimal digits.
	Versions map[string]string
	// SecurityPatchLevel is yyyy-mm-dd.
	SecurityPatchLevel string
}

// Metadata tells whether the payload with these metadata may be installed: nil, or an
// *Error.
func (p *Policy) Metadata(m *payload.Metadata) error {
	for _, check := range []func(*payload.Metadata) error{p.size, p.signature, p.form, p.versions, p.timestamps, p.patchLevel, p.hashes} {
		if err := check(m); err != nil {
			return err
		}
	}
	return nil
}

// Read classifies an error of payload.Read.
func Read(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, payload.ErrMagic):
		return &Error{InvalidMagic, err}
	case errors.Is(err, payload.ErrVersion):
		return &Error{UnsupportedMajorVersion, err}
	case errors.Is(err, payload.ErrTooLarge), errors.Is(err, payload.ErrTruncated):
		return &Error{InvalidMetadataSize, err}
	case errors.Is(err, payload.ErrManifest), errors.Is(err, payload.ErrSignatures):
		return &Error{ManifestParse, err}
	}
	return err
}

func (p *Policy) size(m *payload.Metadata) error {
	if p.Properties == nil {
		return nil
	}
	if want := p.Properties.MetadataSize; want != 0 && want != m.Size() {
		return refuse(InvalidMetadataSize, "expected %d bytes of metadata, as the properties say, found %d: are they this payload's?", want, m.Size())
	}
	if want := p.Properties.MetadataHash; want != nil {
		if got := sha256.Sum256(m.Signed); !bytes.Equal(got[:], want) {
			return refuse(InvalidMetadataHash, "expected metadata with SHA-256 %x, as the properties say, found %x: are they this payload's?", want, got)
		}
	}
	return nil
}

func (p *Policy) signature(m *payload.Metadata) error {
	switch {
	case p.Unsigned:
		return nil
	case len(p.Keys) == 0:
		return refuse(MetadataSignatureMissing, "expected a key to verify the payload with, found none: give the maker's")
	case len(m.Signatures) == 0:
		return refuse(MetadataSignatureMissing, "expected a metadata signature, found none: get a signed payload, or allow unsigned ones")
	}
	hash := sha256.Sum256(m.Signed)
	if !p.anyOf(hash[:], m.Signatures) {
		return refuse(MetadataSignatureMismatch, "expected a metadata signature by one of %d keys, found %d by others: is it this device's payload?", len(p.Keys), len(m.Signatures))
	}
	return nil
}

func (p *Policy) anyOf(hash []byte, signatures []payload.Signature) bool {
	for _, s := range signatures {
		if p.Keys.verify(hash, s.Bytes()) {
			return true
		}
	}
	return false
}

func (p *Policy) form(m *payload.Metadata) error {
	if err := m.Check(); err != nil {
		return &Error{ManifestParse, err}
	}
	return nil
}

// leastMinor is the oldest form of deltas that clients take.
const leastMinor = 2

func (p *Policy) versions(m *payload.Metadata) error {
	minor := m.Manifest.GetMinorVersion()
	switch {
	case m.IsDelta() && (minor < leastMinor || minor > payload.MostMinor):
		return refuse(UnsupportedMinorVersion, "expected minor version %d to %d of a delta, found %d", leastMinor, payload.MostMinor, minor)
	case !m.IsDelta() && minor != 0:
		return refuse(UnsupportedMinorVersion, "expected minor version 0 of a full payload, found %d", minor)
	}
	for _, part := range m.Manifest.GetPartitions() {
		for i, op := range part.GetOperations() {
			if part.OldPartitionInfo == nil && payload.HasSource(op.GetType()) {
				return refuse(PayloadMismatchedType, "partition %s, operation %d: expected no old partition to be read, found %v", part.GetPartitionName(), i, op.GetType())
			}
		}
	}
	return nil
}

// timestamps: of a whole payload, and of each partition. A partial one has only the
// latter, and has to have it where the device has one.
func (p *Policy) timestamps(m *payload.Metadata) error {
	if p.Downgrade {
		return nil
	}
	partial := m.Manifest.GetPartialUpdate()
	if have, comes := p.Device.Timestamp, m.Manifest.GetMaxTimestamp(); !partial && have != 0 && comes < have {
		return refuse(PayloadTimestamp, "expected a build of %d or later, found %d: allow a downgrade, if you mean it", have, comes)
	}
	for _, part := range m.Manifest.GetPartitions() {
		if err := p.partitionVersion(part, partial); err != nil {
			return err
		}
	}
	return nil
}

func (p *Policy) partitionVersion(part *pb.PartitionUpdate, partial bool) error {
	name, have, comes := part.GetPartitionName(), p.Device.Versions[part.GetPartitionName()], part.GetVersion()
	if have == "" {
		return nil
	}
	if comes == "" {
		if partial {
			return refuse(ManifestParse, "partition %s: expected a version, since the device's has %s, found none", name, have)
		}
		return nil
	}
	a, errA := strconv.ParseInt(have, 10, 64)
	b, errB := strconv.ParseInt(comes, 10, 64)
	switch {
	case errA != nil || errB != nil:
		return refuse(ManifestParse, "partition %s: expected versions that are numbers, found %q and %q", name, have, comes)
	case b < a:
		return refuse(PayloadTimestamp, "partition %s: expected version %s or later, found %s: allow a downgrade, if you mean it", name, have, comes)
	}
	return nil
}

func (p *Policy) patchLevel(m *payload.Metadata) error {
	have, comes := p.Device.SecurityPatchLevel, m.Manifest.GetSecurityPatchLevel()
	if p.SPLDowngrade || have == "" || comes == "" || comes >= have {
		return nil
	}
	return refuse(PayloadTimestamp, "expected security patch level %s or later, found %s: allow a lower one, if you mean it", have, comes)
}

func (p *Policy) hashes(m *payload.Metadata) error {
	if p.Unhashed {
		return nil
	}
	for _, part := range m.Manifest.GetPartitions() {
		for i, op := range part.GetOperations() {
			if payload.HasBlob(op.GetType()) && len(op.GetDataSha256Hash()) == 0 {
				return refuse(OperationHashMissing, "partition %s, operation %d (%v): expected a hash of its data, found none", part.GetPartitionName(), i, op.GetType())
			}
		}
	}
	return nil
}

// Whole reads all of a payload whose metadata are good, and checks what is said of the
// whole: size, hash, and the payload signature.
func (p *Policy) Whole(m *payload.Metadata, whole io.ReaderAt, size int64, onProgress func(done, total int64)) error {
	if p.Properties != nil && p.Properties.FileSize != 0 && p.Properties.FileSize != size {
		return refuse(PayloadSizeMismatch, "expected %d bytes, as the properties say, found %d: get it again", p.Properties.FileSize, size)
	}
	signatures, end, err := p.payloadSignatures(m, whole, size)
	if err != nil {
		return err
	}
	file, signed := sha256.New(), sha256.New()
	r := &meter{r: io.NewSectionReader(whole, 0, size), total: size, tell: onProgress}
	for _, part := range []struct {
		to io.Writer
		n  int64
	}{{io.MultiWriter(file, signed), m.Size()}, {file, m.SignatureSize()}, {io.MultiWriter(file, signed), end - m.BlobOffset()}, {file, size - end}} {
		if _, err := io.CopyN(part.to, r, part.n); err != nil {
			return fmt.Errorf("read the payload: %w", err)
		}
	}
	if p.Properties != nil && p.Properties.FileHash != nil && !bytes.Equal(p.Properties.FileHash, file.Sum(nil)) {
		return refuse(PayloadHashMismatch, "expected SHA-256 %x, as the properties say, found %x: get it again", p.Properties.FileHash, file.Sum(nil))
	}
	if !p.Unsigned && !p.anyOf(signed.Sum(nil), signatures) {
		return refuse(PubKeyVerification, "expected a payload signature by one of %d keys, found %d by others, or of other data", len(p.Keys), len(signatures))
	}
	return nil
}

// payloadSignatures also tells where in the file what they are of ends.
func (p *Policy) payloadSignatures(m *payload.Metadata, whole io.ReaderAt, size int64) ([]payload.Signature, int64, error) {
	off, n := m.Manifest.GetSignaturesOffset(), m.Manifest.GetSignaturesSize()
	if n == 0 {
		if p.Unsigned {
			return nil, size, nil
		}
		return nil, 0, refuse(SignatureMissing, "expected a payload signature, found none: get a signed payload, or allow unsigned ones")
	}
	if n > 1<<20 {
		return nil, 0, refuse(ManifestParse, "expected a payload signature of at most 1 MiB, found %d bytes", n)
	}
	end := m.BlobOffset() + int64(off)
	b := make([]byte, n)
	if k, err := whole.ReadAt(b, end); k < len(b) {
		return nil, 0, fmt.Errorf("read the payload signature: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	s, err := payload.ParseSignatures(b)
	if err != nil {
		return nil, 0, &Error{ManifestParse, err}
	}
	return s, end, nil
}

// meter tells of what is read.
type meter struct {
	r           io.Reader
	done, total int64
	tell        func(done, total int64)
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.done += int64(n)
	if m.tell != nil {
		m.tell(m.done, m.total)
	}
	return n, err
}
