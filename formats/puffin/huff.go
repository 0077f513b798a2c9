package puffin

import (
	"encoding/binary"
	"fmt"
)

// Huff appends to dst the deflate blocks of which puff is the puff, and returns
// their length in bits. The first of them is bit number start, 0 to 7, of the
// first byte, the others are zero as are those after the last one. A damaged
// puff gives ErrPuff.
func Huff(dst []byte, start uint, puff []byte) (deflate []byte, bits uint64, err error) {
	w := bitWriter{out: dst, n: start % 8}
	before := w.written()
	var h huffer
	err = h.huff(&w, puff)
	bits = w.written() - before
	w.align()
	if w.n > 0 {
		w.out = append(w.out, byte(w.acc))
	}
	return w.out, bits, err
}

// huffer is Huff with tables that are made once.
type huffer struct {
	puff      []byte
	at        int
	w         *bitWriter
	lit, dist encoder
	lengths   [maxLitLen + maxDist]uint8
	lost      bool // a literal had no code
}

func (h *huffer) huff(w *bitWriter, puff []byte) error {
	h.puff, h.at, h.w, h.lost = puff, 0, w, false
	for h.at < len(puff) {
		if err := h.block(); err != nil {
			return err
		}
	}
	return nil
}

func (h *huffer) bad(where string, expected, found any) error {
	return refuse(ErrPuff, fmt.Sprintf("%s before byte %d", where, h.at), expected, found)
}

// take returns the next n bytes, or nil if there are not as many.
func (h *huffer) take(n int) []byte {
	if len(h.puff)-h.at < n {
		return nil
	}
	h.at += n
	return h.puff[h.at-n : h.at]
}

func (h *huffer) short(where string) error { return h.bad(where, "more bytes", "the end") }

func (h *huffer) block() error {
	b := h.take(2)
	if b == nil {
		return h.short("block header")
	}
	n := int(binary.BigEndian.Uint16(b)) + 1
	header := h.take(n)
	if header == nil {
		return h.short("block header")
	}
	tag, skipped := header[0], header[0]&31
	kind := tag >> 5 & 3
	if kind != typeDynamic && n != 1 {
		return h.bad("block header", "1 byte", n)
	}
	if kind != typeStored && skipped != 0 {
		return h.bad("block header", "no skipped bits", skipped)
	}
	h.w.put(uint32(tag>>7)|uint32(kind)<<1, 3)
	switch kind {
	case typeStored:
		return h.stored(skipped)
	case typeFixed:
		lit, dist := fixedLengths()
		h.lit.init(lit[:])
		h.dist.init(dist[:])
	case typeDynamic:
		if err := h.tables(header[1:]); err != nil {
			return err
		}
	default:
		return h.bad("block header", "type 0 to 2", kind)
	}
	return h.tokens()
}

// stored writes a block that is at most one run of literals.
func (h *huffer) stored(skipped byte) error {
	pad := -h.w.n % 8
	if skipped>>pad != 0 {
		return h.bad("skipped bits", fmt.Sprintf("%d bits", pad), skipped)
	}
	h.w.put(uint32(skipped), pad)
	h.w.align()
	n, length, _, err := h.token()
	var literals []byte
	if err == nil && n > 0 {
		if literals = h.take(n); literals == nil {
			return h.short("stored block")
		}
		n, length, _, err = h.token()
	}
	switch {
	case err != nil:
		return err
	case n > 0 || length != maxLength+1:
		return h.bad("stored block", "its end", "another token")
	case len(literals) > 0xffff:
		return h.bad("stored block", "at most 65535 bytes", len(literals))
	}
	l := uint32(len(literals))
	h.w.put(l|(^l)<<16, 32)
	h.w.align()
	h.w.out = append(h.w.out, literals...)
	return nil
}

