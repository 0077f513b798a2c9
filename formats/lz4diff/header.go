package lz4diff

import (
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// The header's messages are few and flat: they are read and written by hand, in
// the order of their fields, as a protobuf runtime would write them.

// field is one field of a message: a number, or bytes.
type field struct {
	num   protowire.Number
	bytes []byte
	value uint64
}

// eachField calls f with all fields of the message m. Types other than varint
// and bytes do not occur.
func eachField(name string, m []byte, f func(field) error) error {
	for rest := m; len(rest) > 0; {
		where := fmt.Sprintf("%s, byte %d", name, len(m)-len(rest))
		num, typ, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return refuse(ErrCorrupt, where, "a field", protowire.ParseError(n))
		}
		x := field{num: num}
		v := -1
		switch rest = rest[n:]; typ {
		case protowire.VarintType:
			x.value, v = protowire.ConsumeVarint(rest)
		case protowire.BytesType:
			x.bytes, v = protowire.ConsumeBytes(rest)
			x.bytes = x.bytes[:len(x.bytes):len(x.bytes)]
		}
		if v < 0 {
			return refuse(ErrCorrupt, where, "a whole varint or bytes field", fmt.Sprintf("field %d of type %d", num, typ))
		}
		rest = rest[v:]
		if (typ == protowire.BytesType) != (x.bytes != nil) {
			x.bytes = []byte{}
		}
		if err := f(x); err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
	}
	return nil
}

// want refuses x if it is a number where bytes belong, or the reverse.
func (x field) want(isBytes bool) error {
	if isBytes != (x.bytes != nil) {
		return refuse(ErrCorrupt, fmt.Sprintf("field %d", x.num), map[bool]string{true: "bytes", false: "a number"}[isBytes], "the other")
	}
	return nil
}

func (x field) unknown() error {
	return refuse(ErrUnsupported, "message", "known fields only", fmt.Sprintf("field %d", x.num))
}

// int32 is the number as protobuf's int32 and enums are written.
func (x field) int32() (int32, error) {
	if v := int64(x.value); v >= math.MinInt32 && v <= math.MaxInt32 {
		return int32(v), x.want(false)
	}
	return 0, refuse(ErrCorrupt, fmt.Sprintf("field %d", x.num), "32 bits", x.value)
}

func (x field) length() (int64, error) {
	if x.value > maxLength {
		return 0, refuse(ErrCorrupt, fmt.Sprintf("field %d", x.num), fmt.Sprintf("at most %d", int64(maxLength)), x.value)
	}
	return int64(x.value), x.want(false)
}

func (p *Patch) parseHeader(m []byte) error {
	return eachField("header", m, func(x field) (err error) {
		switch x.num {
		case 1:
			return p.Source.parse("source", x)
		case 2:
			return p.Target.parse("target", x)
		case 3:
			var v int32
			v, err = x.int32()
			p.Inner = Inner(v)
			return err
		}
		return x.unknown()
	})
}

func (f *File) parse(name string, x field) error {
	if err := x.want(true); err != nil {
		return err
	}
	var offset int64
	return eachField(name, x.bytes, func(x field) (err error) {
		switch x.num {
		case 1:
			return f.parseAlgorithm(x)
		case 2:
			return f.parseCluster(x, &offset)
		case 3:
			f.ZeroPadding = x.value != 0
			return x.want(false)
		}
		return x.unknown()
	})
}

func (f *File) parseAlgorithm(x field) error {
	if err := x.want(true); err != nil {
		return err
	}
	return eachField("algorithm", x.bytes, func(x field) error {
		v, err := x.int32()
		switch x.num {
		case 1:
			f.Algorithm = Algorithm(v)
		case 2:
			f.Level = v
		default:
			return x.unknown()
		}
		return err
	})
}

// parseCluster appends a cluster. offset is where its contents must begin.
func (f *File) parseCluster(x field, offset *int64) error {
	if err := x.want(true); err != nil {
		return err
	}
	var c Cluster
	var begin int64
	err := eachField(fmt.Sprintf("cluster %d", len(f.Clusters)), x.bytes, func(x field) (err error) {
		switch x.num {
		case 1:
			begin, err = x.length()
		case 2:
			c.Length, err = x.length()
		case 3:
			c.Stored, err = x.length()
		case 4:
			c.Hash, err = x.bytes, x.want(true)
		case 5:
			c.Postfix, err = x.bytes, x.want(true)
		default:
			err = x.unknown()
		}
		return err
	})
	if err != nil {
		return err
	}
	if begin != *offset {
		return refuse(ErrCorrupt, fmt.Sprintf("cluster %d", len(f.Clusters)), fmt.Sprintf("contents from %d on", *offset), begin)
	}
	if *offset += c.Length; *offset > maxLength {
		return refuse(ErrCorrupt, fmt.Sprintf("cluster %d", len(f.Clusters)), fmt.Sprintf("an end of at most %d", int64(maxLength)), *offset)
	}
	f.Clusters = append(f.Clusters, c)
	return nil
}

// header is parseHeader's counterpart.
func (p *Patch) header() []byte {
	b := appendBytes(nil, 1, p.Source.message())
	b = appendBytes(b, 2, p.Target.message())
	return appendNumber(b, 3, int64(p.Inner))
}

func (f *File) message() []byte {
	b := appendBytes(nil, 1, appendNumber(appendNumber(nil, 1, int64(f.Algorithm)), 2, int64(f.Level)))
	var offset int64
	for i := range f.Clusters {
		c := &f.Clusters[i]
		m := appendNumber(nil, 1, offset)
		m = appendNumber(m, 2, c.Length)
		m = appendNumber(m, 3, c.Stored)
		if len(c.Hash) > 0 {
			m = appendBytes(m, 4, c.Hash)
		}
		if len(c.Postfix) > 0 {
			m = appendBytes(m, 5, c.Postfix)
		}
		b = appendBytes(b, 2, m)
		offset += c.Length
	}
	if f.ZeroPadding {
		b = appendNumber(b, 3, 1)
	}
	return b
}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

// appendNumber leaves zeros out, as proto3 does.
func appendNumber(b []byte, num protowire.Number, v int64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), uint64(v))
}
