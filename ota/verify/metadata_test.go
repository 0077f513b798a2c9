package verify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// Any of the keys with any of the signatures.
func TestSignedBy(t *testing.T) {
	for name := range signers() {
		b := build(t, update(), name)
		expectCode(t, name, install(t, b, Policy{Keys: keysOf(t, name)}, 1000), Success)
	}
	b := build(t, update(), "RSA-2048", "ECDSA P-384")
	for _, name := range []string{"RSA-2048", "ECDSA P-384"} {
		expectCode(t, "one of two: "+name, install(t, b, Policy{Keys: keysOf(t, "other", name)}, 1000), Success)
	}
	expectCode(t, "none of two", install(t, b, Policy{Keys: keysOf(t, "other", "RSA-3072")}, 1000), DownloadMetadataSignatureMismatch)
}

// The parts of a payload as damage sees them: a bit in each byte is refused with the
// code of what the byte belongs to.
func TestDamage(t *testing.T) {
	b := build(t, update(), "ECDSA P-256")
	m, err := payload.Read(bytes.NewReader(b), 0, payload.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	known := Policy{Keys: keysOf(t, "ECDSA P-256"), Properties: properties(b, m)}
	blind := Policy{Keys: known.Keys}
	blobs := int(m.BlobOffset())
	for _, part := range []struct {
		name     string
		from, to int
		blind    []Code // without properties
		known    []Code
	}{
		{"magic", 0, 4, []Code{DownloadInvalidMetadataMagicString}, nil},
		{"version", 4, 12, []Code{UnsupportedMajorPayloadVersion}, nil},
		{"manifest length", 12, 20, []Code{DownloadInvalidMetadataSize, DownloadMetadataSignatureMismatch}, []Code{DownloadInvalidMetadataSize}},
		{"signature length", 20, 24, []Code{DownloadInvalidMetadataSize, DownloadMetadataSignatureMismatch, DownloadMetadataSignatureMissingError},
			[]Code{DownloadInvalidMetadataSize, PayloadHashMismatchError, DownloadMetadataSignatureMismatch}},
		{"manifest", 24, int(m.Size()), []Code{DownloadMetadataSignatureMismatch}, []Code{PayloadHashMismatchError}},
		{"blob", blobs, blobs + blobSize, []Code{DownloadOperationHashMismatch}, nil},
	} {
		if part.known == nil {
			part.known = part.blind
		}
		for at := part.from; at < part.to; at++ {
			bad := bytes.Clone(b)
			bad[at] ^= 1 << (at % 8)
			expectOneOf(t, part.name, at, install(t, bad, blind, 1<<20), part.blind)
			expectOneOf(t, part.name, at, install(t, bad, known, 1<<20), part.known)
		}
	}
}

func expectOneOf(t *testing.T, what string, at int, err error, codes []Code) {
	t.Helper()
	for _, c := range codes {
		if CodeOf(err) == c {
			expectCode(t, what, err, c)
			return
		}
	}
	t.Errorf("%s: byte %d: expected one of %v, found %v", what, at, codes, err)
}

// Damage in a signatures message may hit what does not count: padding, fields that
// nobody knows. Then the file's hash still tells.
func TestDamagedSignatures(t *testing.T) {
	b := build(t, update(), "RSA-2048")
	m, err := payload.Read(bytes.NewReader(b), 0, payload.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	p := Policy{Keys: keysOf(t, "RSA-2048")}
	for at := m.Size() + 8; at < m.Size()+200; at++ { // within the number
		bad := bytes.Clone(b)
		bad[at] ^= 0x40
		expectCode(t, "metadata signature", install(t, bad, p, 1<<20), DownloadMetadataSignatureMismatch)
	}
	end := m.BlobOffset() + blobSize
	for at := end + 8; at < end+200; at++ {
		bad := bytes.Clone(b)
		bad[at] ^= 0x40
		expectCode(t, "payload signature", install(t, bad, p, 1<<20), DownloadPayloadPubKeyVerificationError)
	}
	bad := bytes.Clone(b)
	bad[end] ^= 0xff
	expectCode(t, "no signatures message", install(t, bad, p, 1<<20), DownloadPayloadVerificationError)
	p.Properties = properties(b, m)
	for at := m.Size(); at < m.BlobOffset(); at++ {
		bad := bytes.Clone(b)
		bad[at] ^= 1
		expectOneOf(t, "metadata signature", int(at), install(t, bad, p, 1<<20), []Code{DownloadMetadataSignatureMismatch, DownloadMetadataSignatureMissingError, PayloadHashMismatchError})
	}
	for at := end; at < int64(len(b)); at++ {
		bad := bytes.Clone(b)
		bad[at] ^= 1
		expectCode(t, "payload signature", install(t, bad, p, 1<<20), PayloadHashMismatchError)
	}
}

// A payload that is cut or longer is refused wherever that is.
func TestLength(t *testing.T) {
	b := build(t, update(), "ECDSA P-256")
	m, err := payload.Read(bytes.NewReader(b), 0, payload.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	p := Policy{Keys: keysOf(t, "ECDSA P-256")}
	for n := range m.BlobOffset() {
		_, err := Read(bytes.NewReader(b[:n]), 0, p)
		expectCode(t, "metadata", err, DownloadInvalidMetadataSize)
	}
	for n := m.BlobOffset() + blobSize; n < int64(len(b)); n++ {
		expectCode(t, "signature", install(t, b[:n], p, 1<<20), PayloadSizeMismatchError)
	}
	expectCode(t, "longer", install(t, append(bytes.Clone(b), 0), p, 1<<20), PayloadSizeMismatchError)
	p.Properties = &payload.Properties{FileSize: int64(len(b)) + 1}
	expectCode(t, "shorter than announced", install(t, b, p, 1<<20), PayloadSizeMismatchError)
	_, err = Read(bytes.NewReader(b), int64(len(b)), p)
	expectCode(t, "shorter than announced, size known", err, PayloadSizeMismatchError)
	p.Properties = &payload.Properties{FileSize: m.BlobOffset() - 1}
	expectCode(t, "less than the metadata announced", install(t, b, p, 1<<20), DownloadInvalidMetadataSize)
}

func TestProperties(t *testing.T) {
	b := build(t, update(), "ECDSA P-256")
	m, err := payload.Read(bytes.NewReader(b), 0, payload.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*payload.Properties)
		want   Code
	}{
		"right":                 {func(*payload.Properties) {}, Success},
		"nothing known":         {func(q *payload.Properties) { *q = payload.Properties{} }, Success},
		"metadata size, less":   {func(q *payload.Properties) { q.MetadataSize-- }, DownloadInvalidMetadataSize},
		"metadata size, more":   {func(q *payload.Properties) { q.MetadataSize++ }, DownloadInvalidMetadataSize},
		"metadata size, header": {func(q *payload.Properties) { q.MetadataSize = payload.HeaderSize }, DownloadInvalidMetadataSize},
		"metadata hash":         {func(q *payload.Properties) { q.MetadataHash[0]++ }, PayloadHashMismatchError},
		"file size":             {func(q *payload.Properties) { q.FileSize++ }, PayloadSizeMismatchError},
		"file hash":             {func(q *payload.Properties) { q.FileHash[0]++ }, PayloadHashMismatchError},
		"other keys do not allow": {func(q *payload.Properties) {
			q.More = map[string]string{"SPL_DOWNGRADE": "1"}
		}, Success},
	} {
		q := properties(b, m)
		c.change(q)
		expectCode(t, name, install(t, b, Policy{Keys: keysOf(t, "ECDSA P-256"), Properties: q}, 1<<20), c.want)
	}
}

// What is announced bounds what is read and held.
func TestLimits(t *testing.T) {
	for _, c := range []struct {
		set, announced, want int64
	}{
		{0, 0, 0}, {0, 1024, 1000}, {500, 1024, 500}, {5000, 1024, 1000}, {0, payload.DefaultManifest * 2, 0}, {0, 24, 0}, {7, 0, 7},
	} {
		p := Policy{Limits: payload.Limits{Manifest: c.set}, Properties: &payload.Properties{MetadataSize: c.announced}}
		if got := p.limits().Manifest; got != c.want {
			t.Errorf("%+v: expected %d, found %d", c, c.want, got)
		}
	}
	b := build(t, update())
	binary.BigEndian.PutUint64(b[12:], 1<<40)
	_, err := Read(bytes.NewReader(b), 0, Policy{})
	expectCode(t, "large manifest", err, DownloadInvalidMetadataSize)
	if !errors.Is(err, payload.ErrTooLarge) {
		t.Errorf("expected %v to be wrapped, found %v", payload.ErrTooLarge, err)
	}
}

func TestReadFails(t *testing.T) {
	failure := errors.New("connection lost")
	_, err := Read(iotest.ErrReader(failure), 0, Policy{})
	expectCode(t, "reader", err, DownloadTransferError)
	if !errors.Is(err, failure) {
		t.Errorf("expected %v to be wrapped, found %v", failure, err)
	}
}

// A manifest that cannot be parsed is not even tried if nobody has signed it.
func TestNotParsedUnsigned(t *testing.T) {
	b := append([]byte(payload.Magic), make([]byte, 20)...)
	binary.BigEndian.PutUint64(b[4:], payload.Major)
	binary.BigEndian.PutUint64(b[12:], 100)
	b = append(b, bytes.Repeat([]byte{0xff}, 100)...)
	_, err := Read(bytes.NewReader(b), 0, Policy{Keys: keysOf(t, "other")})
	expectCode(t, "unsigned", err, DownloadMetadataSignatureMissingError)
	_, err = Read(bytes.NewReader(b), 0, Policy{AllowUnsigned: true})
	expectCode(t, "allowed", err, DownloadManifestParseError)
}

func TestUnsigned(t *testing.T) {
	unsigned, signed := build(t, update()), build(t, update(), "ECDSA P-256")
	half := halfSigned(t)
	right, wrong := keysOf(t, "ECDSA P-256"), keysOf(t, "other")
	for name, c := range map[string]struct {
		b     []byte
		keys  Keys
		allow bool
		want  Code
	}{
		"unsigned, no keys":           {unsigned, nil, false, DownloadMetadataSignatureVerificationError},
		"unsigned, keys":              {unsigned, right, false, DownloadMetadataSignatureMissingError},
		"unsigned, no keys, allowed":  {unsigned, nil, true, Success},
		"unsigned, keys, allowed":     {unsigned, right, true, Success},
		"signed, no keys":             {signed, nil, false, DownloadMetadataSignatureVerificationError},
		"signed, no keys, allowed":    {signed, nil, true, Success},
		"signed, wrong keys, allowed": {signed, wrong, true, DownloadMetadataSignatureMismatch},
		"only the metadata is signed": {half, right, false, SignedDeltaPayloadExpectedError},
		"… and that is allowed":       {half, right, true, Success},
		"… but not another key of it": {half, wrong, true, DownloadMetadataSignatureMismatch},
	} {
		expectCode(t, name, install(t, c.b, Policy{Keys: c.keys, AllowUnsigned: c.allow}, 1000), c.want)
	}
}

// halfSigned has a metadata signature and no payload signature.
func halfSigned(t *testing.T) []byte {
	t.Helper()
	room := signatures(t, nil, []string{"ECDSA P-256"})
	head, err := payload.AppendMetadata(nil, update(), room)
	if err != nil {
		t.Fatal(err)
	}
	head = head[:len(head)-len(room)]
	return append(append(head, signatures(t, head, []string{"ECDSA P-256"})...), blob()...)
}

// A payload's keys may go between the checks of metadata and of the end.
func TestPayloadWithoutKeys(t *testing.T) {
	b := build(t, update(), "ECDSA P-256")
	m, err := Read(bytes.NewReader(b), 0, Policy{Keys: keysOf(t, "ECDSA P-256")})
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSum(m)
	if err != nil {
		t.Fatal(err)
	}
	s.Write(b[s.Offset():])
	expectCode(t, "no keys", Payload(m, s, Policy{}), DownloadPayloadPubKeyVerificationError)
	expectCode(t, "other keys", Payload(m, s, Policy{Keys: keysOf(t, "other")}), DownloadPayloadPubKeyVerificationError)
	expectCode(t, "its key", Payload(m, s, Policy{Keys: keysOf(t, "ECDSA P-256")}), Success)
}

type rule struct {
	manifest func(*pb.DeltaArchiveManifest)
	policy   Policy
	want     Code
	wipe     bool
}

// rules are all with AllowUnsigned.
var rules = map[string]rule{
	"nothing known of the device": {want: Success},

	"full with a minor version": {manifest: func(m *pb.DeltaArchiveManifest) { m.MinorVersion = proto.Uint32(9) }, want: UnsupportedMinorPayloadVersion},
	"delta, minor 1":            {manifest: func(m *pb.DeltaArchiveManifest) { delta(m).MinorVersion = proto.Uint32(1) }, want: UnsupportedMinorPayloadVersion},
	"delta, minor 2":            {manifest: func(m *pb.DeltaArchiveManifest) { delta(m).MinorVersion = proto.Uint32(2) }, want: Success},
	"delta, minor 9":            {manifest: func(m *pb.DeltaArchiveManifest) { delta(m) }, want: Success},
	"delta, minor 10":           {manifest: func(m *pb.DeltaArchiveManifest) { delta(m).MinorVersion = proto.Uint32(10) }, want: UnsupportedMinorPayloadVersion},
	"delta, no minor":           {manifest: func(m *pb.DeltaArchiveManifest) { delta(m).MinorVersion = nil }, want: UnsupportedMinorPayloadVersion},
	"partial, minor 0":          {manifest: func(m *pb.DeltaArchiveManifest) { m.PartialUpdate = proto.Bool(true) }, want: UnsupportedMinorPayloadVersion},
	"partial, minor 7":          {manifest: func(m *pb.DeltaArchiveManifest) { partial(m) }, want: Success},
	"delta wanted, full found":  {policy: Policy{Kind: Delta}, want: PayloadMismatchedType},
	"full wanted, delta found":  {manifest: func(m *pb.DeltaArchiveManifest) { delta(m) }, policy: Policy{Kind: Full}, want: PayloadMismatchedType},
	"full wanted, found":        {policy: Policy{Kind: Full}, want: Success},
	"partial counts as a delta": {manifest: func(m *pb.DeltaArchiveManifest) { partial(m) }, policy: Policy{Kind: Delta}, want: Success},
	"kind before minor":         {manifest: func(m *pb.DeltaArchiveManifest) { m.MinorVersion = proto.Uint32(9) }, policy: Policy{Kind: Delta}, want: PayloadMismatchedType},

	"same build":              {policy: Policy{Device: Device{BuildTime: 1000}}, want: Success},
	"newer build":             {policy: Policy{Device: Device{BuildTime: 999}}, want: Success},
	"older build":             {policy: Policy{Device: Device{BuildTime: 1001}}, want: PayloadTimestampError},
	"older build, allowed":    {policy: Policy{Device: Device{BuildTime: 1001}, AllowDowngrade: true}, want: Success},
	"no build time":           {manifest: func(m *pb.DeltaArchiveManifest) { m.MaxTimestamp = nil }, policy: Policy{Device: Device{BuildTime: 1}}, want: PayloadTimestampError},
	"partial, no build time":  {manifest: func(m *pb.DeltaArchiveManifest) { partial(m).MaxTimestamp = nil }, policy: Policy{Device: Device{BuildTime: 1}}, want: Success},
	"minor before build time": {manifest: func(m *pb.DeltaArchiveManifest) { m.MinorVersion = proto.Uint32(9) }, policy: Policy{Device: Device{BuildTime: 1001}}, want: UnsupportedMinorPayloadVersion},

	"same version":                    versions("5", "5", Success),
	"newer version, not by text":      versions("9", "10", Success),
	"older version":                   versions("10", "9", PayloadTimestampError),
	"no version":                      versions("10", "", Success),
	"no version on the device":        versions("", "10", Success),
	"version is no number":            versions("10", "5.10.43-android12-0", DownloadManifestParseError),
	"version is no number, not known": versions("", "5.10.43-android12-0", Success),
	"device's version is no number":   versions("x", "10", GenericError),
	"older version, allowed":          {manifest: version("9"), policy: Policy{Device: Device{Versions: map[string]string{"system": "10"}}, AllowDowngrade: true}, want: Success},
	"no number, downgrade allowed": {manifest: version("z"), policy: Policy{Device: Device{Versions: map[string]string{"system": "10"}}, AllowDowngrade: true},
		want: DownloadManifestParseError},
	"no number behind an older one": {manifest: func(m *pb.DeltaArchiveManifest) {
		version("9")(m)
		second := proto.CloneOf(m.Partitions[0])
		second.PartitionName, second.Version = proto.String("vendor"), proto.String("z")
		m.Partitions = append(m.Partitions, second)
	}, policy: Policy{Device: Device{Versions: map[string]string{"system": "10", "vendor": "1"}}}, want: DownloadManifestParseError},
	"partial, no version": {manifest: func(m *pb.DeltaArchiveManifest) { partial(m) },
		policy: Policy{Device: Device{Versions: map[string]string{"system": "10"}}}, want: DownloadManifestParseError},
	"partial, no version, none on the device": {manifest: func(m *pb.DeltaArchiveManifest) { partial(m) },
		policy: Policy{Device: Device{Versions: map[string]string{"vendor": "10"}}}, want: Success},
	"partial, older version": {manifest: func(m *pb.DeltaArchiveManifest) { version("9")(partial(m)) },
		policy: Policy{Device: Device{Versions: map[string]string{"system": "10"}}}, want: PayloadTimestampError},
	"older boot":            {manifest: boot("9"), policy: Policy{Device: Device{Versions: map[string]string{"boot": "10"}}}, want: Success},
	"older boot, prevented": {manifest: boot("9"), policy: Policy{Device: Device{Versions: map[string]string{"boot": "10"}, PreventBootDowngrade: true}}, want: PayloadTimestampError},

	"same patch level":              {policy: Policy{Device: Device{SecurityPatch: "2024-11-01"}}, want: Success},
	"newer patch level":             {policy: Policy{Device: Device{SecurityPatch: "2024-10-05"}}, want: Success},
	"older patch level":             {policy: Policy{Device: Device{SecurityPatch: "2024-11-05"}}, want: PayloadTimestampError},
	"older patch level, allowed":    {policy: Policy{Device: Device{SecurityPatch: "2024-11-05"}, AllowSPLDowngrade: true}, want: Success},
	"not allowed by AllowDowngrade": {policy: Policy{Device: Device{SecurityPatch: "2024-11-05"}, AllowDowngrade: true}, want: PayloadTimestampError},
	"not allowed by properties": {policy: Policy{Device: Device{SecurityPatch: "2024-11-05"}, Properties: &payload.Properties{More: map[string]string{"SPL_DOWNGRADE": "1"}}},
		want: PayloadTimestampError},
	"older patch level, unlocked":          {policy: Policy{Device: Device{SecurityPatch: "2024-11-05", Unlocked: true}}, want: Success, wipe: true},
	"newer patch level, unlocked":          {policy: Policy{Device: Device{SecurityPatch: "2024-10-05", Unlocked: true}}, want: Success},
	"older patch level, unlocked, allowed": {policy: Policy{Device: Device{SecurityPatch: "2024-11-05", Unlocked: true}, AllowSPLDowngrade: true}, want: Success},
	"no patch level":                       {manifest: func(m *pb.DeltaArchiveManifest) { m.SecurityPatchLevel = nil }, policy: Policy{Device: Device{SecurityPatch: "2024-11-05"}}, want: Success},

	"no new info":        {manifest: func(m *pb.DeltaArchiveManifest) { m.Partitions[0].NewPartitionInfo = nil }, want: DownloadNewPartitionInfoError},
	"no hash of a blob":  {manifest: func(m *pb.DeltaArchiveManifest) { m.Partitions[0].Operations[0].DataSha256Hash = nil }, want: DownloadOperationHashMissingError},
	"… which is allowed": {manifest: func(m *pb.DeltaArchiveManifest) { m.Partitions[0].Operations[0].DataSha256Hash = nil }, policy: Policy{AllowUnhashed: true}, want: Success},
	"malformed":          {manifest: func(m *pb.DeltaArchiveManifest) { m.BlockSize = proto.Uint32(5) }, want: DownloadManifestParseError},
}

func partial(m *pb.DeltaArchiveManifest) *pb.DeltaArchiveManifest {
	m.PartialUpdate, m.MinorVersion = proto.Bool(true), proto.Uint32(7)
	return m
}

func version(v string) func(*pb.DeltaArchiveManifest) {
	return func(m *pb.DeltaArchiveManifest) {
		if v != "" {
			m.Partitions[0].Version = proto.String(v)
		}
	}
}

func boot(v string) func(*pb.DeltaArchiveManifest) {
	return func(m *pb.DeltaArchiveManifest) {
		m.Partitions[0].PartitionName, m.Partitions[0].Version = proto.String("boot"), proto.String(v)
	}
}

// versions is what a device has, and what comes.
func versions(has, comes string, want Code) rule {
	var d Device
	if has != "" {
		d.Versions = map[string]string{"system": has}
	}
	return rule{manifest: version(comes), policy: Policy{Device: d}, want: want}
}

func TestRules(t *testing.T) {
	for name, c := range rules {
		manifest := update()
		if c.manifest != nil {
			c.manifest(manifest)
		}
		c.policy.AllowUnsigned = true
		b := build(t, manifest)
		_, err := Read(bytes.NewReader(b), int64(len(b)), c.policy)
		expectCode(t, name, err, c.want)
		m, errRead := payload.Read(bytes.NewReader(b), int64(len(b)), payload.Limits{})
		if errRead != nil {
			t.Fatal(errRead)
		}
		expectCode(t, name+", read before", Metadata(m, c.policy), c.want)
		if got := NeedsWipe(m, c.policy); got != c.wipe {
			t.Errorf("%s: expected a wipe %v, found %v", name, c.wipe, got)
		}
		c.policy.AllowUnsigned = false
		expectCode(t, name+", unsigned", Metadata(m, c.policy), DownloadMetadataSignatureVerificationError)
	}
}

func TestMalformedWraps(t *testing.T) {
	manifest := update()
	manifest.BlockSize = proto.Uint32(5)
	b := build(t, manifest)
	_, err := Read(bytes.NewReader(b), 0, Policy{AllowUnsigned: true})
	if !errors.Is(err, payload.ErrManifest) || !strings.Contains(err.Error(), "found 5") {
		t.Errorf("expected %v with the number found, found %v", payload.ErrManifest, err)
	}
}

// Of several partitions that are too old the first is named.
func TestFirstOlder(t *testing.T) {
	manifest := update()
	version("9")(manifest)
	second := proto.CloneOf(manifest.Partitions[0])
	second.PartitionName = proto.String("vendor")
	manifest.Partitions = append(manifest.Partitions, second)
	p := Policy{AllowUnsigned: true, Device: Device{Versions: map[string]string{"system": "10", "vendor": "10"}}}
	_, err := Read(bytes.NewReader(build(t, manifest)), 0, p)
	if CodeOf(err) != PayloadTimestampError || !strings.Contains(err.Error(), "partition system: expected version 10 or later, found 9") {
		t.Errorf("expected the first partition to be named, found %v", err)
	}
}

func TestUnparsed(t *testing.T) {
	b := build(t, update(), "ECDSA P-256")
	m, err := payload.ReadSigned(bytes.NewReader(b), 0, payload.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	expectCode(t, "unparsed", Metadata(m, Policy{Keys: keysOf(t, "ECDSA P-256")}), DownloadManifestParseError)
	expectCode(t, "unparsed, another key", Metadata(m, Policy{Keys: keysOf(t, "other")}), DownloadMetadataSignatureMismatch)
}
