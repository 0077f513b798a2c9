package dmuser

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func rawRequest(op opcode, body []byte) []byte {
	h := inHeader{Len: uint32(inHeaderSize + len(body)), Opcode: op, Unique: 42, Nodeid: rootNode}
	return append(append([]byte(nil), bytesOf(&h)...), body...)
}

func TestParseRead(t *testing.T) {
	in := readIn{Offset: 1 << 40, Size: 1 << 20}
	r, err := parseRequest(rawRequest(opRead, bytesOf(&in)))
	must(t, err)
	if want := (request{op: opRead, unique: 42, offset: 1 << 40, size: 1 << 20}); r != want {
		t.Errorf("expected %+v, found %+v", want, r)
	}
}

func TestParseTruncated(t *testing.T) {
	in := readIn{Size: 4096}
	whole := rawRequest(opRead, bytesOf(&in))
	for n := range whole {
		cut := append([]byte(nil), whole[:n]...)
		if _, err := parseRequest(cut); !errors.Is(err, errMalformed) {
			t.Errorf("%d bytes: expected errMalformed, found %v", n, err)
		}
		if n >= 4 {
			binary.NativeEndian.PutUint32(cut, uint32(n))
		}
		if _, err := parseRequest(cut); !errors.Is(err, errMalformed) {
			t.Errorf("%d bytes of %d: expected errMalformed, found %v", n, n, err)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte{})
	f.Add(rawRequest(opInit, bytesOf(&initIn{Major: 7, Minor: 45, Flags: 1})))
	f.Add(rawRequest(opInit, make([]byte, 64)))
	f.Add(rawRequest(opRead, bytesOf(&readIn{Offset: 4096, Size: 4096})))
	f.Add(rawRequest(opRead, nil))
	f.Add(rawRequest(opGetattr, make([]byte, 16)))
	f.Add(rawRequest(opForget, make([]byte, 8)))
	f.Add(rawRequest(opcode(1<<32-1), make([]byte, 100)))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil {
			if !errors.Is(err, errMalformed) {
				t.Errorf("expected errMalformed, found %v", err)
			}
			return
		}
		if len(b) < inHeaderSize || binary.NativeEndian.Uint32(b) != uint32(len(b)) {
			t.Errorf("%d bytes were taken for a whole request", len(b))
		}
		if r.unique != binary.NativeEndian.Uint64(b[8:]) {
			t.Errorf("expected unique %x, found %x", b[8:16], r.unique)
		}
		if r.op == opRead && len(b) < inHeaderSize+40 {
			t.Errorf("%d bytes were taken for a READ", len(b))
		}
	})
}

func TestLabel(t *testing.T) {
	o := owner{pid: 4194304, start: 1<<64 - 1}
	for given, want := range map[string]string{
		"system_a": "system_a", "": "", "a:b c\n": "a:b_c_", "ünï": "_n_", strings.Repeat("x", 100): strings.Repeat("x", 26),
	} {
		l := label(given, o)
		if len(l) >= unix.LO_NAME_SIZE {
			t.Errorf("%q: expected less than %d bytes, found %d", given, unix.LO_NAME_SIZE, len(l))
		}
		name, got, ok := parseLabel(l)
		if name != want || got != o || !ok {
			t.Errorf("%q: expected %q of %v, found %q of %v, %v", given, want, o, name, got, ok)
		}
	}
	for _, bad := range []string{"", "cowbird:", "cowbird:x", "cowbird:x:1", "cowbird:x:0.1", "cowbird:x:-1.1", "cowbird:x:1.y", "/x:1.1"} {
		if _, _, ok := parseLabel(bad); ok {
			t.Errorf("%q was taken for a label", bad)
		}
	}
}

func TestOwnerAlive(t *testing.T) {
	me := self()
	if me.start == 0 || !me.alive() {
		t.Errorf("expected this process %v to be alive", me)
	}
	if (owner{pid: me.pid, start: me.start + 1}).alive() {
		t.Error("expected a process with another start time to be dead")
	}
	if (owner{pid: 1<<31 - 2, start: 1}).alive() {
		t.Error("expected an impossible process to be dead")
	}
}

