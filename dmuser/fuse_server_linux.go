package dmuser

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxRead is the largest read, in bytes, that the kernel is told to ask.
	maxRead = 1 << 20
	// requestSize is the least read buffer that the kernel accepts. It needs
	// to hold no write, so it need not be larger.
	requestSize = 8192

	// largeRead and above are served by several threads at a time: copying
	// such a reply takes longer than waking another thread does.
	largeRead = 128 << 10
	// slowBackend is the time of a small read above which several threads
	// are worth waking for those too.
	slowBackend = 50 * time.Microsecond
	// slowRead is how long a read may hold back the ones behind it.
	slowRead = time.Millisecond
)

// fuseServer answers the requests of one FUSE connection. See the package
// comment for how its goroutines take turns.
type fuseServer struct {
	backend Backend
	size    uint64
	buffers *bufferPool
	reserve *reserve
	done    chan struct{}

	fd   int // /dev/fuse, blocking; once stopping, a copy of dead
	dead int

	leading func() // lead, bound once: a go statement would allocate it anew

	// The leader's own.
	in    []byte
	token uint32

	// inline is the token of the request that the leader serves without having
	// given up the lead, else 0. Whoever changes a token to 0 has the lead.
	inline   atomic.Uint32
	watchdog *time.Timer
	recent   atomic.Int64 // nanoseconds that small reads took lately

	mu     sync.Mutex
	limit  int  // workers at a time
	busy   int  // workers that do not lead
	vacant bool // nobody leads: for the next worker that is free
	ended  bool // nobody will lead any more
}

func newFuseServer(fd int, b Backend, buffers *bufferPool) (*fuseServer, error) {
	dead, err := openDead()
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	spare, err := newReserve(maxRead)
	if err != nil {
		_ = unix.Close(dead)
		return nil, fmt.Errorf("map %d bytes in reserve: %w", maxRead, err)
	}
	s := &fuseServer{
		backend: b, size: uint64(b.Size()), buffers: buffers, reserve: spare,
		fd: fd, dead: dead, in: make([]byte, requestSize),
		done: make(chan struct{}), limit: workerLimit(),
	}
	s.leading = s.lead
	s.watchdog = time.AfterFunc(time.Hour, s.relieve)
	s.watchdog.Stop()
	return s, nil
}

func workerLimit() int { return min(8, max(2, 2*runtime.GOMAXPROCS(0))) }

// lead reads requests and serves them until somebody else leads or the
// connection ends.
func (s *fuseServer) lead() {
	for {
		req, ok := s.next()
		if !ok {
			s.end()
			return
		}
		if !s.serveOne(&req) {
			return
		}
	}
}

// next waits for a request that is to be answered with data or needs thought;
// false means that the connection has ended.
func (s *fuseServer) next() (request, bool) {
	for {
		n, err := unix.Read(s.fd, s.in)
		switch {
		case err == nil && n > 0:
		case err == unix.EINTR, err == unix.EAGAIN, err == unix.ENOENT:
			continue // ENOENT: the request was withdrawn while being read
		default:
			return request{}, false
		}
		req, err := parseRequest(s.in[:n])
		if err == nil {
			return req, true
		}
		if n >= inHeaderSize && req.wantsReply() {
			s.replyError(req.unique, unix.EIO)
		}
	}
}

// serveOne reports whether the caller leads afterwards.
func (s *fuseServer) serveOne(req *request) bool {
	if req.op != opRead {
		s.serveOther(req)
		return true
	}
	if s.shouldHandOver(req) {
		s.handOver()
		s.serveTimed(req)
		return s.reclaim()
	}
	token := s.beginInline()
	s.serveTimed(req)
	return s.inline.CompareAndSwap(token, 0) || s.reclaim()
}

func (s *fuseServer) serveTimed(req *request) {
	start := time.Now()
	s.serveRead(req)
	if req.size < largeRead {
		s.noteTime(time.Since(start))
	}
}

func (s *fuseServer) shouldHandOver(req *request) bool {
	if req.size >= largeRead {
		return true
	}
	return s.recent.Load() > int64(slowBackend) && s.moreWaiting()
}

// noteTime keeps a mean in which the last four reads weigh most.
func (s *fuseServer) noteTime(d time.Duration) {
	old := s.recent.Load()
	s.recent.Store(old + (int64(d)-old)/4)
}

