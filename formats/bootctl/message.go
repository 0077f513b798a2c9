package bootctl

import (
	"bytes"
	"fmt"
	"strings"
)

// Message is what a system leaves for the bootloader and for recovery. Its texts end at
// their first NUL byte.
type Message struct {
	Command  string // for the bootloader: "boot-recovery", "boot-fastboot"; at most 32 bytes
	Status   string // from the bootloader; at most 32
	Recovery string // "recovery", then its arguments, one a line; at most 768
	Stage    string // of an installation over several boots, "2/3"; at most 32

	reserved [1184]byte
}

// fields are the texts of a message, where they are and how long they may be.
func (m *Message) fields() []messageField {
	return []messageField{{&m.Command, "command", 0, 32}, {&m.Status, "status", 32, 32}, {&m.Recovery, "recovery", 64, 768}, {&m.Stage, "stage", 832, 32}}
}

type messageField struct {
	value    *string
	name     string
	at, size int
}

// messageReserved is where the texts end.
const messageReserved = 864

// ParseMessage reads a message from the first 2048 bytes of b. Neither magic nor
// checksum says that it is one: texts that begin with an erased byte are empty. The error is
// ErrSize.
func ParseMessage(b []byte) (Message, error) {
	m := Message{}
	if len(b) < MessageSize {
		return m, fmt.Errorf("%w: bootloader message: expected %d bytes, found %d", ErrSize, MessageSize, len(b))
	}
	for _, f := range m.fields() {
		*f.value = text(b[f.at : f.at+f.size])
	}
	copy(m.reserved[:], b[messageReserved:])
	return m, nil
}

// Marshal returns the 2048 bytes of a message. The error is ErrValue, for a text that
// does not fit.
func (m Message) Marshal() ([]byte, error) {
	b := make([]byte, MessageSize)
	for _, f := range m.fields() {
		if !fits(*f.value, f.size) {
			return nil, fmt.Errorf("%w: bootloader message: expected a %s of at most %d bytes, found %.40q of %d bytes", ErrValue, f.name, f.size, *f.value, len(*f.value))
		}
		copy(b[f.at:], *f.value)
	}
	copy(b[messageReserved:], m.reserved[:])
	return b, nil
}

// text is a NUL-terminated or full field.
func text(b []byte) string {
	if b[0] == 0xff {
		return ""
	}
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// fits says whether text returns s from a field of that size.
func fits(s string, size int) bool {
	return len(s) <= size && !strings.Contains(s, "\x00") && !strings.HasPrefix(s, "\xff")
}
