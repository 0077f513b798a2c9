//go:build vmtest

package dm

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/vmtest"
)

// TestDmUserTable has device-mapper do all that it can, with a user target.
func TestDmUserTable(t *testing.T) {
	u := newUser(t, "table")
	v, err := u.Version()
	must(t, err)
	if v.Major != interfaceMajor || v.Minor < 40 {
		t.Errorf("expected a version from 4.40, found %v", v)
	}
	types, err := u.TargetTypes()
	must(t, err)
	if !slices.Contains(types, TargetType{"user", Version{1, 0, 0}}) {
		t.Errorf("expected a target user 1.0.0, found %v", types)
	}
	if mode := nodeMode(t, u.channel); mode != os.ModeDevice|os.ModeCharDevice|0o600 {
		t.Errorf("expected a character device of mode 0600, found %v", mode)
	}
	info, err := u.Info("table")
	must(t, err)
	if want := (Info{Name: "table", Dev: info.Dev, Open: 1, Targets: 1, Active: true}); info != want {
		t.Errorf("expected %+v, found %+v", want, info)
	}
	devices, err := u.List()
	must(t, err)
	if !slices.Contains(devices, Entry{"table", info.Dev}) {
		t.Errorf("expected the device table in the list, found %v", devices)
	}
	checkLines(t, u.Table, "table", u.table("table"))
	status := u.table("table")
	status[0].Args = "table 0 0"
	checkLines(t, u.Status, "table", status)
	u.open(0)
	x := u.open(0)
	status[0].Args = "table 2 0"
	checkLines(t, u.Status, "table", status)
	x.close()
	if _, err := u.Create("table", ""); !errors.Is(err, ErrExists) {
		t.Errorf("create once more: expected ErrExists, found %v", err)
	}
	if err := u.Remove("table"); !errors.Is(err, ErrBusy) {
		t.Errorf("remove while open: expected ErrBusy, found %v", err)
	}
	u.closeBlock()
	must(t, u.Remove("table"))
	if _, err := u.Info("table"); !errors.Is(err, ErrNotFound) {
		t.Errorf("info after removal: expected ErrNotFound, found %v", err)
	}
}

func checkLines(t *testing.T, ask func(string) ([]Target, error), name string, want []Target) {
	t.Helper()
	got, err := ask(name)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("expected %v, found %v (%v)", want, got, err)
	}
}

// A device goes with its last user, unless it is kept; one without a table has
// nothing to tell.
func TestDmUserRemoveLater(t *testing.T) {
	u := newUser(t, "later")
	must(t, u.RemoveLater("later"))
	must(t, u.Keep("later"))
	if info, err := u.Info("later"); err != nil || info.Leaving {
		t.Errorf("expected the device to stay, found %+v, %v", info, err)
	}
	must(t, u.RemoveLater("later"))
	if info, err := u.Info("later"); err != nil || !info.Leaving {
		t.Errorf("expected the device to be about to go, found %+v, %v", info, err)
	}
	u.closeBlock()
	vmtest.Eventually(t, "removal", func() bool { _, err := u.Info("later"); return errors.Is(err, ErrNotFound) })
	if err := u.Keep("later"); !errors.Is(err, ErrNotFound) {
		t.Errorf("expected ErrNotFound, found %v", err)
	}
	_, err := u.Create("later", "")
	must(t, err)
	if table, err := u.Table("later"); err != nil || len(table) != 0 {
		t.Errorf("expected no table, found %v, %v", table, err)
	}
	if _, err := u.TargetType("none"); !errors.Is(err, ErrNoTarget) {
		t.Errorf("expected ErrNoTarget, found %v", err)
	}
	if typ, err := u.TargetType("user"); err != nil || typ.Name != "user" {
		t.Errorf("expected the target user, found %v, %v", typ, err)
	}
}

// The node comes with the inactive table, and goes with it.
func TestDmUserInactive(t *testing.T) {
	u := newUser(t, "inactive")
	u.load("inactive2")
	checkLines(t, u.InactiveTable, "inactive", u.table("inactive2"))
	_, err := u.Clear("inactive")
	must(t, err)
	if err := exists(u.channel); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: expected no such file, found %v", u.channel, err)
	}
	u.channel = "/dev/dm-user/inactive"
	must(t, exists(u.channel))
}

