package grubenv

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrHeader: not an environment block.
	ErrHeader = errors.New("not a GRUB environment block")
	// ErrData: the header is right, but the lines are not variables.
	ErrData = errors.New("malformed GRUB environment block")
	// ErrSize: a size that a block cannot have, or no room for a variable.
	ErrSize = errors.New("size of GRUB environment block")
	// ErrVariable: a name that cannot be stored.
	ErrVariable = errors.New("not a variable")
)

// Sizes of a block, in bytes: what grub-editenv makes, and what is read at most.
const (
	Size    = 1024
	MaxSize = 64 << 10
)

const header = "# GRUB Environment Block\n"

// line is a comment, whose name is empty, or a variable.
type line struct{ name, value string }

// Env is an environment block.
type Env struct {
	size  int
	lines []line
}

// New is an empty block of the usual size.
func New() *Env { return &Env{size: Size} }

// Parse reads a block, which is all of b. The errors are ErrSize, ErrHeader and ErrData.
func Parse(b []byte) (*Env, error) {
	if len(b) < len(header) || len(b) > MaxSize {
		return nil, fmt.Errorf("%w: expected %d to %d bytes, found %d", ErrSize, len(header), MaxSize, len(b))
	}
	rest, found := bytes.CutPrefix(b, []byte(header))
	if !found {
		return nil, fmt.Errorf("%w: expected %q, found %q", ErrHeader, header, b[:len(header)])
	}
	e := &Env{size: len(b)}
	for len(rest) > 0 {
		n := lineEnd(rest)
		if n < 0 {
			return e.end(rest, len(b))
		}
		if err := e.add(string(rest[:n])); err != nil {
			return nil, fmt.Errorf("byte %d: %w", len(b)-len(rest), err)
		}
		rest = rest[n+1:]
	}
	return e, nil
}

// end takes what has no end of line, which is the filling.
func (e *Env) end(rest []byte, size int) (*Env, error) {
	if more := bytes.Trim(rest, "#"); len(more) > 0 {
		return nil, fmt.Errorf("%w: byte %d: expected number signs up to the end, found %.40q", ErrData, size-len(rest), more)
	}
	return e, nil
}

// lineEnd is where the line ends, or -1: an escaped end of line is none, but in a
// comment there is nothing escaped.
func lineEnd(b []byte) int {
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '\n':
			return i
		case b[i] == '\\' && b[0] != '#':
			i++
		}
	}
	return -1
}

func (e *Env) add(text string) error {
	if strings.HasPrefix(text, "#") {
		e.lines = append(e.lines, line{value: text})
		return nil
	}
	name, value, found := strings.Cut(text, "=")
	if !found || !isName(name) {
		return fmt.Errorf("%w: expected name=value, found %.40q", ErrData, text)
	}
	e.put(name, unescape(value))
	return nil
}

func (e *Env) put(name, value string) {
	for i := range e.lines {
		if e.lines[i].name == name {
			e.lines[i].value = value
			return
		}
	}
	e.lines = append(e.lines, line{name, value})
}

func isName(s string) bool { return s != "" && s[0] != '#' && !strings.ContainsAny(s, "=\\\n") }

func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

var escaper = strings.NewReplacer("\\", "\\\\", "\n", "\\\n")

// Get is the value of a variable, and whether there is one. It may be empty.
func (e *Env) Get(name string) (value string, found bool) {
	for _, l := range e.lines {
		if l.name == name && name != "" {
			return l.value, true
		}
	}
	return "", false
}

// Set gives a variable a value, which may be empty. The error is ErrVariable; whether it
// fits is told by Marshal.
func (e *Env) Set(name, value string) error {
	if !isName(name) {
		return fmt.Errorf("%w: expected a name without = and backslash, found %.40q", ErrVariable, name)
	}
	e.put(name, value)
	return nil
}

// Unset removes a variable, if there is one.
func (e *Env) Unset(name string) {
	for i, l := range e.lines {
		if l.name == name && name != "" {
			e.lines = append(e.lines[:i], e.lines[i+1:]...)
			return
		}
	}
}

// Marshal returns the block, as large as it was. The error is ErrSize, when the variables
// do not fit.
func (e *Env) Marshal() ([]byte, error) {
	b := []byte(header)
	for _, l := range e.lines {
		if l.name != "" {
			b = append(append(b, l.name...), '=')
			b = append(b, escaper.Replace(l.value)...)
		} else {
			b = append(b, l.value...)
		}
		b = append(b, '\n')
	}
	if len(b) > e.size {
		return nil, fmt.Errorf("%w: expected at most %d bytes, found %d", ErrSize, e.size, len(b))
	}
	return append(b, bytes.Repeat([]byte{'#'}, e.size-len(b))...), nil
}
