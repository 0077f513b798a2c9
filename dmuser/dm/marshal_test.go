package dm

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// The golden bytes are those of a little-endian machine.
func littleEndian(t *testing.T) {
	t.Helper()
	if order.Uint16([]byte{1, 0}) != 1 {
		t.Skip("golden bytes are little-endian, this machine is not")
	}
}

// golden is hexadecimal, where blanks do not count; it is padded to size.
func golden(t *testing.T, size int, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return append(b, make([]byte, size-len(b))...)
}

func TestMarshalRequest(t *testing.T) {
	littleEndian(t)
	r := request{name: "dev", uuid: "U-1", flags: flagReadOnly, targets: []Target{
		{Start: 0, Sectors: 8, Type: "user", Args: "0 8 x"},
		{Start: 8, Sectors: 0x1_0000_0001, Type: "zero"},
	}}
	got, err := r.marshal(0)
	if err != nil {
		t.Fatal(err)
	}
	want := golden(t, offName, `
		04000000 00000000 00000000  98010000  38010000  02000000
		00000000  01000000  00000000  00000000  0000000000000000`)
	want = append(want, golden(t, nameLen, "646576")...)
	want = append(want, golden(t, headerSize-offUUID, "552d31")...)
	want = append(want, golden(t, specSize+8, `
		0000000000000000 0800000000000000  00000000 30000000
		75736572 000000000000000000000000  30203820 7800`)...)
	want = append(want, golden(t, specSize+8, `
		0800000000000000 0100000001000000  00000000 30000000  7a65726f`)...)
	if !bytes.Equal(got, want) {
		t.Errorf("expected\n%s, found\n%s", hex.Dump(want), hex.Dump(got))
	}
}

func TestMarshalRoom(t *testing.T) {
	r := request{name: "x"}
	b, err := r.marshal(1000)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != headerSize+1000 || order.Uint32(b[offDataSize:]) != uint32(len(b)) {
		t.Errorf("expected %d bytes, found %d, and %d in the header", headerSize+1000, len(b), order.Uint32(b[offDataSize:]))
	}
}

func TestMarshalRefuses(t *testing.T) {
	for _, r := range []request{
		{name: strings.Repeat("n", nameLen)},
		{name: "a\x00b"},
		{uuid: strings.Repeat("u", uuidLen)},
		{targets: []Target{{Type: strings.Repeat("t", typeLen)}}},
		{targets: []Target{{Type: "user", Args: "a\x00b"}}},
	} {
		if _, err := r.marshal(0); !errors.Is(err, ErrArgument) {
			t.Errorf("%+v: expected ErrArgument, found %v", r, err)
		}
	}
	r := request{
		name: strings.Repeat("n", nameLen-1), uuid: strings.Repeat("u", uuidLen-1),
		targets: []Target{{Type: strings.Repeat("t", typeLen-1)}},
	}
	if _, err := r.marshal(0); err != nil {
		t.Errorf("the longest names: expected no error, found %v", err)
	}
}

