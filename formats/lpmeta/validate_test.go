package lpmeta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// LPB-032, LPB-035 and what else is no metadata. Each change makes the sample
// invalid; the message says what is wrong.
func TestValidate(t *testing.T) {
	if err := sample().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text   string
		want   error
		change func(m *Metadata)
	}{
		{"10.0 to 10.2, found 10.3", ErrVersion, func(m *Metadata) { m.Minor = 3 }},
		{"10.0 to 10.2, found 11.0", ErrVersion, func(m *Metadata) { m.Major, m.Minor = 11, 0 }},
		{"flags of version 10.1", ErrCorrupt, func(m *Metadata) { m.Minor = 1 }},
		{"attributes in version 10.0", ErrCorrupt, func(m *Metadata) { m.Minor, m.Flags = 0, 0 }},
		{"attributes in version 10.2", ErrCorrupt, func(m *Metadata) { m.Partitions[0].Attributes = 16 }},
		{"at most 1024", ErrTooLarge, func(m *Metadata) { m.Extents = make([]Extent, 50) }},
		{"metadata_max_size", ErrCorrupt, func(m *Metadata) { m.Geometry.MetadataMaxSize = 1000 }},
		{"metadata_max_size", ErrCorrupt, func(m *Metadata) { m.Geometry.MetadataMaxSize = 0 }},
		{"metadata_max_size", ErrCorrupt, func(m *Metadata) { m.Geometry.MetadataMaxSize = MaxMetadataSize + 512 }},
		{"slot_count", ErrCorrupt, func(m *Metadata) { m.Geometry.SlotCount = 0 }},
		{"slot_count", ErrCorrupt, func(m *Metadata) { m.Geometry.SlotCount = MaxSlots + 1 }},
		{"logical_block_size", ErrCorrupt, func(m *Metadata) { m.Geometry.LogicalBlockSize = 7 }},
		{"logical_block_size", ErrCorrupt, func(m *Metadata) { m.Geometry.LogicalBlockSize = 0 }},
		{"block devices", ErrCorrupt, func(m *Metadata) { m.BlockDevices = nil }},
		{"less than 2^63", ErrCorrupt, func(m *Metadata) { m.BlockDevices[0].Size = 1 << 63 }},
		{"at most 2048", ErrCorrupt, func(m *Metadata) { m.BlockDevices[0].FirstLogicalSector = 2049 }},
		{"behind the metadata", ErrCorrupt, func(m *Metadata) { m.BlockDevices[0].FirstLogicalSector = 31 }},
		{`"super" twice`, ErrCorrupt, func(m *Metadata) { m.BlockDevices = append(m.BlockDevices, m.BlockDevices[0]) }},
		{`"cow" twice`, ErrCorrupt, func(m *Metadata) { m.Groups[1].Name = "cow" }},
		{`"vendor_a" twice`, ErrCorrupt, func(m *Metadata) { m.Partitions[0].Name = "vendor_a" }},
		{"name of a partition", ErrCorrupt, func(m *Metadata) { m.Partitions[0].Name = "" }},
		{"name of a partition", ErrCorrupt, func(m *Metadata) { m.Partitions[0].Name = "../x" }},
		{"name of a partition", ErrCorrupt, func(m *Metadata) { m.Partitions[0].Name = ".." }},
		{"name of a partition", ErrCorrupt, func(m *Metadata) { m.Partitions[0].Name = "a b" }},
		{"name of a partition", ErrCorrupt, func(m *Metadata) { m.Partitions[0].Name = "a\x00b" }},
		{"name of a partition", ErrCorrupt, func(m *Metadata) { m.Partitions[0].Name = "a\xc3\xa4" }},
		{"name of a partition", ErrCorrupt, func(m *Metadata) { m.Partitions[0].Name = strings.Repeat("a", 37) }},
		{"less than 3", ErrCorrupt, func(m *Metadata) { m.Partitions[0].Group = 3 }},
		{"less than 3", ErrCorrupt, func(m *Metadata) { m.Partitions[0].Group = math.MaxUint32 }},
		{"end of its extents", ErrCorrupt, func(m *Metadata) { m.Partitions[3].FirstExtent = 6 }},
		{"end of its extents", ErrCorrupt, func(m *Metadata) { m.Partitions[2].FirstExtent = math.MaxUint32 }},
		{"extents of all partitions", ErrCorrupt, func(m *Metadata) { m.Partitions[0].NumExtents = math.MaxUint32 }},
		{"extents of all partitions", ErrCorrupt, func(m *Metadata) { m.Partitions[0].NumExtents, m.Partitions[0].FirstExtent = 5, 0 }},
		{"target_type", ErrCorrupt, func(m *Metadata) { m.Extents[0].Type = 2 }},
		{"target_source", ErrCorrupt, func(m *Metadata) { m.Extents[0].Source = 1 }},
		{"zero extent", ErrCorrupt, func(m *Metadata) { m.Extents[2].Data = 1 }},
		{"zero extent", ErrCorrupt, func(m *Metadata) { m.Extents[2].Source = 1 }},
		{"within 32 to 2048, found 64 from 1985 on", ErrCorrupt, func(m *Metadata) { m.Extents[0].Data = 1985 }},
		{"within 32 to 2048", ErrCorrupt, func(m *Metadata) { m.Extents[0].Data = math.MaxUint64 }},
		{"within 32 to 2048", ErrCorrupt, func(m *Metadata) { m.Extents[3].Data = 31 }},
		{"within 32 to 2048", ErrCorrupt, func(m *Metadata) { m.Extents[0].NumSectors = maxSectors }},
		{"num_sectors", ErrCorrupt, func(m *Metadata) { m.Extents[0].NumSectors = math.MaxUint64 - 1983 }},
		{"num_sectors", ErrCorrupt, func(m *Metadata) { m.Extents[2].NumSectors = math.MaxUint64 / 512 }},
		{"partition system_a: ", ErrCorrupt, func(m *Metadata) { m.Extents[2].NumSectors = maxSectors - 79 }},
		{"sector 479 of super", ErrCorrupt, func(m *Metadata) { m.Extents[4].Data = 479 }},
		{"vendor_a and system_a", ErrCorrupt, func(m *Metadata) { m.Extents[4].Data = 393 }},
		{"system_a-cow", ErrCorrupt, func(m *Metadata) { m.Extents[4] = Extent{64, Linear, 1984, 0} }},
		{"at most 5, found 6", ErrCorrupt, func(m *Metadata) {
			m.Partitions[3].FirstExtent, m.Partitions[3].NumExtents = 4, 1
			m.Partitions[1].NumExtents = 2
		}},
	} {
		m := sample()
		c.change(m)
		err := m.Validate()
		expectError(t, c.text, err, c.want)
		if err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("expected %q in the message, found %v", c.text, err)
		}
		// What is invalid is not read either, where its bytes can be written at all.
		if c.want != ErrCorrupt || m.Geometry != sample().Geometry || int(m.encodedSize()) > 1024 || strings.Contains(c.text, "flags of version") || len(m.Partitions[0].Name) > 36 || strings.Contains(m.Partitions[0].Name, "\x00") {
			continue
		}
		d := flashed(t, sample(), sample())
		for _, backup := range []bool{false, true} {
			copy(d.now[m.Geometry.Offset(0, backup):], m.encode())
		}
		_, err = Read(d, 0)
		expectError(t, "read: "+c.text, err, ErrCorrupt)
	}
}

