package install

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"cowbird/cow"
	"cowbird/formats/cowfile"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/ota/apply"
	"cowbird/ota/claim"
	"cowbird/ota/verify"
)

// Source is where a payload comes from: one of those here, or a fetch.Source. The data
// of a File are read where they are, and those of others streamed.
type Source interface {
	// Size is the payload's length in bytes; 0 if it is not known.
	Size() int64
	// From gives the payload from byte off on, until it is closed. A source that
	// comes once, such as standard input, is asked once, and for offsets that
	// rise.
	From(ctx context.Context, off int64) (io.ReadCloser, error)
}

// Options say what Run is to do.
type Options struct {
	Config *Config
	// Prepare, if not nil, gives the Config once the payload's metadata are known
	// and may be trusted, and before anything is written.
	Prepare func(*payload.Metadata) (*Config, error)
	Source  Source
	// Policy is what the payload has to be. Nothing is written of one that is
	// refused.
	Policy verify.Policy
	// CareMap is a file with what of the new system is to be read after its first
	// boot (see payload.ParseCareMap); nil: none. It is not looked at here.
	CareMap []byte
	// Restart forgets another payload that was being installed.
	Restart bool
	// Workers, Memory, LabelEvery and Stream are as in package apply. Stream.Spool
	// is also where operations spill that need more than Memory.
	Workers    int
	Memory     int64
	LabelEvery time.Duration
	Stream     apply.StreamOptions
	// OnPartition, if not nil, is told of each partition that begins, with how
	// far it is: "complete" or "".
	OnPartition func(name, how string)
	// OnProgress, if not nil, is called with bytes of all new partitions.
	OnProgress func(done, total int64)
}

// Run installs a payload, or goes on with it. When it returns nil, all signatures and
// hashes were right: those of the metadata, of a File also that of the whole payload,
// before anything is written, and that of a stream in the end.
func Run(ctx context.Context, o Options) error {
	r := &run{o: o}
	head, err := o.Source.From(ctx, 0)
	if err != nil {
		return err
	}
	r.stream = &followed{ReadCloser: head}
	defer func() { _ = r.stream.Close() }()
	if r.m, err = verify.Read(head, o.Source.Size(), o.Policy); err != nil {
		return err
	}
	if err := r.checkFile(ctx); err != nil {
		return err
	}
	if o.Prepare != nil {
		if r.o.Config, err = o.Prepare(r.m); err != nil {
			return err
		}
	}
	if err := r.o.Config.check(r.m); err != nil {
		return err
	}
	if err := r.begin(); err != nil {
		return err
	}
	if err := r.partitions(ctx); err != nil || r.state.Done {
		return err
	}
	if err := r.checkPayload(ctx); err != nil {
		return err
	}
	r.state.Done, r.state.Sum = true, nil
	return r.state.write(r.o.Config.State)
}

// checkFile looks at all of a payload that can be read twice.
func (r *run) checkFile(ctx context.Context) error {
	f, ok := r.o.Source.(*File)
	if !ok {
		return nil
	}
	return verify.File(ctx, r.m, f, f.Size(), r.o.Policy, nil)
}

// begin opens the state, and has the sum go on from there.
func (r *run) begin() (err error) {
	if err = r.openState(); err != nil {
		return err
	}
	r.stream.at = r.m.BlobOffset()
	r.follow, err = newFollow(r.m, r.state.Sum)
	if err == nil {
		r.stream.sum = r.follow.sum
	}
	return err
}

func (r *run) partitions(ctx context.Context) error {
	for _, p := range r.m.Manifest.GetPartitions() {
		r.total += int64(p.GetNewPartitionInfo().GetSize())
	}
	for _, p := range r.m.Manifest.GetPartitions() {
		if err := r.partition(ctx, p); err != nil {
			return fmt.Errorf("partition %s: %w", p.GetPartitionName(), err)
		}
	}
	return nil
}

