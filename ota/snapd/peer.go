package snapd

import (
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NoGroup is the Config.Group that lets no group in.
const NoGroup = -1

// admit checks who is at the other end of a control connection: root, the
// daemon's own user, or a member of group.
func admit(fd, group int) error {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return fmt.Errorf("credentials of a client: %w", err)
	}
	if cred.Uid == 0 || int(cred.Uid) == os.Geteuid() {
		return nil
	}
	if group != NoGroup && (int(cred.Gid) == group || inGroup(fd, group)) {
		return nil
	}
	return fmt.Errorf("%w: process %d of user %d and group %d", ErrPeer, cred.Pid, cred.Uid, cred.Gid)
}

// inGroup looks at the client's supplementary groups. A kernel before 4.13
// cannot tell them, and then there are none.
func inGroup(fd, group int) bool {
	return slices.Contains(peerGroups(fd), uint32(group))
}

func peerGroups(fd int) []uint32 {
	groups := make([]uint32, 32)
	for {
		size := uint32(4 * len(groups))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(unsafe.SliceData(groups))), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4]
		case errno == unix.ERANGE && int(size) > 4*len(groups):
			groups = make([]uint32, size/4)
		default:
			return nil
		}
	}
}
