package bootctl

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// block is a control block by hand: slot _b of two runs, merging; a is on its third
// of the tries, b was successful.
func block(t testing.TB, change func(b []byte)) []byte {
	t.Helper()
	b, err := hex.DecodeString("5f620000" + "42434142" + "01" + "ca00" + "00" + "3e00" + "9f00" + "0000" + "0000" + "0000000000000000" + "00000000")
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(b)
	}
	binary.LittleEndian.PutUint32(b[28:], crc32.ChecksumIEEE(b[:28]))
	return b
}

func TestParseControl(t *testing.T) {
	c, err := ParseControl(append(block(t, nil), 1, 2, 3))
	want := Control{Suffix: "_b", Count: 2, RecoveryTries: 1, Merge: Merging,
		Slots: [MaxSlots]Slot{{Priority: 14, Tries: 3}, {Priority: 15, Tries: 1, Successful: true}}}
	if err != nil || c != want {
		t.Fatalf("expected %+v, found %+v, %v", want, c, err)
	}
	if out, err := c.Marshal(); err != nil || !bytes.Equal(out, block(t, nil)) {
		t.Errorf("expected %x, found %x, %v", block(t, nil), out, err)
	}
}

// The status' third bit is in the next byte, and everything unknown stays.
func TestControlBits(t *testing.T) {
	in := block(t, func(b []byte) {
		b[9], b[10], b[11], b[13] = 0x0a, 0xff, 0xcd, 0xfe
		copy(b[20:], "reserved")
	})
	c, err := ParseControl(in)
	if err != nil || c.Merge != MergeCancelled || c.Slots[0].VerityCorrupted || c.Slots[0].Reserved != 0x7f {
		t.Fatalf("expected cancelled and seven reserved bits, found %+v, %v", c, err)
	}
	if out, err := c.Marshal(); err != nil || !bytes.Equal(out, in) {
		t.Errorf("expected %x, found %x, %v", in, out, err)
	}
}

func TestControlRefused(t *testing.T) {
	torn := block(t, nil)
	torn[12] ^= 1
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"short":       {block(t, nil)[:31], ErrSize},
		"zero":        {make([]byte, 32), ErrBlank},
		"erased":      {bytes.Repeat([]byte{0xff}, 32), ErrBlank},
		"torn":        {torn, ErrChecksum},
		"other":       {block(t, func(b []byte) { b[4] = 'X' }), ErrMagic},
		"version":     {block(t, func(b []byte) { b[8] = 2 }), ErrVersion},
		"no slots":    {block(t, func(b []byte) { b[9] &^= 7 }), ErrValue},
		"seven slots": {block(t, func(b []byte) { b[9] |= 7 }), ErrValue},
	} {
		if got, err := ParseControl(c.b); !errors.Is(err, c.want) || got != (Control{}) {
			t.Errorf("%s: expected %v, found %v, %+v", name, c.want, err, got)
		}
	}
	for i, c := range []Control{{}, {Count: 5}, {Count: 2, Suffix: "_long"}, {Count: 2, Suffix: "a\x00b"}, {Count: 2, RecoveryTries: 8}, {Count: 2, Merge: 8},
		{Count: 2, Slots: [4]Slot{{Priority: 16}}}, {Count: 2, Slots: [4]Slot{{Tries: 8}}}, {Count: 1, Slots: [4]Slot{3: {Reserved: 128}}}} {
		if b, err := c.Marshal(); !errors.Is(err, ErrValue) {
			t.Errorf("%d: expected %v, found %v, %x", i, ErrValue, err, b)
		}
	}
}

// LPI-021
func TestSuffixes(t *testing.T) {
	for suffix, want := range map[string]int{"": 0, "a": 0, "_a": 0, "b": 1, "_b": 1, "_c": 2, "d": 3} {
		if got, found := SlotOf(suffix); got != want || !found {
			t.Errorf("%q: expected %d, found %d, %v", suffix, want, got, found)
		}
	}
	for _, suffix := range []string{"_", "_e", "B", "ab", "_ab", "__a"} {
		if got, found := SlotOf(suffix); got != 0 || found {
			t.Errorf("%q: expected 0, not found, found %d, %v", suffix, got, found)
		}
	}
	for slot := range MaxSlots {
		if got, _ := SlotOf(Suffix(slot)); got != slot {
			t.Errorf("expected %d, found %d", slot, got)
		}
	}
}

