package update

import (
	"errors"
	"fmt"

	"cowbird/formats/lpmeta"
	"cowbird/formats/payload/pb"
	"cowbird/formats/snapshotpb"
)

const (
	blockSize  = 4096
	sectorSize = lpmeta.SectorSize
	// cowMargin is what a COW gets over its estimate.
	cowMargin = 2 << 20
	cowGroup  = "cow"
	// maxCowVersion is the newest COW that is written here.
	maxCowVersion = 3
	// oldCompression is meant by payloads that name none.
	oldCompression = "gz"
)

func cowName(partition string) string { return partition + "-cow" }

// plan is what an update will do to the device, of which nothing is done yet.
type plan struct {
	target    *lpmeta.Metadata // the new slot's partitions, and the COWs
	old       *lpmeta.Metadata // the running slot's partitions, and no more
	snapshots []*snapshotpb.SnapshotStatus
}

// planner has what a plan is made from.
type planner struct {
	manifest *pb.DeltaArchiveManifest
	from, to string           // suffixes
	old      *lpmeta.Metadata // partitions of from
	target   *lpmeta.Builder
	unused   []lpmeta.Region // what no partition of from has
}

// planUpdate computes everything, so that what does not fit is refused before
// anything is changed. room is how many bytes of COWs can be in files.
func planUpdate(running *lpmeta.Metadata, from, to string, manifest *pb.DeltaArchiveManifest, room int64) (*plan, error) {
	p := &planner{manifest: manifest, from: from, to: to}
	if err := p.begin(running); err != nil {
		return nil, err
	}
	groups, err := p.groups()
	if err != nil {
		return nil, err
	}
	apply := p.target.Apply
	if manifest.GetPartialUpdate() {
		apply = p.target.ApplyPartial
	}
	if isPlain(running) {
		if err := checkPlain(running, groups); err != nil {
			return nil, err
		}
	}
	if err := apply(groups); err != nil {
		return nil, fmt.Errorf("new partitions: %w", noSpace(err))
	}
	snapshots, err := p.snapshots()
	if err != nil {
		return nil, err
	}
	if err := p.place(snapshots, room); err != nil {
		return nil, err
	}
	meta, err := p.target.Export()
	if err != nil {
		return nil, err
	}
	return &plan{target: meta, old: p.old, snapshots: snapshots}, nil
}

