package verify

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// The sums are those of the file, however the pieces fall.
func TestSum(t *testing.T) {
	b := build(t, update(), "ECDSA P-256", "RSA-2048")
	m, err := payload.Read(bytes.NewReader(b), 0, payload.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	end := m.BlobOffset() + blobSize
	whole, signed := sha256.Sum256(b), sha256.Sum256(append(bytes.Clone(m.Signed), b[m.BlobOffset():end]...))
	rapid.Check(t, func(t *rapid.T) {
		s, err := NewSum(m)
		if err != nil {
			t.Fatal(err)
		}
		for rest := b[s.Offset():]; len(rest) > 0; rest = b[s.Offset():] {
			n := rapid.IntRange(0, len(rest)).Draw(t, "n")
			s.Write(rest[:n])
			state, err := s.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			if s, err = ResumeSum(m, state); err != nil {
				t.Fatal(err)
			}
		}
		if got := s.whole.Sum(nil); !bytes.Equal(got, whole[:]) {
			t.Fatalf("expected the file's hash %x, found %x", whole, got)
		}
		if got := s.signed.Sum(nil); !bytes.Equal(got, signed[:]) {
			t.Fatalf("expected the hash of what is signed %x, found %x", signed, got)
		}
		if !bytes.Equal(s.signature, b[end:]) {
			t.Fatalf("expected the signature %x, found %x", b[end:], s.signature)
		}
	})
}

func TestSumTee(t *testing.T) {
	b := build(t, update(), "ECDSA P-256")
	r, p := bytes.NewReader(b), Policy{Keys: keysOf(t, "ECDSA P-256")}
	m, err := Read(r, 0, p)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSum(m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.TeeReader(r, s))
	if err != nil || int64(len(got)) != int64(len(b))-m.BlobOffset() {
		t.Errorf("expected the rest, found %d bytes, %v", len(got), err)
	}
	expectCode(t, "tee", Payload(m, s, p), Success)
}

// metadataOf reads without a policy.
func metadataOf(t *testing.T, b []byte) *payload.Metadata {
	t.Helper()
	m, err := payload.Read(bytes.NewReader(b), 0, payload.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// stateAfter is a saved sum of a payload's first n bytes.
func stateAfter(t *testing.T, m *payload.Metadata, b []byte, n int64) []byte {
	t.Helper()
	s, err := NewSum(m)
	if err != nil {
		t.Fatal(err)
	}
	s.Write(b[s.Offset():n])
	state, err := s.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func TestResumeSumRefused(t *testing.T) {
	b := build(t, update(), "ECDSA P-256")
	m := metadataOf(t, b)
	another := update()
	another.MaxTimestamp = proto.Int64(1001)
	other := metadataOf(t, build(t, another, "ECDSA P-256"))
	refused := func(what string, m *payload.Metadata, state []byte) {
		t.Helper()
		if _, err := ResumeSum(m, state); !errors.Is(err, ErrState) {
			t.Errorf("%s: expected %v, found %v", what, ErrState, err)
		}
	}
	state := stateAfter(t, m, b, int64(len(b))-5)
	for n := range state {
		refused(fmt.Sprintf("%d bytes", n), m, state[:n])
	}
	refused("another payload", other, state)
	refused("a byte more", m, append(bytes.Clone(state), 0))
	for what, change := range map[string]func([]byte){
		"before the signature": func(b []byte) { binary.BigEndian.PutUint64(b[33:], uint64(m.BlobOffset())) },
		"another version":      func(b []byte) { b[0]++ },
		"no hash":              func(b []byte) { b[43]++ },
	} {
		bad := bytes.Clone(state)
		change(bad)
		refused(what, m, bad)
	}
	state = stateAfter(t, m, b, m.BlobOffset()+10)
	refused("another payload, early", other, state)
	for _, at := range []uint64{0, uint64(m.BlobOffset()) - 1, 1 << 63, 1<<64 - 1} {
		binary.BigEndian.PutUint64(state[33:], at)
		refused(fmt.Sprintf("at %d", at), m, state)
	}
}

func TestNewSumRefused(t *testing.T) {
	for name, c := range map[string]struct{ off, n uint64 }{
		"large":          {0, maxSignature + 1},
		"beyond numbers": {1<<63 - 100, 1000},
		"far beyond":     {1<<64 - 1, 1000},
	} {
		manifest := update()
		manifest.SignaturesOffset, manifest.SignaturesSize = proto.Uint64(c.off), proto.Uint64(c.n)
		m := &payload.Metadata{Signed: make([]byte, 24), Manifest: manifest}
		_, err := NewSum(m)
		expectCode(t, name, err, DownloadPayloadVerificationError)
	}
}

func TestBlobAndPartition(t *testing.T) {
	u, right, wrong := update().Partitions[0], sha256.Sum256(blob()), sha256.Sum256(nil)
	expectCode(t, "blob", Blob(u, 0, right), Success)
	expectCode(t, "another blob", Blob(u, 0, wrong), DownloadOperationHashMismatch)
	expectCode(t, "partition", Partition(u, right), Success)
	expectCode(t, "another partition", Partition(u, wrong), NewRootfsVerificationError)
	expectCode(t, "old partition of a full update", OldPartition(u, wrong), Success)
	d := delta(update()).Partitions[0]
	expectCode(t, "old partition", OldPartition(d, right), Success)
	expectCode(t, "another old partition", OldPartition(d, wrong), DownloadStateInitializationError)
	u.Operations[0].DataSha256Hash = nil
	expectCode(t, "no hash", Blob(u, 0, wrong), Success)
}

func TestSource(t *testing.T) {
	right, wrong := sha256.Sum256([]byte("right")), sha256.Sum256([]byte("wrong"))
	u := &pb.PartitionUpdate{
		PartitionName:    proto.String("system"),
		OldPartitionInfo: &pb.PartitionInfo{Size: proto.Uint64(blobSize), Hash: right[:]},
		Operations: []*pb.InstallOperation{{Type: pb.InstallOperation_SOURCE_COPY.Enum(), SrcSha256Hash: right[:], SrcExtents: []*pb.Extent{
			{StartBlock: proto.Uint64(10), NumBlocks: proto.Uint64(11)},
			{StartBlock: proto.Uint64(5), NumBlocks: proto.Uint64(0)},
			{StartBlock: proto.Uint64(payload.Hole), NumBlocks: proto.Uint64(2)},
			{StartBlock: proto.Uint64(30), NumBlocks: proto.Uint64(1)},
		}}},
	}
	expectCode(t, "right", Source(u, 0, right, nil), Success)
	for name, c := range map[string]struct {
		old  []byte
		says string
	}{
		"old partition not known": {nil, "compare the old partition's hash"},
		"old partition is right":  {right[:], "see whether its storage fails"},
		"old partition is wrong":  {wrong[:], fmt.Sprintf("found %x): get the update for this build", wrong)},
	} {
		err := Source(u, 0, wrong, c.old)
		expectCode(t, name, err, DownloadStateInitializationError)
		for _, want := range []string{"source blocks 10-20, a hole of 2, 30-30", "10-20, a hole of 2, 30-30", fmt.Sprintf("expected the hash %x, found %x", right, wrong), c.says} {
			if !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("%s: expected %q, found %v", name, want, err)
			}
		}
	}
	u.Operations[0].SrcExtents = manyExtents(40)
	if err := Source(u, 0, wrong, nil); !strings.Contains(fmt.Sprint(err), "30-30, and 24 extents more: expected") {
		t.Errorf("expected 16 extents and the number of the others, found %v", err)
	}
	u.Operations[0].SrcSha256Hash = nil
	expectCode(t, "no hash", Source(u, 0, wrong, nil), Success)
}

func manyExtents(n uint64) (all []*pb.Extent) {
	for i := range n {
		all = append(all, &pb.Extent{StartBlock: proto.Uint64(2 * i), NumBlocks: proto.Uint64(1)})
	}
	return all
}

func TestCodes(t *testing.T) {
	if len(names) != int(UpdateAlreadyInstalled)+1 {
		t.Errorf("expected %d names, found %d", UpdateAlreadyInstalled+1, len(names))
	}
	for c, want := range map[Code]string{
		Success: "kSuccess", GenericError: "kError", FilesystemCopierError: "kFilesystemCopierError", PostinstallRunnerError: "kPostinstallRunnerError",
		PayloadMismatchedType: "kPayloadMismatchedType", InstallDeviceOpenError: "kInstallDeviceOpenError", DownloadTransferError: "kDownloadTransferError",
		PayloadHashMismatchError: "kPayloadHashMismatchError", PayloadSizeMismatchError: "kPayloadSizeMismatchError",
		DownloadPayloadVerificationError: "kDownloadPayloadVerificationError", DownloadNewPartitionInfoError: "kDownloadNewPartitionInfoError",
		DownloadWriteError: "kDownloadWriteError", NewRootfsVerificationError: "kNewRootfsVerificationError",
		SignedDeltaPayloadExpectedError: "kSignedDeltaPayloadExpectedError", DownloadPayloadPubKeyVerificationError: "kDownloadPayloadPubKeyVerificationError",
		DownloadStateInitializationError: "kDownloadStateInitializationError", DownloadInvalidMetadataMagicString: "kDownloadInvalidMetadataMagicString",
		DownloadManifestParseError: "kDownloadManifestParseError", DownloadMetadataSignatureError: "kDownloadMetadataSignatureError",
		DownloadMetadataSignatureVerificationError: "kDownloadMetadataSignatureVerificationError",
		DownloadMetadataSignatureMismatch:          "kDownloadMetadataSignatureMismatch",
		DownloadOperationHashVerificationError:     "kDownloadOperationHashVerificationError",
		DownloadOperationExecutionError:            "kDownloadOperationExecutionError", DownloadOperationHashMismatch: "kDownloadOperationHashMismatch",
		DownloadInvalidMetadataSize: "kDownloadInvalidMetadataSize", DownloadOperationHashMissingError: "kDownloadOperationHashMissingError",
		DownloadMetadataSignatureMissingError: "kDownloadMetadataSignatureMissingError", UnsupportedMajorPayloadVersion: "kUnsupportedMajorPayloadVersion",
		UnsupportedMinorPayloadVersion: "kUnsupportedMinorPayloadVersion", FilesystemVerifierError: "kFilesystemVerifierError", UserCanceled: "kUserCanceled",
		PayloadTimestampError: "kPayloadTimestampError", UpdatedButNotActive: "kUpdatedButNotActive", RollbackNotPossible: "kRollbackNotPossible",
		VerityCalculationError: "kVerityCalculationError", NotEnoughSpace: "kNotEnoughSpace", DeviceCorrupted: "kDeviceCorrupted",
		PostInstallMountError: "kPostInstallMountError", OverlayfsenabledError: "kOverlayfsenabledError", UpdateProcessing: "kUpdateProcessing",
		UpdateAlreadyInstalled: "kUpdateAlreadyInstalled",
		2404:                   "HTTP status 404", 67: "unknown code 67", -1: "unknown code -1", 3000: "unknown code 3000",
	} {
		if got := c.String(); got != want {
			t.Errorf("%d: expected %s, found %s", int(c), want, got)
		}
	}
	if c := CodeOf(fmt.Errorf("install: %w", refuse(NotEnoughSpace, "", "x"))); c != NotEnoughSpace {
		t.Errorf("expected the code of a wrapped error, found %v", c)
	}
	if c := CodeOf(io.EOF); c != GenericError {
		t.Errorf("expected %v for any other error, found %v", GenericError, c)
	}
}

func BenchmarkSum(b *testing.B) {
	data := make([]byte, 16<<20)
	if _, err := rand.Read(data); err != nil {
		b.Fatal(err)
	}
	for name, signed := range map[string]bool{"signed": true, "unsigned": false} {
		b.Run(name, func(b *testing.B) {
			manifest := update()
			if signed {
				manifest.SignaturesOffset, manifest.SignaturesSize = proto.Uint64(1<<62), proto.Uint64(267)
			}
			s, err := NewSum(&payload.Metadata{Signed: make([]byte, 24), Manifest: manifest})
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				s.Write(data)
			}
		})
	}
}
