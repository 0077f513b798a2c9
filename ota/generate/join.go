package generate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"cowbird/cow"
	"cowbird/formats/cowfile"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/ota/apply"
)

// Payload is a payload without signatures.
type Payload struct {
	Manifest *pb.DeltaArchiveManifest
	blobs    *os.File // without a name
	size     int64

	onProgress func(Progress)
}

// Close gives back the spooled data.
func (p *Payload) Close() error { return p.blobs.Close() }

// Results gives the result of an item that is Work. It may be called concurrently, and
// for the same ID again.
type Results func(ctx context.Context, partition int, it *Item) (*Result, error)

// Join puts results together and applies the payload, as a device would: each new
// partition has to come out, and what its COW takes is told in the manifest.
func (p *Plan) Join(ctx context.Context, results Results) (_ *Payload, err error) {
	out := &Payload{Manifest: proto.Clone(p.manifest).(*pb.DeltaArchiveManifest), onProgress: p.o.OnProgress}
	if out.blobs, err = spool(p.o.Spool); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.blobs.Close())
		}
	}()
	report := begin(p.o.OnProgress, Checking, p.checks())
	defer report.end()
	for i := range p.Partitions {
		if err := p.joinPartition(ctx, out, i, results, report); err != nil {
			return nil, fmt.Errorf("partition %s: %w", p.Partitions[i].Name, err)
		}
	}
	for i := range p.Partitions {
		if err := p.prove(ctx, out, i, report); err != nil {
			return nil, fmt.Errorf("partition %s: %w", p.Partitions[i].Name, err)
		}
	}
	return out, nil
}

// checks is how many bytes Join goes through: what copies read, and each new partition
// as it is installed and as it is read back.
func (p *Plan) checks() (n int64) {
	for i := range p.Partitions {
		n += 2 * p.Partitions[i].NewSize
		for _, it := range p.Partitions[i].Items {
			if it.Kind == Copy {
				n += it.bytes()
			}
		}
	}
	return n
}

