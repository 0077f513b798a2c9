package apply

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/tools/fixture"
)

// sample is a payload of the fixtures.
type sample struct {
	name       string
	file       string
	Partitions []struct {
		Name string
		Old  *struct{ File string }
		New  struct {
			Size   int64
			Sha256 string
		}
	}
}

// withRaces are the payloads that go through the race detector, which takes long.
var withRaces = []string{"delta_m8_zucchini_arm64_none", "delta_partial_multi", "hand_shared_blobs", "delta_lz4_fast"}

func samples(t testing.TB) (all []sample) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(fixture.Dir(t), "payload", "*.payload.bin"))
	if err != nil || len(files) == 0 {
		t.Fatalf("expected payloads, found %v, %v", files, err)
	}
	for _, f := range files {
		s := sample{name: strings.TrimSuffix(filepath.Base(f), ".payload.bin"), file: f}
		if raceDetector && !strings.HasPrefix(s.name, "tiny_") && !slices.Contains(withRaces, s.name) {
			continue
		}
		b, err := os.ReadFile(strings.TrimSuffix(f, ".payload.bin") + ".json")
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

// unpackOld makes a folder with the old partitions.
func (s *sample) unpackOld(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range s.Partitions {
		if p.Old == nil {
			continue
		}
		in, err := os.Open(filepath.Join(filepath.Dir(s.file), p.Old.File))
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(in)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(z)
		if err = errors.Join(err, in.Close(), os.WriteFile(filepath.Join(dir, p.Name+".img"), b, 0o400)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (s *sample) read(t testing.TB) ([]byte, *payload.Metadata) {
	t.Helper()
	b, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	m, err := payload.Read(bytes.NewReader(b), int64(len(b)), payload.Limits{})
	if err == nil {
		err = m.Check()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b, m
}

// Every payload of the fixtures gives the partitions that its sidecar tells of.
func TestImagesFixtures(t *testing.T) {
	for _, s := range samples(t) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b, m := s.read(t)
			out := t.TempDir()
			var done, total atomic.Int64
			err := Images(t.Context(), ImageOptions{Metadata: m, Blobs: BlobsAt(m, bytes.NewReader(b)), Old: s.unpackOld(t), Out: out, Memory: 64 << 20,
				OnProgress: func(d, all int64) { done.Add(1); total.Store(all) }})
			if err != nil {
				t.Fatal(err)
			}
			if done.Load() == 0 || total.Load() == 0 {
				t.Errorf("expected progress, found %d calls, %d bytes in all", done.Load(), total.Load())
			}
			for _, p := range s.Partitions {
				got, err := os.ReadFile(filepath.Join(out, p.Name+".img"))
				if err != nil {
					t.Error(err)
					continue
				}
				if h := sha256.Sum256(got); hex.EncodeToString(h[:]) != p.New.Sha256 || int64(len(got)) != p.New.Size {
					t.Errorf("%s: expected %d bytes with SHA-256 %s, found %d, %x", p.Name, p.New.Size, p.New.Sha256, len(got), h)
				}
			}
		})
	}
}

func onlyPartition(name string) func(string) bool { return func(n string) bool { return n == name } }

func find(t testing.TB, name string) sample {
	t.Helper()
	all := samples(t)
	i := slices.IndexFunc(all, func(s sample) bool { return s.name == name })
	if i < 0 {
		t.Fatalf("expected a payload %s", name)
	}
	return all[i]
}

// A partition alone needs only its own old one, and nothing else is made.
func TestOnePartition(t *testing.T) {
	s := find(t, "delta_partial_multi")
	b, m := s.read(t)
	old, out := s.unpackOld(t), t.TempDir()
	if err := os.Remove(filepath.Join(old, "vendor.img")); err != nil {
		t.Fatal(err)
	}
	o := ImageOptions{Metadata: m, Blobs: BlobsAt(m, bytes.NewReader(b)), Old: old, Out: out, Partition: onlyPartition("boot")}
	if err := Images(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if names, err := filepath.Glob(filepath.Join(out, "*")); err != nil || len(names) != 1 {
		t.Errorf("expected boot.img alone, found %v, %v", names, err)
	}
	o.Partition = nil
	if err := Images(t.Context(), o); !errors.Is(err, ErrSource) || !strings.Contains(err.Error(), "vendor") {
		t.Errorf("without an old partition: expected ErrSource, found %v", err)
	}
	o.Old = ""
	if err := Images(t.Context(), o); !errors.Is(err, ErrSource) {
		t.Errorf("without old partitions: expected ErrSource, found %v", err)
	}
}

// Nothing is made of what is damaged, wherever that is, and what was there stays.
func TestDamaged(t *testing.T) {
	s := find(t, "delta_partial_multi")
	b, m := s.read(t)
	old := s.unpackOld(t)
	for name, c := range map[string]struct {
		spoil func(payload, old []byte)
		want  error
	}{
		"blob":   {func(b, _ []byte) { b[m.BlobOffset()+m.Size()] ^= 1 }, ErrBlob},
		"source": {func(_, old []byte) { old[len(old)/2] ^= 1 }, ErrSource},
	} {
		t.Run(name, func(t *testing.T) {
			dir, out := t.TempDir(), t.TempDir()
			whole, system := slices.Clone(b), mustRead(t, filepath.Join(old, "system.img"))
			c.spoil(whole, system)
			before := []byte("before")
			if err := errors.Join(os.WriteFile(filepath.Join(dir, "system.img"), system, 0o600), os.WriteFile(filepath.Join(out, "system.img"), before, 0o600)); err != nil {
				t.Fatal(err)
			}
			o := ImageOptions{Metadata: m, Blobs: BlobsAt(m, bytes.NewReader(whole)), Old: dir, Out: out, Partition: onlyPartition("system")}
			if err := Images(t.Context(), o); !errors.Is(err, c.want) {
				t.Errorf("expected %v, found %v", c.want, err)
			}
			if names, _ := filepath.Glob(filepath.Join(out, "*")); len(names) != 1 || !bytes.Equal(mustRead(t, names[0]), before) {
				t.Errorf("expected the file as it was before and nothing else, found %v", names)
			}
		})
	}
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestExtents(t *testing.T) {
	content := make([]byte, 8*4096)
	for i := range content {
		content[i] = byte(i / 4096)
	}
	r := newExtentReader(bytes.NewReader(content), extentList(5, 2, payload.Hole, 1, 1, 1), 4096)
	got := make([]byte, r.size)
	if n, err := r.ReadAt(got, 0); n != 4*4096 || err != nil {
		t.Fatalf("expected 4 blocks, found %d bytes, %v", n, err)
	}
	for i, want := range []byte{5, 6, 0, 1} {
		if got[i*4096] != want || got[i*4096+4095] != want {
			t.Errorf("block %d: expected %d, found %d", i, want, got[i*4096])
		}
	}
	if n, err := r.ReadAt(make([]byte, 10), r.size-4); n != 4 || err != io.EOF {
		t.Errorf("at the end: expected 4 bytes and EOF, found %d, %v", n, err)
	}
	short := newExtentReader(bytes.NewReader(content[:6*4096]), extentList(5, 2), 4096)
	if _, err := short.ReadAt(make([]byte, 8192), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a short partition: expected ErrUnexpectedEOF, found %v", err)
	}

	file := &memorySink{make([]byte, 8*4096)}
	w := newExtentWriter(file, extentList(3, 1, payload.Hole, 1, 6, 1), 4096)
	if _, err := w.Write(bytes.Repeat([]byte{9}, 3*4096-5)); err != nil {
		t.Fatal(err)
	}
	if err := w.finish(4096); err != nil || file.b[3*4096] != 9 || file.b[4*4096] != 0 || file.b[7*4096-6] != 9 || file.b[7*4096-5] != 0 {
		t.Errorf("expected blocks 3 and 6 to be 9 but for the last 5 bytes, found %v", err)
	}
	if _, err := w.Write([]byte{1}); !errors.Is(err, ErrOutput) {
		t.Errorf("too much: expected ErrOutput, found %v", err)
	}
	if w = newExtentWriter(file, extentList(0, 2), 4096); !errors.Is(w.finish(4096), ErrOutput) {
		t.Error("too little: expected ErrOutput")
	}
}

type memorySink struct{ b []byte }

func (m *memorySink) WriteAt(p []byte, off int64) (int, error) { return copy(m.b[off:], p), nil }
func (m *memorySink) Zero(off, n int64) error                  { clear(m.b[off : off+n]); return nil }

func extentList(pairs ...uint64) (e []*pb.Extent) {
	for i := 0; i < len(pairs); i += 2 {
		e = append(e, &pb.Extent{StartBlock: &pairs[i], NumBlocks: &pairs[i+1]})
	}
	return e
}

// A blob that is too long or too short for its operation is refused, also where no hash
// says so, in every form.
func TestBlobLengths(t *testing.T) {
	seen := map[pb.InstallOperation_Type]bool{}
	for _, s := range samples(t) {
		b, m := s.read(t)
		for _, p := range m.Manifest.GetPartitions() {
			for _, op := range p.GetOperations() {
				if seen[op.GetType()] || payload.HasSource(op.GetType()) || !payload.HasBlob(op.GetType()) {
					continue
				}
				seen[op.GetType()] = true
				op.DataSha256Hash = nil
				blob := b[m.BlobOffset()+int64(op.GetDataOffset()):][:op.GetDataLength()]
				for what, data := range map[string][]byte{"longer": append(bytes.Clone(blob), 0), "shorter": blob[:len(blob)-1], "as it is": blob} {
					o := &Operation{InstallOperation: op, BlockSize: 4096, Blob: io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data)))}
					err := o.Run(&memorySink{make([]byte, p.GetNewPartitionInfo().GetSize())})
					raw := op.GetType() == pb.InstallOperation_REPLACE && what == "shorter" // its last block is filled up
					if good := what == "as it is" || raw; good != (err == nil) || !good && !errors.Is(err, ErrBlob) && !errors.Is(err, ErrOutput) {
						t.Errorf("%v, %s: found %v", op.GetType(), what, err)
					}
				}
			}
		}
	}
	if len(seen) < 3 && !raceDetector {
		t.Errorf("expected REPLACE, REPLACE_BZ and REPLACE_XZ at least, found %v", seen)
	}
}
