package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"
)

var (
	// ErrProtocol: the client does not speak the protocol, or beyond a limit.
	ErrProtocol = errors.New("client breaks the NBD protocol")
	// ErrUnknownExport: no export has that name.
	ErrUnknownExport = errors.New("unknown NBD export")
	// ErrAborted: the client ended the negotiation, as it may.
	ErrAborted = errors.New("client ended the negotiation")
)

// Limits of a negotiation.
const (
	NegotiationTime = 10 * time.Second
	MaxOptions      = 1024
	// MaxOption bytes of an option's data are looked at: room for the longest
	// name and some queries. A longer one is refused.
	MaxOption = 8 << 10
	// maxSkip bytes of an option's data are passed over; the client that sends
	// more is not worth the time.
	maxSkip = 64 << 10
	// maxName bytes is what the protocol allows for a string.
	maxName = 4096
)

// Conn is a connection, such as a socket's *os.File or net.Conn.
type Conn interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Backend is what is served. ReadAt follows io.ReaderAt, must be safe for
// concurrent use, and is lent p for the length of the call only. Size is in
// bytes and never changes.
type Backend interface {
	io.ReaderAt
	Size() int64
}

// Export is a backend with a name.
type Export struct {
	Name        string
	Description string // for people; may be empty
	Backend     Backend
	// Release, unless nil, is called once for each successful Open: when the
	// negotiation has failed after all, or the session has ended.
	Release func()
}

func (e Export) release() {
	if e.Release != nil {
		e.Release()
	}
}

// Exports is what a client may choose from. Its methods must be safe for
// concurrent use.
type Exports interface {
	// Names lists the exports in a fixed order.
	Names() []string
	// Find gives an export to tell about. The error wraps ErrUnknownExport if
	// there is none of that name.
	Find(name string) (Export, error)
	// Open is Find for a client that will read.
	Open(name string) (Export, error)
}

// Agreement is the outcome of a negotiation.
type Agreement struct {
	Export     Export
	Structured bool // replies
	Allocation bool // the client may ask for base:allocation
}

// negotiation is one connection before its transmission phase.
type negotiation struct {
	conn    Conn
	exports Exports

	noZeroes   bool
	structured bool
	// context is the export for which base:allocation was chosen, if it was.
	context    string
	hasContext bool

	in  []byte
	out []byte
}

// Negotiate comes to an agreement with the client on c. It takes no longer than
// NegotiationTime. On an error the caller closes c. Otherwise the export has
// been opened, and a session releases it.
func Negotiate(c Conn, x Exports) (Agreement, error) {
	deadline := time.Now().Add(NegotiationTime)
	if err := errors.Join(c.SetReadDeadline(deadline), c.SetWriteDeadline(deadline)); err != nil {
		return Agreement{}, fmt.Errorf("negotiation deadline: %w", err)
	}
	n := negotiation{conn: c, exports: x, in: make([]byte, MaxOption)}
	a, err := n.run()
	if err != nil {
		return Agreement{}, fmt.Errorf("negotiate: %w", err)
	}
	if err := errors.Join(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{})); err != nil {
		a.Export.release()
		return Agreement{}, fmt.Errorf("negotiation deadline: %w", err)
	}
	return a, nil
}

func (n *negotiation) run() (Agreement, error) {
	if _, err := n.conn.Write(appendHello(nil)); err != nil {
		return Agreement{}, err
	}
	if _, err := io.ReadFull(n.conn, n.in[:4]); err != nil {
		return Agreement{}, err
	}
	flags := binary.BigEndian.Uint32(n.in)
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return Agreement{}, fmt.Errorf("%w: client flags %#x", ErrProtocol, flags)
	}
	n.noZeroes = flags&flagNoZeroes != 0
	for range MaxOptions {
		e, err := n.option()
		if err != nil {
			return Agreement{}, err
		}
		if e != nil {
			return Agreement{Export: *e, Structured: n.structured, Allocation: n.hasContext && n.context == e.Name}, nil
		}
	}
	return Agreement{}, fmt.Errorf("%w: more than %d options", ErrProtocol, MaxOptions)
}

