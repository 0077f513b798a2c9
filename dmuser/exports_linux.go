package dmuser

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"cowbird/dmuser/nbd"
)

const (
	// DefaultClients is how many NBD clients may be connected at a time.
	DefaultClients = 16
	// clientWorkers bounds the requests of one client that are served at a
	// time, and so the buffers that it may hold back by not reading.
	clientWorkers = 4
)

// ErrTooManyClients: an NBD client was turned away.
var ErrTooManyClients = errors.New("too many NBD clients")

// Exports offers backends to NBD clients by name. Whoever listens for them hands
// their connections to Handle. Its methods are safe for concurrent use.
type Exports struct {
	most    int
	buffers *replyBuffers

	mu      sync.Mutex
	exports map[string]*export
	clients map[*exportClient]bool
	closed  bool
}

// export is one backend on offer.
type export struct {
	all     *Exports
	name    string
	backend Backend

	// What follows belongs to Exports.mu.
	gone  bool // no client may open it any more
	users map[*exportClient]bool
	idle  chan struct{} // closed when gone and without users
}

// exportClient is one connection.
type exportClient struct {
	conn    nbd.Conn
	who     string
	session *nbd.Session // belongs to Exports.mu
}

// NewExports makes an empty table for up to most clients at a time.
func NewExports(most int) *Exports {
	return &Exports{
		most: most, buffers: newReplyBuffers(buffers, nil),
		exports: map[string]*export{}, clients: map[*exportClient]bool{},
	}
}

// Handle serves the client on c, which it closes in the end, and returns at
// once. who names the client to people.
func (x *Exports) Handle(c nbd.Conn, who string) error {
	client := &exportClient{conn: c, who: who}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed || len(x.clients) >= x.most {
		_ = c.Close()
		return fmt.Errorf("%w: expected at most %d, found one more: %s", ErrTooManyClients, x.most, who)
	}
	x.clients[client] = true
	go x.serve(client)
	return nil
}

func (x *Exports) serve(c *exportClient) {
	a, err := nbd.Negotiate(c.conn, choice{x, c})
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil {
		_ = c.conn.Close()
		delete(x.clients, c)
		return
	}
	c.session = nbd.Start(c.conn, a.Export.Backend, x.buffers, nbd.Options{
		Structured: a.Structured, Allocation: a.Allocation, Workers: clientWorkers,
		Ended: func() { x.ended(c, a.Export) },
	})
	if e := x.exports[a.Export.Name]; x.closed || e == nil || !e.users[c] {
		c.session.Close() // taken away meanwhile
	}
}

func (x *Exports) ended(c *exportClient, e nbd.Export) {
	e.Release()
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.clients, c)
}

// Close ends all clients, and takes no more. It does not wait.
func (x *Exports) Close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = true
	for c := range x.clients {
		c.hangUp()
	}
}

func (c *exportClient) hangUp() {
	if c.session != nil {
		c.session.Close()
		return
	}
	_ = c.conn.Close()
}

// choice is the exports as one client sees them.
type choice struct {
	x *Exports
	c *exportClient
}

func (h choice) Names() []string {
	h.x.mu.Lock()
	defer h.x.mu.Unlock()
	return slices.Sorted(maps.Keys(h.x.exports))
}

func (h choice) Find(name string) (nbd.Export, error) {
	h.x.mu.Lock()
	defer h.x.mu.Unlock()
	e, err := h.x.find(name)
	if err != nil {
		return nbd.Export{}, err
	}
	return nbd.Export{Name: e.name, Backend: e.backend}, nil
}

func (h choice) Open(name string) (nbd.Export, error) {
	h.x.mu.Lock()
	defer h.x.mu.Unlock()
	e, err := h.x.find(name)
	if err != nil {
		return nbd.Export{}, err
	}
	e.users[h.c] = true
	return nbd.Export{Name: e.name, Backend: e.backend, Release: func() { e.leave(h.c) }}, nil
}

// find is called with mu held. The empty name stands for the only export.
func (x *Exports) find(name string) (*export, error) {
	e := x.exports[name]
	if name == "" && len(x.exports) == 1 {
		for _, e = range x.exports {
		}
	}
	if e == nil {
		return nil, fmt.Errorf("%w: expected one of %q, found %.100q", nbd.ErrUnknownExport, slices.Sorted(maps.Keys(x.exports)), name)
	}
	return e, nil
}

