package cow

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"
	"io"
	"slices"
	"sync"
	"sync/atomic"
)

const sector = 512 // what a device writes whole or not at all

// page is a block of an image. Images share pages; none is changed once it is
// in an image.
type page struct {
	b   [blockSize]byte
	sum uint64 // 0 until asked for
}

var (
	pageSeed = maphash.MakeSeed()
	zeroPage = &page{sum: maphash.Bytes(pageSeed, make([]byte, blockSize))}
)

func (p *page) hash() uint64 {
	if p.sum == 0 {
		p.sum = maphash.Bytes(pageSeed, p.b[:])
	}
	return p.sum
}

// image is the contents of a device, cheap to copy: thousands of them differ
// in a block or two.
type image struct {
	pages []*page
	size  int64
}

func imageOf(b []byte) image {
	m := image{}
	m.grow(int64(len(b)))
	m.write(b, 0)
	return m
}

func (m image) clone() image { return image{slices.Clone(m.pages), m.size} }

func (m *image) grow(size int64) {
	for int64(len(m.pages))*blockSize < size {
		m.pages = append(m.pages, zeroPage)
	}
	m.size = size
}

func (m *image) write(b []byte, off int64) {
	for len(b) > 0 {
		p := *m.pages[off/blockSize]
		n := copy(p.b[off%blockSize:], b)
		p.sum = 0
		if p.b == zeroPage.b {
			m.pages[off/blockSize] = zeroPage
		} else {
			m.pages[off/blockSize] = &p
		}
		b, off = b[n:], off+int64(n)
	}
}

func (m image) readAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && off < m.size {
		pg := m.pages[off/blockSize].b[:min(blockSize, m.size-off/blockSize*blockSize)]
		k := copy(p[n:], pg[off%blockSize:])
		n, off = n+k, off+int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m image) bytes() []byte {
	b := make([]byte, m.size)
	_, _ = m.readAt(b, 0)
	return b
}

// write is one that no sync has made durable.
type write struct {
	off  int64
	data []byte
}

// pieces cuts a write where a device may tear it between blocks.
func (w write) pieces() []write {
	var all []write
	for len(w.data) > 0 {
		n := min(int64(len(w.data)), blockSize-w.off%blockSize)
		all = append(all, write{w.off, w.data[:n]})
		w = write{w.off + n, w.data[n:]}
	}
	return all
}

// held is what one device holds: what is durable, and the writes that a power
// cut may undo.
type held struct {
	durable image
	pending []write
}

// cache is what a reader of the device sees.
func (h held) cache() image {
	m := h.durable.clone()
	for _, w := range h.pending {
		m.write(w.data, w.off)
	}
	return m
}

// storage is what COW and base hold, indexed by cowDisk and baseDisk.
type storage [2]held

const cowDisk, baseDisk = 0, 1

var diskNames = [...]string{"cow", "base"}

func storageOf(c sample) storage {
	return storage{{durable: imageOf(c.cow)}, {durable: imageOf(c.base)}}
}

// key tells storages apart.
func (s storage) key() uint64 {
	var h maphash.Hash
	h.SetSeed(pageSeed)
	for _, d := range s {
		for _, p := range d.durable.pages {
			maphash.WriteComparable(&h, p.hash())
		}
		for _, w := range d.pending {
			maphash.WriteComparable(&h, w.off)
			_, _ = h.Write(w.data)
		}
		_ = h.WriteByte('|')
	}
	return h.Sum64()
}

// event is a durable step: a write (data is not nil), a sync or a growth.
type event struct {
	disk int
	write
	size int64 // of a growth
}

func (e event) String() string {
	switch {
	case e.data != nil:
		return fmt.Sprintf("write of %d bytes at %d of the %s", len(e.data), e.off, diskNames[e.disk])
	case e.size > 0:
		return fmt.Sprintf("growth of the %s to %d bytes", diskNames[e.disk], e.size)
	}
	return "sync of the " + diskNames[e.disk]
}

