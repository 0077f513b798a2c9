package userstream

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const testSize = 3<<20 + 512

// noise is the content of the tests' backend.
var noise = func() []byte {
	b := make([]byte, testSize)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return b
}()

type memory struct {
	*bytes.Reader
	hook func(off int64, n int) error
}

func (m memory) ReadAt(b []byte, off int64) (int, error) {
	if m.hook != nil {
		if err := m.hook(off, len(b)); err != nil {
			return 0, err
		}
	}
	return m.Reader.ReadAt(b, off)
}

func backend(hook func(off int64, n int) error) Backend {
	return memory{bytes.NewReader(noise), hook}
}

type frame []byte

func (f frame) Frame(header, n int) []byte { return f[:header+n] }

// pool counts what it has lent.
type pool struct {
	lent  atomic.Int32
	empty bool
}

func (p *pool) Get(n int) (Buffer, error) {
	if p.empty || n > MaxRequest {
		return nil, os.ErrInvalid
	}
	p.lent.Add(1)
	return frame(make([]byte, HeaderSize+n)), nil
}

func (p *pool) Put(Buffer) { p.lent.Add(-1) }

// rig is a session and the kernel that asks it.
type rig struct {
	*kernel
	*Session
	t     *testing.T
	pool  *pool
	ended chan error
}

func newRig(t *testing.T, cut func(int) int, hook func(off int64, n int) error) *rig {
	r := &rig{kernel: newKernel(cut), t: t, pool: &pool{}, ended: make(chan error, 1)}
	r.Session = Start(r.kernel, backend(hook), r.pool, Options{Workers: 3, Ended: func(err error) { r.ended <- err }})
	return r
}

func (r *rig) expect(m *message, result uint64) {
	r.t.Helper()
	select {
	case <-m.answered:
	case <-time.After(time.Minute):
		r.t.Fatalf("%+v: expected an answer, found none", m.header)
	}
	if m.result != result {
		r.t.Errorf("%+v: expected result %d, found %d", m.header, result, m.result)
	}
	if want := noise[min(m.sector*sector, testSize):]; m.typ == opRead && result == resultSuccess && !bytes.Equal(m.data, want[:m.length]) {
		r.t.Errorf("%+v: the data differ", m.header)
	}
}

func (r *rig) read(sector, length uint64) *message { return r.submit(opRead, sector, length, nil) }

// end takes the target away; nothing may be left.
func (r *rig) end() {
	r.t.Helper()
	r.remove()
	r.wantEnd(nil)
}

func (r *rig) wantEnd(want error) {
	r.t.Helper()
	select {
	case err := <-r.ended:
		if !errors.Is(err, want) {
			r.t.Errorf("expected the session to end with %v, found %v", want, err)
		}
	case <-time.After(time.Minute):
		r.t.Fatal("expected the session to end, found that it goes on")
	}
	if n := r.pool.lent.Load(); n != 0 {
		r.t.Errorf("expected all buffers back, found %d lent", n)
	}
	if !r.closed || r.broken != nil && want == nil {
		r.t.Errorf("expected the channel to be closed and whole, found closed %v, %v", r.closed, r.broken)
	}
}