// answer is a reply with some data.
func answer(t *testing.T, targets uint32, data string) reply {
	t.Helper()
	littleEndian(t)
	d := golden(t, len(strings.Join(strings.Fields(data), ""))/2, data)
	b := append(make([]byte, headerSize), d...)
	binary.LittleEndian.PutUint32(b[offDataSize:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[offStart:], headerSize)
	binary.LittleEndian.PutUint32(b[offTargets:], targets)
	return b
}

const twoTargets = `
	0000000000000000 0800000000000000  00000000 30000000
	75736572 000000000000000000000000  30203820 78000000
	0800000000000000 0001000000000000  00000000 60000000
	7a65726f 000000000000000000000000  0000000000000000`

func TestReplyTable(t *testing.T) {
	got, err := answer(t, 2, twoTargets).table()
	want := []Target{{0, 8, "user", "0 8 x"}, {8, 256, "zero", ""}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("expected %v, found %v (%v)", want, got, err)
	}
	if _, err := answer(t, 3, twoTargets).table(); !errors.Is(err, ErrReply) {
		t.Errorf("a target too many: expected ErrReply, found %v", err)
	}
}

func TestReplyDevices(t *testing.T) {
	const two = `
		00fd000000000000 18000000 61000000 0000000000000000
		01fd000000000000 00000000 62636400`
	got, err := answer(t, 0, two).devices()
	if want := []Entry{{"a", 0xfd00}, {"bcd", 0xfd01}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("expected %v, found %v (%v)", want, got, err)
	}
	for _, none := range []string{"", `0000000000000000 00000000 00000000`} {
		if got, err = answer(t, 0, none).devices(); err != nil || len(got) != 0 {
			t.Errorf("%q: expected no device, found %v (%v)", none, got, err)
		}
	}
	for _, bad := range []string{`00fd000000000000 000000`, `00fd000000000000 18000000 61000000`} {
		if _, err := answer(t, 0, bad).devices(); !errors.Is(err, ErrReply) {
			t.Errorf("%q: expected ErrReply, found %v", bad, err)
		}
	}
}

func TestReplyTargetTypes(t *testing.T) {
	got, err := answer(t, 0, `
		18000000 01000000 02000000 03000000 75736572 00000000
		00000000 04000000 00000000 00000000 7a65726f 00000000`).targetTypes()
	want := []TargetType{{"user", Version{1, 2, 3}}, {"zero", Version{4, 0, 0}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("expected %v, found %v (%v)", want, got, err)
	}
}

func TestReplyInfo(t *testing.T) {
	r := answer(t, 2, "")
	binary.LittleEndian.PutUint32(r[offFlags:], flagSuspend|flagActive)
	binary.LittleEndian.PutUint32(r[offOpen:], 3)
	binary.LittleEndian.PutUint64(r[offDev:], 0x10fd07)
	copy(r[offName:], "dev")
	copy(r[offUUID:], "U-1")
	got := r.info()
	want := Info{Name: "dev", UUID: "U-1", Dev: 0x10fd07, Open: 3, Targets: 2, Suspended: true, Active: true}
	if got != want {
		t.Errorf("expected %+v, found %+v", want, got)
	}
	if got.Node() != "/dev/dm-263" {
		t.Errorf("expected /dev/dm-263, found %s", got.Node())
	}
}

// A reply may say anything: a wrong place of the data is an error.
func TestReplyPlaces(t *testing.T) {
	for _, c := range []struct{ start, size uint32 }{{headerSize, headerSize + 1}, {headerSize + 1, headerSize}, {0, 1 << 31}} {
		r := answer(t, 1, "")
		binary.LittleEndian.PutUint32(r[offStart:], c.start)
		binary.LittleEndian.PutUint32(r[offDataSize:], c.size)
		if _, err := r.table(); !errors.Is(err, ErrReply) {
			t.Errorf("data from %d to %d: expected ErrReply, found %v", c.start, c.size, err)
		}
	}
}

func FuzzReply(f *testing.F) {
	f.Add([]byte{0x18, 0, 0, 0}, uint32(1))
	f.Fuzz(func(t *testing.T, data []byte, targets uint32) {
		r := answer(t, targets%1000, hex.EncodeToString(data))
		_, _ = r.table()
		_, _ = r.devices()
		_, _ = r.targetTypes()
	})
}

func TestErrorIs(t *testing.T) {
	all := []error{ErrUnavailable, ErrExists, ErrNotFound, ErrBusy, ErrTable, ErrNoTarget}
	for _, c := range []struct {
		op    string
		errno syscall.Errno
		want  error
	}{
		{opOpen, syscall.ENOENT, ErrUnavailable},
		{opCreate, syscall.EBUSY, ErrExists},
		{opRemove, syscall.EBUSY, ErrBusy},
		{opRemove, syscall.ENXIO, ErrNotFound},
		{opLoad, syscall.EINVAL, ErrTable},
		{opLoad, syscall.ENOMEM, ErrTable},
		{opLoad, syscall.ENXIO, ErrNotFound},
		{opSuspend, syscall.EINVAL, nil},
		{opTarget, syscall.EINVAL, ErrNoTarget},
	} {
		err := error(&Error{Op: c.op, Name: "x", Errno: c.errno})
		if !errors.Is(err, c.errno) {
			t.Errorf("%v: expected to be %v", err, c.errno)
		}
		for _, e := range all {
			if errors.Is(err, e) != (e == c.want) {
				t.Errorf("%v: expected to be %v only, found it to be %v: %v", err, c.want, e, errors.Is(err, e))
			}
		}
	}
}

func TestNumbers(t *testing.T) {
	for dev, want := range map[uint64][2]uint32{0xfc03: {252, 3}, 0x120fc45: {252, 0x1245}, 0xfff<<8 | 0xff: {4095, 255}} {
		major, minor := Info{Dev: dev}.Numbers()
		if major != want[0] || minor != want[1] {
			t.Errorf("%x: expected %d, found %d:%d", dev, want, major, minor)
		}
	}
}

func TestMarshalMessage(t *testing.T) {
	r := request{name: "dev", message: "@m"}
	got, err := r.marshal(0)
	if err != nil {
		t.Fatal(err)
	}
	if want := append(make([]byte, 8), "@m\x00"...); len(got) < headerSize+len(want) || !bytes.Equal(got[headerSize:][:len(want)], want) {
		t.Errorf("expected %x behind the header, found %x", want, got[headerSize:])
	}
}

// A reply about a device without a table has no room for one.
func TestNoTable(t *testing.T) {
	b := make(reply, headerSize)
	order.PutUint32(b[offDataSize:], headerSize-7)
	order.PutUint32(b[offStart:], headerSize)
	if table, err := b.table(); err != nil || table != nil {
		t.Errorf("expected no table, found %v, %v", table, err)
	}
}
