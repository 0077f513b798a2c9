package apply

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/ota/verify"
)

// ImageOptions say what Images is to make.
type ImageOptions struct {
	// Metadata is that of the payload, checked.
	Metadata *payload.Metadata
	// Blobs gives the payload's data.
	Blobs Blobs
	// Old is the folder with the old partitions, as NAME.img or NAME. Only
	// deltas need it.
	Old string
	// Out is the folder that NAME.img are made in. Those that are there are
	// replaced, each by a complete one.
	Out string
	// Partition selects by name; nil takes all.
	Partition func(name string) bool
	// Workers is how many operations run at once; 0: one for each processor.
	Workers int
	// Memory is how many bytes all that run may Need together (see NewMemory).
	// 0: no limit.
	Memory int64
	// OnProgress, if not nil, is called with bytes of new partitions, by
	// several goroutines.
	OnProgress func(done, total int64)
}

// Images makes files of new partitions, and checks each one's hash before it gets
// its name. On an error those that are complete stay, and the rest is removed.
func Images(ctx context.Context, o ImageOptions) error {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	m := maker{o: o, blockSize: int64(o.Metadata.Manifest.GetBlockSize()), memory: NewMemory(o.Memory, "")}
	defer m.close()
	for _, p := range o.Metadata.Manifest.GetPartitions() {
		if o.Partition != nil && !o.Partition(p.GetPartitionName()) {
			continue
		}
		if err := m.add(p); err != nil {
			return fmt.Errorf("partition %s: %w", p.GetPartitionName(), err)
		}
	}
	return m.run(ctx)
}

// maker is one run of Images.
type maker struct {
	o         ImageOptions
	blockSize int64
	memory    *Memory
	parts     []*part
	total     int64
	done      atomic.Int64
}

// part is a partition in the making.
type part struct {
	*pb.PartitionUpdate
	old  *os.File // nil: none is needed
	out  *os.File
	path string
	left atomic.Int64 // operations
	ok   bool
}

func (m *maker) add(p *pb.PartitionUpdate) error {
	t := &part{PartitionUpdate: p, path: filepath.Join(m.o.Out, p.GetPartitionName()+".img")}
	m.parts = append(m.parts, t)
	if p.OldPartitionInfo != nil {
		var err error
		if t.old, err = openOld(m.o.Old, p); err != nil {
			return err
		}
	}
	var err error
	if t.out, err = os.OpenFile(t.path+".part", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644); err != nil {
		return err
	}
	t.left.Store(int64(len(p.GetOperations())))
	size := int64(p.GetNewPartitionInfo().GetSize())
	m.total += size
	return t.out.Truncate(size)
}

