package nbdctl

import "fmt"

// FamilyName is the driver's name in generic netlink.
const FamilyName = "nbd"

const (
	version = 1

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdStatus      = 5

	attrIndex       = 1
	attrSizeBytes   = 2
	attrBlockSize   = 3
	attrTimeout     = 4
	attrServerFlags = 5
	attrClientFlags = 6
	attrSockets     = 7
	attrDeadTimeout = 8
	attrDeviceList  = 9
	attrIdentifier  = 10

	sockItem = 1
	sockFd   = 1

	deviceItem      = 1
	deviceIndex     = 1
	deviceConnected = 2
)

// Client flags.
const (
	// DestroyOnDisconnect removes the device, node and all, once it is
	// disconnected and closed.
	DestroyOnDisconnect = 1 << 0
	// DisconnectOnClose disconnects the device when the last opener closes it.
	DisconnectOnClose = 1 << 1
)

// Device says what a new device is like.
type Device struct {
	Size      uint64 // bytes
	BlockSize uint64 // bytes
	// Timeout is the seconds after which the driver gives up a connection
	// that has not answered a request, and asks again on the next one.
	Timeout uint64
	// DeadTimeout is the seconds that requests wait for a new connection when
	// there is none.
	DeadTimeout uint64
	ServerFlags uint64 // transmission flags of the protocol
	// Identifier is what Reconnect and SetFlags must tell to be let in. The
	// driver shows it in sysfs, since Linux 5.14.
	Identifier string
	Socket     int // a descriptor of this process
}

// Connect makes a device of the first free number.
func Connect(family uint16, seq uint32, d Device) []byte {
	return newMessage(family, seq, cmdConnect, version).
		u64(attrSizeBytes, d.Size).
		u64(attrBlockSize, d.BlockSize).
		u64(attrTimeout, d.Timeout).
		u64(attrDeadTimeout, d.DeadTimeout).
		u64(attrServerFlags, d.ServerFlags).
		u64(attrClientFlags, 0).
		socket(d.Socket).
		str(attrIdentifier, d.Identifier).
		bytes()
}

func (m *builder) socket(fd int) *builder {
	return m.nest(attrSockets, func() {
		m.nest(sockItem, func() { m.u32(sockFd, uint32(fd)) })
	})
}

// Reconnect gives a device a new connection for one that is dead. If none is,
// the driver reports success and drops the socket.
func Reconnect(family uint16, seq uint32, index int, identifier string, fd int) []byte {
	return newMessage(family, seq, cmdReconfigure, version).
		u32(attrIndex, uint32(index)).socket(fd).str(attrIdentifier, identifier).bytes()
}

// SetFlags sets all client flags of a device.
func SetFlags(family uint16, seq uint32, index int, identifier string, flags uint64) []byte {
	return newMessage(family, seq, cmdReconfigure, version).
		u32(attrIndex, uint32(index)).u64(attrClientFlags, flags).str(attrIdentifier, identifier).bytes()
}

// Disconnect ends a device's connections and fails what was asked on them.
func Disconnect(family uint16, seq uint32, index int) []byte {
	return newMessage(family, seq, cmdDisconnect, version).u32(attrIndex, uint32(index)).bytes()
}

// Status asks whether a device is connected.
func Status(family uint16, seq uint32, index int) []byte {
	return newMessage(family, seq, cmdStatus, version).u32(attrIndex, uint32(index)).bytes()
}

// Index is the number of the device that Connect has made, from the answer.
func (m Message) Index() (int, error) {
	all, err := m.attributes()
	if err != nil {
		return 0, err
	}
	v, err := find(all, attrIndex, 4)
	if err != nil {
		return 0, err
	}
	return int(int32(native.Uint32(v))), nil
}

// Connected tells, from the answer to Status, whether the device is connected.
// It also is while somebody has it open. A device that does not exist is not.
func (m Message) Connected(index int) (bool, error) {
	all, err := m.attributes()
	if err != nil {
		return false, err
	}
	for _, list := range all {
		if list.kind != attrDeviceList {
			continue
		}
		items, err := parseAttributes(list.value)
		if err != nil {
			return false, err
		}
		for _, item := range items {
			if i, connected, err := parseDevice(item); err != nil || i == index {
				return connected, err
			}
		}
	}
	return false, nil
}

func parseDevice(item attribute) (index int, connected bool, err error) {
	if item.kind != deviceItem {
		return 0, false, fmt.Errorf("%w: expected a device, found attribute %d", ErrMessage, item.kind)
	}
	all, err := parseAttributes(item.value)
	if err != nil {
		return 0, false, err
	}
	i, err := find(all, deviceIndex, 4)
	if err != nil {
		return 0, false, err
	}
	c, err := find(all, deviceConnected, 1)
	if err != nil {
		return 0, false, err
	}
	return int(int32(native.Uint32(i))), c[0] != 0, nil
}