// tables writes the code lengths of a dynamic block, from the block header
// without its first byte.
func (h *huffer) tables(b []byte) error {
	if len(b) < 3 || b[0] > maxLitLen-257 || b[1] > maxDist-1 || b[2] > lengthCodes-4 {
		return h.bad("tables", "counts up to 29, 29 and 15", fmt.Sprintf("% x", b[:min(len(b), 3)]))
	}
	h.w.put(uint32(b[0])|uint32(b[1])<<5|uint32(b[2])<<10, 14)
	nLit, nDist, nCodes := int(b[0])+257, int(b[1])+1, int(b[2])+4
	b = b[3:]
	packed := (nCodes + 1) / 2
	if len(b) < packed {
		return h.short("code lengths")
	}
	if err := h.codeLengths(b[:packed], nCodes); err != nil {
		return err
	}
	if err := h.symbolLengths(b[packed:], nLit+nDist); err != nil {
		return err
	}
	if !h.lit.init(h.lengths[:nLit]) || !h.dist.init(h.lengths[nLit:nLit+nDist]) {
		return h.bad("tables", "code lengths that fit", "too many codes")
	}
	return nil
}

func (h *huffer) codeLengths(b []byte, n int) error {
	var lengths [lengthCodes]uint8
	for i := range 2 * len(b) {
		l := b[i/2] >> 4
		if i%2 == 1 {
			l = b[i/2] & 15
		}
		if l > 7 || i >= n && l > 0 {
			return h.bad("code lengths", fmt.Sprintf("%d lengths up to 7", n), l)
		}
		if i < n {
			lengths[lengthOrder[i]] = l
			h.w.put(uint32(l), 3)
		}
	}
	if !h.lit.init(lengths[:]) {
		return h.bad("code lengths", "lengths that fit", "too many codes")
	}
	return nil
}

// symbolLengths writes the symbols in b, which must make n lengths.
func (h *huffer) symbolLengths(b []byte, n int) error {
	i := 0
	for _, tag := range b {
		sym, more, extra, run := uint32(tag), uint32(0), uint(0), 1
		value := tag
		switch {
		case tag >= tagEnd:
			return h.bad("tables", "a length, or a run of some", tag)
		case tag >= tagManyZeros:
			sym, more, extra, run, value = runManyZeros, uint32(tag-tagManyZeros), 7, 11, 0
		case tag >= tagZeros:
			sym, more, extra, run, value = runZeros, uint32(tag-tagZeros), 3, 3, 0
		case tag >= runRepeat:
			if i == 0 {
				return h.bad("tables", "a length to repeat", "none")
			}
			sym, more, extra, run, value = runRepeat, uint32(tag-runRepeat), 2, 3, h.lengths[i-1]
		}
		code := h.lit[sym]
		if run += int(more); code == 0 || run > n-i {
			return h.bad("tables", fmt.Sprintf("%d lengths that have a code", n), fmt.Sprintf("%d after %d", tag, i))
		}
		for ; run > 0; run-- {
			h.lengths[i] = value
			i++
		}
		h.w.put(code>>4|more<<(code&15), uint(code&15)+extra)
	}
	if i != n {
		return h.bad("tables", fmt.Sprintf("%d lengths", n), i)
	}
	return nil
}

// token reads the next one: n literals, which follow, or else a copy of length
// bytes, or the end of the block, which has the length 259.
func (h *huffer) token() (n, length int, distance uint32, err error) {
	b := h.take(1)
	if b == nil {
		return 0, 0, 0, h.short("token")
	}
	tag := b[0]
	switch {
	case tag < runTag:
		return int(tag) + 1, 0, 0, nil
	case tag == runTag:
		if b = h.take(2); b == nil {
			return 0, 0, 0, h.short("length of a run")
		}
		return int(binary.BigEndian.Uint16(b)) + shortRun + 1, 0, 0, nil
	case tag < 0xff:
		length = int(tag&0x7f) + minLength
	default:
		if b = h.take(1); b == nil {
			return 0, 0, 0, h.short("length of a copy")
		}
		if length = int(b[0]) + 130; length == maxLength+1 {
			return 0, length, 0, nil
		}
	}
	b = h.take(2)
	if b == nil {
		return 0, 0, 0, h.short("distance")
	}
	distance = uint32(binary.BigEndian.Uint16(b)) + 1
	if length > maxLength || distance > maxDistance {
		return 0, 0, 0, h.bad("copy", "at most 258 bytes from at most 32768", fmt.Sprintf("%d from %d", length, distance))
	}
	return 0, length, distance, nil
}