// option deals with one option. It returns the export that the client has
// chosen for good, if it has.
func (n *negotiation) option() (*Export, error) {
	head := n.in[:optionSize]
	if _, err := io.ReadFull(n.conn, head); err != nil {
		return nil, err
	}
	if magic := binary.BigEndian.Uint64(head); magic != magicOption {
		return nil, fmt.Errorf("%w: option magic %#x", ErrProtocol, magic)
	}
	o, length := option(binary.BigEndian.Uint32(head[8:])), binary.BigEndian.Uint32(head[12:])
	if length > MaxOption {
		return nil, n.tooLong(o, length)
	}
	data := n.in[:length]
	if _, err := io.ReadFull(n.conn, data); err != nil {
		return nil, err
	}
	n.out = n.out[:0]
	e, err := n.answer(o, data)
	if err == nil {
		_, err = n.conn.Write(n.out)
	}
	if err != nil && e != nil {
		e.release()
	}
	return e, err
}

func (n *negotiation) tooLong(o option, length uint32) error {
	if length > maxSkip || o == optExportName {
		return fmt.Errorf("%w: option %d of %d bytes", ErrProtocol, o, length)
	}
	if _, err := io.CopyBuffer(io.Discard, io.LimitReader(n.conn, int64(length)), n.in); err != nil {
		return err
	}
	n.out = n.out[:0]
	n.refuse(o, repErrTooBig, fmt.Sprintf("expected at most %d bytes", MaxOption))
	_, err := n.conn.Write(n.out)
	return err
}

// answer puts into out what is to be sent. An error ends the connection.
func (n *negotiation) answer(o option, data []byte) (*Export, error) {
	switch o {
	case optExportName:
		return n.exportName(string(data))
	case optAbort:
		n.ack(o)
		_, _ = n.conn.Write(n.out) // the client may be gone already
		return nil, ErrAborted
	case optInfo, optGo:
		return n.info(o, data)
	case optList:
		if n.noData(o, data) {
			n.list()
		}
	case optStructuredReply:
		if n.noData(o, data) {
			n.structured = true
			n.ack(o)
		}
	case optListMetaContext, optSetMetaContext:
		n.metaContext(o, data)
	case optStartTLS:
		n.refuse(o, repErrUnsup, "no TLS here")
	default:
		n.refuse(o, repErrUnsup, "")
	}
	return nil, nil
}

func (n *negotiation) ack(o option) { n.out = appendOptionReply(n.out, o, repAck, 0) }

func (n *negotiation) refuse(o option, kind optionReply, why string) {
	n.out = appendOptionReply(n.out, o, kind, len(why))
	n.out = append(n.out, why...)
}

// noData refuses an option that has data and must not.
func (n *negotiation) noData(o option, data []byte) bool {
	if len(data) > 0 {
		n.refuse(o, repErrInvalid, "expected no data")
	}
	return len(data) == 0
}

// exportName is the option that cannot be refused but by hanging up.
func (n *negotiation) exportName(name string) (*Export, error) {
	e, err := n.exports.Open(name)
	if err != nil {
		return nil, err
	}
	n.out = binary.BigEndian.AppendUint64(n.out, uint64(e.Backend.Size()))
	n.out = binary.BigEndian.AppendUint16(n.out, n.flags())
	if !n.noZeroes {
		n.out = append(n.out, make([]byte, exportNameZeroes)...)
	}
	return &e, nil
}

// flags are the transmission flags. A read-only export looks the same on all
// connections.
func (n *negotiation) flags() uint16 {
	if n.structured {
		return FlagHasFlags | FlagReadOnly | FlagSendFlush | FlagCanMultiConn | FlagSendDF
	}
	return FlagHasFlags | FlagReadOnly | FlagSendFlush | FlagCanMultiConn
}

func (n *negotiation) list() {
	for _, name := range n.exports.Names() {
		e, err := n.exports.Find(name)
		if err != nil {
			continue // gone since
		}
		n.out = appendOptionReply(n.out, optList, repServer, 4+len(e.Name)+len(e.Description))
		n.out = binary.BigEndian.AppendUint32(n.out, uint32(len(e.Name)))
		n.out = append(append(n.out, e.Name...), e.Description...)
	}
	n.ack(optList)
}

