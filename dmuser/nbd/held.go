package nbd

// held is what the leader has answered and not sent yet: replies to requests that
// came together, one behind the other in one buffer. They are sent when the
// leader is about to wait for the client or to give up the lead, when there are
// enough of them, and when the lead is taken from the leader, which is then still
// busy with the next one:
//
//	area  │ reply │ reply │ what is being read │
//	      0             ready
type held struct {
	buf   Buffer
	batch uint64 // its number
	area  []byte // of buf; the data of the first reply is at the boundary
	ready int    // bytes of whole replies
	busy  bool   // the leader reads into what follows them, and owns buf
}

// noBatch is the number of what was never held.
const noBatch = ^uint64(0)

func (s *Session) headerSize() int {
	if s.o.Structured {
		return dataHeaderSize
	}
	return simpleSize
}

// serveHeld answers a request in place of the leader; more says that there is
// another one to be served right afterwards.
func (s *Session) serveHeld(req *request, more bool) {
	h, err := s.hold(int(req.length), more)
	if err != nil {
		s.replyError(req, ENOMEM, "no memory for the reply", -1)
		return
	}
	reply, good, err := s.compose(h, req)
	s.keep(h, reply, more && err == nil)
	if err != nil {
		s.replyError(req, EIO, messageOf(err), int64(req.offset)+int64(good))
	}
}

// compose puts a reply behind those of h. With an error it has as much data as
// may be sent before that.
func (s *Session) compose(h held, req *request) (reply []byte, good int, err error) {
	// The data is read to a good boundary, and moved up to the reply before.
	header, n := s.headerSize(), int(req.length)
	at := header + (h.ready+preferredBlock-1)/preferredBlock*preferredBlock
	data := h.area[at : at+n]
	if err = s.read(data, req.offset); err == nil {
		good = n
	} else if s.o.Structured {
		good, err = s.readBlocks(data, req.offset)
	}
	if good == 0 {
		return nil, 0, err
	}
	reply = h.area[h.ready:]
	switch {
	case !s.o.Structured:
		putSimple(reply, req.handle, 0)
	case err == nil:
		putDataHeader(reply, req.handle, chunkDone, req.offset, good)
	default:
		putDataHeader(reply, req.handle, 0, req.offset, good)
	}
	return reply[:header+copy(reply[header:], data[:good])], good, err
}

// hold makes room for a reply with n bytes of data behind those that are held.
func (s *Session) hold(n int, more bool) (held, error) {
	s.holding.Lock()
	// One that is busy is that of somebody who leads no more, and who may be the
	// next to begin one, too.
	for s.held.busy || s.held.ready > 0 && n > holdReply {
		s.flushLocked()
		s.holding.Lock()
	}
	if s.held.buf == nil {
		s.holding.Unlock()
		h, err := s.newBatch(n, more)
		if err != nil {
			return held{}, err
		}
		s.holding.Lock()
		if s.held.buf != nil { // the lead was taken meanwhile
			s.holding.Unlock()
			return h, nil
		}
		h.batch = s.held.batch
		s.held = h
	}
	s.held.busy = true
	h := s.held
	s.holding.Unlock()
	return h, nil
}

// newBatch may wait for a buffer. It has no number that would be anybody's.
func (s *Session) newBatch(n int, more bool) (held, error) {
	room := n
	if more {
		room = max(n, holdBytes+holdReply)
	}
	buf, err := s.pool.Get(room)
	if err != nil {
		return held{}, err
	}
	return held{buf: buf, area: buf.Frame(s.headerSize(), room), batch: noBatch}, nil
}

// keep ends what hold began: reply is held, unless it is to go at once.
func (s *Session) keep(h held, reply []byte, more bool) {
	s.holding.Lock()
	if s.held.batch != h.batch { // those before it have been sent
		s.holding.Unlock()
		s.out.Lock()
		defer s.out.Unlock()
		if len(reply) > 0 {
			s.send(reply)
		}
		s.pool.Put(h.buf)
		return
	}
	s.held.busy = false
	s.held.ready += len(reply)
	if more && s.held.ready < holdBytes {
		s.holding.Unlock()
		return
	}
	s.flushLocked()
}

// flush sends what is held. Anybody may call it at any time.
func (s *Session) flush() {
	s.holding.Lock()
	s.flushLocked()
}

// flushLocked is called with holding locked, and unlocks it.
func (s *Session) flushLocked() {
	h := s.held
	if h.buf == nil {
		s.holding.Unlock()
		return
	}
	s.held = held{batch: h.batch + 1}
	// Who finds that its batch has gone gets the buffer after this.
	s.out.Lock()
	defer s.out.Unlock()
	s.holding.Unlock()
	if h.ready > 0 {
		s.send(h.area[:h.ready])
	}
	if !h.busy {
		s.pool.Put(h.buf)
	}
}

// flushed returns when nothing is held, and what was is sent.
func (s *Session) flushed() {
	s.flush()
	s.out.Lock() // somebody else may be about to send it
	defer s.out.Unlock()
}
