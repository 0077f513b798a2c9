package snapd

import (
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"cowbird/ota/control"
	"cowbird/ota/gate"
)

// client is one control connection. Its goroutine is parked while the client
// says nothing.
type client struct {
	conn   *os.File
	reason error // why the last request failed
}

// welcome takes over the connection fd.
func (s *Server) welcome(fd int) {
	s.quiet.touch()
	conn := os.NewFile(uintptr(fd), "control connection")
	if _, err := gate.Admit(fd, s.cfg.Group); err != nil {
		s.log.Warn("client turned away", "err", err)
		_ = conn.Close()
		return
	}
	c := &client{conn: conn}
	s.enlist(c)
	s.talks.Add(1)
	go s.talk(c)
}

// enlist makes room by hanging up on the client that has been silent for
// longest, so that clients who say nothing cannot keep others out.
func (s *Server) enlist(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.clients) >= s.cfg.Clients {
		s.log.Warn("too many clients: hanging up on the one that is silent for longest", "clients", len(s.clients))
		_ = s.clients[0].conn.Close()
		s.clients = slices.Delete(s.clients, 0, 1)
	}
	s.clients = append(s.clients, c)
}

// spoke moves the client to the end of the line.
func (s *Server) spoke(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.clients, c); i >= 0 {
		s.clients = append(slices.Delete(s.clients, i, i+1), c)
	}
}

func (s *Server) hangUp(c *client) {
	_ = c.conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.clients, c); i >= 0 {
		s.clients = slices.Delete(s.clients, i, i+1)
	}
}

func (s *Server) talk(c *client) {
	defer s.talks.Done()
	defer s.hangUp(c)
	message := make([]byte, control.MaxMessage+1) // one more, to see that it is too long
	for {
		n, err := c.conn.Read(message)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
				s.log.Debug("client lost", "err", err)
			}
			return
		}
		s.spoke(c)
		s.quiet.begin()
		goOn := s.answer(c, message[:n])
		s.quiet.end()
		if !goOn {
			return
		}
	}
}

// farewell is how long a reply may take that is under way when the daemon leaves.
const farewell = time.Second

// dismiss ends the connection once the request that is under way, if any, has
// been answered.
func (c *client) dismiss() {
	_ = c.conn.SetWriteDeadline(time.Now().Add(farewell))
	_ = c.conn.SetReadDeadline(time.Unix(1, 0))
}

// answer handles one message. It returns false when the connection must end.
func (s *Server) answer(c *client, message []byte) bool {
	r, err := control.Parse(message)
	if err != nil {
		s.log.Warn("message not understood", "err", err)
		if r.Command == control.GetStatus {
			return c.send(control.StateFailed)
		}
		c.send(control.Fail)
		return false
	}
	s.log.Debug("request", "command", r.Command, "args", r.Args)
	if r.Command == control.Reason {
		return c.send(framed(reasonText(c.reason)))
	}
	reply, err := s.execute(r)
	c.reason = err
	if err != nil {
		s.log.Error("request failed", "command", r.Command, "err", err)
		return c.send(control.Fail)
	}
	return reply == "" || c.send(reply)
}

func reasonText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// send reports whether the client is still there.
func (c *client) send(reply string) bool {
	_, err := c.conn.WriteString(reply)
	return err == nil
}
