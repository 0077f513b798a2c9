package verify

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"errors"
	"io"
	"strconv"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// leastMinor is the lowest minor version of deltas that are still taken.
const leastMinor = 2

// Read takes the metadata from the beginning of a payload, and not a byte more,
// and checks it in the client's order: nothing is parsed that is not signed. size
// is that of the payload in bytes, or 0 if it is not known.
func Read(r io.Reader, size int64, p Policy) (*payload.Metadata, error) {
	if err := p.checkPackage(); err != nil {
		return nil, err
	}
	size, err := p.fileSize(size)
	if err != nil {
		return nil, err
	}
	m, err := payload.ReadSigned(r, size, p.limits())
	if err != nil {
		return nil, readError(err)
	}
	if err := authentic(m, p); err != nil {
		return nil, err
	}
	if err := m.Parse(); err != nil {
		return nil, &Error{DownloadManifestParseError, err, askProducer}
	}
	if err := acceptable(m, p); err != nil {
		return nil, err
	}
	return m, nil
}

// Metadata checks what was read and parsed already, as Read does.
func Metadata(m *payload.Metadata, p Policy) error {
	if err := authentic(m, p); err != nil {
		return err
	}
	if m.Manifest == nil {
		return refuse(DownloadManifestParseError, "parse it first", "manifest: expected one, found it unparsed")
	}
	return acceptable(m, p)
}

// fileSize is the payload's size, if somebody knows it.
func (p Policy) fileSize(size int64) (int64, error) {
	switch {
	case p.Properties == nil || p.Properties.FileSize == 0 || p.Properties.FileSize == size:
		return size, nil
	case size == 0:
		return p.Properties.FileSize, nil
	}
	return 0, refuse(PayloadSizeMismatchError, fetchAgain, "payload: expected %d bytes, found %d", p.Properties.FileSize, size)
}

// limits does not let more be read than what is announced.
func (p Policy) limits() payload.Limits {
	l := p.Limits
	if p.Properties == nil || p.Properties.MetadataSize <= payload.HeaderSize {
		return l
	}
	if n := p.Properties.MetadataSize - payload.HeaderSize; l.Manifest == 0 && n <= payload.DefaultManifest || l.Manifest > n {
		l.Manifest = n
	}
	return l
}

// readError finds the client's code for what is no payload.
func readError(err error) error {
	for _, c := range []struct {
		cause error
		code  Code
		next  string
	}{
		{payload.ErrMagic, DownloadInvalidMetadataMagicString, "give the payload.bin itself, or the zip that it is in"},
		{payload.ErrVersion, UnsupportedMajorPayloadVersion, checkVersion},
		{payload.ErrTooLarge, DownloadInvalidMetadataSize, fetchAgain},
		{payload.ErrTruncated, DownloadInvalidMetadataSize, fetchAgain},
		{payload.ErrSignatures, DownloadMetadataSignatureMismatch, fetchAgain},
	} {
		if errors.Is(err, c.cause) {
			return &Error{c.code, err, c.next}
		}
	}
	return &Error{DownloadTransferError, err, "try again"}
}

// authentic checks size, hash and signature of header and manifest.
func authentic(m *payload.Metadata, p Policy) error {
	digest := sha256.Sum256(m.Signed)
	if q := p.Properties; q != nil {
		if q.MetadataSize != 0 && q.MetadataSize != m.Size() {
			return refuse(DownloadInvalidMetadataSize, fetchAgain, "metadata: expected %d bytes, found %d", q.MetadataSize, m.Size())
		}
		if q.MetadataHash != nil && !bytes.Equal(q.MetadataHash, digest[:]) {
			return refuse(PayloadHashMismatchError, fetchAgain, "metadata: expected the hash %x, found %x", q.MetadataHash, digest)
		}
	}
	switch {
	case p.unchecked(m.Signatures):
		return nil
	case len(p.Keys) == 0:
		return refuse(DownloadMetadataSignatureVerificationError, giveKeys, "metadata signature: expected keys to trust, found none")
	case len(m.Signatures) == 0:
		return refuse(DownloadMetadataSignatureMissingError, checkKeys, "metadata signature: expected one, found none")
	case !signed(m.Signatures, digest, p.Keys):
		return refuse(DownloadMetadataSignatureMismatch, checkKeys,
			"metadata signature: expected one by %v, found %d by none of these", p.Keys, len(m.Signatures))
	}
	return nil
}

// unchecked is whether signatures do not have to be looked at.
func (p Policy) unchecked(signatures []payload.Signature) bool {
	return p.AllowUnsigned && (len(signatures) == 0 || len(p.Keys) == 0)
}

// signed tries all signatures with all keys (specs/payload.md 4).
func signed(signatures []payload.Signature, digest [sha256.Size]byte, keys Keys) bool {
	for _, s := range signatures {
		if keys.verify(crypto.SHA256, digest[:], s.Bytes()) {
			return true
		}
	}
	return false
}

