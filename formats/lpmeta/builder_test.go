package lpmeta

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const (
	kib        = 1 << 10
	mib        = 1 << 20
	gib uint64 = 1 << 30
)

// small is a device of 1 MiB without alignment.
var small = DeviceInfo{Name: "super", Size: mib, LogicalBlockSize: 4096}

func newBuilder(t testing.TB, metadataMaxSize, slots uint32, devices ...DeviceInfo) *Builder {
	t.Helper()
	b, err := NewBuilder(devices, metadataMaxSize, slots)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustExport(t testing.TB, b *Builder) *Metadata {
	t.Helper()
	m, err := b.Export()
	must(t, err)
	return m
}

// grown adds partitions, each NAME or NAME=SIZE, to the default group.
func grown(t testing.TB, b *Builder, partitions ...string) *Builder {
	t.Helper()
	for _, text := range partitions {
		name, size := text, uint64(0)
		if i := strings.IndexByte(text, '='); i > 0 {
			name = text[:i]
			if _, err := fmt.Sscan(text[i+1:], &size); err != nil {
				t.Fatal(err)
			}
		}
		must(t, b.AddPartition(name, DefaultGroup, ReadOnly))
		must(t, b.Resize(name, size, nil))
	}
	return b
}

// extents are those of a partition, as START+LENGTH, with DEVICE: before if it is not 0.
func extents(t testing.TB, b *Builder, name string) string {
	t.Helper()
	p, err := b.find(name)
	must(t, err)
	var words []string
	for _, e := range p.extents {
		word := fmt.Sprintf("%d+%d", e.Data, e.NumSectors)
		if e.Type == Zero {
			word = fmt.Sprintf("zero+%d", e.NumSectors)
		} else if e.Source > 0 {
			word = fmt.Sprintf("%d:%s", e.Source, word)
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

func expectExtents(t testing.TB, b *Builder, name, want string) {
	t.Helper()
	if got := extents(t, b, name); got != want {
		t.Errorf("%s: expected the extents %q, found %q", name, want, got)
	}
}

// LPB-001, LPB-002, LPB-003, LPB-004.
func TestResize(t *testing.T) {
	b := grown(t, newBuilder(t, 1024, 2, small), "system")
	for _, c := range []struct {
		bytes uint64
		want  string
	}{{65536, "32+128"}, {65536, "32+128"}, {131072, "32+256"}, {32768, "32+64"}, {0, ""}, {10000, "32+24"}, {7000, "32+16"}, {8192, "32+16"}, {1, "32+8"}} {
		must(t, b.Resize("system", c.bytes, nil))
		expectExtents(t, b, "system", c.want)
	}
	if size, ok := b.Size("system"); !ok || size != 4096 {
		t.Errorf("expected 4096 bytes, found %d, %v", size, ok)
	}
	must(t, b.RemovePartition("system"))
	if _, ok := b.Size("system"); ok {
		t.Error("expected that the partition is gone")
	}
	expectError(t, "remove again", b.RemovePartition("system"), ErrUnknown)
	expectError(t, "resize", b.Resize("system", 1, nil), ErrUnknown)
}

// LPB-005, LPB-016, LPB-018.
func TestNewBuilderRefuses(t *testing.T) {
	with := func(change func(d *DeviceInfo)) DeviceInfo {
		d := small
		change(&d)
		return d
	}
	for name, c := range map[string]struct {
		size, slots uint32
		device      DeviceInfo
		want        error
	}{
		"half a block more":    {1024, 2, with(func(d *DeviceInfo) { d.Size += 512 }), ErrSize},
		"no room for data":     {1024, 2, with(func(d *DeviceInfo) { d.Size = 16384 }), ErrSize},
		"large metadata":       {mib, 2, small, ErrSize},
		"huge metadata":        {math.MaxUint32, 2, small, ErrSize},
		"no metadata":          {0, 2, small, ErrSize},
		"no slots":             {1024, 0, small, ErrSize},
		"many slots":           {1024, 1 << 31, small, ErrSize},
		"block of no sectors":  {1024, 2, with(func(d *DeviceInfo) { d.LogicalBlockSize = 7 }), ErrSize},
		"block of no bytes":    {1024, 2, with(func(d *DeviceInfo) { d.LogicalBlockSize = 0 }), ErrSize},
		"2^63 bytes":           {1024, 2, with(func(d *DeviceInfo) { d.Size = 1 << 63 }), ErrSize},
		"alignment above size": {1024, 2, with(func(d *DeviceInfo) { d.Alignment = 2 * mib }), ErrSize},
		"name":                 {1024, 2, with(func(d *DeviceInfo) { d.Name = "" }), ErrName},
	} {
		_, err := NewBuilder([]DeviceInfo{c.device}, c.size, c.slots)
		expectError(t, name, err, c.want)
	}
	_, err := NewBuilder(nil, 1024, 2)
	expectError(t, "no device", err, ErrUnknown)
	_, err = NewBuilder([]DeviceInfo{small, small}, 1024, 2)
	expectError(t, "one device twice", err, ErrName)
	_, err = NewBuilder([]DeviceInfo{small, {"odm", mib, 0, 0, 512}}, 1024, 2)
	expectError(t, "two block sizes", err, ErrSize)
}

// LPB-006.
func TestMetadataSize(t *testing.T) {
	if got := newBuilder(t, 1000, 2, small).Geometry(); got != (Geometry{1024, 2, 4096}) {
		t.Errorf("expected 1024 bytes of metadata, found %+v", got)
	}
}

// LPB-007, LPB-008: the offset decides nothing any more, also with an alignment.
func TestFirstSector(t *testing.T) {
	for _, c := range []struct{ alignment, offset, metadata, want uint32 }{
		{768 * kib, 0, 1024, 1536},
		{768 * kib, 753664, 1024, 1536},
		{0, 753664, 1024, 32},
		{12 * kib, 3 * kib, 16 * kib, 168},
		{11 * kib, 3 * kib, 16 * kib, 154},
		{mib / 2, 0, 65536, 1024},
		{0, 0, 16 * kib, 152},
	} {
		m := mustExport(t, newBuilder(t, c.metadata, 2, DeviceInfo{"super", mib, c.alignment, c.offset, 4096}))
		if d := m.BlockDevices[0]; d.FirstLogicalSector != uint64(c.want) || d.Alignment != c.alignment || d.AlignmentOffset != c.offset {
			t.Errorf("%+v: expected first sector %d, found %+v", c, c.want, d)
		}
	}
}

// LPB-009.
func TestInterleavedGrowth(t *testing.T) {
	b := grown(t, newBuilder(t, 32*kib, 2, DeviceInfo{"super", 512 * mib, 768 * kib, 753664, 4096}), "a", "b")
	for i := uint64(1); i <= 10; i++ {
		must(t, b.Resize("a", i*4096, nil))
		must(t, b.Resize("b", i*4096, nil))
	}
	expectExtents(t, b, "a", "1536+80")
	expectExtents(t, b, "b", "3072+80")
	must(t, b.Resize("a", 800*kib, nil))
	expectExtents(t, b, "a", "1536+1536 4608+64")
}

// LPB-010, also where the end of the device is not aligned.
func TestAllSpace(t *testing.T) {
	b := grown(t, newBuilder(t, 1024, 2, small), "system")
	must(t, b.Resize("system", mib-16384, nil))
	expectError(t, "one block more", b.Resize("system", mib-16384+1, nil), ErrNoSpace)
	expectExtents(t, b, "system", "32+2016")
	if free := b.Free(); free != nil {
		t.Errorf("expected no free regions, found %v", free)
	}
	b = grown(t, newBuilder(t, 1024, 2, DeviceInfo{"super", mib, 768 * kib, 0, 4096}), "system")
	for n := uint64(4096); n <= 256*kib; n += 4096 {
		must(t, b.Resize("system", n, nil))
	}
	expectError(t, "one block more", b.Resize("system", 260*kib, nil), ErrNoSpace)
	expectExtents(t, b, "system", "1536+512")
}

// LPB-011, LPB-013.
func TestFirstFit(t *testing.T) {
	b := grown(t, newBuilder(t, 1024, 2, small), "system=65536", "vendor=32768")
	must(t, b.Resize("system", 98304, nil))
	expectExtents(t, b, "system", "32+128 224+64")
	expectExtents(t, b, "vendor", "160+64")
	m := mustExport(t, b)
	want := &Metadata{Geometry: Geometry{1024, 2, 4096}, Major: 10, Groups: []Group{{"default", 0, 0}}, BlockDevices: []BlockDevice{{32, 0, 0, mib, "super", 0}},
		Partitions: []Partition{{"system", ReadOnly, 0, 2, 0}, {"vendor", ReadOnly, 2, 1, 0}},
		Extents:    []Extent{{128, Linear, 32, 0}, {64, Linear, 224, 0}, {64, Linear, 160, 0}}}
	expectEqual(t, "export", m, want)
}

// LPB-012, LPB-015: long names are refused where they are given.
func TestNames(t *testing.T) {
	b := grown(t, newBuilder(t, 1024, 2, small), "system", "system_a-cow", strings.Repeat("n", 36))
	for _, name := range []string{"system", "", strings.Repeat("n", 37), "a/b", "a b"} {
		expectError(t, "partition "+name, b.AddPartition(name, DefaultGroup, 0), ErrName)
	}
	must(t, b.AddGroup("main", 0))
	for _, name := range []string{"main", "", strings.Repeat("n", 37), DefaultGroup} {
		expectError(t, "group "+name, b.AddGroup(name, 0), ErrName)
	}
	expectError(t, "unknown group", b.AddPartition("vendor", "none", 0), ErrUnknown)
	if got := b.Partitions(); len(got) != 3 {
		t.Errorf("expected 3 partitions, found %q", got)
	}
	expectEqual(t, "import", importAgain(t, b), mustExport(t, b))
}

func importAgain(t testing.TB, b *Builder) *Metadata {
	t.Helper()
	again, err := FromMetadata(mustExport(t, b))
	must(t, err)
	return mustExport(t, again)
}

// LPB-014, LPB-031.
func TestImport(t *testing.T) {
	m := sample()
	b, err := FromMetadata(m)
	must(t, err)
	got := mustExport(t, b)
	for i := range m.Partitions {
		p, q := &m.Partitions[i], &got.Partitions[i]
		if p.Name != q.Name || p.Attributes != q.Attributes || p.Group != q.Group || !slices.Equal(m.ExtentsOf(p), got.ExtentsOf(q)) {
			t.Errorf("expected %+v, found %+v", p, q)
		}
	}
	if got.Minor != 2 || got.Flags != VirtualAB || !slices.Equal(got.Groups, m.Groups) || !slices.Equal(got.BlockDevices, m.BlockDevices) {
		t.Errorf("expected flags, groups and devices as they were, found %+v", got)
	}
	expectEqual(t, "again", importAgain(t, b), got)
	b = newBuilder(t, 1024, 2, small)
	b.ExpandHeader()
	if m := mustExport(t, b); m.Minor != 2 || m.Flags != 0 || len(m.encode()) != 256+48+64 {
		t.Errorf("expected version 10.2 without flags, found %+v", m)
	}
	expectEqual(t, "expanded, again", importAgain(t, b), mustExport(t, b))
	m.Groups, m.Partitions = []Group{{"main", 0, 0}}, nil
	b, err = FromMetadata(m)
	must(t, err)
	if got := b.Groups(); len(got) != 2 || got[0].Name != DefaultGroup || got[1].Name != "main" {
		t.Errorf("expected the default group in front, found %+v", got)
	}
	m.Minor = 9
	_, err = FromMetadata(m)
	expectError(t, "invalid", err, ErrVersion)
}

// LPI-019, LPI-020: as many fields as are needed make the version.
func TestVersions(t *testing.T) {
	for _, c := range []struct {
		attributes, flags uint32
		minor             uint16
	}{{ReadOnly, 0, 0}, {Updated, 0, 1}, {Disabled, 0, 1}, {ReadOnly, OverlaysActive, 2}, {Updated, VirtualAB, 2}} {
		b := newBuilder(t, 1024, 2, small)
		must(t, b.AddPartition("system", DefaultGroup, 0))
		must(t, b.SetAttributes("system", c.attributes))
		b.SetFlags(c.flags)
		m := mustExport(t, b)
		if m.Minor != c.minor {
			t.Errorf("%+v: found minor version %d", c, m.Minor)
		}
		expectEqual(t, "read", mustRead(t, flashed(t, m, m), 1), m)
	}
	expectError(t, "unknown partition", newBuilder(t, 1024, 2, small).SetAttributes("x", 0), ErrUnknown)
	b := grown(t, newBuilder(t, 1024, 2, small), "system")
	must(t, b.SetAttributes("system", 16))
	_, err := b.Export()
	expectError(t, "unknown attribute", err, ErrCorrupt)
}

// LPB-017.
func TestUpdateDevice(t *testing.T) {
	b := newBuilder(t, 1024, 2, DeviceInfo{"super", mib, 4096, 1024, 4096})
	for _, c := range []struct {
		info   DeviceInfo
		want   error
		device BlockDevice
	}{
		{DeviceInfo{"super", mib, 0, 0, 0}, nil, BlockDevice{32, 4096, 1024, mib, "super", 0}},
		{DeviceInfo{"super", mib, 8192, 512, 4096}, nil, BlockDevice{32, 8192, 512, mib, "super", 0}},
		{DeviceInfo{"super", mib, 0, 0, 512}, nil, BlockDevice{32, 8192, 512, mib, "super", 0}},
		{DeviceInfo{"super", 2 * mib, 1024, 0, 4096}, ErrSize, BlockDevice{32, 8192, 512, mib, "super", 0}},
		{DeviceInfo{"super", mib, 1024, 0, 7}, ErrSize, BlockDevice{32, 8192, 512, mib, "super", 0}},
		{DeviceInfo{"super", mib, 1024, 0, 8192}, ErrSize, BlockDevice{32, 8192, 512, mib, "super", 0}},
		{DeviceInfo{"other", mib, 1024, 0, 4096}, ErrUnknown, BlockDevice{32, 8192, 512, mib, "super", 0}},
	} {
		expectError(t, fmt.Sprint(c.info), b.UpdateDevice(c.info), c.want)
		if m := mustExport(t, b); m.BlockDevices[0] != c.device || m.Geometry.LogicalBlockSize != 4096 {
			t.Errorf("%+v: expected %+v, found %+v", c.info, c.device, m.BlockDevices[0])
		}
	}
}

// LPB-019.
func TestWholeBlocks(t *testing.T) {
	b := grown(t, newBuilder(t, 1024, 2, small), "system=512")
	expectExtents(t, b, "system", "32+8")
	b = grown(t, newBuilder(t, 512, 1, DeviceInfo{"super", 20480, 512, 0, 4096}), "system=4096")
	if free := b.Free(); len(free) != 1 || free[0].Sectors() != 6 {
		t.Errorf("expected 6 free sectors, found %v", free)
	}
	expectError(t, "less than a block is left", b.Resize("system", 4097, nil), ErrNoSpace)
}

// LPB-020, LPB-022, LPB-024.
func TestGroups(t *testing.T) {
	b := grown(t, newBuilder(t, 1024, 2, small), "system=65536", "vendor=4096")
	expectError(t, "remove default", b.RemoveGroup(DefaultGroup), ErrName)
	expectError(t, "resize default", b.ResizeGroup(DefaultGroup, 1), ErrName)
	expectError(t, "remove unknown", b.RemoveGroup("none"), ErrUnknown)
	expectError(t, "resize unknown", b.ResizeGroup("none", 1), ErrUnknown)
	must(t, b.AddGroup("main", 65536))
	must(t, b.AddGroup("little", 4096))
	must(t, b.ChangeGroup("system", "main"))
	must(t, b.ChangeGroup("system", "main"))
	expectError(t, "too large a partition", b.ChangeGroup("system", "little"), ErrNoSpace)
	expectError(t, "full group", b.ChangeGroup("vendor", "main"), ErrNoSpace)
	expectError(t, "unknown group", b.ChangeGroup("system", "none"), ErrUnknown)
	expectError(t, "unknown partition", b.ChangeGroup("none", "main"), ErrUnknown)
	expectError(t, "too small a group", b.ResizeGroup("main", 65535), ErrNoSpace)
	must(t, b.ResizeGroup("main", 0))
	must(t, b.ChangeGroup("vendor", "main"))
	if got := b.PartitionsIn("main"); !slices.Equal(got, []string{"system", "vendor"}) {
		t.Errorf("expected system and vendor in main, found %q", got)
	}
	if got := b.Groups(); len(got) != 3 || got[0] != (Group{"default", 0, 0}) || got[1] != (Group{"main", 0, 0}) {
		t.Errorf("expected default, main and little, found %+v", got)
	}
	must(t, b.RemoveGroup("main"))
	if got := b.Partitions(); got != nil {
		t.Errorf("expected no partitions, found %q", got)
	}
}

// LPB-021; zeros take nothing of a group.
func TestGroupLimit(t *testing.T) {
	b := newBuilder(t, 1024, 2, small)
	must(t, b.AddGroup("main", 16384))
	must(t, b.AddPartition("system", "main", 0))
	must(t, b.AddExtent("system", Extent{NumSectors: 800, Type: Zero}))
	must(t, b.Resize("system", 800*512+8192, nil))
	must(t, b.Resize("system", 800*512+4096, nil))
	must(t, b.Resize("system", 800*512+16384, nil))
	expectError(t, "too large", b.Resize("system", 800*512+16385, nil), ErrNoSpace)
	expectExtents(t, b, "system", "zero+800 32+32")
	must(t, b.Resize("system", 8192, nil))
	expectExtents(t, b, "system", "zero+16")
	expectError(t, "an extent too large", b.AddExtent("system", Extent{NumSectors: 40, Data: 32}), ErrNoSpace)
}

// LPB-023.
func TestRemoveAndAddFirst(t *testing.T) {
	b := grown(t, newBuilder(t, 1024, 2, small), "foo_a=65536", "bar_a=65536")
	must(t, b.RemovePartition("foo_a"))
	grown(t, b, "foo_a=131072")
	expectExtents(t, b, "foo_a", "32+128 288+128")
	expectExtents(t, b, "bar_a", "160+128")
}

// A partition shrinks, goes, comes and grows on its own device, whatever else is free.
func TestOwnDevices(t *testing.T) {
	b := newBuilder(t, 65536, 2, DeviceInfo{"super", mib, 4096, 0, 4096}, DeviceInfo{"system", mib, 4096, 0, 4096}, DeviceInfo{"vendor", mib, 4096, 0, 4096})
	b.OwnDevices()
	grown(t, b, "vendor_b=524288", "system_b=8192", "cow=16384")
	must(t, b.Resize("system_b", 524288, nil))
	expectExtents(t, b, "vendor_b", "2:8+1024")
	expectExtents(t, b, "system_b", "1:8+1024")
	expectExtents(t, b, "cow", "536+32")
	must(t, b.RemovePartition("system_b"))
	must(t, b.Resize("vendor_b", 4096, nil))
	must(t, b.Resize("vendor_b", 8192, nil))
	grown(t, b, "system_b=4096")
	expectExtents(t, b, "vendor_b", "2:8+16")
	expectExtents(t, b, "system_b", "1:8+8")
	expectError(t, "more than its device", b.Resize("vendor_b", mib, nil), ErrNoSpace)
	expectError(t, "elsewhere", b.Resize("vendor_b", 16384, []Region{{1, 64, 2048}}), ErrNoSpace)
	must(t, b.Resize("cow", mib, []Region{{0, 0, 2048}, {1, 64, 2048}}))
	expectExtents(t, b, "cow", "536+1512 1:64+536")
}

// LPB-025; devices without metadata begin with their second sector, aligned.
func TestSeveralDevices(t *testing.T) {
	b := grown(t, newBuilder(t, 65536, 2, DeviceInfo{"system_a", 256 * mib, 786432, 229376, 4096}, DeviceInfo{"vendor_a", 128 * mib, 786432, 753664, 4096},
		DeviceInfo{"product_a", 64 * mib, 786432, 753664, 4096}), "system_a=466976768")
	expectExtents(t, b, "system_a", "1536+522752 1:1536+260608 2:1536+128704")
	m := mustExport(t, b)
	want := []Line{{0, 522752, false, 0, 1536}, {522752, 260608, false, 1, 1536}, {783360, 128704, false, 2, 1536}}
	if got := m.Table(m.Partition("system_a")); !slices.Equal(got, want) {
		t.Errorf("expected %+v, found %+v", want, got)
	}
	want2 := []Region{{2, 130560, 131072}}
	if got := b.Free(); !slices.Equal(got, want2) {
		t.Errorf("expected %v free, found %v", want2, got)
	}
}

// LPB-026.
func TestImportPartitions(t *testing.T) {
	source := grown(t, newBuilder(t, 1024, 2, small), "system=65536", "vendor=32768", "product=4096")
	must(t, source.Resize("system", 98304, nil))
	m := mustExport(t, source)
	b := grown(t, newBuilder(t, 1024, 2, small), "vendor=4096")
	must(t, b.Import(m, "vendor", "system"))
	expectExtents(t, b, "system", extents(t, source, "system"))
	expectExtents(t, b, "vendor", extents(t, source, "vendor"))
	if got := b.Partitions(); !slices.Equal(got, []string{"vendor", "system"}) {
		t.Errorf("expected vendor and system, found %q", got)
	}
	b = grown(t, newBuilder(t, 1024, 2, small), "other=65536")
	before := mustExport(t, b)
	expectError(t, "taken sectors", b.Import(m, "product", "system"), ErrNoSpace)
	expectError(t, "unknown partition", b.Import(m, "none"), ErrUnknown)
	m.Groups[0].Name = "main"
	expectError(t, "unknown group", b.Import(m, "product"), ErrUnknown)
	m.Groups[0].Name, m.BlockDevices[0].Name = DefaultGroup, "elsewhere"
	expectError(t, "unknown device", b.Import(m, "product"), ErrUnknown)
	m.Major = 1
	expectError(t, "invalid", b.Import(m, "product"), ErrVersion)
	expectEqual(t, "after failures", mustExport(t, b), before)
}

// LPB-027.
func TestHalves(t *testing.T) {
	b := newBuilder(t, 65536, 2, DeviceInfo{"super", 10 * gib, 768 * kib, 0, 4096})
	b.PreferHalves()
	grown(t, b, fmt.Sprintf("system_a=%d", 2*gib), fmt.Sprintf("system_b=%d", 2*gib))
	must(t, b.RemovePartition("system_a"))
	grown(t, b, fmt.Sprintf("system_a=%d", 3*gib))
	must(t, b.Resize("system_b", 6*gib, nil))
	expectExtents(t, b, "system_b", "10487808+10483712 6292992+2099200")
	expectExtents(t, b, "system_a", "1536+6291456")
}

// LPB-032, LPB-034, LPB-035.
func TestAddExtent(t *testing.T) {
	b := grown(t, newBuilder(t, 1024, 2, small), "system=65536", "vendor")
	add := func(name string, e Extent, want error) {
		t.Helper()
		expectError(t, fmt.Sprintf("%s: %+v", name, e), b.AddExtent(name, e), want)
	}
	add("vendor", Extent{8, Linear, 24, 0}, ErrCorrupt)
	add("vendor", Extent{8, Linear, 2048, 0}, ErrCorrupt)
	add("vendor", Extent{16, Linear, 2040, 0}, ErrCorrupt)
	add("vendor", Extent{math.MaxUint64 - 31, Linear, 32, 0}, ErrCorrupt)
	add("vendor", Extent{8, Linear, 800, 1}, ErrCorrupt)
	add("vendor", Extent{8, 2, 800, 0}, ErrCorrupt)
	add("vendor", Extent{16, Linear, 152, 0}, ErrNoSpace)
	add("vendor", Extent{8, Linear, 32, 0}, ErrNoSpace)
	add("vendor", Extent{math.MaxUint64, Zero, 0, 0}, ErrCorrupt)
	add("none", Extent{8, Linear, 160, 0}, ErrUnknown)
	add("vendor", Extent{8, Linear, 2040, 0}, nil)
	add("vendor", Extent{8, Linear, 160, 0}, nil)
	add("vendor", Extent{8, Linear, 168, 0}, nil)
	expectExtents(t, b, "vendor", "2040+8 160+16")
	add("vendor", Extent{maxSectors, Zero, 0, 0}, ErrSize)
	add("vendor", Extent{maxSectors - 24, Zero, 0, 0}, nil)
	add("vendor", Extent{1, Zero, 0, 0}, ErrSize)
	mustExport(t, b)
}

// LPB-034.
func TestResizeOverflow(t *testing.T) {
	b := grown(t, newBuilder(t, 1024, 2, small), "system=65536")
	must(t, b.AddGroup("main", math.MaxUint64))
	must(t, b.ChangeGroup("system", "main"))
	for n, want := range map[uint64]error{math.MaxUint64: ErrSize, math.MaxUint64 - 4095: ErrSize, 1 << 63: ErrSize, 1<<63 - 4096: ErrNoSpace} {
		expectError(t, fmt.Sprint(n), b.Resize("system", n, nil), want)
	}
	expectExtents(t, b, "system", "32+128")
}

// LPB-030.
func TestIntersect(t *testing.T) {
	for _, c := range []struct{ a, b, want []Region }{
		{nil, nil, nil},
		{[]Region{{0, 0, 10}}, nil, nil},
		{[]Region{{0, 0, 10}}, []Region{{0, 2, 5}}, []Region{{0, 2, 5}}},
		{[]Region{{0, 0, 10}}, []Region{{0, 5, 15}}, []Region{{0, 5, 10}}},
		{[]Region{{0, 0, 10}}, []Region{{0, 10, 15}}, nil},
		{[]Region{{0, 0, 10}}, []Region{{1, 0, 10}}, nil},
		{[]Region{{0, 0, 10}, {0, 20, 30}}, []Region{{0, 5, 25}}, []Region{{0, 5, 10}, {0, 20, 25}}},
		{[]Region{{1, 0, 10}, {0, 50, 60}, {0, 0, 10}}, []Region{{0, 0, 100}, {1, 9, 100}}, []Region{{0, 0, 10}, {0, 50, 60}, {1, 9, 10}}},
		{[]Region{{0, 0, 10}, {0, 5, 20}, {0, 20, 30}}, []Region{{0, 0, 30}}, []Region{{0, 0, 30}}},
		{[]Region{{0, 5, 5}, {0, 9, 3}}, []Region{{0, 0, 30}}, nil},
		{[]Region{{0, 0, math.MaxUint64}}, []Region{{0, math.MaxUint64 - 1, math.MaxUint64}}, []Region{{0, math.MaxUint64 - 1, math.MaxUint64}}},
	} {
		for range 2 {
			if got := Intersect(c.a, c.b); !slices.Equal(got, c.want) {
				t.Errorf("%v and %v: expected %v, found %v", c.a, c.b, c.want, got)
			}
			c.a, c.b = c.b, c.a
		}
	}
}

// LPB-033: regions that a caller gives are aligned inside.
func TestWithin(t *testing.T) {
	b := grown(t, newBuilder(t, 65536, 2, DeviceInfo{"super", 16 * mib, mib, 0, 4096}), "system=4096", "cow")
	none := []Region{}
	expectError(t, "nowhere", b.Resize("cow", 1, none), ErrNoSpace)
	expectError(t, "between alignments", b.Resize("cow", 1, []Region{{0, 6145, 8191}}), ErrNoSpace)
	expectError(t, "in a partition", b.Resize("cow", 1, []Region{{0, 0, 2056}}), ErrNoSpace)
	expectError(t, "behind the device", b.Resize("cow", 1, []Region{{0, 32768, 99999}, {1, 0, 99999}}), ErrNoSpace)
	must(t, b.Resize("cow", 8192, []Region{{0, 6100, 6160}, {0, 8000, 9000}}))
	expectExtents(t, b, "cow", "6144+16")
	must(t, b.Resize("cow", 12288, []Region{{0, 8192, 9000}}))
	expectExtents(t, b, "cow", "6144+16 8192+8")
	must(t, b.Resize("cow", 16384, []Region{{0, 8200, 8220}}))
	expectExtents(t, b, "cow", "6144+16 8192+16")
	expectError(t, "more than the region", b.Resize("cow", 24576, []Region{{0, 8200, 8220}}), ErrNoSpace)
	must(t, b.Resize("cow", 20480, []Region{{0, 8200, 8220}}))
	expectExtents(t, b, "cow", "6144+16 8192+24")
}

// LPI-016.
func TestLeaveSlotOpen(t *testing.T) {
	b := grown(t, newBuilder(t, 1024, 2, small), "system=4096")
	must(t, b.AddGroup("main", 0))
	b.LeaveSlotOpen()
	m := mustExport(t, b)
	d := flashed(t, m, m)
	got := mustRead(t, d, 1)
	if got.Partition("system_b") == nil || got.Groups[0].Name != "default" || got.Groups[1].Name != "main_b" || got.BlockDevices[0].Name != "super_b" {
		t.Errorf("expected names with _b, found %+v", got)
	}
}

// virtualAB is a device as it leaves the factory: slot b is empty.
func virtualAB(t testing.TB) *Metadata {
	b := newBuilder(t, 65536, 2, DeviceInfo{"super", 64 * mib, mib, 0, 4096})
	must(t, b.AddGroup("main_a", 32*mib))
	must(t, b.AddGroup("main_b", 32*mib))
	must(t, b.AddGroup("other", 0))
	must(t, b.AddPartition("system_a", "main_a", ReadOnly))
	must(t, b.AddPartition("system_b", "main_b", ReadOnly))
	must(t, b.AddPartition("vendor_a", "main_a", ReadOnly))
	must(t, b.AddPartition("scratch", "other", 0))
	must(t, b.Resize("system_a", 10*mib, nil))
	must(t, b.Resize("vendor_a", 5*mib, nil))
	must(t, b.Resize("scratch", mib, nil))
	must(t, b.Resize("system_a", 12*mib, nil))
	return mustExport(t, b)
}

// LPI-018, LPI-019, LPI-025.
func TestForUpdate(t *testing.T) {
	m := virtualAB(t)
	if m.Minor != 0 {
		t.Fatalf("expected version 10.0, found 10.%d", m.Minor)
	}
	before := m.Clone()
	b, err := ForUpdate(m, "_a", "_b")
	must(t, err)
	got := mustExport(t, b)
	expectEqual(t, "the source", m, before)
	want := []string{"system_b", "vendor_b", "scratch"}
	if names := b.Partitions(); !slices.Equal(names, want) {
		t.Errorf("expected %q, found %q", want, names)
	}
	for name, old := range map[string]string{"system_b": "system_a", "vendor_b": "vendor_a", "scratch": "scratch"} {
		p, q := got.Partition(name), m.Partition(old)
		if !slices.Equal(got.ExtentsOf(p), m.ExtentsOf(q)) || (p.Attributes&^q.Attributes == Updated) != (name != old) {
			t.Errorf("%s: expected the extents of %s, updated, found %+v", name, old, p)
		}
	}
	if groups := b.Groups(); len(groups) != 3 || groups[1] != (Group{"main_b", 0, 32 * mib}) || groups[2].Name != "other" {
		t.Errorf("expected the groups default, main_b and other, found %+v", groups)
	}
	if got.Minor != 2 || got.Flags != VirtualAB || got.BlockDevices[0].Name != "super" {
		t.Errorf("expected version 10.2, a flag and the device super, found %+v", got)
	}
	b.SetFlags(0)
	b.minor = 0
	if got := mustExport(t, b); got.Minor != 1 {
		t.Errorf("without the flag: expected version 10.1, found 10.%d", got.Minor)
	}
	back, err := ForUpdate(got, "_b", "_a")
	must(t, err)
	if _, ok := back.Size("system_a"); !ok {
		t.Error("expected system_a in the update after that")
	}
	for _, s := range [][2]string{{"_a", "_a"}, {"a", "b"}, {"", "_b"}, {"_a", "_c"}} {
		_, err := ForUpdate(m, s[0], s[1])
		expectError(t, fmt.Sprint(s), err, ErrSlot)
	}
	m.Partition("vendor_a").Group = 2
	_, err = ForUpdate(m, "_a", "_b")
	expectError(t, "a partition in the group of the other slot", err, ErrCorrupt)
	m.Major = 1
	_, err = ForUpdate(m, "_a", "_b")
	expectError(t, "invalid", err, ErrVersion)
}

// An update that moves everything: space and room in groups are freed before they
// are needed.
func TestApply(t *testing.T) {
	b, err := ForUpdate(virtualAB(t), "_a", "_b")
	must(t, err)
	must(t, b.AddGroup("gone_b", mib))
	must(t, b.AddPartition("odm_b", "gone_b", ReadOnly|Updated))
	must(t, b.Resize("odm_b", mib, nil))
	plan := []GroupPlan{
		{"main_b", 44 * mib, []PartitionPlan{{"system_b", 40 * mib}, {"product_b", 4*mib - 1}}},
		{"vendor_group_b", 8 * mib, []PartitionPlan{{"vendor_b", 4 * mib}, {"empty_b", 0}}},
	}
	must(t, b.Apply(plan))
	m := mustExport(t, b)
	for name, want := range map[string]struct {
		size       uint64
		attributes uint32
		group      string
	}{
		"system_b": {40 * mib, ReadOnly | Updated, "main_b"}, "product_b": {4 * mib, ReadOnly | Updated, "main_b"},
		"vendor_b": {4 * mib, ReadOnly | Updated, "vendor_group_b"}, "empty_b": {0, ReadOnly | Updated, "vendor_group_b"}, "scratch": {mib, 0, "other"},
	} {
		p := m.Partition(name)
		if p == nil || m.Size(p) != want.size || p.Attributes != want.attributes || m.Groups[p.Group].Name != want.group {
			t.Errorf("%s: expected %+v, found %+v", name, want, p)
		}
	}
	if len(m.Partitions) != 5 || len(m.Groups) != 4 {
		t.Errorf("expected 5 partitions and 4 groups, found %+v, %+v", m.Partitions, m.Groups)
	}
	must(t, b.Apply(plan))
	expectEqual(t, "applied again", mustExport(t, b), m)
	must(t, b.ApplyPartial([]GroupPlan{{"vendor_group_b", 0, []PartitionPlan{{"vendor_b", 2 * mib}}}}))
	if size, _ := b.Size("system_b"); size != 40*mib {
		t.Errorf("expected that a partial plan leaves system_b, found %d bytes", size)
	}
	if size, _ := b.Size("vendor_b"); size != 2*mib {
		t.Errorf("expected 2 MiB of vendor_b, found %d bytes", size)
	}
}

func TestApplyRefuses(t *testing.T) {
	b, err := ForUpdate(virtualAB(t), "_a", "_b")
	must(t, err)
	before := mustExport(t, b)
	for name, c := range map[string]struct {
		plan []GroupPlan
		want error
	}{
		"group twice":       {[]GroupPlan{{"main_b", 0, nil}, {"main_b", 0, nil}}, ErrName},
		"partition twice":   {[]GroupPlan{{"main_b", 0, []PartitionPlan{{"system_b", 0}, {"system_b", 0}}}}, ErrName},
		"in two groups":     {[]GroupPlan{{"main_b", 0, []PartitionPlan{{"system_b", 0}}}, {"more_b", 0, []PartitionPlan{{"system_b", 0}}}}, ErrName},
		"other slot":        {[]GroupPlan{{"main_b", 0, []PartitionPlan{{"system_a", 0}}}}, ErrName},
		"group without one": {[]GroupPlan{{"default", 0, nil}}, ErrName},
		"group too small":   {[]GroupPlan{{"main_b", 4096, []PartitionPlan{{"system_b", 8192}}}}, ErrNoSpace},
		"device too small":  {[]GroupPlan{{"main_b", 0, []PartitionPlan{{"system_b", 70 * mib}}}}, ErrNoSpace},
		"size near 2^64":    {[]GroupPlan{{"main_b", 0, []PartitionPlan{{"system_b", math.MaxUint64}}}}, ErrSize},
		"partition's name":  {[]GroupPlan{{"main_b", 0, []PartitionPlan{{strings.Repeat("x", 36) + "_b", 0}}}}, ErrName},
		"group's name":      {[]GroupPlan{{strings.Repeat("x", 36) + "_b", 0, nil}}, ErrName},
	} {
		expectError(t, name, b.Apply(c.plan), c.want)
		expectEqual(t, name, mustExport(t, b), before)
	}
}

// LPB-029: COWs go where neither the source slot nor the target slot has anything.
func TestCowsAvoidSource(t *testing.T) {
	m := virtualAB(t)
	source, err := FromMetadata(m)
	must(t, err)
	b, err := ForUpdate(m, "_a", "_b")
	must(t, err)
	must(t, b.Apply([]GroupPlan{{"main_b", 0, []PartitionPlan{{"system_b", 20 * mib}, {"vendor_b", mib}}}}))
	both := Intersect(b.Free(), source.Free())
	must(t, b.AddGroup("cow", 0))
	total := uint64(0)
	for _, r := range both {
		total += r.Sectors() * SectorSize
	}
	for _, name := range []string{"system_b-cow", "vendor_b-cow"} {
		must(t, b.AddPartition(name, "cow", 0))
		must(t, b.Resize(name, total/4/mib*mib, both))
	}
	target := mustExport(t, b)
	var cows []Region
	for _, name := range []string{"system_b-cow", "vendor_b-cow"} {
		for _, e := range target.ExtentsOf(target.Partition(name)) {
			cows = append(cows, Region{int(e.Source), e.Data, e.Data + e.NumSectors})
		}
	}
	if hit := Intersect(cows, source.Used()); len(hit) > 0 || len(cows) == 0 {
		t.Errorf("expected no sector of the source, found %v of %v", hit, cows)
	}
	expectError(t, "more than there is", b.Resize("system_b-cow", total, both), ErrNoSpace)
}

// Whatever is done in whatever order: metadata stay valid, sizes are what was asked
// for, and what is used and what is free are the device.
func TestAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		device := DeviceInfo{"super", 2 * mib, rapid.SampledFrom([]uint32{0, 4096, 16384, 12 * kib}).Draw(t, "alignment"), 0, 4096}
		b, err := NewBuilder([]DeviceInfo{device, {"more", mib, 0, 0, 4096}}, 4096, 2)
		if err != nil {
			t.Fatal(err)
		}
		sizes := map[string]uint64{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			name := rapid.SampledFrom([]string{"a", "b", "c_b", "d"}).Draw(t, "name")
			size := uint64(rapid.IntRange(0, 300).Draw(t, "blocks")) * 4096
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				if b.RemovePartition(name) == nil {
					delete(sizes, name)
				}
			case 1:
				b.halves = !b.halves
			default:
				if _, ok := sizes[name]; !ok && b.AddPartition(name, DefaultGroup, 0) == nil {
					sizes[name] = 0
				}
				err := b.Resize(name, size, nil)
				if err == nil {
					sizes[name] = size
				} else if !errors.Is(err, ErrNoSpace) {
					t.Fatal(err)
				}
			}
			checkPlan(t, b, sizes)
		}
	})
}

func checkPlan(t *rapid.T, b *Builder, sizes map[string]uint64) {
	m, err := b.Export()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range sizes {
		if got := m.Size(m.Partition(name)); got != want {
			t.Fatalf("%s: expected %d bytes, found %d", name, want, got)
		}
	}
	if both := Intersect(b.Free(), b.Used()); len(both) > 0 {
		t.Fatalf("expected no sectors both free and used, found %v", both)
	}
	for _, r := range b.Free() {
		d := b.devices[r.Device]
		if r.Start >= r.End || r.Start < d.FirstLogicalSector || r.End > d.Size/SectorSize || d.Alignment > 0 && r.Start*SectorSize%uint64(d.Alignment) != 0 {
			t.Fatalf("expected aligned free regions within the devices, found %+v", r)
		}
	}
	if b.devices[0].Alignment > 4096 {
		return
	}
	var all []Region
	for i, d := range b.devices {
		all = append(all, Region{i, d.FirstLogicalSector, d.Size / SectorSize})
	}
	if got := normal(append(b.Free(), b.Used()...)); !slices.Equal(got, all) {
		t.Fatalf("expected that all is free or used, found %v", got)
	}
}
