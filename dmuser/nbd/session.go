package nbd

import (
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"cowbird/dmuser/internal/turns"
)

// Limits of a session.
const (
	// MaxRequest is the most bytes that a client may ask for in one request.
	MaxRequest = 32 << 20
	// MaxPiece is the most bytes that are read in one call of the backend,
	// and the length of a buffer.
	MaxPiece = 1 << 20
	// ReplyTime is what a client may take to accept one reply.
	ReplyTime = 30 * time.Second
	// RequestTime is what a client may take to send the rest of a request.
	RequestTime = 30 * time.Second

	minBlock       = 1
	preferredBlock = 4096
	// maxMessage bounds the text that goes with an error, in bytes.
	maxMessage = 200
	// inputSize holds what has been read ahead of the requests.
	inputSize = 4096
	// Replies are held back until they come to holdBytes. Only the first may
	// be longer than holdReply.
	holdBytes = 64 << 10
	holdReply = 16 << 10
)

// Buffer is the memory of a reply.
type Buffer = interface {
	// Frame is header bytes followed by n bytes of data, which begin at a
	// boundary that is good for the backend.
	Frame(header, n int) []byte
}

// Pool lends buffers. Its methods must be safe for concurrent use, and should
// not allocate on the heap.
type Pool interface {
	// Get lends a buffer for n bytes of data, at most MaxRequest.
	Get(n int) (Buffer, error)
	// Put takes it back.
	Put(Buffer)
}

// Ending says why a session is over.
type Ending int

const (
	Disconnected Ending = iota // the client said so
	Lost                       // the connection went away
	Stopped                    // by Close
	Broken                     // the client broke the protocol, or was too slow
)

// Options says how to serve a session.
type Options struct {
	Structured bool // replies
	Allocation bool // BLOCK_STATUS is allowed
	// Trusted clients are given all the time they want.
	Trusted bool
	// Workers bounds how many requests are served at a time; 0 means two a
	// processor, within reason.
	Workers int
	// Over, unless nil, is called once when no more requests are read; calls
	// of the backend may still be under way.
	Over func(Ending)
	// Ended, unless nil, is called once after that: the connection is closed,
	// and the last call of the backend has returned.
	Ended func()
}

// Session is a connection in its transmission phase.
type Session struct {
	conn    Conn
	backend Backend
	size    uint64
	pool    Pool
	o       Options
	turns   *turns.Turns

	// The leader's own: what has been read and not yet looked at is in[r:w].
	in   []byte
	r, w int

	holding sync.Mutex // for held; out may be locked within
	held    held

	out sync.Mutex // held for the length of a reply, or of a chunk
	// small holds replies without data.
	small [chunkSize + 32 + maxMessage]byte

	mu      sync.Mutex
	stopped bool
	failed  bool // a reply could not be sent
}

// Start serves b to the client on c, which it closes in the end.
func Start(c Conn, b Backend, p Pool, o Options) *Session {
	if o.Workers == 0 {
		o.Workers = turns.DefaultLimit()
	}
	s := &Session{conn: c, backend: b, size: uint64(b.Size()), pool: p, o: o, in: make([]byte, inputSize)}
	s.turns = turns.New(o.Workers, s.lead, s.finish)
	s.turns.OnRelief(s.flush)
	go s.lead()
	return s
}

// Close ends the session at once, except for calls of the backend that are under
// way. It does not wait.
func (s *Session) Close() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	_ = s.conn.Close()
}

// fail gives up a connection on which a reply was not sent in full.
func (s *Session) fail() {
	s.mu.Lock()
	s.failed = true
	s.mu.Unlock()
	_ = s.conn.Close()
}

func (s *Session) hasFailed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *Session) finish() {
	_ = s.conn.Close()
	if s.o.Ended != nil {
		go s.o.Ended() // not under the lock of turns
	}
}

// lead reads requests and serves them until somebody else leads or the
// connection ends.
func (s *Session) lead() {
	for {
		req, ending, ok := s.next()
		if !ok {
			s.flushed()
			if s.o.Over != nil {
				s.o.Over(s.why(ending))
			}
			s.turns.Finish(func() {})
			return
		}
		if !s.serveOne(&req) {
			return
		}
	}
}

func (s *Session) why(e Ending) Ending {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped && e != Disconnected:
		return Stopped
	case s.failed && e == Lost:
		return Broken
	}
	return e
}