// Each operation has its answer, and the session goes on after it.
func TestOperations(t *testing.T) {
	r := newRig(t, nil, nil)
	for _, c := range []struct {
		typ, sector, length uint64
		payload             []byte
		result              uint64
	}{
		{opRead, 3, 512, nil, resultSuccess},
		{opRead, 0, 0, nil, resultSuccess},
		{opRead, testSize/sector - 1, 512, nil, resultSuccess},
		{opRead, testSize / sector, 512, nil, resultError},
		{opRead, testSize/sector - 1, 1024, nil, resultError},
		{opRead, 1 << 55, 512, nil, resultError},
		{opRead, 1<<64 - 1, 512, nil, resultError},
		{opRead, 0, 1<<64 - 1, nil, resultError},
		{opRead, 0, MaxRequest + 1, nil, resultError},
		{opWrite, 0, 0, nil, resultSuccess}, // how device-mapper flushes
		{opWrite, 8, 4096, noise[:4096], resultUnsupported},
		{opWrite, 8, 1 << 20, noise[:1<<20], resultUnsupported},
		{opWrite, 1 << 60, 512, noise[:512], resultUnsupported},
		{opFlush, 0, 0, nil, resultSuccess},
		{opDiscard, 0, 1 << 40, nil, resultUnsupported},
		{opSecureErase, 0, 4096, nil, resultUnsupported},
		{opWriteSame, 0, 4096, nil, resultUnsupported},
		{opWriteZeroes, 0, 1 << 40, nil, resultUnsupported},
		{7, 0, 0, nil, resultUnsupported},
		{8, 0, 0, nil, resultUnsupported},
		{9, 0, 0, nil, resultUnsupported},
		{10, 0, 4096, nil, resultUnsupported},
		{11, 0, 0, nil, resultUnsupported},
		{opZoneResetAll, 0, 0, nil, resultUnsupported},
		{13, 0, 4096, nil, resultUnsupported},
		{1<<64 - 1, 1<<64 - 1, 1<<64 - 1, nil, resultUnsupported},
	} {
		r.expect(r.submit(c.typ, c.sector, c.length, c.payload), c.result)
		r.expect(r.read(5, 4096), resultSuccess)
	}
	r.end()
}

// Headers, payloads and responses are cut at each position in turn.
func TestPieces(t *testing.T) {
	for at := 1; at <= HeaderSize+8; at++ {
		calls := 0
		r := newRig(t, func(int) int {
			if calls++; calls%2 == 1 {
				return at
			}
			return 1 << 20
		}, nil)
		r.expect(r.submit(opWrite, 0, 1024, noise[:1024]), resultUnsupported)
		r.expect(r.read(1, 1024), resultSuccess)
		r.expect(r.read(1<<40, 1024), resultError)
		r.expect(r.read(2, 512), resultSuccess)
		r.end()
	}
}

func TestPiecesOfOneByte(t *testing.T) {
	r := newRig(t, func(int) int { return 1 }, nil)
	r.expect(r.submit(opWrite, 0, 5000, noise[:5000]), resultUnsupported)
	r.expect(r.read(1, 1536), resultSuccess)
	r.end()
}

// Many at a time, of all lengths, in pieces.
func TestConcurrent(t *testing.T) {
	r := newRig(t, func(n int) int { return 1 + rand.IntN(n) }, nil)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 40 {
				sectors := 1 + rand.Uint64N(600)
				r.expect(r.read(rand.Uint64N(testSize/sector-sectors), sectors*sector), resultSuccess)
				n := rand.IntN(9000)
				r.expect(r.submit(opWrite, 0, uint64(n), noise[:n]), map[bool]uint64{true: resultUnsupported}[n > 0])
			}
		})
	}
	wg.Wait()
	r.end()
}

// A long read is read in pieces, answered once, and not at all in part.
func TestLongReads(t *testing.T) {
	var most atomic.Int64
	var bad atomic.Bool
	r := newRig(t, nil, func(off int64, n int) error {
		most.Store(max(most.Load(), int64(n)))
		if bad.Load() && off >= 2<<20 {
			return io.ErrUnexpectedEOF
		}
		return nil
	})
	r.expect(r.read(1, testSize-512), resultSuccess)
	if most.Load() != MaxPiece {
		t.Errorf("expected pieces of %d bytes, found %d", MaxPiece, most.Load())
	}
	bad.Store(true)
	m := r.read(0, testSize)
	r.expect(m, resultError)
	if len(m.data) > 0 {
		t.Errorf("expected no data before the error, found %d bytes", len(m.data))
	}
	r.expect(r.read(0, 1<<20), resultSuccess)
	r.end()
}

func TestBackendErrors(t *testing.T) {
	r := newRig(t, nil, func(off int64, n int) error {
		switch off {
		case 512:
			return os.ErrPermission
		case 1024:
			return io.EOF // and not a byte
		}
		return nil
	})
	for range 10 {
		r.expect(r.read(1, 512), resultError)
		r.expect(r.read(2, 512), resultError)
		r.expect(r.read(3, 512), resultSuccess)
	}
	r.pool.empty = true
	r.expect(r.read(3, 512), resultError)
	r.end()
}

