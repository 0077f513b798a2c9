package apply

import (
	"cmp"
	"context"
	"errors"
	"math"

	"golang.org/x/sync/semaphore"
)

// DefaultMemory is the limit of Memory on a device, in bytes: small operations run at
// once, and each large one alone.
const DefaultMemory = 32 << 20

// Memory is what operations that run at once may hold together; nil is no limit. It
// may be used concurrently.
type Memory struct {
	room  *room
	limit int64 // of one operation before it spills; 0: none does
	spool string
}

// NewMemory bounds what operations hold together, in bytes. One that needs more than
// that runs alone, with its source and its target in files without a name in the
// folder spool ("": that of temporary files), which are mapped, so that the kernel
// may write them out.
func NewMemory(limit int64, spool string) *Memory {
	return &Memory{newRoom(limit), limit, spool}
}

// newDeviceMemory is NewMemory, or the default, with which nothing spills.
func newDeviceMemory(limit int64, spool string) *Memory {
	m := NewMemory(cmp.Or(limit, DefaultMemory), spool)
	m.limit = limit
	return m
}

// take waits for room for an operation.
func (m *Memory) take(need int64) *arena {
	if m == nil {
		return &arena{}
	}
	m.room.take(need)
	return &arena{m: m, need: need, spills: m.limit > 0 && need > m.limit}
}

// arena is the memory of one operation.
type arena struct {
	m      *Memory
	need   int64
	spills bool
	files  [][]byte
}

// smallest is what is worth a file, in bytes.
const smallest = 64 << 10

func (a *arena) alloc(n int64) ([]byte, error) {
	if n > math.MaxInt {
		return nil, errors.ErrUnsupported
	}
	if !a.spills || n < smallest {
		return make([]byte, n), nil
	}
	b, err := mapFile(a.m.spool, n)
	if err == nil {
		a.files = append(a.files, b)
	}
	return b, err
}

// giveBack ends the use of all that was allocated.
func (a *arena) giveBack() {
	for _, b := range a.files {
		unmapFile(b)
	}
	if a.m != nil {
		a.m.room.giveBack(a.need)
	}
}

// room is memory that operations share.
type room struct {
	all  int64
	free *semaphore.Weighted
}

func newRoom(all int64) *room {
	all = cmp.Or(all, math.MaxInt64)
	return &room{all, semaphore.NewWeighted(all)}
}

// take waits until n bytes are free, or all if that is less, in the order of the calls.
func (r *room) take(n int64) { _ = r.free.Acquire(context.Background(), min(n, r.all)) }

func (r *room) giveBack(n int64) { r.free.Release(min(n, r.all)) }
