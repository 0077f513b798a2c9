package generate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	"cowbird/cow"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/ota/apply"
	"cowbird/ota/verify"
	"cowbird/tools/fixture"
)

// pair is what a payload of the fixtures makes new partitions of, and what comes out.
type pair struct {
	name     string
	android  []byte // the payload
	metadata *payload.Metadata
	old, new map[string][]byte
}

func readPair(t testing.TB, name string) *pair {
	t.Helper()
	dir := filepath.Join(fixture.Dir(t), "payload")
	p := &pair{name: name, old: map[string][]byte{}, new: map[string][]byte{}}
	var side struct {
		Partitions []struct {
			Name string
			Old  *struct{ File string }
		}
	}
	var err error
	p.android, err = os.ReadFile(filepath.Join(dir, name+".payload.bin"))
	must(t, err)
	b, err := os.ReadFile(filepath.Join(dir, name+".json"))
	must(t, err)
	must(t, json.Unmarshal(b, &side))
	olds, news := t.TempDir(), t.TempDir()
	for _, s := range side.Partitions {
		if s.Old != nil {
			p.old[s.Name] = fixture.Gunzip(t, filepath.Join(dir, s.Old.File))
			must(t, os.WriteFile(filepath.Join(olds, s.Name+".img"), p.old[s.Name], 0o600))
		}
	}
	p.metadata, err = payload.Read(bytes.NewReader(p.android), int64(len(p.android)), payload.Limits{})
	must(t, err)
	must(t, apply.Images(t.Context(), apply.ImageOptions{Metadata: p.metadata, Blobs: apply.BlobsAt(p.metadata, bytes.NewReader(p.android)), Old: olds, Out: news}))
	for _, s := range side.Partitions {
		p.new[s.Name], err = os.ReadFile(filepath.Join(news, s.Name+".img"))
		must(t, err)
	}
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func imageOf(b []byte) cow.Image { return cow.Image{R: bytes.NewReader(b), Size: int64(len(b))} }

// options are those that Android's payload was made with, as far as they show.
func (p *pair) options() Options {
	m := p.metadata.Manifest
	o := Options{Minor: m.GetMinorVersion(), Timestamp: m.GetMaxTimestamp(), SecurityPatch: m.GetSecurityPatchLevel(), Partial: m.GetPartialUpdate(),
		Dynamic: m.GetDynamicPartitionMetadata()}
	for _, u := range m.GetPartitions() {
		part := Partition{Name: u.GetPartitionName(), New: imageOf(p.new[u.GetPartitionName()]), Version: u.GetVersion()}
		if tree, fec := u.GetHashTreeExtent(), u.GetFecExtent(); tree.GetNumBlocks() > 0 {
			part.Verity = &Verity{Data: rangeOf(u.GetHashTreeDataExtent()), Tree: rangeOf(tree), Algorithm: u.GetHashTreeAlgorithm(), Salt: u.GetHashTreeSalt(),
				FECData: rangeOf(u.GetFecDataExtent()), FEC: rangeOf(fec), Roots: u.GetFecRoots()}
		}
		if old := p.old[part.Name]; old != nil {
			img := imageOf(old)
			part.Old = &img
		}
		o.Partitions = append(o.Partitions, part)
	}
	return o
}

func rangeOf(e *pb.Extent) Range { return Range{e.GetStartBlock(), e.GetNumBlocks()} }

// payloadOf makes and writes a payload, and reads it back.
func payloadOf(t testing.TB, o Options, signers ...Signer) ([]byte, *payload.Metadata) {
	t.Helper()
	o.Spool = t.TempDir()
	p, err := Create(t.Context(), o)
	must(t, err)
	defer p.Close()
	var b bytes.Buffer
	w, err := p.Write(&b, signers)
	must(t, err)
	m, err := verify.Read(bytes.NewReader(b.Bytes()), int64(b.Len()), verify.Policy{AllowUnsigned: true, Properties: &w.Properties})
	must(t, err)
	must(t, verify.File(context.Background(), m, bytes.NewReader(b.Bytes()), int64(b.Len()), verify.Policy{AllowUnsigned: true, Properties: &w.Properties}, nil))
	return b.Bytes(), m
}

var samples = []string{"delta_ext4_m9_vabc2_gz_xor", "delta_ext4_m9_nozucchini_vabc3_lz4_xor", "delta_m5_puffdiff", "delta_m4_bsdf2_brotli_only",
	"delta_m3_bsdiff40", "delta_m8_zucchini_arm64_none", "delta_partial_multi", "delta_resize", "delta_shrink", "delta_verity_fec_sha1", "full_unsigned",
	"delta_lz4diff_vabc3_lz4_64k_ec", "delta_lz4diff_bigpcluster_vabc3_zstd3", "delta_lz4_fast", "delta_lz4_legacy_nopad", "delta_lz4_postfix"}

// large take long at default effort.
var (
	large = []string{"delta_ext4_m9_vabc2_gz_xor", "delta_ext4_m9_nozucchini_vabc3_lz4_xor", "delta_m5_puffdiff", "delta_partial_multi",
		"delta_lz4diff_vabc3_lz4_64k_ec", "delta_lz4diff_bigpcluster_vabc3_zstd3"}
	slow = flag.Bool("slow", false, "make the large payloads of the fixtures at default effort, too")
)

// The payloads of the fixtures are made anew from their images: they give the same
// partitions, keep every producer's rule, and are about as small as Android's.
func TestFixtures(t *testing.T) {
	for _, name := range samples {
		t.Run(name, func(t *testing.T) {
			if raceDetector && name != "delta_m8_zucchini_arm64_none" {
				t.Skip("takes too long with the race detector")
			}
			t.Parallel()
			p := readPair(t, name)
			o := p.options()
			percent := uint64(118)
			switch {
			case slices.Contains(large, name) && !*slow, raceDetector:
				o.Effort, percent = Fast, 135
			case !p.metadata.IsDelta():
				percent = 109
			}
			b, m := payloadOf(t, o)
			follows(t, m)
			p.applies(t, b, m)
			ours, theirs := data(m), data(p.metadata)
			t.Logf("data: %d bytes, Android's %d (%.3f); payload %d and %d", ours, theirs, float64(ours)/float64(theirs), len(b), len(p.android))
			if most := theirs*percent/100 + 4096; ours > most {
				t.Errorf("expected at most %d bytes of data, found %d", most, ours)
			}
		})
	}
}

// With the most effort payloads are as small as Android's.
func TestMostEffort(t *testing.T) {
	for _, name := range []string{"delta_m4_bsdf2_brotli_only", "full_unsigned"} {
		t.Run(name, func(t *testing.T) {
			if raceDetector {
				t.Skip("takes too long with the race detector")
			}
			p := readPair(t, name)
			o := p.options()
			o.Effort = Max
			b, m := payloadOf(t, o)
			follows(t, m)
			p.applies(t, b, m)
			ours, theirs := data(m), data(p.metadata)
			t.Logf("data: %d bytes, Android's %d (%.3f)", ours, theirs, float64(ours)/float64(theirs))
			if most := theirs*107/100 + 4096; ours > most {
				t.Errorf("expected at most %d bytes of data, found %d", most, ours)
			}
		})
	}
}

func data(m *payload.Metadata) (n uint64) {
	for _, u := range m.Manifest.GetPartitions() {
		for _, op := range u.GetOperations() {
			n += op.GetDataLength()
		}
	}
	return n
}

// applies applies a payload to files.
func (p *pair) applies(t testing.TB, b []byte, m *payload.Metadata) {
	t.Helper()
	olds, news := t.TempDir(), t.TempDir()
	for name, old := range p.old {
		must(t, os.WriteFile(filepath.Join(olds, name+".img"), old, 0o600))
	}
	must(t, apply.Images(t.Context(), apply.ImageOptions{Metadata: m, Blobs: apply.BlobsAt(m, bytes.NewReader(b)), Old: olds, Out: news}))
	for name, want := range p.new {
		got, err := os.ReadFile(filepath.Join(news, name+".img"))
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: expected the new image, found another", name)
		}
	}
}

