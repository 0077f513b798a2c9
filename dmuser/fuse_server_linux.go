package dmuser

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/internal/turns"
)

const (
	// maxRead is the largest read, in bytes, that the kernel is told to ask.
	maxRead = 1 << 20
	// requestSize is the least read buffer that the kernel accepts. It needs
	// to hold no write, so it need not be larger.
	requestSize = 8192
)

// fuseServer answers the requests of one FUSE connection. Its goroutines take
// turns; how the leader waits is in fuseWait.
type fuseServer struct {
	backend Backend
	size    uint64
	buffers *bufferPool
	reserve *reserve
	done    chan struct{}

	fd   int // /dev/fuse; once stopping, a copy of dead
	dead int
	wait *fuseWait

	in    []byte // the leader's own
	turns *turns.Turns
}

// newFuseServer serves fd, a mounted /dev/fuse, which it closes in the end. root
// is a file of what is mounted.
func newFuseServer(fd, root int, b Backend, buffers *bufferPool) (s *fuseServer, err error) {
	s = &fuseServer{
		backend: b, size: uint64(b.Size()), buffers: buffers,
		fd: fd, in: make([]byte, requestSize), done: make(chan struct{}),
	}
	s.turns = turns.New(turns.DefaultLimit(), s.lead, s.release)
	if s.reserve, err = newReserve(maxRead); err != nil {
		return nil, err
	}
	if s.dead, err = openDead(); err != nil {
		s.reserve.free()
		return nil, err
	}
	if s.wait, err = newFuseWait(fd, root); err != nil {
		s.reserve.free()
		_ = unix.Close(s.dead)
		return nil, err
	}
	return s, nil
}

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
		n, err := s.wait.read(s.in)
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
		s.turns.HandOver()
		s.serveTimed(req)
		return s.turns.Reclaim()
	}
	token := s.turns.Begin()
	s.serveTimed(req)
	return s.turns.End(token)
}

func (s *fuseServer) serveTimed(req *request) {
	start := s.turns.Start()
	s.serveRead(req)
	if req.size < turns.Large {
		s.turns.Note(start)
	}
}

func (s *fuseServer) shouldHandOver(req *request) bool {
	return req.size >= turns.Large || s.turns.Slow() && s.moreWaiting()
}

func (s *fuseServer) moreWaiting() bool {
	var zero unix.Timespec
	p := unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN}
	n, _, _ := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1,
		uintptr(unsafe.Pointer(&zero)), 0, 0, 0)
	return n == 1
}

// end is the last act of the last leader.
func (s *fuseServer) end() { s.turns.Finish(s.disconnect) }

// release follows the last reply.
func (s *fuseServer) release() {
	s.wait.close()
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
// leader if it has a thread. A worker that is late may still answer it; then it
// is asked again. When stop returns nobody uses root any more.
func (s *fuseServer) stop(root int) {
	running := s.turns.Unfinished(s.disconnect)
	s.wait.end()
	var fs unix.Statfs_t
	for running && unix.Fstatfs(root, &fs) == nil {
		runtime.Gosched()
	}
	s.wait.stop()
}

// serveRead answers one read. Its reply is one write: the kernel takes nothing
// else, and under direct I/O it would take a shorter reply for the file's end.
func (s *fuseServer) serveRead(req *request) {
	n := s.clamp(req)
	if req.size > maxRead {
		s.replyError(req.unique, unix.EINVAL)
		return
	}
	buf := s.buffers.getFor(n, s.reserve)
	defer s.buffers.put(buf)
	if errno := fill(s.backend, buf.data()[:n], int64(req.offset)); errno != 0 {
		s.replyError(req.unique, errno)
		return
	}
	out := buf.Frame(outHeaderSize, n)
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

// fill reads all of p from a backend.
func fill(b Backend, p []byte, off int64) unix.Errno {
	if len(p) == 0 {
		return 0
	}
	n, err := b.ReadAt(p, off)
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
