package uring

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options say what kind of ring is wanted.
type Options struct {
	// Large entries have 80 bytes for a command instead of 16.
	Large bool
	// Exclusive means that one thread makes and uses the ring, so that the
	// kernel need not interrupt it.
	Exclusive bool
}

// Ring is one io_uring. It is not safe for concurrent use.
type Ring struct {
	fd       int
	mem      []byte // both queues
	entryMem []byte
	step     uintptr // from one entry to the next, in bytes

	sqHead, sqTail *uint32
	sqMask         uint32
	tail, told     uint32 // entries handed out, and those of them that the kernel has taken

	cqHead, cqTail *uint32
	cqMask         uint32
	completions    unsafe.Pointer
}

// New makes a ring of that many entries, or some more. It fails with ErrUnavailable.
func New(entries int, o Options) (*Ring, error) {
	var p params
	if o.Large {
		p.flags |= setupLarge
	}
	if o.Exclusive {
		p.flags |= setupExclusive
	}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, &Error{Op: "set-up", Errno: errno}
	}
	unix.CloseOnExec(int(fd))
	r := &Ring{fd: int(fd), step: entrySize}
	if o.Large {
		r.step *= 2
	}
	if err := r.mmap(&p); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (r *Ring) mmap(p *params) (err error) {
	if p.features&featureOneMap == 0 {
		return fmt.Errorf("%w: expected a kernel since 5.4, found one that maps its queues apart", ErrUnavailable)
	}
	const queues, entries = 0, 0x10000000
	size := max(uintptr(p.sq.array)+uintptr(p.sqEntries)*4, uintptr(p.cq.dropped)+uintptr(p.cqEntries)*unsafe.Sizeof(Completion{}))
	if r.mem, err = r.mapPart(queues, size); err != nil {
		return err
	}
	if r.entryMem, err = r.mapPart(entries, uintptr(p.sqEntries)*r.step); err != nil {
		return err
	}
	r.sqHead, r.sqTail, r.sqMask = r.word(p.sq.head), r.word(p.sq.tail), *r.word(p.sq.mask)
	r.cqHead, r.cqTail, r.cqMask = r.word(p.cq.head), r.word(p.cq.tail), *r.word(p.cq.mask)
	r.completions = unsafe.Pointer(r.word(p.cq.dropped))
	for i := range p.sqEntries {
		*r.word(p.sq.array + 4*i) = i
	}
	return nil
}

func (r *Ring) mapPart(off int64, size uintptr) ([]byte, error) {
	mem, err := unix.Mmap(r.fd, off, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of an io_uring: %w", size, err)
	}
	return mem, nil
}

func (r *Ring) word(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.mem[off])) }

// Next is an entry to fill, zeroed, or nil when all are filled: Enter makes room.
func (r *Ring) Next() *Entry {
	if r.tail-atomic.LoadUint32(r.sqHead) > r.sqMask {
		return nil
	}
	e := (*Entry)(unsafe.Pointer(&r.entryMem[uintptr(r.tail&r.sqMask)*r.step]))
	r.tail++
	clear(unsafe.Slice((*byte)(unsafe.Pointer(e)), r.step))
	return e
}

// Enter submits what was filled and waits for that many completions, or for a
// signal, in which case there may be fewer.
func (r *Ring) Enter(wait int) error {
	atomic.StoreUint32(r.sqTail, r.tail)
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.tail-r.told),
		uintptr(wait), enterGetEvents, 0, 0)
	switch errno {
	case 0:
		r.told += uint32(n)
		return nil
	case unix.EINTR, unix.EAGAIN:
		return nil
	}
	return &Error{Op: "enter", Errno: errno}
}

// Done takes the next completion, if there is one.
func (r *Ring) Done() (c Completion, ok bool) {
	head := *r.cqHead
	if head == atomic.LoadUint32(r.cqTail) {
		return c, false
	}
	c = *(*Completion)(unsafe.Add(r.completions, uintptr(head&r.cqMask)*unsafe.Sizeof(c)))
	atomic.StoreUint32(r.cqHead, head+1)
	return c, true
}

// SparseBuffers makes a table of n fixed buffers, all empty.
func (r *Ring) SparseBuffers(n int) error {
	arg := buffersArg{count: uint32(n), flags: registerSparse}
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerBuffers2,
		uintptr(unsafe.Pointer(&arg)), unsafe.Sizeof(arg), 0, 0)
	if errno != 0 {
		return &Error{Op: "register buffers", Errno: errno}
	}
	return nil
}

// DropBuffers takes the table away, and gives back what lies in it, at once. Close does
// so too, but may have to wait for a thread that has used the ring.
func (r *Ring) DropBuffers() error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), unregisterBuffers, 0, 0, 0, 0)
	if errno != 0 {
		return &Error{Op: "unregister buffers", Errno: errno}
	}
	return nil
}

// Close gives the ring back. The kernel cancels what has not completed.
func (r *Ring) Close() {
	for _, mem := range [][]byte{r.mem, r.entryMem} {
		if mem != nil {
			_ = unix.Munmap(mem)
		}
	}
	_ = unix.Close(r.fd)
}
