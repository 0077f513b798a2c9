package userstream

import (
	"bytes"
	"io"
	"testing"
)

// script is a channel that plays bytes, in pieces, and keeps what it is told.
type script struct {
	in  *bytes.Reader
	cut int
	out []byte
}

func (s *script) Read(b []byte) (int, error)  { return s.in.Read(b[:min(len(b), s.cut)]) }
func (s *script) Write(b []byte) (int, error) { s.out = append(s.out, b...); return len(b), nil }
func (s *script) Waiting() bool               { return s.in.Len() > 0 }
func (s *script) Close() error                { return nil }

// question is a request as bytes.
func question(h header, payload int) []byte {
	b := make([]byte, HeaderSize+payload)
	h.put(b)
	return b
}

// FuzzStream plays any bytes to a session. Each complete request must have one
// answer, which must be of the form that the request calls for.
func FuzzStream(f *testing.F) {
	read := question(header{seq: 1, typ: opRead, sector: 2, length: 4096}, 0)
	write := question(header{seq: 2, typ: opWrite, sector: 2, length: 700}, 700)
	f.Add([]byte{}, uint8(1))
	f.Add(read, uint8(40))
	f.Add(bytes.Join([][]byte{read, write, read}, nil), uint8(7))
	f.Add(append(write, question(header{seq: 3, typ: opFlush}, 0)...), uint8(1))
	f.Add(append(read, write[:100]...), uint8(255))
	for typ := range uint64(opZoneResetAll + 2) {
		f.Add(append(question(header{seq: 9, typ: typ, flags: 0x408}, 0), read...), uint8(3+typ))
	}
	f.Add(question(header{typ: opRead, sector: 1 << 63, length: 1<<64 - 512}, 0), uint8(9))
	f.Add(question(header{typ: opRead, sector: 1 << 60}, 0), uint8(9)) // of nothing, out of reach
	f.Add(question(header{typ: opWrite, length: 1<<64 - 1}, 100), uint8(9))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		s := &script{in: bytes.NewReader(b), cut: 1 + int(cut)}
		ended := make(chan error, 1)
		p := &pool{}
		// One at a time, so that the answers are in order.
		Start(s, backend(nil), p, Options{Workers: 1, Ended: func(err error) { ended <- err }})
		<-ended
		if p.lent.Load() != 0 {
			t.Error("expected all buffers back")
		}
		check(t, b, s.out)
	})
}

// check compares what was said with what was asked.
func check(t *testing.T, in, out []byte) {
	for len(in) >= HeaderSize {
		h := parseHeader(in)
		in = in[HeaderSize:]
		if h.hasPayload() {
			if h.length > uint64(len(in)) {
				break
			}
			in = in[h.length:]
		}
		if len(out) < HeaderSize {
			t.Fatalf("%+v: expected an answer, found %d bytes", h, len(out))
		}
		answer := parseHeader(out)
		out = out[HeaderSize:]
		if answer.seq != h.seq || answer.typ > resultUnsupported {
			t.Fatalf("%+v: expected an answer to it, found %+v", h, answer)
		}
		good := h.typ == opRead && h.sector <= testSize/sector && h.length <= testSize-sector*h.sector
		if (answer.typ == resultSuccess) != (good || h.typ == opFlush || h.typ == opWrite && h.length == 0) {
			t.Fatalf("%+v: found result %d", h, answer.typ)
		}
		if good && h.length > 0 {
			if uint64(len(out)) < h.length || !bytes.Equal(out[:h.length], noise[sector*h.sector:][:h.length]) {
				t.Fatalf("%+v: expected its data, found others", h)
			}
			out = out[h.length:]
		}
	}
	if len(out) > 0 {
		t.Errorf("expected %d requests answered, found %d bytes more", len(in), len(out))
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(question(header{1, 2, 3, 4, 5}, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		var again [HeaderSize]byte
		parseHeader(b).put(again[:])
		if !bytes.Equal(again[:], b[:HeaderSize]) {
			t.Errorf("expected %x, found %x", b[:HeaderSize], again)
		}
	})
}

var _ io.ReadWriter = (*script)(nil)
