package apply

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"cowbird/cow"
	"cowbird/formats/compress"
	"cowbird/formats/cowfile"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// EndOfInstall is the label behind a partition's last operation. Hash tree and error
// correction come after it (specs/payload.md 12.3).
const EndOfInstall = 1 << 48

// labelEvery is the least time between two labels.
const labelEvery = time.Second

// pieceSize is how much of an operation's output is one request to the COW's writer.
const pieceSize = 1 << 20

// CowOptions say what Cow is to write.
type CowOptions struct {
	// Metadata is that of the payload, checked.
	Metadata *payload.Metadata
	// Partition is the one of its manifest to install.
	Partition *pb.PartitionUpdate
	// Blobs gives the payload's data. Of operations that are done already
	// nothing is asked.
	Blobs Blobs
	// Old is the old partition, which is only read; nil if there is none. It is
	// also the base that the COW will be served and merged with.
	Old cow.Device
	// Cow is where the COW goes.
	Cow CowDevice
	// Resume goes on at the last label, if there is one.
	Resume bool
	// Form overrides what the manifest says of the COW.
	Form CowForm
	// Workers is how many operations are decoded at once, and how many units
	// compressed; 0: one for each processor.
	Workers int
	// Memory is how many bytes the operations that run may Need together (see
	// NewMemory); 0: DefaultMemory, and none spills. Spool is where they spill.
	Memory int64
	Spool  string
	// LabelEvery is the least time between two labels; 0: a second. Below 0
	// every operation has one.
	LabelEvery time.Duration
	// OnLabel, if not nil, is called when the COW is durable up to an operation. It
	// fails the installation if it fails.
	OnLabel func(next int) error
	// OnProgress, if not nil, is called with bytes of the new partition, by one
	// goroutine at a time.
	OnProgress func(done, total int64)
	// OnVerify, if not nil, is called with bytes of the new partition that have been
	// read back, in the end, by one goroutine at a time.
	OnVerify func(done int64)
	// Known may save hashing.
	Known Known
}

// CowDevice is a file or device for a COW, such as a cow.FileDevice.
type CowDevice interface {
	cow.Device
	// Output is the device as what a COW is written to.
	Output() cowfile.Device
}

// CowForm is the form of a COW.
type CowForm struct {
	Version     int    // 2 or 3; 0: the manifest's
	Compression string // as "lz4" or "zstd,9", "none"; "": the manifest's
	MaxUnit     int    // bytes (version 3); 0: the manifest's
}

// form is a CowForm with nothing left open.
type form struct {
	version, unit, level int
	compression          cowfile.Compression
}

func (o *CowOptions) form() (f form, err error) {
	d := o.Metadata.Manifest.GetDynamicPartitionMetadata()
	if f.version = o.Form.Version; f.version == 0 {
		f.version = max(2, int(d.GetCowVersion()))
	}
	text := o.Form.Compression
	if text == "" {
		text = d.GetVabcCompressionParam()
	}
	if f.compression, f.level, err = cowfile.ParseCompression(text); err != nil {
		return f, err
	}
	if f.unit = o.Form.MaxUnit; f.unit == 0 {
		f.unit = max(cowfile.BlockSize, int(d.GetCompressionFactor()))
	}
	if f.version < 3 {
		f.unit = cowfile.BlockSize
	}
	return f, nil
}

func (f *form) newCompressor() (func(dst, unit []byte) ([]byte, error), error) {
	return compress.New(f.compression.String(), f.level, f.unit)
}

// Cow installs a partition into a COW, which is complete and verified when Cow
// returns nil: it gives the new partition over the old one. Should it fail or be
// killed, the next call with Resume goes on where the COW was last durable.
//
// It holds what the operations of some workers Need, and 4 MiB a worker of what
// operations have given; and the hash tree and error correction, if it has to make
// them.
func Cow(ctx context.Context, o CowOptions) error {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.LabelEvery == 0 {
		o.LabelEvery = labelEvery
	}
	if bs := o.Metadata.Manifest.GetBlockSize(); bs != cowfile.BlockSize {
		return fmt.Errorf("%w: expected blocks of %d bytes, found %d", cowfile.ErrRequest, cowfile.BlockSize, bs)
	}
	i, err := newInstall(&o)
	if err != nil {
		return err
	}
	if err := i.operations(ctx); err != nil {
		return err
	}
	if err := i.verity(); err != nil {
		return err
	}
	return i.verify(ctx)
}

