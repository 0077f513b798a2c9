package control

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	long := strings.Repeat("x", MaxMessage-len("start,"))
	for message, want := range map[string]struct {
		r   Request
		err error
	}{
		"query":                  {Request{"query", nil}, nil},
		"init,n,c,s,b":           {Request{"init", []string{"n", "c", "s", "b"}}, nil},
		"cowbird,list":           {Request{List, nil}, nil},
		"cowbird,merge,n,5":      {Request{MergeAt, []string{"n", "5"}}, nil},
		"create,n,8":             {Request{Create, []string{"n", "8"}}, nil},
		"start," + long:          {Request{Start, []string{long}}, nil},
		"start," + long + "x":    {err: ErrMessage},
		"":                       {err: ErrMessage},
		"init,n,c,s":             {err: ErrMessage},
		"init,n,c,s,b,more":      {err: ErrMessage},
		"start,":                 {err: ErrMessage},
		"query,n":                {err: ErrMessage},
		"bogus":                  {err: ErrCommand},
		"cowbird":                {err: ErrCommand},
		"cowbird,bogus":          {err: ErrCommand},
		"QUERY":                  {err: ErrCommand},
		"query\n":                {err: ErrCommand},
		"\x00\xff":               {err: ErrCommand},
		strings.Repeat(",", 512): {err: ErrCommand},
	} {
		r, err := Parse([]byte(message))
		if !errors.Is(err, want.err) || err == nil && (r.Command != want.r.Command || strings.Join(r.Args, ",") != strings.Join(want.r.Args, ",")) {
			t.Errorf("%.40q: expected %v, %v; found %v, %v", message, want.r, want.err, r, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("init,a,b,c,d"))
	f.Add([]byte("cowbird,status,x"))
	f.Fuzz(func(t *testing.T, message []byte) {
		r, err := Parse(message)
		if err != nil {
			return
		}
		if again, err := Format(r.Command, r.Args...); err != nil || again != string(message) {
			t.Errorf("%q: expected the same message back, found %q, %v", message, again, err)
		}
	})
}

func TestFormat(t *testing.T) {
	if m, err := Format(Init, "n", "c", "s", "b"); m != "init,n,c,s,b" || err != nil {
		t.Errorf("found %q, %v", m, err)
	}
	for _, args := range [][]string{{"a,b"}, {""}, {strings.Repeat("x", 510)}, {"a", "b"}} {
		if _, err := Format(Start, args...); !errors.Is(err, ErrMessage) {
			t.Errorf("%.40q: expected ErrMessage, found %v", args, err)
		}
	}
}

func TestStatusText(t *testing.T) {
	s := Status{
		Name: "system", State: StateMerging, Device: "/dev/loop1", Carrier: "fuse", Base: "/b=1", Cow: `/c\n`, Source: "/s", Size: 1 << 40,
		Percent: 12.5, MergedOps: 1, TotalOps: 8, OrderedOps: 3, BytesWritten: 4096, BytesTotal: 8192, SecondsLeft: 9, ReadErrors: 2, Rate: 5, Queued: true, Paused: true,
		Error: "two\nlines \\",
	}
	v := reflect.ValueOf(s)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("%s is not in this test", v.Type().Field(i).Name)
		}
	}
	got, err := ParseStatus(s.Text() + "later=unknown\n")
	if err != nil || got != s {
		t.Errorf("expected %+v, found %+v, %v", s, got, err)
	}
	for _, bad := range []string{"no equals sign\n", "size=x\n", "paused=perhaps\n"} {
		if _, err := ParseStatus(bad); !errors.Is(err, ErrReply) {
			t.Errorf("%q: expected ErrReply, found %v", bad, err)
		}
	}
}

// answerWith serves one connection on a new socket: for each request it sends
// the pieces of one reply, with a pause between them.
func answerWith(t *testing.T, replies ...[]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	go func() {
		conn, _, err := unix.Accept(fd)
		if err != nil {
			return
		}
		defer unix.Close(conn)
		buf := make([]byte, 1024)
		for _, pieces := range append([][]string{{Active}}, replies...) {
			if n, err := unix.Read(conn, buf); n <= 0 || err != nil {
				return
			}
			for _, p := range pieces {
				_, _ = unix.Write(conn, []byte(p))
				time.Sleep(5 * time.Millisecond)
			}
		}
	}()
	return path
}

func dial(t *testing.T, path string) (*Client, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	t.Cleanup(cancel)
	c, err := Dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, ctx
}

func TestFramesInPieces(t *testing.T) {
	big := strings.Repeat("name\n", 1000)
	c, ctx := dial(t, answerWith(t, []string{"succ", "ess,5000", "\n" + big[:100], big[100:]}, []string{"success,0\n"}))
	names, err := c.Names(ctx)
	if err != nil || len(names) != 1000 {
		t.Errorf("expected 1000 names, found %d, %v", len(names), err)
	}
	if names, err = c.Names(ctx); err != nil || len(names) != 0 {
		t.Errorf("expected none, found %v, %v", names, err)
	}
}

func TestRefusedWithReason(t *testing.T) {
	c, ctx := dial(t, answerWith(t, []string{Fail}, []string{"success,7\nbecause"}, []string{Fail}, []string{}))
	if err := c.Do(ctx, Start, "n"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "because") {
		t.Errorf("expected ErrRefused because, found %v", err)
	}
	if _, err := c.Names(ctx); !errors.Is(err, ErrRefused) { // and hangs up, as Android's daemon does
		t.Errorf("expected ErrRefused, found %v", err)
	}
}

func TestOddReplies(t *testing.T) {
	for _, reply := range []string{"what", "success,x\n", "success,99999999999\n", "success,-1\n"} {
		c, ctx := dial(t, answerWith(t, []string{reply}))
		if _, err := c.Names(ctx); err == nil {
			t.Errorf("%q: expected an error, found none", reply)
		}
	}
	c, ctx := dial(t, answerWith(t, []string{"success,many"}))
	if _, err := c.Init(ctx, "n", "c", "s", "b"); !errors.Is(err, ErrReply) {
		t.Errorf("expected ErrReply, found %v", err)
	}
}

// SNU-030: a client waits for the daemon and refuses one that is leaving.
func TestDial(t *testing.T) {
	path := filepath.Join(t.TempDir(), "late")
	late := answerWith(t)
	time.AfterFunc(100*time.Millisecond, func() { _ = os.Rename(late, path) })
	c, _ := dial(t, path)
	_ = c.Close()

	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(short, filepath.Join(t.TempDir(), "none")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("expected ENOENT, found %v", err)
	}
}

func TestDialPassive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, _ := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	go func() {
		conn, _, _ := unix.Accept(fd)
		_, _ = unix.Read(conn, make([]byte, 64))
		_, _ = unix.Write(conn, []byte(Passive))
	}()
	if _, err := Dial(t.Context(), path); !errors.Is(err, ErrPassive) {
		t.Errorf("expected ErrPassive, found %v", err)
	}
}

func TestContextInterrupts(t *testing.T) {
	c, _ := dial(t, answerWith(t, []string{}, []string{}))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := c.Do(ctx, Start, "n"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("expected DeadlineExceeded, found %v", err)
	}
}
