// Package claim opens a COW for one process alone.
//
// The merge keeps its progress in the COW. Two processes that merge one COW, or
// one that serves it while another merges it, would each believe in a progress
// of their own and destroy the base. So whoever may write to a COW claims it:
// with flock, which the kernel undoes when the process ends, whatever way it
// ends. Reading alone needs no claim.
//
// Block devices are not claimed: udev and the file system tools use the same
// lock on them for another purpose.
package claim

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"cowbird/cow"
)

// ErrClaimed: another process serves or merges this COW.
var ErrClaimed = errors.New("COW is in use by another process")

// Open opens the COW at path for reading and writing and, if it is a regular
// file, claims it. Closing the device ends the claim.
func Open(path string) (*cow.FileDevice, error) { return open(path, os.O_RDWR) }

// Create is Open for a COW that is to be written, and need not be there.
func Create(path string) (*cow.FileDevice, error) { return open(path, os.O_RDWR|os.O_CREATE) }

func open(path string, flags int) (*cow.FileDevice, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	d, err := claimed(f)
	if err != nil {
		_ = f.Close()
	}
	return d, err
}

func claimed(f *os.File) (*cow.FileDevice, error) {
	d, err := cow.NewFileDevice(f)
	if err != nil || !d.IsRegular() {
		return d, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		return nil, fmt.Errorf("%w: %s: unmap it there, or wait until its merge has ended", ErrClaimed, f.Name())
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return d, nil
}
