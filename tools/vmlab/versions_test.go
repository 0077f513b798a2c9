//go:build vmhost

package main

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/bsdiff"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/formats/vbmeta"
	"cowbird/formats/verity"
)

// The systems that tortured devices go through, and the payloads between them.

const (
	labBlock   = 4096
	vbmetaSize = 64 << 10
	salt       = "torture"
	// brand is the build time of the first system image, in seconds.
	brand = 1_700_000_000
)

// system is what a device has in one slot.
type system struct {
	number int               // of the root's image; newer is larger
	parts  map[string][]byte // in super, with hash trees
	data   map[string]int    // how many bytes come before the tree
	vbmeta []byte
}

// sums are what the device says of a system: see labdevice.
func (s *system) sums() map[string]string {
	all := map[string]string{"vbmeta": shortSum(s.vbmeta)}
	for name, b := range s.parts {
		all[name] = shortSum(b)
	}
	return all
}

func shortSum(b []byte) string {
	h := sha256.Sum256(b)
	return fmt.Sprintf("%x", h[:8])
}

// factory makes systems out of images that it makes once.
type factory struct {
	t     *testing.T
	key   *rsa.PrivateKey
	roots [][]byte // of the partition system, by number, without tree
	kinds map[string][][]byte
}

// random is noise of a seed.
func random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 11))
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		v := r.Uint64()
		for k := range 8 {
			b[i+k] = byte(v >> (8 * k))
		}
	}
	return b
}

// altered is b with some blocks changed a little, some replaced, some moved, some zero,
// and another length.
func altered(seed uint64, b []byte, blocks int) []byte {
	r := rand.New(rand.NewPCG(seed, 12))
	out := make([]byte, blocks*labBlock)
	copy(out, b)
	have := len(b) / labBlock
	for i := 0; i < blocks; {
		run := min(1+r.IntN(12), blocks-i)
		piece := out[i*labBlock : (i+run)*labBlock]
		switch k := r.IntN(10); {
		case i+run > have || k == 0:
			copy(piece, random(r.Uint64(), len(piece)))
		case k == 1: // moved, at times onto itself
			from := max(0, min(have-run, i+r.IntN(41)-20))
			copy(piece, b[from*labBlock:][:len(piece)])
		case k == 2:
			copy(piece, b[r.IntN(have-run+1)*labBlock:][:len(piece)])
		case k == 3: // an xor
			for at := r.IntN(256); at < len(piece); at += 512 {
				piece[at] ^= byte(1 + r.IntN(255))
			}
		case k == 4 && r.IntN(3) == 0:
			clear(piece)
		}
		i += run
	}
	return out
}

// newFactory needs a folder with the device's programs and its key.
func newFactory(t *testing.T, dir string, key *rsa.PrivateKey) *factory {
	f := &factory{t: t, key: key, kinds: map[string][][]byte{}}
	for number := range 3 {
		f.roots = append(f.roots, f.root(dir, number))
	}
	sizes := map[string][]int{"vendor": {1400, 900, 1800, 1100}, "product": {500, 700, 300, 600}}
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		var last []byte
		for i, blocks := range sizes[name] {
			last = altered(uint64(i+len(name)*100), last, blocks)
			f.kinds[name] = append(f.kinds[name], last)
		}
	}
	return f
}

