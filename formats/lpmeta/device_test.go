package lpmeta

// The checklist's LPB and LPI behaviours are cited by the tests here, but for:
//
//	LPI-015  is a test of cowtool super, where sparse images are made
//	LPI-017  retrofit devices, with two sets of devices, are not updated by
//	         Virtual A/B (specs/snapshot-manager.md 5.2)
//	LPI-026  is the layout of fastboot's flashing tool; what of it concerns all,
//	         large aligned metadata, is in TestFirstSector

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"testing"
)

var errDevice = errors.New("the device fails")

// disk is a device in memory. Writes are durable with the next sync.
type disk struct {
	now, durable []byte
	steps        int // writes and syncs until it fails; negative is never
	torn         int // bytes of the failing write that are written
	dirty        [][2]int64
}

func newDisk(size int) *disk {
	return &disk{now: make([]byte, size), durable: make([]byte, size), steps: -1}
}

// after is a disk that comes back with these bytes.
func after(b []byte) *disk { return &disk{now: slices.Clone(b), durable: slices.Clone(b), steps: -1} }

func (d *disk) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(d.now).ReadAt(p, off) }

// step tells that the device fails now; it does so from then on.
func (d *disk) step() bool {
	if d.steps > 0 {
		d.steps--
		return false
	}
	return d.steps == 0
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(d.now)) {
		return 0, io.ErrShortWrite
	}
	d.dirty = append(d.dirty, [2]int64{off, off + int64(len(p))})
	if d.step() {
		n := copy(d.now[off:], p[:min(d.torn, len(p))])
		d.torn = 0
		return n, errDevice
	}
	return copy(d.now[off:], p), nil
}

func (d *disk) Sync() error {
	if d.step() {
		return errDevice
	}
	for _, r := range d.dirty {
		copy(d.durable[r[0]:r[1]], d.now[r[0]:])
	}
	d.dirty = nil
	return nil
}

const testDisk = 1 << 20 // bytes; tests keep the part with the metadata

// sample are metadata with everything in them, as they can be on a disk of 1 MiB:
// extents in no order and with gaps, names with "-" and of 36 bytes (LPI-027).
func sample() *Metadata {
	return &Metadata{
		Geometry: Geometry{1024, 2, 4096}, Major: 10, Minor: 2, Flags: VirtualAB,
		Partitions: []Partition{
			{"system_a", ReadOnly | Updated, 1, 2, 1},
			{"system_a-cow", 0, 0, 1, 2},
			{"vendor_a", ReadOnly, 4, 1, 1},
			{"empty_name_that_is_thirty_six_long_a", Disabled, 5, 0, 0},
		},
		Extents: []Extent{
			{64, Linear, 1984, 0}, {80, Linear, 400, 0}, {8, Zero, 0, 0},
			{16, Linear, 600, 0}, // nobody's
			{8, Linear, 48, 0},
		},
		Groups:       []Group{{"default", 0, 0}, {"main_a", 0, 1 << 20}, {"cow", 0, 0}},
		BlockDevices: []BlockDevice{{32, 4096, 512, testDisk, "super", 0}},
	}
}

func flashed(t testing.TB, slots ...*Metadata) *disk {
	t.Helper()
	d := newDisk(testDisk / 32)
	if err := Flash(d, testDisk, slots); err != nil {
		t.Fatal(err)
	}
	return d
}

func mustRead(t testing.TB, r io.ReaderAt, slot int) *Metadata {
	t.Helper()
	m, err := Read(r, slot)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func expectEqual(t testing.TB, what string, got, want *Metadata) {
	t.Helper()
	if !got.Equal(want) {
		t.Errorf("%s: expected\n%+v\nfound\n%+v", what, want, got)
	}
}

func expectError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: expected %q, found %v", what, want, err)
	}
}

// LPI-001.
func TestNotFlashed(t *testing.T) {
	_, err := Read(newDisk(testDisk), 0)
	expectError(t, "empty disk", err, ErrNotFound)
	_, err = Read(newDisk(100), 0)
	expectError(t, "tiny disk", err, io.ErrUnexpectedEOF)
}

