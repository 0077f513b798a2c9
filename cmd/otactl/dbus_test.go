package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cowbird/ota/dbus"
	"cowbird/ota/gate"
	"cowbird/ota/update"
	"cowbird/tools/fixture"
)

// privateBus starts a message bus of the test's own, which everybody may use, and which
// starts the services of a folder.
func privateBus(t *testing.T) (address, services string) {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		fixture.Missing(t, "dbus-daemon is not installed (Debian: dbus-daemon): %v", err)
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	services = filepath.Join(dir, "services")
	config := fmt.Sprintf(`<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path=%s/bus</listen><servicedir>%s</servicedir><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/></policy></busconfig>`, dir, services)
	file := filepath.Join(dir, "bus.conf")
	if err := errors.Join(os.Mkdir(services, 0o755), os.WriteFile(file, []byte(config), 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(daemon, "--nofork", "--nopidfile", "--print-address", "--config-file="+file)
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
	return strings.TrimSpace(line), services
}

// fakeDevice is what a test makes of a device.
type fakeDevice struct {
	mu      sync.Mutex
	now     event
	err     error
	called  []string
	looks   int
	blocked chan struct{} // not nil: what is done waits for it
	during  func(progress func(done, total int64))
	hang    chan struct{} // not nil: looks wait for it
}

func (f *fakeDevice) look(context.Context) (event, *standing, error) {
	f.mu.Lock()
	hang := f.hang
	f.looks++
	f.mu.Unlock()
	if hang != nil {
		<-hang
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now, &standing{Slots: map[string]string{"_a": "successful", "_b": "not bootable"}}, f.err
}

func (f *fakeDevice) set(e event, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now, f.err = e, err
}

func (f *fakeDevice) calls() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.called, " ")
}

// do notes what is done, and waits if it is to take long.
func (f *fakeDevice) do(ctx context.Context, what string) error {
	f.mu.Lock()
	f.called = append(f.called, what)
	blocked, err := f.blocked, f.err
	f.mu.Unlock()
	if blocked == nil {
		return err
	}
	select {
	case <-blocked:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fakeDevice) install(ctx context.Context, source string, restart bool, progress func(done, total int64)) error {
	if f.during != nil {
		f.during(progress)
	}
	return f.do(ctx, fmt.Sprintf("install:%s:%v", filepath.Base(source), restart))
}
func (f *fakeDevice) cancel(ctx context.Context) error         { return f.do(ctx, "cancel") }
func (f *fakeDevice) merge(ctx context.Context) error          { return f.do(ctx, "merge") }
func (f *fakeDevice) rollback(ctx context.Context) error       { return f.do(ctx, "rollback") }
func (f *fakeDevice) markSuccessful(ctx context.Context) error { return f.do(ctx, "mark") }

// busSite is a service on a bus of its own.
type busSite struct {
	t       *testing.T
	address string
	device  *fakeDevice
	client  *dbus.Conn
	stop    func()
	ended   chan error
}

var quiet = slog.New(slog.DiscardHandler)

func newBusSite(t *testing.T, change func(*service)) *busSite {
	t.Helper()
	address, _ := privateBus(t)
	s := &busSite{t: t, address: address, device: &fakeDevice{now: event{State: "None", Slot: "_a", Next: "_a", Good: true, Free: 1 << 20}}, ended: make(chan error, 1)}
	conn := s.dial()
	out := &service{whole: &whole{remote: &remote{}}, conn: conn, device: s.device, group: gate.NoGroup, log: quiet}
	if change != nil {
		change(out)
	}
	if err := conn.Own(t.Context(), busName); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	gone := make(chan struct{})
	go func() { defer close(gone); s.ended <- out.run(ctx); conn.Close() }()
	t.Cleanup(func() { cancel(); <-gone })
	s.client = s.dial()
	return s
}

func (s *busSite) dial() *dbus.Conn {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := dbus.Dial(ctx, s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// owner is the service's unique name.
func (s *busSite) owner() string {
	s.t.Helper()
	got, err := s.client.Ask(s.t.Context(), "GetNameOwner", busName)
	if err != nil {
		s.t.Fatal(err)
	}
	return got[0].(string)
}

func (s *busSite) try(c *dbus.Conn, iface, member string, args ...any) ([]any, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	return c.Call(ctx, s.owner(), busObject, iface, member, args...)
}

func (s *busSite) call(member string, args ...any) {
	s.t.Helper()
	if _, err := s.try(s.client, busName, member, args...); err != nil {
		s.t.Fatal(err)
	}
}

func (s *busSite) refused(name string, member string, args ...any) {
	s.t.Helper()
	var e *dbus.Error
	if _, err := s.try(s.client, busName, member, args...); !errors.As(err, &e) || e.Name != name {
		s.t.Errorf("%s: expected %s, found %v", member, name, err)
	}
}

func (s *busSite) get(property string) any {
	s.t.Helper()
	got, err := s.try(s.client, propertiesInterface, "Get", busName, property)
	if err != nil {
		s.t.Fatal(err)
	}
	return got[0].(dbus.Variant).Value
}

var noOptions = map[string]dbus.Variant{}

func TestBusReads(t *testing.T) {
	s := newBusSite(t, nil)
	for name, want := range map[string]any{"State": "None", "Slot": "_a", "Successful": true, "Percent": 0.0, "SpaceFree": uint64(1 << 20), "Operation": "idle", "LastError": ""} {
		if got := s.get(name); got != want {
			t.Errorf("%s: expected %v, found %v", name, want, got)
		}
	}
	got, err := s.try(s.client, propertiesInterface, "GetAll", busName)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range got[0].([]any) {
		entry := e.(dbus.Entry)
		line := fmt.Sprintf("<property name=%q type=%q ", entry.Key, entry.Value.(dbus.Variant).Signature)
		if !strings.Contains(introspection, line) {
			t.Errorf("expected %s in the introspection", line)
		}
	}
	if n := strings.Count(introspection, "<property "); n != len(got[0].([]any)) {
		t.Errorf("expected %d properties, found %d", n, len(got[0].([]any)))
	}
	var e *dbus.Error
	for name, args := range map[string][]any{unknownProperty: {"Get", busName, "Nothing"}, readOnlyProperty: {"Set", busName, "State", dbus.Of("x")}, dbus.InvalidArgs: {"Get", busName}, dbus.UnknownMethod: {"Take"}} {
		if _, err := s.try(s.client, propertiesInterface, args[0].(string), args[1:]...); !errors.As(err, &e) || e.Name != name {
			t.Errorf("expected %s, found %v", name, err)
		}
	}
	s.device.set(event{}, errors.New("no super here"))
	time.Sleep(fresh)
	if _, err := s.try(s.client, propertiesInterface, "GetAll", busName); !errors.As(err, &e) || e.Name != errorFailed || !strings.Contains(e.Text, "no super here") {
		t.Errorf("expected what is wrong, found %v", err)
	}
}

// A look that takes long does not keep the service from answering.
func TestBusSlowLook(t *testing.T) {
	s := newBusSite(t, nil)
	s.get("State")
	hang := make(chan struct{})
	s.device.mu.Lock()
	s.device.hang = hang
	s.device.mu.Unlock()
	time.Sleep(fresh)
	began := time.Now()
	for range 3 {
		s.get("State")
	}
	if took := time.Since(began); took > 3*lookWait {
		t.Errorf("expected one call to wait %v, found %v for three", lookWait, took)
	}
	close(hang)
}

func TestBusChanges(t *testing.T) {
	s := newBusSite(t, nil)
	payload := filepath.Join(t.TempDir(), "ota.zip")
	if err := os.WriteFile(payload, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	block := make(chan struct{})
	s.device.blocked = block
	s.device.during = func(progress func(done, total int64)) { progress(100, 1000); progress(300, 1000) }
	s.call("Install", payload, map[string]dbus.Variant{"restart": dbus.Of(true)})
	for s.get("BytesDone") != uint64(300) {
		time.Sleep(10 * time.Millisecond)
	}
	if s.get("Operation") != jobInstall || s.get("Percent") != 30.0 {
		t.Errorf("expected an installation at 30 %%, found %v at %v", s.get("Operation"), s.get("Percent"))
	}
	s.refused(errorBusy, "Merge")
	s.refused(errorBusy, "Install", payload, noOptions)
	close(block)
	s.settle()
	s.call("Merge")
	s.settle()
	for _, m := range []string{"Rollback", "MarkSuccessful", "Cancel"} {
		s.call(m)
	}
	if want := "install:ota.zip:true merge rollback mark cancel"; s.device.calls() != want {
		t.Errorf("expected %s, found %s", want, s.device.calls())
	}
	for _, args := range [][]any{{"ota.zip", noOptions}, {"ftp://x/y", noOptions}, {"-", noOptions}, {payload, map[string]dbus.Variant{"unsigned": dbus.Of(true)}}, {payload, map[string]dbus.Variant{"restart": dbus.Of("yes")}}, {payload}, {}} {
		s.refused(dbus.InvalidArgs, "Install", args...)
	}
	s.device.set(event{State: "None"}, errors.New("two\nlines"))
	s.refused(errorFailed, "Rollback")
	s.device.set(event{State: "None"}, nil)
	time.Sleep(fresh)
	if s.get("LastError") != "two; lines" {
		t.Errorf("expected the error in one line, found %v", s.get("LastError"))
	}
	s.call("Install", t.TempDir(), noOptions)
	s.settle()
	if text, _ := s.get("LastError").(string); !strings.Contains(text, "regular file") {
		t.Errorf("expected a folder to be refused, found %q", text)
	}
}

// settle waits until nothing is done any more.
func (s *busSite) settle() {
	s.t.Helper()
	for s.get("Operation") != noJob {
		time.Sleep(10 * time.Millisecond)
	}
}

// An installation is cancelled and then removed; the call returns after that.
func TestBusCancel(t *testing.T) {
	s := newBusSite(t, nil)
	s.device.blocked = make(chan struct{})
	s.call("Install", "https://example.org/ota.zip", noOptions)
	for !strings.Contains(s.device.calls(), "install") {
		time.Sleep(time.Millisecond)
	}
	s.device.mu.Lock()
	close(s.device.blocked)
	s.device.blocked = make(chan struct{})
	s.device.mu.Unlock()
	s.settle()
	s.call("Install", "https://example.org/ota.zip", noOptions)
	cancelled := make(chan error)
	go func() { _, err := s.try(s.client, busName, "Cancel"); cancelled <- err }()
	for !strings.Contains(s.device.calls(), "cancel") {
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-cancelled:
		t.Errorf("expected it to wait for the end, found %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(s.device.blocked)
	if err := <-cancelled; err != nil {
		t.Error(err)
	}
}

// A client that follows is told of each change, and of the end of what is done.
func TestBusSignals(t *testing.T) {
	s := newBusSite(t, nil)
	monitor := startMonitor(t, s.address)
	monitor.ready(func() { s.call("MarkSuccessful") })
	s.call("Follow")
	s.device.set(event{State: "Unverified", Slot: "_a", Next: "_b", Reboot: true}, nil)
	s.call("Rollback")
	monitor.expect("PropertiesChanged", "Unverified")
	monitor.expect("Finished", "rollback")
	s.device.set(event{State: "Merging", Slot: "_b", Next: "_b", Written: 5, Total: 10, Percent: 50}, nil)
	monitor.expect("PropertiesChanged", "Merging") // without being asked
	s.call("Unfollow")
}

// monitor is gdbus, which prints the signals that it hears.
type monitor struct {
	t     *testing.T
	lines chan string
}

func startMonitor(t *testing.T, address string) *monitor {
	t.Helper()
	gdbus, err := exec.LookPath("gdbus")
	if err != nil {
		fixture.Missing(t, "gdbus is not installed (Debian: libglib2.0-bin): %v", err)
	}
	cmd := exec.Command(gdbus, "monitor", "--address", address, "--dest", busName)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	m := &monitor{t, make(chan string, 100)}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			m.lines <- s.Text()
		}
		close(m.lines)
	}()
	m.expect("is owned by")
	return m
}

// ready has something told until it is heard: the monitor says that it is there before
// it has asked the bus for signals.
func (m *monitor) ready(tell func()) {
	m.t.Helper()
	for range 100 {
		tell()
		select {
		case <-m.lines:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
	m.t.Fatal("expected a signal to be heard")
}

func (m *monitor) expect(words ...string) {
	m.t.Helper()
	var found []string
	for deadline := time.After(10 * time.Second); ; {
		select {
		case line, ok := <-m.lines:
			found = append(found, line)
			hit := ok
			for _, w := range words {
				hit = hit && strings.Contains(line, w)
			}
			if hit {
				return
			}
			if ok {
				continue
			}
		case <-deadline:
		}
		m.t.Fatalf("expected a line with %q, found %q", words, found)
	}
}

// GLib's and systemd's clients understand the service, which phones' interfaces use.
func TestBusClients(t *testing.T) {
	s := newBusSite(t, nil)
	for _, c := range []struct {
		program, debian, args string
		want                  []string
	}{
		{"gdbus", "libglib2.0-bin", "introspect --address " + s.address + " --dest " + busName + " --object-path " + busObject, []string{"Install(in  s source,", "readonly s State = 'None';", "readonly a{ss} Slots = {'_a': 'successful', '_b': 'not bootable'};", "Finished(s operation,"}},
		{"gdbus", "libglib2.0-bin", "introspect --recurse --only-properties --address " + s.address + " --dest " + busName + " --object-path /", []string{"node /org/cowbird/Update1", "readonly d Percent = 0.0;"}},
		{"gdbus", "libglib2.0-bin", "call --address " + s.address + " --dest " + busName + " --object-path " + busObject + " --method org.cowbird.Update1.MarkSuccessful", []string{"()"}},
		{"busctl", "systemd", "--address=" + s.address + " get-property " + busName + " " + busObject + " " + busName + " SpaceFree", []string{"t 1048576"}},
		{"busctl", "systemd", "--address=" + s.address + " tree " + busName, []string{busObject}},
		{"busctl", "systemd", "--address=" + s.address + " --xml introspect " + busName + " " + busObject, []string{"MarkSuccessful"}},
		{"dbus-send", "dbus-bin", "--bus=" + s.address + " --print-reply --dest=" + busName + " / org.freedesktop.DBus.Peer.Ping", []string{"method return"}},
	} {
		path, err := exec.LookPath(c.program)
		if err != nil {
			fixture.Missing(t, "%s is not installed (Debian: %s)", c.program, c.debian)
		}
		out, err := exec.Command(path, strings.Fields(c.args)...).CombinedOutput()
		for _, w := range c.want {
			if err != nil || !strings.Contains(string(out), w) {
				t.Errorf("%s %s: expected %q, found %v, %s", c.program, c.args, w, err, out)
			}
		}
	}
}

// The XML of the introspection is what its DTD says.
func TestBusIntrospection(t *testing.T) {
	xmllint, err := exec.LookPath("xmllint")
	if err != nil {
		fixture.Missing(t, "xmllint is not installed (Debian: libxml2-utils)")
	}
	cmd := exec.Command(xmllint, "--noout", "-")
	cmd.Stdin = strings.NewReader(introspection)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// The service ends when nobody wants anything, and not while somebody follows or
// something is done.
func TestBusIdle(t *testing.T) {
	s := newBusSite(t, func(s *service) { s.idle = 300 * time.Millisecond })
	follower := s.dial()
	if _, err := s.try(follower, busName, "Follow"); err != nil {
		t.Fatal(err)
	}
	s.here(2 * s.idleTime())
	s.device.blocked = make(chan struct{})
	s.call("Merge")
	_ = follower.Close()
	s.here(2 * s.idleTime())
	close(s.device.blocked)
	select {
	case err := <-s.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("expected the service to end")
	}
}

// A service that ends tells systemd before it gives its name back, and begins nothing
// that it has no time for.
func TestBusLeaving(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := newBusSite(t, func(s *service) { s.leaving = true })
	t.Setenv("NOTIFY_SOCKET", path)
	s.refused(errorBusy, "Follow")
	s.refused(errorBusy, "Merge")
	if s.get("State") != "None" {
		t.Error("expected an answer")
	}
	if err := notify("STOPPING=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, err := l.Read(b); err != nil || string(b[:n]) != "STOPPING=1" {
		t.Errorf("found %q, %v", b[:n], err)
	}
	t.Setenv("NOTIFY_SOCKET", path+".not")
	if err := notify("STOPPING=1"); err == nil {
		t.Error("expected an error")
	}
}

func (s *busSite) idleTime() time.Duration { return 300 * time.Millisecond }

// here expects the service to stay for a while.
func (s *busSite) here(d time.Duration) {
	s.t.Helper()
	select {
	case err := <-s.ended:
		s.t.Fatalf("expected the service to stay, found %v", err)
	case <-time.After(d):
	}
}

// asMain makes the test's program otactl, on a device without a device-mapper.
const asMain = "OTACTL_TEST_MAIN"

func init() {
	if os.Getenv(asMain) != "" {
		openMapper = func() (update.Mapper, func(), error) { return noMapper{}, func() {}, nil }
		main()
	}
}

// The bus starts the service for whoever calls, and again after it has ended.
func TestBusActivation(t *testing.T) {
	device := newDeviceSite(t)
	address, services := privateBus(t)
	file, err := os.ReadFile("../../tools/boot/dbus/org.cowbird.Update1.service")
	if err != nil {
		t.Fatal(err)
	}
	self := copyOfSelf(t, address)
	script := fmt.Sprintf("#!/bin/sh\n%s=1 exec %s \"$@\" --address \"$DBUS_STARTER_ADDRESS\" --idle 300ms --config %s --socket %s\n", asMain, self, device.path("update.json"), device.path("nobody"))
	device.must(os.WriteFile(self+".sh", []byte(script), 0o755))
	text := strings.Replace(string(file), "Exec=/usr/sbin/otactl", "Exec="+self+".sh", 1)
	device.must(os.WriteFile(filepath.Join(services, busName+".service"), []byte(text), 0o644))
	busctl, err := exec.LookPath("busctl")
	if err != nil {
		fixture.Missing(t, "busctl is not installed (Debian: systemd)")
	}
	client, err := dbus.Dial(t.Context(), address)
	device.must(err)
	defer client.Close()
	here := func() bool {
		got, err := client.Ask(t.Context(), "NameHasOwner", busName)
		return err == nil && got[0] == true
	}
	for range 2 {
		out, err := exec.Command(busctl, "--timeout=5", "--address="+address, "get-property", busName, busObject, busName, "State", "Slot", "Slots").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "s \"None\"\ns \"_a\"\n") {
			t.Fatalf("expected the device's state, found %v, %s", err, out)
		}
		for deadline := time.Now().Add(10 * time.Second); here(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("expected the service to end when nobody calls")
			}
		}
	}
	// Calls that race with the end are answered by one service or the next.
	for i := range 10 {
		time.Sleep(time.Duration(285+3*i) * time.Millisecond)
		if out, err := exec.Command(busctl, "--timeout=5", "--address="+address, "get-property", busName, busObject, busName, "State").CombinedOutput(); err != nil {
			t.Fatalf("call %d: %v, %s", i, err, out)
		}
	}
}

// Clients that send nonsense, too much, or from too many connections disturb no other.
func TestBusHostile(t *testing.T) {
	s := newBusSite(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	owner := s.owner()
	huge := strings.Repeat("x", 256<<10)
	var hostile sync.WaitGroup
	for i := range 8 {
		c := s.dial()
		hostile.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				time.Sleep(time.Millisecond) // the bus itself has to live
				switch (i + n) % 6 {
				case 0:
					_, _ = c.Call(ctx, owner, busObject, busName, "Install", huge, noOptions)
				case 1:
					_, _ = c.Call(ctx, owner, busObject, propertiesInterface, "Get", busName, huge[:8000])
				case 2:
					_, _ = c.Call(ctx, owner, "/"+huge[:10000], huge[:200], "X")
				case 3:
					_, _ = c.Call(ctx, owner, busObject, busName, "Follow")
				case 4: // many, and nobody waits for the answers
					short, done := context.WithTimeout(ctx, time.Microsecond)
					for range 50 {
						_, _ = c.Call(short, owner, busObject, propertiesInterface, "GetAll", busName)
					}
					done()
				case 5:
					_ = c.Emit(busObject, busName, "Finished", "merge", "")
				}
			}
		})
	}
	for range 20 {
		began := time.Now()
		if s.get("State") != "None" || time.Since(began) > 5*time.Second {
			t.Errorf("expected an answer in time, found %v", time.Since(began))
		}
	}
	cancel()
	hostile.Wait()
	if got := s.device.calls(); strings.Trim(got, " ") != "" {
		t.Errorf("expected nothing to be done, found %s", got)
	}
	if s.device.looks > 200 {
		t.Errorf("expected the device to be looked at a few times, found %d", s.device.looks)
	}
}

// One user cannot take all places of those who follow.
func TestBusFollowers(t *testing.T) {
	s := newBusSite(t, nil)
	var all []*dbus.Conn
	for i := range maxFollowersOfOne + 1 {
		c := s.dial()
		all = append(all, c)
		_, err := s.try(c, busName, "Follow")
		if (err == nil) != (i < maxFollowersOfOne) {
			t.Errorf("connection %d: found %v", i, err)
		}
	}
	_ = all[0].Close()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := s.try(all[maxFollowersOfOne], busName, "Follow")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("expected the place of one who has gone to be free, found %v", err)
		}
	}
}

// A service that is told to end has an installation end first.
func TestBusStop(t *testing.T) {
	s := newBusSite(t, nil)
	s.device.blocked = make(chan struct{})
	s.call("Install", "https://example.org/x", noOptions)
	s.stop()
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
}

// TestBusStranger runs again as another user, who may look and no more.
func TestBusStranger(t *testing.T) {
	if address := os.Getenv("OTACTL_TEST_BUS"); address != "" {
		os.Stdout.WriteString(asStranger(address))
		return
	}
	if os.Geteuid() != 0 {
		fixture.Missing(t, "needs root, to become somebody else")
	}
	s := newBusSite(t, func(s *service) { s.group = 4242 })
	for _, c := range []struct {
		who  syscall.Credential
		want string
	}{
		{syscall.Credential{Uid: 65534, Gid: 1234}, "None " + dbus.AccessDenied},
		{syscall.Credential{Uid: 65534, Gid: 1234, Groups: []uint32{7, 8}}, "None " + dbus.AccessDenied},
		{syscall.Credential{Uid: 65534, Gid: 4242}, "None ok"},
		{syscall.Credential{Uid: 65534, Gid: 1234, Groups: []uint32{7, 4242}}, "None ok"},
		{syscall.Credential{Uid: 0, Gid: 1234}, "None ok"},
	} {
		if got := runAs(t, c.who, s.address); got != c.want {
			t.Errorf("user %d, group %d, groups %d: expected %q, found %q", c.who.Uid, c.who.Gid, c.who.Groups, c.want, got)
		}
	}
}

// runAs runs the calling test in a process of another user.
func runAs(t *testing.T, who syscall.Credential, address string) string {
	t.Helper()
	cmd := exec.Command(copyOfSelf(t, address), "-test.run=^TestBusStranger$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "OTACTL_TEST_BUS="+address)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &who}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v: %s", err, errs.String())
	}
	said, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSuffix(said, "PASS")
}

// copyOfSelf puts the test's program beside the bus, where everybody can run it.
func copyOfSelf(t *testing.T, address string) string {
	t.Helper()
	socket, _, _ := strings.Cut(strings.TrimPrefix(address, "unix:path="), ",")
	copied := filepath.Join(filepath.Dir(socket), "self")
	if _, err := os.Stat(copied); err == nil {
		return copied
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(copied, self, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return copied
}

func asStranger(address string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := dbus.Dial(ctx, address)
	if err != nil {
		return err.Error()
	}
	owner, err := c.Ask(ctx, "GetNameOwner", busName)
	if err != nil {
		return err.Error()
	}
	name := owner[0].(string)
	state, err := c.Call(ctx, name, busObject, propertiesInterface, "Get", busName, "State")
	if err != nil {
		return err.Error()
	}
	said := state[0].(dbus.Variant).Value.(string) + " "
	for _, m := range []string{"Install", "Cancel", "Merge", "Rollback", "MarkSuccessful"} {
		var args []any
		if m == "Install" {
			args = []any{"https://example.org/x", noOptions}
		}
		_, err := c.Call(ctx, name, busObject, busName, m, args...)
		var e *dbus.Error
		switch {
		case errors.As(err, &e) && e.Name == errorBusy: // allowed, and too early
		case errors.As(err, &e):
			return said + e.Name
		case err != nil:
			return err.Error()
		}
	}
	return said + "ok\n"
}

// polkit decides about those who are not admitted anyhow.
func TestBusPolkit(t *testing.T) {
	if os.Geteuid() != 0 {
		fixture.Missing(t, "needs root, to become somebody else")
	}
	s := newBusSite(t, func(s *service) { s.polkit = true })
	authority := s.dial()
	if err := authority.Own(t.Context(), polkitName); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	verdict, asked := false, ""
	go func() {
		for m := range authority.Incoming() {
			args, err := m.Args()
			if m.Type != dbus.MethodCall || err != nil {
				continue
			}
			mu.Lock()
			asked = fmt.Sprint(args[1:3], m.Signature)
			_ = authority.Reply(m, dbus.Struct{verdict, false, map[string]string{}})
			mu.Unlock()
		}
	}()
	who := syscall.Credential{Uid: 65534, Gid: 1234}
	if got := runAs(t, who, s.address); got != "None "+dbus.AccessDenied {
		t.Errorf("expected polkit's no to count, found %q", got)
	}
	mu.Lock()
	if want := "[org.cowbird.Update1.change []](sa{sv})sa{ss}us"; asked != want {
		t.Errorf("expected polkit to be asked %q, found %q", want, asked)
	}
	verdict = true
	mu.Unlock()
	if got := runAs(t, who, s.address); got != "None ok" {
		t.Errorf("expected polkit's yes to count, found %q", got)
	}
	_ = authority.Close()
	if got := runAs(t, who, s.address); got != "None "+dbus.AccessDenied {
		t.Errorf("expected nobody's yes to count, found %q", got)
	}
}
