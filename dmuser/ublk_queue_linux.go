package dmuser

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/internal/ublkctl"
	"cowbird/dmuser/internal/uring"
)

// ublkQueue is one queue of a device. The driver wants a request answered by the
// thread that asked for it, so there is one for the queue, which does everything
// but reading the backend:
//
//	driver ──► ring ──► thread ──► jobs ──► workers ──► Backend.ReadAt
//	   ▲                 ▲  │                  │
//	   └── commit ───────┼──┘                  │ user copy: data, to the character device
//	                     └── eventfd ◄── results
//
// A read of the backend may take for ever, and then nobody else could answer for
// the thread; so it does none that could wait.
type ublkQueue struct {
	d     *ublkDev
	id    uint16
	event int // wakes the thread
	ticks [8]byte

	// The thread's own.
	ring    *uring.Ring
	descs   []byte // read-only, shared with the driver
	tags    []ublkTag
	live    int    // tags that the driver has not taken back
	serving int    // requests that are neither the driver's nor given up
	armed   bool   // event is being read
	memory  []byte // of all tags, in mode ublkCopy
	asked   uint64 // requests so far
	long    int    // tags with long
	waiting bool   // for the timer
	before  uint64 // asked, when the timer was set
	timer   *time.Timer

	mu      sync.Mutex
	results []ublkResult
	kicked  bool
	expired bool // the timer
	freed   bool
}

// ublkTag is the place of one request.
type ublkTag struct {
	turn    uint32 // counts its requests
	serving bool
	long    bool // more than the first page of its memory has been used
	job     ublkJob
}

// ublkJob is one read.
type ublkJob struct {
	q    *ublkQueue
	tag  uint16
	turn uint32
	n    int32 // bytes
	off  int64
}

type ublkResult struct {
	tag  uint16
	turn uint32
	res  int32 // bytes, or a negated errno
}

// What a completion is of: the upper half of its user data.
const (
	aboutTag = iota
	aboutEvent
	aboutRead
)

func userData(about uint32, tag uint16) uint64 { return uint64(about)<<32 | uint64(tag) }

// startQueues returns when all tags have been fetched, or with an error, and then
// no queue runs or the device must be aborted.
func (d *ublkDev) startQueues() error {
	n := int(d.info.Queues)
	d.work.init(n*int(d.info.Depth), n)
	ready := make(chan error, n)
	for id := range n {
		q, err := newUblkQueue(d, uint16(id))
		if err != nil {
			for _, q := range d.queues {
				q.free()
			}
			d.queues = nil
			return err
		}
		d.queues = append(d.queues, q)
	}
	for _, q := range d.queues {
		go q.run(ready)
	}
	var failure error
	for range n {
		if err := <-ready; err != nil {
			failure = err
		}
	}
	return failure
}

func newUblkQueue(d *ublkDev, id uint16) (*ublkQueue, error) {
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	depth := int(d.info.Depth)
	q := &ublkQueue{d: d, id: id, event: event, live: depth,
		tags: make([]ublkTag, depth), results: make([]ublkResult, 0, depth)}
	if d.mode != ublkCopy {
		return q, nil
	}
	q.memory, err = unix.Mmap(-1, 0, depth*maxRead, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		_ = unix.Close(event)
		return nil, fmt.Errorf("map %d bytes for requests: %w", depth*maxRead, err)
	}
	return q, nil
}

// free gives back what newUblkQueue took.
func (q *ublkQueue) free() {
	q.mu.Lock()
	q.freed = true
	q.mu.Unlock()
	if q.timer != nil {
		q.timer.Stop()
	}
	_ = unix.Close(q.event)
	if q.memory != nil {
		_ = unix.Munmap(q.memory)
	}
}

// run is the queue's thread. The kernel takes the commands of a thread that exits
// for those of a dead server, so it stays until the device is over.
func (q *ublkQueue) run(ready chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := q.setUp()
	ready <- err
	for err == nil && !q.over() {
		err = q.ring.Enter(1)
		q.handleAll()
	}
	q.tearDown()
	if q.d.work.running.Add(-1) == 0 {
		q.d.queuesEnded()
	}
}

