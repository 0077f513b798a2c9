package nbd

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cowbird/dmuser/internal/turns"
)

// eachKind runs a test with simple replies and with structured ones.
func eachKind(t *testing.T, test func(t *testing.T, structured bool)) {
	t.Run("Simple", func(t *testing.T) { test(t, false) })
	t.Run("Structured", func(t *testing.T) { test(t, true) })
}

func TestReads(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		c := connect(t, &disk{content: noise}, structured, Options{})
		for _, r := range [][2]int{
			{0, 1}, {1, 1}, {511, 2}, {4095, 4097}, {0, 128 << 10}, {3, 128<<10 - 1}, {1, MaxPiece}, {0, MaxPiece + 1},
			{0, len(noise)}, {77, len(noise) - 77}, {len(noise) - 1, 1}, {len(noise), 0}, {0, 0},
		} {
			if got := c.read(structured, r[0], r[1]); !bytes.Equal(got, noise[r[0]:r[0]+r[1]]) {
				t.Errorf("%d bytes at %d differ", r[1], r[0])
			}
		}
		for range 200 {
			off := rand.IntN(len(noise))
			n := rand.IntN(min(len(noise)-off, 50000) + 1)
			if got := c.read(structured, off, n); !bytes.Equal(got, noise[off:off+n]) {
				t.Errorf("%d bytes at %d differ", n, off)
			}
		}
		c.bye()
	})
}

func TestRefusedRequests(t *testing.T) {
	const size = 10000
	eachKind(t, func(t *testing.T, structured bool) {
		d := &disk{content: noise[:size]}
		c := connect(t, d, structured, Options{})
		unknownContext := Errno(EINVAL)
		if structured {
			unknownContext = 0
		}
		for i, r := range []struct {
			request
			want Errno
		}{
			{request{cmd: cmdRead, offset: size, length: 1}, EINVAL},
			{request{cmd: cmdRead, offset: size - 1, length: 2}, EINVAL},
			{request{cmd: cmdRead, offset: 1<<64 - 1, length: 2}, EINVAL},
			{request{cmd: cmdRead, offset: 1 << 63, length: 1<<32 - 1}, EINVAL},
			{request{cmd: cmdRead, offset: size + 1}, EINVAL},
			{request{cmd: cmdRead, length: 10, flags: 1}, EINVAL},
			{request{cmd: cmdRead, length: 10, flags: 1 << 15}, EINVAL},
			{request{cmd: cmdTrim, length: 4096}, EPERM},
			{request{cmd: cmdWriteZeroes, length: 1<<32 - 1}, EPERM},
			{request{cmd: cmdFlush}, 0},
			{request{cmd: cmdFlush, flags: 1}, EINVAL},
			{request{cmd: 5, length: 4096}, EINVAL}, // CACHE, which is not on offer
			{request{cmd: 8, length: 4096}, EINVAL},
			{request{cmd: 1<<16 - 1}, EINVAL},
			{request{cmd: cmdBlockStatus, length: 4096}, unknownContext},
			{request{cmd: cmdBlockStatus, length: 4096, flags: cmdFlagReqOne}, unknownContext},
			{request{cmd: cmdBlockStatus, length: 4096, flags: 1}, EINVAL},
			{request{cmd: cmdBlockStatus, offset: size, length: 1}, EINVAL},
			{request{cmd: cmdBlockStatus}, EINVAL},
		} {
			r.handle = uint64(i)
			c.ask(r.request)
			if r.cmd == cmdBlockStatus && r.want == 0 {
				k := c.chunk()
				want := appendBlockStatus(nil, r.handle, r.length)[chunkSize:]
				if k.kind != chunkBlockStatus || k.flags != chunkDone || k.handle != r.handle || !bytes.Equal(k.payload, want) {
					t.Errorf("expected one extent, found %+v", k)
				}
				continue
			}
			if got := c.status(structured, r.request); got != r.want {
				t.Errorf("%+v: expected error %d, found %d", r.request, r.want, got)
			}
		}
		if n := d.reads.Load(); n != 0 {
			t.Errorf("expected the backend untouched, found %d reads", n)
		}
		c.read(structured, 0, size)
		c.bye()
	})
}

// sparse is as large as a backend can be; it reads as zeros.
type sparse struct{}

func (sparse) Size() int64                             { return 1 << 40 }
func (sparse) ReadAt(p []byte, off int64) (int, error) { clear(p); return len(p), nil }