// The rules of specs/payload.md 13, which Android's own payloads keep.
func TestRules(t *testing.T) {
	for _, name := range samples {
		if raceDetector {
			t.Skip("nothing runs at a time")
		}
		p := readPair(t, name)
		t.Run(name, func(t *testing.T) { follows(t, p.metadata) })
	}
}

// follows checks the rules of producers.
func follows(t *testing.T, m *payload.Metadata) {
	t.Helper()
	must(t, m.Check())
	if early := m.EarlyTypes(); len(early) > 0 {
		t.Errorf("minor version %d: expected no types of later ones, found %v", m.Manifest.GetMinorVersion(), early)
	}
	if !m.InOrder() {
		t.Error("expected the data in the order of the operations")
	}
	for _, u := range m.Manifest.GetPartitions() {
		name := u.GetPartitionName()
		if len(u.GetNewPartitionInfo().GetHash()) != 32 || u.OldPartitionInfo != nil && len(u.GetOldPartitionInfo().GetHash()) != 32 {
			t.Errorf("%s: expected hashes", name)
		}
		for i, op := range u.GetOperations() {
			if payload.HasSource(op.GetType()) && m.Manifest.GetMinorVersion() >= 3 && len(op.GetSrcSha256Hash()) != 32 {
				t.Errorf("%s, operation %d: expected a hash of the source", name, i)
			}
			single := op.GetType() == pb.InstallOperation_SOURCE_COPY || op.GetType() == pb.InstallOperation_ZERO
			if single && len(op.GetDstExtents()) != 1 {
				t.Errorf("%s, operation %d: expected one extent, found %d", name, i, len(op.GetDstExtents()))
			}
		}
		followsMerge(t, u)
	}
}

