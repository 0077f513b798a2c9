package cow

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"cowbird/formats/cowfile"
)

// CheckOptions say what to check.
type CheckOptions struct {
	Cow Device
	// Base makes it possible to check sources and contents; nil checks the
	// COW alone.
	Base Device
	// Size of the target in bytes; 0 means as for Options.Size, or
	// TargetSize if there is a Target.
	Size int64
	// Target or SHA256 is what the outcome must be. Each needs Base.
	Target     io.ReaderAt
	TargetSize int64
	SHA256     []byte
	// Workers decode in parallel; 0 means one a CPU.
	Workers int
	// OnProgress is called with bytes done and to do, from one goroutine at a
	// time.
	OnProgress func(done, total int64)
}

// Report is what Check found in a COW that is good.
type Report struct {
	Ops    int    `json:"ops"`
	Units  int    `json:"units"`            // data that were decoded
	Bytes  int64  `json:"bytes"`            // size of the target that was read
	SHA256 string `json:"sha256,omitempty"` // of the target, if there was a base
}

// Check proves that a COW can be served and merged: Open's rules hold, every
// unit decodes and, with a base, every block of the target can be read and is
// the one that was asked for. It writes nothing. The error says what is wrong
// and where; it wraps one of this package's or of cowfile's errors.
func Check(ctx context.Context, o CheckOptions) (Report, error) {
	if o.Base == nil && (o.Target != nil || o.SHA256 != nil) {
		return Report{}, errors.New("contents can only be compared with the base at hand: give the base too")
	}
	if o.Size == 0 && o.Target != nil {
		o.Size = o.TargetSize
	}
	var a arena
	defer a.close()
	f, err := openFile(o.Cow, &a)
	if err != nil {
		return Report{}, err
	}
	if err := checkEnd(f, o.Cow); err != nil {
		return Report{}, err
	}
	r := Report{Ops: f.NumOps(), Units: f.Counts().Replace + f.Counts().Xor}
	c := checker{ctx: ctx, o: o, f: f, total: f.Counts().DataBytes + max(o.Size, 0)}
	if err := c.decodeAll(); err != nil {
		return r, err
	}
	if o.Base == nil {
		return r, nil
	}
	return r, c.compare(&r)
}

// checkEnd refuses bytes behind the footer of a version 2 file: writers cut a
// regular file there. (Version 3 has no footer, and a device has no end.) A
// merge without a scratch area leaves its journal there.
func checkEnd(f *cowfile.File, d Device) error {
	reg, ok := d.(interface{ IsRegular() bool })
	if ok && !reg.IsRegular() || f.Header().Major > 2 || f.End() == f.Size() {
		return nil
	}
	if h := f.Header(); h.ScratchSize == 0 && f.Size() == journalAt(f)+journalSize {
		return nil
	}
	return &cowfile.Error{Kind: cowfile.ErrCorrupt, Where: "end of file", Expected: fmt.Sprintf("byte %d, where the footer ends", f.End()), Found: fmt.Sprint(f.Size())}
}

type checker struct {
	ctx   context.Context
	o     CheckOptions
	f     *cowfile.File
	done  atomic.Int64
	total int64
	mu    sync.Mutex // for OnProgress
}

func (c *checker) progress(n int64) {
	done := c.done.Add(n)
	if c.o.OnProgress == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.o.OnProgress(done, c.total)
}

// decodeAll decodes every unit. Of several broken ones the first in file order
// is reported, however many workers there are.
func (c *checker) decodeAll() error {
	const chunk = 256
	n := c.f.NumOps()
	return inOrder(c.ctx, c.o.Workers, (n+chunk-1)/chunk, func() func(int) error {
		unit, stored := make([]byte, c.f.MaxUnit()), make([]byte, c.f.MaxStored())
		return func(k int) error {
			for i := k * chunk; i < min(n, (k+1)*chunk); i++ {
				o := c.f.Op(i)
				if o.DataLength == 0 {
					continue
				}
				if err := decodeOp(c.f, c.o.Cow, i, o, unit[:o.Unit()], stored); err != nil {
					return fmt.Errorf("op %d (%v): %w", i, o, err)
				}
				c.progress(int64(o.DataLength))
			}
			return nil
		}
	})
}

// inOrder runs do(0) … do(n−1) on workers and returns the error of the lowest
// number that failed. start makes a worker's do.
func inOrder(ctx context.Context, workers, n int, start func() (do func(int) error)) error {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	var (
		next  atomic.Int64
		wg    sync.WaitGroup
		mu    sync.Mutex
		first = n
		err   error
	)
	for range min(workers, n) {
		wg.Go(func() {
			do := start()
			for {
				k := int(next.Add(1)) - 1
				if k >= n || ctx.Err() != nil {
					return
				}
				if e := do(k); e != nil {
					mu.Lock()
					if k < first {
						first, err = k, e
					}
					mu.Unlock()
					next.Store(int64(n))
					return
				}
			}
		})
	}
	wg.Wait()
	if err == nil {
		err = ctx.Err()
	}
	return err
}

// compare reads the whole target through a snapshot.
func (c *checker) compare(r *Report) error {
	s, err := Open(Options{Cow: c.o.Cow, Base: c.o.Base, Size: c.o.Size})
	if err != nil {
		return err
	}
	defer s.Close()
	c.total = c.f.Counts().DataBytes + s.Size()
	r.Bytes = s.Size()
	sum := sha256.New()
	if err := c.readAll(s, sum); err != nil {
		return err
	}
	digest := sum.Sum(nil)
	r.SHA256 = hex.EncodeToString(digest)
	if c.o.SHA256 != nil && !bytes.Equal(digest, c.o.SHA256) {
		return fmt.Errorf("%w: SHA-256 of the target: expected %x, found %x: is this the right base?", ErrMismatch, c.o.SHA256, digest)
	}
	return nil
}

func (c *checker) readAll(s *Snapshot, sum hash.Hash) error {
	const chunk = 1 << 20
	got, want := make([]byte, chunk), make([]byte, chunk)
	for off := int64(0); off < s.Size(); off += chunk {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n := min(chunk, s.Size()-off)
		if err := readFull(s, got[:n], off); err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		sum.Write(got[:n])
		if c.o.Target != nil {
			if err := readFull(c.o.Target, want[:n], off); err != nil {
				return fmt.Errorf("target: %w", err)
			}
			if err := sameBlocks(s.file, got[:n], want[:n], off); err != nil {
				return err
			}
		}
		c.progress(n)
	}
	return nil
}

// sameBlocks names the first block that differs and the op that made it.
func sameBlocks(f *cowfile.File, got, want []byte, off int64) error {
	if bytes.Equal(got, want) {
		return nil
	}
	i := 0
	for got[i] == want[i] {
		i++
	}
	block := uint32((off + int64(i)) / blockSize)
	made := "no op, it is the base's"
	if op := f.Find(block); op >= 0 {
		made = fmt.Sprintf("op %d (%v)", op, f.Op(op))
	}
	return fmt.Errorf("%w: block %d, byte %d: expected %#02x, found %#02x (%s): is this the right base?", ErrMismatch, block, off+int64(i), want[i], got[i], made)
}
