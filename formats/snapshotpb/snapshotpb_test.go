package snapshotpb

import (
	"bytes"
	"errors"
	"math"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"cowbird/tools/fixture"
)

// field is one field on the wire: a uint64, int or bool as a varint, a string as bytes.
type field struct {
	number protowire.Number
	value  any
}

func wire(fields ...field) (b []byte) {
	for _, f := range fields {
		switch v := f.value.(type) {
		case int:
			b = protowire.AppendVarint(protowire.AppendTag(b, f.number, protowire.VarintType), uint64(v))
		case string:
			b = protowire.AppendString(protowire.AppendTag(b, f.number, protowire.BytesType), v)
		}
	}
	return b
}

// The numbers of the tables, one by one, against bytes that are made without them.
func TestFieldNumbers(t *testing.T) {
	for _, c := range []struct {
		name string
		b    []byte
		want proto.Message
	}{
		{"update", wire(field{1, 3}, field{2, 10}, field{3, 11}, field{4, 12}, field{5, 1}, field{6, 2}, field{7, 20}, field{8, "print"},
			field{9, 1}, field{10, 1}, field{11, 1}, field{12, 1}, field{13, 32}, field{14, 8}, field{15, 1 << 20}, field{16, 3}, field{17, 1}, field{18, 1}),
			&SnapshotUpdateStatus{State: UpdateState_Merging, SectorsAllocated: 10, TotalSectors: 11, MetadataSectors: 12, UsingSnapuserd: true,
				MergePhase: MergePhase_SECOND_PHASE, MergeFailureCode: MergeFailureCode_WrongMergeCountConsistencyCheck, SourceBuildFingerprint: "print",
				UserspaceSnapshots: true, IoUringEnabled: true, LegacySnapuserd: true, ODirect: true, CowOpMergeSize: 32, NumWorkerThreads: 8,
				VerifyBlockSize: 1 << 20, NumVerificationThreads: 3, SkipVerification: true, UblkSnapshotsEnabled: true}},
		{"snapshot", wire(field{1, "system_b"}, field{2, 1}, field{3, 30}, field{4, 40}, field{5, 50}, field{6, 60}, field{7, 70}, field{8, 80}, field{9, 1},
			field{10, 100}, field{11, "lz4"}, field{12, 120}, field{13, 1}, field{14, 1}, field{15, 150}, field{16, 65536}, field{17, 128}, field{19, 190}, field{20, 3}),
			&SnapshotStatus{Name: "system_b", State: SnapshotState_CREATED, DeviceSize: 30, SnapshotSize: 40, CowPartitionSize: 50, CowFileSize: 60,
				SectorsAllocated: 70, MetadataSectors: 80, UsingSnapuserd: true, OldPartitionSize: 100, CompressionAlgorithm: "lz4", EstimatedCowSize: 120,
				EnableThreading: true, BatchedWrites: true, EstimatedOpsBufferSize: 150, CompressionFactor: 65536, ReadAheadSize: 128, VerifyBlockSize: 190, NumVerifyThreads: 3}},
		{"report", wire(field{1, 6}, field{2, 2}, field{3, 30}, field{4, 1}, field{5, 50}, field{6, 60}, field{7, 70}, field{8, 80}, field{9, 21}, field{10, "p"},
			field{11, 1}, field{12, 1}, field{13, 1}, field{14, 140}),
			&SnapshotMergeReport{State: UpdateState_MergeFailed, ResumeCount: 2, CowFileSize: 30, CompressionEnabled: true, TotalCowSizeBytes: 50,
				EstimatedCowSizeBytes: 60, BootCompleteTimeMs: 70, BootCompleteToMergeStartTimeMs: 80, MergeFailureCode: MergeFailureCode_IncorrectMergePhase,
				SourceBuildFingerprint: "p", UserspaceSnapshotsUsed: true, XorCompressionUsed: true, IouringUsed: true, EstimatedOpCountMax: 140}},
		{"hashes", wire(field{1, "system"}, field{2, "salt"}, field{3, "\xff\x00"}, field{3, "x"}),
			&VerityHash{PartitionName: "system", Salt: "salt", BlockHash: [][]byte{{0xff, 0}, []byte("x")}}},
	} {
		got := c.want.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(c.b, got); err != nil || !proto.Equal(got, c.want) {
			t.Errorf("%s: expected %v, found %v, %v", c.name, c.want, got, err)
		}
		if again, err := Marshal(c.want); err != nil || !bytes.Equal(again, c.b) {
			t.Errorf("%s: expected the bytes\n%x, found\n%x, %v", c.name, c.b, again, err)
		}
		if n := c.want.ProtoReflect().Descriptor().Fields().Len(); n != populated(c.want) {
			t.Errorf("%s: expected all %d fields to be tested, found %d", c.name, n, populated(c.want))
		}
	}
}

func populated(m proto.Message) (n int) {
	m.ProtoReflect().Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool { n++; return true })
	return n
}

// Sizes use all 64 bits, the count of resumptions is signed.
func TestExtremes(t *testing.T) {
	for _, want := range []proto.Message{
		&SnapshotStatus{Name: "a", DeviceSize: math.MaxUint64, ReadAheadSize: math.MaxUint32},
		&SnapshotMergeReport{ResumeCount: math.MinInt32, BootCompleteTimeMs: math.MaxUint32},
	} {
		b, err := Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got := want.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(b, got); err != nil || !proto.Equal(got, want) {
			t.Errorf("expected %v, found %v, %v", want, got, err)
		}
	}
}

