package cow

import (
	"cmp"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"cowbird/formats/cowfile"

	"golang.org/x/sys/unix"
)

const (
	blockSize = cowfile.BlockSize
	maxSize   = blockSize << 32 // block numbers have 32 bits
)

// Options say what to open.
type Options struct {
	// Cow is the delta. It is written to only by Merge, and only in its first
	// page and its scratch area.
	Cow Device
	// Base is what gets overwritten, and where blocks without an op are.
	Base Device
	// Source is what copy and xor ops read; nil means Base. It is taken to
	// share its blocks with Base.
	Source Device
	// Size is the snapshot's size in bytes; 0 means the larger of the base
	// and what the ops cover.
	Size int64
}

// Snapshot is base + cow, served as one device. All methods are safe for
// concurrent use.
//
// The lock: mu protects everything below it. A reader holds it shared for the
// whole of a request, source reads included. The merge changes that state only
// with mu held exclusively, that is, when no request is under way; and it
// overwrites a block that an op reads only after the state says that the op is
// merged or is in the window. So no reader ever sees a source block that has
// been overwritten. The merge does not hold mu while it reads or writes.
type Snapshot struct {
	cow, base, source Device
	size              int64
	file              *cowfile.File
	arena             arena
	work              *workspaces

	mu       sync.RWMutex
	closed   bool
	merged   int           // ops of the merge order that are in the base
	complete bool          // all of them
	bits     []uint64      // merged ordered ops, unless in table order
	window   []windowBlock // ordered ops in the scratch area, sorted by block

	merge     mergeControl
	confirmed bool // by the merge: the progress it began with is durable
	bytes     struct{ written, total atomic.Int64 }
}

// windowBlock says where in the COW the scratch area keeps a block.
type windowBlock struct {
	block uint32
	off   int64
}

