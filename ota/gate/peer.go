package gate

import (
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NoGroup is the group that lets no group in.
const NoGroup = -1

// Admit checks who is at the other end of the connection fd: root, this
// process's own user, or a member of group. It gives the client's process id.
func Admit(fd, group int) (pid int, err error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, fmt.Errorf("credentials of a client: %w", err)
	}
	if cred.Uid == 0 || int(cred.Uid) == os.Geteuid() {
		return int(cred.Pid), nil
	}
	if group != NoGroup && (int(cred.Gid) == group || inGroup(fd, group)) {
		return int(cred.Pid), nil
	}
	return 0, fmt.Errorf("%w: process %d of user %d and group %d", ErrPeer, cred.Pid, cred.Uid, cred.Gid)
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
