package apply

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"cowbird/formats/payload/pb"
)

// Known is what a caller knows of partitions, as one does who has just made the payload
// of them. It takes less time than hashes, which decide where it says no.
type Known struct {
	// Old and New, if not nil, tell whether the partition that the payload's hashes are of
	// has these blocks, a multiple of 4096 bytes, at this offset. They are called
	// concurrently.
	Old, New func(off int64, blocks []byte) bool
}

// verifying compares a new partition, as it is read back, with what it has to be.
type verifying struct {
	partition *pb.PartitionUpdate
	got       io.ReaderAt
	size      int64 // bytes
	known     Known
	workers   int
	read      func(done int64) // nil: nobody wants to know

	mu   sync.Mutex
	done int64
}

func (v *verifying) run(ctx context.Context) error {
	if v.known.New != nil {
		if same, err := v.same(ctx); same || err != nil {
			return err
		}
	}
	got, err := sum(&cancellable{ctx: ctx, r: io.NewSectionReader(v.got, 0, v.size), read: v.read})
	if err != nil {
		return err
	}
	return checkTarget(v.partition, got)
}

// same asks who knows, some pieces at a time.
func (v *verifying) same(parent context.Context) (bool, error) {
	var next atomic.Int64
	var differs atomic.Bool
	g, ctx := errgroup.WithContext(parent)
	for range v.workers {
		g.Go(func() error {
			b := pieces.Get().(*piece)
			defer pieces.Put(b)
			for !differs.Load() {
				off := next.Add(pieceSize) - pieceSize
				if off >= v.size {
					break
				}
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				n := min(pieceSize, v.size-off)
				if k, err := v.got.ReadAt(b[:n], off); int64(k) < n {
					return fmt.Errorf("read back %d bytes at %d: %w", n, off, err)
				}
				if !v.known.New(off, b[:n]) {
					differs.Store(true)
				}
				v.tell(n)
			}
			return nil
		})
	}
	err := g.Wait()
	return err == nil && !differs.Load(), err
}

func (v *verifying) tell(n int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.done += n; v.read != nil {
		v.read(v.done)
	}
}

// cancellable ends with its context.
type cancellable struct {
	ctx  context.Context
	r    io.Reader
	done int64
	read func(done int64) // nil: nobody wants to know
}

func (c *cancellable) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	if c.done += int64(n); c.read != nil {
		c.read(c.done)
	}
	return n, err
}
