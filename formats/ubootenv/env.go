package ubootenv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
)

var (
	// ErrChecksum: the bytes and their CRC32 differ: a torn write, another size, or
	// nothing was ever written.
	ErrChecksum = errors.New("wrong checksum of environment")
	// ErrData: the checksum is right, but the data are not variables.
	ErrData = errors.New("malformed environment")
	// ErrSize: fewer bytes than an environment has, more than it may have, or no room
	// for a variable.
	ErrSize = errors.New("size of environment")
	// ErrVariable: a name or value that cannot be stored.
	ErrVariable = errors.New("not a variable")
)

// MaxSize is how many bytes a copy may have.
const MaxSize = 16 << 20

// Variable is a name and its value.
type Variable struct{ Name, Value string }

// Env is an environment. The zero value is empty, of one copy, without a size.
type Env struct {
	Size      int  // bytes of a copy, checksum and flag included
	Redundant bool // one of two copies: there is a flag
	Flag      byte // of this copy
	vars      []Variable
}

func (e *Env) head() int {
	if e.Redundant {
		return 5
	}
	return 4
}

// Parse reads a copy, which is all of b. The errors are ErrSize, ErrChecksum and
// ErrData.
func Parse(b []byte, redundant bool) (*Env, error) {
	e := &Env{Size: len(b), Redundant: redundant}
	if len(b) < e.head()+2 || len(b) > MaxSize {
		return nil, fmt.Errorf("%w: expected %d to %d bytes, found %d", ErrSize, e.head()+2, MaxSize, len(b))
	}
	data := b[e.head():]
	if want, found := crc32.ChecksumIEEE(data), binary.LittleEndian.Uint32(b); want != found {
		return nil, fmt.Errorf("%w: of %d bytes: expected %#08x, found %#08x", ErrChecksum, len(b), want, found)
	}
	if redundant {
		e.Flag = b[4]
	}
	if err := e.parse(data); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Env) parse(data []byte) error {
	index := map[string]int{}
	for at := 0; ; {
		text, _, found := bytes.Cut(data[at:], []byte{0})
		if !found {
			return fmt.Errorf("%w: byte %d: expected two NUL bytes at the end, found %d bytes without", ErrData, at, len(text))
		}
		if len(text) == 0 {
			return nil
		}
		name, value, found := strings.Cut(string(text), "=")
		if !found || name == "" {
			return fmt.Errorf("%w: byte %d: expected name=value, found %.40q", ErrData, at, text)
		}
		if i, again := index[name]; again {
			e.vars[i].Value = value
		} else {
			index[name], e.vars = len(e.vars), append(e.vars, Variable{name, value})
		}
		at += len(text) + 1
	}
}

// Choose takes, of the two copies of an environment, the valid one, or the newer of two
// valid ones, and says which: 0 or 1. Without a valid one the error is that of
// the first.
func Choose(first, second []byte) (e *Env, which int, err error) {
	a, errA := Parse(first, true)
	b, errB := Parse(second, true)
	switch {
	case errA != nil && errB != nil:
		return nil, 0, fmt.Errorf("no valid copy: %w; and the other: %w", errA, errB)
	case errA != nil || errB == nil && newer(b.Flag, a.Flag):
		return b, 1, nil
	}
	return a, 0, nil
}

func newer(b, a byte) bool {
	if a == 255 && b == 0 {
		return true
	}
	return b > a && (b != 255 || a != 0)
}

// Get is the value of a variable, and whether there is one.
func (e *Env) Get(name string) (value string, found bool) {
	for _, v := range e.vars {
		if v.Name == name {
			return v.Value, true
		}
	}
	return "", false
}

// Set gives a variable a value; an empty one deletes it, as in U-Boot. The error is
// ErrVariable; whether it fits is told by Marshal.
func (e *Env) Set(name, value string) error {
	if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
		return fmt.Errorf("%w: expected a name without = and NUL, and a value without NUL, found %.40q, %.40q", ErrVariable, name, value)
	}
	for i, v := range e.vars {
		if v.Name != name {
			continue
		}
		if e.vars[i].Value = value; value == "" {
			e.vars = append(e.vars[:i], e.vars[i+1:]...)
		}
		return nil
	}
	if value != "" {
		e.vars = append(e.vars, Variable{name, value})
	}
	return nil
}

// Variables are all of them, in their order; the slice is the caller's.
func (e *Env) Variables() []Variable { return append([]Variable(nil), e.vars...) }

// Next is the environment as it is written after this one: a copy with the next flag.
// Changes of one do not change the other.
func (e *Env) Next() *Env {
	n := *e
	n.vars = e.Variables()
	if n.Redundant {
		n.Flag++
	}
	return &n
}

// Marshal returns the Size bytes of a copy. The error is ErrSize, when the variables do
// not fit.
func (e *Env) Marshal() ([]byte, error) {
	need := e.head() + 1
	for _, v := range e.vars {
		need += len(v.Name) + len(v.Value) + 2
	}
	if need = max(need, e.head()+2); e.Size < need || e.Size > MaxSize {
		return nil, fmt.Errorf("%w: expected %d to %d bytes, found %d", ErrSize, need, MaxSize, e.Size)
	}
	b := make([]byte, e.head(), e.Size)
	for _, v := range e.vars {
		b = append(append(append(append(b, v.Name...), '='), v.Value...), 0)
	}
	b = b[:e.Size]
	if e.Redundant {
		b[4] = e.Flag
	}
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[e.head():]))
	return b, nil
}
