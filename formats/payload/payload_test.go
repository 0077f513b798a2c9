package payload

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload/pb"
	"cowbird/tools/fixture"
)

// sidecar is what is known of a fixture.
type sidecar struct {
	File                  string
	Size                  int64
	Minor                 uint32
	MetadataSize          int64  `json:"metadata_size"`
	MetadataSignatureSize int64  `json:"metadata_signature_size"`
	MetadataSha256        string `json:"metadata_sha256"`
	BlobOffset            int64  `json:"blob_offset"`
	PublicKey             string `json:"public_key"`
	PartialUpdate         bool   `json:"partial_update"`
	Partitions            []struct {
		Name string
		Ops  map[string]int
		Old  *struct{ Size uint64 }
		New  struct {
			Size   uint64
			Sha256 string
		}
		MergeOps map[string]int `json:"merge_ops"`
	}
}

func fixtures(t testing.TB) (all []sidecar, dir string) {
	t.Helper()
	dir = filepath.Join(fixture.Dir(t), "payload")
	files, err := filepath.Glob(filepath.Join(dir, "*.payload.bin"))
	if err != nil || len(files) == 0 {
		t.Fatalf("expected payloads in %s, found %v, %v", dir, files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(strings.TrimSuffix(f, ".payload.bin") + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var s sidecar
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		all = append(all, s)
	}
	return all, dir
}

// Every fixture is what its sidecar says, and comes out again as it went in.
func TestFixtures(t *testing.T) {
	all, dir := fixtures(t)
	for _, want := range all {
		t.Run(strings.TrimSuffix(want.File, ".payload.bin"), func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(dir, want.File))
			if err != nil {
				t.Fatal(err)
			}
			r := bytes.NewReader(b)
			m, err := Read(r, int64(len(b)), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if m.Size() != want.MetadataSize || m.SignatureSize() != want.MetadataSignatureSize || m.BlobOffset() != want.BlobOffset {
				t.Errorf("expected sizes %d, %d and blobs at %d, found %d, %d and %d", want.MetadataSize, want.MetadataSignatureSize, want.BlobOffset,
					m.Size(), m.SignatureSize(), m.BlobOffset())
			}
			if at := int64(len(b) - r.Len()); at != m.BlobOffset() {
				t.Errorf("expected to have read %d bytes, found %d", m.BlobOffset(), at)
			}
			if h := sha256.Sum256(m.Signed); hex.EncodeToString(h[:]) != want.MetadataSha256 {
				t.Errorf("expected a metadata hash %s, found %x", want.MetadataSha256, h)
			}
			if err := m.Check(); err != nil {
				t.Error(err)
			}
			checkManifest(t, m, want)
			checkAgain(t, m, b)
		})
	}
}

func checkManifest(t *testing.T, m *Metadata, want sidecar) {
	t.Helper()
	if got := m.Manifest; got.GetMinorVersion() != want.Minor || got.GetPartialUpdate() != want.PartialUpdate || len(got.GetPartitions()) != len(want.Partitions) {
		t.Errorf("expected minor %d, partial %v, %d partitions, found %d, %v, %d", want.Minor, want.PartialUpdate, len(want.Partitions),
			got.GetMinorVersion(), got.GetPartialUpdate(), len(got.GetPartitions()))
		return
	}
	if early := m.EarlyTypes(); len(early) > 0 && !strings.HasPrefix(want.File, "hand_") {
		t.Errorf("expected types of minor version %d, found %v", want.Minor, early)
	}
	if inOrder := m.InOrder(); inOrder == strings.HasPrefix(want.File, "hand_shared_blobs") {
		t.Errorf("expected blobs in order, found %v", inOrder)
	}
	for i, p := range m.Manifest.GetPartitions() {
		w := want.Partitions[i]
		if p.GetPartitionName() != w.Name || p.GetNewPartitionInfo().GetSize() != w.New.Size || hex.EncodeToString(p.GetNewPartitionInfo().GetHash()) != w.New.Sha256 {
			t.Errorf("expected %+v, found %s of %d bytes", w, p.GetPartitionName(), p.GetNewPartitionInfo().GetSize())
		}
		count := map[string]int{}
		for _, op := range p.GetOperations() {
			count[op.GetType().String()]++
		}
		merges := map[string]int{}
		for _, op := range p.GetMergeOperations() {
			merges[op.GetType().String()]++
		}
		expectCounts(t, w.Name+": operations", w.Ops, count)
		expectCounts(t, w.Name+": merge operations", w.MergeOps, merges)
	}
}

func expectCounts(t *testing.T, what string, want, got map[string]int) {
	t.Helper()
	if len(want) != len(got) {
		t.Errorf("%s: expected %v, found %v", what, want, got)
	}
	for k, n := range want {
		if got[k] != n {
			t.Errorf("%s: expected %d %s, found %d", what, n, k, got[k])
		}
	}
}

// checkAgain encodes what was decoded.
func checkAgain(t *testing.T, m *Metadata, b []byte) {
	t.Helper()
	signature := b[m.Size():m.BlobOffset()]
	again, err := AppendMetadata(nil, m.Manifest, signature)
	if err != nil || !bytes.Equal(again, b[:m.BlobOffset()]) {
		t.Errorf("expected the same metadata again, found %d bytes for %d, %v", len(again), m.BlobOffset(), err)
	}
	signatures, err := ParseSignatures(AppendSignatures(nil, m.Signatures))
	if err != nil || !slices.EqualFunc(signatures, m.Signatures, func(a, b Signature) bool { return bytes.Equal(a.Data, b.Data) && a.Size == b.Size }) {
		t.Errorf("expected the same signatures again, found %v, %v", signatures, err)
	}
}

// small is a payload of one partition with one operation, to be spoilt.
func small() *pb.DeltaArchiveManifest {
	hash := make([]byte, 32)
	return &pb.DeltaArchiveManifest{
		MinorVersion: proto.Uint32(9), SignaturesOffset: proto.Uint64(4096), SignaturesSize: proto.Uint64(8),
		Partitions: []*pb.PartitionUpdate{{
			PartitionName:    proto.String("system"),
			OldPartitionInfo: &pb.PartitionInfo{Size: proto.Uint64(8 * 4096), Hash: hash},
			NewPartitionInfo: &pb.PartitionInfo{Size: proto.Uint64(8 * 4096), Hash: hash},
			Operations: []*pb.InstallOperation{
				{Type: pb.InstallOperation_REPLACE.Enum(), DataOffset: proto.Uint64(0), DataLength: proto.Uint64(4096), DstExtents: extents(0, 1)},
				{Type: pb.InstallOperation_SOURCE_COPY.Enum(), SrcExtents: extents(2, 1, 4, 2), DstExtents: extents(1, 3)},
			},
			HashTreeDataExtent: extents(0, 6)[0], HashTreeExtent: extents(6, 1)[0],
			FecDataExtent: extents(0, 7)[0], FecExtent: extents(7, 1)[0],
			MergeOperations: []*pb.CowMergeOperation{{Type: pb.CowMergeOperation_COW_XOR.Enum(), SrcExtent: extents(4, 2)[0], DstExtent: extents(1, 1)[0], SrcOffset: proto.Uint32(5)}},
		}},
	}
}

func extents(pairs ...uint64) (e []*pb.Extent) {
	for i := 0; i < len(pairs); i += 2 {
		e = append(e, &pb.Extent{StartBlock: proto.Uint64(pairs[i]), NumBlocks: proto.Uint64(pairs[i+1])})
	}
	return e
}

func encode(t testing.TB, m *pb.DeltaArchiveManifest) []byte {
	t.Helper()
	b, err := AppendMetadata(nil, m, nil)
	if err != nil {
		t.Fatal(err)
	}
	return append(b, make([]byte, 4096+8)...)
}

func TestCheck(t *testing.T) {
	for name, spoil := range map[string]func(*pb.DeltaArchiveManifest, *pb.PartitionUpdate){
		"block size":          func(m *pb.DeltaArchiveManifest, _ *pb.PartitionUpdate) { m.BlockSize = proto.Uint32(4095) },
		"signature outside":   func(m *pb.DeltaArchiveManifest, _ *pb.PartitionUpdate) { m.SignaturesOffset = proto.Uint64(4097) },
		"name of another dir": func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.PartitionName = proto.String("../x") },
		"no name":             func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.PartitionName = proto.String("") },
		"twice the same":      func(m *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { m.Partitions = append(m.Partitions, p) },
		"no new info":         func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.NewPartitionInfo = nil },
		"short hash":          func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.NewPartitionInfo.Hash = make([]byte, 20) },
		"half a block":        func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.OldPartitionInfo.Size = proto.Uint64(2048) },
		"unknown type": func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) {
			p.Operations[0].Type = pb.InstallOperation_MOVE.Enum()
		},
		"no blob": func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.Operations[0].DataLength = nil },
		"blob outside": func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) {
			p.Operations[0].DataOffset = proto.Uint64(1 << 40)
		},
		"blob of a copy":      func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.Operations[1].DataLength = proto.Uint64(1) },
		"source of a replace": func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.Operations[0].SrcExtents = extents(0, 1) },
		"source outside":      func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.Operations[1].SrcExtents = extents(7, 3) },
		"source overflows": func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) {
			p.Operations[1].SrcExtents = extents(Hole-1, 3)
		},
		"destination outside": func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.Operations[1].DstExtents = extents(6, 3) },
		"empty extent":        func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.Operations[0].DstExtents = extents(0, 0) },
		"no destination":      func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.Operations[0].DstExtents = nil },
		"copy of less":        func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.Operations[1].SrcExtents = extents(2, 1) },
		"written twice":       func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.Operations[0].DstExtents = extents(3, 1) },
		"written over verity": func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.Operations[0].DstExtents = extents(6, 1) },
		"length":              func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.Operations[1].SrcLength = proto.Uint64(5) },
		"hash length":         func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.Operations[0].DataSha256Hash = []byte{1} },
		"tree before data":    func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.HashTreeDataExtent = extents(0, 7)[0] },
		"FEC roots":           func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) { p.FecRoots = proto.Uint32(0) },
		"xor source too short": func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) {
			p.MergeOperations[0].SrcExtent = extents(4, 1)[0]
		},
		"xor offset": func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) {
			p.MergeOperations[0].SrcOffset = proto.Uint32(4096)
		},
		"merge outside": func(_ *pb.DeltaArchiveManifest, p *pb.PartitionUpdate) {
			p.MergeOperations[0].DstExtent = extents(9, 1)[0]
		},
	} {
		m := small()
		spoil(m, m.Partitions[0])
		b := encode(t, m)
		got, err := Read(bytes.NewReader(b), int64(len(b)), Limits{})
		if err == nil {
			err = got.Check()
		}
		if !errors.Is(err, ErrManifest) {
			t.Errorf("%s: expected ErrManifest, found %v", name, err)
		}
	}
	b := encode(t, small())
	m, err := Read(bytes.NewReader(b), int64(len(b)), Limits{})
	if err == nil {
		err = m.Check()
	}
	if err != nil {
		t.Errorf("unspoilt: %v", err)
	}
}