func (q *ublkQueue) setUp() (err error) {
	depth := int(q.d.info.Depth)
	if q.ring, err = uring.New(depth+1, uring.Options{Exclusive: true}); err != nil {
		return err
	}
	if q.d.mode == ublkZeroCopy {
		if err := q.ring.SparseBuffers(depth); err != nil {
			return err
		}
	}
	q.descs, err = unix.Mmap(q.d.char, ublkctl.DescOffset(q.id, os.Getpagesize()),
		ublkctl.DescLength(q.d.info.Depth, os.Getpagesize()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map the descriptors of queue %d: %w", q.id, err)
	}
	for tag := range q.tags {
		q.command(ublkctl.Fetch, uint16(tag), 0)
	}
	q.arm()
	if err := q.ring.Enter(0); err != nil {
		return err
	}
	return q.refused()
}

// refused finds a fetch that the driver did not take, which it says at once.
func (q *ublkQueue) refused() error {
	for {
		c, ok := q.ring.Done()
		if !ok {
			return nil
		}
		if c.Res < 0 {
			return fmt.Errorf("fetch tag %d of queue %d: %w", uint16(c.UserData), q.id, unix.Errno(-c.Res))
		}
		q.handle(c)
	}
}

func (q *ublkQueue) tearDown() {
	if q.descs != nil {
		_ = unix.Munmap(q.descs)
	}
	if q.ring != nil {
		// Requests lie in it that nobody will answer here. The driver takes the
		// device for served while they do, and this thread may read that very
		// device next: then the ring's end would wait for it.
		if q.d.mode == ublkZeroCopy {
			_ = q.ring.DropBuffers()
		}
		q.ring.Close()
	}
}

// over tells whether the thread may end: the driver has taken all tags back, or
// another server is to go on and nothing is under way here.
func (q *ublkQueue) over() bool {
	if (q.d.leaving.Load() || q.d.quitting.Load()) && q.serving == 0 {
		_ = q.ring.Enter(0) // the last answers
		return true
	}
	return q.live == 0
}

func (q *ublkQueue) handleAll() {
	for {
		c, ok := q.ring.Done()
		if !ok {
			break
		}
		q.handle(c)
	}
	q.takeResults()
	if q.d.aborting.Load() {
		q.giveUp()
	}
	q.arm()
	q.rest()
}

// rest gives back the memory of long requests when there has been none of any kind for
// quietAfter. Only between requests is it nobody's. A page for each tag stays, for a small
// read after a pause.
func (q *ublkQueue) rest() {
	if q.long == 0 || q.serving > 0 || q.live == 0 {
		return
	}
	q.mu.Lock()
	expired := q.expired
	q.expired = false
	q.mu.Unlock()
	if q.waiting && !expired {
		return
	}
	if !q.waiting || q.asked != q.before {
		q.wait()
		return
	}
	q.waiting = false
	_ = q.ring.Enter(0) // with the last answers the driver has copied what is in it
	for tag := range q.tags {
		if t := &q.tags[tag]; t.long {
			t.long = false
			b := q.buffer(uint16(tag))[os.Getpagesize():]
			_ = unix.Munlock(b) // a process may have locked all of its memory
			_ = unix.Madvise(b, unix.MADV_DONTNEED)
		}
	}
	q.long = 0
	if f := quietHook.Load(); f != nil {
		go (*f)()
	}
}

// wait has rest called again in a while.
func (q *ublkQueue) wait() {
	q.waiting, q.before = true, q.asked
	if q.timer == nil {
		q.timer = time.AfterFunc(quietAfter, q.expire)
		return
	}
	q.timer.Reset(quietAfter)
}

func (q *ublkQueue) expire() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.expired = true; !q.freed {
		q.tick()
	}
}

func (q *ublkQueue) handle(c uring.Completion) {
	tag := uint16(c.UserData)
	switch c.UserData >> 32 {
	case aboutEvent:
		q.armed = false
	case aboutRead:
		q.fileRead(tag, c.Res)
	default:
		if c.Res == 0 {
			q.serve(tag)
		} else {
			q.live-- // ENODEV: the device is stopped
		}
	}
}

// arm has the ring read the eventfd.
func (q *ublkQueue) arm() {
	if q.armed || q.live == 0 {
		return
	}
	q.armed = true
	e := q.next()
	e.Op, e.FD, e.Len = uring.OpRead, int32(q.event), uint32(len(q.ticks))
	e.Addr = uint64(uintptr(unsafe.Pointer(&q.ticks[0]))) // of the heap, where nothing moves
	e.UserData = userData(aboutEvent, 0)
}

