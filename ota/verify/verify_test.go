package verify

import (
	"archive/zip"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/tools/fixture"
)

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func keysIn(t testing.TB, path string) Keys {
	t.Helper()
	k, err := ParseKeys(mustRead(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func readAll(t testing.TB, b []byte) *payload.Metadata {
	t.Helper()
	m, err := payload.Read(bytes.NewReader(b), int64(len(b)), payload.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// both checks metadata and the whole.
func both(p *Policy, b []byte, m *payload.Metadata) error {
	if err := p.Metadata(m); err != nil {
		return err
	}
	return p.Whole(m, bytes.NewReader(b), int64(len(b)), nil)
}

func expectCode(t testing.TB, what string, err error, want Code) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != want {
		t.Errorf("%s: expected %v, found %v", what, want, err)
	}
}

// Each payload of the fixtures is signed by the key that its sidecar names, and by no
// other; those that are not signed are refused unless that is allowed.
func TestFixtures(t *testing.T) {
	dir := filepath.Join(fixture.Dir(t), "payload")
	files, err := filepath.Glob(filepath.Join(dir, "*.payload.bin"))
	keys, err2 := filepath.Glob(filepath.Join(dir, "keys", "*.pub.pem"))
	if err = errors.Join(err, err2); err != nil || len(files) == 0 || len(keys) < 2 {
		t.Fatalf("expected payloads and keys, found %v, %v, %v", files, keys, err)
	}
	signed := 0
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".payload.bin"), func(t *testing.T) {
			var side struct {
				PublicKey string `json:"public_key"`
			}
			if err := json.Unmarshal(mustRead(t, strings.TrimSuffix(f, ".payload.bin")+".json"), &side); err != nil {
				t.Fatal(err)
			}
			b := mustRead(t, f)
			m := readAll(t, b)
			if len(m.Signatures) == 0 {
				expectCode(t, "unsigned", (&Policy{Keys: keysIn(t, keys[0])}).Metadata(m), MetadataSignatureMissing)
				if err := both(&Policy{Unsigned: true}, b, m); err != nil {
					t.Errorf("unsigned and allowed: %v", err)
				}
				return
			}
			signed++
			if side.PublicKey != "" {
				if err := both(&Policy{Keys: keysIn(t, filepath.Join(dir, side.PublicKey))}, b, m); err != nil {
					t.Errorf("with %s: %v", side.PublicKey, err)
				}
			}
			good := 0
			for _, k := range keys {
				if (&Policy{Keys: keysIn(t, k)}).Metadata(m) == nil {
					good++
				}
			}
			if most := len(m.Signatures); good == 0 || good > most {
				t.Errorf("expected 1 to %d of %d keys to be right, found %d", most, len(keys), good)
			}
		})
	}
	if signed < 5 {
		t.Errorf("expected 5 signed payloads at least, found %d", signed)
	}
}

// signer makes signatures.
type signer struct {
	key crypto.Signer
}

func (s signer) sign(t testing.TB, signed []byte) []byte {
	t.Helper()
	h := sha256.Sum256(signed)
	b, err := s.key.Sign(rand.Reader, h[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const longest = 512 // bytes of any signature here

// message is padded, so that its length is known beforehand.
func message(signature []byte) []byte {
	return payload.AppendSignatures(nil, []payload.Signature{{Data: append(signature, make([]byte, longest-len(signature))...), Size: len(signature)}})
}

// build makes a signed payload of a manifest with one blob.
func (s signer) build(t testing.TB, m *pb.DeltaArchiveManifest, blob []byte) []byte {
	t.Helper()
	n := len(message(nil))
	m.SignaturesOffset, m.SignaturesSize = proto.Uint64(uint64(len(blob))), proto.Uint64(uint64(n))
	b, err := payload.AppendMetadata(nil, m, make([]byte, n))
	if err != nil {
		t.Fatal(err)
	}
	signed := b[:len(b)-n]
	copy(b[len(signed):], message(s.sign(t, signed)))
	b = append(b, blob...)
	return append(b, message(s.sign(t, append(bytes.Clone(signed), blob...)))...)
}

func manifest(blob []byte) *pb.DeltaArchiveManifest {
	hash := sha256.Sum256(blob)
	return &pb.DeltaArchiveManifest{MaxTimestamp: proto.Int64(1000), SecurityPatchLevel: proto.String("2026-05-01"),
		Partitions: []*pb.PartitionUpdate{{PartitionName: proto.String("system"), Version: proto.String("1000"),
			NewPartitionInfo: &pb.PartitionInfo{Size: proto.Uint64(4096), Hash: hash[:]},
			Operations: []*pb.InstallOperation{{Type: pb.InstallOperation_REPLACE.Enum(), DataOffset: proto.Uint64(0), DataLength: proto.Uint64(uint64(len(blob))),
				DataSha256Hash: hash[:], DstExtents: []*pb.Extent{{StartBlock: proto.Uint64(0), NumBlocks: proto.Uint64(1)}}}}}}}
}

func newSigner(t testing.TB) (signer, Keys) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{k}, Keys{&k.PublicKey}
}

func TestPolicy(t *testing.T) {
	s, keys := newSigner(t)
	_, others := newSigner(t)
	blob := bytes.Repeat([]byte("x"), 4096)
	zeroHash := make([]byte, 32)
	for name, c := range map[string]struct {
		change func(*pb.DeltaArchiveManifest)
		policy Policy
		want   Code // 0: taken
	}{
		"good":             {nil, Policy{Keys: keys}, 0},
		"one of two":       {nil, Policy{Keys: append(others[:1:1], keys...)}, 0},
		"another's":        {nil, Policy{Keys: others}, MetadataSignatureMismatch},
		"no key":           {nil, Policy{}, MetadataSignatureMissing},
		"another allowed":  {nil, Policy{Unsigned: true}, 0},
		"metadata size":    {nil, Policy{Keys: keys, Properties: &payload.Properties{MetadataSize: 3}}, InvalidMetadataSize},
		"metadata hash":    {nil, Policy{Keys: keys, Properties: &payload.Properties{MetadataHash: zeroHash}}, InvalidMetadataHash},
		"file size":        {nil, Policy{Keys: keys, Properties: &payload.Properties{FileSize: 3}}, PayloadSizeMismatch},
		"file hash":        {nil, Policy{Keys: keys, Properties: &payload.Properties{FileHash: zeroHash}}, PayloadHashMismatch},
		"same time":        {nil, Policy{Keys: keys, Device: Device{Timestamp: 1000}}, 0},
		"older":            {nil, Policy{Keys: keys, Device: Device{Timestamp: 1001}}, PayloadTimestamp},
		"older, allowed":   {nil, Policy{Keys: keys, Device: Device{Timestamp: 1001}, Downgrade: true}, 0},
		"older partition":  {nil, Policy{Keys: keys, Device: Device{Versions: map[string]string{"system": "1001"}}}, PayloadTimestamp},
		"longer number":    {nil, Policy{Keys: keys, Device: Device{Versions: map[string]string{"system": "999"}}}, 0},
		"no number":        {nil, Policy{Keys: keys, Device: Device{Versions: map[string]string{"system": "A1"}}}, ManifestParse},
		"patch level":      {nil, Policy{Keys: keys, Device: Device{SecurityPatchLevel: "2026-06-01"}}, PayloadTimestamp},
		"level allowed":    {nil, Policy{Keys: keys, Device: Device{SecurityPatchLevel: "2026-06-01"}, SPLDowngrade: true}, 0},
		"same level":       {nil, Policy{Keys: keys, Device: Device{SecurityPatchLevel: "2026-05-01"}}, 0},
		"minor of a full":  {func(m *pb.DeltaArchiveManifest) { m.MinorVersion = proto.Uint32(8) }, Policy{Keys: keys}, UnsupportedMinorVersion},
		"minor of a delta": {func(m *pb.DeltaArchiveManifest) { m.PartialUpdate = proto.Bool(true) }, Policy{Keys: keys}, UnsupportedMinorVersion},
		"newer delta":      {func(m *pb.DeltaArchiveManifest) { m.PartialUpdate, m.MinorVersion = proto.Bool(true), proto.Uint32(10) }, Policy{Keys: keys}, UnsupportedMinorVersion},
		"partial":          {func(m *pb.DeltaArchiveManifest) { m.PartialUpdate, m.MinorVersion = proto.Bool(true), proto.Uint32(7) }, Policy{Keys: keys, Device: Device{Timestamp: 5000}}, 0},
		"no version":       {func(m *pb.DeltaArchiveManifest) { m.Partitions[0].Version = nil }, Policy{Keys: keys, Device: Device{Versions: map[string]string{"system": "1"}}}, 0},
		"partial without": {func(m *pb.DeltaArchiveManifest) {
			m.PartialUpdate, m.MinorVersion, m.Partitions[0].Version = proto.Bool(true), proto.Uint32(7), nil
		}, Policy{Keys: keys, Device: Device{Versions: map[string]string{"system": "1"}}}, ManifestParse},
		"no hash":          {func(m *pb.DeltaArchiveManifest) { m.Partitions[0].Operations[0].DataSha256Hash = nil }, Policy{Keys: keys}, OperationHashMissing},
		"no hash, allowed": {func(m *pb.DeltaArchiveManifest) { m.Partitions[0].Operations[0].DataSha256Hash = nil }, Policy{Keys: keys, Unhashed: true}, 0},
		"extent outside": {func(m *pb.DeltaArchiveManifest) {
			m.Partitions[0].Operations[0].DstExtents[0].NumBlocks = proto.Uint64(9)
		}, Policy{Keys: keys}, ManifestParse},
		"source of nothing": {func(m *pb.DeltaArchiveManifest) {
			m.Partitions[0].Operations[0].Type, m.PartialUpdate, m.MinorVersion = pb.InstallOperation_ZUCCHINI.Enum(), proto.Bool(true), proto.Uint32(9)
		}, Policy{Keys: keys}, PayloadMismatchedType},
	} {
		m := manifest(blob)
		if c.change != nil {
			c.change(m)
		}
		b := s.build(t, m, blob)
		err := both(&c.policy, b, readAll(t, b))
		if c.want == 0 && err != nil {
			t.Errorf("%s: expected it to be taken, found %v", name, err)
		}
		if c.want != 0 {
			expectCode(t, name, err, c.want)
		}
	}
}

// Whichever byte of a signed payload changes, it is refused.
func TestEveryByte(t *testing.T) {
	s, keys := newSigner(t)
	blob := bytes.Repeat([]byte("x"), 4096)
	b := s.build(t, manifest(blob), blob)
	p := &Policy{Keys: keys}
	clean := readAll(t, b)
	for i := 0; i < len(b); i++ {
		if at := i - int(clean.BlobOffset()); at > 0 && at < len(blob) && at%100 != 0 {
			continue
		}
		b[i] ^= 0x10
		m, err := payload.Read(bytes.NewReader(b), int64(len(b)), payload.Limits{})
		if err == nil {
			err = both(p, b, m)
		}
		// The framing of signatures, and their padding, are not signed.
		inSignature := i >= int(clean.Size()) && i < int(clean.BlobOffset()) || i >= int(clean.BlobOffset())+len(blob)
		if err == nil && !inSignature {
			t.Errorf("byte %d of %d: expected a refusal, found none", i, len(b))
		}
		b[i] ^= 0x10
	}
}

func TestRead(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Code
	}{{payload.ErrMagic, InvalidMagic}, {payload.ErrVersion, UnsupportedMajorVersion}, {payload.ErrTooLarge, InvalidMetadataSize},
		{payload.ErrTruncated, InvalidMetadataSize}, {payload.ErrManifest, ManifestParse}, {payload.ErrSignatures, ManifestParse}} {
		expectCode(t, c.err.Error(), Read(c.err), c.want)
	}
	if err := Read(io.ErrClosedPipe); err != io.ErrClosedPipe {
		t.Errorf("expected an error of another kind as it is, found %v", err)
	}
	if Read(nil) != nil {
		t.Error("expected nil")
	}
	if text := PayloadTimestamp.String(); text != "kPayloadTimestampError (51)" {
		t.Errorf("expected the client's name and number, found %s", text)
	}
}

func certificate(t testing.TB, public crypto.PublicKey, private crypto.Signer) []byte {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Unix(1, 0)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestParseKeys(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&ec.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	cert := certificate(t, &ec.PublicKey, ec)
	two := append(block("PUBLIC KEY", der), block("CERTIFICATE", cert)...)
	var z bytes.Buffer
	w := zip.NewWriter(&z)
	f, err := w.Create("releasekey.x509.pem")
	if err == nil {
		_, err = f.Write(two)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		in   []byte
		want int
	}{"DER": {der, 1}, "certificate": {cert, 1}, "PEM": {two, 2}, "zip": {z.Bytes(), 2}} {
		keys, err := ParseKeys(c.in)
		if err != nil || len(keys) != c.want || !keys[0].(*ecdsa.PublicKey).Equal(&ec.PublicKey) {
			t.Errorf("%s: expected %d keys, found %v, %v", name, c.want, keys, err)
		}
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, edPrivate, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537}
	smallDER, err := x509.MarshalPKIXPublicKey(small)
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string][]byte{"nothing": nil, "text": []byte("key"), "large": make([]byte, maxKeys+1), "P-224": certificate(t, &p224.PublicKey, p224),
		"ed25519": certificate(t, ed, edPrivate), "small RSA": smallDER, "empty PEM": []byte("-----BEGIN"), "bad PEM": block("PUBLIC KEY", []byte("x")), "bad zip": []byte("PK\x03\x04")} {
		if _, err := ParseKeys(in); !errors.Is(err, ErrKey) {
			t.Errorf("%s: expected ErrKey, found %v", name, err)
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := ParseKeys(b)
		if err == nil && len(keys) == 0 {
			t.Error("expected a key or an error")
		}
	})
}