// install is one run of Cow.
type install struct {
	o    *CowOptions
	form form
	plan *mergePlan
	ops  []*pb.InstallOperation
	next int // operation to begin with
	w    *cow.Writer

	labelled time.Time
	last     uint64 // label
	partly   bool   // an operation has begun to be written
	total    int64
	done     int64
}

func newInstall(o *CowOptions) (*install, error) {
	i := &install{o: o, plan: newMergePlan(o.Partition), ops: o.Partition.GetOperations(), total: int64(o.Partition.GetNewPartitionInfo().GetSize())}
	var err error
	if i.form, err = o.form(); err != nil {
		return nil, err
	}
	if o.Resume {
		if resumed, err := i.resume(); resumed || err != nil {
			return i, err
		}
	}
	return i, i.begin()
}

func (i *install) writerOptions() cow.WriterOptions {
	return cow.WriterOptions{Version: i.form.version, Compression: i.form.compression, NewCompressor: i.form.newCompressor,
		MaxUnit: i.form.unit, MaxBlocks: uint64(i.total) / cowfile.BlockSize, OpCountMax: i.opCount(), Workers: i.o.Workers, Batch: true}
}

// opCount is the capacity of the op table. What a version 2 producer says of it
// means nothing (specs/payload.md 2).
func (i *install) opCount() uint32 {
	blocks := uint32(i.total / cowfile.BlockSize)
	n := i.o.Partition.GetEstimateOpCountMax()
	if n == 0 || i.o.Metadata.Manifest.GetDynamicPartitionMetadata().GetCowVersion() < 3 {
		return blocks
	}
	return uint32(min(n, uint64(blocks)))
}

// begin starts a COW.
func (i *install) begin() (err error) {
	if i.w, err = cow.NewWriter(i.o.Cow.Output(), i.writerOptions()); err != nil {
		return err
	}
	if s := sequence(i.o.Partition); len(s) > 0 {
		if err := i.w.Sequence(s); err != nil {
			return err
		}
	}
	return i.label(0)
}

// resume continues a COW, if there is one with a label.
func (i *install) resume() (resumed bool, err error) {
	label, found := lastLabel(i.o.Cow)
	if !found || label == 0 {
		return false, nil
	}
	if label > uint64(len(i.ops)) && label != EndOfInstall {
		return false, fmt.Errorf("%w: expected a label of one of %d operations in the COW, found %d: is it of another payload? start again without it",
			cowfile.ErrRequest, len(i.ops), label)
	}
	i.next, i.last = int(min(label, uint64(len(i.ops)))), label
	for _, op := range i.ops[:i.next] {
		i.done += bytesIn(op)
	}
	i.w, err = cow.OpenWriter(i.o.Cow.Output(), i.o.Cow.Size(), label, i.writerOptions())
	return true, err
}

func bytesIn(op *pb.InstallOperation) int64 {
	return int64(payload.Blocks(op.GetDstExtents())) * cowfile.BlockSize
}

// lastLabel is the highest label at which a COW can be continued.
func lastLabel(d cow.Device) (label uint64, found bool) {
	labels, _ := cowfile.Labels(d, d.Size())
	for _, label := range slices.Backward(labels) {
		if _, err := cowfile.Open(d, d.Size(), &cowfile.Options{Label: &label}); err == nil {
			return label, true
		}
	}
	return 0, false
}

func (i *install) label(n uint64) error {
	i.labelled, i.last = time.Now(), n
	if err := i.w.Label(n); err != nil || i.o.OnLabel == nil {
		return err
	}
	return i.o.OnLabel(int(min(n, uint64(len(i.ops)))))
}