// followsMerge checks that no block is read after it has been overwritten.
func followsMerge(t *testing.T, u *pb.PartitionUpdate) {
	t.Helper()
	over := map[uint64]int{}
	copied := map[uint64]bool{}
	for _, op := range u.GetOperations() {
		if op.GetType() != pb.InstallOperation_SOURCE_COPY {
			continue
		}
		for _, e := range op.GetDstExtents() {
			for b := range e.GetNumBlocks() {
				copied[e.GetStartBlock()+b] = true
			}
		}
	}
	for i, op := range u.GetMergeOperations() {
		src, dst := op.GetSrcExtent(), op.GetDstExtent()
		want := dst.GetNumBlocks()
		if op.GetSrcOffset() > 0 {
			want++
		}
		if src.GetNumBlocks() != want {
			t.Errorf("%s, merge operation %d: expected %d source blocks, found %d", u.GetPartitionName(), i, want, src.GetNumBlocks())
		}
		for b := range src.GetNumBlocks() {
			if at, ok := over[src.GetStartBlock()+b]; ok {
				t.Errorf("%s, merge operation %d reads block %d, which %d has overwritten", u.GetPartitionName(), i, src.GetStartBlock()+b, at)
			}
		}
		for b := range dst.GetNumBlocks() {
			block := dst.GetStartBlock() + b
			if _, twice := over[block]; twice {
				t.Errorf("%s, merge operation %d: block %d is written twice", u.GetPartitionName(), i, block)
			}
			over[block] = i
			if isCopy := op.GetType() == pb.CowMergeOperation_COW_COPY; isCopy != copied[block] {
				t.Errorf("%s, merge operation %d: block %d: expected a copy to be one in both places", u.GetPartitionName(), i, block)
			}
		}
	}
}

