package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"cowbird/cow"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// DirectOptions say what Direct is to write.
type DirectOptions struct {
	// Metadata, Partition, Blobs and Old are as in CowOptions.
	Metadata  *payload.Metadata
	Partition *pb.PartitionUpdate
	Blobs     Blobs
	Old       io.ReaderAt
	// New is the partition to write, which nobody uses.
	New cow.Device
	// Workers is how many operations run at once; 0: one for each processor.
	Workers int
	// Memory and Spool are as in CowOptions.
	Memory int64
	Spool  string
	// OnProgress is as in CowOptions, but called by several goroutines, and OnVerify
	// is as there.
	OnProgress func(done, total int64)
	OnVerify   func(done int64)
	// Known is as in CowOptions.
	Known Known
}

// Direct writes a partition where it belongs: one that is no snapshot, in the other
// slot. It is durable and verified when Direct returns nil. What fails or is killed
// can be done again from the beginning, since the old partition stays.
func Direct(ctx context.Context, o DirectOptions) error {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	info := o.Partition.GetNewPartitionInfo()
	if n := o.New.Size(); n < int64(info.GetSize()) {
		return fmt.Errorf("%w: expected a partition of at least %d bytes, found %d", ErrOutput, info.GetSize(), n)
	}
	d := &direct{o: o, blockSize: int64(o.Metadata.Manifest.GetBlockSize()), sink: deviceSink{o.New}}
	if err := pool(ctx, o.Workers, d.feed, d.task); err != nil {
		return err
	}
	if err := errors.Join(WriteVerity(o.Partition, d.blockSize, o.New), o.New.Sync()); err != nil {
		return err
	}
	return (&verifying{partition: o.Partition, got: o.New, size: int64(info.GetSize()), known: o.Known, workers: o.Workers, read: o.OnVerify}).run(ctx)
}

type direct struct {
	o         DirectOptions
	blockSize int64
	sink      Sink
	done      atomic.Int64
}

type directTask struct {
	op   *Operation
	done func()
}

func (d *direct) feed(submit func(directTask) bool) error {
	ops := &Operations{Partition: d.o.Partition, BlockSize: d.blockSize, Blobs: d.o.Blobs, Old: d.o.Old, Known: d.o.Known, Memory: newDeviceMemory(d.o.Memory, d.o.Spool)}
	for i := range d.o.Partition.GetOperations() {
		do, done, err := ops.At(i)
		if err != nil {
			return do.where(err)
		}
		if !submit(directTask{do, done}) {
			return nil
		}
	}
	return nil
}

func (d *direct) task(ctx context.Context, t directTask) error {
	defer t.done()
	if ctx.Err() != nil {
		return nil
	}
	if err := t.op.Run(d.sink); err != nil {
		return t.op.where(err)
	}
	if done := d.done.Add(int64(payload.Blocks(t.op.GetDstExtents())) * d.blockSize); d.o.OnProgress != nil {
		d.o.OnProgress(done, int64(d.o.Partition.GetNewPartitionInfo().GetSize()))
	}
	return nil
}

// deviceSink writes to a device that holds something else.
type deviceSink struct{ cow.Device }

func (s deviceSink) Zero(off, n int64) error {
	if z, ok := s.Device.(cow.Zeroing); ok {
		if err := z.Zero(off, n); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	for n > 0 {
		k := min(n, int64(len(manyZeros)))
		if _, err := s.WriteAt(manyZeros[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

var manyZeros [64 << 10]byte
