package userstream

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"cowbird/dmuser/internal/turns"
)

const (
	// MaxRequest is the longest read, in bytes, that is served.
	MaxRequest = 32 << 20
	// MaxPiece is the most bytes that are read in one call of the backend.
	MaxPiece = 1 << 20
	// scratchSize is the room for payloads that are passed over.
	scratchSize = 4096
)

// Backend is what a session serves. ReadAt must be safe for concurrent use.
type Backend interface {
	io.ReaderAt
	// Size is in bytes.
	Size() int64
}

// Channel is what requests are read from and responses written to. One goroutine
// at a time reads, and one writes.
type Channel interface {
	// Read waits for at least one byte. It gives io.EOF when the target has
	// gone.
	io.Reader
	io.Writer
	// Waiting tells whether there is something to read; true when in doubt.
	Waiting() bool
	// Close is called once, when nobody reads or writes any more.
	io.Closer
}

// Buffer is the memory of a response.
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

// ErrTruncated: the stream ended within a message.
var ErrTruncated = errors.New("stream ends within a request")

// Options says how to serve a session.
type Options struct {
	// Workers bounds how many requests are served at a time; 0 means two a
	// processor, within reason.
	Workers int
	// Ended, unless nil, is called once: the channel is closed, and the last
	// call of the backend has returned. Its argument is nil when the target
	// has gone, as it does when a device is removed or its table replaced.
	Ended func(error)
}

// Session serves one channel. Its methods are safe for concurrent use.
type Session struct {
	channel Channel
	backend Backend
	size    uint64
	pool    Pool
	ended   func(error)
	turns   *turns.Turns

	// The leader's own.
	in      [HeaderSize]byte
	scratch []byte // nil until somebody writes

	out   sync.Mutex       // held for the length of a response
	small [HeaderSize]byte // a response without data; guarded by out

	mu      sync.Mutex
	slots   []slot // what is being served
	failing bool   // nothing is served any more
	err     error  // the first that a response met
}

// slot is a request that somebody serves. Who answers it takes it out first, so
// that it is answered once.
type slot struct {
	state slotState
	seq   uint64
}

type slotState uint8

const (
	vacant  slotState = iota
	pending           // somebody serves it
	failed            // somebody does, but it has been answered
)

// request is a read that is in order.
type request struct {
	seq    uint64
	offset int64
	length int
	slot   int
}

// Start serves b on c, which it closes in the end.
func Start(c Channel, b Backend, p Pool, o Options) *Session {
	if o.Workers == 0 {
		o.Workers = turns.DefaultLimit()
	}
	s := &Session{
		channel: c, backend: b, size: uint64(b.Size()), pool: p, ended: o.Ended,
		slots: make([]slot, o.Workers),
	}
	s.turns = turns.New(o.Workers, s.lead, s.finish)
	go s.lead()
	return s
}

// lead reads requests and serves them until somebody else leads or the stream
// ends.
func (s *Session) lead() {
	for {
		r, err := s.next()
		if err != nil {
			s.turns.Finish(func() { s.note(err) })
			return
		}
		if !s.serveOne(&r) {
			return
		}
	}
}

// finish follows the last response.
func (s *Session) finish() {
	_ = s.channel.Close()
	if s.ended != nil {
		go s.ended(s.outcome()) // not under the lock of turns
	}
}

// note keeps the first error. The end of the stream is none.
func (s *Session) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && err != io.EOF {
		s.err = err
	}
}

func (s *Session) outcome() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// next waits for a read that is to be served, and answers what comes before it.
// It gives io.EOF when the target has gone.
func (s *Session) next() (request, error) {
	for {
		h, err := s.readHeader()
		if err != nil {
			return request{}, err
		}
		if r, ok := s.accept(h); ok {
			return r, nil
		}
		if err := s.dismiss(h); err != nil {
			return request{}, err
		}
	}
}

// readHeader takes the end of the stream for what it is only between messages.
func (s *Session) readHeader() (header, error) {
	n, err := io.ReadFull(s.channel, s.in[:])
	switch {
	case err == nil:
		return parseHeader(s.in[:]), nil
	case n == 0:
		return header{}, err
	}
	return header{}, fmt.Errorf("%w: expected %d bytes, found %d: %w", ErrTruncated, HeaderSize, n, err)
}