// next waits for a request that takes time, and answers those before it that do
// not.
func (s *Session) next() (req request, e Ending, ok bool) {
	for {
		if e, ok = s.fill(requestSize); !ok {
			return req, e, false
		}
		req, ok = parseRequest(s.in[s.r:s.w])
		s.r += requestSize
		if !ok {
			return req, Broken, false
		}
		switch {
		case req.cmd == cmdDisc:
			return req, Disconnected, false
		case req.cmd == cmdWrite && !s.skip(req.length):
			return req, Broken, false
		case req.cmd == cmdRead && s.check(&req) == 0 && req.length > 0:
			return req, 0, true
		}
		s.answer(&req)
	}
}

// fill reads until n bytes are there. Only a client that has begun with them can
// be late.
func (s *Session) fill(n int) (Ending, bool) {
	if s.r == s.w {
		s.r, s.w = 0, 0
	} else if len(s.in)-s.r < n {
		s.w = copy(s.in, s.in[s.r:s.w])
		s.r = 0
	}
	timed := false
	for s.w-s.r < n {
		s.flush()
		if s.w > s.r && !timed && !s.o.Trusted {
			timed = true
			_ = s.conn.SetReadDeadline(time.Now().Add(RequestTime))
		}
		k, err := s.conn.Read(s.in[s.w:])
		s.w += k
		if k == 0 && err != nil {
			return endingOf(err, s.w > s.r), false
		}
	}
	if timed {
		_ = s.conn.SetReadDeadline(time.Time{})
	}
	return 0, true
}

func endingOf(err error, inMidst bool) Ending {
	if inMidst && !errors.Is(err, io.EOF) {
		return Broken
	}
	return Lost
}

// skip passes over the payload of a write. One that is too long is not worth the
// time.
func (s *Session) skip(length uint32) bool {
	if length > MaxRequest {
		return false
	}
	here := min(int(length), s.w-s.r)
	s.r += here
	left := int(length) - here
	if left > 0 {
		s.flush()
	}
	if left > 0 && !s.o.Trusted {
		_ = s.conn.SetReadDeadline(time.Now().Add(RequestTime))
		defer func() { _ = s.conn.SetReadDeadline(time.Time{}) }()
	}
	for left > 0 { // and nothing is left in the buffer
		k, err := s.conn.Read(s.in[:min(left, len(s.in))])
		left -= k
		if k == 0 && err != nil {
			return false
		}
	}
	return true
}

// check gives what is wrong with a request, or 0.
func (s *Session) check(req *request) Errno {
	allowed := uint16(0)
	switch req.cmd {
	case cmdRead:
		if s.o.Structured {
			allowed = cmdFlagDF
		}
	case cmdBlockStatus:
		if !s.o.Allocation || req.length == 0 {
			return EINVAL
		}
		allowed = cmdFlagReqOne
	case cmdFlush:
	case cmdWrite, cmdTrim, cmdWriteZeroes:
		return EPERM
	default:
		return EINVAL
	}
	switch {
	case req.flags&^allowed != 0:
		return EINVAL
	case req.cmd == cmdFlush:
		return 0
	case req.offset > s.size || uint64(req.length) > s.size-req.offset:
		return EINVAL
	case req.cmd == cmdRead && req.length > MaxRequest:
		return EINVAL
	case req.flags&cmdFlagDF != 0 && req.cmd == cmdRead && req.length > MaxPiece:
		return EOVERFLOW
	}
	return 0
}

// answer replies to a request that has no data to wait for.
func (s *Session) answer(req *request) {
	errno := s.check(req)
	switch {
	case errno != 0:
		s.replyError(req, errno, "", -1)
	case req.cmd == cmdBlockStatus:
		s.out.Lock()
		defer s.out.Unlock()
		s.send(appendBlockStatus(s.small[:0], req.handle, req.length))
	default:
		s.replyEmpty(req)
	}
}

// replyEmpty says that all went well, and nothing else.
func (s *Session) replyEmpty(req *request) {
	s.out.Lock()
	defer s.out.Unlock()
	if s.o.Structured {
		putChunk(s.small[:], req.handle, chunkDone, chunkNone, 0)
		s.send(s.small[:chunkSize])
		return
	}
	putSimple(s.small[:], req.handle, 0)
	s.send(s.small[:simpleSize])
}

// replyError ends a reply with an error; offset says where, unless negative.
func (s *Session) replyError(req *request, errno Errno, message string, offset int64) {
	s.out.Lock()
	defer s.out.Unlock()
	if s.o.Structured {
		s.send(appendError(s.small[:0], req.handle, errno, message, offset))
		return
	}
	putSimple(s.small[:], req.handle, errno)
	s.send(s.small[:simpleSize])
}

