package dbus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// MaxBody is how many bytes of arguments a message may have to be looked at.
const MaxBody = 16 << 10

const (
	maxFields  = 16 << 10  // bytes of header fields that are looked at
	maxMessage = 128 << 20 // bytes that a bus may send at all
	fixedSize  = 16        // bytes before the fields
)

// Type is the kind of a message.
type Type byte

// The kinds of messages.
const (
	MethodCall   Type = 1
	MethodReturn Type = 2
	ErrorReply   Type = 3
	Signal       Type = 4
)

// Flags.
const (
	noReplyExpected = 1
	interactive     = 4
)

// The codes of header fields.
const (
	fieldPath = iota + 1
	fieldInterface
	fieldMember
	fieldErrorName
	fieldReplySerial
	fieldDestination
	fieldSender
	fieldSignature
	fieldFiles
)

// Message is one message. Of one that was received Sender is what the bus says, which
// a client cannot forge.
type Message struct {
	Type                                                    Type
	Flags                                                   byte
	Serial, ReplySerial                                     uint32
	Path, Interface, Member, ErrorName, Destination, Sender string
	Signature                                               string
	// Body are the arguments; nil and TooLong if they had more than MaxBody bytes.
	Body    []byte
	TooLong bool

	order binary.ByteOrder
}

// Args decodes the arguments.
func (m *Message) Args() ([]any, error) {
	if m.TooLong {
		return nil, fmt.Errorf("%w: expected at most %d bytes of arguments", ErrFormat, MaxBody)
	}
	if _, err := types(m.Signature); err != nil {
		return nil, err
	}
	d := &decoder{b: m.Body, order: m.order}
	all, err := d.values(m.Signature, 0)
	if err == nil && d.at != len(d.b) {
		err = fmt.Errorf("%w: expected the arguments to end at byte %d, found %d", ErrFormat, d.at, len(d.b))
	}
	return all, err
}

// WantsReply tells whether a call is to be answered.
func (m *Message) WantsReply() bool { return m.Type == MethodCall && m.Flags&noReplyExpected == 0 }

// readMessage reads one message. What is too long is read past: a message without
// Type is one of which not even the fields were looked at. An error means that
// nothing can be read after it.
func readMessage(r io.Reader) (*Message, error) {
	var fixed [fixedSize]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return nil, err
	}
	m := &Message{Type: Type(fixed[1]), Flags: fixed[2]}
	switch fixed[0] {
	case 'l':
		m.order = binary.LittleEndian
	case 'B':
		m.order = binary.BigEndian
	default:
		return nil, fmt.Errorf("%w: expected l or B as its first byte, found %q", ErrFormat, fixed[0])
	}
	m.Serial = m.order.Uint32(fixed[8:])
	body, fields := int64(m.order.Uint32(fixed[4:])), int64(m.order.Uint32(fixed[12:]))
	if fixed[3] != 1 || m.Type == 0 || m.Serial == 0 {
		return nil, fmt.Errorf("%w: expected version 1, a type and a serial, found %d, %d, %d", ErrFormat, fixed[3], m.Type, m.Serial)
	}
	padded := (fields + 7) / 8 * 8
	if padded+body+fixedSize > maxMessage {
		return nil, fmt.Errorf("%w: expected at most %d bytes, found fields of %d and a body of %d", ErrFormat, maxMessage, fields, body)
	}
	if fields > maxFields {
		return &Message{}, discard(r, padded+body)
	}
	head := make([]byte, fixedSize+padded)
	copy(head, fixed[:])
	if _, err := io.ReadFull(r, head[fixedSize:]); err != nil {
		return nil, err
	}
	if err := m.readFields(head, int(fixedSize+fields)); err != nil {
		return nil, err
	}
	return m, m.readBody(r, body)
}

func discard(r io.Reader, n int64) error {
	_, err := io.CopyN(io.Discard, r, n)
	return err
}

func (m *Message) readBody(r io.Reader, n int64) error {
	if n > MaxBody {
		m.TooLong = true
		return discard(r, n)
	}
	m.Body = make([]byte, n)
	_, err := io.ReadFull(r, m.Body)
	return err
}