// request is a call of the COW's writer.
type request struct {
	kind         cowfile.OpType
	first, count uint64
	data         []byte // of replace and xor
	old, offset  uint64 // of copy and xor
	buf          []byte // whose data are used up by this one
}

type piece [pieceSize]byte

var pieces = sync.Pool{New: func() any { return new(piece) }}

// smallPiece is the largest buffer that is made for an operation, and not shared.
const smallPiece = pieceSize / 8

// newBuffer is for up to n bytes of an operation, at most a piece.
func newBuffer(n int64) []byte {
	if n <= smallPiece {
		return make([]byte, n)
	}
	return pieces.Get().(*piece)[:]
}

func giveBack(buf []byte) {
	if len(buf) == pieceSize {
		pieces.Put((*piece)(buf))
	}
}

const (
	// aheadSize is how much of what operations give a worker holds, in bytes: while the
	// COW waits for one, those behind it are decoded.
	aheadSize = 4 << 20
	// queued is how many requests of an operation wait.
	queued = 2
	// mostAhead is how many operations there are at a time.
	mostAhead = 256
)

// holds is how many bytes of what an operation gives are held at once.
func holds(op *pb.InstallOperation) int64 {
	n := bytesIn(op)
	buffers := min(n/pieceSize+int64(len(op.GetDstExtents())), queued+1) // no buffer goes across extents
	if n > smallPiece {
		n = pieceSize
	}
	return buffers * n
}

// operations decodes operations on several processors, and writes what they give
// in their order.
func (i *install) operations(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	order := make(chan *decoding, mostAhead)
	work := make(chan *decoding)
	ahead := semaphore.NewWeighted(int64(i.o.Workers) * aheadSize)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { i.feed(ctx, ahead, order, work) })
	for range i.o.Workers {
		wg.Go(func() {
			for d := range work {
				d.run(ctx, i.plan)
			}
		})
	}
	for d := range order {
		if err := i.write(ctx, d); err != nil {
			i.keep(d.op.Number)
			return d.op.where(err)
		}
		ahead.Release(holds(d.op.InstallOperation))
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if i.last != EndOfInstall {
		if err := i.label(EndOfInstall); err != nil {
			return err
		}
	}
	_, err := i.w.Finish()
	return err
}

// keep labels what comes before an operation that has failed, so that it need not be
// done again. That is in vain if it was the writer that has failed.
func (i *install) keep(number int) {
	if !i.partly && uint64(number) != i.last {
		_ = i.label(uint64(number))
	}
}

// decoding is an operation on its way.
type decoding struct {
	op       *Operation
	done     func()
	requests chan request // closed at the end
	err      error        // valid then
}

// feed begins with operations as the workers take them, each with what it is going to
// hold, so that none has to wait for one that is written later. Blobs that cannot be had
// are a failure of their operation, behind those that came before.
func (i *install) feed(ctx context.Context, ahead *semaphore.Weighted, order, work chan<- *decoding) {
	defer close(work)
	defer close(order)
	ops := &Operations{Partition: i.o.Partition, BlockSize: cowfile.BlockSize, Blobs: i.o.Blobs, Old: i.o.Old, Known: i.o.Known, Memory: newDeviceMemory(i.o.Memory, i.o.Spool)}
	for n := i.next; n < len(i.ops); n++ {
		if ahead.Acquire(ctx, holds(i.ops[n])) != nil {
			return
		}
		op, done, err := ops.At(n)
		d := &decoding{op: op, done: done, requests: make(chan request, queued), err: err}
		if err != nil {
			close(d.requests)
			select {
			case order <- d:
			case <-ctx.Done():
			}
			return
		}
		op.Reserve()
		for _, c := range []chan<- *decoding{order, work} {
			select {
			case c <- d:
			case <-ctx.Done():
				d.err = ctx.Err()
				close(d.requests)
				return
			}
		}
	}
}

