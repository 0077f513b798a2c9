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
	if Allows(cred.Uid, []uint32{cred.Gid}, group) || Allows(cred.Uid, peerGroups(fd), group) {
		return int(cred.Pid), nil
	}
	return 0, fmt.Errorf("%w: process %d of user %d and group %d", ErrPeer, cred.Pid, cred.Uid, cred.Gid)
}

// Allows is the rule by which clients are admitted, for those whose credentials somebody
// else tells: root, this process's own user, and the members of group.
func Allows(uid uint32, groups []uint32, group int) bool {
	if uid == 0 || int64(uid) == int64(os.Geteuid()) {
		return true
	}
	return group != NoGroup && slices.Contains(groups, uint32(group))
}

// peerGroups are the client's supplementary groups. A kernel before 4.13 cannot tell
// them, and then there are none.
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