func TestTooLarge(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		c := connect(t, sparse{}, structured, Options{})
		r := request{cmd: cmdRead, handle: 1, length: MaxRequest + 1}
		c.ask(r)
		if got := c.status(structured, r); got != EINVAL {
			t.Errorf("expected EINVAL, found %d", got)
		}
		if got := c.read(structured, 4096, MaxRequest); len(got) != MaxRequest {
			t.Errorf("expected %d bytes, found %d", MaxRequest, len(got))
		}
		if !structured {
			c.bye()
			return
		}
		r = request{cmd: cmdRead, handle: 2, length: MaxPiece + 1, flags: cmdFlagDF}
		c.ask(r)
		if got := c.structured(r); got.errno != EOVERFLOW || got.chunks != 0 {
			t.Errorf("expected EOVERFLOW and no data, found %d, %d chunks", got.errno, got.chunks)
		}
		r = request{cmd: cmdRead, handle: 3, length: MaxPiece, flags: cmdFlagDF}
		c.ask(r)
		if got := c.structured(r); got.errno != 0 || got.chunks != 1 || len(got.data) != MaxPiece {
			t.Errorf("expected one chunk, found %d and error %d", got.chunks, got.errno)
		}
		c.bye()
	})
}

func TestWrites(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		c := connect(t, &disk{content: noise}, structured, Options{})
		for i, length := range []int{0, 1, 27, 28, inputSize - requestSize, inputSize, 3*inputSize + 5, MaxPiece} {
			w := request{cmd: cmdWrite, handle: uint64(i), length: uint32(length), flags: 1}
			payload := bytes.Repeat(rawRequest(request{cmd: cmdDisc}), length/requestSize+1)[:length]
			next := request{cmd: cmdFlush, handle: 1000}
			go c.send(append(append(rawRequest(w), payload...), rawRequest(next)...))
			if got := c.status(structured, w); got != EPERM {
				t.Errorf("%d bytes: expected EPERM, found %d", length, got)
			}
			if got := c.status(structured, next); got != 0 {
				t.Errorf("after %d bytes: expected a flush, found error %d", length, got)
			}
		}
		c.bye()
	})
}

// Only the block that is bad fails, and what comes before it is there.
func TestBadBlock(t *testing.T) {
	bad := map[int64]bool{5: true, 300: true}
	t.Run("Structured", func(t *testing.T) {
		c := connect(t, &disk{content: noise, bad: bad}, true, Options{})
		for _, r := range []struct{ off, n, good int }{
			{5 * 4096, 4096, 0}, {5*4096 + 100, 10, 0}, {4 * 4096, 8192, 4096}, {100, 100000, 5*4096 - 100},
			{6 * 4096, MaxPiece, -1}, {100 * 4096, MaxPiece, 200 * 4096}, {6 * 4096, 2*MaxPiece + 1, 294 * 4096}, {6 * 4096, 294 * 4096, -1},
		} {
			q := request{cmd: cmdRead, handle: 9, offset: uint64(r.off), length: uint32(r.n)}
			c.ask(q)
			got := c.structured(q)
			if r.good < 0 {
				if got.errno != 0 || !bytes.Equal(got.data, noise[r.off:r.off+r.n]) {
					t.Errorf("%d at %d: expected it whole, found error %d", r.n, r.off, got.errno)
				}
				continue
			}
			if got.errno != EIO || got.at != int64(r.off+r.good) || !bytes.Equal(got.data, noise[r.off:r.off+r.good]) {
				t.Errorf("%d at %d: expected %d bytes and EIO there, found %d, error %d at %d", r.n, r.off, r.good, len(got.data), got.errno, got.at)
			}
			if !strings.Contains(got.message, errBad.Error()) {
				t.Errorf("expected the reason, found %q", got.message)
			}
		}
		c.bye()
	})
	t.Run("Simple", func(t *testing.T) {
		c := connect(t, &disk{content: noise, bad: bad}, false, Options{})
		for _, r := range [][2]int{{5 * 4096, 4096}, {0, 100000}, {0, 2 * MaxPiece}} {
			q := request{cmd: cmdRead, handle: 9, offset: uint64(r[0]), length: uint32(r[1])}
			c.ask(q)
			if got := c.status(false, q); got != EIO {
				t.Errorf("%v: expected EIO, found %d", r, got)
			}
			c.read(false, 6*4096, 4096)
			c.read(false, 4*4096, 4096)
		}
		c.bye()
	})
}

func TestMessageOf(t *testing.T) {
	for text, want := range map[string]string{
		"short": "short", "a\xffb": "a?b", strings.Repeat("x", 300): strings.Repeat("x", maxMessage),
		strings.Repeat("€", 100): strings.Repeat("€", maxMessage/3),
	} {
		if got := messageOf(errors.New(text)); got != want {
			t.Errorf("expected %q, found %q", want, got)
		}
	}
}

// shortBackend breaks the rules of io.ReaderAt.
type shortBackend struct{ sparse }

func (shortBackend) ReadAt(p []byte, off int64) (int, error) { return len(p) - 1, nil }