func TestParseUpdate(t *testing.T) {
	for text, want := range map[string]UpdateState{
		"": UpdateState_None, "none": UpdateState_None, "initiated": UpdateState_Initiated, "unverified": UpdateState_Unverified,
		"merging": UpdateState_Merging, "merge-completed": UpdateState_MergeCompleted, "merge-needs-reboot": UpdateState_MergeNeedsReboot,
		"merge-failed": UpdateState_MergeFailed, "cancelled": UpdateState_Cancelled,
	} {
		for _, b := range []string{text, strings.TrimPrefix(text+"\n", "\n")} {
			if got, err := ParseUpdate([]byte(b)); err != nil || got.GetState() != want {
				t.Errorf("%q: expected %v, found %v, %v", b, want, got, err)
			}
		}
	}
	for _, bad := range []string{"None", "merging\n\n", " merging", "merge-", "\x08", "\x42\x7fshort", "\x42\x01\xff"} {
		if got, err := ParseUpdate([]byte(bad)); !errors.Is(err, ErrMessage) || got != nil {
			t.Errorf("%q: expected %v, found %v, %v", bad, ErrMessage, got, err)
		}
	}
	// SNM-011: with MergeFailed comes a code.
	failed, err := ParseUpdate(wire(field{1, 6}, field{7, 8}))
	if err != nil || failed.State != UpdateState_MergeFailed || failed.MergeFailureCode != MergeFailureCode_WriteStatus {
		t.Errorf("expected a failed merge with code 8, found %v, %v", failed, err)
	}
}

// What is not known, a field or an enum's value, comes out as it came in.
func TestUnknownSurvives(t *testing.T) {
	in := wire(field{1, 99}, field{8, "p"}, field{500, 7}, field{501, "more"})
	m, err := ParseUpdate(in)
	if err != nil || m.State != 99 {
		t.Fatalf("expected state 99, found %v, %v", m, err)
	}
	m.NumWorkerThreads = 2
	out, err := Marshal(m)
	want := wire(field{1, 99}, field{8, "p"}, field{14, 2}, field{500, 7}, field{501, "more"})
	if err != nil || !bytes.Equal(out, want) {
		t.Errorf("expected\n%x, found\n%x, %v", want, out, err)
	}
	status, err := ParseStatus(wire(field{1, "a"}, field{18, 5}))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := Marshal(status); err != nil || !bytes.Equal(out, wire(field{1, "a"}, field{18, 5})) {
		t.Errorf("expected the reserved field to stay, found %x, %v", out, err)
	}
}

func TestRefused(t *testing.T) {
	if _, err := ParseStatus(nil); !errors.Is(err, ErrMessage) {
		t.Errorf("expected a status without name to be refused, found %v", err)
	}
	if _, err := ParseReport([]byte("x")); !errors.Is(err, ErrMessage) {
		t.Errorf("expected %v, found %v", ErrMessage, err)
	}
	if r, err := ParseReport(nil); err != nil || r.GetResumeCount() != 0 {
		t.Errorf("expected an empty report, found %v, %v", r, err)
	}
	large := wire(field{8, strings.Repeat("x", MaxFile)})
	if _, err := ParseUpdate(large); !errors.Is(err, ErrTooLarge) {
		t.Errorf("expected %v, found %v", ErrTooLarge, err)
	}
	if _, err := Marshal(&SnapshotStatus{Name: "\xff"}); !errors.Is(err, ErrMessage) {
		t.Errorf("expected a name that is not UTF-8 to be refused, found %v", err)
	}
}

// protoc, which reads the same file but shares no code, makes the same bytes of text.
func TestProtoc(t *testing.T) {
	protoc, err := exec.LookPath("protoc")
	if err != nil {
		fixture.Missing(t, "protoc is not installed (Debian: protobuf-compiler)")
	}
	cmd := exec.Command(protoc, "--encode=android.snapshot.SnapshotUpdateStatus", "snapshot.proto")
	cmd.Stdin = strings.NewReader(`state: Unverified using_snapuserd: true source_build_fingerprint: "a/b:1" userspace_snapshots: true ublk_snapshots_enabled: true`)
	b, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	want := &SnapshotUpdateStatus{State: UpdateState_Unverified, UsingSnapuserd: true, SourceBuildFingerprint: "a/b:1", UserspaceSnapshots: true, UblkSnapshotsEnabled: true}
	if got, err := ParseUpdate(b); err != nil || !proto.Equal(got, want) {
		t.Errorf("expected %v, found %v, %v", want, got, err)
	}
	if out, err := Marshal(want); err != nil || !bytes.Equal(out, b) {
		t.Errorf("expected\n%x, found\n%x, %v", b, out, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("merge-completed\n"))
	f.Add([]byte("initiated"))
	f.Add(wire(field{1, 3}, field{8, "fingerprint"}, field{500, 1}))
	f.Add(wire(field{1, "system_b"}, field{2, 1}, field{3, 1 << 30}, field{11, "lz4"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := ParseUpdate(b); err == nil {
			again(t, m)
		}
		if m, err := ParseStatus(b); err == nil {
			again(t, m)
		}
		if m, err := ParseReport(b); err == nil {
			again(t, m)
		}
	})
}

func again(t *testing.T, m proto.Message) {
	t.Helper()
	b, err := Marshal(m)
	if err != nil {
		t.Fatalf("%v: %v", m, err)
	}
	got := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(b, got); err != nil || !proto.Equal(got, m) {
		t.Fatalf("expected %v, found %v, %v", m, got, err)
	}
}
