package nbdctl

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"syscall"
	"testing"
)

// The messages as a little-endian machine sends them: length, kind, flags,
// sequence, port; command, version; then an attribute a line.
func TestGolden(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the expected bytes are little-endian")
	}
	device := Device{
		Size: 0x10000, BlockSize: 4096, Timeout: 10, DeadTimeout: 30, ServerFlags: 0x103,
		Identifier: "cowbird:a", Socket: 7,
	}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"GetFamily": {GetFamily(1, "nbd"), `
			1c000000 1000 0500 01000000 00000000 03 01 0000
			0800 0200 6e626400`},
		"Connect": {Connect(0x1c, 2, device), `
			7c000000 1c00 0500 02000000 00000000 01 01 0000
			0c00 0200 0000010000000000
			0c00 0300 0010000000000000
			0c00 0400 0a00000000000000
			0c00 0800 1e00000000000000
			0c00 0500 0301000000000000
			0c00 0600 0000000000000000
			1000 0700 0c00 0100 0800 0100 07000000
			0e00 0a00 636f77626972643a6100 0000`},
		"Reconnect": {Reconnect(0x1c, 3, 5, "cowbird:a", 9), `
			3c000000 1c00 0500 03000000 00000000 03 01 0000
			0800 0100 05000000
			1000 0700 0c00 0100 0800 0100 09000000
			0e00 0a00 636f77626972643a6100 0000`},
		"SetFlags": {SetFlags(0x1c, 4, 5, "cowbird:a", DestroyOnDisconnect|DisconnectOnClose), `
			38000000 1c00 0500 04000000 00000000 03 01 0000
			0800 0100 05000000
			0c00 0600 0300000000000000
			0e00 0a00 636f77626972643a6100 0000`},
		"Disconnect": {Disconnect(0x1c, 5, 5), `
			1c000000 1c00 0500 05000000 00000000 02 01 0000
			0800 0100 05000000`},
		"Status": {Status(0x1c, 6, 5), `
			1c000000 1c00 0500 06000000 00000000 05 01 0000
			0800 0100 05000000`},
	} {
		want, err := hex.DecodeString(strings.Join(strings.Fields(c.want), ""))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(c.got, want) {
			t.Errorf("%s: expected\n%x, found\n%x", name, want, c.got)
		}
	}
}

// answer makes what the kernel sends, by the same rules.
func answer(kind uint16, seq uint32, command uint8, add func(*builder)) []byte {
	m := newMessage(kind, seq, command, 1)
	add(m)
	return m.bytes()
}

func status(devices map[uint32]byte) []byte {
	return answer(0x1c, 1, cmdStatus, func(m *builder) {
		m.nest(attrDeviceList|1<<15, func() { // flagged as nesting
			for index, connected := range devices {
				m.nest(deviceItem, func() {
					m.u32(deviceIndex, index)
					m.nest(deviceConnected, func() { m.b = append(m.b, connected) })
				})
			}
		})
	})
}

func parse(t *testing.T, b []byte) Message {
	t.Helper()
	m, rest, err := Next(b)
	if err != nil || len(rest) != 0 {
		t.Fatalf("expected one message, found %d bytes more, %v", len(rest), err)
	}
	return m
}

func TestAnswers(t *testing.T) {
	family := answer(kindControl, 1, 1, func(m *builder) {
		m.str(controlFamilyName, "nbd")
		m.nest(controlFamilyID, func() { m.b = native.AppendUint16(m.b, 0x1c) })
	})
	if id, err := parse(t, family).FamilyID(); id != 0x1c || err != nil {
		t.Errorf("expected 0x1c, found %#x, %v", id, err)
	}
	connect := answer(0x1c, 1, cmdConnect, func(m *builder) { m.u32(attrIndex, 17) })
	if index, err := parse(t, connect).Index(); index != 17 || err != nil {
		t.Errorf("expected 17, found %d, %v", index, err)
	}
	for index, want := range map[int]bool{3: true, 4: false, 5: false} {
		if got, err := parse(t, status(map[uint32]byte{3: 1, 4: 0})).Connected(index); got != want || err != nil {
			t.Errorf("device %d: expected %v, found %v, %v", index, want, got, err)
		}
	}
	if _, err := parse(t, connect).FamilyID(); !errors.Is(err, ErrMessage) {
		t.Errorf("expected ErrMessage, found %v", err)
	}
}

func TestFinal(t *testing.T) {
	for code, want := range map[int32]error{0: nil, -int32(syscall.EBUSY): syscall.EBUSY} {
		b := make([]byte, headerSize+4+headerSize)
		native.PutUint32(b, uint32(len(b)))
		native.PutUint16(b[4:], kindError)
		native.PutUint32(b[headerSize:], uint32(code))
		if final, err := parse(t, b).Final(); !final || err != want {
			t.Errorf("%d: expected the end with %v, found %v, %v", code, want, final, err)
		}
	}
	if final, err := parse(t, status(nil)).Final(); final || err != nil {
		t.Errorf("expected no end, found %v, %v", final, err)
	}
}

// Several messages may come in one piece.
func TestNextOfSeveral(t *testing.T) {
	b := append(status(nil), Disconnect(1, 9, 0)...)
	first, rest, err := Next(b)
	if err != nil || first.Seq != 1 {
		t.Fatalf("found %+v, %v", first, err)
	}
	if second := parse(t, rest); second.Seq != 9 {
		t.Errorf("expected sequence 9, found %d", second.Seq)
	}
}

// FuzzMessage: whatever comes, an error at most.
func FuzzMessage(f *testing.F) {
	f.Add([]byte{})
	f.Add(status(map[uint32]byte{3: 1}))
	f.Add(Connect(1, 2, Device{Identifier: "x"}))
	f.Add(answer(kindControl, 1, 1, func(m *builder) { m.u32(controlFamilyID, 1) }))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			m, rest, err := Next(b)
			if err != nil {
				if !errors.Is(err, ErrMessage) {
					t.Errorf("expected ErrMessage, found %v", err)
				}
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("expected progress, found none")
			}
			_, _ = m.Final()
			_, _ = m.FamilyID()
			_, _ = m.Index()
			_, _ = m.Connected(3)
			b = rest
		}
	})
}