// readFields reads the header fields, from byte 16 to end. Unknown ones are passed over.
func (m *Message) readFields(head []byte, end int) error {
	d := &decoder{b: head[:end], at: fixedSize, order: m.order}
	for d.at < end {
		if err := d.align(8); err != nil {
			return err
		}
		code, err := d.number(1)
		if err != nil {
			return err
		}
		v, err := d.variant(0)
		if err == nil {
			err = m.setField(int(code), v.(Variant).Value)
		}
		if err != nil {
			return err
		}
	}
	if len(bytes.Trim(head[end:], "\x00")) > 0 {
		return fmt.Errorf("%w: expected zeros between fields and body", ErrFormat)
	}
	return m.check()
}

// setField keeps the value of a field, whose type must be the field's. Unknown fields
// may be of any.
func (m *Message) setField(code int, v any) error {
	ok := code > fieldFiles
	switch s := v.(type) {
	case string:
		if to := m.textField(code); to != nil && code != fieldPath && code != fieldSignature {
			*to, ok = s, true
		}
	case ObjectPath:
		if code == fieldPath {
			m.Path, ok = string(s), true
		}
	case Signature:
		if code == fieldSignature {
			m.Signature, ok = string(s), true
		}
	case uint32:
		if code == fieldReplySerial {
			m.ReplySerial = s
		}
		ok = ok || code == fieldReplySerial || code == fieldFiles
	}
	if !ok {
		return fmt.Errorf("%w: header field %d: found a %T", ErrFormat, code, v)
	}
	return nil
}

func (m *Message) textField(code int) *string {
	switch code {
	case fieldPath:
		return &m.Path
	case fieldInterface:
		return &m.Interface
	case fieldMember:
		return &m.Member
	case fieldErrorName:
		return &m.ErrorName
	case fieldDestination:
		return &m.Destination
	case fieldSender:
		return &m.Sender
	case fieldSignature:
		return &m.Signature
	}
	return nil
}

// check looks for the fields that each kind must have.
func (m *Message) check() error {
	ok := true
	switch m.Type {
	case MethodCall:
		ok = m.Path != "" && m.Member != ""
	case Signal:
		ok = m.Path != "" && m.Member != "" && m.Interface != ""
	case ErrorReply:
		ok = m.ReplySerial != 0 && m.ErrorName != ""
	case MethodReturn:
		ok = m.ReplySerial != 0
	}
	if !ok {
		return fmt.Errorf("%w: expected the fields of a message of type %d, found one missing", ErrFormat, m.Type)
	}
	return nil
}

// marshal gives the bytes of a message with these arguments.
func (m *Message) marshal(args []any) ([]byte, error) {
	body := &encoder{}
	m.Signature = ""
	for _, a := range args {
		if err := body.value(a); err != nil {
			return nil, err
		}
		m.Signature += signatureOf(a)
	}
	e := &encoder{b: []byte{'l', byte(m.Type), m.Flags, 1}}
	e.uint32(uint32(len(body.b)))
	e.uint32(m.Serial)
	e.uint32(0)
	for code := fieldPath; code <= fieldSignature; code++ {
		e.field(code, m)
	}
	binary.LittleEndian.PutUint32(e.b[12:], uint32(len(e.b)-fixedSize))
	e.align(8)
	return append(e.b, body.b...), nil
}

func (e *encoder) field(code int, m *Message) {
	var v any
	switch to := m.textField(code); {
	case to == nil && m.ReplySerial == 0 || to != nil && *to == "":
		return
	case to == nil:
		v = m.ReplySerial
	case code == fieldPath:
		v = ObjectPath(*to)
	case code == fieldSignature:
		v = Signature(*to)
	default:
		v = *to
	}
	e.align(8)
	e.b = append(e.b, byte(code))
	_ = e.value(Of(v)) // of a basic type, which can be sent
}

// Interactive tells whether the caller is ready to have its user asked for a password.
func (m *Message) Interactive() bool { return m.Flags&interactive != 0 }