// spool is a file that nobody else sees.
func spool(folder string) (*os.File, error) {
	f, err := os.CreateTemp(folder, "cowbird-payload.*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// manifest is that of the payload, without partitions.
func (o *Options) manifest() *pb.DeltaArchiveManifest {
	m := &pb.DeltaArchiveManifest{BlockSize: proto.Uint32(blockSize), MinorVersion: proto.Uint32(o.Minor)}
	if o.Timestamp != 0 {
		m.MaxTimestamp = proto.Int64(o.Timestamp)
	}
	if o.SecurityPatch != "" {
		m.SecurityPatchLevel = proto.String(o.SecurityPatch)
	}
	if o.Partial {
		m.PartialUpdate = proto.Bool(true)
	}
	if o.Dynamic != nil {
		m.DynamicPartitionMetadata = proto.Clone(o.Dynamic).(*pb.DynamicPartitionMetadata)
	}
	for _, a := range o.Apexes {
		m.ApexInfo = append(m.ApexInfo, proto.Clone(a).(*pb.ApexInfo))
	}
	return m
}

func (p *Plan) joinPartition(ctx context.Context, out *Payload, i int, results Results, report *progress) error {
	plan, part, u := &p.Partitions[i], p.o.Partitions[i], out.Manifest.Partitions[i]
	var moves []move
	hashes, err := p.hashCopies(ctx, i, report)
	if err != nil {
		return err
	}
	for j := range plan.Items {
		it := &plan.Items[j]
		op := &pb.InstallOperation{DstExtents: extents(it.Dst)}
		switch it.Kind {
		case Zero:
			op.Type = pb.InstallOperation_ZERO.Enum()
		case Copy:
			op.Type, op.SrcExtents = pb.InstallOperation_SOURCE_COPY.Enum(), extents(it.Src)
			op.SrcSha256Hash = hashes[j]
			moves = append(moves, it.copies()...)
		default:
			var r *Result
			if r, err = results(ctx, i, it); err == nil {
				moves = append(moves, it.moves(r.Xors)...)
				err = out.add(op, it, r)
			}
		}
		if err != nil {
			return fmt.Errorf("item %d (%s): %w", j, it.Kind, err)
		}
		u.Operations = append(u.Operations, op)
	}
	if p.o.snapshots(part.Name) && part.Old != nil {
		for _, m := range mergeOrder(moves) {
			u.MergeOperations = append(u.MergeOperations, m.proto())
		}
	}
	return nil
}

// hashCopies hashes what copies read.
func (p *Plan) hashCopies(ctx context.Context, i int, report *progress) ([][]byte, error) {
	items := p.Partitions[i].Items
	hashes := make([][]byte, len(items))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(p.o.Workers)
	for j := range items {
		if it := &items[j]; it.Kind == Copy {
			g.Go(func() (err error) {
				if err = ctx.Err(); err == nil {
					if hashes[j], err = hashRanges(*p.o.Partitions[i].Old, it.Src, report); err != nil {
						err = fmt.Errorf("old image: %w", err)
					}
				}
				return err
			})
		}
	}
	return hashes, g.Wait()
}

// newUpdate is a partition without operations.
func newUpdate(plan *PartitionPlan, part Partition) (*pb.PartitionUpdate, error) {
	u := &pb.PartitionUpdate{PartitionName: proto.String(plan.Name)}
	var err error
	if u.NewPartitionInfo, err = info(plan.NewSize, plan.NewHash); err == nil && part.Old != nil {
		u.OldPartitionInfo, err = info(plan.OldSize, plan.OldHash)
	}
	if part.Version != "" {
		u.Version = proto.String(part.Version)
	}
	if v := part.Verity; v != nil {
		v.tell(u)
	}
	if s := part.Postinstall; s != nil {
		u.RunPostinstall, u.PostinstallPath, u.PostinstallOptional = proto.Bool(true), proto.String(s.Path), proto.Bool(s.Optional)
		if s.Filesystem != "" {
			u.FilesystemType = proto.String(s.Filesystem)
		}
	}
	return u, err
}

func (v *Verity) tell(u *pb.PartitionUpdate) {
	if v.Tree.Count > 0 {
		u.HashTreeDataExtent, u.HashTreeExtent = extent(v.Data.Start, v.Data.Count), extent(v.Tree.Start, v.Tree.Count)
		u.HashTreeAlgorithm, u.HashTreeSalt = proto.String(v.Algorithm), v.Salt
	}
	if v.FEC.Count > 0 {
		u.FecDataExtent, u.FecExtent, u.FecRoots = extent(v.FECData.Start, v.FECData.Count), extent(v.FEC.Start, v.FEC.Count), proto.Uint32(v.Roots)
	}
}

func info(size int64, hash string) (*pb.PartitionInfo, error) {
	b, err := hex.DecodeString(hash)
	if err != nil || len(b) != sha256.Size {
		return nil, fmt.Errorf("%w: expected a SHA-256, found %q", ErrInput, hash)
	}
	return &pb.PartitionInfo{Size: proto.Uint64(uint64(size)), Hash: b}, nil
}

func extents(ranges []Range) (all []*pb.Extent) {
	for _, r := range ranges {
		all = append(all, extent(r.Start, r.Count))
	}
	return all
}

// hashRanges is the SHA-256 of blocks. report may be nil.
func hashRanges(img cow.Image, ranges []Range, report *progress) ([]byte, error) {
	h := sha256.New()
	for _, r := range ranges {
		if _, err := io.Copy(h, counted{io.NewSectionReader(img.R, int64(r.Start)*blockSize, int64(r.Count)*blockSize), report}); err != nil {
			return nil, err
		}
	}
	return h.Sum(nil), nil
}

// add appends a result's data.
func (out *Payload) add(op *pb.InstallOperation, it *Item, r *Result) error {
	op.Type = r.Type.Enum()
	if payload.HasSource(r.Type) {
		op.SrcExtents, op.SrcSha256Hash = extents(it.Src), r.SrcHash
	}
	hash := sha256.Sum256(r.Blob)
	op.DataOffset, op.DataLength, op.DataSha256Hash = proto.Uint64(uint64(out.size)), proto.Uint64(uint64(len(r.Blob))), hash[:]
	n, err := out.blobs.WriteAt(r.Blob, out.size)
	out.size += int64(n)
	return err
}

// prove applies what has been made of a partition.
func (p *Plan) prove(ctx context.Context, out *Payload, i int, report *progress) error {
	if p.o.snapshots(p.Partitions[i].Name) {
		return p.estimate(ctx, out, i, report)
	}
	f, err := spool(p.o.Spool)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(p.Partitions[i].NewSize); err != nil {
		return err
	}
	d, err := cow.NewFileDevice(f)
	if err != nil {
		return err
	}
	err = apply.Direct(ctx, apply.DirectOptions{Metadata: &payload.Metadata{Manifest: out.Manifest}, Partition: out.Manifest.Partitions[i],
		Blobs: out, Old: p.old(i), New: fleeting{d}, Workers: p.o.Workers, Memory: p.o.Memory, Spool: p.o.Spool,
		OnProgress: report.installed(), OnVerify: report.grown(), Known: p.known(i)})
	return checked(ctx, err)
}

// known tells blocks by what they were when the plan was made, unless that was another
// process.
func (p *Plan) known(i int) (k apply.Known) {
	if part := &p.Partitions[i]; part.blocks != nil {
		k.New = part.blocks.has
		if part.oldBlocks != nil {
			k.Old = part.oldBlocks.has
		}
	}
	return k
}

func checked(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: %w: this is an error in Cowbird, or an image has changed", ErrCheck, err)
}

func (p *Plan) old(i int) cow.Device {
	if img := p.o.Partitions[i].Old; img != nil {
		return oldDevice{*img}
	}
	return nil
}

// oldDevice is an image as a device that is only read.
type oldDevice struct{ img cow.Image }

func (d oldDevice) ReadAt(b []byte, off int64) (int, error) {
	return io.NewSectionReader(d.img.R, 0, d.img.Size).ReadAt(b, off)
}
func (d oldDevice) WriteAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }
func (d oldDevice) Sync() error                        { return nil }
func (d oldDevice) Size() int64                        { return d.img.Size }

// fleeting is a file that need not outlive a crash.
type fleeting struct{ *cow.FileDevice }

func (fleeting) Sync() error { return nil }

func (f fleeting) Output() cowfile.Device {
	return fleetingOutput{f.FileDevice.Output().(cowfile.Resizable)}
}

type fleetingOutput struct{ cowfile.Resizable }

func (fleetingOutput) Sync() error { return nil }

// Blob implements apply.Blobs.
func (out *Payload) Blob(off, n int64) (*io.SectionReader, func(), error) {
	return io.NewSectionReader(out.blobs, off, n), func() {}, nil
}

// estimate installs a partition into a COW, to tell how large that becomes and how many
// ops it has. A version 2 COW has a label, which is an op, as often as the device takes
// the time for one; here after each operation, which is the most there can be.
func (p *Plan) estimate(ctx context.Context, out *Payload, i int, report *progress) error {
	u := out.Manifest.Partitions[i]
	f, err := spool(p.o.Spool)
	if err != nil {
		return err
	}
	d, err := cow.NewFileDevice(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	defer d.Close()
	o := apply.CowOptions{Metadata: &payload.Metadata{Manifest: out.Manifest}, Partition: u, Blobs: out, Old: p.old(i), Cow: fleeting{d},
		Workers: p.o.Workers, Memory: p.o.Memory, Spool: p.o.Spool, OnProgress: report.installed(), OnVerify: report.grown(), Known: p.known(i)}
	v3 := p.o.Dynamic.GetCowVersion() >= 3
	if !v3 {
		o.LabelEvery = -1
	}
	if err := checked(ctx, apply.Cow(ctx, o)); err != nil {
		return err
	}
	c, err := cowfile.Open(d, d.Size(), nil)
	if err != nil {
		return err
	}
	size := uint64(d.Size())
	if v3 { // on devices the table is as long as the manifest says, here it has room for every block
		h, ops := c.Header(), max(leastOps, uint64(c.NumOps()))
		u.EstimateOpCountMax = proto.Uint64(ops)
		size -= (h.OpCountMax - min(ops, u.GetNewPartitionInfo().GetSize()/blockSize)) * uint64(h.OpSize)
	}
	u.EstimateCowSize = proto.Uint64(size)
	return nil
}

// leastOps is the shortest op table that producers ask for (specs/payload.md 12.1).
const leastOps = 25

// Create makes a payload.
func Create(ctx context.Context, o Options) (*Payload, error) {
	p, err := newPlan(ctx, o, false)
	if err != nil {
		return nil, err
	}
	return p.make(ctx)
}

// make runs all items on this machine.
func (p *Plan) make(ctx context.Context) (made *Payload, err error) {
	s, err := newStore(p.o.Spool)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.f.Close()) }()
	if err := p.runAll(ctx, s); err != nil {
		return nil, err
	}
	return p.Join(ctx, s.result)
}