// openOld finds the old partition.
func openOld(dir string, p *pb.PartitionUpdate) (*os.File, error) {
	name, want := p.GetPartitionName(), int64(p.GetOldPartitionInfo().GetSize())
	if dir == "" {
		return nil, fmt.Errorf("%w: expected a folder with %s.img, since this is a delta", ErrSource, name)
	}
	f, err := os.Open(filepath.Join(dir, name+".img"))
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.Open(filepath.Join(dir, name))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSource, err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil && size < want {
		err = fmt.Errorf("%w: %s: expected at least %d bytes, found %d", ErrSource, f.Name(), want, size)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// close removes what is not complete.
func (m *maker) close() {
	for _, p := range m.parts {
		if p.old != nil {
			_ = p.old.Close()
		}
		if p.out != nil {
			_ = p.out.Close()
			if !p.ok {
				_ = os.Remove(p.path + ".part")
			}
		}
	}
}

// task is an operation of a partition, or just its end if it has none.
type task struct {
	part *part
	do   *Operation
	done func() // with the blob
}

func (m *maker) run(ctx context.Context) error { return pool(ctx, m.o.Workers, m.feed, m.task) }

// feed gives out the operations in the order of the payload, with their blobs.
func (m *maker) feed(submit func(task) bool) error {
	for _, p := range m.parts {
		if len(p.GetOperations()) == 0 && !submit(task{part: p}) {
			return nil
		}
		ops := &Operations{Partition: p.PartitionUpdate, BlockSize: m.blockSize, Blobs: m.o.Blobs, Old: p.old, Memory: m.memory}
		for i := range p.GetOperations() {
			do, done, err := ops.At(i)
			if err != nil {
				return m.where(p, do.where(err))
			}
			if !submit(task{p, do, done}) {
				return nil
			}
		}
	}
	return nil
}

// task does an operation, and what follows a partition's last one.
func (m *maker) task(ctx context.Context, t task) error {
	if t.done != nil {
		defer t.done()
	}
	if ctx.Err() != nil {
		return nil
	}
	if t.do != nil {
		if err := m.operation(t); err != nil {
			return m.where(t.part, t.do.where(err))
		}
		if t.part.left.Add(-1) > 0 {
			return nil
		}
	}
	return m.where(t.part, m.finish(t.part))
}

// where says which partition an error is of.
func (m *maker) where(p *part, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("partition %s: %w", p.GetPartitionName(), err)
}

func (m *maker) operation(t task) error {
	if err := t.do.Run(&sparse{t.part.out}); err != nil {
		return err
	}
	m.report(int64(payload.Blocks(t.do.GetDstExtents())) * m.blockSize)
	return nil
}

func (m *maker) report(n int64) {
	if done := m.done.Add(n); m.o.OnProgress != nil {
		m.o.OnProgress(done, m.total)
	}
}

// finish makes hash tree and error correction, checks the whole, and names it.
func (m *maker) finish(p *part) error {
	if err := WriteVerity(p.PartitionUpdate, m.blockSize, p.out); err != nil {
		return err
	}
	m.report(int64(p.GetHashTreeExtent().GetNumBlocks()+p.GetFecExtent().GetNumBlocks()) * m.blockSize)
	info := p.GetNewPartitionInfo()
	got, err := sum(io.NewSectionReader(p.out, 0, int64(info.GetSize())))
	if err != nil {
		return err
	}
	if err := checkTarget(p.PartitionUpdate, got); err != nil {
		return m.wrong(p, err)
	}
	if err := errors.Join(p.out.Sync(), os.Rename(p.path+".part", p.path)); err != nil {
		return err
	}
	p.ok = true
	return nil
}

// wrong says whose fault a wrong result may be.
func (m *maker) wrong(p *part, err error) error {
	if p.old == nil {
		return err
	}
	old, e := sum(io.NewSectionReader(p.old, 0, int64(p.GetOldPartitionInfo().GetSize())))
	if e == nil {
		e = mark(ErrSource, verify.OldPartition(p.PartitionUpdate, old))
	}
	return cmp.Or(e, err)
}

// sparse is a file that reads as zeros before it is written, so that zeros need not
// be.
type sparse struct{ *os.File }

func (s *sparse) Zero(_, _ int64) error { return nil }

var zeros [4096]byte

// WriteAt leaves out pieces of 4096 bytes that are zeros.
func (s *sparse) WriteAt(p []byte, off int64) (int, error) {
	for at := 0; at < len(p); {
		n := runOf(p[at:], true)
		at += n
		n = runOf(p[at:], false)
		if n == 0 {
			continue
		}
		if _, err := s.File.WriteAt(p[at:at+n], off+int64(at)); err != nil {
			return at, err
		}
		at += n
	}
	return len(p), nil
}

// runOf is how many bytes p begins with of pieces that are zeros, or that are not.
func runOf(p []byte, zero bool) (n int) {
	for n < len(p) {
		piece := p[n:min(len(p), n+len(zeros))]
		if bytes.Equal(piece, zeros[:len(piece)]) != zero {
			break
		}
		n += len(piece)
	}
	return n
}