func TestShortRead(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		c := connect(t, shortBackend{}, structured, Options{})
		r := request{cmd: cmdRead, handle: 1, length: 4096}
		c.ask(r)
		if got := c.status(structured, r); got != EIO {
			t.Errorf("expected EIO, found %d", got)
		}
		c.bye()
	})
}

func TestNoMemory(t *testing.T) {
	ours, theirs := net.Pipe()
	s := &server{exports: &table{}, pool: &heap{err: errors.New("none left")}, session: make(chan *Session, 1), over: make(chan Ending, 1), ended: make(chan struct{})}
	s.start(theirs, small("disk"), Options{})
	c := &client{t, ours, s}
	r := request{cmd: cmdRead, handle: 1, length: 10}
	c.ask(r)
	if got := c.status(false, r); got != ENOMEM {
		t.Errorf("expected ENOMEM, found %d", got)
	}
	c.bye()
}

// gate holds reads of block 0 until it is opened.
type gate struct{ entered, open chan struct{} }

func newGate() gate { return gate{make(chan struct{}, 100), make(chan struct{})} }

func (g gate) disk() *disk {
	return &disk{content: noise, hook: func(off int64, _ int) {
		if off == 0 {
			g.entered <- struct{}{}
			<-g.open
		}
	}}
}

// Fast requests overtake a slow one.
func TestOutOfOrder(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		g := newGate()
		c := connect(t, g.disk(), structured, Options{Workers: 2})
		slow := request{cmd: cmdRead, handle: 42, length: 100}
		c.ask(slow)
		<-g.entered
		for i := range 50 {
			c.read(structured, 4096*(i+1), 4096)
		}
		close(g.open)
		if structured {
			if got := c.structured(slow); !bytes.Equal(got.data, noise[:100]) {
				t.Error("content of the slow one differs")
			}
		} else if c.status(false, slow) != 0 || !bytes.Equal(c.take(100), noise[:100]) {
			t.Error("content of the slow one differs")
		}
		c.bye()
	})
}

// Many requests at a time, each answered once and with its own data.
func TestManyInFlight(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		c := connect(t, &disk{content: noise}, structured, Options{Workers: 4})
		const total = 500
		length := func(i int) int { return 1 + (i*7919)%200000 }
		offset := func(i int) int { return (i * 104729) % (len(noise) - 200000) }
		go func() {
			for i := range total {
				c.ask(request{cmd: cmdRead, handle: uint64(i), offset: uint64(offset(i)), length: uint32(length(i))})
			}
		}()
		seen := map[uint64]bool{}
		for range total {
			handle, data := uint64(0), []byte(nil)
			if structured {
				k := c.chunk()
				handle, data = k.handle, k.payload[8:]
			} else {
				handle, _ = c.simple()
				data = c.take(length(int(handle)))
			}
			if i := int(handle); seen[handle] || i >= total || !bytes.Equal(data, noise[offset(i):offset(i)+length(i)]) {
				t.Fatalf("request %d: answered before, or with other data", handle)
			}
			seen[handle] = true
		}
		if most := c.pool.most.Load(); most > 4 {
			t.Errorf("expected at most 4 buffers, found %d", most)
		}
		c.bye()
	})
}

// A request that was read is answered although the client has said goodbye.
func TestDisconnectWaits(t *testing.T) {
	g := newGate()
	c := connect(t, g.disk(), false, Options{})
	slow := request{cmd: cmdRead, handle: 42, length: 100}
	c.ask(slow)
	<-g.entered
	c.ask(request{cmd: cmdDisc})
	if why := <-c.over; why != Disconnected {
		t.Errorf("expected Disconnected, found %d", why)
	}
	close(g.open)
	if c.status(false, slow) != 0 {
		t.Error("expected an answer, found an error")
	}
	c.take(100)
	c.expectEnd()
	c.gone()
}

func TestCloseInFlight(t *testing.T) {
	for _, how := range []string{"Close", "Client"} {
		t.Run(how, func(t *testing.T) {
			g := newGate()
			c := connect(t, g.disk(), true, Options{Workers: 3})
			for i := range 3 {
				c.ask(request{cmd: cmdRead, handle: uint64(i), length: 100})
				<-g.entered
			}
			s := <-c.session
			want := Stopped
			switch how {
			case "Close":
				s.Close()
				c.expectEnd()
			case "Client":
				_ = c.Close()
				want = Lost
			}
			select {
			case <-c.ended:
				t.Error("expected the end to wait for the backend, found that it did not")
			case <-time.After(20 * time.Millisecond):
			}
			close(g.open)
			if why := <-c.over; why != want && !(how == "Client" && why == Broken) {
				t.Errorf("expected ending %d, found %d", want, why)
			}
			c.gone()
		})
	}
}

