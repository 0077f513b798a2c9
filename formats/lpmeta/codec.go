package lpmeta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	headerMagic   = 0x414c5030
	majorVersion  = 10
	maxMinor      = 2
	minorUpdated  = 1 // the first with Updated and Disabled
	minorFlags    = 2 // the first with a header of 256 bytes and flags
	headerSize    = 128
	headerSizeV2  = 256
	headerSumAt   = 12
	tablesSumAt   = 48
	descriptorsAt = 80

	partitionSize = 52
	extentSize    = 24
	groupSize     = 48
	deviceSize    = 64
)

func headerSizeOf(minor uint16) int {
	if minor >= minorFlags {
		return headerSizeV2
	}
	return headerSize
}

// encode gives header and tables. m must be valid.
func (m *Metadata) encode() []byte {
	le := binary.LittleEndian
	size := headerSizeOf(m.Minor)
	b := make([]byte, size, m.encodedSize())
	le.PutUint32(b, headerMagic)
	le.PutUint16(b[4:], m.Major)
	le.PutUint16(b[6:], m.Minor)
	le.PutUint32(b[8:], uint32(size))
	if m.Minor >= minorFlags {
		le.PutUint32(b[128:], m.Flags)
	}
	tables := m.appendTables(b)[size:]
	le.PutUint32(b[44:], uint32(len(tables)))
	at := 0
	for i, t := range [][2]int{{len(m.Partitions), partitionSize}, {len(m.Extents), extentSize}, {len(m.Groups), groupSize}, {len(m.BlockDevices), deviceSize}} {
		for j, v := range []int{at, t[0], t[1]} {
			le.PutUint32(b[descriptorsAt+12*i+4*j:], uint32(v))
		}
		at += t[0] * t[1]
	}
	sum := sha256.Sum256(tables)
	copy(b[tablesSumAt:], sum[:])
	sum = sha256.Sum256(b)
	copy(b[headerSumAt:], sum[:])
	return b[:size+len(tables)]
}

// encodedSize is how many bytes header and tables take.
func (m *Metadata) encodedSize() int64 {
	return int64(headerSizeOf(m.Minor)) + int64(len(m.Partitions))*partitionSize + int64(len(m.Extents))*extentSize +
		int64(len(m.Groups))*groupSize + int64(len(m.BlockDevices))*deviceSize
}

func (m *Metadata) appendTables(b []byte) []byte {
	le := binary.LittleEndian
	for _, p := range m.Partitions {
		b = appendName(b, p.Name)
		for _, v := range []uint32{p.Attributes, p.FirstExtent, p.NumExtents, p.Group} {
			b = le.AppendUint32(b, v)
		}
	}
	for _, e := range m.Extents {
		b = le.AppendUint64(b, e.NumSectors)
		b = le.AppendUint32(b, e.Type)
		b = le.AppendUint64(b, e.Data)
		b = le.AppendUint32(b, e.Source)
	}
	for _, g := range m.Groups {
		b = appendName(b, g.Name)
		b = le.AppendUint32(b, g.Flags)
		b = le.AppendUint64(b, g.MaximumSize)
	}
	for _, d := range m.BlockDevices {
		b = le.AppendUint64(b, d.FirstLogicalSector)
		b = le.AppendUint32(b, d.Alignment)
		b = le.AppendUint32(b, d.AlignmentOffset)
		b = le.AppendUint64(b, d.Size)
		b = appendName(b, d.Name)
		b = le.AppendUint32(b, d.Flags)
	}
	return b
}

func appendName(b []byte, name string) []byte {
	var field [MaxNameLength]byte
	copy(field[:], name)
	return append(b, field[:]...)
}

func parseName(b []byte) string {
	name, _, _ := bytes.Cut(b[:MaxNameLength], []byte{0})
	return string(name)
}

// header is what is needed of it to read the tables.
type header struct {
	minor      uint16
	flags      uint32
	size       int
	tablesSize uint32
	bytes      []byte
}

