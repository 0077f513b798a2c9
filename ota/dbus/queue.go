package dbus

import "sync"

const (
	// maxQueued bounds the calls that wait, of all senders.
	maxQueued = 256
	// maxOfOne is how many of these may be one sender's.
	maxOfOne = 8
)

// queue is what has come and is not taken. One sender cannot fill it, and none can make
// the others wait for their replies.
type queue struct {
	out chan *Message

	mu    sync.Mutex
	all   []*Message
	of    map[string]int
	ended bool
	some  chan struct{} // has a token when there is something to do
	gone  chan struct{}
}

func newQueue() *queue {
	q := &queue{out: make(chan *Message), of: map[string]int{}, some: make(chan struct{}, 1), gone: make(chan struct{})}
	go q.run()
	return q
}

// put takes a message in, unless there are too many. The bus's own are never refused.
func (q *queue) put(m *Message) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m.Sender != Bus && (len(q.all) >= maxQueued || q.of[m.Sender] >= maxOfOne) {
		return false
	}
	q.of[m.Sender]++
	q.all = append(q.all, m)
	q.wake()
	return true
}

func (q *queue) wake() {
	select {
	case q.some <- struct{}{}:
	default:
	}
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.ended {
		q.ended = true
		close(q.gone)
	}
}

// len counts also the message that run is handing over.
func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.all)
}

func (q *queue) run() {
	defer close(q.out)
	for {
		m := q.first()
		if m == nil {
			select {
			case <-q.some:
			case <-q.gone:
				return
			}
			continue
		}
		select {
		case q.out <- m:
			q.drop(m)
		case <-q.gone:
			return
		}
	}
}

func (q *queue) first() *Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.all) == 0 {
		return nil
	}
	return q.all[0]
}

func (q *queue) drop(m *Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all = q.all[1:]
	if q.of[m.Sender]--; q.of[m.Sender] <= 0 {
		delete(q.of, m.Sender)
	}
}
