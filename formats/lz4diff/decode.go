package lz4diff

import (
	"encoding/binary"
	"fmt"
)

// MaxRatio is how many times longer than a cluster its contents can be at most:
// the longest of LZ4's lengths gives 255 bytes for one.
const MaxRatio = 255

// blockSize is EROFS's block: a cluster begins with less zeros than that.
const blockSize = 4096

// decompress appends the contents of the file to dst.
func (f *File) decompress(dst, file []byte) ([]byte, error) {
	for i := range f.Clusters {
		c := &f.Clusters[i]
		stored := file[:c.Stored]
		file = file[c.Stored:]
		if !c.compressed() {
			dst = append(dst, stored...)
			continue
		}
		if f.ZeroPadding {
			stored = skipZeros(stored)
		}
		begin := len(dst)
		dst = dst[:begin+int(c.Length)]
		if err := decodeBlock(dst[begin:], stored); err != nil {
			return nil, fmt.Errorf("%w: cluster %d: %w", ErrSource, i, err)
		}
	}
	return dst, nil
}

func skipZeros(b []byte) []byte {
	n := 0
	for n < min(len(b), blockSize) && b[n] == 0 {
		n++
	}
	return b[n:]
}

// decodeBlock fills dst from an LZ4 block. What the block holds beyond that is
// not looked at.
func decodeBlock(dst, src []byte) error {
	d := decoder{dst: dst, src: src}
	for d.op < len(dst) {
		if d.ip >= len(src) {
			return fmt.Errorf("expected %d bytes of contents, found %d", len(dst), d.op)
		}
		token := src[d.ip]
		d.ip++
		if err := d.literals(int(token >> 4)); err != nil {
			return err
		}
		if d.op == len(dst) || d.ip == len(src) {
			continue
		}
		if err := d.match(int(token & 15)); err != nil {
			return err
		}
	}
	return nil
}

type decoder struct {
	dst, src []byte
	op, ip   int
}

// length reads what follows a length of 15 in a token.
func (d *decoder) length(n int) (int, error) {
	if n < 15 {
		return n, nil
	}
	for d.ip < len(d.src) {
		b := d.src[d.ip]
		d.ip++
		n += int(b)
		if b < 255 {
			return n, nil
		}
	}
	return 0, fmt.Errorf("expected a length to end, found the block's end at %d", len(d.src))
}

func (d *decoder) literals(n int) error {
	n, err := d.length(n)
	if err != nil {
		return err
	}
	n = min(n, len(d.dst)-d.op)
	if n > len(d.src)-d.ip {
		return fmt.Errorf("at %d: expected %d literals, found %d", d.ip, n, len(d.src)-d.ip)
	}
	copy(d.dst[d.op:], d.src[d.ip:d.ip+n])
	d.op += n
	d.ip += n
	return nil
}

func (d *decoder) match(n int) error {
	if len(d.src)-d.ip < 2 {
		return fmt.Errorf("at %d: expected an offset of 2 bytes, found %d", d.ip, len(d.src)-d.ip)
	}
	offset := int(binary.LittleEndian.Uint16(d.src[d.ip:]))
	d.ip += 2
	if offset == 0 || offset > d.op {
		return fmt.Errorf("at %d: expected an offset from 1 to %d, found %d", d.ip-2, d.op, offset)
	}
	n, err := d.length(n)
	if err != nil {
		return err
	}
	end := d.op + min(n+4, len(d.dst)-d.op)
	for d.op < end {
		// What has been copied can be copied again: the piece doubles.
		d.op += copy(d.dst[d.op:end], d.dst[d.op-offset:d.op])
	}
	return nil
}
