package dbus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

var (
	// ErrFormat: bytes that are no message, or a value that cannot be sent.
	ErrFormat = errors.New("malformed D-Bus message")
	// ErrSignature: no list of complete types.
	ErrSignature = errors.New("malformed D-Bus signature")
)

// Limits of the specification.
const (
	maxSignature = 255
	maxNesting   = 32 // of arrays, and of structs
	maxDepth     = 64 // of all containers
)

// ObjectPath, Signature and the others are the types that Go has no own ones for.
type (
	// ObjectPath is a value of type o.
	ObjectPath string
	// Signature is a value of type g.
	Signature string
	// Variant is a value of type v, with the signature of what it holds.
	Variant struct {
		Signature Signature
		Value     any
	}
	// Entry is an entry of a dictionary, as it is decoded.
	Entry struct{ Key, Value any }
	// Struct is a struct that is sent.
	Struct []any
)

const basicTypes = "ybnqiuxtdsogh"

// typeLength is the length of the complete type with which a signature begins.
func typeLength(sig string, arrays, structs int) (int, error) {
	if sig == "" || arrays > maxNesting || structs > maxNesting {
		return 0, fmt.Errorf("%w: expected a type, nested at most %d deep, found %.20q", ErrSignature, maxNesting, sig)
	}
	switch c := sig[0]; {
	case c == 'v' || strings.IndexByte(basicTypes, c) >= 0:
		return 1, nil
	case c == 'a' && strings.HasPrefix(sig, "a{"):
		return dictLength(sig, arrays, structs)
	case c == 'a':
		n, err := typeLength(sig[1:], arrays+1, structs)
		return 1 + n, err
	case c == '(':
		return structLength(sig, arrays, structs)
	}
	return 0, fmt.Errorf("%w: expected a type, found %q", ErrSignature, sig[0])
}

func dictLength(sig string, arrays, structs int) (int, error) {
	if len(sig) < 3 || strings.IndexByte(basicTypes, sig[2]) < 0 {
		return 0, fmt.Errorf("%w: expected a basic type as key, found %.20q", ErrSignature, sig)
	}
	n, err := typeLength(sig[3:], arrays+1, structs+1)
	if err == nil && (len(sig) == 3+n || sig[3+n] != '}') {
		err = fmt.Errorf("%w: expected } after key and value, found %.20q", ErrSignature, sig[3+n:])
	}
	return 4 + n, err
}

func structLength(sig string, arrays, structs int) (int, error) {
	at := 1
	for at < len(sig) && sig[at] != ')' {
		n, err := typeLength(sig[at:], arrays, structs+1)
		if err != nil {
			return 0, err
		}
		at += n
	}
	if at == len(sig) || at == 1 {
		return 0, fmt.Errorf("%w: expected a type or more and ), found %.20q", ErrSignature, sig)
	}
	return at + 1, nil
}

// types takes a signature apart into complete types.
func types(sig string) (all []string, err error) {
	if len(sig) > maxSignature {
		return nil, fmt.Errorf("%w: expected at most %d bytes, found %d", ErrSignature, maxSignature, len(sig))
	}
	for sig != "" {
		n, err := typeLength(sig, 0, 0)
		if err != nil {
			return nil, err
		}
		all, sig = append(all, sig[:n]), sig[n:]
	}
	return all, nil
}

// alignment of a type's values, in bytes.
func alignment(kind byte) int {
	switch kind {
	case 'n', 'q':
		return 2
	case 'b', 'i', 'u', 'h', 's', 'o', 'a':
		return 4
	case 'x', 't', 'd', '(', '{':
		return 8
	}
	return 1
}

// decoder reads values out of b, whose first byte is aligned to anything.
type decoder struct {
	b     []byte
	at    int
	order binary.ByteOrder
}

func (d *decoder) align(n int) error {
	for d.at%n != 0 {
		if d.at >= len(d.b) || d.b[d.at] != 0 {
			return fmt.Errorf("%w: expected zeros before a value at byte %d", ErrFormat, d.at)
		}
		d.at++
	}
	return nil
}

// take gives the next n bytes.
func (d *decoder) take(n int) ([]byte, error) {
	if n < 0 || n > len(d.b)-d.at {
		return nil, fmt.Errorf("%w: expected %d bytes at byte %d, found %d", ErrFormat, n, d.at, len(d.b)-d.at)
	}
	b := d.b[d.at : d.at+n]
	d.at += n
	return b, nil
}

// number gives the next n bytes as a number, aligned to n.
func (d *decoder) number(n int) (uint64, error) {
	if err := d.align(n); err != nil {
		return 0, err
	}
	b, err := d.take(n)
	if err != nil {
		return 0, err
	}
	switch n {
	case 1:
		return uint64(b[0]), nil
	case 2:
		return uint64(d.order.Uint16(b)), nil
	case 4:
		return uint64(d.order.Uint32(b)), nil
	}
	return d.order.Uint64(b), nil
}

