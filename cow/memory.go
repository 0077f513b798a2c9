package cow

import (
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"cowbird/formats/cowfile"

	"golang.org/x/sys/unix"
)

// mapAnonymous returns n zeroed bytes outside the Go heap. Pages that are never
// touched cost nothing.
func mapAnonymous(n int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of memory: %w", n, err)
	}
	return b, nil
}

// words views memory from mapAnonymous as 64-bit words.
func words(b []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8)
}

// batchOpsIn views memory from mapAnonymous as an empty list of ops.
func batchOpsIn(b []byte) []batchOp {
	return unsafe.Slice((*batchOp)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/int(unsafe.Sizeof(batchOp{})))[:0]
}

// arena is memory that lives as long as a snapshot.
type arena struct {
	blocks [][]byte
	mapped []*MappedBytes
}

func (a *arena) alloc(n int) ([]byte, error) {
	b, err := mapAnonymous(n)
	if err == nil {
		a.blocks = append(a.blocks, b)
	}
	return b, err
}

func (a *arena) free(b []byte) {
	i := slices.IndexFunc(a.blocks, func(x []byte) bool { return &x[0] == &b[0] })
	if i >= 0 {
		a.blocks = slices.Delete(a.blocks, i, i+1)
		_ = unix.Munmap(b[:cap(b)])
	}
}

func (a *arena) mapDevice(d Mapping) func(int64, int) ([]byte, error) {
	return func(off int64, n int) ([]byte, error) {
		m, err := d.Map(off, n)
		if err != nil {
			return nil, err
		}
		a.mapped = append(a.mapped, m)
		return m.B, nil
	}
}

// trim lets go of mapped pages, which the kernel has in its cache as well.
func (a *arena) trim() {
	for _, m := range a.mapped {
		m.Drop()
	}
}

func (a *arena) close() {
	for _, b := range a.blocks {
		_ = unix.Munmap(b)
	}
	for _, m := range a.mapped {
		m.Unmap()
	}
	*a = arena{}
}

// workspace is what a request needs to decode. It remembers the last unit, so
// that a reader of small pieces decodes a unit once.
type workspace struct {
	mem    []byte
	unit   []byte // decoded
	stored []byte
	op     int // whose unit is in unit, or −1
}

// workspaces lends workspaces to requests. Only those that no request owns are
// ever freed.
type workspaces struct {
	unit, stored int // sizes

	mu   sync.Mutex
	idle []*workspace

	// reserve lets one request at a time finish when no memory can be mapped.
	reserveMu sync.Mutex
	reserve   *workspace
}

const maxIdleWorkspaces = 8

func newWorkspaces(f *cowfile.File) (*workspaces, error) {
	w := &workspaces{unit: f.MaxUnit(), stored: storedAtOnce(f)}
	var err error
	w.reserve, err = w.create(f.MaxStored())
	return w, err
}

// storedAtOnce is how many bytes of compressed data are read at once, if they are
// of several units: as many as stay in a processor's cache until they are
// decompressed.
func storedAtOnce(f *cowfile.File) int { return max(128<<10, f.MaxStored()) }

func (w *workspaces) create(stored int) (*workspace, error) {
	mem, err := mapAnonymous(w.unit + stored)
	if err != nil {
		return nil, err
	}
	return &workspace{mem: mem, unit: mem[:w.unit], stored: mem[w.unit:], op: -1}, nil
}

// get lends a workspace, if possible the one that holds the unit of op.
func (w *workspaces) get(op int) *workspace {
	w.mu.Lock()
	if n := len(w.idle); n > 0 {
		i := n - 1
		for k := range w.idle {
			if w.idle[k].op == op {
				i = k
				break
			}
		}
		ws := w.idle[i]
		w.idle[i] = w.idle[n-1]
		w.idle = w.idle[:n-1]
		w.mu.Unlock()
		return ws
	}
	w.mu.Unlock()
	if ws, err := w.create(w.stored); err == nil {
		return ws
	}
	w.reserveMu.Lock() // until put
	return w.reserve
}

func (w *workspaces) put(ws *workspace) {
	if ws == w.reserve {
		w.reserveMu.Unlock()
		return
	}
	w.mu.Lock()
	keep := len(w.idle) < maxIdleWorkspaces
	if keep {
		w.idle = append(w.idle, ws)
	}
	w.mu.Unlock()
	if !keep {
		_ = unix.Munmap(ws.mem)
	}
}

// trim frees the workspaces that nobody owns and the pages of the reserve.
func (w *workspaces) trim() {
	w.mu.Lock()
	idle := w.idle
	w.idle = nil
	w.mu.Unlock()
	for _, ws := range idle {
		_ = unix.Munmap(ws.mem)
	}
	if w.reserve != nil && w.reserveMu.TryLock() {
		w.reserve.op = -1
		_ = unix.Madvise(w.reserve.mem, unix.MADV_DONTNEED)
		w.reserveMu.Unlock()
	}
}

func (w *workspaces) close() {
	w.trim()
	if w.reserve != nil {
		_ = unix.Munmap(w.reserve.mem)
	}
}