// What the backend holds back, others pass by; Fail answers it, and what comes
// later, and the backend's late word changes nothing.
func TestFail(t *testing.T) {
	entered, open := make(chan struct{}, 100), make(chan struct{})
	r := newRig(t, nil, func(off int64, n int) error {
		if off == 4096 {
			entered <- struct{}{}
			<-open
		}
		return nil
	})
	slow := []*message{r.read(8, 512)}
	<-entered
	for range 20 {
		r.expect(r.read(9, 512), resultSuccess)
	}
	for range 9 { // more than are served at a time
		slow = append(slow, r.read(8, 512))
	}
	<-entered
	<-entered
	r.Fail()
	for _, m := range slow {
		r.expect(m, resultError)
	}
	r.expect(r.read(9, 512), resultError)
	r.expect(r.submit(opWrite, 0, 512, noise[:512]), resultError)
	r.expect(r.submit(opFlush, 0, 0, nil), resultError)
	r.Fail()
	r.remove()
	select {
	case <-r.ended:
		t.Error("expected the session to wait for the backend, found it ended")
	default:
	}
	close(open)
	r.wantEnd(nil)
}

// Fail comes while all is being asked and answered: each has one answer.
func TestFailUnderLoad(t *testing.T) {
	for range 50 {
		r := newRig(t, nil, nil)
		all := make([]*message, 64)
		for i := range all {
			all[i] = r.read(uint64(i), 512)
		}
		go r.Fail()
		for _, m := range all {
			<-m.answered
		}
		r.end()
	}
}

func TestEndWithinRequest(t *testing.T) {
	for at := range HeaderSize + 100 {
		var b [HeaderSize + 100]byte
		header{typ: opWrite, length: 100}.put(b[:])
		p, ended := &pool{}, make(chan error, 1)
		Start(closed{bytes.NewReader(b[:at])}, backend(nil), p, Options{Ended: func(err error) { ended <- err }})
		err := <-ended
		if want := at > 0; errors.Is(err, ErrTruncated) != want {
			t.Errorf("%d bytes: expected ErrTruncated %v, found %v", at, want, err)
		}
	}
}

// closed is a channel that nobody listens to.
type closed struct{ io.Reader }

func (closed) Write([]byte) (int, error) { return 0, io.EOF }
func (closed) Waiting() bool             { return true }
func (closed) Close() error              { return nil }

// A channel that takes no answers ends the session, with the reason.
func TestBrokenChannel(t *testing.T) {
	r := newRig(t, nil, nil)
	r.expect(r.read(0, 512), resultSuccess)
	r.mu().Lock()
	r.broken = errBroken
	r.mu().Unlock()
	r.read(0, 512)
	r.read(0, 512)
	r.wantEnd(errBroken)
}

func (r *rig) mu() *sync.Mutex { return &r.kernel.mu }

// Serving makes no garbage.
func TestNoGarbage(t *testing.T) {
	c := &quiet{left: 2000}
	header{typ: opRead, sector: 1, length: 4096}.put(c.request[:])
	p := newFixedPool(3)
	ended := make(chan error, 1)
	allocs := testing.AllocsPerRun(1, func() {
		c.left = 2000
		Start(c, backend(nil), p, Options{Workers: 3, Ended: func(err error) { ended <- err }})
		<-ended
	})
	if allocs > 50 {
		t.Errorf("expected some allocations for a session and none for a request, found %v for 2000", allocs)
	}
}

// quiet asks the same again and again.
type quiet struct {
	request [HeaderSize]byte
	left    int
}

func (c *quiet) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	c.left--
	return copy(b, c.request[:]), nil
}
func (c *quiet) Write(b []byte) (int, error) { return len(b), nil }
func (c *quiet) Waiting() bool               { return false }
func (c *quiet) Close() error                { return nil }

// fixedPool has one buffer for each who may serve.
type fixedPool chan *fixedBuffer

type fixedBuffer struct{ frame }

func newFixedPool(n int) fixedPool {
	p := make(fixedPool, n)
	for range n {
		p <- &fixedBuffer{make([]byte, HeaderSize+4096)}
	}
	return p
}

func (p fixedPool) Get(int) (Buffer, error) { return <-p, nil }
func (p fixedPool) Put(b Buffer)            { p <- b.(*fixedBuffer) }