// acceptable checks what the manifest says, in the client's order. It looks at what
// no client understands (Check) only when the version is one that is understood.
func acceptable(m *payload.Metadata, p Policy) error {
	for _, check := range []func(*payload.Metadata, Policy) error{checkKind, checkMinor, checkAge, checkSPL, checkInfo, checkHashes} {
		if err := check(m, p); err != nil {
			return err
		}
	}
	if err := m.Check(); err != nil {
		return &Error{DownloadManifestParseError, err, askProducer}
	}
	return nil
}

func checkKind(m *payload.Metadata, p Policy) error {
	found := Full
	if m.IsDelta() {
		found = Delta
	}
	if p.Kind == AnyKind || p.Kind == found {
		return nil
	}
	return refuse(PayloadMismatchedType, "get the other kind of update", "payload: expected a %v update, found a %v one", p.Kind, found)
}

func checkMinor(m *payload.Metadata, _ Policy) error {
	minor := m.Manifest.GetMinorVersion()
	switch {
	case !m.IsDelta() && minor != 0:
		return refuse(UnsupportedMinorPayloadVersion, askProducer, "minor version: expected 0 for a full update, found %d", minor)
	case m.IsDelta() && (minor < leastMinor || minor > payload.MostMinor):
		return refuse(UnsupportedMinorPayloadVersion, checkVersion,
			"minor version: expected %d to %d for a delta, found %d", leastMinor, payload.MostMinor, minor)
	}
	return nil
}

// checkAge refuses what is older than the device has. A partial update says nothing
// of the whole system, so that all of its partitions must (specs/payload.md 14).
func checkAge(m *payload.Metadata, p Policy) error {
	partial := m.Manifest.GetPartialUpdate()
	if newest := m.Manifest.GetMaxTimestamp(); !partial && newest < p.Device.BuildTime && !p.AllowDowngrade {
		return refuse(PayloadTimestampError, allowDowngrade, "build time: expected %d or later, found %d", p.Device.BuildTime, newest)
	}
	var older error
	for _, u := range m.Manifest.GetPartitions() {
		err := checkPartitionAge(u, partial, p.Device)
		switch code := CodeOf(err); {
		case code == PayloadTimestampError && older == nil:
			older = err
		case code != Success && code != PayloadTimestampError:
			return err
		}
	}
	if p.AllowDowngrade {
		return nil
	}
	return older
}

const allowDowngrade = "get a newer update, or allow downgrades"

func checkPartitionAge(u *pb.PartitionUpdate, partial bool, d Device) error {
	name, has := u.GetPartitionName(), d.Versions[u.GetPartitionName()]
	if u.Version == nil && has != "" && partial {
		return refuse(DownloadManifestParseError, askProducer,
			"partition %s: expected a version, as the update is a partial one and the device has %s, found none", name, has)
	}
	if has == "" || u.GetVersion() == "" {
		return nil
	}
	old, err := strconv.ParseInt(has, 10, 64)
	if err != nil {
		return refuse(GenericError, "correct what is told of the device",
			"partition %s: expected the device's version to be a number, found %q", name, has)
	}
	found, err := strconv.ParseInt(u.GetVersion(), 10, 64)
	if err != nil {
		return refuse(DownloadManifestParseError, askProducer, "partition %s: expected a version that is a number, found %q", name, u.GetVersion())
	}
	if found < old && (name != "boot" || d.PreventBootDowngrade) {
		return refuse(PayloadTimestampError, allowDowngrade, "partition %s: expected version %d or later, found %d", name, old, found)
	}
	return nil
}

// olderSPL compares as the client does, by characters.
func (p Policy) olderSPL(found string) bool {
	return found != "" && found < p.Device.SecurityPatch && !p.AllowSPLDowngrade
}

func checkSPL(m *payload.Metadata, p Policy) error {
	return p.checkPatchLevel("security patch level", m.Manifest.GetSecurityPatchLevel())
}

func (p Policy) checkPatchLevel(what, found string) error {
	if p.Device.Unlocked || !p.olderSPL(found) {
		return nil
	}
	return refuse(PayloadTimestampError, "get a newer update: a locked device does not start an older one",
		"%s: expected %s or later, found %s", what, p.Device.SecurityPatch, found)
}

// NeedsWipe tells whether the device's data has to be wiped if this update, which
// is acceptable, is installed: the new system could not or should not read it.
func NeedsWipe(m *payload.Metadata, p Policy) bool {
	return p.Device.Unlocked && p.olderSPL(m.Manifest.GetSecurityPatchLevel())
}

func checkInfo(m *payload.Metadata, _ Policy) error {
	for _, u := range m.Manifest.GetPartitions() {
		if u.NewPartitionInfo == nil {
			return refuse(DownloadNewPartitionInfoError, askProducer,
				"partition %s: expected the new size and hash, found none", u.GetPartitionName())
		}
	}
	return nil
}

func checkHashes(m *payload.Metadata, p Policy) error {
	for _, u := range m.Manifest.GetPartitions() {
		for i, op := range u.GetOperations() {
			if !p.AllowUnhashed && op.GetDataLength() > 0 && len(op.GetDataSha256Hash()) == 0 {
				return refuse(DownloadOperationHashMissingError, askProducer,
					"partition %s, operation %d: expected a hash of the blob, found none", u.GetPartitionName(), i)
			}
		}
	}
	return nil
}
