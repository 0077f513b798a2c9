package dbus

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// The bus itself, as a service.
const (
	Bus     = "org.freedesktop.DBus"
	busPath = "/org/freedesktop/DBus"
)

// Errors that every service knows.
const (
	AccessDenied   = Bus + ".Error.AccessDenied"
	InvalidArgs    = Bus + ".Error.InvalidArgs"
	LimitsExceeded = Bus + ".Error.LimitsExceeded"
	UnknownMethod  = Bus + ".Error.UnknownMethod"
)

const (
	// writeWait is how long the bus may take to read what is sent.
	writeWait = 10 * time.Second
	// maxReason is how many bytes of an error are sent on.
	maxReason = 4 << 10
)

// ErrTaken: another process has the name.
var ErrTaken = errors.New("another process has this name on the bus")

// Error is the reply to a call that failed.
type Error struct{ Name, Text string }

func (e *Error) Error() string { return e.Name + ": " + e.Text }

// Conn is a connection. Its methods are safe for concurrent use.
type Conn struct {
	conn  net.Conn
	name  string
	queue *queue

	sending sync.Mutex
	serial  uint32

	mu      sync.Mutex
	waiting map[uint32]waiter
	err     error
}

// waiter waits for one reply. Nobody else than who was asked can give it.
type waiter struct {
	from  string
	reply chan *Message
}

// Dial connects to a bus and is given a unique name there.
func Dial(ctx context.Context, address string) (*Conn, error) {
	conn, err := connect(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("message bus: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	r := bufio.NewReader(conn)
	if err := authenticate(conn, r); err != nil {
		return nil, errors.Join(fmt.Errorf("message bus %s: %w", address, err), conn.Close())
	}
	c := &Conn{conn: conn, queue: newQueue(), waiting: map[uint32]waiter{}}
	go c.read(r)
	hello, err := c.Ask(ctx, "Hello")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("message bus %s: %w", address, err), c.Close())
	}
	c.name, _ = hello[0].(string)
	return c, nil
}

// Name is the connection's unique name.
func (c *Conn) Name() string { return c.name }

// Close hangs up. Incoming ends then.
func (c *Conn) Close() error { return c.conn.Close() }

// Incoming gives calls and signals, in their order, until the connection ends.
func (c *Conn) Incoming() <-chan *Message { return c.queue.out }

// Pending is how many messages wait for Incoming.
func (c *Conn) Pending() int { return c.queue.len() }

// Err is why the connection ended.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *Conn) read(r *bufio.Reader) {
	for {
		m, err := readMessage(r)
		if err != nil {
			c.end(fmt.Errorf("message bus: %w", err))
			return
		}
		switch m.Type {
		case MethodReturn, ErrorReply:
			c.deliver(m)
		case MethodCall, Signal:
			if m.Type == Signal && m.Sender != Bus {
				continue // nobody else was asked for any
			}
			if !c.queue.put(m) {
				_ = c.Fail(m, LimitsExceeded, "too many calls wait for their turn")
			}
		}
	}
}

func (c *Conn) end(err error) {
	_ = c.conn.Close()
	c.mu.Lock()
	c.err = err
	for _, w := range c.waiting {
		close(w.reply)
	}
	c.waiting = nil
	c.mu.Unlock()
	c.queue.close()
}

func (c *Conn) deliver(m *Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w, ok := c.waiting[m.ReplySerial]; ok && m.Sender == w.from {
		delete(c.waiting, m.ReplySerial)
		w.reply <- m
	}
}

// send writes a message. With reply it is registered as waiting for one.
func (c *Conn) send(m *Message, reply chan *Message, args ...any) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if c.serial++; c.serial == 0 {
		c.serial++
	}
	m.Serial = c.serial
	b, err := m.marshal(args)
	if err != nil {
		return err
	}
	if err := c.expect(m, reply); err != nil {
		return err
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeWait))
	if _, err = c.conn.Write(b); err != nil {
		_ = c.conn.Close() // half a message may have been sent
		return fmt.Errorf("message bus: %w", err)
	}
	return nil
}

func (c *Conn) expect(m *Message, reply chan *Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if reply != nil {
		c.waiting[m.Serial] = waiter{m.Destination, reply}
	}
	return nil
}

// Call calls a method and gives what it returns. to is the bus, or a unique name: an
// answer from anybody else is none. A reply that is an error is an *Error.
func (c *Conn) Call(ctx context.Context, to, path, iface, member string, args ...any) ([]any, error) {
	m := &Message{Type: MethodCall, Destination: to, Path: path, Interface: iface, Member: member}
	reply := make(chan *Message, 1)
	if err := c.send(m, reply, args...); err != nil {
		return nil, fmt.Errorf("%s: %w", member, err)
	}
	select {
	case r, ok := <-reply:
		if !ok {
			return nil, fmt.Errorf("%s: %w", member, c.Err())
		}
		return r.result(member)
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.waiting, m.Serial)
		c.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", member, ctx.Err())
	}
}

func (m *Message) result(member string) ([]any, error) {
	args, err := m.Args()
	if m.Type == ErrorReply {
		e := &Error{Name: m.ErrorName}
		if len(args) > 0 {
			e.Text, _ = args[0].(string)
		}
		return nil, fmt.Errorf("%s: %w", member, e)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", member, err)
	}
	return args, nil
}

// Ask calls a method of the bus itself, of which each returns a value or none.
func (c *Conn) Ask(ctx context.Context, member string, args ...any) ([]any, error) {
	got, err := c.Call(ctx, Bus, busPath, Bus, member, args...)
	if err == nil && len(got) == 0 {
		got = []any{nil}
	}
	return got, err
}

// Own takes a name on the bus, or fails with ErrTaken.
func (c *Conn) Own(ctx context.Context, name string) error {
	const doNotQueue, owner, already = uint32(4), uint32(1), uint32(4)
	got, err := c.Ask(ctx, "RequestName", name, doNotQueue)
	if err == nil && got[0] != owner && got[0] != already {
		err = fmt.Errorf("%w: %s", ErrTaken, name)
	}
	return err
}

// Disown gives the name back. Calls to it that come afterwards go to somebody else;
// those that came before are in the queue when it returns.
func (c *Conn) Disown(ctx context.Context, name string) error {
	_, err := c.Ask(ctx, "ReleaseName", name)
	return err
}

// Reply answers a call, if that is wanted.
func (c *Conn) Reply(m *Message, args ...any) error {
	if !m.WantsReply() {
		return nil
	}
	return c.send(&Message{Type: MethodReturn, Flags: noReplyExpected, ReplySerial: m.Serial, Destination: m.Sender}, nil, args...)
}

// Fail answers a call with an error, if an answer is wanted.
func (c *Conn) Fail(m *Message, name, text string) error {
	if !m.WantsReply() {
		return nil
	}
	text = text[:min(len(text), maxReason)]
	return c.send(&Message{Type: ErrorReply, Flags: noReplyExpected, ReplySerial: m.Serial, Destination: m.Sender, ErrorName: name}, nil, text)
}

// Emit sends a signal to all who asked the bus for it.
func (c *Conn) Emit(path, iface, member string, args ...any) error {
	return c.send(&Message{Type: Signal, Flags: noReplyExpected, Path: path, Interface: iface, Member: member}, nil, args...)
}