// LPI-027: what a strict reader might refuse, and should not.
func TestAccepts(t *testing.T) {
	for name, change := range map[string]func(m *Metadata){
		"empty extent":          func(m *Metadata) { m.Extents[0].NumSectors = 0 },
		"adjacent":              func(m *Metadata) { m.Extents[4].Data = 392 },
		"nobody's, over others": func(m *Metadata) { m.Extents[3].Data = 400 },
		"large zero extent":     func(m *Metadata) { m.Extents[2].NumSectors = maxSectors - 80 },
		"second device":         func(m *Metadata) { m.BlockDevices = append(m.BlockDevices, BlockDevice{Name: "odm", Size: 512}) },
		"no partitions":         func(m *Metadata) { m.Partitions, m.Extents, m.Groups = nil, nil, nil },
		"unknown flag":          func(m *Metadata) { m.Flags = 1 << 31 },
		"minor version 1":       func(m *Metadata) { m.Minor, m.Flags = 1, 0 },
	} {
		m := sample()
		change(m)
		d := flashed(t, m, m)
		expectEqual(t, name, mustRead(t, d, 1), m)
	}
}

// sealed writes a header with fields changed, and right checksums.
func sealed(d *disk, m *Metadata, change func(header []byte)) {
	for _, backup := range []bool{false, true} {
		b := d.now[m.Geometry.Offset(0, backup):]
		h := b[:headerSizeOf(m.Minor)]
		change(h)
		clear(h[headerSumAt:][:sha256.Size])
		sum := sha256.Sum256(h)
		copy(h[headerSumAt:], sum[:])
	}
}

// Headers whose checksums are right, and lengths are not.
func TestHostileHeaders(t *testing.T) {
	m := sample()
	put := func(off int, v uint32) func([]byte) {
		return func(h []byte) { binary.LittleEndian.PutUint32(h[off:], v) }
	}
	for name, c := range map[string]struct {
		change func([]byte)
		want   error
	}{
		"magic":                  {put(0, 1), ErrCorrupt},
		"major version":          {put(4, 9|2<<16), ErrVersion},
		"minor version":          {put(4, 10|3<<16), ErrVersion},
		"header size":            {put(8, 128), ErrCorrupt},
		"large header size":      {put(8, math.MaxUint32), ErrCorrupt},
		"tables larger than M":   {put(44, 1024-255), ErrCorrupt},
		"huge tables":            {put(44, math.MaxUint32), ErrCorrupt},
		"shorter tables":         {put(44, 100), ErrCorrupt},
		"partition count":        {put(84, 11), ErrCorrupt},
		"partition count, huge":  {put(84, math.MaxUint32), ErrCorrupt},
		"partition entry size":   {put(88, 0), ErrCorrupt},
		"extents behind the end": {put(92, 600), ErrCorrupt},
		"extents, huge offset":   {put(92, math.MaxUint32), ErrCorrupt},
		"group entry size":       {put(112, 52), ErrCorrupt},
		"device count":           {put(120, 2), ErrCorrupt},
		"no device":              {put(120, 0), ErrCorrupt},
	} {
		d := flashed(t, m, m)
		sealed(d, m, c.change)
		_, err := Read(d, 0)
		expectError(t, name, err, c.want)
	}
	d := flashed(t, m, m)
	sealed(d, m, put(200, 7))
	expectEqual(t, "reserved bytes", mustRead(t, d, 0), m)
}