// info tells about an export, and opens it if o is GO.
func (n *negotiation) info(o option, data []byte) (*Export, error) {
	name, asked, ok := parseInfo(data)
	if !ok {
		n.refuse(o, repErrInvalid, "name or list of information requests do not fit")
		return nil, nil
	}
	find := n.exports.Find
	if o == optGo {
		find = n.exports.Open
	}
	e, err := find(name)
	if err != nil {
		n.refuse(o, repErrUnknown, messageOf(err))
		return nil, nil
	}
	n.tell(o, e, asked)
	n.ack(o)
	if o == optInfo {
		return nil, nil
	}
	return &e, nil
}

// parseInfo takes the data of INFO and GO apart: a name, and 16 bits for each
// piece of information that the client would like.
func parseInfo(data []byte) (name string, asked []byte, ok bool) {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 2 {
		return "", nil, false
	}
	count, asked := int(binary.BigEndian.Uint16(rest)), rest[2:]
	return name, asked, len(asked) == 2*count
}

// cutString takes a length of 32 bits and a string of that length off b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	length, b := binary.BigEndian.Uint32(b), b[4:]
	if length > maxName || int(length) > len(b) || !utf8.Valid(b[:length]) {
		return "", nil, false
	}
	return string(b[:length]), b[length:], true
}

func (n *negotiation) tell(o option, e Export, asked []byte) {
	n.out = appendOptionReply(n.out, o, repInfo, 12)
	n.out = binary.BigEndian.AppendUint16(n.out, infoExport)
	n.out = binary.BigEndian.AppendUint64(n.out, uint64(e.Backend.Size()))
	n.out = binary.BigEndian.AppendUint16(n.out, n.flags())
	told := [infoBlockSize + 1]bool{infoExport: true}
	for ; len(asked) > 0; asked = asked[2:] {
		kind := binary.BigEndian.Uint16(asked)
		if int(kind) < len(told) && !told[kind] {
			told[kind] = true
			n.tellMore(o, e, kind)
		}
	}
}

func (n *negotiation) tellMore(o option, e Export, kind uint16) {
	if kind == infoBlockSize {
		n.out = appendOptionReply(n.out, o, repInfo, 14)
		n.out = binary.BigEndian.AppendUint16(n.out, kind)
		n.out = binary.BigEndian.AppendUint32(n.out, minBlock)
		n.out = binary.BigEndian.AppendUint32(n.out, preferredBlock)
		n.out = binary.BigEndian.AppendUint32(n.out, MaxRequest)
		return
	}
	text := e.Name
	if kind == infoDescription {
		text = e.Description
	}
	n.out = appendOptionReply(n.out, o, repInfo, 2+len(text))
	n.out = binary.BigEndian.AppendUint16(n.out, kind)
	n.out = append(n.out, text...)
}

// metaContext lists or chooses from the one metadata context that there is.
func (n *negotiation) metaContext(o option, data []byte) {
	if o == optSetMetaContext {
		n.hasContext = false
	}
	name, wanted, ok := parseQueries(data, o == optListMetaContext)
	if !ok || !n.structured {
		n.refuse(o, repErrInvalid, "expected structured replies agreed on, and a name and queries that fit")
		return
	}
	e, err := n.exports.Find(name)
	if err != nil {
		n.refuse(o, repErrUnknown, messageOf(err))
		return
	}
	if wanted {
		id := uint32(0)
		if o == optSetMetaContext {
			n.context, n.hasContext, id = e.Name, true, contextID
		}
		n.out = appendOptionReply(n.out, o, repMetaContext, 4+len(contextName))
		n.out = binary.BigEndian.AppendUint32(n.out, id)
		n.out = append(n.out, contextName...)
	}
	n.ack(o)
}

// parseQueries tells whether base:allocation is among the queries. Where they
// are to list and not to choose, an empty list and "base:" stand for it as well.
func parseQueries(data []byte, list bool) (name string, wanted, ok bool) {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 4 {
		return "", false, false
	}
	count, rest := binary.BigEndian.Uint32(rest), rest[4:]
	wanted = list && count == 0
	for ; count > 0; count-- {
		var query string
		if query, rest, ok = cutString(rest); !ok {
			return "", false, false
		}
		wanted = wanted || query == contextName || list && query == "base:"
	}
	return name, wanted, len(rest) == 0
}
