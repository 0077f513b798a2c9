//go:build vmtest

package dm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/vmtest"
)

// What goes over a channel of the dm-user target.
const (
	opRead  = 0
	opWrite = 1

	reqPreflush = 0x400

	resultOK    = 0
	resultError = 1

	userHeader = 40
)

type userRequest struct{ seq, op, flags, sector, length uint64 }

func parseUser(b []byte) userRequest {
	u := binary.NativeEndian.Uint64
	return userRequest{u(b), u(b[8:]), u(b[16:]), u(b[24:]), u(b[32:])}
}

// response is a header, with what the driver has to ignore full of garbage, and
// a payload.
func response(seq, result uint64, payload []byte) []byte {
	b := make([]byte, userHeader, userHeader+len(payload))
	for i, v := range []uint64{seq, result, 0xdeadbeef, 1 << 60, 12345} {
		binary.NativeEndian.PutUint64(b[8*i:], v)
	}
	return append(b, payload...)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A user is a device with a table of one user target.
type user struct {
	*Control
	t       *testing.T
	name    string
	sectors uint64
	channel string // path of the node
	fd      int    // of the block device
}

// newUser makes a device. At the test's end it must go, and its node too.
func newUser(t *testing.T, name string) *user {
	t.Helper()
	c, err := Open()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	u := &user{Control: c, t: t, name: name, sectors: 16 << 11}
	_, err = c.Create(name, "")
	must(t, err)
	t.Cleanup(func() {
		vmtest.Eventually(t, "removal of "+name, func() bool {
			err := c.Remove(name)
			return err == nil || errors.Is(err, ErrNotFound)
		})
		if err := exists(u.channel); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: expected no such file after the removal, found %v", u.channel, err)
		}
	})
	u.load(name)
	info, err := c.Resume(name)
	must(t, err)
	u.openBlock(info.Node())
	return u
}

func exists(path string) error {
	_, err := os.Stat(path)
	return err
}

// load loads a table whose channel has a name, and waits for the node.
func (u *user) load(channel string) {
	u.t.Helper()
	_, err := u.Load(u.name, u.table(channel), 0)
	must(u.t, err)
	u.channel = "/dev/dm-user/" + channel
	ctx, cancel := context.WithTimeout(u.t.Context(), vmtest.Patience)
	defer cancel()
	must(u.t, WaitNode(ctx, u.channel))
}

func (u *user) table(channel string) []Target {
	return []Target{{0, u.sectors, "user", fmt.Sprintf("0 %d %s", u.sectors, channel)}}
}

func (u *user) openBlock(node string) {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(u.t.Context(), vmtest.Patience)
	defer cancel()
	must(u.t, WaitNode(ctx, node))
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	must(u.t, err)
	u.fd = fd
	u.t.Cleanup(u.closeBlock)
}

func (u *user) closeBlock() {
	if u.fd >= 0 {
		unix.Close(u.fd)
	}
	u.fd = -1
}

// open opens a channel.
func (u *user) open(flags int) *channel {
	u.t.Helper()
	fd, err := unix.Open(u.channel, unix.O_RDWR|unix.O_CLOEXEC|flags, 0)
	must(u.t, err)
	c := &channel{t: u.t, fd: fd}
	u.t.Cleanup(c.close)
	return c
}

// A channel is an open file of a target's node.
type channel struct {
	t  *testing.T
	fd int
}

func (c *channel) close() {
	if c.fd >= 0 {
		unix.Close(c.fd)
	}
	c.fd = -1
}

// read is one read of exactly n bytes into a buffer of room bytes.
func (c *channel) read(room, n int) []byte {
	c.t.Helper()
	b := make([]byte, room)
	got, err := unix.Read(c.fd, b)
	if err != nil || got != n {
		c.t.Fatalf("read of %d bytes: expected %d, found %d, %v", room, n, got, err)
	}
	return b[:n]
}

func (c *channel) request() userRequest {
	c.t.Helper()
	return parseUser(c.read(userHeader, userHeader))
}

// write is one write of which n bytes must be taken.
func (c *channel) write(b []byte, n int) {
	c.t.Helper()
	if got, err := unix.Write(c.fd, b); err != nil || got != n {
		c.t.Fatalf("write of %d bytes: expected %d, found %d, %v", len(b), n, got, err)
	}
}

func (c *channel) respond(seq, result uint64, payload []byte) {
	c.t.Helper()
	b := response(seq, result, payload)
	c.write(b, len(b))
}

