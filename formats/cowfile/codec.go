package cowfile

import (
	"fmt"
	"strconv"
	"strings"
)

// Compression is an algorithm and its number in the file.
type Compression uint32

// The algorithms of section 5.
const (
	None   Compression = 0
	GZ     Compression = 1 // zlib stream
	Brotli Compression = 2
	LZ4    Compression = 3 // block without frame
	Zstd   Compression = 4
)

var compressionNames = [...]string{"none", "gz", "brotli", "lz4", "zstd"}

func (c Compression) String() string {
	if int64(c) < int64(len(compressionNames)) {
		return compressionNames[c]
	}
	return fmt.Sprintf("compression %d", uint32(c))
}

// ParseCompression reads "lz4" or "zstd,9". Without a level, level is the
// algorithm's default. The empty string means none.
func ParseCompression(s string) (c Compression, level int, err error) {
	name, lev, hasLevel := strings.Cut(s, ",")
	if name == "" {
		name = "none"
	}
	c = Compression(len(compressionNames))
	for i, n := range compressionNames {
		if n == name {
			c = Compression(i)
		}
	}
	if int(c) == len(compressionNames) {
		return 0, 0, fmt.Errorf("compression %q: expected one of %s", s, strings.Join(compressionNames[:], ", "))
	}
	if !hasLevel {
		return c, c.DefaultLevel(), nil
	}
	if level, err = strconv.Atoi(lev); err != nil {
		return 0, 0, fmt.Errorf("compression %q: expected a whole number after the comma, found %q", s, lev)
	}
	return c, level, nil
}

// DefaultLevel is the level that is used when none is given.
func (c Compression) DefaultLevel() int {
	switch c {
	case GZ:
		return 9
	case Brotli:
		return 11
	case Zstd:
		return 3
	}
	return 0
}