func TestDmUserBadTables(t *testing.T) {
	u := newUser(t, "bad")
	for args, want := range map[string]error{
		"":                                  unix.EINVAL,
		"0 8":                               unix.EINVAL,
		"0 8 a b":                           unix.EINVAL,
		"0 8 bad":                           unix.ENOMEM, // in use
		"0 8 .":                             unix.EINVAL,
		"0 8 ..":                            unix.EINVAL,
		"0 8 a/b":                           unix.EINVAL,
		"0 8 a!b":                           unix.EINVAL,
		`0 8 a\ b`:                          unix.EINVAL,
		`0 8 a\\b`:                          unix.EINVAL,
		"0 8 " + strings.Repeat("long", 64): unix.EINVAL,
	} {
		_, err := u.Load("bad", []Target{{0, 8, "user", args}}, 0)
		if !errors.Is(err, ErrTable) || !errors.Is(err, want) {
			t.Errorf("%q: expected ErrTable and %v, found %v", args, want, err)
		}
	}
	if _, err := u.Load("none", u.table("x"), 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("expected ErrNotFound, found %v", err)
	}
}

// Requests and responses in pieces.
func TestDmUserPieces(t *testing.T) {
	u := newUser(t, "pieces")
	c := u.open(0)

	x := u.startRead(8192, 4096)
	h := slices.Concat(c.read(5, 5), c.read(1<<16, 35))
	if got, want := parseUser(h), (userRequest{0, opRead, parseUser(h).flags, 8, 8192}); got != want {
		t.Errorf("expected %+v, found %+v", want, got)
	}
	content := noise(8192, 4096)
	b := response(0, resultOK, content)
	for at := 0; at < len(b); {
		n := min(17, userHeader-at)
		if at >= userHeader {
			n = min(1500, len(b)-at)
		}
		x.pendingNow(t)
		c.write(b[at:at+n], n)
		at += n
	}
	x.wait(t, nil)
	if !bytes.Equal(x.b, content) {
		t.Error("read: expected the payload, found something else")
	}

	content = noise(12288, 0)
	x = u.startWrite(content, 512)
	h = c.read(1<<20, userHeader) // never header and payload at once
	if got, want := parseUser(h), (userRequest{1, opWrite, parseUser(h).flags, 1, 12288}); got != want {
		t.Errorf("expected %+v, found %+v", want, got)
	}
	payload := slices.Concat(c.read(100, 100), c.read(4096, 4096), c.read(1, 1), c.read(1<<20, 12288-4197))
	if !bytes.Equal(payload, content) {
		t.Error("write: expected the payload, found something else")
	}
	c.respond(1, resultOK, nil)
	x.wait(t, nil)
}

func (x *transfer) pendingNow(t *testing.T) {
	t.Helper()
	select {
	case <-x.done:
		t.Fatalf("transfer: expected no end yet, found %v", x.err)
	default:
	}
}

// A flush is an empty write; a read of nothing takes a request without a byte.
func TestDmUserFlush(t *testing.T) {
	u := newUser(t, "flush")
	c := u.open(0)
	x := u.start(func(fd int, _ []byte, _ int64) (int, error) { return 0, unix.Fsync(fd) }, nil, 0)
	c.read(0, 0)
	if r := c.request(); r.op != opWrite || r.length != 0 || r.sector != 0 || r.flags&reqPreflush == 0 {
		t.Errorf("expected an empty write with preflush, found %+v", r)
	}
	c.respond(0, resultOK, nil)
	x.wait(t, nil)
}

// A response is not longer than its request makes it.
func TestDmUserExcess(t *testing.T) {
	u := newUser(t, "excess")
	c := u.open(0)
	x := u.startRead(4096, 0)
	c.write(response(c.request().seq, resultOK, make([]byte, 4200)), userHeader+4096)
	x.wait(t, nil)
	x = u.startRead(4096, 0)
	c.write(response(c.request().seq, resultError, make([]byte, 4096)), userHeader)
	x.wait(t, unix.EIO)
}