// write passes an operation's requests on, and then labels it if it is time.
func (i *install) write(ctx context.Context, d *decoding) error {
	for {
		var r request
		more := false
		select {
		case r, more = <-d.requests:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if !more {
			break
		}
		i.partly = true
		if err := i.request(r); err != nil {
			return err
		}
	}
	if d.err != nil {
		return d.err
	}
	i.partly = false
	i.done += bytesIn(d.op.InstallOperation)
	if i.o.OnProgress != nil {
		i.o.OnProgress(i.done, i.total)
	}
	if time.Since(i.labelled) < i.o.LabelEvery && i.o.LabelEvery > 0 {
		return nil
	}
	return i.label(uint64(d.op.Number + 1))
}

func (i *install) request(r request) (err error) {
	switch r.kind {
	case cowfile.OpCopy:
		err = i.w.Copy(r.first, r.old, r.count)
	case cowfile.OpZero:
		err = i.w.Zero(r.first, r.count)
	case cowfile.OpXor:
		err = i.w.Xor(r.first, r.data, r.old, r.offset)
	default:
		err = i.w.Replace(r.first, r.data)
	}
	giveBack(r.buf)
	return err
}

// run decodes the operation.
func (d *decoding) run(ctx context.Context, plan *mergePlan) {
	defer d.done()
	defer close(d.requests)
	out := &requester{ctx: ctx, d: d, plan: plan, starts: map[int64]bool{}}
	for _, e := range d.op.GetDstExtents() {
		out.starts[int64(e.GetStartBlock())*cowfile.BlockSize] = true
	}
	if d.op.GetType() == pb.InstallOperation_SOURCE_COPY {
		d.err = out.copyBlocks()
		return
	}
	if payload.HasSource(d.op.GetType()) {
		out.old = d.op.Old
	}
	if d.err = d.op.Run(out); d.err == nil {
		d.err = out.flush()
	}
}

// requester makes requests of what an operation writes, from front to back.
type requester struct {
	ctx    context.Context
	d      *decoding
	plan   *mergePlan
	old    io.ReaderAt    // of xor; nil: no operation for it
	starts map[int64]bool // of extents: no request goes across

	buf []byte
	n   int
	at  int64 // where in the partition buf is
}

func (r *requester) send(q request) error {
	select {
	case r.d.requests <- q:
		return nil
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
}

// WriteAt implements Sink. Writes do not go across extents.
func (r *requester) WriteAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := off + int64(n)
		if r.n > 0 && (at != r.at+int64(r.n) || r.n == len(r.buf) || r.starts[at]) {
			if err := r.flush(); err != nil {
				return n, err
			}
		}
		if r.n == 0 {
			r.buf, r.at = newBuffer(bytesIn(r.d.op.InstallOperation)), at
		}
		k := copy(r.buf[r.n:], p[n:])
		r.n += k
		n += k
	}
	return n, nil
}

// Zero implements Sink.
func (r *requester) Zero(off, n int64) error {
	if err := r.flush(); err != nil {
		return err
	}
	return r.send(request{kind: cowfile.OpZero, first: uint64(off) / cowfile.BlockSize, count: uint64(n) / cowfile.BlockSize})
}

// flush makes requests of what is held: first what is a difference to the source,
// then the rest (specs/payload.md 12.3).
func (r *requester) flush() error {
	if r.n == 0 {
		return nil
	}
	buf, data, first := r.buf, r.buf[:r.n], uint64(r.at)/cowfile.BlockSize
	r.buf, r.n = nil, 0
	end := first + uint64(len(data))/cowfile.BlockSize
	var requests []request
	var plain []blockRange
	from := first
	if r.old != nil {
		for _, x := range r.plan.xorsWithin(first, end) {
			made, err := r.xor(x, data[(x.first-first)*cowfile.BlockSize:(x.end-first)*cowfile.BlockSize])
			if err != nil {
				return err
			}
			requests = append(requests, made...)
			if x.first > from {
				plain = append(plain, blockRange{from, x.first})
			}
			from = x.end
		}
	}
	if from < end {
		plain = append(plain, blockRange{from, end})
	}
	for _, b := range plain {
		requests = append(requests, request{kind: cowfile.OpReplace, first: b.first, data: data[(b.first-first)*cowfile.BlockSize : (b.end-first)*cowfile.BlockSize]})
	}
	requests[len(requests)-1].buf = buf
	for _, q := range requests {
		if err := r.send(q); err != nil {
			return err
		}
	}
	return nil
}

