package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"io"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// signers are made once: RSA keys take their time.
var signers = sync.OnceValue(func() map[string]crypto.Signer {
	all := map[string]crypto.Signer{}
	for _, bits := range []int{2048, 3072, 4096} {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			panic(err)
		}
		all[map[int]string{2048: "RSA-2048", 3072: "RSA-3072", 4096: "RSA-4096"}[bits]] = k
	}
	for name, c := range map[string]elliptic.Curve{"ECDSA P-256": elliptic.P256(), "ECDSA P-384": elliptic.P384(), "other": elliptic.P256()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			panic(err)
		}
		all[name] = k
	}
	return all
})

func publicPEM(t testing.TB, s crypto.Signer) []byte {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b})
}

func keysOf(t testing.TB, names ...string) Keys {
	t.Helper()
	var all []byte
	for _, n := range names {
		all = append(all, publicPEM(t, signers()[n])...)
	}
	keys, err := ParseKeys(all)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// signature pads as producers do: to the most that signatures of the key have.
func signature(t testing.TB, s crypto.Signer, b []byte) payload.Signature {
	t.Helper()
	digest := sha256.Sum256(b)
	sig, err := s.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	most := map[int]int{256: 72, 384: 104}
	n := len(sig)
	if k, ok := s.Public().(*ecdsa.PublicKey); ok {
		n = most[k.Params().BitSize]
	}
	return payload.Signature{Data: append(sig, make([]byte, n-len(sig))...), Size: len(sig)}
}

func signatures(t testing.TB, b []byte, by []string) []byte {
	t.Helper()
	var all []payload.Signature
	for _, name := range by {
		all = append(all, signature(t, signers()[name], b))
	}
	return payload.AppendSignatures(nil, all)
}

const blobSize = 4096

// update is a full one of one partition with one blob, to be changed.
func update() *pb.DeltaArchiveManifest {
	hash := sha256.Sum256(blob())
	return &pb.DeltaArchiveManifest{
		MaxTimestamp: proto.Int64(1000), SecurityPatchLevel: proto.String("2024-11-01"),
		Partitions: []*pb.PartitionUpdate{{
			PartitionName:    proto.String("system"),
			NewPartitionInfo: &pb.PartitionInfo{Size: proto.Uint64(blobSize), Hash: hash[:]},
			Operations: []*pb.InstallOperation{{
				Type: pb.InstallOperation_REPLACE.Enum(), DataOffset: proto.Uint64(0), DataLength: proto.Uint64(blobSize), DataSha256Hash: hash[:],
				DstExtents: []*pb.Extent{{StartBlock: proto.Uint64(0), NumBlocks: proto.Uint64(1)}},
			}},
		}},
	}
}

func blob() []byte { return bytes.Repeat([]byte("cowbird\n"), blobSize/8) }

// delta makes a delta of an update.
func delta(m *pb.DeltaArchiveManifest) *pb.DeltaArchiveManifest {
	m.MinorVersion = proto.Uint32(9)
	m.Partitions[0].OldPartitionInfo = proto.CloneOf(m.Partitions[0].NewPartitionInfo)
	return m
}

// build makes a payload, signed by some keys; none: unsigned.
func build(t testing.TB, manifest *pb.DeltaArchiveManifest, by ...string) []byte {
	t.Helper()
	var room []byte
	if len(by) > 0 {
		room = signatures(t, nil, by)
		manifest.SignaturesOffset, manifest.SignaturesSize = proto.Uint64(blobSize), proto.Uint64(uint64(len(room)))
	}
	signed, err := payload.AppendMetadata(nil, manifest, room)
	if err != nil {
		t.Fatal(err)
	}
	signed = signed[:len(signed)-len(room)]
	if len(by) == 0 {
		return append(signed, blob()...)
	}
	b := append(bytes.Clone(signed), signatures(t, signed, by)...)
	b = append(b, blob()...)
	return append(b, signatures(t, append(signed, blob()...), by)...)
}

func properties(b []byte, m *payload.Metadata) *payload.Properties {
	whole, signed := sha256.Sum256(b), sha256.Sum256(m.Signed)
	return &payload.Properties{FileHash: whole[:], FileSize: int64(len(b)), MetadataHash: signed[:], MetadataSize: m.Size()}
}

// install goes through all checks of a payload as an installer does, with another
// process for each piece. sizes of b are not known beforehand.
func install(t testing.TB, b []byte, p Policy, piece int) error {
	t.Helper()
	r := bytes.NewReader(b)
	m, err := Read(r, 0, p)
	if err != nil {
		return err
	}
	sum, err := NewSum(m)
	if err != nil {
		return err
	}
	blobs := b[sum.Offset():]
	for _, u := range m.Manifest.GetPartitions() {
		for i, op := range u.GetOperations() {
			from, n := op.GetDataOffset(), op.GetDataLength()
			if n == 0 {
				continue
			}
			if from+n > uint64(len(blobs)) {
				return io.ErrUnexpectedEOF
			}
			if err := Blob(u, i, sha256.Sum256(blobs[from:from+n])); err != nil {
				return err
			}
		}
	}
	for len(blobs) > 0 {
		n := min(piece, len(blobs))
		if _, err := sum.Write(blobs[:n]); err != nil {
			t.Fatal(err)
		}
		blobs = blobs[n:]
		sum = again(t, m, sum)
	}
	return Payload(m, sum, p)
}

func again(t testing.TB, m *payload.Metadata, s *Sum) *Sum {
	t.Helper()
	state, err := s.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	s, err = ResumeSum(m, state)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// expectCode also wants an error to say what a reader needs.
func expectCode(t testing.TB, what string, err error, want Code) {
	t.Helper()
	if got := CodeOf(err); got != want {
		t.Errorf("%s: expected %v, found %v", what, want, err)
		return
	}
	if err == nil {
		return
	}
	if text := err.Error(); !strings.HasPrefix(text, want.String()+": ") || !strings.Contains(text, "; ") {
		t.Errorf("%s: expected the code, the reason and what to do next, found %q", what, text)
	}
}