// Requests go to any of the channels, and are answered there, in any order.
func TestDmUserChannels(t *testing.T) {
	u := newUser(t, "channels")
	a, b := u.open(0), u.open(0)
	var all []*transfer
	for i := range 6 {
		all = append(all, u.startRead(4096, int64(i)*4096))
		vmtest.Eventually(t, "a request in the queue", func() bool { return u.queued() == 1+i })
	}
	var requests []userRequest
	for i := range 6 {
		r := []*channel{a, b}[i%2].request()
		if r.seq != uint64(i) || r.sector != uint64(i)*8 {
			t.Fatalf("expected request %d of sector %d, found %+v", i, i*8, r)
		}
		requests = append(requests, r)
	}
	for _, i := range []int{4, 1, 0, 5, 3, 2} {
		all[i].pendingNow(t)
		[]*channel{a, b}[i%2].respond(requests[i].seq, resultOK, noise(4096, int64(i)*4096))
		all[i].wait(t, nil)
		if !bytes.Equal(all[i].b, noise(4096, int64(i)*4096)) {
			t.Errorf("request %d: expected its own payload, found another", i)
		}
	}
}

// queued is how many requests no channel has taken.
func (u *user) queued() (n int) {
	lines, err := u.Status(u.name)
	if err != nil || len(lines) != 1 {
		return -1
	}
	var channels int
	if _, err := fmt.Sscanf(lines[0].Args, filepath.Base(u.channel)+" %d %d", &channels, &n); err != nil {
		return -1
	}
	return n
}

// An answer to what was not asked on this channel ends writing there, not more.
func TestDmUserUnknownSeq(t *testing.T) {
	u := newUser(t, "seq")
	a, b := u.open(0), u.open(0)
	x := u.startRead(4096, 0)
	r := a.request()
	b.write(response(r.seq, resultOK, nil), userHeader)
	if _, err := unix.Write(b.fd, response(r.seq, resultOK, nil)); err != unix.EINVAL {
		t.Errorf("write after an unknown seq: expected EINVAL, found %v", err)
	}
	x.pending(t)
	a.respond(r.seq, resultOK, make([]byte, 4096))
	x.wait(t, nil)

	a.write(response(r.seq, resultOK, nil), userHeader) // a second answer
	if _, err := unix.Write(a.fd, response(r.seq, resultOK, nil)); err != unix.EINVAL {
		t.Errorf("write after a second answer: expected EINVAL, found %v", err)
	}
	x = u.startRead(4096, 0)
	b.request() // can still be read
	b.close()
	x.wait(t, unix.EIO)
}

// A failing answer is EIO, of whatever kind it is, and makes the kernel say
// nothing alarming.
func TestDmUserErrors(t *testing.T) {
	log := vmtest.KernelLog(t)
	u := newUser(t, "errors")
	c := u.open(0)
	for _, result := range []uint64{1, 2, 3, 1 << 32, 1 << 63} {
		x := u.startRead(4096, 0)
		c.respond(c.request().seq, result, nil)
		x.wait(t, unix.EIO)
		x = u.startWrite(make([]byte, 4096), 0)
		r := c.request()
		c.read(4096, 4096)
		c.respond(r.seq, result, nil)
		x.wait(t, unix.EIO)
	}
	for _, line := range log.Lines(t) {
		if strings.Contains(line, "WARNING") || strings.Contains(line, "cut here") || strings.Contains(line, "Call Trace") {
			t.Errorf("kernel log: expected no warning, found %q", line)
		}
	}
}

// A bad pointer fails the call and loses nothing.
func TestDmUserFault(t *testing.T) {
	u := newUser(t, "fault")
	c := u.open(0)
	none := page(t, 4096)
	must(t, unix.Mprotect(none, unix.PROT_NONE))
	x := u.startRead(4096, 0)
	if _, err := unix.Read(c.fd, none); err != unix.EFAULT {
		t.Errorf("read: expected EFAULT, found %v", err)
	}
	r := c.request()
	if _, err := unix.Write(c.fd, none); err != unix.EFAULT {
		t.Errorf("write: expected EFAULT, found %v", err)
	}
	c.write(response(r.seq, resultOK, nil), userHeader)
	if _, err := unix.Write(c.fd, none); err != unix.EFAULT {
		t.Errorf("write of the payload: expected EFAULT, found %v", err)
	}
	c.write(noise(4096, 0), 4096)
	x.wait(t, nil)
	if !bytes.Equal(x.b, noise(4096, 0)) {
		t.Error("expected the payload, found something else")
	}
}

