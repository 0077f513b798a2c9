package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/ota/verify"
)

// follow is the way of a streamed payload into its sum, of which the payload's
// signature is. Data come once, so what an interrupted run has seen is saved with the
// labels of the COWs, and what it has not seen is asked for again.
type follow struct {
	m   *payload.Metadata
	sum *verify.Sum

	mu    sync.Mutex
	marks []mark // by offset: the sum as it was before these
}

// mark is a sum, saved at an offset of the data.
type mark struct {
	off   int64
	state []byte
}

// maxMarks bounds how many marks are kept between two labels: some 300 KiB.
const maxMarks = 1024

// newFollow goes on from a saved sum, or begins with the data if that is not one.
func newFollow(m *payload.Metadata, saved []byte) (*follow, error) {
	f := &follow{m: m}
	var err error
	if f.sum, err = verify.ResumeSum(m, saved); errors.Is(err, verify.ErrState) {
		f.sum, err = verify.NewSum(m)
	}
	return f, err
}

// note marks where the sum is. If there are many marks, every second one goes.
func (f *follow) note() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.marks) == maxMarks {
		odd := false
		f.marks = slices.DeleteFunc(f.marks, func(mark) bool { odd = !odd; return !odd })
	}
	state, err := f.sum.MarshalBinary()
	f.marks = append(f.marks, mark{f.sum.Offset(), state})
	return err
}

// before is the sum of what comes before operation n of a partition, or of less. What
// it does not need any more is dropped.
func (f *follow) before(p *pb.PartitionUpdate, n int) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	ops := p.GetOperations()[n:]
	i := slices.IndexFunc(ops, func(op *pb.InstallOperation) bool { return payload.HasBlob(op.GetType()) })
	last := len(f.marks) - 1
	for i >= 0 && last >= 0 && f.marks[last].off > f.m.BlobOffset()+int64(ops[i].GetDataOffset()) {
		last--
	}
	if last < 0 {
		return nil
	}
	f.marks = f.marks[last:]
	return f.marks[0].state
}

// all is the sum of what has been seen, between two partitions.
func (f *follow) all() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.marks = nil
	return f.sum.MarshalBinary()
}

// end is where the payload should end, as far as the manifest tells.
func (f *follow) end() int64 {
	m := f.m.Manifest
	if m.SignaturesOffset == nil {
		return f.sum.Offset()
	}
	return max(f.sum.Offset(), f.m.BlobOffset()+int64(m.GetSignaturesOffset()+m.GetSignaturesSize()))
}

// followed is a stream from byte at of the payload on, of which the sum sees what it
// has not seen before. Nothing may come that would leave a gap.
type followed struct {
	io.ReadCloser
	at  int64
	sum *verify.Sum
}

func (f *followed) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if seen := f.sum.Offset() - f.at; seen < int64(n) {
		_, _ = f.sum.Write(p[max(0, seen):n])
	}
	f.at += int64(n)
	return n, err
}

// checkPayload compares the signature of all of the payload with what was read. What
// has been written of one that is refused is dropped.
func (r *run) checkPayload(ctx context.Context) error {
	err := r.readRest(ctx)
	if err != nil {
		return err
	}
	if err = verify.Payload(r.m, r.follow.sum, r.o.Policy); err != nil {
		r.state = &state{}
		return errors.Join(err, r.dropCows(), r.state.write(r.o.Config.State))
	}
	return nil
}

// readRest has the sum see the payload to its end, and no more than a byte behind.
func (r *run) readRest(ctx context.Context) error {
	sum := r.follow.sum
	if r.stream.at < sum.Offset() {
		if err := r.seek(ctx, sum.Offset()); err != nil {
			return err
		}
	}
	end := r.follow.end()
	if _, err := io.Copy(io.Discard, io.LimitReader(r.stream, end+1-r.stream.at)); err != nil {
		return fmt.Errorf("read the payload: %w", err)
	}
	if sum.Offset() < end {
		return fmt.Errorf("%w: expected %d more bytes with its signature", payload.ErrTruncated, end-sum.Offset())
	}
	return nil
}