// Neither workers nor their order show in the payload; results that were exchanged as
// files are as good as those made here.
func TestSameBytes(t *testing.T) {
	p := readPair(t, "delta_m8_zucchini_arm64_none")
	o := p.options()
	if raceDetector {
		o.Effort = Fast
	}
	o.Dynamic = &pb.DynamicPartitionMetadata{SnapshotEnabled: proto.Bool(true), VabcEnabled: proto.Bool(true), CowVersion: proto.Uint32(3),
		VabcCompressionParam: proto.String("lz4"), CompressionFactor: proto.Uint64(65536),
		Groups: []*pb.DynamicPartitionGroup{{Name: proto.String("main"), PartitionNames: []string{o.Partitions[0].Name}}}}
	var first []byte
	for _, workers := range []int{1, 2, 7} {
		o.Workers = workers
		b, _ := payloadOf(t, o)
		if first == nil {
			first = b
		}
		if !bytes.Equal(b, first) {
			t.Errorf("expected the same bytes with %d workers, found others", workers)
		}
	}
	farm := farmOf(t, o, o.Partitions[0])
	files := map[string][]byte{}
	for _, w := range farm.Work() {
		var err error
		files[w.Item.ID], err = farm.RunTask(t.Context(), w)
		must(t, err)
	}
	read := func(_ context.Context, _ int, it *Item) (*Result, error) { return ReadResult(files[it.ID], it) }
	joined, err := farm.Join(t.Context(), read)
	must(t, err)
	defer joined.Close()
	var b bytes.Buffer
	_, err = joined.Write(&b, nil)
	must(t, err)
	if !bytes.Equal(b.Bytes(), first) {
		t.Error("expected the joined payload to be the one of one machine")
	}
	id := farm.Work()[0].Item.ID
	good := files[id]
	for what, bad := range map[string][]byte{"none": nil, "cut": good[:len(good)-1], "header": good[:3], "another": bytes.Replace(good, []byte(id[:8]), []byte("00000000"), 1)} {
		files[id] = bad
		if _, err := farm.Join(t.Context(), read); !errors.Is(err, ErrItem) || !strings.Contains(err.Error(), id[:12]) {
			t.Errorf("%s: expected ErrItem with the ID, found %v", what, err)
		}
	}
}

// farmOf is a plan that has been a file in between.
func farmOf(t *testing.T, o Options, images Partition) *Plan {
	t.Helper()
	plan, err := NewPlan(t.Context(), o)
	must(t, err)
	b, err := plan.Encode()
	must(t, err)
	farm, err := ReadPlan(b, Options{}, func(string, bool) (cow.Image, *cow.Image, error) { return images.New, images.Old, nil })
	must(t, err)
	return farm
}

// A task of other images than the plan's is not run, and a plan that leads out of the
// images is refused.
func TestAnotherPlan(t *testing.T) {
	old, newer := make([]byte, 64*blockSize), bytes.Repeat([]byte("cowbird "), 8192)
	was, is := imageOf(old), imageOf(newer)
	o := Options{Partitions: []Partition{{Name: "x", New: is, Old: &was}}}
	other := imageOf(bytes.Repeat([]byte("another "), 8192))
	farm := farmOf(t, o, Partition{New: other, Old: &was})
	if _, err := farm.RunTask(t.Context(), farm.Work()[0]); !errors.Is(err, ErrItem) {
		t.Errorf("expected ErrItem, found %v", err)
	}
	plan, err := NewPlan(t.Context(), o)
	must(t, err)
	good, err := plan.Encode()
	must(t, err)
	for what, change := range map[string][2]string{"format": {fmt.Sprintf(`"format": %d`, planFormat), `"format": 2`}, "size": {`"new_size": 65536`, `"new_size": 69632`},
		"block": {`"start": 0`, `"start": 99`}, "kind": {`"kind": "diff"`, `"kind": "copy"`}, "no such kind": {`"kind": "diff"`, `"kind": "move"`}, "json": {`{`, ``}, "effort": {`"effort": 0`, `"effort": 7`}} {
		bad := bytes.Replace(good, []byte(change[0]), []byte(change[1]), 1)
		if bytes.Equal(bad, good) {
			t.Fatalf("%s: expected %q in the plan", what, change[0])
		}
		if _, err := ReadPlan(bad, Options{}, func(string, bool) (cow.Image, *cow.Image, error) { return is, &was, nil }); !errors.Is(err, ErrInput) {
			t.Errorf("%s: expected ErrInput, found %v", what, err)
		}
	}
}