// LPI-003, LPI-020, LPI-027.
func TestFlashAndRead(t *testing.T) {
	a, b := sample(), sample()
	b.Partitions, b.Minor, b.Flags = b.Partitions[2:3], 0, 0
	d := flashed(t, a, b)
	expectEqual(t, "slot 0", mustRead(t, d, 0), a)
	expectEqual(t, "slot 1", mustRead(t, d, 1), b)
	if !bytes.Equal(d.now, d.durable) {
		t.Error("expected that all is durable after a flash")
	}
}

// The bytes by hand, from the tables of the specification.
func TestLayout(t *testing.T) {
	d := flashed(t, sample(), sample())
	le := binary.LittleEndian
	for _, at := range []int{4096, 8192} {
		if m, n := le.Uint32(d.now[at:]), le.Uint32(d.now[at+4:]); m != 0x616c4467 || n != 52 {
			t.Errorf("geometry at %d: found magic %#x, size %d", at, m, n)
		}
	}
	h := d.now[12288:]
	for off, want := range map[int]uint32{0: 0x414c5030, 4: 10 | 2<<16, 8: 256, 44: 4*52 + 5*24 + 3*48 + 64, 80: 0, 84: 4, 88: 52,
		92: 208, 96: 5, 100: 24, 104: 328, 108: 3, 112: 48, 116: 472, 120: 1, 124: 64, 128: 1, 132: 0} {
		if got := le.Uint32(h[off:]); got != want {
			t.Errorf("header, byte %d: expected %#x, found %#x", off, want, got)
		}
	}
	want := hex.EncodeToString([]byte("vendor_a")) + hex.EncodeToString(make([]byte, 28)) + "01000000" + "04000000" + "01000000" + "01000000"
	if got := hex.EncodeToString(h[256+104:][:52]); got != want {
		t.Errorf("partition 2: expected %s, found %s", want, got)
	}
	want = "5000000000000000" + "00000000" + "9001000000000000" + "00000000"
	if got := hex.EncodeToString(h[256+208+24:][:24]); got != want {
		t.Errorf("extent 1: expected %s, found %s", want, got)
	}
	want = "2000000000000000" + "00100000" + "00020000" + "0000100000000000" + hex.EncodeToString([]byte("super"))
	if got := hex.EncodeToString(h[256+472:][:29]); got != want {
		t.Errorf("block device: expected %s, found %s", want, got)
	}
}

// LPI-002: nothing is written.
func TestFlashRefuses(t *testing.T) {
	ok, other := sample(), sample()
	other.Geometry.LogicalBlockSize = 512
	bad := sample()
	bad.Partitions[0].Group = 9
	for _, c := range []struct {
		name  string
		size  int64
		slots []*Metadata
		want  error
	}{
		{"small disk", testDisk - 4096, []*Metadata{ok, ok}, ErrTooLarge},
		{"one slot of two", testDisk, []*Metadata{ok}, ErrGeometry},
		{"no slot", testDisk, nil, ErrGeometry},
		{"two geometries", testDisk, []*Metadata{ok, other}, ErrGeometry},
		{"invalid", testDisk, []*Metadata{ok, bad}, ErrCorrupt},
	} {
		d := newDisk(testDisk)
		expectError(t, c.name, Flash(d, c.size, c.slots), c.want)
		if !bytes.Equal(d.now, make([]byte, testDisk)) {
			t.Errorf("%s: expected that nothing was written", c.name)
		}
	}
}

// An interrupted flash leaves nothing that could be read, until its geometry is there.
func TestFlashInterrupted(t *testing.T) {
	old, next := sample(), sample()
	next.Partitions = nil
	for steps := 0; ; steps++ {
		d := flashed(t, old, old)
		d.steps = steps
		if err := Flash(d, testDisk, []*Metadata{next, next}); err == nil {
			break
		}
		if m, err := Read(d, 0); err == nil && steps > 0 && !m.Equal(next) {
			t.Errorf("after %d steps: expected nothing or the new metadata, found %+v", steps, m)
		}
	}
}

