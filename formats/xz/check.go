package xz

import (
	"crypto/sha256"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"slices"
)

// check is what is computed of the data of a block. hash is nil if nothing is.
type check struct {
	hash.Hash
	size int
	crc  bool // the lowest byte comes first
}

func newCheck(id byte) (c check, known bool) {
	switch id {
	case 0:
		return check{}, true
	case checkCRC32:
		return check{Hash: crc32.NewIEEE(), size: crc32.Size, crc: true}, true
	case 4:
		return check{Hash: crc64.New(crc64.MakeTable(crc64.ECMA)), size: crc64.Size, crc: true}, true
	case 10:
		return check{Hash: sha256.New(), size: sha256.Size}, true
	}
	return check{}, false
}

func (c check) update(b []byte) {
	if c.Hash != nil {
		c.Write(b)
	}
}

// end gives what the check is, and begins another one.
func (c check) end() []byte {
	if c.Hash == nil {
		return nil
	}
	sum := c.Sum(nil)
	if c.crc {
		slices.Reverse(sum)
	}
	c.Reset()
	return sum
}
