// Package dbus is a connection to a D-Bus message bus, for a small service: it owns a
// name, answers calls, sends signals, and asks the bus who is calling.
//
//	          bus (dbus-daemon, dbus-broker)
//	               │ messages              ▲
//	               ▼                       │
//	read loop ── replies ─► Call           │
//	    │                                  │
//	    └─ calls, signals ─► queue ─► Incoming ─► Reply, Fail, Emit
//
// What a client may cost is bounded, whatever it sends through the bus: a body over
// MaxBody is read past and not kept, and a sender with too many calls in the queue is
// told so at once, while the calls of others are taken. A body is decoded only when
// Args is asked for it, so a service that compares the signature first decodes
// nothing else. Messages are checked as the specification has it, although the bus
// has done so.
//
// Values are Go's:
//
//	y byte   b bool   n int16   q uint16   i int32   u uint32   x int64   t uint64
//	d float64   s string   o ObjectPath   g Signature   v Variant   h uint32
//	array []any, of Entry for a dictionary   struct []any
//
// and what is sent may also be []string, map[string]string, map[string]Variant and
// Struct.
// Strings that a bus would not take are mended: no error text is worth the
// connection.
//
// It is not a general library: no file descriptors, no other authentication than by
// credentials (EXTERNAL), no TCP, and objects are for the service to tell apart. The
// one library that there is would cost 1.6 MB of program, a goroutine for each call of
// anybody, and memory for messages of 128 MiB.
//
// Source: the D-Bus specification, version 0.43: type system, marshaling, message
// protocol, authentication protocol, message bus.
package dbus