// add puts a backend on offer.
func (x *Exports) add(name string, b Backend) (*export, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.exports[name] != nil {
		return nil, fmt.Errorf("%w: NBD export %s exists already", ErrBusy, name)
	}
	e := &export{all: x, name: name, backend: b, users: map[*exportClient]bool{}, idle: make(chan struct{})}
	x.exports[name] = e
	return e, nil
}

func (e *export) leave(c *exportClient) {
	e.all.mu.Lock()
	defer e.all.mu.Unlock()
	delete(e.users, c)
	e.checkIdle()
}

// checkIdle is called with mu held.
func (e *export) checkIdle() {
	if !e.gone || len(e.users) > 0 {
		return
	}
	select {
	case <-e.idle:
	default:
		close(e.idle)
	}
}

// unused is closed when the export is gone and no client uses it.
func (e *export) unused() <-chan struct{} {
	e.all.mu.Lock()
	defer e.all.mu.Unlock()
	return e.idle
}

// withdraw takes the export off the table if nobody uses it.
func (e *export) withdraw() error {
	e.all.mu.Lock()
	defer e.all.mu.Unlock()
	if len(e.users) > 0 && !e.gone {
		return e.busy()
	}
	e.take()
	return nil
}

// offerAgain puts it back.
func (e *export) offerAgain() {
	e.all.mu.Lock()
	defer e.all.mu.Unlock()
	if e.all.exports[e.name] == nil {
		e.gone, e.idle = false, make(chan struct{})
		e.all.exports[e.name] = e
	}
}

// take is called with mu held.
func (e *export) take() {
	if e.all.exports[e.name] == e {
		delete(e.all.exports, e.name)
	}
	e.gone = true
	e.checkIdle()
}

// abort takes it away from whoever uses it, and reports ErrBusy if somebody does.
func (e *export) abort() (err error) {
	e.all.mu.Lock()
	defer e.all.mu.Unlock()
	if len(e.users) > 0 {
		err = e.busy()
	}
	e.take()
	for c := range e.users {
		c.hangUp()
	}
	return err
}

// busy is called with mu held.
func (e *export) busy() error {
	var who []string
	for c := range e.users {
		who = append(who, c.who)
	}
	slices.Sort(who)
	return fmt.Errorf("%w: NBD export %s, by %s", ErrBusy, e.name, strings.Join(who, ", "))
}

// Carrier makes devices as c does, and has their backends exported as well for as
// long as they exist. A client that reads counts as somebody who holds the device.
func (x *Exports) Carrier(c Carrier) Carrier { return exportingCarrier{c, x} }

type exportingCarrier struct {
	Carrier
	x *Exports
}

func (c exportingCarrier) Attach(ctx context.Context, name string, b Backend) (Device, error) {
	inner, err := c.Carrier.Attach(ctx, name, b)
	if err != nil {
		return nil, err
	}
	e, err := c.x.add(name, b)
	if err != nil {
		_ = inner.Abort()
		<-inner.Done()
		return nil, fmt.Errorf("attach %s: %w", name, err)
	}
	d := &exportedDevice{Device: inner, export: e, done: make(chan struct{})}
	go d.watch()
	return d, nil
}

// exportedDevice is a device whose backend is exported as well.
type exportedDevice struct {
	Device
	export *export
	done   chan struct{}
	op     sync.Mutex // held by Close, Abort and Leave
}

// watch ends the export when the device ends, for whatever reason.
func (d *exportedDevice) watch() {
	<-d.Device.Done()
	_ = d.export.abort()
	<-d.export.unused()
	close(d.done)
}

// Replaced is what the device says, if it can tell.
func (d *exportedDevice) Replaced() bool {
	r, ok := d.Device.(interface{ Replaced() bool })
	return ok && r.Replaced()
}

func (d *exportedDevice) Done() <-chan struct{} { return d.done }

func (d *exportedDevice) Close() error {
	d.op.Lock()
	defer d.op.Unlock()
	if err := d.export.withdraw(); err != nil {
		return err
	}
	if err := d.Device.Close(); err != nil {
		d.export.offerAgain()
		return err
	}
	<-d.done
	return nil
}

// Leave ends the export: its clients have connections to this process.
func (d *exportedDevice) Leave() (serving bool, err error) {
	d.op.Lock()
	defer d.op.Unlock()
	if serving, err = d.Device.Leave(); err == nil && !serving {
		_ = d.export.abort()
		<-d.export.unused()
	}
	return serving, err
}

func (d *exportedDevice) Abort() error {
	d.op.Lock()
	defer d.op.Unlock()
	return errors.Join(d.export.abort(), d.Device.Abort())
}