// xor makes data the difference to the source. The last block may begin where less
// than a block is left of the source; its offset is 0 then.
func (r *requester) xor(x xorRange, data []byte) ([]request, error) {
	source := make([]byte, len(data))
	n, err := r.old.ReadAt(source, int64(x.old*cowfile.BlockSize+x.offset))
	whole := uint64(n / cowfile.BlockSize)
	if err != nil && err != io.EOF || whole+1 < x.end-x.first {
		return nil, &ioError{fmt.Errorf("read %d bytes of the old partition at block %d: %w", len(data), x.old, errors.Join(err, io.ErrUnexpectedEOF))}
	}
	requests := []request{{kind: cowfile.OpXor, first: x.first, data: data[:whole*cowfile.BlockSize], old: x.old, offset: x.offset}}
	if whole == 0 {
		requests = nil
	}
	if whole < x.end-x.first {
		last := source[whole*cowfile.BlockSize:]
		if k, err := r.old.ReadAt(last, int64((x.old+whole)*cowfile.BlockSize)); k < len(last) {
			return nil, &ioError{fmt.Errorf("read block %d of the old partition: %w", x.old+whole, err)}
		}
		requests = append(requests, request{kind: cowfile.OpXor, first: x.first + whole, data: data[whole*cowfile.BlockSize:], old: x.old + whole})
	}
	for i := range data {
		data[i] ^= source[i]
	}
	return requests, nil
}

// copyBlocks is SOURCE_COPY: blocks that stay where they are need nothing, those of
// merge operations are copied, and the rest is replaced by what the source has.
func (r *requester) copyBlocks() error {
	op := r.d.op
	if err := op.checkSource(); err != nil {
		return err
	}
	var run request
	flush := func() error {
		defer func() { run = request{} }()
		switch {
		case run.count == 0:
			return nil
		case run.kind == cowfile.OpReplace:
			return r.replaceBy(run)
		}
		return r.send(run)
	}
	from, to := blocksOf(op.GetSrcExtents()), blocksOf(op.GetDstExtents())
	for {
		old, more := from()
		block, _ := to()
		if !more {
			return flush()
		}
		kind := cowfile.OpReplace
		switch {
		case old == payload.Hole:
			kind = cowfile.OpZero
		case r.plan.isCopy(block):
			kind = cowfile.OpCopy
		}
		goesOn := run.count > 0 && kind == run.kind && block == run.first+run.count && old == run.old+run.count && !r.starts[int64(block)*cowfile.BlockSize]
		nothing := old == block || block == payload.Hole
		if !goesOn || nothing {
			if err := flush(); err != nil {
				return err
			}
		}
		switch {
		case nothing:
		case goesOn:
			run.count++
		default:
			run = request{kind: kind, first: block, count: 1, old: old}
		}
	}
}

// blocksOf gives the blocks of extents one after another.
func blocksOf(extents []*pb.Extent) func() (uint64, bool) {
	i, k := 0, uint64(0)
	return func() (uint64, bool) {
		for i < len(extents) && k == extents[i].GetNumBlocks() {
			i, k = i+1, 0
		}
		if i == len(extents) {
			return 0, false
		}
		k++
		if start := extents[i].GetStartBlock(); start != payload.Hole {
			return start + k - 1, true
		}
		return payload.Hole, true
	}
}