// root is the file system of a root: the programs, and files that come, go and move.
func (f *factory) root(dir string, number int) []byte {
	t := f.t
	top := filepath.Join(t.TempDir(), "root")
	b := &board{t: t, dir: top}
	for from, to := range map[string]string{"otactl": "usr/sbin/otactl", "labdevice": "sbin/init"} {
		b.copy(filepath.Join(dir, from), b.path(to), 0o755)
	}
	b.copy(filepath.Join(dir, "avb.pem"), b.path("etc/cowbird/avb.pem"), 0o644)
	b.write(b.path("etc/cowbird/update.json"), deviceConfig(brand+number), 0o644)
	b.write(b.path("etc/version"), fmt.Sprint(number), 0o644)
	for i := range 12 {
		if i%(number+3) == 1 {
			continue
		}
		body := random(uint64(i), (20+10*i)*labBlock)
		if i%3 == number {
			body = altered(uint64(100+number), body, len(body)/labBlock+number)
		}
		b.write(b.path(fmt.Sprintf("usr/share/%c%d", 'a'+(i*(2*number+1))%12, i)), string(body), 0o644)
	}
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp"} {
		b.check(os.Mkdir(b.path(d), 0o755))
	}
	image := top + ".img"
	b.run("", "mkfs.erofs", "--quiet", "-zlz4hc,3", "-C65536", fmt.Sprintf("-T%d", brand), "-Ue5c0b173-7a30-4b1d-8000-000000000000", "--all-root", image, top)
	body, err := os.ReadFile(image)
	b.check(err)
	return append(body, make([]byte, -len(body)&(labBlock-1))...)
}

// deviceConfig is what a system, or an initramfs, knows of its device.
func deviceConfig(timestamp int) string {
	c, _ := json.Marshal(map[string]any{
		"state": "/run/metadata/ota", "images": "/run/data/cowbird", "super": "/run/block/super", "static": "/run/block/*",
		"slots":         map[string]any{"misc": map[string]string{"path": "/run/block/misc"}},
		"device":        map[string]any{"timestamp": timestamp},
		"verified_boot": map[string]any{"key": "avb.pem", "verity": true, "on_corruption": "restart_on_corruption", "without_fec": true},
	})
	return string(c)
}

// make puts a system together. product may be negative: there is none.
func (f *factory) make(number, vendor, product int) *system {
	s := &system{number: number, parts: map[string][]byte{}, data: map[string]int{}}
	f.add(s, "system", f.roots[number])
	f.add(s, "vendor", f.kinds["vendor"][vendor])
	if product >= 0 {
		f.add(s, "product", f.kinds["product"][product])
	}
	f.sign(s)
	return s
}

// largest is how much the largest partitions take in super, with their trees, bytes.
func (f *factory) largest() (n int64) {
	for _, name := range []string{"system", "vendor", "product"} {
		n += (f.largestOf(name) + 1<<20 - 1) &^ (1<<20 - 1)
	}
	return n
}

// largestOf is how long a partition can become, with its tree, bytes.
func (f *factory) largestOf(name string) (most int64) {
	images := f.kinds[name]
	if name == "system" {
		images = f.roots
	}
	for _, b := range images {
		most = max(most, int64(len(b))+f.tree().Size(int64(len(b))))
	}
	return most
}

func (f *factory) tree() *verity.Tree {
	tree, err := verity.NewTree("sha256", []byte(salt), labBlock)
	if err != nil {
		f.t.Fatal(err)
	}
	return tree
}

func (f *factory) add(s *system, name string, data []byte) {
	var hashes bytes.Buffer
	if _, err := f.tree().Build(bytes.NewReader(data), int64(len(data)), &hashes); err != nil {
		f.t.Fatal(err)
	}
	s.parts[name] = append(slices.Clip(data), hashes.Bytes()...)
	s.data[name] = len(data)
}

// sign makes the metadata of verified boot.
func (f *factory) sign(s *system) {
	v := &vbmeta.VBMeta{}
	for _, name := range slices.Sorted(maps.Keys(s.parts)) {
		data := s.parts[name][:s.data[name]]
		root, err := f.tree().Root(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			f.t.Fatal(err)
		}
		d := vbmeta.NewLayout(int64(len(data)), int64(len(s.parts[name])-len(data)), 0).Hashtree()
		d.Algorithm, d.Partition, d.Salt, d.RootDigest = "sha256", name, []byte(salt), root
		v.Descriptors = append(v.Descriptors, d)
	}
	signed, err := vbmeta.Sign(v, f.key, vbmeta.SHA256RSA2048)
	if err != nil {
		f.t.Fatal(err)
	}
	s.vbmeta = append(signed, make([]byte, vbmetaSize-len(signed))...)
}

