// Package nbdctl has the messages by which the kernel's nbd driver is told what
// to do, over generic netlink. It only encodes and decodes:
//
//	netlink header, 16 bytes     length, kind, flags, sequence, port
//	generic header, 4 bytes      command, version
//	attributes                   length, type, value; padded to 4 bytes; some nest
//
// Numbers are in the machine's own byte order, strings end with a NUL.
package nbdctl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
)

// ErrMessage: the kernel's message does not have the form expected.
var ErrMessage = errors.New("malformed netlink message")

const (
	headerSize  = 16
	genericSize = 4
	attrSize    = 4

	flagRequest = 1
	flagAck     = 4

	kindError   = 2
	kindDone    = 3
	kindControl = 16 // the family that tells of families

	controlGetFamily  = 3
	controlFamilyID   = 1
	controlFamilyName = 2

	// typeMask leaves a type without its two flags, which say that the value
	// nests and that it is in network order.
	typeMask = 1<<14 - 1
)

var native = binary.NativeEndian

// builder makes one message.
type builder struct{ b []byte }

func newMessage(kind uint16, seq uint32, command, version uint8) *builder {
	m := &builder{b: make([]byte, headerSize+genericSize, 256)}
	native.PutUint16(m.b[4:], kind)
	native.PutUint16(m.b[6:], flagRequest|flagAck)
	native.PutUint32(m.b[8:], seq)
	m.b[headerSize], m.b[headerSize+1] = command, version
	return m
}

// bytes ends the message.
func (m *builder) bytes() []byte {
	native.PutUint32(m.b, uint32(len(m.b)))
	return m.b
}

// nest has the attributes that inside adds within one of type kind.
func (m *builder) nest(kind uint16, inside func()) *builder {
	at := len(m.b)
	m.b = native.AppendUint16(m.b, 0)
	m.b = native.AppendUint16(m.b, kind)
	inside()
	native.PutUint16(m.b[at:], uint16(len(m.b)-at))
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
	return m
}

func (m *builder) u32(kind uint16, v uint32) *builder {
	return m.nest(kind, func() { m.b = native.AppendUint32(m.b, v) })
}

func (m *builder) u64(kind uint16, v uint64) *builder {
	return m.nest(kind, func() { m.b = native.AppendUint64(m.b, v) })
}

func (m *builder) str(kind uint16, s string) *builder {
	return m.nest(kind, func() { m.b = append(append(m.b, s...), 0) })
}

// Message is one message of the kernel.
type Message struct {
	Kind uint16
	Seq  uint32
	body []byte
}

// Next takes the first message off b, which the kernel has sent in one piece.
func Next(b []byte) (m Message, rest []byte, err error) {
	if len(b) < headerSize {
		return m, nil, fmt.Errorf("%w: expected a header of %d bytes, found %d", ErrMessage, headerSize, len(b))
	}
	length := native.Uint32(b)
	if length < headerSize || uint64(length) > uint64(len(b)) {
		return m, nil, fmt.Errorf("%w: length %d in %d bytes", ErrMessage, length, len(b))
	}
	m = Message{Kind: native.Uint16(b[4:]), Seq: native.Uint32(b[8:]), body: b[headerSize:length]}
	return m, b[min(uint64(len(b)), (uint64(length)+3)&^3):], nil
}

// Final reports whether the message is the last answer to a request, and with
// which outcome.
func (m Message) Final() (bool, error) {
	switch m.Kind {
	case kindDone:
		return true, nil
	case kindError:
		if len(m.body) < 4 {
			return true, fmt.Errorf("%w: expected an error number, found %d bytes", ErrMessage, len(m.body))
		}
		if e := int32(native.Uint32(m.body)); e != 0 {
			return true, syscall.Errno(-e)
		}
		return true, nil
	}
	return false, nil
}

// attribute is one attribute. Its value may be further ones.
type attribute struct {
	kind  uint16
	value []byte
}

func (m Message) attributes() ([]attribute, error) {
	if len(m.body) < genericSize {
		return nil, fmt.Errorf("%w: expected a generic header, found %d bytes", ErrMessage, len(m.body))
	}
	return parseAttributes(m.body[genericSize:])
}

func parseAttributes(b []byte) (all []attribute, err error) {
	for len(b) > 0 {
		if len(b) < attrSize {
			return nil, fmt.Errorf("%w: %d bytes after the last attribute", ErrMessage, len(b))
		}
		length := int(native.Uint16(b))
		if length < attrSize || length > len(b) {
			return nil, fmt.Errorf("%w: attribute of length %d in %d bytes", ErrMessage, length, len(b))
		}
		all = append(all, attribute{native.Uint16(b[2:]) & typeMask, b[attrSize:length]})
		b = b[min(len(b), (length+3)&^3):]
	}
	return all, nil
}

// find gives the value of the attribute of that type, which must have size bytes.
func find(all []attribute, kind uint16, size int) ([]byte, error) {
	for _, a := range all {
		if a.kind != kind {
			continue
		}
		if len(a.value) != size {
			return nil, fmt.Errorf("%w: attribute %d: expected %d bytes, found %d", ErrMessage, kind, size, len(a.value))
		}
		return a.value, nil
	}
	return nil, fmt.Errorf("%w: no attribute %d", ErrMessage, kind)
}

// GetFamily asks for the number of a family of generic netlink.
func GetFamily(seq uint32, name string) []byte {
	return newMessage(kindControl, seq, controlGetFamily, 1).str(controlFamilyName, name).bytes()
}

// FamilyID is that number, from the answer.
func (m Message) FamilyID() (uint16, error) {
	all, err := m.attributes()
	if err != nil {
		return 0, err
	}
	id, err := find(all, controlFamilyID, 2)
	if err != nil {
		return 0, err
	}
	return native.Uint16(id), nil
}