// When the target goes, channels have no more to give, whoever waits there.
func TestDmUserRemoval(t *testing.T) {
	u := newUser(t, "removal")
	c, idle := u.open(0), u.open(unix.O_NONBLOCK)
	var ended [2]chan error
	for i := range ended {
		ended[i] = make(chan error, 1)
		go func() { // the second waits for the first
			_, err := unix.Read(c.fd, make([]byte, userHeader))
			ended[i] <- err
		}()
	}
	time.Sleep(100 * time.Millisecond)
	u.closeBlock()
	must(t, u.Remove("removal"))
	for i := range ended {
		wantEnd(t, ended[i])
	}
	c.wantErrors("after removal", unix.ENOTBLK, unix.ENOTBLK)
	idle.wantErrors("after removal, nonblocking", unix.ENOTBLK, unix.ENOTBLK)
	if got := idle.poll(0); got&(unix.POLLHUP|unix.POLLIN) != unix.POLLHUP|unix.POLLIN {
		t.Errorf("poll after removal: expected POLLHUP and POLLIN, found %#x", got)
	}
	if _, err := unix.Open(u.channel, unix.O_RDWR, 0); err != unix.ENOENT {
		t.Errorf("open after removal: expected ENOENT, found %v", err)
	}
}

func (c *channel) poll(patience time.Duration) int16 {
	c.t.Helper()
	p := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN | unix.POLLOUT}}
	for {
		_, err := unix.Poll(p, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		must(c.t, err)
		return p[0].Revents
	}
}

// Requests wait for the first daemon, but not for ever.
func TestDmUserTimeout(t *testing.T) {
	setTimeout(t, 300*time.Millisecond)
	log := vmtest.KernelLog(t)
	u := newUser(t, "timeout")
	for range 2 {
		began := time.Now()
		u.startRead(4096, 0).wait(t, unix.EIO)
		if d := time.Since(began); d < 250*time.Millisecond || d > 10*time.Second {
			t.Errorf("expected an error after 0.3 s, found it after %v", d)
		}
	}
	if !strings.Contains(strings.Join(log.Lines(t), "\n"), "no user-space daemon for dm-user/timeout target") {
		t.Error("expected the kernel to tell of a missing daemon, found nothing")
	}
	setTimeout(t, time.Minute)
	x := u.startRead(4096, 0)
	x.pending(t)
	c := u.open(0)
	c.respond(c.request().seq, resultOK, noise(4096, 0))
	x.wait(t, nil)

	// With a daemon, there is no timeout.
	setTimeout(t, time.Millisecond)
	x = u.startRead(4096, 0)
	x.pending(t)
	c.respond(c.request().seq, resultOK, noise(4096, 0))
	x.wait(t, nil)
}

// A timeout that is running when its target goes does no harm to what comes.
func TestDmUserTimeoutAfterRemoval(t *testing.T) {
	setTimeout(t, 2*time.Second)
	for i := range 10 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			u := newUser(t, fmt.Sprintf("late%d", i))
			x := u.startRead(4096, 0)
			vmtest.Eventually(t, "a request in the queue", func() bool { return u.queued() == 1 })
			c := u.open(0)
			c.respond(c.request().seq, resultOK, make([]byte, 4096))
			x.wait(t, nil)
			c.close()
			u.closeBlock()
			must(t, u.Remove(u.name))
		})
	}
	time.Sleep(3 * time.Second)
}

