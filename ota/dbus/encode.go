package dbus

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// encoder appends values to b, little endian. b begins aligned to anything.
type encoder struct{ b []byte }

func (e *encoder) align(n int) {
	for len(e.b)%n != 0 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) uint32(n uint32) {
	e.align(4)
	e.b = binary.LittleEndian.AppendUint32(e.b, n)
}

func (e *encoder) uint64(n uint64) {
	e.align(8)
	e.b = binary.LittleEndian.AppendUint64(e.b, n)
}

// text appends a string as a bus takes it.
func (e *encoder) text(s string) {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	e.uint32(uint32(len(s)))
	e.b = append(append(e.b, s...), 0)
}

func (e *encoder) signature(s string) {
	e.b = append(append(append(e.b, byte(len(s))), s...), 0)
}

// value appends a value of the types that the package's comment lists.
func (e *encoder) value(v any) error {
	switch v := v.(type) {
	case byte:
		e.b = append(e.b, v)
	case bool:
		e.uint32(map[bool]uint32{true: 1}[v])
	case int32:
		e.uint32(uint32(v))
	case uint32:
		e.uint32(v)
	case int64:
		e.uint64(uint64(v))
	case uint64:
		e.uint64(v)
	case float64:
		e.uint64(math.Float64bits(v))
	case string:
		e.text(v)
	case ObjectPath:
		e.text(string(v))
	case Signature:
		e.signature(string(v))
	default:
		return e.container(v)
	}
	return nil
}

func (e *encoder) container(v any) error {
	switch v := v.(type) {
	case Variant:
		e.signature(string(v.Signature))
		return e.value(v.Value)
	case Struct:
		e.align(8)
		for _, f := range v {
			if err := e.value(f); err != nil {
				return err
			}
		}
		return nil
	case []string:
		return e.array(4, len(v), func(i int) error { return e.value(v[i]) })
	case map[string]string:
		keys := slices.Sorted(maps.Keys(v))
		return e.array(8, len(keys), func(i int) error { return e.value(Struct{keys[i], v[keys[i]]}) })
	case map[string]Variant:
		keys := slices.Sorted(maps.Keys(v))
		return e.array(8, len(keys), func(i int) error { return e.value(Struct{keys[i], v[keys[i]]}) })
	}
	return fmt.Errorf("%w: a %T cannot be sent", ErrFormat, v)
}

func (e *encoder) array(align, n int, element func(int) error) error {
	e.uint32(0)
	length := len(e.b) - 4
	e.align(align)
	begin := len(e.b)
	for i := range n {
		if err := element(i); err != nil {
			return err
		}
	}
	binary.LittleEndian.PutUint32(e.b[length:], uint32(len(e.b)-begin))
	return nil
}

// signatureOf is the type of a value that can be sent; "" of others.
func signatureOf(v any) string {
	switch v := v.(type) {
	case byte:
		return "y"
	case bool:
		return "b"
	case int32:
		return "i"
	case uint32:
		return "u"
	case int64:
		return "x"
	case uint64:
		return "t"
	case float64:
		return "d"
	case string:
		return "s"
	case ObjectPath:
		return "o"
	case Signature:
		return "g"
	case Variant:
		return "v"
	case []string:
		return "as"
	case map[string]string:
		return "a{ss}"
	case map[string]Variant:
		return "a{sv}"
	case Struct:
		sig := "("
		for _, f := range v {
			sig += signatureOf(f)
		}
		return sig + ")"
	}
	return ""
}

// Of wraps a value that can be sent.
func Of(v any) Variant { return Variant{Signature(signatureOf(v)), v} }