// offer is an update from one system to another.
type offer struct {
	from, to *system
	partial  bool // only the vendor partition changes
	full     bool
	onDevice bool // the device makes the hash tree of vendor
	version  uint32
	codec    string
	estimate uint64 // of each COW, bytes; 0: an honest one
}

// payload is the offer's file.
func (o *offer) payload() ([]byte, error) {
	w := &payloadWriter{}
	m := &pb.DeltaArchiveManifest{MaxTimestamp: proto.Int64(int64(brand + o.to.number))}
	if !o.full {
		m.MinorVersion = proto.Uint32(8)
	}
	if o.partial {
		m.PartialUpdate = proto.Bool(true)
	}
	group := &pb.DynamicPartitionGroup{Name: proto.String("main")}
	for _, name := range slices.Sorted(maps.Keys(o.to.parts)) {
		if o.partial && name != "vendor" {
			continue
		}
		group.PartitionNames = append(group.PartitionNames, name)
		p, err := w.partition(name, o.from.parts[name], o.to.parts[name], o.to.data[name], o)
		if err != nil {
			return nil, err
		}
		m.Partitions = append(m.Partitions, p)
	}
	p, err := w.partition("vbmeta", nil, o.to.vbmeta, len(o.to.vbmeta), &offer{full: true})
	if err != nil {
		return nil, err
	}
	m.Partitions = append(m.Partitions, p)
	m.DynamicPartitionMetadata = &pb.DynamicPartitionMetadata{
		Groups: []*pb.DynamicPartitionGroup{group}, SnapshotEnabled: proto.Bool(true), VabcEnabled: proto.Bool(true),
		CowVersion: proto.Uint32(o.version), VabcCompressionParam: proto.String(o.codec), CompressionFactor: proto.Uint64(64 << 10),
	}
	out, err := payload.AppendMetadata(nil, m, nil)
	return append(out, w.blobs...), err
}

// payloadWriter makes the operations of partitions. It is simple: the lab wants every
// kind of op in its COWs, not small payloads.
type payloadWriter struct{ blobs []byte }

// kind is where a block of the new partition comes from.
type kind struct {
	op   pb.InstallOperation_Type
	from int // block of the old one
}

func (w *payloadWriter) partition(name string, old, next []byte, data int, o *offer) (*pb.PartitionUpdate, error) {
	sum := sha256.Sum256(next)
	p := &pb.PartitionUpdate{
		PartitionName:    proto.String(name),
		NewPartitionInfo: &pb.PartitionInfo{Size: proto.Uint64(uint64(len(next))), Hash: sum[:]},
	}
	if o.full {
		old = nil
	}
	if len(old) > 0 {
		sum := sha256.Sum256(old)
		p.OldPartitionInfo = &pb.PartitionInfo{Size: proto.Uint64(uint64(len(old))), Hash: sum[:]}
	}
	body := next
	if o.onDevice && name == "vendor" {
		body = next[:data]
		p.HashTreeDataExtent, p.HashTreeExtent = extent(0, data/labBlock), extent(data/labBlock, (len(next)-data)/labBlock)
		p.HashTreeAlgorithm, p.HashTreeSalt = proto.String("sha256"), []byte(salt)
	}
	kinds := classify(old, body)
	for first := 0; first < len(kinds); {
		end := first + 1
		for end < len(kinds) && end-first < 64 && goesOn(kinds, first, end) {
			end++
		}
		op, err := w.operation(old, next, kinds[first], first, end)
		if err != nil {
			return nil, err
		}
		p.Operations = append(p.Operations, op)
		first = end
	}
	p.MergeOperations = mergeOrder(p.Operations)
	p.EstimateCowSize = proto.Uint64(uint64(len(next)) + 256<<10)
	if o.estimate > 0 {
		p.EstimateCowSize = proto.Uint64(o.estimate)
	}
	p.EstimateOpCountMax = proto.Uint64(uint64(len(next)/labBlock) + 100)
	return p, nil
}

func goesOn(kinds []kind, first, at int) bool {
	return kinds[at].op == kinds[first].op && (!payload.HasSource(kinds[at].op) || kinds[at].from == kinds[first].from+at-first)
}