// Without its last channel a device fails at once; with a new one it works.
func TestDmUserLastClose(t *testing.T) {
	setTimeout(t, time.Hour)
	u := newUser(t, "close")
	for range 3 {
		c := u.open(0)
		unread, unanswered, half := u.startRead(4096, 0), (*transfer)(nil), (*transfer)(nil)
		r := c.request()
		unanswered, unread = unread, u.startRead(4096, 4096)
		half = unread
		c.write(response(c.request().seq, resultOK, make([]byte, 100)), userHeader+100)
		partly := u.startRead(4096, 8192)
		c.read(5, 5)
		unread = u.startRead(4096, 12288)
		vmtest.Eventually(t, "a request in the queue", func() bool { return u.queued() == 1 })
		for _, x := range []*transfer{unanswered, half, partly, unread} {
			x.pendingNow(t)
		}
		c.close()
		for _, x := range []*transfer{unanswered, half, partly, unread} {
			x.wait(t, unix.EIO)
		}
		u.startRead(4096, 0).wait(t, unix.EIO)

		c = u.open(0)
		x := u.startRead(4096, 0)
		again := c.request()
		if again.seq <= r.seq {
			t.Errorf("expected seq to go on from %d, found %d", r.seq, again.seq)
		}
		c.respond(again.seq, resultOK, noise(4096, 0))
		x.wait(t, nil)
		c.close()
	}
}

// What another channel can still serve does not fail.
func TestDmUserOtherChannel(t *testing.T) {
	u := newUser(t, "other")
	a, b := u.open(0), u.open(0)
	held := u.startRead(4096, 0)
	a.request()
	queued := u.startRead(4096, 4096)
	vmtest.Eventually(t, "a request in the queue", func() bool { return u.queued() == 1 })
	a.close()
	held.wait(t, unix.EIO)
	queued.pending(t)
	b.respond(b.request().seq, resultOK, noise(4096, 4096))
	queued.wait(t, nil)
}

// A nonblocking channel is one for poll, and so for Go's own files.
func TestDmUserPoll(t *testing.T) {
	u := newUser(t, "poll")
	c := u.open(unix.O_NONBLOCK)
	if _, err := unix.Read(c.fd, make([]byte, userHeader)); err != unix.EAGAIN {
		t.Fatalf("idle: expected EAGAIN, found %v", err)
	}
	if got := c.poll(50 * time.Millisecond); got != unix.POLLOUT {
		t.Errorf("idle: expected POLLOUT, found %#x", got)
	}
	x := u.startWrite(noise(4096, 0), 0)
	vmtest.Eventually(t, "POLLIN", func() bool { return c.poll(0)&unix.POLLIN != 0 })
	r := c.request()
	if got := c.poll(0); got&unix.POLLIN == 0 {
		t.Errorf("payload to be read: expected POLLIN, found %#x", got)
	}
	c.read(1<<16, 4096)
	if got := c.poll(0); got != unix.POLLOUT {
		t.Errorf("idle again: expected POLLOUT, found %#x", got)
	}
	c.respond(r.seq, resultOK, nil)
	x.wait(t, nil)

	f := os.NewFile(uintptr(c.fd), "channel")
	c.fd = -1
	defer f.Close()
	must(t, f.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	b := make([]byte, userHeader)
	if _, err := f.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("idle: expected the deadline, found %v", err)
	}
	must(t, f.SetReadDeadline(time.Time{}))
	got := make(chan error, 1)
	go func() {
		_, err := f.Read(b)
		got <- err
	}()
	time.Sleep(50 * time.Millisecond)
	x = u.startRead(4096, 0)
	must(t, <-got)
	_, err := f.Write(response(parseUser(b).seq, resultOK, noise(4096, 0)))
	must(t, err)
	x.wait(t, nil)
}

// A signal ends a read that waits, or restarts it, as its handler wants.
func TestDmUserSignal(t *testing.T) {
	u := newUser(t, "signal")
	for _, sig := range []os.Signal{unix.SIGTERM, unix.SIGKILL} {
		cmd := exec.Command("dd", "if="+u.channel, "of=/dev/null", "bs=40")
		must(t, cmd.Start())
		vmtest.Eventually(t, "dd has the channel", func() bool {
			lines, err := u.Status(u.name)
			return err == nil && lines[0].Args == "signal 1 0"
		})
		time.Sleep(100 * time.Millisecond)
		must(t, cmd.Process.Signal(sig))
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-ended:
		case <-time.After(vmtest.Patience):
			t.Fatalf("%v: expected the end of dd, found none", sig)
		}
	}

	c := u.open(0)
	tid, got := make(chan int, 1), make(chan userRequest, 1)
	go func() {
		tid <- lockThread()
		b := make([]byte, userHeader)
		if n, err := unix.Read(c.fd, b); n != userHeader || err != nil {
			t.Errorf("read among signals: expected a header, found %d, %v", n, err)
		}
		got <- parseUser(b)
	}()
	reader := <-tid
	for range 100 {
		must(t, unix.Tgkill(os.Getpid(), reader, unix.SIGURG)) // the runtime's own, with SA_RESTART
		time.Sleep(time.Millisecond)
	}
	x := u.startRead(4096, 0)
	c.respond((<-got).seq, resultOK, make([]byte, 4096))
	x.wait(t, nil)
}