func TestMountPoints(t *testing.T) {
	const table = "22 27 0:21 / /proc rw - proc proc rw\n40 27 7:3 / /mnt/a ro - ext4 /dev/loop3 ro\n41 27 7:30 / /mnt/b ro - ext4 x ro\nshort\n"
	got := mountPoints(table, unix.Mkdev(7, 3))
	if len(got) != 1 || got[0] != "/mnt/a" {
		t.Errorf("expected [/mnt/a], found %v", got)
	}
}

func TestSelect(t *testing.T) {
	c, err := Select("fuse")
	if err != nil || c.Name() != "fuse" {
		t.Errorf("expected fuse, found %v, %v", c, err)
	}
	_, err = Select("floppy")
	if !errors.Is(err, ErrUnknownCarrier) || !strings.Contains(err.Error(), "auto or one of ublk, dm-user, fuse, nbd") {
		t.Errorf("expected ErrUnknownCarrier with the names, found %v", err)
	}
	if c, err := Select("nbd"); err != nil || c.Name() != "nbd" {
		t.Errorf("expected nbd, found %v, %v", c, err)
	}
	c, err = Select(Auto)
	for _, usable := range Carriers() {
		if usable.Probe() != nil {
			continue
		}
		if err != nil || c != usable {
			t.Errorf("expected %s, found %v, %v", usable.Name(), c, err)
		}
		return
	}
	if !errors.Is(err, ErrUnsupported) {
		t.Errorf("expected ErrUnsupported, found %v, %v", c, err)
	}
}

func TestUnavailable(t *testing.T) {
	err := unavailable("/dev/fuse", "fuse", unix.ENOENT)
	if !errors.Is(err, ErrUnsupported) || !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "modprobe fuse") {
		t.Errorf("expected advice, found %v", err)
	}
}

func TestBufferPoolQuiet(t *testing.T) {
	quiet := make(chan struct{}, 10)
	OnQuiet(func() { quiet <- struct{}{} })
	defer OnQuiet(nil)
	p := newBufferPool(1 << 20)
	owned, err := p.get()
	must(t, err)
	unowned, err := p.get()
	must(t, err)
	owned.data()[0], unowned.data()[0] = 1, 2
	p.put(unowned)
	// Pools of devices that are gone may become quiet as well.
	for isQuiet := false; !isQuiet; {
		select {
		case <-quiet:
		case <-time.After(patience):
			t.Fatal("expected the pool to become quiet, with no free buffer and no timer")
		}
		p.mu.Lock()
		isQuiet = p.free == nil && !p.armed
		p.mu.Unlock()
	}
	if owned.data()[0] != 1 {
		t.Error("a buffer with an owner lost its contents")
	}
	p.put(owned)
	<-quiet
}

// The first small read after a pause needs no memory; whoever comes meanwhile, or
// wants more, gets memory of its own.
func TestFirstBufferIsTheReserve(t *testing.T) {
	spare, err := newReserve(1 << 20)
	must(t, err)
	defer spare.free()
	pool := newBufferPool(1 << 20)
	first := pool.getFor(4096, spare)
	if first.spare != spare {
		t.Error("expected the reserve for a small read, found another buffer")
	}
	second, large := pool.getFor(4096, spare), pool.getFor(reserveResident+1, spare)
	if second.spare != nil || large.spare != nil {
		t.Error("expected buffers of the pool while the reserve is lent, and for a large read")
	}
	pool.put(first)
	if !spare.tryTakeSmall() {
		t.Fatal("expected the reserve to be given back")
	}
	spare.giveBack()
	large.unmap()
	pool.put(second)
	if again := pool.getFor(4096, spare); again != second {
		t.Error("expected the pool's own buffer before the reserve")
	}
	second.unmap()
}

func TestReserveTrim(t *testing.T) {
	r, err := newReserve(1 << 20)
	must(t, err)
	defer r.free()
	b := r.take()
	b.data()[0], b.data()[1<<20-1] = 7, 8
	r.giveBack()
	if b.data()[0] != 7 || b.data()[1<<20-1] != 0 {
		t.Errorf("expected the start kept and the end dropped, found %d and %d", b.data()[0], b.data()[1<<20-1])
	}
}