// LPI-004.
func TestUpdateOneSlot(t *testing.T) {
	a, b := sample(), sample()
	b.Flags = VirtualAB | OverlaysActive
	d := flashed(t, a, a)
	before := slices.Clone(d.now)
	if err := Update(d, 1, b); err != nil {
		t.Fatal(err)
	}
	expectEqual(t, "slot 0", mustRead(t, d, 0), a)
	expectEqual(t, "slot 1", mustRead(t, d, 1), b)
	for _, backup := range []bool{false, true} {
		at := a.Geometry.Offset(0, backup)
		if !bytes.Equal(before[at:at+1024], d.now[at:at+1024]) {
			t.Errorf("expected that slot 0 is not touched, backup %v", backup)
		}
	}
}

// LPI-005.
func TestSlots(t *testing.T) {
	m := sample()
	m.Geometry.SlotCount = 4
	m.BlockDevices[0].FirstLogicalSector = 48
	d := flashed(t, m, m, m, m)
	expectError(t, "update", Update(d, 4, m), ErrSlot)
	_, err := Read(d, 4)
	expectError(t, "read", err, ErrSlot)
	for _, backup := range []bool{false, true} {
		copy(d.now[m.Geometry.Offset(2, backup):], make([]byte, 1024))
	}
	_, err = Read(d, 2)
	expectError(t, "garbage", err, ErrCorrupt)
	expectEqual(t, "slot 3", mustRead(t, d, 3), m)
	if err := Update(d, 2, m); err != nil {
		t.Fatal(err)
	}
	expectEqual(t, "slot 2, written again", mustRead(t, d, 2), m)
}

// LPI-006.
func TestUpdateKeepsGeometry(t *testing.T) {
	d := flashed(t, sample(), sample())
	before := slices.Clone(d.now)
	for _, change := range []func(*Geometry){
		func(g *Geometry) { g.SlotCount = 1 },
		func(g *Geometry) { g.MetadataMaxSize = 512 },
		func(g *Geometry) { g.LogicalBlockSize = 512 },
	} {
		m := sample()
		change(&m.Geometry)
		expectError(t, "changed geometry", Update(d, 0, m), ErrGeometry)
	}
	if !bytes.Equal(before, d.now) {
		t.Error("expected that nothing was written")
	}
}

// LPI-007, LPI-008, LPI-009: any bit of a primary copy may flip, or all of it be
// gone; and no bit of both. What Inspect says of the copies is true.
func TestDamage(t *testing.T) {
	m := sample()
	for _, c := range []struct {
		name   string
		at     func(backup bool) int64
		size   int
		damage func(g Condition, s []Condition) Condition
	}{
		{"geometry", geometryOffset, 52, func(g Condition, _ []Condition) Condition { return g }},
		{"metadata", func(backup bool) int64 { return m.Geometry.Offset(1, backup) }, len(m.encode()), func(_ Condition, s []Condition) Condition { return s[1] }},
	} {
		d := flashed(t, m, m)
		for bit := range c.size * 8 {
			d.now[c.at(false)+int64(bit/8)] ^= 1 << (bit % 8)
			expectEqual(t, c.name, mustRead(t, d, 1), m)
			if got := c.damage(Inspect(d)); got.Primary == nil || got.Backup != nil || got.Differ || got.Good() || !got.Usable() {
				t.Fatalf("%s, bit %d: expected that only the primary copy is damaged, found %+v", c.name, bit, got)
			}
			d.now[c.at(true)+int64(bit/8)] ^= 1 << (bit % 8)
			_, err := Read(d, 1)
			for _, backup := range []bool{false, true} {
				d.now[c.at(backup)+int64(bit/8)] ^= 1 << (bit % 8)
			}
			if bit >= 64 {
				expectError(t, c.name+", both copies", err, ErrCorrupt)
			}
			if err == nil {
				t.Fatalf("%s, bit %d of both copies: expected an error", c.name, bit)
			}
		}
		copy(d.now[c.at(false):], make([]byte, 1024))
		expectEqual(t, c.name+" gone", mustRead(t, d, 1), m)
		copy(d.now[c.at(true):], make([]byte, 1024))
		if m, err := Read(d, 1); err == nil {
			t.Errorf("%s, both copies gone: expected an error, found %+v", c.name, m)
		}
	}
}

