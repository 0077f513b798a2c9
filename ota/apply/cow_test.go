package apply

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"cowbird/cow"
	"cowbird/formats/cowfile"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// installation is one partition of a fixture, and where its COW goes.
type installation struct {
	sample
	old  string // folder
	data []byte
	m    *payload.Metadata
	part *pb.PartitionUpdate
	sha  string
	path string
}

func (s *sample) installations(t testing.TB) (all []*installation) {
	t.Helper()
	data, m := s.read(t)
	old := s.unpackOld(t)
	for k, p := range m.Manifest.GetPartitions() {
		all = append(all, &installation{sample: *s, old: old, data: data, m: m, part: p, sha: s.Partitions[k].New.Sha256,
			path: filepath.Join(t.TempDir(), p.GetPartitionName()+".cow")})
	}
	return all
}

func (in *installation) name() string { return in.part.GetPartitionName() }

// openOld gives the old partition, or nil.
func (in *installation) openOld(t testing.TB) cow.Device {
	t.Helper()
	if in.part.OldPartitionInfo == nil {
		return nil
	}
	d, err := cow.OpenDevice(filepath.Join(in.old, in.name()+".img"), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// run installs, with what change does to the options.
func (in *installation) run(t testing.TB, ctx context.Context, change func(*CowOptions)) error {
	t.Helper()
	f, err := os.OpenFile(in.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	d, err := cow.NewFileDevice(f)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	o := CowOptions{Metadata: in.m, Partition: in.part, Blobs: BlobsAt(in.m, bytes.NewReader(in.data)), Cow: d, Old: in.openOld(t), LabelEvery: -1, Resume: true}
	if change != nil {
		change(&o)
	}
	return Cow(ctx, o)
}

// check reads the COW back, and merges it into a copy of the old partition.
func (in *installation) check(t testing.TB) {
	t.Helper()
	base := filepath.Join(t.TempDir(), "base")
	var old []byte
	if in.part.OldPartitionInfo != nil {
		old = mustRead(t, filepath.Join(in.old, in.name()+".img"))
	}
	if err := os.WriteFile(base, old, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := cow.OpenDevice(base, true)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c, err := cow.OpenDevice(in.path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	size := int64(in.part.GetNewPartitionInfo().GetSize())
	s, err := cow.Open(cow.Options{Base: b, Cow: c, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	expectSum(t, in.name()+" through the view", io.NewSectionReader(s, 0, size), in.sha)
	if _, err := s.Merge(t.Context(), cow.MergeOptions{}); err != nil {
		t.Fatalf("%s: merge: %v", in.name(), err)
	}
	expectSum(t, in.name()+" after the merge", io.NewSectionReader(b, 0, size), in.sha)
}

func expectSum(t testing.TB, what string, r io.Reader, want string) {
	t.Helper()
	got, err := sum(r)
	if err != nil || hex.EncodeToString(got[:]) != want {
		t.Errorf("%s: expected SHA-256 %s, found %x, %v", what, want, got, err)
	}
}

// Every payload of the fixtures goes into COWs that give the new partitions, through
// the view and merged. The ops, their order and the merge order are those that
// Android's updater writes for the same payloads, as far as there are listings.
func TestCowFixtures(t *testing.T) {
	var listed atomic.Int32
	t.Cleanup(func() {
		if n := listed.Load(); n < 10 && !raceDetector {
			t.Errorf("expected 10 listings at least, found %d", n)
		}
	})
	for _, s := range samples(t) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			for _, in := range s.installations(t) {
				if in.m.InOrder() {
					in.runStreamed(t)
				} else if err := in.run(t, t.Context(), nil); err != nil {
					t.Fatalf("%s: %v", in.name(), err)
				}
				listing := filepath.Join(filepath.Dir(s.file), "cow", s.name+"."+in.name()+".ops.gz")
				if _, err := os.Stat(listing); err == nil {
					listed.Add(1)
					in.compare(t, listing)
				}
				in.check(t)
			}
		})
	}
}

// runStreamed installs from a stream.
func (in *installation) runStreamed(t testing.TB) {
	t.Helper()
	stream := Stream(bytes.NewReader(in.data[in.m.BlobOffset():]), StreamOptions{Hold: 64 << 10, Memory: 128 << 10, Spool: t.TempDir()})
	if err := in.run(t, t.Context(), func(o *CowOptions) { o.Blobs = stream }); err != nil {
		t.Fatalf("%s: %v", in.name(), err)
	}
}

func TestCowForms(t *testing.T) {
	for _, f := range []CowForm{{Version: 2, Compression: "lz4"}, {Version: 3, Compression: "zstd,9", MaxUnit: 64 << 10}, {Version: 3, Compression: "none"}, {Version: 2, Compression: "brotli,3"}} {
		s := find(t, "delta_m8_zucchini_arm64_none")
		for _, in := range s.installations(t) {
			if err := in.run(t, t.Context(), func(o *CowOptions) { o.Form = f }); err != nil {
				t.Fatalf("%+v: %v", f, err)
			}
			in.check(t)
		}
	}
	s := find(t, "delta_m8_zucchini_arm64_none")
	in := s.installations(t)[0]
	if err := in.run(t, t.Context(), func(o *CowOptions) { o.Form.Compression = "lzma" }); err == nil {
		t.Error("lzma: expected an error, found none")
	}
}

// compare leaves out what a listing says of lengths: encoders differ.
func (in *installation) compare(t *testing.T, listing string) {
	t.Helper()
	want, wantMerge := readListing(t, listing)
	d, err := cow.OpenDevice(in.path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := cowfile.Open(d, d.Size(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got, gotMerge []string
	for i := range f.NumOps() {
		got = append(got, opText(f.Op(i)))
	}
	for it := f.Merge(0); ; {
		i, ok := it.Next()
		if !ok {
			break
		}
		if o := f.Op(i); o.Type.Ordered() {
			gotMerge = append(gotMerge, fmt.Sprintf("%v %d", o.Type, o.NewBlock))
		}
	}
	compareLines(t, "ops", want, got)
	compareLines(t, "merge order", wantMerge, gotMerge)
}

func opText(o cowfile.Op) string {
	switch o.Type {
	case cowfile.OpCopy:
		return fmt.Sprintf("copy %d %d", o.NewBlock, o.Source*cowfile.BlockSize)
	case cowfile.OpXor:
		return fmt.Sprintf("xor %d %d", o.NewBlock, o.Source)
	case cowfile.OpReplace:
		return fmt.Sprintf("replace %d - %d", o.NewBlock, o.Unit())
	}
	return fmt.Sprintf("%v %d", o.Type, o.NewBlock)
}

func readListing(t *testing.T, path string) (ops, merge []string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	inMerge := false
	for s := bufio.NewScanner(z); s.Scan(); {
		w := strings.Fields(s.Text())
		switch {
		case s.Text() == "# merge order":
			inMerge = true
		case inMerge && (w[0] == "copy" || w[0] == "xor"): // the rest has no order
			merge = append(merge, s.Text())
		case inMerge:
		case w[0] == "copy", w[0] == "xor":
			ops = append(ops, strings.Join(w[:3], " "))
		case w[0] == "replace":
			ops = append(ops, fmt.Sprintf("replace %s - %s", w[1], w[4]))
		case w[0] == "zero":
			ops = append(ops, "zero "+w[1])
		}
	}
	return ops, merge
}

func compareLines(t *testing.T, what string, want, got []string) {
	t.Helper()
	for i := range max(len(want), len(got)) {
		w, g := "nothing", "nothing"
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			t.Fatalf("%s, line %d of %d and %d: expected %s, found %s", what, i, len(want), len(got), w, g)
		}
	}
}

// An installation that ends at any operation goes on there, to the same bytes.
func TestCowResume(t *testing.T) {
	for _, name := range []string{"tiny_vabc2_gz", "tiny_vabc3_lz4", "tiny_vabc3_zstd_verity"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := find(t, name)
			in := s.installations(t)[0]
			if err := in.run(t, t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			want := sha256.Sum256(mustRead(t, in.path))
			for stop := range len(in.part.GetOperations()) {
				if err := os.Remove(in.path); err != nil {
					t.Fatal(err)
				}
				ends := errors.New("the stream ends")
				limit := int64(in.part.GetOperations()[stop].GetDataOffset())
				err := in.run(t, t.Context(), func(o *CowOptions) { o.Blobs = &failingBlobs{o.Blobs, limit, ends}; o.Workers = 1 })
				if in.part.GetOperations()[stop].DataOffset != nil && !errors.Is(err, ends) {
					t.Fatalf("operation %d: expected the stream's end, found %v", stop, err)
				}
				if err := in.run(t, t.Context(), nil); err != nil {
					t.Fatalf("operation %d: %v", stop, err)
				}
				if got := sha256.Sum256(mustRead(t, in.path)); got != want {
					t.Errorf("resumed at operation %d: expected the same COW, found another", stop)
				}
			}
			in.check(t)
		})
	}
}

// failingBlobs has nothing from some offset on.
type failingBlobs struct {
	Blobs
	limit int64
	err   error
}

func (f *failingBlobs) Blob(off, n int64) (*io.SectionReader, func(), error) {
	if off >= f.limit {
		return nil, nil, f.err
	}
	return f.Blobs.Blob(off, n)
}

// fullDevice has no room behind some byte.
type fullDevice struct {
	*cow.FileDevice
	room int64
}

func (f *fullDevice) Output() cowfile.Device { return &fullOutput{f.FileDevice.Output(), f.room} }

type fullOutput struct {
	cowfile.Device
	room int64
}

func (f *fullOutput) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) <= f.room {
		return f.Device.WriteAt(p, off)
	}
	n := 0
	if off < f.room {
		n, _ = f.Device.WriteAt(p[:f.room-off], off) // as a file system does
	}
	return n, unix.ENOSPC
}

func (f *fullOutput) Truncate(size int64) error { return f.Device.(cowfile.Resizable).Truncate(size) }

// However little room there is for a COW, the error says so, the old partition stays,
// and with more room the installation goes on.
func TestCowFull(t *testing.T) {
	for _, name := range []string{"tiny_vabc2_gz", "tiny_vabc3_zstd_verity"} {
		s := find(t, name)
		in := s.installations(t)[0]
		if err := in.run(t, t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(in.path)
		if err != nil {
			t.Fatal(err)
		}
		old := mustRead(t, filepath.Join(in.old, in.name()+".img"))
		if err := os.Remove(in.path); err != nil {
			t.Fatal(err)
		}
		failures := 0
		for room := int64(2 << 20); ; room += max(1, (info.Size()-2<<20)/40) {
			err := in.run(t, t.Context(), func(o *CowOptions) { o.Cow = &fullDevice{o.Cow.(*cow.FileDevice), room} })
			if err == nil {
				break
			}
			if failures++; !errors.Is(err, unix.ENOSPC) && !errors.Is(err, cowfile.ErrNoSpace) {
				t.Fatalf("%s, room for %d of %d bytes: expected no space, found %v", name, room, info.Size(), err)
			}
			if room > info.Size() {
				t.Fatalf("%s: expected %d bytes to be enough, found %v", name, info.Size(), err)
			}
		}
		if failures < 20 {
			t.Errorf("%s: expected it to fail often, found %d times", name, failures)
		}
		if !bytes.Equal(old, mustRead(t, filepath.Join(in.old, in.name()+".img"))) {
			t.Errorf("%s: the old partition has changed", name)
		}
		in.check(t)
	}
}

// What is damaged is refused, and there is no complete COW.
func TestCowDamaged(t *testing.T) {
	s := find(t, "delta_m8_zucchini_arm64_none")
	in := s.installations(t)[0]
	in.data[in.m.BlobOffset()+100] ^= 1
	if err := in.run(t, t.Context(), nil); !errors.Is(err, ErrBlob) {
		t.Errorf("expected ErrBlob, found %v", err)
	}
	if labels, _ := cowfile.Labels(bytes.NewReader(mustRead(t, in.path)), 1<<40); len(labels) > 0 && labels[len(labels)-1] == EndOfInstall {
		t.Error("expected no label of the end")
	}
	in.data[in.m.BlobOffset()+100] ^= 1
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := in.run(t, ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("expected to be cancelled, found %v", err)
	}
	in.part.NewPartitionInfo.Hash[0] ^= 1
	if err := in.run(t, t.Context(), nil); !errors.Is(err, ErrTarget) {
		t.Errorf("expected ErrTarget, found %v", err)
	}
}