// Open opens a snapshot and takes up the state in which the last merge left it.
// A COW that could not be served or merged safely is refused. Open writes
// nothing. The devices remain the caller's, to be closed after the snapshot.
func Open(o Options) (*Snapshot, error) {
	s := &Snapshot{cow: o.Cow, base: o.Base, source: o.Source, size: o.Size}
	if s.source == nil {
		s.source = s.base
	}
	s.merge.init()
	if err := s.open(); err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

func (s *Snapshot) open() (err error) {
	defer faultToError(debug.SetPanicOnFault(true), &err)
	if s.file, err = openFile(s.cow, &s.arena); err != nil {
		return err
	}
	if s.work, err = newWorkspaces(s.file); err != nil {
		return err
	}
	if err := s.checkSizes(); err != nil {
		return err
	}
	if err := s.takeUpProgress(); err != nil {
		return err
	}
	return s.takeUpWindow()
}

func openFile(d Device, a *arena) (*cowfile.File, error) {
	opts := &cowfile.Options{Alloc: a.alloc, Free: a.free}
	if m, ok := d.(Mapping); ok {
		opts.Map = a.mapDevice(m)
	}
	return cowfile.Open(d, d.Size(), opts)
}

func (s *Snapshot) checkSizes() error {
	c := s.file.Counts()
	covered := int64(0)
	if c.Ops() > 0 {
		covered = (int64(c.LastBlock) + 1) * blockSize
	}
	if s.size == 0 {
		s.size = max(s.base.Size(), covered)
	}
	if s.size < covered {
		return fmt.Errorf("%w: the COW covers %d bytes, expected at most the snapshot's size, %d", ErrSize, covered, s.size)
	}
	if s.size > maxSize {
		return fmt.Errorf("%w: expected a snapshot of at most %d bytes, found %d", ErrSize, int64(maxSize), s.size)
	}
	return checkSources(s.file, s.source.Size())
}

// checkSources makes sure that no op that is still to be merged reads beyond
// size bytes of the source. (A partition may have shrunk after a merge.)
func checkSources(f *cowfile.File, size int64) error {
	if f.SourceEnd() <= uint64(size) {
		return nil
	}
	// Find the op. An unaligned size may yet be enough.
	for it := f.Merge(f.NumMergeOps()); it.Pos() < f.OrderedOps(); {
		i, _ := it.Next()
		o := f.Op(i)
		if off, n := o.SourceRange(); off+n > size {
			return fmt.Errorf("%w: op %d (%v): expected a source of at least %d bytes, found %d", ErrSource, i, o, off+n, size)
		}
	}
	return nil
}

// takeUpProgress notes which ops are merged already.
func (s *Snapshot) takeUpProgress() error {
	f := s.file
	s.merged = f.NumMergeOps()
	s.complete = s.merged == f.NumOps()
	c := f.Counts()
	s.bytes.total.Store(int64(c.BlocksCovered) * blockSize)
	if !f.InTableOrder() && f.OrderedOps() > 0 {
		mem, err := s.arena.alloc((f.NumOps() + 63) / 64 * 8)
		if err != nil {
			return err
		}
		s.bits = words(mem)
	}
	if s.merged == 0 {
		return nil
	}
	done := int64(0)
	it := f.Merge(0)
	for it.Pos() < s.merged {
		i, _ := it.Next()
		s.markMerged(i)
		done += int64(f.Op(i).Blocks())
	}
	s.bytes.written.Store(done * blockSize)
	return nil
}

// takeUpWindow finds the blocks that a crashed merge left in the scratch area.
// A full scratch area counts even when no op has been merged yet.
func (s *Snapshot) takeUpWindow() error {
	if h := s.file.Header(); h.ScratchSize == 0 {
		var err error
		s.window, err = s.readJournal()
		return err
	}
	state, err := s.file.ReadState(s.cow)
	if err != nil || state != cowfile.StateReadDone {
		return err
	}
	entries, err := s.file.ReadScratch(s.cow)
	if err != nil {
		return err
	}
	w := make([]windowBlock, len(entries))
	for i, e := range entries {
		w[i] = windowBlock{block: uint32(e.NewBlock), off: e.Offset}
	}
	s.setWindow(w)
	return nil
}

func (s *Snapshot) setWindow(w []windowBlock) {
	slices.SortFunc(w, func(a, b windowBlock) int { return cmp.Compare(a.block, b.block) })
	s.window = w
}

func (s *Snapshot) markMerged(op int) {
	if s.bits != nil {
		s.bits[op/64] |= 1 << (op % 64)
	}
}

// isMerged tells for an ordered op whether the base has its block.
func (s *Snapshot) isMerged(op int) bool {
	if s.bits == nil {
		return op < s.merged
	}
	return s.bits[op/64]>>(op%64)&1 != 0
}

// Size is the snapshot's size in bytes.
func (s *Snapshot) Size() int64 { return s.size }

// File is the COW's table of ops. It is valid until Close.
func (s *Snapshot) File() *cowfile.File { return s.file }

// Trim gives memory that no request owns back to the kernel.
func (s *Snapshot) Trim() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.closed {
		s.work.trim()
		s.arena.trim()
	}
}

// Close waits for requests to end and releases the snapshot's memory. A merge
// must have been stopped before.
func (s *Snapshot) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.closed = true
	s.release()
	return nil
}

func (s *Snapshot) release() {
	if s.work != nil {
		s.work.close()
	}
	s.arena.close()
}

// ReadAt reads the target's contents: any offset and length, before, during and
// after a merge. An error concerns this request only.
func (s *Snapshot) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, unix.EINVAL)
	}
	if off >= s.size {
		return 0, io.EOF
	}
	want := min(int64(len(p)), s.size-off)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0, ErrClosed
	}
	defer faultToError(debug.SetPanicOnFault(true), &err)
	r := reader{s: s, dst: p[:want], off: off}
	if err := r.run(); err != nil {
		return 0, err
	}
	if want < int64(len(p)) {
		return int(want), io.EOF
	}
	return int(want), nil
}

// faultToError turns a fault on mapped memory – the COW's medium cannot be
// read, or somebody cut the file short – into an I/O error. It is deferred with
// the value to which panicking on faults returns.
func faultToError(old bool, err *error) {
	debug.SetPanicOnFault(old)
	r := recover()
	if r == nil {
		return
	}
	fault, ok := r.(interface {
		error
		Addr() uintptr
	})
	if !ok {
		panic(r)
	}
	*err = fmt.Errorf("read the COW's op table: %w (%v)", unix.EIO, fault)
}