func TestDefault(t *testing.T) {
	c, err := Default(2, 1)
	want := Control{Suffix: "_b", Count: 2, Slots: [4]Slot{{Priority: 7, Tries: 7}, {Priority: 7, Tries: 7, Successful: true}}}
	if err != nil || c != want {
		t.Errorf("expected %+v, found %+v, %v", want, c, err)
	}
	if next, err := c.Next(); err != nil || next != 1 {
		t.Errorf("expected the running slot to be booted again, found %d, %v", next, err)
	}
	if c, err = Default(2, -1); err != nil || c.Suffix != "" || c.Slots[0] != c.Slots[1] {
		t.Errorf("expected equal slots, found %+v, %v", c, err)
	}
	if _, err := Default(2, 2); !errors.Is(err, ErrSlot) {
		t.Errorf("expected %v, found %v", ErrSlot, err)
	}
	if _, err := Default(5, 0); !errors.Is(err, ErrValue) {
		t.Errorf("expected %v, found %v", ErrValue, err)
	}
}

// An update from a to b that never comes up is tried six times, then a is back.
func TestFallBack(t *testing.T) {
	c, _ := Default(2, 0)
	if err := errors.Join(c.SetUnbootable(1), c.SetActive(1, 0)); err != nil {
		t.Fatal(err)
	}
	if c.Active(0) != 1 || !c.IsBootable(1) || c.IsSuccessful(1) || !c.IsSuccessful(0) {
		t.Errorf("expected b active and on trial, found %+v", c)
	}
	for boot, want := range []int{1, 1, 1, 1, 1, 1, 0, 0, 0} {
		slot, after, err := c.Choose()
		if err != nil || slot != want || after.Suffix != Suffix(want) {
			t.Fatalf("boot %d: expected slot %d, found %d of %+v, %v", boot, want, slot, after, err)
		}
		c = after
	}
	// The library still calls b the active one: it looks at priorities alone.
	if next, err := c.Next(); err != nil || next != 0 || c.Active(0) != 1 || c.IsBootable(1) {
		t.Errorf("expected a next, b active and not bootable, found %d, %+v, %v", next, c, err)
	}
}

// An update that comes up at the last try stays.
func TestLastTry(t *testing.T) {
	c, _ := Default(2, 0)
	_ = c.SetActive(1, 0)
	for range 6 {
		_, c, _ = c.Choose()
	}
	if c.IsBootable(1) {
		t.Errorf("expected no try to be left, found %+v", c)
	}
	if err := c.MarkSuccessful(1); err != nil || !c.IsSuccessful(1) {
		t.Fatalf("expected b to be successful, found %+v, %v", c, err)
	}
	for range 20 {
		slot, after, err := c.Choose()
		if err != nil || slot != 1 {
			t.Fatalf("expected b, found %d, %v", slot, err)
		}
		c = after
	}
}

func TestSetActive(t *testing.T) {
	good := Slot{Priority: 15, Tries: 1, Successful: true, VerityCorrupted: true}
	for name, c := range map[string]struct {
		slot, running int
		want          [2]Slot
	}{
		"new system":         {1, 0, [2]Slot{{Priority: 14, Tries: 1, Successful: true, VerityCorrupted: true}, {Priority: 15, Tries: 6}}},
		"update taken back":  {0, 0, [2]Slot{{Priority: 15, Tries: 6, Successful: true, VerityCorrupted: true}, {Priority: 14, Tries: 1, Successful: true, VerityCorrupted: true}}},
		"from the outside":   {0, -1, [2]Slot{{Priority: 15, Tries: 6}, {Priority: 14, Tries: 1, Successful: true, VerityCorrupted: true}}},
		"back to the former": {0, 1, [2]Slot{{Priority: 15, Tries: 6}, {Priority: 14, Tries: 1, Successful: true, VerityCorrupted: true}}},
	} {
		b := Control{Count: 2, Slots: [4]Slot{good, good, {Priority: 15}}}
		if err := b.SetActive(c.slot, c.running); err != nil || [2]Slot(b.Slots[:2]) != c.want {
			t.Errorf("%s: expected %+v, found %+v, %v", name, c.want, b.Slots[:2], err)
		}
		if b.Slots[2].Priority != 15 {
			t.Errorf("%s: expected what is no slot to stay, found %+v", name, b.Slots[2])
		}
	}
}