func noSpace(err error) error {
	if errors.Is(err, lpmeta.ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// begin leaves what the running slot's metadata have of earlier updates behind.
func (p *planner) begin(running *lpmeta.Metadata) error {
	b, err := lpmeta.FromMetadata(running)
	if err != nil {
		return err
	}
	for _, name := range b.PartitionsIn(cowGroup) {
		if err := b.RemovePartition(name); err != nil {
			return err
		}
	}
	for _, g := range b.Groups() {
		if g.Name == cowGroup || lpmeta.Suffix(g.Name) == p.to {
			if err := b.RemoveGroup(g.Name); err != nil {
				return err
			}
		}
	}
	for _, name := range b.Partitions() {
		if lpmeta.Suffix(name) == p.to {
			if err := b.RemovePartition(name); err != nil {
				return err
			}
		}
	}
	if p.old, err = b.Export(); err != nil {
		return err
	}
	p.unused = b.Free()
	if p.target, err = lpmeta.ForUpdate(p.old, p.from, p.to); err == nil && isPlain(running) {
		p.target.OwnDevices()
	}
	return err
}

// partitions are those of the manifest, by name without suffix.
func (p *planner) partitions() (map[string]*pb.PartitionUpdate, error) {
	byName := map[string]*pb.PartitionUpdate{}
	for _, u := range p.manifest.GetPartitions() {
		if byName[u.GetPartitionName()] != nil {
			return nil, fmt.Errorf("%w: partition %s comes twice", ErrManifest, u.GetPartitionName())
		}
		byName[u.GetPartitionName()] = u
	}
	return byName, nil
}

// groups are the manifest's, with the sizes that its partitions will have.
func (p *planner) groups() (groups []lpmeta.GroupPlan, err error) {
	updates, err := p.partitions()
	if err != nil {
		return nil, err
	}
	for _, g := range p.manifest.GetDynamicPartitionMetadata().GetGroups() {
		plan := lpmeta.GroupPlan{Name: g.GetName() + p.to, MaximumSize: g.GetSize()}
		for _, name := range g.GetPartitionNames() {
			u := updates[name]
			if u == nil {
				if p.manifest.GetPartialUpdate() {
					continue
				}
				return nil, fmt.Errorf("%w: group %s names partition %s, which does not come", ErrManifest, g.GetName(), name)
			}
			plan.Partitions = append(plan.Partitions, lpmeta.PartitionPlan{Name: name + p.to, Size: roundUp(u.GetNewPartitionInfo().GetSize(), blockSize)})
		}
		groups = append(groups, plan)
	}
	return groups, nil
}

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

// snapshots are one for each partition that comes and is in super.
func (p *planner) snapshots() (all []*snapshotpb.SnapshotStatus, err error) {
	d := p.manifest.GetDynamicPartitionMetadata()
	if v := d.GetCowVersion(); v > maxCowVersion {
		return nil, fmt.Errorf("%w: expected COWs of a version up to %d, found %d", ErrManifest, maxCowVersion, v)
	}
	for _, u := range p.manifest.GetPartitions() {
		name := u.GetPartitionName() + p.to
		size, inSuper := p.target.Size(name)
		if !inSuper || size == 0 {
			continue
		}
		if u.GetEstimateCowSize() == 0 {
			return nil, fmt.Errorf("%w: expected an estimate of the COW of %s, found none", ErrManifest, u.GetPartitionName())
		}
		all = append(all, p.snapshot(u, name, size))
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: expected a partition that is in super, found none", ErrManifest)
	}
	return all, nil
}

func (p *planner) snapshot(u *pb.PartitionUpdate, name string, size uint64) *snapshotpb.SnapshotStatus {
	d := p.manifest.GetDynamicPartitionMetadata()
	s := &snapshotpb.SnapshotStatus{
		Name: name, State: snapshotpb.SnapshotState_CREATED,
		DeviceSize: size, SnapshotSize: size, UsingSnapuserd: true,
		CompressionAlgorithm: d.GetVabcCompressionParam(), CompressionFactor: d.GetCompressionFactor(),
		EnableThreading: d.GetVabcFeatureSet().GetThreaded(), BatchedWrites: d.GetVabcFeatureSet().GetBatchWrites(),
		EstimatedCowSize: u.GetEstimateCowSize(), EstimatedOpsBufferSize: u.GetEstimateOpCountMax(),
	}
	if s.CompressionAlgorithm == "" {
		s.CompressionAlgorithm = oldCompression
	}
	if old := p.old.Partition(u.GetPartitionName() + p.from); old != nil {
		s.OldPartitionSize = p.old.Size(old)
	}
	return s
}

// place finds room for the COWs: in super where neither slot has anything, and for
// the rest in files.
func (p *planner) place(snapshots []*snapshotpb.SnapshotStatus, room int64) error {
	if err := p.target.AddGroup(cowGroup, 0); err != nil {
		return err
	}
	lack := NoSpaceError{Missing: -room}
	for _, s := range snapshots {
		size := roundUp(s.EstimatedCowSize+cowMargin, blockSize)
		inSuper, err := p.placeInSuper(cowName(s.Name), size)
		if err != nil {
			return err
		}
		s.CowPartitionSize, s.CowFileSize = inSuper, size-inSuper
		lack.Needed += int64(size)
		lack.Super += int64(inSuper)
		lack.Missing += int64(s.CowFileSize)
	}
	if lack.Missing > 0 {
		return &lack
	}
	return nil
}

// placeInSuper makes a partition of up to size bytes, as large as it can be.
func (p *planner) placeInSuper(name string, size uint64) (uint64, error) {
	if err := p.target.AddPartition(name, cowGroup, 0); err != nil {
		return 0, err
	}
	err := p.target.Resize(name, size, p.unused)
	if err == nil {
		return size, nil
	}
	if !errors.Is(err, lpmeta.ErrNoSpace) {
		return 0, err
	}
	var free uint64
	for _, r := range lpmeta.Intersect(p.target.Free(), p.unused) {
		free += r.Sectors() * sectorSize
	}
	// Pieces that are no whole blocks cannot be used, and alignment costs some.
	step := max(uint64(p.target.Geometry().LogicalBlockSize), blockSize)
	for free = free / step * step; free > 0; free -= step {
		if err = p.target.Resize(name, free, p.unused); !errors.Is(err, lpmeta.ErrNoSpace) {
			return free, err
		}
	}
	return 0, p.target.RemovePartition(name)
}
