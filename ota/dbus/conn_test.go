package dbus

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"cowbird/tools/fixture"
)

func TestSockets(t *testing.T) {
	for address, want := range map[string][]string{
		"unix:path=/run/x": {"/run/x"}, "unix:path=/a%20b,guid=1": {"/a b"}, "unix:abstract=/y;tcp:host=z;unix:path=/x": {"@/y", "/x"},
	} {
		if got, err := sockets(address); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: expected %q, found %q, %v", address, want, got, err)
		}
	}
	for _, address := range []string{"", "tcp:host=x", "unix:", "unix:path=%zz"} {
		if _, err := sockets(address); !errors.Is(err, ErrAddress) {
			t.Errorf("%q: expected ErrAddress, found %v", address, err)
		}
	}
}

func TestSystemBus(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "")
	if got := SystemBus(); got != "unix:path=/run/dbus/system_bus_socket" {
		t.Errorf("found %s", got)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/x")
	if got := SystemBus(); got != "unix:path=/x" {
		t.Errorf("found %s", got)
	}
}

func TestQueue(t *testing.T) {
	q := newQueue()
	defer q.close()
	put := func(sender string, n int) (taken int) {
		for range n {
			if q.put(&Message{Sender: sender}) {
				taken++
			}
		}
		return taken
	}
	if got := put(":1.1", 100); got != maxOfOne {
		t.Errorf("expected %d of one sender, found %d", maxOfOne, got)
	}
	for i := range 100 {
		put(fmt.Sprint(":2.", i), maxOfOne)
	}
	if got := q.len(); got != maxQueued {
		t.Errorf("expected %d in all, found %d", maxQueued, got)
	}
	if got := put(":3.1", 1); got != 0 {
		t.Error("expected the queue to be full")
	}
	if got := put(Bus, 3); got != 3 {
		t.Errorf("expected the bus not to be refused, found %d", got)
	}
	for range maxQueued + 3 {
		<-q.out
	}
	for q.len() > 0 {
		time.Sleep(time.Millisecond)
	}
	if got := put(":1.1", 100); got != maxOfOne || len(q.of) != 1 {
		t.Errorf("expected what was taken to be forgotten, found %d, %v", got, q.of)
	}
}

// fakeBus answers one client as told.
func fakeBus(t *testing.T, serve func(net.Conn, *bufio.Reader)) (address string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		serve(c, bufio.NewReader(c))
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return "unix:path=" + path
}

func hello(t *testing.T, c net.Conn, r *bufio.Reader) {
	for _, answer := range []string{"OK 0123\r\n", ""} {
		if _, err := r.ReadString('\n'); err != nil {
			t.Error(err)
		}
		fmt.Fprint(c, answer)
	}
	reply(t, c, r, Bus, ":1.7")
}

// reply answers the next call in the name of somebody.
func reply(t *testing.T, c net.Conn, r *bufio.Reader, sender string, args ...any) {
	m, err := readMessage(r)
	if err != nil {
		t.Error(err)
		return
	}
	b, err := (&Message{Type: MethodReturn, Serial: 1, ReplySerial: m.Serial, Sender: sender}).marshal(args)
	if err != nil {
		t.Error(err)
	}
	_, _ = c.Write(b)
}

// A reply counts only if it comes from who was asked.
func TestForgedReply(t *testing.T) {
	address := fakeBus(t, func(c net.Conn, r *bufio.Reader) {
		hello(t, c, r)
		reply(t, c, r, ":1.666", true)
		reply(t, c, r, Bus, true)
	})
	c, err := Dial(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if got, err := c.Ask(short, "NameHasOwner", "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("expected no reply, found %v, %v", got, err)
	}
	if got, err := c.Ask(t.Context(), "NameHasOwner", "x"); err != nil || got[0] != true {
		t.Errorf("expected the bus's, found %v, %v", got, err)
	}
}

func TestOddBuses(t *testing.T) {
	for name, serve := range map[string]func(net.Conn, *bufio.Reader){
		"rejects":  func(c net.Conn, r *bufio.Reader) { _, _ = r.ReadString('\n'); fmt.Fprint(c, "REJECTED EXTERNAL\r\n") },
		"hangs up": func(c net.Conn, r *bufio.Reader) { hello(t, c, r) },
		"babbles": func(c net.Conn, r *bufio.Reader) {
			fmt.Fprint(c, "OK 1\r\n", strings.Repeat("x", 100))
			_, _ = r.ReadString('X')
		},
		"is silent":  func(c net.Conn, r *bufio.Reader) { _, _ = r.ReadString('X') },
		"never ends": func(c net.Conn, r *bufio.Reader) { fmt.Fprint(c, strings.Repeat("x", 1<<20)) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			c, err := Dial(ctx, fakeBus(t, serve))
			if err == nil {
				_, err = c.Ask(ctx, "GetId")
				_ = c.Close()
				for range c.Incoming() {
				}
			}
			if err == nil {
				t.Error("expected an error, found none")
			}
		})
	}
	if _, err := Dial(t.Context(), "unix:path=/nosuch"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("expected no socket, found %v", err)
	}
}