// A COW device of the estimated size is enough, and one block less is not.
func TestEstimate(t *testing.T) {
	p := readPair(t, "delta_m8_zucchini_arm64_none")
	for _, version := range []uint32{2, 3} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			o := p.options()
			o.Effort = Fast
			name := o.Partitions[0].Name
			o.Dynamic = &pb.DynamicPartitionMetadata{SnapshotEnabled: proto.Bool(true), VabcEnabled: proto.Bool(true), CowVersion: proto.Uint32(version),
				VabcCompressionParam: proto.String("zstd"), CompressionFactor: proto.Uint64(65536),
				Groups: []*pb.DynamicPartitionGroup{{Name: proto.String("main"), PartitionNames: []string{name}}}}
			b, m := payloadOf(t, o)
			u := m.Manifest.GetPartitions()[0]
			if len(u.GetMergeOperations()) == 0 {
				t.Error("expected merge operations, found none")
			}
			size := int64(u.GetEstimateCowSize())
			install := func(size int64) error {
				d := &sized{memDevice: &memDevice{}, size: size}
				return apply.Cow(t.Context(), apply.CowOptions{Metadata: m, Partition: u, Blobs: apply.BlobsAt(m, bytes.NewReader(b)),
					Old: oldDevice{imageOf(p.old[name])}, Cow: d, LabelEvery: -1})
			}
			if err := install(size); err != nil {
				t.Errorf("%d bytes: expected them to be enough, found %v", size, err)
			}
			if err := install(size - 1); err == nil {
				t.Errorf("%d bytes: expected an error, found none", size-1)
			}
		})
	}
}

// What is signed passes with its keys, also if the signatures came later.
func TestSign(t *testing.T) {
	rsaKey, rsaTrust := newKey(t, "rsa")
	ecKey, ecTrust := newKey(t, "ec")
	full := Options{Partitions: []Partition{{Name: "boot", New: imageOf(bytes.Repeat([]byte("cowbird "), 1024))}}}
	for what, c := range map[string]struct {
		signers []KeySigner
		trust   []byte
	}{"RSA": {[]KeySigner{rsaKey}, rsaTrust}, "ECDSA": {[]KeySigner{ecKey}, ecTrust}, "both": {[]KeySigner{rsaKey, ecKey}, ecTrust}} {
		t.Run(what, func(t *testing.T) {
			p, err := Create(t.Context(), full)
			must(t, err)
			defer p.Close()
			var now, later bytes.Buffer
			var signers, none []Signer
			for _, s := range c.signers {
				signers, none = append(signers, s), append(none, Later(s.Size()))
			}
			w, err := p.Write(&now, signers)
			must(t, err)
			trusted(t, now.Bytes(), c.trust, w)
			w, err = p.Write(&later, none)
			must(t, err)
			f := &memDevice{b: later.Bytes()}
			var meta, whole [][]byte
			for _, s := range c.signers {
				m, err := s.Sign(w.MetadataDigest)
				must(t, err)
				b, err := s.Sign(w.PayloadDigest)
				must(t, err)
				meta, whole = append(meta, m), append(whole, b)
			}
			if _, err := Sign(f, int64(len(f.b)), meta, whole[:0]); !errors.Is(err, ErrInput) {
				t.Errorf("without payload signatures: expected ErrInput, found %v", err)
			}
			w, err = Sign(f, int64(len(f.b)), meta, whole)
			must(t, err)
			trusted(t, f.b, c.trust, w)
		})
	}
}