// apply does a step to what the device holds. The lists are not shared.
func (h *held) apply(e event) {
	switch {
	case e.data != nil:
		h.pending = append(slices.Clip(h.pending), e.write)
	case e.size > 0:
		h.durable = h.durable.clone()
		h.durable.grow(e.size)
	default:
		*h = held{durable: h.cache()}
	}
}

// recorder is the storage of one run of the engine, on which each durable step
// is noted. before, if not nil, may refuse a step; after hears of it.
type recorder struct {
	mu     sync.Mutex
	held   storage
	cache  [2]image
	events []event
	off    atomic.Bool // there is no power
	before func(e event) error
	after  func(e event)
}

func newRecorder(s storage) *recorder {
	return &recorder{held: s, cache: [2]image{s[0].cache(), s[1].cache()}}
}

func (r *recorder) step(e event) error {
	if r.before != nil {
		if err := r.before(e); err != nil {
			return err
		}
	}
	r.note(e)
	if r.after != nil {
		r.after(e)
	}
	return nil
}

func (r *recorder) note(e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	r.held[e.disk].apply(e)
	if e.data != nil {
		r.cache[e.disk].write(e.data, e.off)
	}
	if e.size > 0 {
		r.cache[e.disk].grow(e.size)
	}
}

// disk is one device of a recorder.
type disk struct {
	r *recorder
	n int
}

func (r *recorder) cow() *disk  { return &disk{r, cowDisk} }
func (r *recorder) base() *disk { return &disk{r, baseDisk} }

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if d.r.off.Load() {
		return 0, errPowerCut
	}
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	return d.r.cache[d.n].readAt(p, off)
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.r.step(event{disk: d.n, write: write{off, bytes.Clone(p)}}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Zero is a write like others, as far as power cuts go.
func (d *disk) Zero(off, n int64) error {
	return d.r.step(event{disk: d.n, write: write{off, make([]byte, n)}})
}

func (d *disk) Sync() error           { return d.r.step(event{disk: d.n}) }
func (d *disk) Grow(size int64) error { return d.r.step(event{disk: d.n, size: size}) }

func (d *disk) Size() int64 {
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	return d.r.cache[d.n].size
}

// open opens the snapshot of a sample on a recorder.
func (r *recorder) open(c sample) (*Snapshot, error) {
	return Open(Options{Cow: r.cow(), Base: r.base(), Size: int64(len(c.target))})
}

// checkView compares what the snapshot serves with the target.
func checkView(s *Snapshot, c sample) error {
	got := make([]byte, len(c.target))
	if err := readFull(s, got, 0); err != nil {
		return fmt.Errorf("read the snapshot: %w", err)
	}
	if !bytes.Equal(got, c.target) {
		return fmt.Errorf("the snapshot is not the target: %s", firstDifference(got, c.target))
	}
	return nil
}

// checkBase compares the merged base with the target.
func (r *recorder) checkBase(c sample) error {
	if got := r.cache[baseDisk].bytes(); !bytes.Equal(got[:len(c.target)], c.target) {
		return fmt.Errorf("the merged base is not the target: %s", firstDifference(got, c.target))
	}
	return nil
}

// mergeOn runs a merge from what a storage holds to its end. The view is
// checked before and, if wanted, after each step. It returns the steps and the
// number of ops that were merged at the start.
func mergeOn(st storage, c sample, limits mergeLimits, watch bool) (events []event, merged int, err error) {
	r := newRecorder(st)
	s, err := r.open(c)
	if err != nil {
		return nil, 0, fmt.Errorf("open: %w", err)
	}
	defer s.Close()
	merged = s.Progress().MergedOps
	err = checkView(s, c)
	r.after = func(e event) {
		if watch && err == nil && e.size == 0 { // a base grows under the lock
			err = checkView(s, c)
		}
	}
	if err != nil {
		return nil, merged, err
	}
	if _, err := s.Merge(context.Background(), MergeOptions{limits: limits}); err != nil {
		return nil, merged, fmt.Errorf("merge: %w", err)
	}
	if err != nil {
		return nil, merged, fmt.Errorf("during the merge: %w", err)
	}
	if err := r.checkBase(c); err != nil {
		return nil, merged, err
	}
	return r.events, merged, checkView(s, c)
}
