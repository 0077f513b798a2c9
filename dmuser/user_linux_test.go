package dmuser

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/dm"
)

// What is missing is said, with what to do about it.
func TestDmUserCarrierProbe(t *testing.T) {
	err := users.Probe()
	if err != nil && !errors.Is(err, ErrUnsupported) {
		t.Errorf("expected ErrUnsupported, found %v", err)
	}
	if errors.Is(err, unix.ENOENT) && !strings.Contains(err.Error(), "modprobe dm-mod") {
		t.Errorf("expected advice, found %v", err)
	}
	if errors.Is(err, dm.ErrNoTarget) && !strings.Contains(err.Error(), "modprobe dm-user") {
		t.Errorf("expected advice, found %v", err)
	}
	if _, attachErr := users.Attach(t.Context(), "probe", pattern(0)); !errors.Is(attachErr, ErrBadSize) {
		t.Errorf("expected ErrBadSize, found %v", attachErr)
	}
	if removed, err := users.Sweep(); len(removed) > 0 || err != nil {
		t.Errorf("expected nothing to sweep, found %q, %v", removed, err)
	}
	if err == nil {
		return
	}
	if _, attachErr := users.Attach(t.Context(), "probe", pattern(4096)); attachErr == nil {
		t.Error("expected an error, found none")
	}
}

func TestDmUserCarrierNames(t *testing.T) {
	long := strings.Repeat("x", 200)
	for given, want := range map[string]string{
		"system_a": "cowbird-system_a", "a:b=c@1.2+3": "cowbird-a:b=c@1.2+3",
		"a b": "cowbird-a_b-", "a/b": "cowbird-a_b-", `a\b!`: "cowbird-a_b_-", "": "cowbird--00000000", "ünï": "cowbird-_n_-",
		long: "cowbird-" + long[:110] + "-",
	} {
		got := userName(given)
		if len(got) > userNameLen || !strings.HasPrefix(got, want) || got != want && len(got) != len(want)+8 {
			t.Errorf("%q: expected %q or that and a checksum, found %q", given, want, got)
		}
	}
	if userName("a b") == userName("a/b") {
		t.Errorf("expected two names, found %q twice", userName("a b"))
	}
	first, second := miscName(long), miscName(long)
	if first == second || len(first) > 255 || !strings.Contains(first, self().String()) {
		t.Errorf("expected two names of this process, found %q and %q", first, second)
	}
}

func TestDmUserCarrierStatus(t *testing.T) {
	for status, want := range map[string]int{"x 0 3": 0, "x 2 0": 2, "": -1, "x": -1, "x y z": -1} {
		channels, ok := channelsOf(status)
		if ok != (want >= 0) || ok && channels != want {
			t.Errorf("%q: expected %d, found %d, %v", status, want, channels, ok)
		}
	}
}

func TestDmUserCarrierServed(t *testing.T) {
	const sockets = "0: 00000002 00000000 00000000 0002 01 11 @cowbird-dm-user:dm-7:1234abcd\n"
	one := func(typ, args string) []dm.Target { return []dm.Target{{Sectors: 8, Type: typ, Args: args}} }
	for _, c := range []struct {
		status []dm.Target
		dev    uint64
		err    error
		served bool
	}{
		{nil, 0xfc07, nil, false},
		{one("error", ""), 0xfc07, nil, false},
		{one("user", "x 1 0"), 0xfc01, nil, true},
		{one("user", "x 0 5"), 0xfc07, nil, false}, // the target knows better
		{one("user", ""), 0xfc07, nil, true},
		{one("user", ""), 0xfc00, nil, false},
		{one("user", ""), 0xfc77, nil, false},
		{one("user", ""), 0xfc00, unix.ENOENT, true}, // in doubt
	} {
		got := isServedTarget(c.status, dm.Info{Dev: c.dev}, func() (string, error) { return sockets, c.err })
		if got != c.served {
			t.Errorf("%v of device %x: expected served %v, found %v", c.status, c.dev, c.served, got)
		}
	}
}

func TestDmUserCarrierLock(t *testing.T) {
	unlock, err := lockUser(t.Context(), "cowbird-x")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockUser(ctx, "cowbird-x"); !errors.Is(err, ErrBusy) || !errors.Is(err, context.Canceled) {
		t.Errorf("expected ErrBusy, found %v", err)
	}
	other, err := lockUser(ctx, "cowbird-y")
	must(t, err)
	other()
	unlock()
	unlock, err = lockUser(ctx, "cowbird-x")
	must(t, err)
	unlock()
}

// Where nothing says how many channels are open, a server is known by its mark.
func TestDmUserCarrierMark(t *testing.T) {
	info := dm.Info{Dev: 0xfc07}
	marked := func() bool {
		table, err := os.ReadFile("/proc/net/unix")
		must(t, err)
		return strings.Contains(string(table), " "+userMarks(info))
	}
	if userMarks(info) != "@cowbird-dm-user:dm-7:" || marked() {
		t.Fatalf("expected no mark of dm-7, found %q, %v", userMarks(info), marked())
	}
	first, err := openMark(userMark(info, "cowbird-x-1"))
	must(t, err)
	second, err := openMark(userMark(info, "cowbird-x-2"))
	must(t, err)
	must(t, unix.Close(first))
	if !marked() {
		t.Error("expected a mark, found none")
	}
	must(t, unix.Close(second))
	if marked() {
		t.Error("expected no mark, found one")
	}
}

func TestDmUserCarrierChannelEnds(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	c := userChannel(pair[0])
	if c.Waiting() {
		t.Error("expected nothing waiting, found something")
	}
	_, err = unix.Write(pair[1], []byte("x"))
	must(t, err)
	if !c.Waiting() {
		t.Error("expected something waiting, found nothing")
	}
	if n, err := c.Read(make([]byte, 40)); n != 1 || err != nil {
		t.Errorf("expected a byte, found %d, %v", n, err)
	}
	must(t, unix.Close(pair[1]))
	if n, err := c.Read(make([]byte, 40)); n != 0 || err != io.EOF {
		t.Errorf("expected EOF, found %d, %v", n, err)
	}
	must(t, c.Close())
	if _, err := c.Write([]byte("x")); err != unix.EBADF {
		t.Errorf("expected EBADF, found %v", err)
	}
}
