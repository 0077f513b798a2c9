package dmuser

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// quietAfter is how long a pool must have seen no request before it gives
	// its buffers back to the kernel.
	quietAfter = time.Second
	// reserveResident is how much of a device's reserve stays in memory.
	// Reads of up to this size need no memory that is not already there.
	reserveResident = 16 << 10
)

var quietHook atomic.Pointer[func()]

// OnQuiet has f called, on a goroutine of its own, each time the request buffers
// have just been given back to the kernel because no device was asked anything
// for a while. A daemon that wants its heap small then calls
// debug.FreeOSMemory. A nil f removes the hook.
func OnQuiet(f func()) {
	if f == nil {
		quietHook.Store(nil)
		return
	}
	quietHook.Store(&f)
}

// buffer is the memory of one reply, outside of the Go heap. The data starts at
// a page boundary, so that a backend can use direct I/O, and there is room for
// the reply's header right before it, so that header and data leave in one write.
type buffer struct {
	mem   []byte
	next  *buffer
	spare *reserve // what it is, if it is one
}

func mapBuffer(size int) (*buffer, error) {
	mem, err := unix.Mmap(-1, 0, os.Getpagesize()+size,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	return &buffer{mem: mem}, nil
}

func (b *buffer) data() []byte { return b.mem[os.Getpagesize():] }

// Frame is the memory of a header of that many bytes and of the first n bytes of
// data.
func (b *buffer) Frame(header, n int) []byte {
	return b.mem[os.Getpagesize()-header : os.Getpagesize()+n]
}

func (b *buffer) unmap() { _ = unix.Munmap(b.mem) }

// bufferPool lends buffers of one size. What lies in the free list has no owner,
// and only that is ever unmapped: a buffer whose owner is merely slow is not in
// the list.
type bufferPool struct {
	size int
	mmap func(size int) (*buffer, error) // replaced by tests

	mu    sync.Mutex
	free  *buffer
	used  bool // since the timer was armed
	armed bool
	timer *time.Timer
}

func newBufferPool(size int) *bufferPool {
	return &bufferPool{size: size, mmap: mapBuffer}
}

// get lends a buffer. Its contents are undefined.
func (p *bufferPool) get() (*buffer, error) {
	if b := p.ready(); b != nil {
		return b, nil
	}
	return p.mmap(p.size)
}

// ready lends a buffer that nobody uses, if there is one.
func (p *bufferPool) ready() *buffer {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.free
	if b != nil {
		p.free, b.next = b.next, nil
	}
	return b
}

// getFor lends a buffer for n bytes and cannot fail: when no memory is to be had
// it waits for the device's reserve.
func (p *bufferPool) getFor(n int, spare *reserve) *buffer {
	if b, err := p.getNow(n, spare); err == nil {
		return b
	}
	return spare.take()
}

// getNow is getFor without waiting. A small read after a pause gets the reserve if
// that is free, since its pages are there while those of a new buffer are not.
func (p *bufferPool) getNow(n int, spare *reserve) (*buffer, error) {
	if b := p.ready(); b != nil {
		return b, nil
	}
	if n <= reserveResident && spare.tryTakeSmall() {
		return spare.buf, nil
	}
	return p.mmap(p.size)
}

// put takes a buffer back. The one used last is lent first: its pages are there.
func (p *bufferPool) put(b *buffer) {
	if b.spare != nil {
		b.spare.giveBack()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	b.next = p.free
	p.free = b
	p.used = true
	if !p.armed {
		p.arm()
	}
}

func (p *bufferPool) arm() {
	p.armed, p.used = true, false
	if p.timer == nil {
		p.timer = time.AfterFunc(quietAfter, p.expire)
		return
	}
	p.timer.Reset(quietAfter)
}

// expire runs once a quietAfter while requests come, and not at all after it
// has found that none came.
func (p *bufferPool) expire() {
	p.mu.Lock()
	if p.used {
		p.arm()
		p.mu.Unlock()
		return
	}
	p.armed = false
	b := p.free
	p.free = nil
	p.mu.Unlock()
	for ; b != nil; b = b.next {
		b.unmap()
	}
	if f := quietHook.Load(); f != nil {
		(*f)()
	}
}

// reserve is the buffer that a device falls back on when no other can be had,
// so that a request can always be finished. All of its address range is
// taken beforehand, but only the start of it stays in memory.
type reserve struct {
	mu    sync.Mutex
	buf   *buffer
	small bool // only the resident part was asked for
}

func newReserve(size int) (*reserve, error) {
	b, err := mapBuffer(size)
	if err != nil {
		return nil, err
	}
	r := &reserve{buf: b}
	b.spare = r
	r.trim()
	kept := b.mem[:os.Getpagesize()+min(size, reserveResident)]
	for i := 0; i < len(kept); i += os.Getpagesize() {
		kept[i] = 1
	}
	return r, nil
}

// take waits until nobody else uses the reserve.
func (r *reserve) take() *buffer {
	r.mu.Lock()
	return r.buf
}

// tryTakeSmall takes the resident part of the reserve unless somebody uses it.
func (r *reserve) tryTakeSmall() bool {
	if !r.mu.TryLock() {
		return false
	}
	r.small = true
	return true
}

// giveBack ends what take or tryTakeSmall began.
func (r *reserve) giveBack() {
	if !r.small {
		r.trim()
	}
	r.small = false
	r.mu.Unlock()
}

// trim drops all but the resident part. A process that has locked its memory
// must unlock the rest first, and does not want it populated.
func (r *reserve) trim() {
	keep := os.Getpagesize() + reserveResident
	if keep >= len(r.buf.mem) {
		return
	}
	_ = unix.Munlock(r.buf.mem[keep:])
	_ = unix.Madvise(r.buf.mem[keep:], unix.MADV_DONTNEED)
}

func (r *reserve) free() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.buf.unmap()
}