// tokens writes literals and copies up to the end of the block.
func (h *huffer) tokens() error {
	for {
		if h.fastTokens(); h.lost {
			return h.bad("literal", "a code for it", "none")
		}
		n, length, distance, err := h.token()
		switch {
		case err != nil:
			return err
		case n > 0:
			err = h.literals(n)
		case length > maxLength:
			code := h.lit[endOfBlock]
			if code == 0 {
				return h.bad("end of the block", "a code for it", "none")
			}
			h.w.put(code>>4, uint(code&15))
			return nil
		default:
			err = h.copy(length, distance)
		}
		if err != nil {
			return err
		}
	}
}

// fastTokens does as tokens does with the usual tokens: short runs, and copies.
// It stops before one that is longer, that may be wrong, or that is near the end.
// The writer's state is in variables here.
func (h *huffer) fastTokens() {
	puff, at := h.puff, h.at
	out, acc, n := h.w.out, h.w.acc, h.w.n
	for at+runTag+2 <= len(puff) {
		tag := int(puff[at])
		if tag < runTag {
			bad := false
			for _, c := range puff[at+1 : at+2+tag] {
				code := h.lit[c]
				bad = bad || code == 0
				acc |= uint64(code>>4) << (n & 63)
				n += uint(code & 15)
				if n >= 32 {
					out = binary.LittleEndian.AppendUint32(out, uint32(acc))
					acc >>= 32
					n -= 32
				}
			}
			if at += 2 + tag; bad {
				h.lost = true
				break
			}
			continue
		}
		length, size := tag&runTag+minLength, 3
		if tag == 0xff {
			length, size = int(puff[at+1])+130, 4
		}
		distance := (uint32(puff[at+size-2])<<8 | uint32(puff[at+size-1])) + 1
		if tag == runTag || length > maxLength || distance > maxDistance {
			break
		}
		l := lengthSyms[length]
		d, extra, bits := distSym(distance)
		code, distCode := h.lit[firstLength+int(l)], h.dist[d]
		if code == 0 || distCode == 0 {
			break
		}
		base := lengthBases[l]
		acc |= (uint64(code>>4) | uint64(length-int(base.value))<<(code&15)) << (n & 63)
		if n += uint(code&15) + uint(base.extra); n >= 32 {
			out = binary.LittleEndian.AppendUint32(out, uint32(acc))
			acc >>= 32
			n -= 32
		}
		acc |= (uint64(distCode>>4) | uint64(extra)<<(distCode&15)) << (n & 63)
		if n += uint(distCode&15) + bits; n >= 32 {
			out = binary.LittleEndian.AppendUint32(out, uint32(acc))
			acc >>= 32
			n -= 32
		}
		at += size
	}
	h.at = at
	h.w.out, h.w.acc, h.w.n = out, acc, n
}

func (h *huffer) literals(n int) error {
	b := h.take(n)
	if b == nil {
		return h.short("run of literals")
	}
	w := *h.w // in registers
	for _, c := range b {
		code := h.lit[c]
		if code == 0 {
			return h.bad("literal", "a code for it", "none")
		}
		w.put(code>>4, uint(code&15))
	}
	*h.w = w
	return nil
}

func (h *huffer) copy(length int, distance uint32) error {
	sym := lengthSyms[length]
	l := lengthBases[sym]
	code := h.lit[firstLength+int(sym)]
	d, extra, bits := distSym(distance)
	distCode := h.dist[d]
	if code == 0 || distCode == 0 {
		return h.bad("copy", "codes for its length and distance", "none")
	}
	h.w.put(code>>4|uint32(length-int(l.value))<<(code&15), uint(code&15)+uint(l.extra))
	h.w.put(distCode>>4|extra<<(distCode&15), uint(distCode&15)+bits)
	return nil
}