func trusted(t *testing.T, b, trust []byte, w *Written) {
	t.Helper()
	keys, err := verify.ParseKeys(trust)
	must(t, err)
	policy := verify.Policy{Keys: keys, Properties: &w.Properties}
	m, err := verify.Read(bytes.NewReader(b), int64(len(b)), policy)
	must(t, err)
	must(t, verify.File(t.Context(), m, bytes.NewReader(b), int64(len(b)), policy, nil))
}

// changing is an image of which a byte changes.
type changing struct {
	cow.Image
	at      int64
	changed atomic.Bool
}

func (c *changing) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Image.R.ReadAt(p, off)
	if c.changed.Load() && off <= c.at && c.at < off+int64(n) {
		p[c.at-off] ^= 1
	}
	return n, err
}

// Images that change while a payload is made of them do not give one.
func TestChangedImage(t *testing.T) {
	p := readPair(t, "delta_m8_zucchini_arm64_none")
	for _, which := range []string{"old", "new"} {
		t.Run(which, func(t *testing.T) {
			o := p.options()
			o.Effort, o.Spool = Fast, t.TempDir()
			must(t, o.check())
			part := &o.Partitions[0]
			img := part.Old
			if which == "new" {
				img = &part.New
			}
			c := &changing{Image: *img}
			img.R = c
			plan, err := NewPlan(t.Context(), o)
			must(t, err)
			for _, it := range plan.Partitions[0].Items {
				if it.Kind == Diff {
					c.at = int64(it.Dst[0].Start) * blockSize
					if which == "old" {
						c.at = int64(it.Src[0].Start) * blockSize
					}
				}
			}
			c.changed.Store(true)
			if made, err := plan.make(t.Context()); !errors.Is(err, ErrCheck) {
				t.Errorf("expected ErrCheck, found %v", err)
				if err == nil {
					must(t, made.Close())
				}
			}
		})
	}
}

// A patch is not compressed when it is longer than the data without a source are likely
// to be.
func TestWorth(t *testing.T) {
	r := rand.NewChaCha8([32]byte{})
	noise := make([]byte, 32<<10)
	_, _ = r.Read(noise)
	var words []byte
	for len(words) < 64<<10 {
		word := noise[r.Uint64()%256*16:]
		words = append(words, word[:16]...)
	}
	for _, c := range []struct {
		name                 string
		control, diff, extra []byte
		want                 bool
	}{
		{"all is copied", make([]byte, 24), make([]byte, len(words)), nil, true},
		{"noise is copied, little is new", make([]byte, 24), noise, words[:len(words)/16], true},
		{"half is as it is, half is noise", make([]byte, 24), noise, words[:len(words)/2], false},
		{"all is new", make([]byte, 24), nil, words, true},
	} {
		m := &making{o: &Options{}, it: &Item{}, target: words}
		if got := m.worth(c.control, c.diff, c.extra); got != c.want {
			t.Errorf("%s: expected %v, found %v", c.name, c.want, got)
		}
	}
}

func TestDiffering(t *testing.T) {
	r := rand.New(rand.NewChaCha8([32]byte{}))
	for _, most := range []int{0, 1, 10, blockSize} {
		a, b := make([]byte, blockSize), make([]byte, blockSize)
		for i := range a {
			a[i] = byte(r.Uint32())
			b[i] = a[i]
		}
		for range most {
			b[r.IntN(blockSize)] = byte(r.Uint32() & 0x81)
		}
		want := 0
		for i := range a {
			if a[i] != b[i] {
				want++
			}
		}
		if got := differing(a, b); got != want {
			t.Errorf("expected %d bytes, found %d", want, got)
		}
	}
}