// parseHeader checks a header of at least 128 bytes, as many as it says.
func parseHeader(b []byte, g Geometry) (h header, err error) {
	le := binary.LittleEndian
	if m := le.Uint32(b); m != headerMagic {
		return h, refuse(ErrCorrupt, "header: magic", fmt.Sprintf("%#x", headerMagic), fmt.Sprintf("%#x", m))
	}
	major, minor := le.Uint16(b[4:]), le.Uint16(b[6:])
	if major != majorVersion || minor > maxMinor {
		return h, refuse(ErrVersion, "header: version", fmt.Sprintf("%d.0 to %d.%d", majorVersion, majorVersion, maxMinor), fmt.Sprintf("%d.%d", major, minor))
	}
	h = header{minor: minor, size: headerSizeOf(minor), tablesSize: le.Uint32(b[44:])}
	if n := le.Uint32(b[8:]); n != uint32(h.size) {
		return h, refuse(ErrCorrupt, fmt.Sprintf("header: header_size of version %d.%d", major, minor), h.size, n)
	}
	h.bytes = b[:h.size]
	if err := checkSum(h.bytes, headerSumAt, "header"); err != nil {
		return h, err
	}
	if room := int64(g.MetadataMaxSize) - int64(h.size); int64(h.tablesSize) > room {
		return h, refuse(ErrCorrupt, "header: tables_size", fmt.Sprintf("at most %d", room), h.tablesSize)
	}
	if minor >= minorFlags {
		h.flags = le.Uint32(b[128:])
	}
	return h, nil
}

// readMetadata reads what begins at off, and checks everything.
func readMetadata(r io.ReaderAt, off int64, g Geometry) (*Metadata, error) {
	b := make([]byte, headerSizeV2)
	if err := readFull(r, b[:headerSize], off); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if binary.LittleEndian.Uint16(b[6:]) >= minorFlags {
		if err := readFull(r, b[headerSize:], off+headerSize); err != nil {
			return nil, fmt.Errorf("header: %w", err)
		}
	}
	h, err := parseHeader(b, g)
	if err != nil {
		return nil, err
	}
	tables := make([]byte, h.tablesSize)
	if err := readFull(r, tables, off+int64(h.size)); err != nil {
		return nil, fmt.Errorf("tables: %w", err)
	}
	if sum := sha256.Sum256(tables); string(sum[:]) != string(h.bytes[tablesSumAt:tablesSumAt+sha256.Size]) {
		return nil, refuse(ErrCorrupt, "tables: checksum", fmt.Sprintf("%x", h.bytes[tablesSumAt:tablesSumAt+sha256.Size]), fmt.Sprintf("%x", sum))
	}
	m := &Metadata{Geometry: g, Major: majorVersion, Minor: h.minor, Flags: h.flags}
	if err := m.parseTables(h, tables); err != nil {
		return nil, err
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Metadata) parseTables(h header, tables []byte) error {
	for i, t := range []struct {
		name string
		size int
		add  func(entry []byte)
	}{
		{"partitions", partitionSize, m.addPartition},
		{"extents", extentSize, m.addExtent},
		{"groups", groupSize, m.addGroup},
		{"block devices", deviceSize, m.addDevice},
	} {
		table, err := tableOf(h.bytes[descriptorsAt+12*i:], t.name, t.size, tables)
		if err != nil {
			return err
		}
		for ; len(table) > 0; table = table[t.size:] {
			t.add(table)
		}
	}
	return nil
}

// tableOf cuts a table out by its descriptor.
func tableOf(descriptor []byte, name string, size int, tables []byte) ([]byte, error) {
	le := binary.LittleEndian
	off, count, entry := uint64(le.Uint32(descriptor)), uint64(le.Uint32(descriptor[4:])), le.Uint32(descriptor[8:])
	if entry != uint32(size) {
		return nil, refuse(ErrCorrupt, "entry_size of the table of "+name, size, entry)
	}
	end := off + count*uint64(size)
	if end > uint64(len(tables)) {
		return nil, refuse(ErrCorrupt, "end of the table of "+name, fmt.Sprintf("at most %d", len(tables)), end)
	}
	return tables[off:end], nil
}

func (m *Metadata) addPartition(b []byte) {
	le := binary.LittleEndian
	m.Partitions = append(m.Partitions, Partition{parseName(b), le.Uint32(b[36:]), le.Uint32(b[40:]), le.Uint32(b[44:]), le.Uint32(b[48:])})
}

func (m *Metadata) addExtent(b []byte) {
	le := binary.LittleEndian
	m.Extents = append(m.Extents, Extent{le.Uint64(b), le.Uint32(b[8:]), le.Uint64(b[12:]), le.Uint32(b[20:])})
}

func (m *Metadata) addGroup(b []byte) {
	le := binary.LittleEndian
	m.Groups = append(m.Groups, Group{parseName(b), le.Uint32(b[36:]), le.Uint64(b[40:])})
}

func (m *Metadata) addDevice(b []byte) {
	le := binary.LittleEndian
	m.BlockDevices = append(m.BlockDevices, BlockDevice{le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:]), le.Uint64(b[16:]), parseName(b[24:]), le.Uint32(b[60:])})
}