// send is called with out held. A reply that is cut short cannot be mended, so
// that nothing may follow it.
func (s *Session) send(b []byte) {
	if !s.o.Trusted {
		_ = s.conn.SetWriteDeadline(time.Now().Add(ReplyTime))
	}
	_, err := s.conn.Write(b)
	if err != nil {
		s.fail()
	} else if !s.o.Trusted {
		_ = s.conn.SetWriteDeadline(time.Time{})
	}
}

// serveOne serves a read that is in order, and reports whether the caller leads
// afterwards.
func (s *Session) serveOne(req *request) bool {
	if req.length >= turns.Large || s.turns.Slow() && s.w > s.r {
		s.flush()
		s.turns.HandOver()
		if s.o.Structured {
			s.readStructured(req)
		} else {
			s.readSimple(req)
		}
		return s.turns.Reclaim()
	}
	more := s.w-s.r >= requestSize
	token := s.turns.Begin()
	s.serveHeld(req, more)
	if s.turns.Kept(token) {
		return true
	}
	s.flushed()
	return s.turns.Reclaim()
}

// readSimple has all of the data before it says that all went well.
func (s *Session) readSimple(req *request) {
	buf, err := s.pool.Get(int(req.length))
	if err != nil {
		s.replyError(req, ENOMEM, "", -1)
		return
	}
	defer s.pool.Put(buf)
	frame := buf.Frame(simpleSize, int(req.length))
	data := frame[simpleSize:]
	for done := 0; done < len(data); done += MaxPiece {
		if done > 0 && s.hasFailed() {
			return // nobody is there to take it
		}
		piece := data[done:min(len(data), done+MaxPiece)]
		if err := s.read(piece, req.offset+uint64(done)); err != nil {
			s.replyError(req, EIO, "", -1)
			return
		}
	}
	putSimple(frame, req.handle, 0)
	s.out.Lock()
	defer s.out.Unlock()
	s.send(frame)
}

// readStructured answers piece by piece.
func (s *Session) readStructured(req *request) {
	buf, err := s.pool.Get(int(min(req.length, MaxPiece)))
	if err != nil {
		s.replyError(req, ENOMEM, "no memory for the reply", -1)
		return
	}
	defer s.pool.Put(buf)
	for done := uint32(0); done < req.length; done += MaxPiece {
		n := min(req.length-done, MaxPiece)
		if !s.sendPiece(req, buf, req.offset+uint64(done), int(n), done+n == req.length) {
			return
		}
	}
}

// sendPiece reads n bytes at offset and sends them as a chunk. False means that
// they, or the end of them, could not be read, and that the reply has ended.
func (s *Session) sendPiece(req *request, buf Buffer, offset uint64, n int, last bool) bool {
	frame := buf.Frame(dataHeaderSize, n)
	good, err := n, s.read(frame[dataHeaderSize:], offset)
	if err != nil {
		good, err = s.readBlocks(frame[dataHeaderSize:], offset)
	}
	if good > 0 {
		flags := uint16(0)
		if err == nil && last {
			flags = chunkDone
		}
		putDataHeader(frame, req.handle, flags, offset, good)
		s.out.Lock()
		s.send(frame[:dataHeaderSize+good])
		s.out.Unlock()
	}
	if err != nil {
		s.replyError(req, EIO, messageOf(err), int64(offset)+int64(good))
	}
	return err == nil
}

// read reads all of p.
func (s *Session) read(p []byte, offset uint64) error {
	n, err := s.ask(p, int64(offset))
	if n == len(p) && (err == nil || errors.Is(err, io.EOF)) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ask asks the backend.
func (s *Session) ask(p []byte, offset int64) (int, error) {
	if len(p) >= turns.Large {
		return s.backend.ReadAt(p, offset)
	}
	began := s.turns.Start()
	defer s.turns.Note(began)
	return s.backend.ReadAt(p, offset)
}

// readBlocks finds out how far what could not be read as a whole can be read.
func (s *Session) readBlocks(p []byte, offset uint64) (good int, err error) {
	for good < len(p) {
		n := preferredBlock - int((offset+uint64(good))%preferredBlock)
		n = min(n, len(p)-good)
		if err := s.read(p[good:good+n], offset+uint64(good)); err != nil {
			return good, err
		}
		good += n
	}
	return good, nil
}

// messageOf is the text of err, cut to what may be sent.
func messageOf(err error) string {
	text := strings.ToValidUTF8(err.Error(), "?")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "")
	}
	return text
}
