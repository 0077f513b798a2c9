package userstream

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
)

// message is a request on its way.
type message struct {
	header
	payload  []byte // of a write
	data     []byte // of the response
	result   uint64
	answered chan struct{} // closed once
}

var errBroken = errors.New("the channel has answered what it was not asked")

// kernel is a channel as the driver gives it: a read ends where a header or a
// payload does, a response goes to the request of its number, and one that it
// was not asked breaks the channel.
type kernel struct {
	cut func(n int) int // how many of n bytes one call moves; nil: all

	mu         sync.Mutex
	change     sync.Cond
	queue      []*message
	seq        uint64
	part       []byte // what is left of the header or payload that is being read
	inPayload  bool
	unanswered map[uint64]*message
	head       []byte // of the response that is being written
	answering  *message
	gone       bool
	closed     bool
	broken     error
	readers    int
	writers    int
}

func newKernel(cut func(int) int) *kernel {
	k := &kernel{cut: cut, unanswered: map[uint64]*message{}}
	k.change.L = &k.mu
	return k
}

// submit asks; length is that of the payload of a write or of what is read.
func (k *kernel) submit(typ, sector, length uint64, payload []byte) *message {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := &message{header: header{k.seq, typ, rand.Uint64(), sector, length}, payload: payload, answered: make(chan struct{})}
	k.seq++
	k.queue = append(k.queue, m)
	k.change.Broadcast()
	return m
}

// remove takes the target away, as the kernel does once all has been answered.
func (k *kernel) remove() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gone = true
	k.change.Broadcast()
}

func (k *kernel) some(n int) int {
	if k.cut == nil {
		return n
	}
	return max(1, min(n, k.cut(n)))
}

func (k *kernel) Waiting() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.queue) > 0
}

func (k *kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		k.broken = errors.New("closed twice")
	}
	k.closed = true
	return nil
}

func (k *kernel) Read(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.readers++; k.readers > 1 {
		k.broken = errors.New("two readers at a time")
	}
	defer func() { k.readers-- }()
	for len(k.queue) == 0 {
		if k.gone {
			return 0, io.EOF
		}
		k.change.Wait()
	}
	m := k.queue[0]
	if len(k.part) == 0 {
		k.part = make([]byte, HeaderSize)
		m.put(k.part)
	}
	n := copy(b, k.part[:k.some(len(k.part))])
	if k.part = k.part[n:]; len(k.part) > 0 {
		return n, nil
	}
	if !k.inPayload && len(m.payload) > 0 {
		k.inPayload, k.part = true, m.payload
		return n, nil
	}
	k.inPayload = false
	k.unanswered[m.seq] = m
	k.queue = k.queue[1:]
	return n, nil
}

func (k *kernel) Write(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.writers++; k.writers > 1 {
		k.broken = errors.New("two writers at a time")
	}
	defer func() { k.writers-- }()
	switch {
	case k.gone:
		return 0, io.EOF
	case k.broken != nil:
		return 0, k.broken
	case k.answering != nil:
		return k.takePayload(b), nil
	}
	n := k.some(min(len(b), HeaderSize-len(k.head)))
	k.head = append(k.head, b[:n]...)
	if len(k.head) == HeaderSize {
		k.takeHeader(parseHeader(k.head))
		k.head = nil
		if k.answering != nil && n < len(b) {
			n += k.takePayload(b[n:])
		}
	}
	return n, nil
}

func (k *kernel) takeHeader(h header) {
	m := k.unanswered[h.seq]
	delete(k.unanswered, h.seq)
	switch {
	case m == nil:
		k.broken = fmt.Errorf("%w: %+v", errBroken, h)
	case h.typ == resultSuccess && m.typ == opRead && m.length > 0:
		k.answering, m.data = m, make([]byte, 0, m.length)
	default:
		m.result = h.typ
		close(m.answered)
	}
}

func (k *kernel) takePayload(b []byte) int {
	m := k.answering
	n := k.some(min(len(b), cap(m.data)-len(m.data)))
	m.data = append(m.data, b[:n]...)
	if len(m.data) == cap(m.data) {
		k.answering = nil
		close(m.answered)
	}
	return n
}