func extent(first, blocks int) *pb.Extent {
	return &pb.Extent{StartBlock: proto.Uint64(uint64(first)), NumBlocks: proto.Uint64(uint64(blocks))}
}

// classify finds for each block the old one that it is, or nearly is.
func classify(old, next []byte) []kind {
	at := map[string]int{}
	for i := len(old)/labBlock - 1; i >= 0; i-- {
		at[string(old[i*labBlock:][:labBlock])] = i
	}
	zero := make([]byte, labBlock)
	var kinds []kind
	for i := range len(next) / labBlock {
		b := next[i*labBlock:][:labBlock]
		from, known := at[string(b)]
		k := kind{pb.InstallOperation_REPLACE, 0}
		switch {
		case i < len(old)/labBlock && bytes.Equal(b, old[i*labBlock:][:labBlock]):
			k = kind{pb.InstallOperation_SOURCE_COPY, i}
		case bytes.Equal(b, zero):
			k = kind{pb.InstallOperation_ZERO, 0}
		case known:
			k = kind{pb.InstallOperation_SOURCE_COPY, from}
		case i < len(old)/labBlock && alike(b, old[i*labBlock:][:labBlock]):
			k = kind{pb.InstallOperation_SOURCE_BSDIFF, i}
		}
		kinds = append(kinds, k)
	}
	return kinds
}

func alike(a, b []byte) bool {
	same := 0
	for i := range a {
		if a[i] == b[i] {
			same++
		}
	}
	return same > len(a)*3/4
}

func (w *payloadWriter) operation(old, next []byte, k kind, first, end int) (*pb.InstallOperation, error) {
	op := &pb.InstallOperation{Type: k.op.Enum(), DstExtents: []*pb.Extent{extent(first, end-first)}}
	target := next[first*labBlock : end*labBlock]
	if payload.HasSource(k.op) {
		source := old[k.from*labBlock:][:len(target)]
		sum := sha256.Sum256(source)
		op.SrcExtents, op.SrcSha256Hash = []*pb.Extent{extent(k.from, end-first)}, sum[:]
		if k.op == pb.InstallOperation_SOURCE_BSDIFF {
			var patch bytes.Buffer
			if err := bsdiff.Create(&patch, source, target, bsdiff.Options{}); err != nil {
				return nil, err
			}
			w.blob(op, patch.Bytes())
		}
		return op, nil
	}
	if k.op == pb.InstallOperation_REPLACE {
		w.blob(op, target)
	}
	return op, nil
}

func (w *payloadWriter) blob(op *pb.InstallOperation, b []byte) {
	sum := sha256.Sum256(b)
	op.DataOffset, op.DataLength, op.DataSha256Hash = proto.Uint64(uint64(len(w.blobs))), proto.Uint64(uint64(len(b))), sum[:]
	w.blobs = append(w.blobs, b...)
}

// mergeOrder has copies and xors go one after another as long as none reads what one
// before it has written; what is left out is stored as new data.
func mergeOrder(ops []*pb.InstallOperation) (order []*pb.CowMergeOperation) {
	written := map[uint64]bool{}
	take := func(t pb.CowMergeOperation_Type, op *pb.InstallOperation) {
		src, dst := op.SrcExtents[0], op.DstExtents[0]
		for i := range src.GetNumBlocks() {
			if written[src.GetStartBlock()+i] {
				return
			}
		}
		for i := range dst.GetNumBlocks() {
			written[dst.GetStartBlock()+i] = true
		}
		order = append(order, &pb.CowMergeOperation{Type: t.Enum(), SrcExtent: src, DstExtent: dst})
	}
	for _, op := range ops {
		if op.GetType() == pb.InstallOperation_SOURCE_COPY && op.SrcExtents[0].GetStartBlock() != op.DstExtents[0].GetStartBlock() {
			take(pb.CowMergeOperation_COW_COPY, op)
		}
	}
	for _, op := range ops {
		if op.GetType() == pb.InstallOperation_SOURCE_BSDIFF {
			take(pb.CowMergeOperation_COW_XOR, op)
		}
	}
	return order
}
