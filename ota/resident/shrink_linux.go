package resident

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kept are the capabilities that serving needs.
var kept = []int{
	unix.CAP_SYS_ADMIN,    // mounts of FUSE, loop devices, device-mapper, ublk
	unix.CAP_NET_ADMIN,    // the nbd driver's netlink family
	unix.CAP_MKNOD,        // nodes, where nobody else makes them
	unix.CAP_DAC_OVERRIDE, // bases and COWs that belong to other users
	unix.CAP_CHOWN,        // the sockets' group
	unix.CAP_SYS_PTRACE,   // who holds a device
	unix.CAP_SYS_NICE,     // priorities of a merge's threads
}

// dropCapabilities takes all others away from every thread. Without a right to run
// programs there is no way to get them back.
func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var now [2]unix.CapUserData
	if err := unix.Capget(&header, &now[0]); err != nil {
		return err
	}
	for i := range now {
		now[i].Permitted &= keptMask(i)
		now[i].Effective &= now[i].Permitted
		now[i].Inheritable = 0
	}
	pinned := runtime.Pinner{}
	defer pinned.Unpin()
	pinned.Pin(&header)
	pinned.Pin(&now)
	return onAllThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&now)), 0)
}

// keptMask is the word-th 32 bits of kept.
func keptMask(word int) (mask uint32) {
	for _, c := range kept {
		if c/32 == word {
			mask |= 1 << (c % 32)
		}
	}
	return mask
}

// refused are system calls that serving never makes: they fail with EPERM.
var refused = []uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT,
	unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_SETNS, unix.SYS_OPEN_BY_HANDLE_AT,
}

var errArch = errors.New("expected amd64, arm64, arm or riscv64, found " + runtime.GOARCH)

// refuseCalls installs the filter for all threads, present and future. The state
// that goes with it, no_new_privs, does too.
func refuseCalls() error {
	arch, ok := map[string]uint32{
		"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64, "arm": unix.AUDIT_ARCH_ARM, "riscv64": unix.AUDIT_ARCH_RISCV64,
	}[runtime.GOARCH]
	if !ok {
		return errArch
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	code := filter(arch, refused)
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(code)
	if e != 0 {
		return fmt.Errorf("seccomp filter: %w", e)
	}
	return nil
}

// Offsets in what a filter sees, struct seccomp_data.
const (
	dataNumber = 0
	dataArch   = 4
)

// x32 is where amd64 has a second set of numbers for the same calls.
const x32 = 0x40000000

// filter is a program of the kernel's packet filter machine: it refuses the calls,
// and all that are made by another architecture's numbers.
func filter(arch uint32, calls []uint32) []unix.SockFilter {
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	result := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	// One jump each to the last instruction, which refuses.
	last := 4 + len(calls) + 1
	to := func(from int) uint8 { return uint8(last - from - 1) }
	code := []unix.SockFilter{
		load(dataArch),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: to(1), K: arch},
		load(dataNumber),
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jt: to(3), K: x32},
	}
	for _, nr := range calls {
		code = append(code, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: to(len(code)), K: nr})
	}
	return append(code, result(unix.SECCOMP_RET_ALLOW), result(unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)))
}