// Callers who share one file get each request once, and each answer arrives.
//
//vmtest:timeout 3m
func TestDmUserSharedFile(t *testing.T) {
	const readers, clients, each = 4, 4, 200
	u := newUser(t, "shared")
	c := u.open(0)
	var seen sync.Map
	var ends [readers]chan error
	for i := range readers {
		ends[i] = make(chan error, 1)
		go func() { ends[i] <- serveShared(c.fd, &seen) }()
	}
	var wg sync.WaitGroup
	for i := range clients {
		b := page(t, 8192)
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			for range each {
				off := rng.Int64N(int64(u.sectors)/16) * 8192
				if n, err := unix.Pread(u.fd, b, off); n != len(b) || err != nil || !bytes.Equal(b, noise(len(b), off)) {
					t.Errorf("read at %d: expected %d bytes of its noise, found %d, %v", off, len(b), n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	for seq := range uint64(clients * each) {
		if _, ok := seen.Load(seq); !ok {
			t.Fatalf("expected request %d, found it lost", seq)
		}
	}
	u.closeBlock()
	must(t, u.Remove("shared"))
	for i := range ends {
		wantEnd(t, ends[i])
	}
}

// serveShared answers reads, each with one write. A read gives a whole header.
func serveShared(fd int, seen *sync.Map) error {
	b := make([]byte, userHeader)
	for {
		n, err := unix.Read(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n != len(b) {
			return errors.Join(err, short(n, len(b), err))
		}
		r := parseUser(b)
		if _, twice := seen.LoadOrStore(r.seq, true); twice || r.op != opRead {
			return fmt.Errorf("expected a new read, found %+v, seen before: %v", r, twice)
		}
		resp := response(r.seq, resultOK, noise(int(r.length), int64(r.sector)*512))
		if n, err := unix.Write(fd, resp); err != nil || n != len(resp) {
			return errors.Join(err, short(n, len(resp), err))
		}
	}
}

// A table is replaced under load: the new daemon has a channel before the old
// one ends, and nobody sees an error.
//
//vmtest:timeout 3m
func TestDmUserReplace(t *testing.T) {
	u := newUser(t, "replace")
	m := &memory{b: noise(int(u.sectors)*512, 0)}
	ended := u.daemon(m)
	var stop atomic.Bool
	var count atomic.Int64
	var wg sync.WaitGroup
	for i := range 3 {
		b := page(t, 16384)
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(2, uint64(i)))
			for !stop.Load() {
				off := rng.Int64N(int64(len(m.b)/len(b))) * int64(len(b))
				f, what := unix.Pread, "read"
				if i == 0 {
					f, what = unix.Pwrite, "write"
					copy(b, noise(len(b), off))
				}
				if n, err := f(u.fd, b, off); n != len(b) || err != nil || !bytes.Equal(b, noise(len(b), off)) {
					t.Errorf("%s at %d: expected %d bytes of its noise, found %d, %v", what, off, len(b), n, err)
					return
				}
				count.Add(1)
			}
		})
	}
	for i := range 10 {
		for c := count.Load(); count.Load() < c+20 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		u.load(fmt.Sprintf("replace%d", i))
		next := u.daemon(m)
		if _, err := u.Suspend("replace", SkipLockFS); err != nil {
			t.Fatal(err)
		}
		info, err := u.Info("replace")
		if must(t, err); !info.Suspended || !info.Inactive {
			t.Errorf("expected a suspended device with an inactive table, found %+v", info)
		}
		_, err = u.Resume("replace")
		must(t, err)
		wantEnd(t, ended)
		ended = next
	}
	stop.Store(true)
	wg.Wait()
	u.closeBlock()
	must(t, u.Remove("replace"))
	wantEnd(t, ended)
}

// A file system on a device whose daemon has several channels.
//
//vmtest:timeout 3m
func TestDmUserFileSystem(t *testing.T) {
	u := newUser(t, "fs")
	m := &memory{b: make([]byte, u.sectors*512)}
	for range 3 {
		u.daemon(m)
	}
	u.closeBlock()
	info, err := u.Info("fs")
	must(t, err)
	run(t, "mkfs.ext4", "-q", "-F", info.Node())
	dir := t.TempDir()
	must(t, unix.Mount(info.Node(), dir, "ext4", 0, ""))
	content := noise(3<<20, 77)
	err = os.WriteFile(filepath.Join(dir, "file"), content, 0o600)
	err = errors.Join(err, unix.Unmount(dir, 0))
	must(t, err)
	run(t, "e2fsck", "-fn", info.Node())
	must(t, unix.Mount(info.Node(), dir, "ext4", unix.MS_RDONLY, ""))
	got, err := os.ReadFile(filepath.Join(dir, "file"))
	err = errors.Join(err, unix.Unmount(dir, 0))
	must(t, err)
	if !bytes.Equal(got, content) {
		t.Error("expected the file as written, found another")
	}
}

func run(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

// Nothing holds the module when all has gone, even if a channel was open when
// its target went; then it can be unloaded, and loaded with a parameter.
//
//vmtest:timeout 3m
func TestDmUserModule(t *testing.T) {
	for i := range 20 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			u := newUser(t, fmt.Sprintf("module%d", i))
			a, b := u.open(0), u.open(0)
			x := u.startRead(4096, 0)
			a.respond(a.request().seq, resultOK, make([]byte, 4096))
			x.wait(t, nil)
			x = u.startRead(1<<20, 0)
			b.read(3, 3)
			b.close()
			x.wait(t, unix.EIO)
			u.closeBlock()
			must(t, u.Remove(u.name))
			if err := unix.DeleteModule("dm_user", unix.O_NONBLOCK); err != unix.EAGAIN {
				t.Errorf("unload with a channel open: expected EAGAIN, found %v", err)
			}
			a.wantErrors("after removal", unix.ENOTBLK, unix.ENOTBLK)
		})
	}
	must(t, unix.DeleteModule("dm_user", unix.O_NONBLOCK))
	vmtest.Load(t, vmtest.Module("dm-user"), "dm_user_daemon_timeout_msec=77")
	const file = "/sys/module/dm_user/parameters/dm_user_daemon_timeout_msec"
	if b, err := os.ReadFile(file); err != nil || string(b) != "77\n" {
		t.Errorf("expected the parameter 77, found %q (%v)", b, err)
	}
	must(t, os.WriteFile(file, []byte("4000"), 0)) // for the tests that share this guest
}

