package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// dialogue is a connection of which each read gives one piece of what a client
// says, and that keeps what is written, call by call.
type dialogue struct {
	stream
	says   [][]byte
	writes [][]byte
	before []int // writes before each read
	fail   error // of writes
	mu     sync.Mutex
}

func (s *dialogue) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = append(s.before, len(s.writes))
	if len(s.says) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.says[0])
	s.says[0] = s.says[0][n:]
	if len(s.says[0]) == 0 {
		s.says = s.says[1:]
	}
	return n, nil
}

func (s *dialogue) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return 0, s.fail
	}
	s.writes = append(s.writes, bytes.Clone(p))
	return len(p), nil
}

// play has a session serve what the dialogue has, to its end.
func (s *dialogue) play(t *testing.T, b Backend, structured bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { // where no backend is slow
		pool, ended := &heap{}, make(chan struct{})
		Start(s, b, pool, Options{Structured: structured, Trusted: true, Workers: 2, Ended: func() { close(ended) }})
		<-ended
		if n := pool.lent.Load(); n != 0 {
			t.Errorf("expected all buffers back, found %d lent", n)
		}
	})
}

// reads are requests for blocks, in one piece.
func reads(blocks ...int) (b []byte) {
	for _, n := range blocks {
		b = append(b, rawRequest(request{cmd: cmdRead, handle: uint64(n), offset: uint64(n) * 4096, length: 4096})...)
	}
	return b
}

// answers takes whole replies to reads of blocks off b, and gives their block
// numbers; of those that have failed, 1000 less.
func answers(t *testing.T, b []byte, structured bool) (blocks []int) {
	t.Helper()
	for len(b) > 0 {
		header, block := simpleSize, 0
		errno := binary.BigEndian.Uint32(b[4:])
		if structured {
			header = dataHeaderSize
			errno = 0
			if binary.BigEndian.Uint16(b[6:]) != chunkData {
				errno = binary.BigEndian.Uint32(b[chunkSize:])
				header = chunkSize + int(binary.BigEndian.Uint32(b[16:]))
			}
		}
		block = int(binary.BigEndian.Uint64(b[8:]))
		b = b[header:]
		if errno != 0 {
			blocks = append(blocks, block-1000)
			continue
		}
		if !bytes.Equal(b[:4096], noise[block*4096:][:4096]) {
			t.Fatalf("block %d: other data than expected", block)
		}
		blocks, b = append(blocks, block), b[4096:]
	}
	return blocks
}

// What is asked together is answered together, before the client is waited for.
func TestHeldReplies(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		half := reads(9)
		s := &dialogue{says: [][]byte{reads(1), reads(2, 3, 4, 5), append(reads(6, 7, 8), half[:20]...), half[20:]}}
		s.play(t, &disk{content: noise}, structured)
		for i, want := range [][]int{{1}, {2, 3, 4, 5}, {6, 7, 8}, {9}} {
			if got := answers(t, s.writes[i], structured); !slices.Equal(got, want) {
				t.Errorf("expected answers to %v, found %v", want, got)
			}
		}
		if want := []int{0, 1, 2, 3, 4}; !slices.Equal(s.before, want) {
			t.Errorf("expected so many writes before each read: %v, found %v", want, s.before)
		}
	})
}

// No more is held than there is room for, and long replies do not wait.
func TestHeldBound(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		var blocks []int
		for i := range inputSize / requestSize {
			blocks = append(blocks, i+1)
		}
		s := &dialogue{says: [][]byte{reads(blocks...)}}
		s.play(t, &disk{content: noise}, structured)
		var got []int
		for _, w := range s.writes {
			if len(w) > holdBytes+holdReply {
				t.Errorf("expected at most %d bytes at a time, found %d", holdBytes+holdReply, len(w))
			}
			got = append(got, answers(t, w, structured)...)
		}
		if !slices.Equal(got, blocks) || len(s.writes) > len(blocks)/8 {
			t.Errorf("expected answers to %v in few calls, found %v in %d", blocks, got, len(s.writes))
		}
		long := rawRequest(request{cmd: cmdRead, length: holdReply + 1})
		s = &dialogue{says: [][]byte{slices.Concat(reads(1), long, reads(2, 3))}}
		s.play(t, &disk{content: noise}, structured)
		if got := answers(t, s.writes[0], structured); !slices.Equal(got, []int{1}) || len(s.writes) != 2 {
			t.Errorf("expected one short reply first, found %v, and %d calls", got, len(s.writes))
		}
	})
}

// One that fails among those that are held fails alone.
func TestHeldError(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		s := &dialogue{says: [][]byte{reads(1, 2, 3, 4)}}
		s.play(t, &disk{content: noise, bad: map[int64]bool{2: true, 4: true}}, structured)
		got := answers(t, slices.Concat(s.writes...), structured)
		slices.Sort(got)
		if want := []int{2 - 1000, 4 - 1000, 1, 3}; !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("expected %v, found %v", want, got)
		}
	})
}