// What U-Boot prefers, in its order.
func TestNext(t *testing.T) {
	for name, c := range map[string]struct {
		slots [4]Slot
		want  int
	}{
		"priority":    {[4]Slot{{Priority: 14, Tries: 7, Successful: true}, {Priority: 15, Tries: 1}}, 1},
		"successful":  {[4]Slot{{Priority: 15, Tries: 7}, {Priority: 15, Tries: 1, Successful: true}}, 1},
		"tries":       {[4]Slot{{Priority: 15, Tries: 3}, {Priority: 15, Tries: 4}}, 1},
		"first":       {[4]Slot{{Priority: 15, Tries: 3}, {Priority: 15, Tries: 3}}, 0},
		"no tries":    {[4]Slot{{Priority: 15, Successful: true}, {Priority: 1, Tries: 1}}, 1},
		"verity":      {[4]Slot{{Priority: 15, Tries: 7, VerityCorrupted: true}, {Priority: 1, Tries: 1}}, 1},
		"no slot":     {[4]Slot{{Priority: 1, Tries: 1}, {}, {Priority: 15, Tries: 7}}, 0},
		"no priority": {[4]Slot{{}, {Tries: 1}}, 1},
	} {
		b := Control{Count: 2, Slots: c.slots}
		if got, err := b.Next(); err != nil || got != c.want {
			t.Errorf("%s: expected %d, found %d, %v", name, c.want, got, err)
		}
	}
	dead := Control{Count: 2, Slots: [4]Slot{2: {Priority: 15, Tries: 7}}}
	if slot, after, err := dead.Choose(); !errors.Is(err, ErrUnbootable) || after != dead {
		t.Errorf("expected %v and an unchanged block, found %d, %+v, %v", ErrUnbootable, slot, after, err)
	}
}

func TestActive(t *testing.T) {
	for name, c := range map[string]struct {
		priorities    [2]uint8
		running, want int
	}{
		"higher": {[2]uint8{14, 15}, 0, 1}, "equal, a runs": {[2]uint8{15, 15}, 0, 0}, "equal, b runs": {[2]uint8{15, 15}, 1, 1}, "equal, none runs": {[2]uint8{7, 7}, -1, 0},
	} {
		b := Control{Count: 2, Slots: [4]Slot{{Priority: c.priorities[0]}, {Priority: c.priorities[1]}}}
		if got := b.Active(c.running); got != c.want {
			t.Errorf("%s: expected %d, found %d", name, c.want, got)
		}
	}
}

func TestNoSlot(t *testing.T) {
	c, _ := Default(2, 0)
	before := c
	for _, slot := range []int{-1, 2, 4} {
		for _, err := range []error{c.MarkSuccessful(slot), c.SetActive(slot, 0), c.SetUnbootable(slot)} {
			if !errors.Is(err, ErrSlot) {
				t.Errorf("%d: expected %v, found %v", slot, ErrSlot, err)
			}
		}
		if c.IsBootable(slot) || c.IsSuccessful(slot) {
			t.Errorf("%d: expected neither bootable nor successful", slot)
		}
	}
	if c != before {
		t.Errorf("expected %+v, found %+v", before, c)
	}
}