// accept takes a read that can be served.
func (s *Session) accept(h header) (r request, ok bool) {
	if h.typ != opRead || h.length == 0 || h.length > MaxRequest || !h.fits(s.size) {
		return request{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.slots {
		if s.slots[i].state == vacant && !s.failing && s.err == nil {
			s.slots[i] = slot{pending, h.seq}
			return request{h.seq, int64(h.sector * sector), int(h.length), i}, true
		}
	}
	return request{}, false
}

// dismiss answers what is not served. It fails when no answer gets through any
// more.
func (s *Session) dismiss(h header) error {
	if h.hasPayload() {
		if err := s.skip(h.length); err != nil {
			return err
		}
	}
	s.answer(h.seq, s.resultOf(h))
	return s.outcome()
}

func (s *Session) resultOf(h header) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failing:
		return resultError
	case h.isFlush(), h.typ == opRead && h.length == 0 && h.fits(s.size):
		return resultSuccess
	case h.typ == opRead:
		return resultError
	}
	return resultUnsupported
}

// skip passes over a payload.
func (s *Session) skip(length uint64) error {
	if s.scratch == nil {
		s.scratch = make([]byte, scratchSize)
	}
	for left := length; left > 0; {
		n, err := s.channel.Read(s.scratch[:min(left, scratchSize)])
		left -= uint64(n)
		if n == 0 && err != nil {
			return fmt.Errorf("%w: expected %d bytes of payload, found %d: %w", ErrTruncated, length, length-left, err)
		}
	}
	return nil
}

// serveOne reports whether the caller leads afterwards.
func (s *Session) serveOne(r *request) bool {
	if r.length >= turns.Large || s.turns.Slow() && s.channel.Waiting() {
		s.turns.HandOver()
		s.serveTimed(r)
		return s.turns.Reclaim()
	}
	token := s.turns.Begin()
	s.serveTimed(r)
	return s.turns.End(token)
}

func (s *Session) serveTimed(r *request) {
	start := s.turns.Start()
	s.serve(r)
	if r.length < turns.Large {
		s.turns.Note(start)
	}
}

// serve has all of the data before it says that all went well.
func (s *Session) serve(r *request) {
	buf, err := s.pool.Get(r.length)
	if err != nil {
		s.reject(r)
		return
	}
	defer s.pool.Put(buf)
	frame := buf.Frame(HeaderSize, r.length)
	data := frame[HeaderSize:]
	for done := 0; done < len(data); done += MaxPiece {
		piece := data[done:min(len(data), done+MaxPiece)]
		if s.hasFailed(r) || !s.read(piece, r.offset+int64(done)) {
			s.reject(r)
			return
		}
	}
	if s.release(r) {
		header{seq: r.seq, typ: resultSuccess, sector: uint64(r.offset) / sector, length: uint64(r.length)}.put(frame)
		s.send(frame)
	}
}

// read reads all of p.
func (s *Session) read(p []byte, off int64) bool {
	n, err := s.backend.ReadAt(p, off)
	return n == len(p) && (err == nil || errors.Is(err, io.EOF))
}

func (s *Session) hasFailed(r *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.slots[r.slot].state == failed
}

// release takes a request out of its slot, and reports whether it is still to
// be answered.
func (s *Session) release(r *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.slots[r.slot].state
	s.slots[r.slot].state = vacant
	return was == pending
}

func (s *Session) reject(r *request) {
	if s.release(r) {
		s.answer(r.seq, resultError)
	}
}

// answer sends a response without a payload.
func (s *Session) answer(seq, result uint64) {
	s.out.Lock()
	defer s.out.Unlock()
	header{seq: seq, typ: result}.put(s.small[:])
	s.sendLocked(s.small[:])
}

func (s *Session) send(b []byte) {
	s.out.Lock()
	defer s.out.Unlock()
	s.sendLocked(b)
}

// sendLocked sends a response whole. After one that was cut short nothing can be
// said any more, unless there is nobody left to say it to.
func (s *Session) sendLocked(b []byte) {
	for len(b) > 0 {
		n, err := s.channel.Write(b)
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			s.note(err)
			return
		}
		b = b[n:]
	}
}

// Fail answers everything that is under way with an error, and so all that is
// asked from now on. It does not wait for the backend.
func (s *Session) Fail() {
	for _, seq := range s.failAll() {
		s.answer(seq, resultError)
	}
	s.turns.Widen(1) // all of those who serve may be held by the backend
}

func (s *Session) failAll() (seqs []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing = true
	for i := range s.slots {
		if s.slots[i].state == pending {
			s.slots[i].state = failed
			seqs = append(seqs, s.slots[i].seq)
		}
	}
	return seqs
}