// Reading takes no more memory than the limit lets it.
func TestMemory(t *testing.T) {
	m := sample()
	m.Geometry = Geometry{MaxMetadataSize, 1, 4096}
	m.BlockDevices[0] = BlockDevice{FirstLogicalSector: 1 << 17, Size: 1 << 40, Name: "super"}
	m.Partitions, m.Extents = nil, nil
	for range (MaxMetadataSize - 1024) / extentSize {
		m.Extents = append(m.Extents, Extent{8, Linear, 1 << 17, 0})
	}
	var file bytes.Buffer
	if err := WriteImage(&file, m); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := ReadImage(bytes.NewReader(file.Bytes())); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 12*MaxMetadataSize {
		t.Errorf("expected at most %d bytes in all, found %d", 12*MaxMetadataSize, got)
	}
}

// roundTrip checks that what was read is the same after it is written.
func roundTrip(t *testing.T, m *Metadata) {
	t.Helper()
	if m.Geometry.Reserved() > 1<<22 {
		return
	}
	d := newDisk(int(m.Geometry.Reserved()))
	slots := slices.Repeat([]*Metadata{m}, int(m.Geometry.SlotCount))
	if err := Flash(d, math.MaxInt64, slots); err != nil {
		t.Fatalf("expected that what was read can be written, found %v", err)
	}
	for slot := range slots {
		want, err := m.ForSlot(slot)
		if err != nil {
			continue
		}
		expectEqual(t, "round trip", mustRead(t, d, slot), want)
	}
	var file bytes.Buffer
	if err := WriteImage(&file, m); err != nil {
		t.Fatal(err)
	}
	again, err := ReadImage(bytes.NewReader(file.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	expectEqual(t, "round trip through a file", again, m)
	for i := range m.Partitions {
		p := &m.Partitions[i]
		if sum := m.Size(p); len(m.Table(p)) > len(m.ExtentsOf(p)) || sum > math.MaxInt64 {
			t.Fatalf("partition %s: found %d bytes", p.Name, sum)
		}
	}
}

// reseal makes the checksums right that a fuzzer cannot.
func reseal(b []byte, geometries, headers []int64) {
	fix := func(at int64, off, size int) {
		if at < 0 || at+int64(size) > int64(len(b)) {
			return
		}
		s := b[at : at+int64(size)]
		clear(s[off:][:sha256.Size])
		sum := sha256.Sum256(s)
		copy(s[off:], sum[:])
	}
	for _, at := range geometries {
		fix(at, 8, geometryStruct)
	}
	for _, at := range headers {
		if at+headerSizeV2 > int64(len(b)) {
			continue
		}
		size := int64(headerSizeOf(binary.LittleEndian.Uint16(b[at+6:])))
		if n := int64(binary.LittleEndian.Uint32(b[at+44:])); at+size+n <= int64(len(b)) {
			sum := sha256.Sum256(b[at+size:][:n])
			copy(b[at+tablesSumAt:], sum[:])
		}
		fix(at, headerSumAt, int(size))
	}
}

func FuzzRead(f *testing.F) {
	suffixed := sample()
	suffixed.Partitions[0].Name, suffixed.Partitions[0].Attributes = "system", SlotSuffixed
	for _, m := range []*Metadata{sample(), suffixed} {
		d := flashed(f, m, m)
		f.Add(d.now[4096:16384], uint8(1), true)
		f.Add(d.now[4096:16384], uint8(0), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, slot uint8, seal bool) {
		b = append(make([]byte, 4096), b...)
		if seal {
			reseal(b, []int64{4096, 8192}, []int64{12288, 12288 + 512, 12288 + 1024, 12288 + 2048, 12288 + 3072})
		}
		Inspect(bytes.NewReader(b))
		if m, err := Read(bytes.NewReader(b), int(slot)); err == nil {
			roundTrip(t, m)
		}
	})
}

func FuzzImage(f *testing.F) {
	for _, minor := range []uint16{1, 2} {
		m := sample()
		if m.Minor = minor; minor == 1 {
			m.Flags = 0
		}
		var file bytes.Buffer
		if err := WriteImage(&file, m); err != nil {
			f.Fatal(err)
		}
		f.Add(file.Bytes(), true)
		f.Add(file.Bytes(), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			b = slices.Clone(b)
			reseal(b, []int64{0}, []int64{4096})
		}
		if m, err := ReadImage(bytes.NewReader(b)); err == nil {
			roundTrip(t, m)
		}
	})
}
