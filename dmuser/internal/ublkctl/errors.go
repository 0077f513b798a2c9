package ublkctl

import (
	"errors"
	"fmt"
	"syscall"
)

// ErrNeeds: the driver does not offer what is needed. The error says which, and
// the kernel that does.
var ErrNeeds = errors.New("the ublk driver is too old")

// Need checks that all of the flags want are among have.
func Need(have, want Flags) error {
	if missing := want &^ have; missing != 0 {
		return fmt.Errorf("%w: it lacks %v", ErrNeeds, missing)
	}
	return nil
}

// Error is a command that the driver refused.
type Error struct {
	Op    string
	ID    uint32 // of the device
	Errno syscall.Errno
}

func (e *Error) Error() string {
	if e.ID == AnyID {
		return fmt.Sprintf("ublk %s: %v", e.Op, e.Errno)
	}
	return fmt.Sprintf("ublk %s of device %d: %v", e.Op, e.ID, e.Errno)
}

// Unwrap gives the errno.
func (e *Error) Unwrap() error { return e.Errno }
