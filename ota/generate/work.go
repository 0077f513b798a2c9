package generate

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// Task is an item that is to be run.
type Task struct {
	Partition int
	Item      *Item
}

// need is about what a task holds, in bytes: a suffix array or tables, and some copies.
func (t *Task) need() int64 {
	src, dst := int64(count(t.Item.Src))*blockSize, t.Item.bytes()
	n := 12*src + 12*dst + 32<<20
	if t.Item.packed() {
		n = src + dst + 12*max(src, t.Item.Old.length()) + 12*max(dst, t.Item.New.length()) + 32<<20
	}
	return n
}

// store keeps results until they are joined, with their data in a file.
type store struct {
	f *os.File // without a name

	mu  sync.Mutex
	end int64
	all map[string]stored // by the item's ID
}

type stored struct {
	Result       // without Blob
	offset, size int64
}

func newStore(folder string) (*store, error) {
	f, err := spool(folder)
	return &store{f: f, all: map[string]stored{}}, err
}

func (s *store) add(id string, r *Result) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.f.WriteAt(r.Blob, s.end); err != nil {
		return err
	}
	kept := stored{Result: *r, offset: s.end, size: int64(len(r.Blob))}
	kept.Blob = nil
	s.all[id] = kept
	s.end += kept.size
	return nil
}

// result implements Results.
func (s *store) result(_ context.Context, _ int, it *Item) (*Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.all[it.ID]
	r := kept.Result
	r.Blob = make([]byte, kept.size)
	_, err := s.f.ReadAt(r.Blob, kept.offset)
	return &r, err
}

// runAll runs each item once, as many at a time as there are workers and as memory
// allows.
func (p *Plan) runAll(parent context.Context, s *store) error {
	total := int64(0)
	for _, part := range p.Partitions {
		total += part.NewSize
	}
	work := p.Work()
	done := total
	for _, t := range work {
		done -= t.Item.bytes()
	}
	report := begin(p.o.OnProgress, Comparing, total)
	defer report.end()
	report.add(done)
	return p.each(parent, work, report, func(ctx context.Context, t Task) error {
		r, err := p.Run(ctx, t.Partition, t.Item)
		if err != nil {
			return err
		}
		return s.add(t.Item.ID, r)
	})
}

// RunTasks runs tasks as RunTask does, as many at a time as there are workers and as
// memory allows, except for those that are made, and saves what comes out. Both functions
// may be called concurrently.
func (p *Plan) RunTasks(ctx context.Context, tasks []Task, save func(Task, []byte) error, made func(Task) bool) error {
	total := int64(0)
	for _, t := range tasks {
		total += t.Item.bytes()
	}
	report := begin(p.o.OnProgress, Comparing, total)
	defer report.end()
	return p.each(ctx, tasks, report, func(ctx context.Context, t Task) error {
		if made(t) {
			return nil
		}
		b, err := p.RunTask(ctx, t)
		if err != nil {
			return err
		}
		return save(t, b)
	})
}

func (p *Plan) each(parent context.Context, tasks []Task, report *progress, do func(context.Context, Task) error) error {
	room := semaphore.NewWeighted(p.o.Memory)
	g, ctx := errgroup.WithContext(parent)
	g.SetLimit(p.o.Workers)
	for _, t := range tasks {
		need := min(t.need(), p.o.Memory)
		if room.Acquire(ctx, need) != nil {
			break
		}
		g.Go(func() error {
			defer room.Release(need)
			if err := do(ctx, t); err != nil {
				return fmt.Errorf("partition %s, item %.12s: %w", p.Partitions[t.Partition].Name, t.Item.ID, err)
			}
			report.add(t.Item.bytes())
			return nil
		})
	}
	return cmp.Or(g.Wait(), context.Cause(parent))
}

// resultHeader is what comes before a result's data: a line of JSON behind its length,
// 4 bytes, big-endian.
type resultHeader struct {
	ID      string `json:"id"`
	Type    opType `json:"type"`
	Hash    []byte `json:"sha256"` // of the data
	SrcHash []byte `json:"src_sha256,omitempty"`
	Xors    []Xor  `json:"xors,omitempty"`
}

// maxHeader bounds a header, in bytes.
const maxHeader = 64 << 20

func cutHeader(b []byte) (h resultHeader, rest []byte, err error) {
	if len(b) < 4 || int64(binary.BigEndian.Uint32(b)) > min(maxHeader, int64(len(b)-4)) {
		return h, nil, fmt.Errorf("expected a header within %d bytes, found none", len(b))
	}
	n := 4 + int(binary.BigEndian.Uint32(b))
	if err := json.Unmarshal(b[4:n], &h); err != nil {
		return h, nil, fmt.Errorf("header: %w", err)
	}
	return h, b[n:], nil
}

// Append appends a result as a file that machines may exchange. ReadResult reads it.
func (r *Result) Append(b []byte, it *Item) ([]byte, error) {
	hash := sum(r.Blob)
	h, err := json.Marshal(resultHeader{ID: it.ID, Type: r.Type, Hash: hash, SrcHash: r.SrcHash, Xors: r.Xors})
	if err != nil {
		return nil, err
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(h)))
	return append(append(b, h...), r.Blob...), nil
}

func sum(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:]
}