// The good part of one that fails comes before its error.
func TestHeldPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		two := rawRequest(request{cmd: cmdRead, handle: 77, offset: 4096, length: 8192})
		c := connect(t, &disk{content: noise, bad: map[int64]bool{2: true}}, true, Options{Trusted: true})
		go c.send(slices.Concat(reads(5), two, reads(6)))
		if k := c.chunk(); k.handle != 5 || !bytes.Equal(k.payload[8:], noise[5*4096:6*4096]) {
			t.Errorf("expected block 5, found %d", k.handle)
		}
		got := c.structured(request{handle: 77, offset: 4096})
		if got.errno != EIO || got.at != 8192 || !bytes.Equal(got.data, noise[4096:8192]) {
			t.Errorf("expected one block and EIO, found %d bytes, error %d at %d", len(got.data), got.errno, got.at)
		}
		if k := c.chunk(); k.handle != 6 || !bytes.Equal(k.payload[8:], noise[6*4096:7*4096]) {
			t.Errorf("expected block 6, found %d", k.handle)
		}
		c.bye()
	})
}

// A reply does not wait for a request behind it that hangs, whoever is left to
// send it.
func TestHeldBehindSlow(t *testing.T) {
	for _, workers := range []int{1, 2} {
		eachKind(t, func(t *testing.T, structured bool) {
			synctest.Test(t, func(t *testing.T) {
				g := newGate()
				c := connect(t, g.disk(), structured, Options{Workers: workers, Trusted: true})
				start := time.Now()
				go c.send(reads(1, 2, 0, 3))
				size := simpleSize
				if structured {
					size = dataHeaderSize
				}
				want := []int{1, 2}
				if workers > 1 {
					want = append(want, 3)
				}
				if got := answers(t, c.take(len(want)*(size+4096)), structured); !slices.Equal(got, want) {
					t.Errorf("expected %v, found %v", want, got)
				}
				if took := time.Since(start); took > 20*time.Millisecond {
					t.Errorf("expected a wait of milliseconds, found %v", took)
				}
				close(g.open)
				want = []int{0}
				if workers == 1 {
					want = append(want, 3)
				}
				if got := answers(t, c.take(len(want)*(size+4096)), structured); !slices.Equal(got, want) {
					t.Errorf("expected %v, found %v", want, got)
				}
				c.bye()
			})
		})
	}
}

var errGone = errors.New("client has gone")

// A client that takes no reply costs nothing afterwards.
func TestHeldClientGone(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		s := &dialogue{says: [][]byte{reads(1, 2, 3), reads(4, 5)}, fail: errGone}
		s.play(t, &disk{content: noise}, structured)
	})
}

// Many together, some of which are slow or fail, while the lead is taken and given
// up again and again: each is answered once, and with its own data.
func TestHeldMany(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		d := &disk{content: noise, bad: map[int64]bool{3: true, 50: true}}
		d.hook = func(int64, int) {
			if rand.IntN(25) == 0 {
				time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond)
			}
		}
		c := connect(t, d, structured, Options{Workers: 3})
		const rounds, most = 20, 100
		size := simpleSize
		if structured {
			size = dataHeaderSize
		}
		for range rounds {
			blocks := rand.Perm(most)[:1+rand.IntN(most)]
			go c.send(reads(blocks...))
			var got []int
			for range blocks {
				b := c.take(size)
				failed := !structured && b[7] != 0
				if structured && binary.BigEndian.Uint16(b[6:]) != chunkData {
					failed = true
					c.take(chunkSize + int(binary.BigEndian.Uint32(b[16:])) - size)
				}
				block := int(binary.BigEndian.Uint64(b[8:]))
				if failed != d.bad[int64(block)] || !failed && !bytes.Equal(c.take(4096), noise[block*4096:][:4096]) {
					t.Fatalf("block %d: failed is %t, or other data", block, failed)
				}
				got = append(got, block)
			}
			slices.Sort(got)
			slices.Sort(blocks)
			if !slices.Equal(got, blocks) {
				t.Fatalf("expected answers to %v, found %v", blocks, got)
			}
		}
		if most := c.pool.most.Load(); most > 3 {
			t.Errorf("expected at most 3 buffers, found %d", most)
		}
		c.bye()
	})
}

// Replies of all lengths stand behind each other, whole.
func TestHeldLengths(t *testing.T) {
	eachKind(t, func(t *testing.T, structured bool) {
		d := &disk{content: noise}
		d.hook = func(int64, int) {
			if rand.IntN(50) == 0 {
				time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
			}
		}
		c := connect(t, d, structured, Options{Workers: 3})
		const offsets = 20000
		for range 100 {
			n := 1 + rand.IntN(100)
			lengths, all := make([]int, n), []byte(nil)
			for i := range lengths {
				lengths[i] = 1 + rand.IntN(4096<<rand.IntN(6))
				r := request{cmd: cmdRead, handle: uint64(i), offset: uint64(i * offsets), length: uint32(lengths[i])}
				all = append(all, rawRequest(r)...)
			}
			go c.send(all)
			for range n {
				i, data := 0, []byte(nil)
				if structured {
					k := c.chunk()
					i, data = int(k.handle), k.payload[8:]
				} else {
					handle, _ := c.simple()
					i, data = int(handle), c.take(lengths[handle])
				}
				if lengths[i] == 0 || !bytes.Equal(data, noise[i*offsets:][:lengths[i]]) {
					t.Fatalf("request %d of %d bytes: answered before, or with other data", i, lengths[i])
				}
				lengths[i] = 0
			}
		}
		c.bye()
	})
}