// Repair makes both copies good again, whichever is damaged, and changes nothing when
// both are.
func TestRepair(t *testing.T) {
	m := sample()
	places := map[string]func(backup bool) int64{
		"geometry": geometryOffset, "metadata": func(backup bool) int64 { return m.Geometry.Offset(1, backup) },
	}
	for name, at := range places {
		for _, backup := range []bool{false, true} {
			d := flashed(t, m, m)
			d.now[at(backup)+20] ^= 1
			if err := Repair(d); err != nil {
				t.Fatalf("%s, backup %v: %v", name, backup, err)
			}
			if g, slots := Inspect(d); !g.Good() || !slots[0].Good() || !slots[1].Good() {
				t.Errorf("%s, backup %v: expected all copies to be good, found %+v, %+v", name, backup, g, slots)
			}
			expectEqual(t, name, mustRead(t, d, 1), m)
			d.now[at(false)+20] ^= 1
			d.now[at(true)+20] ^= 1
			before := bytes.Clone(d.now)
			_ = Repair(d)
			if !bytes.Equal(d.now, before) {
				t.Errorf("%s: expected no change where both copies are damaged", name)
			}
		}
	}
}

func TestInspect(t *testing.T) {
	m, other := sample(), sample()
	other.Flags = 0
	d := flashed(t, m, m)
	if g, slots := Inspect(d); !g.Good() || len(slots) != 2 || !slots[0].Good() || !slots[1].Good() {
		t.Errorf("expected that all is good, found %+v, %+v", g, slots)
	}
	copy(d.now[m.Geometry.Offset(1, true):], other.encode())
	if _, slots := Inspect(d); !slots[1].Differ || slots[1].Good() || !slots[1].Usable() {
		t.Errorf("expected two good copies that differ, found %+v", slots[1])
	}
	if g, slots := Inspect(newDisk(testDisk)); g.Usable() || slots != nil {
		t.Errorf("expected nothing on an empty disk, found %+v, %v", g, slots)
	}
}

// LPI-010: an exact fit, and one too many.
func TestTooManyPartitions(t *testing.T) {
	m := sample()
	m.Minor, m.Flags, m.Extents, m.Partitions = 0, 0, nil, nil
	room := 1024 - int(m.encodedSize())
	for i := range room / partitionSize {
		m.Partitions = append(m.Partitions, Partition{Name: "p" + string(rune('a'+i))})
	}
	d := flashed(t, m, m)
	expectEqual(t, "full", mustRead(t, d, 0), m)
	more := m.Clone()
	more.Partitions = append(more.Partitions, Partition{Name: "more"})
	expectError(t, "update", Update(d, 0, more), ErrTooLarge)
	expectError(t, "flash", Flash(d, testDisk, []*Metadata{more, more}), ErrTooLarge)
	expectEqual(t, "as before", mustRead(t, d, 0), m)
}