// Channels take no memory once they are closed. So few targets would have to
// lose much each to be noticed here.
//
//vmtest:timeout 3m
func TestDmUserMemory(t *testing.T) {
	const opens, loads = 20000, 200
	u := newUser(t, "memory")
	cycle := func(opens, loads int) {
		for range opens {
			u.open1()
		}
		for range loads {
			u.load("memory2")
			_, err := u.Clear("memory")
			must(t, err)
		}
		u.channel = "/dev/dm-user/memory"
	}
	cycle(1000, 20)
	before := unreclaimable(t)
	cycle(opens, loads)
	// A channel is more than 256 bytes: 5 MB, if they stayed.
	if grown := unreclaimable(t) - before; grown > 3<<10 {
		t.Errorf("expected no more than 3 MiB of kernel memory gone after %d opens and %d loads, found %d KiB", opens, loads, grown)
	}
}

func (u *user) open1() {
	fd, err := unix.Open(u.channel, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(u.t, err)
	unix.Close(fd)
}

// unreclaimable is how many KiB the kernel's own objects take.
func unreclaimable(t *testing.T) (kib int) {
	t.Helper()
	time.Sleep(time.Second) // for what RCU frees
	b, err := os.ReadFile("/proc/meminfo")
	must(t, err)
	_, rest, _ := strings.Cut(string(b), "SUnreclaim:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}