// ReadResult is what Append has written, for an item.
func ReadResult(b []byte, it *Item) (*Result, error) {
	header, rest, err := cutHeader(b)
	if err != nil {
		return nil, fmt.Errorf("%w %.12s: %w", ErrItem, it.ID, err)
	}
	sum := sha256.Sum256(rest)
	switch {
	case header.ID != it.ID:
		return nil, fmt.Errorf("%w %.12s: expected its ID, found %.12q", ErrItem, it.ID, header.ID)
	case !bytes.Equal(sum[:], header.Hash):
		return nil, fmt.Errorf("%w %.12s: expected data of SHA-256 %x, found %x", ErrItem, it.ID, header.Hash, sum)
	}
	r := &Result{Type: header.Type, Blob: rest, SrcHash: header.SrcHash, Xors: header.Xors}
	return r, r.check(it)
}

// check refuses what does not fit an item, so that no index is out of bounds later.
func (r *Result) check(it *Item) error {
	if payload.HasSource(r.Type) != (r.SrcHash != nil) || r.SrcHash != nil && it.Kind != Diff {
		return fmt.Errorf("%w %.12s: expected an operation of kind %s, found %v", ErrItem, it.ID, it.Kind, r.Type)
	}
	dst, src := count(it.Dst), int64(count(it.Src))*blockSize
	next := uint32(0)
	for _, x := range r.Xors {
		if x.Block < next || uint64(x.Block)+uint64(x.Count) > dst || x.Source < 0 || x.Source > src-int64(x.Count)*blockSize {
			return fmt.Errorf("%w %.12s: expected xors that rise within %d blocks and %d bytes, found %+v", ErrItem, it.ID, dst, src, x)
		}
		next = x.Block + x.Count
	}
	return nil
}

// Work lists the items that are to be run, each ID once, with the index of a partition
// that has it.
func (p *Plan) Work() (all []Task) {
	seen := map[string]bool{}
	for i := range p.Partitions {
		for j := range p.Partitions[i].Items {
			it := &p.Partitions[i].Items[j]
			if it.Work() && !seen[it.ID] {
				seen[it.ID] = true
				all = append(all, Task{i, it})
			}
		}
	}
	// The largest first, so that the last ones to end are small.
	slices.SortStableFunc(all, func(a, b Task) int { return int(b.need() - a.need()) })
	return all
}