// LPI-011.
func TestImage(t *testing.T) {
	var file bytes.Buffer
	m := sample()
	m.Partitions[0].Attributes |= SlotSuffixed
	if err := WriteImage(&file, m); err != nil {
		t.Fatal(err)
	}
	if want := 4096 + 256 + 208 + 120 + 144 + 64; file.Len() != want {
		t.Errorf("expected %d bytes, found %d", want, file.Len())
	}
	got, err := ReadImage(bytes.NewReader(file.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	expectEqual(t, "image", got, m)
	for n := range file.Len() {
		if _, err := ReadImage(bytes.NewReader(file.Bytes()[:n])); err == nil {
			t.Fatalf("expected an error for the first %d bytes", n)
		}
	}
	m.Flags, m.Minor = 1, 1
	expectError(t, "flags without room for them", WriteImage(io.Discard, m), ErrCorrupt)
}

// LPI-012, LPI-013, LPI-014: whatever step of an update fails, and however much of
// a write was done or of what was not synced is lost, a reader finds the old metadata or
// the new. So it is for updates that begin with damaged copies, and that fail again.
func TestUpdateFails(t *testing.T) {
	old, next := sample(), sample()
	next.Partitions, next.Minor, next.Flags = next.Partitions[:2], 1, 0
	damage := map[string]func(d *disk){
		"none":    func(*disk) {},
		"primary": func(d *disk) { d.now[old.Geometry.Offset(0, false)+300] ^= 1 },
		"backup":  func(d *disk) { d.now[old.Geometry.Offset(0, true)+300] ^= 1 },
	}
	for name, harm := range damage {
		failures := 0
		for steps := 0; ; steps++ {
			whole := false
			for _, torn := range []int{0, 1, 100, 128, 200, 256, 300, 400, 1024} {
				d := flashed(t, old, old)
				harm(d)
				d.durable = slices.Clone(d.now)
				d.steps, d.torn = steps, torn
				if err := Update(d, 0, next); err == nil {
					whole = true
					break
				}
				failures++
				oldOrNew(t, d, old, next, 3)
			}
			if whole {
				break
			}
		}
		if failures < 36 {
			t.Errorf("damage %s: expected at least 36 failures, found %d", name, failures)
		}
	}
}

// oldOrNew looks at a disk after a failure, with what was not durable there or
// lost, and lets some more updates fail, and the last one succeed.
func oldOrNew(t *testing.T, d *disk, old, next *Metadata, depth int) {
	t.Helper()
	for _, bytes := range [][]byte{d.now, d.durable} {
		after := after(bytes)
		if m := mustRead(t, after, 0); !m.Equal(old) && !m.Equal(next) {
			t.Fatalf("expected the old metadata or the new, found %+v", m)
		}
		expectEqual(t, "the other slot", mustRead(t, after, 1), old)
		if depth > 0 {
			after.steps, after.torn = depth-1, 150
			if Update(after, 0, next) != nil {
				oldOrNew(t, after, old, next, depth-1)
			}
		}
		after.steps = -1
		if err := Update(after, 0, next); err != nil {
			t.Fatal(err)
		}
		expectEqual(t, "after a further update", mustRead(t, after, 0), next)
		if _, slots := Inspect(after); !slots[0].Good() {
			t.Fatalf("expected that both copies are good after an update, found %+v", slots[0])
		}
	}
}

// LPI-014: a failure behind the primary copy; the next update syncs from it first.
func TestUpdateSyncsFromPrimary(t *testing.T) {
	old, next, third := sample(), sample(), sample()
	next.Flags, third.Flags = 0, OverlaysActive
	d := flashed(t, old, old)
	d.steps = 2
	expectError(t, "write of the backup", Update(d, 0, next), errDevice)
	expectEqual(t, "primary", mustRead(t, d, 0), next)
	d.steps = 3
	expectError(t, "sync of the primary", Update(d, 0, third), errDevice)
	c := readCopies(d, old.Geometry, 0)
	expectEqual(t, "primary", c.primary, third)
	expectEqual(t, "backup", c.backup, next)
}

// LPI-016.
func TestSlotSuffixes(t *testing.T) {
	m := sample()
	m.Partitions = []Partition{{"system", ReadOnly | SlotSuffixed, 1, 2, 1}, {"vendor_b", ReadOnly, 4, 1, 0}}
	m.Groups = []Group{{"default", GroupSlotSuffixed, 0}, {"main", GroupSlotSuffixed, 1 << 20}, {"cow", 0, 0}}
	m.BlockDevices[0].Flags = DeviceSlotSuffixed
	d := flashed(t, m, m)
	for slot, suffix := range []string{"_a", "_b"} {
		got := mustRead(t, d, slot)
		want := m.Clone()
		want.Partitions[0] = Partition{"system" + suffix, ReadOnly, 1, 2, 1}
		want.Groups[0].Flags, want.Groups[1] = 0, Group{"main" + suffix, 0, 1 << 20}
		want.BlockDevices[0].Name, want.BlockDevices[0].Flags = "super"+suffix, 0
		expectEqual(t, "slot "+suffix, got, want)
	}
	if _, slots := Inspect(d); !slots[0].Good() || !slots[1].Good() {
		t.Errorf("expected good copies, found %+v", slots)
	}
	_, err := m.ForSlot(2)
	expectError(t, "a slot without suffix", err, ErrSlot)
	m.Partitions[1].Name = "system_b"
	_, err = m.ForSlot(1)
	expectError(t, "a name that is there", err, ErrCorrupt)
	m.Partitions[1].Name, m.Partitions[0].Name = "vendor", "a_name_of_thirty_five_characters_and"
	_, err = m.ForSlot(1)
	expectError(t, "a name that gets too long", err, ErrCorrupt)
}

// LPI-021, LPI-024.
func TestSuffix(t *testing.T) {
	for suffix, want := range map[string]int{"": 0, "a": 0, "_a": 0, "c": 0, "_c": 0, "b": 1, "_b": 1, "__b": 0} {
		if got := SlotOf(suffix); got != want {
			t.Errorf("%q: expected slot %d, found %d", suffix, want, got)
		}
	}
	for name, want := range map[string]string{"system": "", "_a": "", "_b": "", "system_a": "_a", "system_b": "_b", "system_c": "", "systemb": "", "": ""} {
		if got := Suffix(name); got != want {
			t.Errorf("%q: expected suffix %q, found %q", name, want, got)
		}
	}
	if SuffixOf(0) != "_a" || SuffixOf(1) != "_b" || SuffixOf(2) != "" || SuffixOf(-1) != "" {
		t.Error("expected the suffixes _a and _b, and no others")
	}
}

// LPI-022.
func TestOffsets(t *testing.T) {
	g := Geometry{16384, 4, 4096}
	for slot := range 4 {
		if got, want := g.Offset(slot, false), int64(12288+slot*16384); got != want {
			t.Errorf("primary of slot %d: expected %d, found %d", slot, want, got)
		}
		if got, want := g.Offset(slot, true), int64(12288+4*16384+slot*16384); got != want {
			t.Errorf("backup of slot %d: expected %d, found %d", slot, want, got)
		}
	}
	if got := (Geometry{65536, 2, 4096}).Reserved(); got != 274432 {
		t.Errorf("expected 274432 reserved bytes, found %d", got)
	}
}

// LPI-023.
func TestAlignTo(t *testing.T) {
	for _, c := range [][3]uint64{{37, 0, 37}, {555, 1024, 1024}, {1024, 1024, 1024}, {17, 32, 32}, {0, 32, 0}, {1<<64 - 2, 1, 1<<64 - 2}} {
		if got, ok := alignTo(c[0], c[1]); !ok || got != c[2] {
			t.Errorf("%d to %d: expected %d, found %d, %v", c[0], c[1], c[2], got, ok)
		}
	}
	if got, ok := alignTo(1<<64-2, 1<<31); ok {
		t.Errorf("expected an overflow, found %d", got)
	}
}

// LPB-028.
func TestBeginning(t *testing.T) {
	m := sample()
	p := m.Partition("system_a")
	all := m.ExtentsOf(p)
	for bytes, want := range map[uint64][]Extent{
		0: nil, 1: {{1, Linear, 400, 0}}, 512: {{1, Linear, 400, 0}}, 40960: all[:1], 40961: {all[0], {1, Zero, 0, 0}}, 45056: all, 1<<64 - 1: all,
	} {
		if got := m.Beginning(p, bytes); !slices.Equal(got, want) {
			t.Errorf("%d bytes: expected %v, found %v", bytes, want, got)
		}
	}
}

func TestTable(t *testing.T) {
	m := sample()
	m.Extents[3].NumSectors = 0
	m.Partitions[0].NumExtents = 4
	m.Partitions[2].NumExtents = 0
	want := []Line{{0, 80, false, 0, 400}, {80, 8, true, 0, 0}, {88, 8, false, 0, 48}}
	p := m.Partition("system_a")
	if got := m.Table(p); !slices.Equal(got, want) || m.Size(p) != 96*512 {
		t.Errorf("expected %v, 49152 bytes, found %v, %d bytes", want, got, m.Size(p))
	}
	if p := m.Partition("none"); p != nil {
		t.Errorf("expected no partition, found %+v", p)
	}
}