// replaceBy writes blocks of the source as new data.
func (r *requester) replaceBy(run request) error {
	for done := uint64(0); done < run.count; {
		n := min(run.count-done, pieceSize/cowfile.BlockSize)
		buf := newBuffer(int64(n * cowfile.BlockSize))
		data := buf[:n*cowfile.BlockSize]
		if k, err := r.d.op.Old.ReadAt(data, int64(run.old+done)*cowfile.BlockSize); k < len(data) {
			return &ioError{fmt.Errorf("read %d bytes of the old partition at block %d: %w", len(data), run.old+done, err)}
		}
		if err := r.send(request{kind: cowfile.OpReplace, first: run.first + done, data: data, buf: buf}); err != nil {
			return err
		}
		done += n
	}
	return nil
}

// verity makes hash tree and error correction, from what the COW and the old
// partition give.
func (i *install) verity() error {
	p := i.o.Partition
	if p.GetHashTreeExtent().GetNumBlocks() == 0 && p.GetFecExtent().GetNumBlocks() == 0 {
		return nil
	}
	w, err := cow.OpenWriter(i.o.Cow.Output(), i.o.Cow.Size(), EndOfInstall, i.writerOptions())
	if err != nil {
		return err
	}
	if _, err := w.Finish(); err != nil { // without what an earlier try has left
		return err
	}
	v := &verityWriter{}
	err = i.withSnapshot(func(s *cow.Snapshot) error {
		v.ReaderAt = s
		return WriteVerity(p, cowfile.BlockSize, v)
	})
	if err != nil {
		return err
	}
	for _, a := range v.requests(int64(p.GetFecExtent().GetStartBlock()) * cowfile.BlockSize) {
		if err := w.Replace(uint64(a.off)/cowfile.BlockSize, a.data); err != nil {
			return err
		}
	}
	_, err = w.Finish()
	return err
}

// withSnapshot opens the COW over the old partition.
func (i *install) withSnapshot(do func(*cow.Snapshot) error) error {
	old := i.o.Old
	if old == nil {
		old = nothing{}
	}
	s, err := cow.Open(cow.Options{Base: old, Cow: i.o.Cow, Size: i.total})
	if err != nil {
		return err
	}
	return errors.Join(do(s), s.Close())
}

// nothing is an old partition of a full update.
type nothing struct{}

func (nothing) ReadAt([]byte, int64) (int, error)  { return 0, io.EOF }
func (nothing) WriteAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }
func (nothing) Sync() error                        { return nil }
func (nothing) Size() int64                        { return 0 }

// verityWriter keeps what is written, and reads it before what lies below.
type verityWriter struct {
	io.ReaderAt
	mu    sync.Mutex
	areas []area
}

type area struct {
	off  int64
	data []byte
}

// requests are what was written, in the order of the partition: the tree a level at
// a time, and error correction, which begins at fec, in pieces of usual size.
func (v *verityWriter) requests(fec int64) (out []area) {
	slices.SortFunc(v.areas, func(a, b area) int { return cmp.Compare(a.off, b.off) })
	for _, a := range v.areas {
		if n := len(out); n > 0 && a.off > fec && len(out[n-1].data)+len(a.data) <= pieceSize {
			out[n-1].data = append(out[n-1].data, a.data...)
			continue
		}
		out = append(out, a)
	}
	return out
}

func (v *verityWriter) WriteAt(p []byte, off int64) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.areas = append(v.areas, area{off, bytes.Clone(p)})
	return len(p), nil
}

func (v *verityWriter) ReadAt(p []byte, off int64) (int, error) {
	n, err := v.ReaderAt.ReadAt(p, off)
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, a := range v.areas {
		from, to := max(off, a.off), min(off+int64(len(p)), a.off+int64(len(a.data)))
		if from < to {
			copy(p[from-off:to-off], a.data[from-a.off:to-a.off])
		}
	}
	return n, err
}

// verify reads the new partition and compares it.
func (i *install) verify(ctx context.Context) error {
	return i.withSnapshot(func(s *cow.Snapshot) error {
		return (&verifying{partition: i.o.Partition, got: s, size: i.total, known: i.o.Known, workers: i.o.Workers, read: i.o.OnVerify}).run(ctx)
	})
}