// next is an entry to fill. There are as many as tags, and one more.
func (q *ublkQueue) next() *uring.Entry {
	for {
		if e := q.ring.Next(); e != nil {
			return e
		}
		_ = q.ring.Enter(0)
	}
}

// command gives a tag to the driver, with the outcome of what it was before.
func (q *ublkQueue) command(code uint32, tag uint16, res int32) {
	e := q.next()
	e.SetCommand(q.d.char, code)
	e.UserData = userData(aboutTag, tag)
	area := (*ublkctl.IO)(e.Area())
	*area = ublkctl.IO{Queue: q.id, Tag: tag, Result: res}
	switch q.d.mode {
	case ublkCopy:
		area.Addr = uint64(uintptr(unsafe.Pointer(&q.buffer(tag)[0])))
	case ublkZeroCopy:
		e.Addr = ublkctl.AutoBuffer(tag)
	}
}

// buffer is a tag's memory.
func (q *ublkQueue) buffer(tag uint16) []byte {
	return q.memory[int(tag)*maxRead : (int(tag)+1)*maxRead]
}

// commit answers a request.
func (q *ublkQueue) commit(tag uint16, res int32) {
	t := &q.tags[tag]
	t.serving = false
	q.serving--
	q.command(ublkctl.CommitAndFetch, tag, res)
}

// serve begins with a request. While another server is awaited it is left alone:
// the driver asks that one.
func (q *ublkQueue) serve(tag uint16) {
	if q.d.leaving.Load() {
		return
	}
	desc := (*ublkctl.Desc)(unsafe.Pointer(&q.descs[int(tag)*ublkctl.DescSize]))
	t := &q.tags[tag]
	t.turn++
	t.serving = true
	q.serving++
	q.asked++
	if q.memory != nil && !t.long && int(desc.Sectors)*512 > os.Getpagesize() {
		t.long = true
		q.long++
	}
	t.job = ublkJob{q: q, tag: tag, turn: t.turn, n: int32(desc.Sectors * 512), off: int64(desc.Start) * 512}
	switch res := q.judge(desc); {
	case res <= 0:
		q.commit(tag, res)
	case desc.Unregistered() || !q.fromFile(&t.job):
		q.d.work.add(t.job)
	}
}

// judge gives the outcome of what needs no reading: else something above 0.
func (q *ublkQueue) judge(desc *ublkctl.Desc) int32 {
	end := desc.Start + uint64(desc.Sectors)
	switch {
	case desc.Op() == ublkctl.OpFlush:
		return 0
	case desc.Op() != ublkctl.OpRead:
		return -int32(unix.EROFS)
	case q.d.aborting.Load(), desc.Sectors == 0 || desc.Sectors > maxRead/512,
		end < desc.Start || end > uint64(q.d.size)/512:
		return -int32(unix.EIO)
	}
	return 1
}

// kick wakes the thread. It may be called by anybody until free.
func (q *ublkQueue) kick() {
	q.mu.Lock()
	again := q.kicked
	q.kicked = true
	q.mu.Unlock()
	if !again {
		q.tick()
	}
}

func (q *ublkQueue) tick() {
	one := [8]byte{}
	*(*uint64)(unsafe.Pointer(&one)) = 1
	for {
		_, err := unix.Write(q.event, one[:])
		if err != unix.EINTR {
			return
		}
	}
}

// finished hands a result to the thread.
func (q *ublkQueue) finished(r ublkResult) {
	q.mu.Lock()
	q.results = append(q.results, r)
	again := q.kicked
	q.kicked = true
	q.mu.Unlock()
	if !again {
		q.tick()
	}
}

func (q *ublkQueue) takeResults() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range q.results {
		if t := &q.tags[r.tag]; t.serving && t.turn == r.turn {
			q.commit(r.tag, r.res)
		}
	}
	q.results = q.results[:0]
	q.kicked = false
}

// giveUp answers what workers are at. Their results come too late then, and mean
// nothing. Reads by the ring are waited for.
func (q *ublkQueue) giveUp() {
	for tag := range q.tags {
		if t := &q.tags[tag]; t.serving && t.job.q != nil {
			q.commit(uint16(tag), -int32(unix.EIO))
		}
	}
}