func (s *fuseServer) moreWaiting() bool {
	var zero unix.Timespec
	p := unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN}
	n, _, _ := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1,
		uintptr(unsafe.Pointer(&zero)), 0, 0, 0)
	return n == 1
}

// beginInline marks the leader as busy, and has it relieved if that lasts.
func (s *fuseServer) beginInline() uint32 {
	s.token++
	if s.token == 0 {
		s.token++
	}
	token := s.token
	s.inline.Store(token)
	s.watchdog.Reset(slowRead)
	return token
}

// relieve takes the lead from a leader that is busy for too long. It may come
// early for a later request than the one it was meant for, which does no harm.
func (s *fuseServer) relieve() {
	token := s.inline.Load()
	if token != 0 && s.inline.CompareAndSwap(token, 0) {
		s.handOver()
	}
}

// handOver makes a worker of the leader, and a leader of a new goroutine
// unless there are enough.
func (s *fuseServer) handOver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy++
	if s.busy < s.limit {
		go s.leading()
	} else {
		s.vacant = true
	}
}

// reclaim ends a worker's work: true means that it leads from now on.
func (s *fuseServer) reclaim() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy--
	if s.vacant {
		s.vacant = false
		return true
	}
	s.finishIfLast()
	return false
}

// end is the last act of the last leader.
func (s *fuseServer) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disconnect()
	s.ended = true
	s.finishIfLast()
}

func (s *fuseServer) finishIfLast() {
	if !s.ended || s.busy > 0 {
		return
	}
	s.watchdog.Stop()
	_ = unix.Close(s.fd)
	_ = unix.Close(s.dead)
	s.reserve.free()
	close(s.done)
}

// disconnect drops this process's hold on the connection. A dead descriptor
// takes its number, so that a worker that is late writes to nothing, and not to
// whatever file would get the number next.
func (s *fuseServer) disconnect() {
	for unix.Dup3(s.dead, s.fd, unix.O_CLOEXEC) == unix.EBUSY {
		runtime.Gosched()
	}
}

// openDead gives a descriptor whose reads and writes fail at once.
func openDead() (int, error) { return unix.EpollCreate1(unix.EPOLL_CLOEXEC) }

// stop ends the connection whose file system root is of: the kernel fails what
// it still waits for, and whatever is asked later. It does so once no thread is
// inside a system call on /dev/fuse any more, hence the question that wakes the
// reader. A worker that is late may still answer it; then it is asked again.
func (s *fuseServer) stop(root int) {
	s.mu.Lock()
	ended := s.ended
	if !ended {
		s.disconnect()
	}
	s.mu.Unlock()
	var fs unix.Statfs_t
	for !ended && unix.Fstatfs(root, &fs) == nil {
		runtime.Gosched()
	}
}

// serveRead answers one read. Its reply is one write: the kernel takes nothing
// else, and under direct I/O it would take a shorter reply for the file's end.
func (s *fuseServer) serveRead(req *request) {
	n := s.clamp(req)
	if req.size > maxRead {
		s.replyError(req.unique, unix.EINVAL)
		return
	}
	buf, err := s.buffers.get()
	if err != nil {
		buf = s.reserve.take()
		defer s.reserve.giveBack()
	} else {
		defer s.buffers.put(buf)
	}
	if errno := s.fill(buf.data()[:n], int64(req.offset)); errno != 0 {
		s.replyError(req.unique, errno)
		return
	}
	out := buf.reply(n)
	*(*outHeader)(unsafe.Pointer(&out[0])) = outHeader{Len: uint32(len(out)), Unique: req.unique}
	s.write(out)
}

// clamp gives the bytes that exist of those that were asked for.
func (s *fuseServer) clamp(req *request) int {
	if req.offset >= s.size {
		return 0
	}
	return int(min(uint64(req.size), s.size-req.offset))
}

// fill reads all of p from the backend.
func (s *fuseServer) fill(p []byte, off int64) unix.Errno {
	if len(p) == 0 {
		return 0
	}
	n, err := s.backend.ReadAt(p, off)
	if n == len(p) && (err == nil || isEOF(err)) {
		return 0
	}
	return errnoOf(err)
}

// errnoOf gives what err is to the kernel, which knows error numbers up to 511
// only.
func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	if errors.As(err, &errno) && errno > 0 && errno < 512 {
		return errno
	}
	return unix.EIO
}
