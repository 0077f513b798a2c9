package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// noise is what the exports are made of.
var noise = func() []byte {
	b := make([]byte, 3*MaxPiece+5000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return b
}()

// disk is a backend. A read that touches bad fails; hook, unless nil, is called
// before each read.
type disk struct {
	content []byte
	bad     map[int64]bool // block numbers
	hook    func(off int64, n int)
	reads   atomic.Int64
}

var errBad = errors.New("block is bad")

func (d *disk) Size() int64 { return int64(len(d.content)) }

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	d.reads.Add(1)
	if d.hook != nil {
		d.hook(off, len(p))
	}
	for block := range d.bad {
		if off < (block+1)*4096 && off+int64(len(p)) > block*4096 {
			return 0, fmt.Errorf("block %d: %w", block, errBad)
		}
	}
	n := copy(p, d.content[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// heap is a pool on the heap. It counts what is lent.
type heap struct {
	free sync.Pool
	lent atomic.Int64
	most atomic.Int64
	err  error
}

type heapBuffer struct{ mem []byte }

const heapRoom = 64

func (b *heapBuffer) Frame(header, n int) []byte { return b.mem[heapRoom-header : heapRoom+n] }

func (h *heap) Get(n int) (Buffer, error) {
	if h.err != nil {
		return nil, h.err
	}
	if lent := h.lent.Add(1); lent > h.most.Load() {
		h.most.Store(lent)
	}
	if b, ok := h.free.Get().(*heapBuffer); ok && len(b.mem) >= heapRoom+n {
		return b, nil
	}
	return &heapBuffer{make([]byte, heapRoom+max(n, MaxPiece))}, nil
}

func (h *heap) Put(b Buffer) {
	h.lent.Add(-1)
	h.free.Put(b)
}

// table is a fixed set of exports. It counts those open.
type table struct {
	list []Export
	open atomic.Int64
}

func (x *table) Names() (names []string) {
	for _, e := range x.list {
		names = append(names, e.Name)
	}
	return names
}

func (x *table) Find(name string) (Export, error) {
	for _, e := range x.list {
		if e.Name == name || name == "" && len(x.list) == 1 {
			return e, nil
		}
	}
	return Export{}, fmt.Errorf("%w: %s", ErrUnknownExport, name)
}

func (x *table) Open(name string) (Export, error) {
	e, err := x.Find(name)
	if err == nil {
		x.open.Add(1)
		e.Release = func() { x.open.Add(-1) }
	}
	return e, err
}

// server is one connection's, with what it has come to.
type server struct {
	exports *table
	pool    *heap
	session chan *Session // after the negotiation
	over    chan Ending
	ended   chan struct{}
	failed  chan error // the negotiation
}

func serve(c Conn, x *table, o Options) *server {
	s := &server{
		exports: x, pool: &heap{}, session: make(chan *Session, 1), over: make(chan Ending, 1), ended: make(chan struct{}),
		failed: make(chan error, 1),
	}
	go func() {
		a, err := Negotiate(c, x)
		if err != nil {
			_ = c.Close()
			s.failed <- err
			return
		}
		o.Structured, o.Allocation = a.Structured, a.Allocation
		s.start(c, a.Export, o)
	}()
	return s
}

func (s *server) start(c Conn, e Export, o Options) {
	o.Over = func(why Ending) { s.over <- why }
	o.Ended = func() { e.release(); close(s.ended) }
	s.session <- Start(c, e.Backend, s.pool, o)
}

// client speaks the protocol byte by byte.
type client struct {
	t *testing.T
	net.Conn
	*server
}

// dial connects to exports and reads the server's greeting.
func dial(t *testing.T, o Options, list ...Export) *client {
	t.Helper()
	ours, theirs := net.Pipe()
	c := &client{t, ours, serve(theirs, &table{list: list}, o)}
	t.Cleanup(func() { _ = ours.Close() })
	c.expect(appendHello(nil))
	c.send32(flagFixedNewstyle | flagNoZeroes)
	return c
}

// connect is a client that has agreed on things already.
func connect(t *testing.T, b Backend, structured bool, o Options) *client {
	t.Helper()
	c := dial(t, o, Export{Name: "disk", Backend: b})
	if structured {
		c.option(optStructuredReply, nil)
		c.reply(optStructuredReply, repAck)
		c.option(optSetMetaContext, queries("", contextName))
		c.reply(optSetMetaContext, repMetaContext)
		c.reply(optSetMetaContext, repAck)
	}
	c.option(optGo, infoData(""))
	c.reply(optGo, repInfo)
	c.reply(optGo, repAck)
	return c
}

func (c *client) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) send(b []byte) {
	c.t.Helper()
	_, err := c.Write(b)
	c.must(err)
}

func (c *client) send32(v uint32) {
	c.t.Helper()
	c.send(binary.BigEndian.AppendUint32(nil, v))
}

func (c *client) take(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	_, err := io.ReadFull(c.Conn, b)
	c.must(err)
	return b
}

func (c *client) expect(want []byte) {
	c.t.Helper()
	if got := c.take(len(want)); !bytes.Equal(got, want) {
		c.t.Fatalf("expected\n%x, found\n%x", want, got)
	}
}

// expectEnd wants the server to hang up, and not to say more.
func (c *client) expectEnd() {
	c.t.Helper()
	if b, err := io.ReadAll(c.Conn); len(b) > 0 || err != nil {
		c.t.Fatalf("expected the end, found %x, %v", b, err)
	}
}

func optionHead(o option, length uint32) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	return binary.BigEndian.AppendUint32(b, length)
}

func (c *client) option(o option, data []byte) {
	c.t.Helper()
	c.send(append(optionHead(o, uint32(len(data))), data...))
}

// reply reads one reply to an option and gives its data.
func (c *client) reply(o option, kind optionReply) []byte {
	c.t.Helper()
	head := c.take(optionReplySize)
	length := binary.BigEndian.Uint32(head[16:])
	if want := appendOptionReply(nil, o, kind, int(length)); !bytes.Equal(head, want) {
		c.t.Fatalf("option %d: expected reply %#x, found %x", o, kind, head)
	}
	if length > maxName+100 {
		c.t.Fatalf("option %d: expected a short reply, found %d bytes", o, length)
	}
	return c.take(int(length))
}

func text(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

func infoData(name string, asked ...uint16) []byte {
	b := binary.BigEndian.AppendUint16(text(name), uint16(len(asked)))
	for _, kind := range asked {
		b = binary.BigEndian.AppendUint16(b, kind)
	}
	return b
}

func queries(name string, list ...string) []byte {
	b := binary.BigEndian.AppendUint32(text(name), uint32(len(list)))
	for _, q := range list {
		b = append(b, text(q)...)
	}
	return b
}

func rawRequest(r request) []byte {
	b := binary.BigEndian.AppendUint32(nil, magicRequest)
	b = binary.BigEndian.AppendUint16(b, r.flags)
	b = binary.BigEndian.AppendUint16(b, uint16(r.cmd))
	b = binary.BigEndian.AppendUint64(b, r.handle)
	b = binary.BigEndian.AppendUint64(b, r.offset)
	return binary.BigEndian.AppendUint32(b, r.length)
}

func (c *client) ask(r request) {
	c.t.Helper()
	c.send(rawRequest(r))
}

// simple reads the header of a simple reply.
func (c *client) simple() (handle uint64, errno Errno) {
	c.t.Helper()
	b := c.take(simpleSize)
	if magic := binary.BigEndian.Uint32(b); magic != magicSimple {
		c.t.Fatalf("expected a simple reply, found %x", b)
	}
	return binary.BigEndian.Uint64(b[8:]), Errno(binary.BigEndian.Uint32(b[4:]))
}

// chunk is one chunk of a structured reply.
type chunk struct {
	flags, kind uint16
	handle      uint64
	payload     []byte
}

func (c *client) chunk() chunk {
	c.t.Helper()
	b := c.take(chunkSize)
	if magic := binary.BigEndian.Uint32(b); magic != magicStructured {
		c.t.Fatalf("expected a chunk, found %x", b)
	}
	return chunk{
		binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[8:]),
		c.take(int(binary.BigEndian.Uint32(b[16:]))),
	}
}

// outcome is what a structured reply to a read came to.
type outcome struct {
	data    []byte // up to the first byte that did not come
	chunks  int    // with data
	errno   Errno
	at      int64 // of the error, or -1
	message string
}

// structured reads chunks until the reply to r has ended.
func (c *client) structured(r request) (o outcome) {
	c.t.Helper()
	o.at = -1
	for {
		k := c.chunk()
		if k.handle != r.handle {
			c.t.Fatalf("expected a reply to %d, found one to %d", r.handle, k.handle)
		}
		switch k.kind {
		case chunkNone:
		case chunkData:
			if at := binary.BigEndian.Uint64(k.payload); at != r.offset+uint64(len(o.data)) {
				c.t.Fatalf("expected data at %d, found it at %d", r.offset+uint64(len(o.data)), at)
			}
			o.chunks++
			o.data = append(o.data, k.payload[8:]...)
		case chunkError, chunkErrorOffset:
			o.errno = Errno(binary.BigEndian.Uint32(k.payload))
			length := int(binary.BigEndian.Uint16(k.payload[4:]))
			o.message = string(k.payload[6 : 6+length])
			if rest := k.payload[6+length:]; k.kind == chunkErrorOffset {
				o.at = int64(binary.BigEndian.Uint64(rest))
			} else if len(rest) > 0 {
				c.t.Fatalf("expected the end of an error, found %x", rest)
			}
		default:
			c.t.Fatalf("unexpected chunk of kind %d", k.kind)
		}
		if k.flags&chunkDone != 0 {
			return o
		}
	}
}

// status reads the outcome of a request without data.
func (c *client) status(structured bool, r request) Errno {
	c.t.Helper()
	if structured {
		return c.structured(r).errno
	}
	handle, errno := c.simple()
	if handle != r.handle {
		c.t.Fatalf("expected a reply to %d, found one to %d", r.handle, handle)
	}
	return errno
}

// read reads, and wants it to go well.
func (c *client) read(structured bool, off, n int) []byte {
	c.t.Helper()
	r := request{cmd: cmdRead, handle: uint64(off)<<1 | 1<<63, offset: uint64(off), length: uint32(n)}
	c.ask(r)
	if structured {
		o := c.structured(r)
		if o.errno != 0 {
			c.t.Fatalf("read of %d at %d: error %d: %s", n, off, o.errno, o.message)
		}
		return o.data
	}
	if errno := c.status(false, r); errno != 0 {
		c.t.Fatalf("read of %d at %d: error %d", n, off, errno)
	}
	return c.take(n)
}

// bye disconnects and waits for the end.
func (c *client) bye() {
	c.t.Helper()
	c.ask(request{cmd: cmdDisc})
	c.expectEnd()
	if why := <-c.over; why != Disconnected {
		c.t.Errorf("expected the session to end as agreed, found %d", why)
	}
	c.gone()
}

// gone wants everything given back.
func (c *client) gone() {
	c.t.Helper()
	<-c.ended
	if lent, open := c.pool.lent.Load(), c.exports.open.Load(); lent != 0 || open != 0 {
		c.t.Errorf("expected nothing left, found %d buffers and %d exports", lent, open)
	}
}
