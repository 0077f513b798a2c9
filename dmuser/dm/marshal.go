package dm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

// The layouts of include/uapi/linux/dm-ioctl.h, in the machine's byte order.
// They are the same on every architecture.
const (
	headerSize = 312 // struct dm_ioctl, with the 7 bytes of data in it
	specSize   = 40  // struct dm_target_spec
	nameLen    = 128 // with the closing NUL, like all of these
	uuidLen    = 129
	typeLen    = 16

	// messageSector is how much of struct dm_target_msg precedes the text.
	messageSector = 8

	offDataSize = 12
	offStart    = 16
	offTargets  = 20
	offOpen     = 24
	offFlags    = 28
	offEvent    = 32
	offDev      = 40
	offName     = 48
	offUUID     = offName + nameLen
)

var order = binary.NativeEndian

// interfaceMajor is the version of the interface that we speak.
const interfaceMajor = 4

// A request is what goes into an ioctl.
type request struct {
	name, uuid string
	flags      uint32
	targets    []Target
	message    string // for the device, instead of targets
}

// marshal writes a request into a new buffer with at least room bytes for what
// comes back.
func (r *request) marshal(room int) ([]byte, error) {
	table, err := marshalTable(r.targets)
	if err != nil {
		return nil, err
	}
	if r.message != "" {
		table = append(make([]byte, messageSector), r.message+"\x00"...)
	}
	b := make([]byte, headerSize+max(len(table), room))
	order.PutUint32(b, interfaceMajor)
	order.PutUint32(b[offDataSize:], uint32(len(b)))
	order.PutUint32(b[offStart:], headerSize)
	order.PutUint32(b[offTargets:], uint32(len(r.targets)))
	order.PutUint32(b[offFlags:], r.flags)
	if err := putText(b[offName:offName+nameLen], "name", r.name); err != nil {
		return nil, err
	}
	if err := putText(b[offUUID:offUUID+uuidLen], "UUID", r.uuid); err != nil {
		return nil, err
	}
	copy(b[headerSize:], table)
	return b, nil
}

func putText(to []byte, what, s string) error {
	if len(s) >= len(to) || strings.IndexByte(s, 0) >= 0 {
		return fmt.Errorf("%w: %s %q: expected at most %d bytes without a NUL", ErrArgument, what, s, len(to)-1)
	}
	copy(to, s)
	return nil
}

func marshalTable(targets []Target) (b []byte, err error) {
	for _, t := range targets {
		if strings.IndexByte(t.Args, 0) >= 0 {
			return nil, fmt.Errorf("%w: arguments %q: expected no NUL", ErrArgument, t.Args)
		}
		spec := make([]byte, aligned(specSize+len(t.Args)+1))
		order.PutUint64(spec, t.Start)
		order.PutUint64(spec[8:], t.Sectors)
		order.PutUint32(spec[20:], uint32(len(spec))) // from this one to the next
		if err := putText(spec[24:24+typeLen], "target", t.Type); err != nil {
			return nil, err
		}
		copy(spec[specSize:], t.Args)
		b = append(b, spec...)
	}
	return b, nil
}

func aligned(n int) int { return (n + 7) &^ 7 }

// A reply is a buffer that an ioctl has filled. Each part of it is checked.
type reply []byte

func (r reply) flags() uint32 { return order.Uint32(r[offFlags:]) }

// data is what follows the header.
func (r reply) data() ([]byte, error) {
	start, size := order.Uint32(r[offStart:]), order.Uint32(r[offDataSize:])
	if start > size || uint64(size) > uint64(len(r)) {
		return nil, fmt.Errorf("%w: data from %d to %d of %d bytes", ErrReply, start, size, len(r))
	}
	return r[start:size], nil
}

func (r reply) version() Version {
	return Version{order.Uint32(r), order.Uint32(r[4:]), order.Uint32(r[8:])}
}

func (r reply) info() Info {
	flags := r.flags()
	return Info{
		Name:      text(r[offName : offName+nameLen]),
		UUID:      text(r[offUUID : offUUID+uuidLen]),
		Dev:       order.Uint64(r[offDev:]),
		Open:      int(int32(order.Uint32(r[offOpen:]))),
		Targets:   int(order.Uint32(r[offTargets:])),
		Event:     order.Uint32(r[offEvent:]),
		ReadOnly:  flags&flagReadOnly != 0,
		Suspended: flags&flagSuspend != 0,
		Active:    flags&flagActive != 0,
		Inactive:  flags&flagInactive != 0,
		Leaving:   flags&flagDeferred != 0,
	}
}

// text is the string up to the first NUL.
func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// table reads the lines of a table or of its status.
func (r reply) table() ([]Target, error) {
	if order.Uint32(r[offTargets:]) == 0 {
		return nil, nil // without a table there is no data, not even where it would start
	}
	data, err := r.data()
	if err != nil {
		return nil, err
	}
	var targets []Target
	at := uint64(0)
	for range order.Uint32(r[offTargets:]) {
		if at+specSize > uint64(len(data)) {
			return nil, fmt.Errorf("%w: target %d of %d: expected %d bytes at %d, found %d in all",
				ErrReply, len(targets), order.Uint32(r[offTargets:]), specSize, at, len(data))
		}
		spec := data[at:]
		targets = append(targets, Target{
			Start:   order.Uint64(spec),
			Sectors: order.Uint64(spec[8:]),
			Type:    text(spec[24 : 24+typeLen]),
			Args:    text(spec[specSize:]),
		})
		at = uint64(order.Uint32(spec[20:])) // this time from the first one
	}
	return targets, nil
}

// list reads a chain of entries whose text begins at offset from; next is where
// an entry says how far away the following one is, 0 if there is none.
func (r reply) list(next, from int, entry func(b []byte, name string)) error {
	data, err := r.data()
	if err != nil || len(data) == 0 { // kernels have two ways to say: none
		return err
	}
	for {
		if len(data) < from {
			return fmt.Errorf("%w: list entry: expected %d bytes, found %d", ErrReply, from, len(data))
		}
		entry(data, text(data[from:]))
		step := order.Uint32(data[next:])
		if step == 0 {
			return nil
		}
		if uint64(step) > uint64(len(data)) {
			return fmt.Errorf("%w: list entry: expected at most %d bytes, found %d", ErrReply, len(data), step)
		}
		data = data[step:]
	}
}

func (r reply) devices() (entries []Entry, err error) {
	err = r.list(8, 12, func(b []byte, name string) {
		if dev := order.Uint64(b); dev != 0 { // else it is the only one, and says: none
			entries = append(entries, Entry{name, dev})
		}
	})
	return entries, err
}

func (r reply) targetTypes() (types []TargetType, err error) {
	err = r.list(0, 16, func(b []byte, name string) {
		types = append(types, TargetType{name, Version{order.Uint32(b[4:]), order.Uint32(b[8:]), order.Uint32(b[12:])}})
	})
	return types, err
}