// text reads a string whose length takes width bytes.
func (d *decoder) text(width int) (string, error) {
	n, err := d.number(width)
	if err != nil {
		return "", err
	}
	if n >= math.MaxInt32 {
		return "", fmt.Errorf("%w: expected a string, found a length of %d", ErrFormat, n)
	}
	b, err := d.take(int(n) + 1)
	if err != nil {
		return "", err
	}
	s := string(b[:n])
	if b[n] != 0 || strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s) {
		return "", fmt.Errorf("%w: expected UTF-8 and then one NUL, found %.40q", ErrFormat, b)
	}
	return s, nil
}

// value reads one value of a complete type.
func (d *decoder) value(sig string, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: expected values nested at most %d deep", ErrFormat, maxDepth)
	}
	switch sig[0] {
	case 's':
		return d.text(4)
	case 'o':
		return d.path()
	case 'g':
		return d.signature()
	case 'v':
		return d.variant(depth)
	case 'a':
		return d.array(sig[1:], depth)
	case '(':
		if err := d.align(8); err != nil {
			return nil, err
		}
		return d.values(sig[1:len(sig)-1], depth+1)
	}
	return d.fixed(sig[0])
}

func (d *decoder) fixed(kind byte) (any, error) {
	n, err := d.number(max(alignment(kind), 1))
	if err != nil {
		return nil, err
	}
	switch kind {
	case 'y':
		return byte(n), nil
	case 'b':
		if n > 1 {
			return nil, fmt.Errorf("%w: expected 0 or 1, found %d", ErrFormat, n)
		}
		return n == 1, nil
	case 'n':
		return int16(n), nil
	case 'q':
		return uint16(n), nil
	case 'i':
		return int32(n), nil
	case 'u', 'h':
		return uint32(n), nil
	case 'x':
		return int64(n), nil
	case 't':
		return n, nil
	}
	return math.Float64frombits(n), nil
}

func (d *decoder) path() (any, error) {
	s, err := d.text(4)
	if err == nil && !ValidPath(s) {
		err = fmt.Errorf("%w: expected an object path, found %.40q", ErrFormat, s)
	}
	return ObjectPath(s), err
}

func (d *decoder) signature() (Signature, error) {
	s, err := d.text(1)
	if err == nil {
		_, err = types(s)
	}
	return Signature(s), err
}

func (d *decoder) variant(depth int) (any, error) {
	sig, err := d.signature()
	if err != nil {
		return nil, err
	}
	if n, err := typeLength(string(sig), 0, 0); err != nil || n != len(sig) {
		return nil, fmt.Errorf("%w: expected one type in a variant, found %.40q", ErrFormat, sig)
	}
	v, err := d.value(string(sig), depth+1)
	return Variant{sig, v}, err
}

func (d *decoder) array(of string, depth int) (any, error) {
	n, err := d.number(4)
	if err == nil {
		err = d.align(alignment(of[0]))
	}
	if err != nil {
		return nil, err
	}
	if n > uint64(len(d.b)-d.at) {
		return nil, fmt.Errorf("%w: expected an array of at most %d bytes, found %d", ErrFormat, len(d.b)-d.at, n)
	}
	end, all := d.at+int(n), []any{}
	for d.at < end {
		v, err := d.element(of, depth+1)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	if d.at != end {
		return nil, fmt.Errorf("%w: expected an array to end at byte %d, found its last element to end at %d", ErrFormat, end, d.at)
	}
	return all, nil
}

func (d *decoder) element(sig string, depth int) (any, error) {
	if sig[0] != '{' {
		return d.value(sig, depth)
	}
	if err := d.align(8); err != nil {
		return nil, err
	}
	v, err := d.values(sig[1:len(sig)-1], depth+1)
	if err != nil {
		return nil, err
	}
	return Entry{v[0], v[1]}, nil
}

// values reads one value for each type of a signature that is known to be good.
func (d *decoder) values(sig string, depth int) ([]any, error) {
	var all []any
	for sig != "" {
		n, err := typeLength(sig, 0, 0)
		if err != nil {
			return nil, err
		}
		v, err := d.value(sig[:n], depth)
		if err != nil {
			return nil, err
		}
		all, sig = append(all, v), sig[n:]
	}
	return all, nil
}

// ValidPath tells whether s is an object path.
func ValidPath(s string) bool {
	if s == "/" {
		return true
	}
	if !strings.HasPrefix(s, "/") {
		return false
	}
	for part := range strings.SplitSeq(s[1:], "/") {
		if part == "" || strings.Trim(part, nameBytes) != "" {
			return false
		}
	}
	return true
}

const nameBytes = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_"
