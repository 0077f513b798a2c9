package generate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"cowbird/cow"
	"cowbird/formats/payload/pb"
)

// planFile is a plan as machines exchange it.
type planFile struct {
	Format int    `json:"format"`
	Minor  uint32 `json:"minor_version"`
	Effort Effort `json:"effort"`
	Zstd   bool   `json:"zstd,omitempty"`
	// Manifest is the payload's, without operations (protobuf).
	Manifest   []byte          `json:"manifest"`
	Partitions []PartitionPlan `json:"partitions"`
}

// Encode is the plan as a file. The same images and options give the same bytes.
func (p *Plan) Encode() ([]byte, error) {
	m, err := proto.MarshalOptions{Deterministic: true}.Marshal(p.manifest)
	if err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(planFile{planFormat, p.o.Minor, p.o.Effort, p.o.Zstd, m, p.Partitions}, "", " ")
	return append(b, '\n'), err
}

// ReadPlan takes over a plan. image gives the images of a partition, old nil where there
// is none, which have to be those that the plan was made of: Run compares what it
// reads, and Join what comes out. Of o only Workers, Memory, Spool and OnProgress count.
func ReadPlan(b []byte, o Options, image func(name string, withOld bool) (newer cow.Image, old *cow.Image, err error)) (*Plan, error) {
	var f planFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("%w: plan: %w", ErrInput, err)
	}
	if f.Format != planFormat {
		return nil, fmt.Errorf("%w: plan: expected format %d, found %d: plan, run and join with the same version of Cowbird", ErrInput, planFormat, f.Format)
	}
	m := &pb.DeltaArchiveManifest{}
	if err := proto.Unmarshal(f.Manifest, m); err != nil {
		return nil, fmt.Errorf("%w: plan: %w", ErrInput, err)
	}
	if len(m.GetPartitions()) != len(f.Partitions) || f.Effort < Default || f.Effort > Max {
		return nil, fmt.Errorf("%w: plan: expected %d partitions, found %d", ErrInput, len(m.GetPartitions()), len(f.Partitions))
	}
	o.Partitions, o.Minor, o.Effort, o.Zstd = nil, f.Minor, f.Effort, f.Zstd
	o.Dynamic, o.Partial = m.GetDynamicPartitionMetadata(), m.GetPartialUpdate()
	for i := range f.Partitions {
		p := &f.Partitions[i]
		newer, old, err := image(p.Name, p.OldHash != "")
		if err != nil {
			return nil, err
		}
		o.Partitions = append(o.Partitions, Partition{Name: p.Name, New: newer, Old: old})
		if err := p.check(newer, old); err != nil {
			return nil, fmt.Errorf("%w: plan: partition %s: %w", ErrInput, p.Name, err)
		}
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	return &Plan{Partitions: f.Partitions, o: &o, manifest: m}, nil
}

// check compares a plan with its images, so that no block lies outside.
func (p *PartitionPlan) check(newer cow.Image, old *cow.Image) error {
	oldSize := int64(0)
	if old != nil {
		oldSize = old.Size
	}
	if newer.Size != p.NewSize || oldSize != p.OldSize {
		return fmt.Errorf("expected images of %d and %d bytes, found %d and %d", p.OldSize, p.NewSize, oldSize, newer.Size)
	}
	for i := range p.Items {
		it := &p.Items[i]
		if !it.sound() || !within(it.Dst, p.NewSize) || !within(it.File, p.NewSize) || !within(it.Src, p.OldSize) {
			return fmt.Errorf("item %d: expected an operation on blocks of the images, found %+v", i, *it)
		}
		if err := errors.Join(it.New.check(it.File), it.Old.check(it.Src)); err != nil {
			return fmt.Errorf("item %d: %w", i, err)
		}
	}
	return nil
}

// sound tells whether an item has what its kind needs.
func (it *Item) sound() bool {
	switch it.Kind {
	case Zero:
		return len(it.Dst) > 0 && len(it.Src) == 0
	case Copy:
		return len(it.Dst) == 1 && count(it.Src) == count(it.Dst)
	case Full:
		return len(it.Dst) > 0 && it.ID != ""
	case Diff:
		return len(it.Dst) > 0 && len(it.Src) > 0 && it.ID != ""
	}
	return false
}

func within(ranges []Range, size int64) bool {
	blocks := uint64(size / blockSize)
	for _, r := range ranges {
		if r.Count == 0 || r.Start >= blocks || r.Count > blocks-r.Start {
			return false
		}
	}
	return true
}

// Task finds the item of an ID.
func (p *Plan) Task(id string) (Task, bool) {
	for _, t := range p.Work() {
		if t.Item.ID == id {
			return t, true
		}
	}
	return Task{}, false
}

// RunTask runs a task after it has compared the images with the task's ID, and gives
// the result as a file.
func (p *Plan) RunTask(ctx context.Context, t Task) ([]byte, error) {
	id, _, err := p.o.id(t.Item, p.o.Partitions[t.Partition].hashes(nil))
	if err != nil {
		return nil, err
	}
	if id != t.Item.ID {
		return nil, fmt.Errorf("%w %.12s: expected the images of the plan, found others, which would give %.12s", ErrItem, t.Item.ID, id)
	}
	r, err := p.Run(ctx, t.Partition, t.Item)
	if err != nil {
		return nil, err
	}
	return r.Append(nil, t.Item)
}