func (c *channel) wantErrors(what string, read, write error) {
	c.t.Helper()
	for range 2 {
		if n, err := unix.Read(c.fd, make([]byte, userHeader)); err != read {
			c.t.Errorf("%s: read: expected %v, found %d, %v", what, read, n, err)
		}
		if n, err := unix.Write(c.fd, response(0, resultOK, nil)); err != write {
			c.t.Errorf("%s: write: expected %v, found %d, %v", what, write, n, err)
		}
	}
}

// A transfer is a read or write of the block device on its way.
type transfer struct {
	b    []byte
	err  error
	done chan struct{}
}

// page is aligned memory, for direct transfers.
func page(t *testing.T, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

func (u *user) start(f func(fd int, b []byte, off int64) (int, error), b []byte, off int64) *transfer {
	x := &transfer{b: b, done: make(chan struct{})}
	go func() {
		defer close(x.done)
		n, err := f(u.fd, b, off)
		if x.err = err; err == nil && n != len(b) {
			x.err = fmt.Errorf("expected %d bytes, found %d", len(b), n)
		}
	}()
	return x
}

func (u *user) startRead(n int, off int64) *transfer {
	return u.start(unix.Pread, page(u.t, n), off)
}

func (u *user) startWrite(content []byte, off int64) *transfer {
	b := page(u.t, len(content))
	copy(b, content)
	return u.start(unix.Pwrite, b, off)
}

func (x *transfer) wait(t *testing.T, want error) {
	t.Helper()
	select {
	case <-x.done:
		if x.err != want {
			t.Fatalf("transfer: expected %v, found %v", want, x.err)
		}
	case <-time.After(vmtest.Patience):
		t.Fatal("transfer: expected its end, found none")
	}
}

func (x *transfer) pending(t *testing.T) {
	t.Helper()
	select {
	case <-x.done:
		t.Fatalf("transfer: expected no end yet, found %v", x.err)
	case <-time.After(50 * time.Millisecond):
	}
}

// noise is content by its place.
func noise(n int, off int64) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.NativeEndian.PutUint64(b[i:], uint64(off+int64(i))*0x9e3779b97f4a7c15)
	}
	return b
}

// A memory is a disk for daemons.
type memory struct {
	mu sync.Mutex
	b  []byte
}

func (m *memory) at(sector, n uint64, f func(b []byte)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m.b[sector*512:][:n])
}

// serve is a daemon's loop on a channel. It ends with the error of a read.
func (m *memory) serve(fd int) error {
	h := make([]byte, userHeader)
	for {
		if n, err := unix.Read(fd, h); err != nil || n != len(h) {
			if err == unix.EINTR {
				continue
			}
			return errors.Join(err, short(n, len(h), err))
		}
		r := parseUser(h)
		var payload []byte
		if r.op == opWrite {
			payload = make([]byte, r.length)
			for at := 0; at < len(payload); {
				n, err := unix.Read(fd, payload[at:])
				if err != nil {
					return fmt.Errorf("payload: %w", err)
				}
				at += n
			}
			m.at(r.sector, r.length, func(b []byte) { copy(b, payload) })
			payload = nil
		} else if r.op == opRead {
			payload = make([]byte, r.length)
			m.at(r.sector, r.length, func(b []byte) { copy(payload, b) })
		}
		b := response(r.seq, resultOK, payload)
		if n, err := unix.Write(fd, b); err != nil || n != len(b) {
			return fmt.Errorf("response: %w", errors.Join(err, short(n, len(b), err)))
		}
	}
}

func short(n, want int, err error) error {
	if err != nil || n == want {
		return nil
	}
	return fmt.Errorf("expected %d bytes, found %d", want, n)
}

// daemon serves a channel until the target goes.
func (u *user) daemon(m *memory) (ended <-chan error) {
	c := u.open(0)
	end := make(chan error, 1)
	go func() { end <- m.serve(c.fd) }()
	return end
}

func wantEnd(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if !errors.Is(err, unix.ENOTBLK) {
			t.Errorf("end of a daemon: expected ENOTBLK, found %v", err)
		}
	case <-time.After(vmtest.Patience):
		t.Error("end of a daemon: expected ENOTBLK, found no end")
	}
}

// setTimeout sets how long requests wait for the first daemon.
func setTimeout(t *testing.T, d time.Duration) {
	t.Helper()
	const file = "/sys/module/dm_user/parameters/dm_user_daemon_timeout_msec"
	was, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, fmt.Append(nil, d.Milliseconds()), 0))
	t.Cleanup(func() { must(t, os.WriteFile(file, was, 0)) })
}

// lockThread has the goroutine stay on its thread, for the test's life.
func lockThread() (tid int) {
	runtime.LockOSThread()
	return unix.Gettid()
}

func nodeMode(t *testing.T, path string) os.FileMode {
	t.Helper()
	st, err := os.Stat(path)
	must(t, err)
	return st.Mode()
}
