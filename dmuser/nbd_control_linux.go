package dmuser

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/internal/nbdctl"
)

// nbdControl talks to the driver. It is opened for a few messages and closed
// again, for an idle device needs none.
type nbdControl struct {
	fd     int
	family uint16
	seq    uint32
	in     [8192]byte
}

// openNbdControl finds the driver. The kernel loads it by itself where it can.
func openNbdControl() (*nbdControl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("%w: netlink socket: %w", ErrUnsupported, err)
	}
	c := &nbdControl{fd: fd}
	if err := c.findFamily(); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *nbdControl) close() { _ = unix.Close(c.fd) }

func (c *nbdControl) findFamily() error {
	err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err != nil {
		return fmt.Errorf("%w: bind netlink socket: %w", ErrUnsupported, err)
	}
	err = c.ask(nbdctl.GetFamily(c.next(), nbdctl.FamilyName), func(m nbdctl.Message) (err error) {
		c.family, err = m.FamilyID()
		return err
	})
	if err == nil && c.family != 0 {
		return nil
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: the kernel has no nbd driver (%w); load its module: modprobe nbd", ErrUnsupported, unix.ENOENT)
	}
	return fmt.Errorf("%w: find the nbd driver: %w", ErrUnsupported, err)
}

func (c *nbdControl) next() uint32 {
	c.seq++
	return c.seq
}

// ask sends a message and hands the answers to it to take, which may be nil. The
// driver has done what it was told, or failed, when ask returns.
func (c *nbdControl) ask(message []byte, take func(nbdctl.Message) error) error {
	if err := unix.Sendto(c.fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		n, _, err := unix.Recvfrom(c.fd, c.in[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if done, err := c.answers(c.in[:n], take); done || err != nil {
			return err
		}
	}
}

// answers goes through what came in one piece. True means that the last answer
// was among it.
func (c *nbdControl) answers(b []byte, take func(nbdctl.Message) error) (bool, error) {
	for len(b) > 0 {
		m, rest, err := nbdctl.Next(b)
		if err != nil {
			return false, err
		}
		b = rest
		if m.Seq != c.seq {
			continue
		}
		if final, err := m.Final(); final {
			return true, err
		}
		if take != nil {
			if err := take(m); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// connect makes a device and gives its number.
func (c *nbdControl) connect(d nbdctl.Device) (index int, err error) {
	index = -1
	err = c.ask(nbdctl.Connect(c.family, c.next(), d), func(m nbdctl.Message) (err error) {
		index, err = m.Index()
		return err
	})
	if err == nil && index < 0 {
		err = fmt.Errorf("%w: no device number in it", nbdctl.ErrMessage)
	}
	return index, err
}

func (c *nbdControl) reconnect(index int, identifier string, fd int) error {
	return c.ask(nbdctl.Reconnect(c.family, c.next(), index, identifier, fd), nil)
}

func (c *nbdControl) setFlags(index int, identifier string, flags uint64) error {
	return c.ask(nbdctl.SetFlags(c.family, c.next(), index, identifier, flags), nil)
}

func (c *nbdControl) disconnect(index int) error {
	return c.ask(nbdctl.Disconnect(c.family, c.next(), index), nil)
}

// connected is true as well while somebody has a disconnected device open.
func (c *nbdControl) connected(index int) (yes bool, err error) {
	err = c.ask(nbdctl.Status(c.family, c.next(), index), func(m nbdctl.Message) (err error) {
		yes, err = m.Connected(index)
		return err
	})
	return yes, err
}
