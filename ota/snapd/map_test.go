package snapd

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"cowbird/ota/gate"

	"golang.org/x/sys/unix"
)

// Snapshots are served before there is a socket; it comes later, and clients find
// all of them on it. Its path stays when the daemon goes, for it is not ours.
func TestMapThenSocket(t *testing.T) {
	l := newLab(t, nil)
	one, oneCow, _ := l.images("one")
	two, twoCow, _ := l.images("two")
	l.end()
	socket, err := gate.Listen(l.cfg.Socket, NoGroup)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	arrives := make(chan *gate.Listener)
	l.cfg.Later = func(ctx context.Context) *gate.Listener {
		select {
		case got := <-arrives:
			return got
		case <-ctx.Done():
			return nil
		}
	}
	server, err := Listen(l.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Map([]Snapshot{{"one", oneCow, one, one}, {"two", twoCow, two, two}}); err != nil {
		t.Fatal(err)
	}
	if l.carrier.device("one") == nil || l.carrier.device("two") == nil {
		t.Fatal("expected two devices")
	}
	l.serve(server)
	arrives <- socket
	w := l.dial()
	w.expect("cowbird,list", "success,8\none\ntwo\n")
	l.end()
}

func (l *lab) serve(server *Server) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	l.server, l.stop, l.ended = server, cancel, ended
	go func() {
		defer close(ended)
		server.Serve(ctx)
	}()
}

// A daemon that waits for its socket ends as any other does.
func TestEndBeforeSocket(t *testing.T) {
	l := newLab(t, nil)
	base, cowPath, _ := l.images("one")
	l.end()
	l.cfg.Later = func(ctx context.Context) *gate.Listener { <-ctx.Done(); return nil }
	server, err := Listen(l.cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = server.Map([]Snapshot{{"one", cowPath, base, base}, {"bad", "/nosuch/cow", base, base}, {"one", cowPath, base, base}})
	if err == nil || !strings.Contains(err.Error(), "/nosuch/cow") || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("expected the errors of two snapshots, found %v", err)
	}
	l.serve(server)
	time.Sleep(10 * time.Millisecond)
	l.end()
	if d := l.carrier.device("one"); d == nil || !d.closed {
		t.Error("expected the device to be closed")
	}
}

// What no op changes is in the file of the base, and holding it counts as work; what has an
// op is not.
func TestHoldFile(t *testing.T) {
	l := newLab(t, nil)
	base, delta, target := l.images("sys")
	if err := l.server.Map([]Snapshot{{"sys", delta, base, base}}); err != nil {
		t.Fatal(err)
	}
	b := l.carrier.device("sys").backend.(*backend)
	held := 0
	for off := int64(0); off < b.Size(); off += 4096 {
		fd, at, ok := b.HoldFile(off, 4096)
		if !ok {
			continue
		}
		held++
		got := make([]byte, 4096)
		if n, err := unix.Pread(fd, got, at); n != 4096 || err != nil || !bytes.Equal(got, target[off:off+4096]) {
			t.Errorf("block at %d: expected the target's bytes, found others, %v", off, err)
		}
		if n := b.quiet.active.Load(); n != 1 {
			t.Errorf("expected one thing under way, found %d", n)
		}
		b.ReleaseFile()
	}
	if n := b.quiet.active.Load(); n != 0 || held == 0 || int64(held) == b.Size()/4096 {
		t.Errorf("expected some blocks to be held and none left, found %d of %d, and %d", held, b.Size()/4096, n)
	}
}
