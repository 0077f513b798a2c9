package lpmeta

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
)

const (
	reservedSize   = 4096
	geometrySize   = 4096 // of one copy on the device
	geometryStruct = 52
	geometryMagic  = 0x616c4467
	copiesStart    = reservedSize + 2*geometrySize
)

// Geometry says where the metadata of the slots are.
type Geometry struct {
	MetadataMaxSize  uint32 // bytes of a slot, whole sectors
	SlotCount        uint32
	LogicalBlockSize uint32 // bytes, whole sectors; extents are whole blocks
}

// Reserved is how many bytes all copies of everything take, from the start.
func (g Geometry) Reserved() uint64 {
	return copiesStart + 2*uint64(g.MetadataMaxSize)*uint64(g.SlotCount)
}

// Offset is where a copy of the metadata of a slot begins, in bytes.
func (g Geometry) Offset(slot int, backup bool) int64 {
	at := copiesStart + int64(slot)*int64(g.MetadataMaxSize)
	if backup {
		at += int64(g.SlotCount) * int64(g.MetadataMaxSize)
	}
	return at
}

func geometryOffset(backup bool) int64 {
	if backup {
		return reservedSize + geometrySize
	}
	return reservedSize
}

// check refuses what cannot be a geometry, with kind.
func (g Geometry) check(kind error) error {
	m, block := g.MetadataMaxSize, g.LogicalBlockSize
	if m == 0 || m%SectorSize != 0 || m > MaxMetadataSize {
		return refuse(kind, "geometry: metadata_max_size", fmt.Sprintf("a multiple of 512, at most %d", MaxMetadataSize), m)
	}
	if g.SlotCount == 0 || g.SlotCount > MaxSlots {
		return refuse(kind, "geometry: slot_count", fmt.Sprintf("1 to %d", MaxSlots), g.SlotCount)
	}
	if block == 0 || block%SectorSize != 0 {
		return refuse(kind, "geometry: logical_block_size", "a multiple of 512", block)
	}
	return nil
}

func (g Geometry) checkSlot(slot int) error {
	if slot < 0 || slot >= int(g.SlotCount) {
		return refuse(ErrSlot, "slot", fmt.Sprintf("0 to %d", g.SlotCount-1), slot)
	}
	return nil
}

// encode gives the 4096 bytes of a copy.
func (g Geometry) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, geometrySize)
	le.PutUint32(b, geometryMagic)
	le.PutUint32(b[4:], geometryStruct)
	le.PutUint32(b[40:], g.MetadataMaxSize)
	le.PutUint32(b[44:], g.SlotCount)
	le.PutUint32(b[48:], g.LogicalBlockSize)
	sum := sha256.Sum256(b[:geometryStruct])
	copy(b[8:], sum[:])
	return b
}

// parseGeometry reads the struct at the start of b, which has at least its size.
func parseGeometry(b []byte) (g Geometry, err error) {
	le := binary.LittleEndian
	if m := le.Uint32(b); m != geometryMagic {
		return g, refuse(ErrNotFound, "geometry: magic", fmt.Sprintf("%#x", geometryMagic), fmt.Sprintf("%#x", m))
	}
	if n := le.Uint32(b[4:]); n != geometryStruct {
		return g, refuse(ErrCorrupt, "geometry: struct_size", geometryStruct, n)
	}
	if err := checkSum(b[:geometryStruct], 8, "geometry"); err != nil {
		return g, err
	}
	g = Geometry{le.Uint32(b[40:]), le.Uint32(b[44:]), le.Uint32(b[48:])}
	return g, g.check(ErrCorrupt)
}

// checkSum compares the SHA-256 of b, with the field at off zeroed, to the field.
func checkSum(b []byte, off int, what string) error {
	var zeros [sha256.Size]byte
	h := sha256.New()
	h.Write(b[:off])
	h.Write(zeros[:])
	h.Write(b[off+sha256.Size:])
	if sum := h.Sum(nil); string(sum) != string(b[off:off+sha256.Size]) {
		return refuse(ErrCorrupt, what+": checksum", fmt.Sprintf("%x", b[off:off+sha256.Size]), fmt.Sprintf("%x", sum))
	}
	return nil
}

func readGeometryAt(r io.ReaderAt, off int64) (Geometry, error) {
	b := make([]byte, geometryStruct)
	if err := readFull(r, b, off); err != nil {
		return Geometry{}, fmt.Errorf("geometry: %w", err)
	}
	return parseGeometry(b)
}

// ReadGeometry reads the geometry: the primary copy, or if that is no good the
// backup.
func ReadGeometry(r io.ReaderAt) (Geometry, error) {
	g, err := readGeometryAt(r, geometryOffset(false))
	if err == nil {
		return g, nil
	}
	g, second := readGeometryAt(r, geometryOffset(true))
	if second != nil {
		return g, fmt.Errorf("both copies of the geometry are unusable: primary: %w; backup: %w", err, second)
	}
	return g, nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	if n, err := r.ReadAt(p, off); n < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}

// alignTo rounds n up to a multiple of to; 0 is no alignment. It is false if the
// outcome does not fit.
func alignTo(n, to uint64) (uint64, bool) {
	if to == 0 || n%to == 0 {
		return n, true
	}
	sum, carry := bits.Add64(n, to-n%to, 0)
	return sum, carry == 0
}
