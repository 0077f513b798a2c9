package uring

import (
	"errors"
	"fmt"
	"syscall"
)

// ErrUnavailable: this kernel has no io_uring, or does not let us use it.
var ErrUnavailable = errors.New("io_uring is not available")

// Error is a call on a ring that failed.
type Error struct {
	Op    string
	Errno syscall.Errno
}

func (e *Error) Error() string {
	switch e.Errno {
	case syscall.ENOSYS:
		return fmt.Sprintf("io_uring %s: %v; it needs a kernel with CONFIG_IO_URING", e.Op, e.Errno)
	case syscall.EPERM:
		return fmt.Sprintf("io_uring %s: %v; see sysctl kernel.io_uring_disabled", e.Op, e.Errno)
	}
	return fmt.Sprintf("io_uring %s: %v", e.Op, e.Errno)
}

// Unwrap gives the errno.
func (e *Error) Unwrap() error { return e.Errno }

// Is tells that ErrUnavailable is meant.
func (e *Error) Is(target error) bool {
	return target == ErrUnavailable && (e.Errno == syscall.ENOSYS || e.Errno == syscall.EPERM)
}