// Whatever is done to slots, the block can be written, and boots what it should: an
// active slot first, a successful one for ever, and an unbootable one never.
func TestAnyLife(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.IntRange(1, MaxSlots).Draw(t, "count")
		slot := rapid.IntRange(0, count-1)
		c, err := Default(count, rapid.IntRange(-1, count-1).Draw(t, "running"))
		if err != nil {
			t.Fatal(err)
		}
		t.Repeat(map[string]func(*rapid.T){
			"active": func(t *rapid.T) {
				n := slot.Draw(t, "slot")
				running := slot.Draw(t, "running")
				corrupted := n == running && c.Slots[n].VerityCorrupted
				if err := c.SetActive(n, running); err != nil {
					t.Fatal(err)
				}
				if next, err := c.Next(); !corrupted && (err != nil || next != n || c.Active(running) != n) {
					t.Fatalf("expected %d next, found %d, %v", n, next, err)
				}
			},
			"unbootable": func(t *rapid.T) {
				n := slot.Draw(t, "slot")
				if err := c.SetUnbootable(n); err != nil || c.IsBootable(n) {
					t.Fatalf("expected %d not to be bootable, found %v", n, err)
				}
			},
			"boot": func(t *rapid.T) {
				n, after, err := c.Choose()
				if err != nil {
					t.Skip("nothing boots")
				}
				if c.IsSuccessful(n) != (after.Slots == c.Slots) {
					t.Fatalf("expected a try to be counted unless successful: %+v, %+v", c, after)
				}
				if c = after; rapid.Bool().Draw(t, "good") {
					_ = c.MarkSuccessful(n)
				}
			},
			"": func(t *rapid.T) {
				b, err := c.Marshal()
				if err != nil {
					t.Fatal(err)
				}
				if again, err := ParseControl(b); err != nil || again != c {
					t.Fatalf("expected %+v, found %+v, %v", c, again, err)
				}
			},
		})
	})
}

func virtualAB(version byte, status MergeStatus, source byte) []byte {
	return append([]byte{version, 0xb0, 0x0a, 0x74, 0x56, byte(status), source}, make([]byte, 57)...)
}

func TestVirtualAB(t *testing.T) {
	m, err := ParseVirtualAB(virtualAB(2, MergeSnapshotted, 1))
	if want, _ := NewVirtualAB(MergeSnapshotted, 1); err != nil || m != want {
		t.Fatalf("expected %+v, found %+v, %v", want, m, err)
	}
	if b, err := m.Marshal(); err != nil || !bytes.Equal(b, virtualAB(2, MergeSnapshotted, 1)) {
		t.Errorf("expected the same bytes, found %x, %v", b, err)
	}
	if b, err := (VirtualAB{Status: Merging}).Marshal(); err != nil || !bytes.Equal(b, virtualAB(2, Merging, 0)) {
		t.Errorf("expected version 2, found %x, %v", b, err)
	}
	old, err := ParseVirtualAB(virtualAB(1, MergeSnapshotted, 1))
	if err != nil || old.Source != NoSlot || old.Seen(1) != MergeSnapshotted {
		t.Errorf("expected no source slot in version 1, found %+v, %v", old, err)
	}
	more := virtualAB(2, MergeNone, 255)
	more[63] = 7
	if m, err = ParseVirtualAB(more); err != nil || m.Source != 255 {
		t.Fatalf("expected source 255, found %+v, %v", m, err)
	}
	if b, err := m.Marshal(); err != nil || !bytes.Equal(b, more) {
		t.Errorf("expected reserved bytes to stay, found %x, %v", b, err)
	}
}

func TestVirtualABRefused(t *testing.T) {
	other := virtualAB(2, 0, 0)
	other[1] = 0
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"short": {other[:63], ErrSize}, "zero": {make([]byte, 64), ErrBlank}, "erased": {bytes.Repeat([]byte{0xff}, 64), ErrBlank}, "magic": {other, ErrMagic},
		"version 0": {virtualAB(0, 0, 0), ErrVersion}, "version 3": {virtualAB(3, 0, 0), ErrVersion}, "status": {virtualAB(2, 5, 0), ErrValue},
	} {
		if got, err := ParseVirtualAB(c.b); !errors.Is(err, c.want) || got != (VirtualAB{}) {
			t.Errorf("%s: expected %v, found %v, %+v", name, c.want, err, got)
		}
	}
	for _, m := range []VirtualAB{{Status: 5}, {Version: 2, Source: NoSlot}, {Version: 1, Source: 0}, {Source: 256}} {
		if b, err := m.Marshal(); !errors.Is(err, ErrValue) {
			t.Errorf("%+v: expected %v, found %x, %v", m, ErrValue, b, err)
		}
	}
	for _, slot := range []int{-1, MaxSlots} {
		if _, err := NewVirtualAB(MergeNone, slot); !errors.Is(err, ErrSlot) {
			t.Errorf("%d: expected %v, found %v", slot, ErrSlot, err)
		}
	}
}

