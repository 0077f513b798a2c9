package nbd

import "encoding/binary"

// Magic numbers.
const (
	magicServer     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicReply      = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags, of the server and of the client.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Transmission flags. The kernel's driver is told the same ones.
const (
	FlagHasFlags     = 1 << 0
	FlagReadOnly     = 1 << 1
	FlagSendFlush    = 1 << 2
	FlagSendDF       = 1 << 7
	FlagCanMultiConn = 1 << 8
)

type option uint32

const (
	optExportName      option = 1
	optAbort           option = 2
	optList            option = 3
	optStartTLS        option = 5
	optInfo            option = 6
	optGo              option = 7
	optStructuredReply option = 8
	optListMetaContext option = 9
	optSetMetaContext  option = 10
)

type optionReply uint32

const (
	repAck         optionReply = 1
	repServer      optionReply = 2
	repInfo        optionReply = 3
	repMetaContext optionReply = 4
	repErrUnsup    optionReply = 1<<31 + 1
	repErrInvalid  optionReply = 1<<31 + 3
	repErrUnknown  optionReply = 1<<31 + 6
	repErrTooBig   optionReply = 1<<31 + 9
)

// Kinds of information about an export.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

type command uint16

const (
	cmdRead        command = 0
	cmdWrite       command = 1
	cmdDisc        command = 2
	cmdFlush       command = 3
	cmdTrim        command = 4
	cmdWriteZeroes command = 6
	cmdBlockStatus command = 7
)

// Flags of a request.
const (
	cmdFlagDF     = 1 << 2 // one data chunk at most
	cmdFlagReqOne = 1 << 3 // one extent at most
)

// Chunks of a structured reply.
const (
	chunkDone = 1 << 0 // flag of the last one

	chunkNone        = 0
	chunkData        = 1
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1
	chunkErrorOffset = 1<<15 + 2
)

// Errno is an error number on the wire.
type Errno uint32

// The error numbers of the protocol. There are no others.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	EOVERFLOW Errno = 75
)

// Sizes on the wire, in bytes.
const (
	requestSize      = 28
	simpleSize       = 16
	chunkSize        = 20
	dataHeaderSize   = chunkSize + 8
	optionSize       = 16
	optionReplySize  = 20
	helloSize        = 18
	exportNameZeroes = 124
)

const (
	// contextName is the one metadata context, contextID its number.
	contextName = "base:allocation"
	contextID   = 1
)

// request is one request's header.
type request struct {
	flags  uint16
	cmd    command
	handle uint64
	offset uint64
	length uint32
}

// parseRequest takes the first requestSize bytes of b. False means that they
// are not a request's.
func parseRequest(b []byte) (request, bool) {
	return request{
		flags:  binary.BigEndian.Uint16(b[4:]),
		cmd:    command(binary.BigEndian.Uint16(b[6:])),
		handle: binary.BigEndian.Uint64(b[8:]),
		offset: binary.BigEndian.Uint64(b[16:]),
		length: binary.BigEndian.Uint32(b[24:]),
	}, binary.BigEndian.Uint32(b) == magicRequest
}

// putSimple writes a simple reply's header into the first simpleSize bytes of b.
func putSimple(b []byte, handle uint64, errno Errno) {
	binary.BigEndian.PutUint32(b, magicSimple)
	binary.BigEndian.PutUint32(b[4:], uint32(errno))
	binary.BigEndian.PutUint64(b[8:], handle)
}

// putChunk writes a chunk's header into the first chunkSize bytes of b. length
// is that of the payload.
func putChunk(b []byte, handle uint64, flags, kind uint16, length int) {
	binary.BigEndian.PutUint32(b, magicStructured)
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint16(b[6:], kind)
	binary.BigEndian.PutUint64(b[8:], handle)
	binary.BigEndian.PutUint32(b[16:], uint32(length))
}

// putDataHeader writes what precedes length bytes of data that begin at offset
// of the export, into the first dataHeaderSize bytes of b.
func putDataHeader(b []byte, handle uint64, flags uint16, offset uint64, length int) {
	putChunk(b, handle, flags, chunkData, 8+length)
	binary.BigEndian.PutUint64(b[chunkSize:], offset)
}

// appendError appends an error chunk, the last of its reply. offset is told
// unless it is negative.
func appendError(b []byte, handle uint64, errno Errno, message string, offset int64) []byte {
	kind, length := uint16(chunkError), 6+len(message)
	if offset >= 0 {
		kind, length = chunkErrorOffset, length+8
	}
	b = append(b, make([]byte, chunkSize)...)
	putChunk(b[len(b)-chunkSize:], handle, chunkDone, kind, length)
	b = binary.BigEndian.AppendUint32(b, uint32(errno))
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	b = append(b, message...)
	if offset >= 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(offset))
	}
	return b
}

// appendBlockStatus appends the whole reply that calls length bytes allocated.
func appendBlockStatus(b []byte, handle uint64, length uint32) []byte {
	b = append(b, make([]byte, chunkSize)...)
	putChunk(b[len(b)-chunkSize:], handle, chunkDone, chunkBlockStatus, 12)
	b = binary.BigEndian.AppendUint32(b, contextID)
	b = binary.BigEndian.AppendUint32(b, length)
	return binary.BigEndian.AppendUint32(b, 0)
}

// appendHello appends what the server says first.
func appendHello(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicServer)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	return binary.BigEndian.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
}

// appendOptionReply appends the header of a reply to an option. length is that
// of the data.
func appendOptionReply(b []byte, o option, kind optionReply, length int) []byte {
	b = binary.BigEndian.AppendUint64(b, magicReply)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(kind))
	return binary.BigEndian.AppendUint32(b, uint32(length))
}
