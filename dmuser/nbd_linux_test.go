package dmuser

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/internal/nbdctl"
)

// What is missing is said, with what to do about it; where nothing is, the
// driver has a number.
func TestNbdProbe(t *testing.T) {
	err := nbds.Probe()
	if err != nil && !errors.Is(err, ErrUnsupported) {
		t.Errorf("expected ErrUnsupported, found %v", err)
	}
	if errors.Is(err, unix.ENOENT) && !strings.Contains(err.Error(), "modprobe nbd") {
		t.Errorf("expected advice, found %v", err)
	}
	if _, attachErr := nbds.Attach(t.Context(), "probe", pattern(0)); !errors.Is(attachErr, ErrBadSize) {
		t.Errorf("expected ErrBadSize, found %v", attachErr)
	}
	if err == nil {
		return
	}
	if _, attachErr := nbds.Attach(t.Context(), "probe", pattern(4096)); !errors.Is(attachErr, ErrUnsupported) {
		t.Errorf("expected ErrUnsupported, found %v", attachErr)
	}
	if removed, err := nbds.Sweep(); len(removed) > 0 || err != nil {
		t.Errorf("expected nothing to sweep, found %q, %v", removed, err)
	}
}

// Every kernel has the family that tells of families, so that the messages can be
// tried where there is no nbd driver.
func TestNbdControl(t *testing.T) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	must(t, err)
	c := &nbdControl{fd: fd}
	defer c.close()
	must(t, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	id := uint16(0)
	ask := func(name string) error {
		return c.ask(nbdctl.GetFamily(c.next(), name), func(m nbdctl.Message) (err error) { id, err = m.FamilyID(); return err })
	}
	if err := ask("nlctrl"); err != nil || id != 16 {
		t.Errorf("expected family 16, found %d, %v", id, err)
	}
	if err := ask("no-such-family"); err != unix.ENOENT {
		t.Errorf("expected ENOENT, found %v", err)
	}
	if err := ask("nlctrl"); err != nil {
		t.Errorf("after an error: expected an answer, found %v", err)
	}
}

func TestNbdIdentifier(t *testing.T) {
	for name, want := range map[string]string{
		"system_a": "cowbird:system_a", "a b\n": "cowbird:a_b_", strings.Repeat("x", 300): "cowbird:" + strings.Repeat("x", 200),
	} {
		if got := nbdIdentifier(name); got != want {
			t.Errorf("expected %q, found %q", want, got)
		}
	}
}

// A server's end of a connection has a name that is gone when the server is.
func TestNbdMark(t *testing.T) {
	const index = 4321
	if isServed(index) {
		t.Fatal("expected no server, found one")
	}
	kernel := -1
	fd, err := plug(func(theirs int) (err error) {
		kernel, err = unix.FcntlInt(uintptr(theirs), unix.F_DUPFD_CLOEXEC, 0) // as the driver does
		return err
	})
	must(t, err)
	defer unix.Close(kernel)
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: nbdMark(index)}))
	if !isServed(index) || isServed(432) || isServed(321) {
		t.Error("expected one server, and of that number")
	}
	must(t, unix.Close(fd))
	if isServed(index) {
		t.Error("expected the name to be gone")
	}
	if _, err := plug(func(int) error { return nil }); err != errDropped {
		t.Errorf("a socket that nobody has taken: expected errDropped, found %v", err)
	}
}

func TestHasSocket(t *testing.T) {
	const table = "Num RefCount Protocol Flags Type St Inode Path\n" +
		"00000000: 00000003 00000000 00000000 0001 03 11 @cowbird-nbd:12\n" +
		"00000000: 00000003 00000000 00000000 0001 03 12\n" +
		"00000000: 00000003 00000000 00000000 0001 03 13 /run/@cowbird-nbd:7\n"
	for index, want := range map[int]bool{12: true, 1: false, 2: false, 7: false, 123: false} {
		if got := hasSocket(table, nbdMark(index)); got != want {
			t.Errorf("device %d: expected %v, found %v", index, want, got)
		}
	}
}

// What plug has made and nobody takes is closed.
func TestPlugLeavesNothing(t *testing.T) {
	before, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for range 100 {
		_, _ = plug(func(int) error { return unix.EINVAL })
		_, _ = plug(func(int) error { return nil })
	}
	after, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	if len(after) > len(before)+5 {
		t.Errorf("expected %d descriptors, found %d", len(before), len(after))
	}
}