// SNM-010's readers: a snapshot is none for the slot that made it, until another boots.
func TestSeen(t *testing.T) {
	for status, want := range map[MergeStatus][2]MergeStatus{
		MergeNone: {MergeNone, MergeNone}, MergeUnknown: {MergeUnknown, MergeUnknown}, MergeSnapshotted: {MergeNone, MergeSnapshotted},
		Merging: {Merging, Merging}, MergeCancelled: {MergeCancelled, MergeCancelled},
	} {
		m, err := NewVirtualAB(status, 0)
		if err != nil || m.Seen(0) != want[0] || m.Seen(1) != want[1] {
			t.Errorf("%v: expected %v, found %v and %v, %v", status, want, m.Seen(0), m.Seen(1), err)
		}
		if status.MayErase() != (status != MergeSnapshotted && status != Merging) || status.MaySetActive() != (status != Merging) {
			t.Errorf("%v: may erase %v, set active %v", status, status.MayErase(), status.MaySetActive())
		}
	}
	if s := Merging.String() + ", " + MergeStatus(9).String(); s != "merging, merge status 9" {
		t.Errorf("found %q", s)
	}
}

func TestMessage(t *testing.T) {
	b := make([]byte, MessageSize)
	copy(b, "boot-recovery\x00rubbish")
	copy(b[32:], strings.Repeat("s", 32))
	copy(b[64:], "recovery\n--wipe_data\n")
	copy(b[832:], "2/3")
	copy(b[864:], "reserved")
	m, err := ParseMessage(b)
	if err != nil || m.Command != "boot-recovery" || m.Status != strings.Repeat("s", 32) || m.Recovery != "recovery\n--wipe_data\n" || m.Stage != "2/3" {
		t.Fatalf("found %+v, %v", m, err)
	}
	copy(b[14:], make([]byte, 7))
	if out, err := m.Marshal(); err != nil || !bytes.Equal(out, b) {
		t.Errorf("expected the same without what follows the command, found %v", err)
	}
	if m, err = ParseMessage(bytes.Repeat([]byte{0xff}, MessageSize)); err != nil || m.Command+m.Status+m.Recovery+m.Stage != "" {
		t.Errorf("expected erased flash to be empty, found %+v, %v", m, err)
	}
	if _, err := ParseMessage(b[:2047]); !errors.Is(err, ErrSize) {
		t.Errorf("expected %v, found %v", ErrSize, err)
	}
	for _, m := range []Message{{Command: strings.Repeat("c", 33)}, {Recovery: strings.Repeat("r", 769)}, {Stage: "a\x00b"}, {Status: "\xff"}} {
		if _, err := m.Marshal(); !errors.Is(err, ErrValue) {
			t.Errorf("%+v: expected %v, found %v", m, ErrValue, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(block(f, nil))
	f.Add(virtualAB(2, Merging, 1))
	f.Add(append([]byte("boot-recovery\x00"), make([]byte, MessageSize)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= ControlSize {
			fuzzControl(t, bytes.Clone(b[:ControlSize]))
		}
		if m, err := ParseVirtualAB(b); err == nil {
			out, err := m.Marshal()
			if again, err2 := ParseVirtualAB(out); err != nil || err2 != nil || again != m {
				t.Fatalf("expected %+v, found %+v, %v, %v", m, again, err, err2)
			}
		}
		if m, err := ParseMessage(b); err == nil {
			out, err := m.Marshal()
			if again, err2 := ParseMessage(out); err != nil || err2 != nil || again != m {
				t.Fatalf("expected %+v, found %+v, %v, %v", m, again, err, err2)
			}
		}
	})
}

// fuzzControl corrects magic, version and checksum, which a fuzzer would hardly find.
func fuzzControl(t *testing.T, b []byte) {
	binary.LittleEndian.PutUint32(b[4:], controlMagic)
	b[8] = controlVersion
	binary.LittleEndian.PutUint32(b[28:], crc32.ChecksumIEEE(b[:28]))
	c, err := ParseControl(b)
	if err != nil {
		return
	}
	if slot, after, err := c.Choose(); err == nil {
		if !c.IsBootable(slot) || after.check() != nil {
			t.Fatalf("expected a bootable slot, found %d of %+v", slot, c)
		}
		c = after
	}
	out, err := c.Marshal()
	if again, err2 := ParseControl(out); err != nil || err2 != nil || again != c {
		t.Fatalf("expected %+v, found %+v, %v, %v", c, again, err, err2)
	}
}