func TestReadRefuses(t *testing.T) {
	whole := encode(t, small())
	change := func(off int, b ...byte) []byte {
		c := slices.Clone(whole)
		copy(c[off:], b)
		return c
	}
	for name, c := range map[string]struct {
		in   []byte
		want error
	}{
		"empty":          {nil, ErrTruncated},
		"short header":   {whole[:20], ErrTruncated},
		"magic":          {change(0, 'c'), ErrMagic},
		"text":           {[]byte("PK\x03\x04 but short"), ErrMagic},
		"version":        {change(11, 1), ErrVersion},
		"huge manifest":  {change(12, 0xff, 0xff), ErrTooLarge},
		"large manifest": {change(14, 1), ErrTruncated},
		"signature":      {change(20, 1), ErrTruncated},
		"cut":            {whole[:30], ErrTruncated},
		"no protobuf":    {change(24, 0xff), ErrManifest},
	} {
		if _, err := Read(bytes.NewReader(c.in), int64(len(c.in)), Limits{}); !errors.Is(err, c.want) {
			t.Errorf("%s: expected %v, found %v", name, c.want, err)
		}
	}
	// Of a stream of unknown length the limits hold.
	if _, err := Read(bytes.NewReader(change(14, 1)), 0, Limits{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("expected ErrTooLarge, found %v", err)
	}
	if _, err := Read(bytes.NewReader(change(20, 1)), 0, Limits{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("expected ErrTooLarge, found %v", err)
	}
	if _, err := Read(bytes.NewReader(whole), 0, Limits{Manifest: 10}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("expected ErrTooLarge, found %v", err)
	}
}

// What a newer producer adds is still there when the manifest is written again.
func TestUnknownFields(t *testing.T) {
	b := encode(t, small())
	b = b[:len(b)-4096-8]
	b = append(b, 0xfa, 0x3e, 3, 'n', 'e', 'w') // field 1007
	b[19] += 6
	m, err := Read(bytes.NewReader(b), 0, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	again, err := AppendMetadata(nil, m.Manifest, nil)
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("expected\n%x\nfound\n%x, %v", b, again, err)
	}
}

func TestParseSignatures(t *testing.T) {
	both := []Signature{{[]byte("abc\x00"), 3}, {[]byte("de"), 2}}
	got, err := ParseSignatures(AppendSignatures(nil, both))
	if err != nil || len(got) != 2 || string(got[0].Bytes()) != "abc" || string(got[1].Bytes()) != "de" {
		t.Errorf("expected both, found %v, %v", got, err)
	}
	for _, bad := range [][]byte{{0xff}, {0x0a, 5, 0x1d, 9, 0, 0, 0}} {
		if _, err := ParseSignatures(bad); !errors.Is(err, ErrSignatures) {
			t.Errorf("%x: expected ErrSignatures, found %v", bad, err)
		}
	}
	// Without a size, all of it is the signature.
	if got, err := ParseSignatures([]byte{0x0a, 4, 0x12, 2, 'x', 'y'}); err != nil || string(got[0].Bytes()) != "xy" {
		t.Errorf("expected xy, found %v, %v", got, err)
	}
}

func TestProperties(t *testing.T) {
	hash := sha256.Sum256([]byte("x"))
	p := &Properties{hash[:], 5, hash[:], 3, map[string]string{"POWERWASH": "1", "A": "b=c"}}
	b := p.Append(nil)
	got, err := ParseProperties(b)
	if err != nil || !bytes.Equal(got.Append(nil), b) || got.More["A"] != "b=c" || got.ID() == "" {
		t.Errorf("expected\n%s\nfound\n%v, %v", b, got, err)
	}
	if none, err := ParseProperties([]byte("\n A=1 \r\n")); err != nil || none.More["A"] != "1" || none.ID() != "" {
		t.Errorf("expected A, found %v, %v", none, err)
	}
	for _, bad := range []string{"A", "=1", "A=1\nA=2", "FILE_SIZE=x", "FILE_SIZE=-1", "FILE_HASH=AAAA", "METADATA_HASH=!", strings.Repeat("x", maxProperties+1)} {
		if _, err := ParseProperties([]byte(bad)); !errors.Is(err, ErrProperties) {
			t.Errorf("%.20q: expected ErrProperties, found %v", bad, err)
		}
	}
}

func makeZip(t testing.TB, method uint16, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, n := range names {
		w, err := z.CreateHeader(&zip.FileHeader{Name: n, Method: method})
		if err != nil {
			t.Fatal(err)
		}
		content := "FILE_SIZE=30\n"
		if strings.HasSuffix(n, EntryName) {
			content = strings.Repeat(n[:1], 30)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What a zip says of itself is taken from the message, or else the text; both forms
// mean the same.
func TestPackageMetadata(t *testing.T) {
	m := &pb.OtaMetadata{Type: pb.OtaMetadata_AB, Wipe: true, SplDowngrade: true, RequiredCache: 7, PropertyFiles: map[string]string{"ota-property-files": "a:1:2"},
		Precondition:  &pb.DeviceState{Device: []string{"one", "two"}, Build: []string{"x/1"}, BuildIncremental: "1"},
		Postcondition: &pb.DeviceState{Build: []string{"x/2"}, BuildIncremental: "2", Timestamp: 99, SdkLevel: "36", SecurityPatchLevel: "2026-01-01"}}
	text := AppendMetadataText(nil, m)
	for _, want := range []string{"ota-type=AB\n", "ota-wipe=yes\n", "pre-device=one|two\n", "post-timestamp=99\n", "ota-property-files=a:1:2\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("expected %q, found %q", want, text)
		}
	}
	got, err := ParseMetadataText(text)
	m.PropertyFiles = nil // keys that are not known are passed over
	if err != nil || !proto.Equal(got, m) {
		t.Errorf("expected %v, found %v, %v", m, got, err)
	}
	message, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	care, err := proto.Marshal(&pb.CareMap{Partitions: []*pb.CareMap_PartitionInfo{{Name: "system", Ranges: "2,0,5"}}})
	if err != nil {
		t.Fatal(err)
	}
	other := AppendMetadataText(nil, &pb.OtaMetadata{Type: pb.OtaMetadata_BLOCK})
	for what, c := range map[string]struct {
		entries map[string][]byte
		want    *pb.OtaMetadata
		care    []byte
		err     error
	}{
		"neither":        {},
		"text":           {entries: map[string][]byte{MetadataTextName: text}, want: m},
		"message":        {entries: map[string][]byte{MetadataName: message, MetadataTextName: other}, want: m},
		"care map":       {entries: map[string][]byte{CareMapName: care}, care: care},
		"bad text":       {entries: map[string][]byte{MetadataTextName: []byte("ota-type")}, err: ErrPackage},
		"bad number":     {entries: map[string][]byte{MetadataTextName: []byte("post-timestamp=x")}, err: ErrPackage},
		"bad message":    {entries: map[string][]byte{MetadataName: {0x0a, 0xff}}, err: ErrPackage},
		"bad care map":   {entries: map[string][]byte{CareMapName: {0x0a, 0xff}}, err: ErrCareMap},
		"large care map": {entries: map[string][]byte{CareMapName: make([]byte, maxEntry+1)}, err: ErrZip},
	} {
		t.Run(what, func(t *testing.T) {
			b := zipWith(t, c.entries)
			p, err := InZip(bytes.NewReader(b), int64(len(b)), "")
			if c.err != nil || err != nil {
				if !errors.Is(err, c.err) {
					t.Errorf("expected %v, found %v", c.err, err)
				}
				return
			}
			if (p.Metadata == nil) != (c.want == nil) || !proto.Equal(p.Metadata, c.want) || !bytes.Equal(p.CareMap, c.care) {
				t.Errorf("expected %v and %x, found %v and %x", c.want, c.care, p.Metadata, p.CareMap)
			}
		})
	}
}

// zipWith is an OTA zip with more entries.
func zipWith(t *testing.T, entries map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.CreateHeader(&zip.FileHeader{Name: EntryName})
	if err == nil {
		_, err = w.Write(make([]byte, 30))
	}
	for name, data := range entries {
		if err == nil {
			w, err = z.Create(name)
		}
		if err == nil {
			_, err = w.Write(data)
		}
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestInZip(t *testing.T) {
	b := makeZip(t, zip.Store, "other", EntryName, PropertiesName, "secondary/"+EntryName)
	for _, prefix := range []string{"", "secondary/"} {
		p, err := InZip(bytes.NewReader(b), int64(len(b)), prefix)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Repeat((prefix + EntryName)[:1], 30)
		if got := string(b[p.Payload.Offset:][:p.Payload.Size]); got != want {
			t.Errorf("%q: expected %s, found %s", prefix, want, got)
		}
		if has := p.Properties != nil; has != (prefix == "") {
			t.Errorf("%q: expected properties of the first only, found %v", prefix, p.Properties)
		}
	}
	if !IsZip(b) || IsZip([]byte(Magic)) {
		t.Error("expected a zip to be one, and a payload not to be")
	}
	for _, bad := range [][]byte{makeZip(t, zip.Deflate, EntryName), makeZip(t, zip.Store, "other"), b[:40]} {
		if _, err := InZip(bytes.NewReader(bad), int64(len(bad)), ""); !errors.Is(err, ErrZip) {
			t.Errorf("expected ErrZip, found %v", err)
		}
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add(encode(f, small()))
	f.Add(encode(f, &pb.DeltaArchiveManifest{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Read(bytes.NewReader(b), int64(len(b)), Limits{})
		if err != nil {
			return
		}
		if m.Check() != nil {
			return
		}
		for _, p := range m.Manifest.GetPartitions() {
			for _, op := range p.GetOperations() {
				if end := uint64(m.BlobOffset()) + op.GetDataOffset() + op.GetDataLength(); HasBlob(op.GetType()) && end > uint64(len(b)) {
					t.Fatalf("expected a blob within %d bytes, found its end at %d", len(b), end)
				}
				if n := Blocks(op.GetDstExtents()) * uint64(m.Manifest.GetBlockSize()); n > p.GetNewPartitionInfo().GetSize() && !hasHole(op.GetDstExtents()) {
					t.Fatalf("expected a destination within the partition, found %d bytes", n)
				}
			}
		}
		again, err := AppendMetadata(nil, m.Manifest, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Read(bytes.NewReader(again), 0, Limits{}); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
	})
}

func hasHole(extents []*pb.Extent) bool {
	return slices.ContainsFunc(extents, func(e *pb.Extent) bool { return e.GetStartBlock() == Hole })
}

func FuzzProperties(f *testing.F) {
	f.Add([]byte("FILE_SIZE=3\nX=y\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseProperties(b)
		if err != nil {
			return
		}
		if _, err := ParseProperties(p.Append(nil)); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
	})
}

func TestCareMap(t *testing.T) {
	b, err := proto.Marshal(&pb.CareMap{Partitions: []*pb.CareMap_PartitionInfo{
		{Name: "system", Ranges: "4,0,1000,1200,1201", Id: "ro.system.build.fingerprint", Fingerprint: "a/b/c"},
		{Name: "vendor", Ranges: "2,0,1"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	all, err := ParseCareMap(b)
	if err != nil || len(all) != 2 || all[0].Name != "system" || all[0].Fingerprint != "a/b/c" ||
		!slices.Equal(all[0].Ranges, []BlockRange{{0, 1000}, {1200, 1201}}) || FormatRanges(all[0].Ranges) != "4,0,1000,1200,1201" {
		t.Errorf("found %+v, %v", all, err)
	}
	for _, bad := range []string{"", "2", "0", "2,1", "2,1,1", "2,2,1", "2,0,1,2", "3,0,1,2", "4,0,2,1,3", "2,-1,1", "2,0,1,", "x", "2,0,18446744073709551616"} {
		b, err := proto.Marshal(&pb.CareMap{Partitions: []*pb.CareMap_PartitionInfo{{Name: "x", Ranges: bad}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseCareMap(b); !errors.Is(err, ErrCareMap) {
			t.Errorf("%q: expected ErrCareMap, found %v", bad, err)
		}
	}
	for _, bad := range [][]byte{{0x0a}, {0x0a, 0}} {
		if _, err := ParseCareMap(bad); !errors.Is(err, ErrCareMap) {
			t.Errorf("%x: expected ErrCareMap, found %v", bad, err)
		}
	}
}