// Close ends a session although nothing is asked.
func TestCloseIdle(t *testing.T) {
	c := connect(t, small("").Backend, false, Options{})
	(<-c.session).Close()
	c.expectEnd()
	if why := <-c.over; why != Stopped {
		t.Errorf("expected Stopped, found %d", why)
	}
	c.gone()
}

func TestHostileSession(t *testing.T) {
	for name, say := range map[string][]byte{
		"Magic":     make([]byte, requestSize),
		"Reply":     append([]byte{0x67, 0x44, 0x66, 0x98}, make([]byte, 24)...),
		"LongWrite": rawRequest(request{cmd: cmdWrite, length: MaxRequest + 1}),
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, small("").Backend, false, Options{})
			c.send(say)
			c.expectEnd()
			if why := <-c.over; why != Broken {
				t.Errorf("expected Broken, found %d", why)
			}
			c.gone()
		})
	}
}

// What stops in the middle ends in time; what has not begun may take for ever,
// and so may a trusted client.
func TestSessionDeadlines(t *testing.T) {
	half := rawRequest(request{cmd: cmdRead, length: 1})[:20]
	write := append(rawRequest(request{cmd: cmdWrite, length: 1000}), 1, 2, 3)
	for name, c := range map[string]struct {
		say     []byte
		trusted bool
		within  time.Duration
	}{
		"HalfHeader":  {half, false, RequestTime},
		"HalfPayload": {write, false, RequestTime},
		"NeverReads":  {bytes.Repeat(rawRequest(request{cmd: cmdRead, length: 100}), 20), false, ReplyTime},
		"Silent":      {nil, false, 0},
		"Trusted":     {half, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cl := connect(t, small("").Backend, false, Options{Trusted: c.trusted, Workers: 1})
				start := time.Now()
				said := make(chan struct{})
				go func() { defer close(said); _, _ = cl.Write(c.say) }()
				if c.within == 0 {
					time.Sleep(time.Hour)
					select {
					case why := <-cl.over:
						t.Errorf("expected the session to go on, found ending %d", why)
					default:
					}
					_ = cl.Close()
				}
				why := <-cl.over
				if took := time.Since(start); c.within > 0 && (why != Broken || took < c.within || took > c.within+time.Second) {
					t.Errorf("expected Broken after %v, found %d after %v", c.within, why, took)
				}
				_ = cl.Close()
				<-said
				cl.gone()
			})
		})
	}
}

// A client that never reads costs so many buffers and no more, however much it
// asks for.
func TestNeverReads(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		c := connect(t, &disk{content: noise}, structured, Options{Workers: 3})
		_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		for {
			if _, err := c.Write(rawRequest(request{cmd: cmdRead, length: MaxPiece})); err != nil {
				break
			}
		}
		if most := c.pool.most.Load(); most != 3 {
			t.Errorf("expected 3 buffers, found %d", most)
		}
		_ = c.Close()
		c.gone()
	})
}

// stream answers reads of a session with requests, and swallows its replies.
type stream struct {
	left    int
	request []byte
}

func (s *stream) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	s.left--
	return copy(p, s.request), nil
}
func (s *stream) Write(p []byte) (int, error)        { return len(p), nil }
func (s *stream) Close() error                       { return nil }
func (s *stream) SetReadDeadline(time.Time) error    { return nil }
func (s *stream) SetWriteDeadline(t time.Time) error { return nil }

// Serving makes no garbage.
func TestServingAllocatesNothing(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		for _, length := range []uint32{4096, 256 << 10} {
			const n = 2000
			pool := newLending(2)
			run := func() float64 {
				s := &stream{left: n, request: rawRequest(request{cmd: cmdRead, offset: 4096, length: length})}
				return testing.AllocsPerRun(1, func() {
					s.left = n
					ended := make(chan struct{})
					Start(s, sparse{}, pool, Options{Structured: structured, Workers: 2, Ended: func() { close(ended) }})
					<-ended
				})
			}
			if allocs := run(); allocs > n/20 {
				t.Errorf("%d bytes: expected next to no allocation in %d requests, found %v", length, n, allocs)
			}
		}
	})
}

// lending lends the same few buffers again and again.
type lending chan *heapBuffer

func newLending(n int) lending {
	p := make(lending, n)
	for range n {
		p <- &heapBuffer{make([]byte, heapRoom+MaxPiece)}
	}
	return p
}

func (p lending) Get(int) (Buffer, error) { return <-p, nil }
func (p lending) Put(b Buffer)            { p <- b.(*heapBuffer) }

func BenchmarkRead4K(b *testing.B) {
	s := &stream{left: b.N, request: rawRequest(request{cmd: cmdRead, offset: 4096, length: 4096})}
	ended := make(chan struct{})
	b.ReportAllocs()
	b.ResetTimer()
	Start(s, sparse{}, newLending(turns.DefaultLimit()), Options{Ended: func() { close(ended) }})
	<-ended
}
