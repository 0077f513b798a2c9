package apply

import (
	"cmp"
	"errors"
	"math"
	"sync"
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
	mu    sync.Mutex
	freed sync.Cond
	all   int64
	used  int64
}

func newRoom(all int64) *room {
	r := &room{all: cmp.Or(all, math.MaxInt64)}
	r.freed.L = &r.mu
	return r
}

// take waits until n bytes are free, or nobody else has any.
func (r *room) take(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.used > 0 && n > r.all-r.used {
		r.freed.Wait()
	}
	r.used += n
}

func (r *room) giveBack(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used -= n
	r.freed.Broadcast()
}
