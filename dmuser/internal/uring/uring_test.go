package uring

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

func TestCommandEntry(t *testing.T) {
	e := Entry{Len: 7, UserData: 9}
	e.SetCommand(5, 0xc0207504)
	b := unsafe.Slice((*byte)(unsafe.Pointer(&e)), entrySize)
	if b[0] != OpCommand || e.FD != 5 || *(*uint32)(unsafe.Pointer(&b[8])) != 0xc0207504 || e.Command() != 0xc0207504 {
		t.Errorf("expected a command in an entry, found %x", b)
	}
	if e.Len != 0 || e.UserData != 0 || uintptr(e.Area())-uintptr(unsafe.Pointer(&e)) != 48 {
		t.Errorf("expected nothing left of what was there, and the area at 48, found %+v", e)
	}
}

func TestErrors(t *testing.T) {
	for errno, advice := range map[syscall.Errno]string{syscall.ENOSYS: "CONFIG_IO_URING", syscall.EPERM: "kernel.io_uring_disabled"} {
		var err error = &Error{Op: "set-up", Errno: errno}
		if !errors.Is(err, ErrUnavailable) || !errors.Is(err, errno) || !strings.Contains(err.Error(), advice) {
			t.Errorf("expected advice about %q, found %v", advice, err)
		}
	}
	if err := error(&Error{Op: "enter", Errno: syscall.EINVAL}); errors.Is(err, ErrUnavailable) || !errors.Is(err, syscall.EINVAL) {
		t.Errorf("expected EINVAL and no more, found %v", err)
	}
}