// realBus is a dbus-daemon of the test's own.
func realBus(t *testing.T) (address string) {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		fixture.Missing(t, "dbus-daemon is not installed (Debian: dbus-daemon): %v", err)
	}
	cmd := exec.Command(daemon, "--nofork", "--nopidfile", "--print-address", "--session", "--address=unix:path="+filepath.Join(t.TempDir(), "bus"))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func dial(t *testing.T, address string) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestRealBus(t *testing.T) {
	address := realBus(t)
	a, b := dial(t, address), dial(t, address)
	const name = "org.cowbird.Test"
	if err := errors.Join(a.Own(t.Context(), name), a.Own(t.Context(), name)); err != nil {
		t.Fatal(err)
	}
	if err := b.Own(t.Context(), name); !errors.Is(err, ErrTaken) {
		t.Errorf("expected ErrTaken, found %v", err)
	}
	go func() {
		for m := range a.Incoming() {
			if args, err := m.Args(); m.Member == "Echo" && err == nil {
				_ = a.Reply(m, args...)
			} else if m.Type == MethodCall {
				_ = a.Fail(m, "org.cowbird.Test.Error", "no "+m.Member)
			}
		}
	}()
	if got, err := b.Call(t.Context(), a.Name(), "/", name, "Echo", "x", uint64(5)); err != nil || !reflect.DeepEqual(got, []any{"x", uint64(5)}) {
		t.Errorf("found %v, %v", got, err)
	}
	var e *Error
	if _, err := b.Call(t.Context(), a.Name(), "/", name, "Other"); !errors.As(err, &e) || e.Name != "org.cowbird.Test.Error" || e.Text != "no Other" {
		t.Errorf("found %v", err)
	}
	if err := a.Disown(t.Context(), name); err != nil {
		t.Error(err)
	}
	if err := b.Own(t.Context(), name); err != nil {
		t.Error(err)
	}
	_ = b.Close()
	for range b.Incoming() {
	}
	if _, err := b.Ask(t.Context(), "GetId"); err == nil || b.Err() == nil {
		t.Error("expected an error after Close")
	}
}

// What systemd's encoder makes of values, of all types, is what they were.
func TestTypesByBusctl(t *testing.T) {
	busctl, err := exec.LookPath("busctl")
	if err != nil {
		fixture.Missing(t, "busctl is not installed (Debian: systemd): %v", err)
	}
	address := realBus(t)
	c := dial(t, address)
	got := make(chan []any, 1)
	go func() {
		for m := range c.Incoming() {
			if m.Type == MethodCall {
				args, err := m.Args()
				if err != nil {
					t.Error(err)
				}
				got <- args
				_ = c.Reply(m, "thanks")
			}
		}
	}()
	args := strings.Fields("--timeout=5 --address=" + address + " -- call " + c.Name() + " / org.x Take ybnqiuxtdsogasa{sv}(ys)va(ix) " +
		"1 true -2 3 -4 5 -6 7 8.5 text /a/b a{sv} 2 x y 2 k s v l t 9 1 z v u 10 2 1 -2 3 -4")
	if out, err := exec.Command(busctl, args...).CombinedOutput(); err != nil || string(out) != "s \"thanks\"\n" {
		t.Fatalf("%v: %s", err, out)
	}
	want := []any{byte(1), true, int16(-2), uint16(3), int32(-4), uint32(5), int64(-6), uint64(7), 8.5, "text", ObjectPath("/a/b"), Signature("a{sv}"),
		[]any{"x", "y"}, []any{Entry{"k", Variant{"s", "v"}}, Entry{"l", Variant{"t", uint64(9)}}}, []any{byte(1), "z"}, Variant{"v", Variant{"u", uint32(10)}},
		[]any{[]any{int32(1), int64(-2)}, []any{int32(3), int64(-4)}}}
	if found := <-got; !reflect.DeepEqual(found, want) {
		t.Errorf("expected %v, found %v", want, found)
	}
}
