package nbd

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"
	"time"
)

// script is a client that has said all that it will say, and keeps what it is
// told.
type script struct {
	in *bytes.Reader

	mu  sync.Mutex
	out []byte
}

func (s *script) Read(p []byte) (int, error) { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out = append(s.out, p...)
	return len(p), nil
}
func (s *script) Close() error                     { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

func says(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func withData(o option, data []byte) []byte { return append(optionHead(o, uint32(len(data))), data...) }

// FuzzNegotiate: whatever a client says, it is told nothing but replies, to
// options that it has sent.
func FuzzNegotiate(f *testing.F) {
	flags := []byte{0, 0, 0, 3}
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0})
	f.Add(says(flags, withData(optExportName, []byte("a"))))
	f.Add(says(flags, withData(optList, nil), withData(optAbort, nil)))
	f.Add(says(flags, withData(optStructuredReply, nil), withData(optSetMetaContext, queries("a", contextName)), withData(optGo, infoData("a", 1, 2, 3))))
	f.Add(says(flags, withData(optInfo, infoData("b", 3)), withData(optListMetaContext, queries("b", "base:"))))
	f.Add(says(flags, withData(99, make([]byte, MaxOption+1)), withData(optStartTLS, nil)))
	f.Add(says(flags, optionHead(optList, 1<<31)))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := &script{in: bytes.NewReader(in)}
		x := &table{list: []Export{small("a"), small("b")}}
		a, err := Negotiate(c, x)
		want := int64(0)
		if err == nil {
			want = 1
		}
		if open := x.open.Load(); open != want {
			t.Errorf("expected %d exports open, found %d", want, open)
		}
		if err == nil && a.Allocation && !a.Structured {
			t.Error("a metadata context without structured replies")
		}
		checkReplies(t, c.out[helloSize:], in)
	})
}

func checkReplies(t *testing.T, out, in []byte) {
	for len(out) > 0 && out[0] == 0 && len(out) >= optionReplySize && binary.BigEndian.Uint64(out) == magicReply {
		o, length := out[8:12], binary.BigEndian.Uint32(out[16:])
		if !bytes.Contains(in, says([]byte("IHAVEOPT"), o)) {
			t.Fatalf("a reply to option %x, which was not sent", o)
		}
		if uint64(length) > uint64(len(out)-optionReplySize) {
			t.Fatalf("a reply of %d bytes is cut short at %d", length, len(out)-optionReplySize)
		}
		out = out[optionReplySize+int(length):]
	}
	// What EXPORT_NAME is answered with has no header.
	if n := len(out); n != 0 && n != 10 && n != 10+exportNameZeroes {
		t.Errorf("%d bytes that are no reply: %x", n, out)
	}
}

// FuzzSession: whatever a client asks, it gets whole replies to requests that it
// has sent, with the right data.
func FuzzSession(f *testing.F) {
	read := rawRequest(request{cmd: cmdRead, handle: 7, offset: 100, length: 5000})
	f.Add(true, []byte{})
	f.Add(false, read[:27])
	for _, structured := range []bool{false, true} {
		f.Add(structured, says(read, rawRequest(request{cmd: cmdDisc})))
		f.Add(structured, says(rawRequest(request{cmd: cmdWrite, handle: 8, length: 30}), make([]byte, 30), read))
		f.Add(structured, says(rawRequest(request{cmd: cmdBlockStatus, handle: 9, length: 4096}), rawRequest(request{cmd: cmdFlush})))
		f.Add(structured, rawRequest(request{cmd: cmdRead, offset: 7 * 4096, length: 20000}))
		f.Add(structured, rawRequest(request{cmd: cmdRead, flags: cmdFlagDF, length: 1<<32 - 1}))
	}
	d := &disk{content: noise[:100000], bad: map[int64]bool{9: true}}
	f.Fuzz(func(t *testing.T, structured bool, in []byte) {
		c := &script{in: bytes.NewReader(in)}
		pool := &heap{}
		ended := make(chan struct{})
		Start(c, d, pool, Options{Structured: structured, Allocation: structured, Workers: 3, Ended: func() { close(ended) }})
		<-ended
		if lent := pool.lent.Load(); lent != 0 {
			t.Errorf("%d buffers are lost", lent)
		}
		if structured {
			checkChunks(t, c.out, in, d.content)
		} else {
			checkSimple(t, c.out, in, d.content)
		}
	})
}

// sent lists what was asked under a handle, wherever the bytes lie.
func sent(in []byte, handle uint64) (all []request) {
	for i := 0; i+requestSize <= len(in); i++ {
		if r, ok := parseRequest(in[i:]); ok && r.handle == handle {
			all = append(all, r)
		}
	}
	return all
}

func checkSimple(t *testing.T, out, in, content []byte) {
	for len(out) > 0 {
		if len(out) < simpleSize || binary.BigEndian.Uint32(out) != magicSimple {
			t.Fatalf("expected a reply, found %x", out[:min(len(out), simpleSize)])
		}
		errno, handle := binary.BigEndian.Uint32(out[4:]), binary.BigEndian.Uint64(out[8:])
		out = out[simpleSize:]
		n, ok := dataOf(sent(in, handle), errno, out, content)
		if !ok {
			t.Fatalf("handle %x, error %d: a reply to nothing that was sent, or with other data", handle, errno)
		}
		out = out[n:]
	}
}

// dataOf finds the request that a simple reply may be to, and how much data that
// has.
func dataOf(asked []request, errno uint32, out, content []byte) (n int, ok bool) {
	for _, r := range asked {
		end := r.offset + uint64(r.length)
		switch {
		case errno != 0:
			return 0, true
		case r.cmd == cmdFlush:
			ok = true
		case r.cmd == cmdRead && end <= uint64(len(content)) && bytes.HasPrefix(out, content[r.offset:end]):
			n, ok = max(n, int(r.length)), true
		}
	}
	return n, ok
}

func checkChunks(t *testing.T, out, in, content []byte) {
	for len(out) > 0 {
		if len(out) < chunkSize || binary.BigEndian.Uint32(out) != magicStructured {
			t.Fatalf("expected a chunk, found %x", out[:min(len(out), chunkSize)])
		}
		kind, handle, length := binary.BigEndian.Uint16(out[6:]), binary.BigEndian.Uint64(out[8:]), int(binary.BigEndian.Uint32(out[16:]))
		if len(sent(in, handle)) == 0 || length > len(out)-chunkSize {
			t.Fatalf("handle %x: a chunk to nothing that was sent, or cut short", handle)
		}
		payload := out[chunkSize : chunkSize+length]
		if kind == chunkData {
			at := binary.BigEndian.Uint64(payload)
			if at > uint64(len(content)) || !bytes.HasPrefix(content[at:], payload[8:]) {
				t.Fatalf("%d bytes at %d differ", length-8, at)
			}
		}
		out = out[chunkSize+length:]
	}
}