// Identity tells payloads apart.
func Identity(m *payload.Metadata) string { return fmt.Sprintf("%x", sha256.Sum256(m.Signed)) }

// Began is the Identity of the payload whose progress is in a file; "" if there is
// none.
func Began(state string) (string, error) {
	s, err := readState(state)
	if err != nil {
		return "", err
	}
	return s.Payload, nil
}

type run struct {
	o     Options
	m     *payload.Metadata
	state *state

	stream *followed
	follow *follow
	blobs  apply.Blobs

	done, total int64
}

// openState finds out whether this payload was begun, and begins it otherwise.
func (r *run) openState() (err error) {
	if r.state, err = readState(r.o.Config.State); err != nil {
		return err
	}
	id := Identity(r.m)
	switch {
	case r.state.Payload == id:
		return nil
	case r.state.Payload != "" && !r.state.Done && !r.o.Restart:
		return fmt.Errorf("%w: expected the one whose metadata have SHA-256 %s, found %s", ErrOther, r.state.Payload, id)
	}
	if err := r.dropCows(); err != nil {
		return err
	}
	r.state = &state{Payload: id}
	return r.state.write(r.o.Config.State)
}

// dropCows makes the COWs of another payload unreadable, so that they are not taken for
// those of this one. Those of a system that may be running stay: nothing is dropped
// before all have been looked at.
func (r *run) dropCows() (err error) {
	var cows []*cow.FileDevice
	defer func() {
		for _, d := range cows {
			err = errors.Join(err, d.Close())
		}
	}()
	for name, p := range r.o.Config.Partitions {
		if p.Cow == "" {
			continue
		}
		d, err := claim.Open(p.Cow)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("partition %s: %w", name, err)
		}
		cows = append(cows, d)
		if r.state.Done && !r.o.Restart && unmerged(d) {
			return fmt.Errorf("%w: expected %s to be merged, found it is not", ErrPending, p.Cow)
		}
	}
	for _, d := range cows {
		if _, err := d.WriteAt(make([]byte, cowfile.BlockSize), 0); err != nil {
			return err
		}
		if err := d.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// unmerged tells of a complete COW whether its merge is still to come.
func unmerged(d *cow.FileDevice) bool {
	f, err := cowfile.Open(d, d.Size(), nil)
	return err == nil && f.NumMergeOps() < f.NumOps()
}

// data gives the payload's data. A stream is asked again where there is much that
// nobody wants, as after a resumption.
func (r *run) data(ctx context.Context) apply.Blobs {
	if f, ok := r.o.Source.(*File); ok {
		return apply.BlobsAt(r.m, f)
	}
	return &asker{r, ctx}
}

// farAhead is how many bytes are rather asked for anew than read and dropped.
const farAhead = 1 << 20

type asker struct {
	r   *run
	ctx context.Context
}

// Blob implements apply.Blobs.
func (a *asker) Blob(off, n int64) (*io.SectionReader, func(), error) {
	r := a.r
	at := r.m.BlobOffset() + off
	from := min(at, r.follow.sum.Offset())
	if begins := r.blobs == nil && from > r.stream.at; begins || from > r.stream.at+farAhead || at < r.stream.at {
		if err := r.seek(a.ctx, from); err != nil {
			return nil, nil, err
		}
	}
	if r.blobs == nil {
		r.blobs = apply.StreamFrom(r.stream, r.stream.at-r.m.BlobOffset(), r.o.Stream)
	}
	if at >= r.follow.sum.Offset() {
		if err := r.follow.note(); err != nil {
			return nil, nil, err
		}
	}
	return r.blobs.Blob(off, n)
}

// seek has the stream go on at byte at of the payload.
func (r *run) seek(ctx context.Context, at int64) error {
	s, err := r.o.Source.From(ctx, at)
	if err != nil {
		return err
	}
	_ = r.stream.Close()
	r.stream, r.blobs = &followed{s, at, r.follow.sum}, nil
	return nil
}

func (r *run) partition(ctx context.Context, p *pb.PartitionUpdate) error {
	name, size := p.GetPartitionName(), int64(p.GetNewPartitionInfo().GetSize())
	if slices.Contains(r.state.Complete, name) {
		r.tell(name, "complete")
		r.progress(size)
		return nil
	}
	var err error
	if place := r.o.Config.Partitions[name]; place.Cow != "" {
		err = r.intoCow(ctx, p, place)
	} else {
		err = r.direct(ctx, p, place)
	}
	if err != nil {
		return err
	}
	r.done += size
	r.state.Complete = append(r.state.Complete, name)
	return r.save(r.follow.all())
}

// save keeps a sum and what else is in the state.
func (r *run) save(sum []byte, err error) error {
	if err != nil {
		return err
	}
	r.state.Sum = sum
	return r.state.write(r.o.Config.State)
}

func (r *run) tell(name, how string) {
	if r.o.OnPartition != nil {
		r.o.OnPartition(name, how)
	}
}

func (r *run) progress(n int64) {
	r.done += n
	r.report(0)
}

func (r *run) report(done int64) {
	if r.o.OnProgress != nil {
		r.o.OnProgress(r.done+done, r.total)
	}
}

func (r *run) intoCow(ctx context.Context, p *pb.PartitionUpdate, place Partition) error {
	old, closeOld, err := openOld(p, place)
	if err != nil {
		return err
	}
	defer closeOld()
	d, err := claim.Create(place.Cow)
	if err != nil {
		return err
	}
	defer d.Close()
	r.tell(p.GetPartitionName(), "")
	return apply.Cow(ctx, apply.CowOptions{Metadata: r.m, Partition: p, Blobs: r.data(ctx), Old: old, Cow: d, Resume: true,
		Form: r.o.Config.form(), Workers: r.o.Workers, Memory: r.o.Memory, Spool: r.o.Stream.Spool, LabelEvery: r.o.LabelEvery,
		OnLabel: func(next int) error {
			if sum := r.follow.before(p, next); sum != nil {
				return r.save(sum, nil)
			}
			return nil
		},
		OnProgress: func(done, _ int64) { r.report(done) }})
}

func (r *run) direct(ctx context.Context, p *pb.PartitionUpdate, place Partition) error {
	old, closeOld, err := openOld(p, place)
	if err != nil {
		return err
	}
	defer closeOld()
	d, err := openNew(place.New, int64(p.GetNewPartitionInfo().GetSize()))
	if err != nil {
		return err
	}
	defer d.Close()
	r.tell(p.GetPartitionName(), "")
	return apply.Direct(ctx, apply.DirectOptions{Metadata: r.m, Partition: p, Blobs: r.data(ctx), Old: old, New: d, Workers: r.o.Workers, Memory: r.o.Memory, Spool: r.o.Stream.Spool,
		OnProgress: func(done, _ int64) { r.report(done) }})
}

// openOld gives nil for a partition that has no old one.
func openOld(p *pb.PartitionUpdate, place Partition) (cow.Device, func(), error) {
	if p.OldPartitionInfo == nil && place.Old == "" {
		return nil, func() {}, nil
	}
	d, err := cow.OpenDevice(place.Old, false)
	if err != nil {
		return nil, nil, err
	}
	if n := int64(p.GetOldPartitionInfo().GetSize()); d.Size() < n {
		return nil, nil, errors.Join(fmt.Errorf("%w: %s: expected at least %d bytes, found %d", apply.ErrSource, place.Old, n, d.Size()), d.Close())
	}
	return d, func() { _ = d.Close() }, nil
}

// openNew opens a partition that is written directly; a file is made as long as it
// has to be.
func openNew(path string, size int64) (*cow.FileDevice, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	d, err := cow.NewFileDevice(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if d.IsRegular() && d.Size() < size {
		if err := d.Grow(size); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	return d, nil
}
