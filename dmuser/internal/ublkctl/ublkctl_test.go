package ublkctl

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// code is how the kernel's headers make one: direction, size, letter, number.
func code(write bool, size, number uint32) uint32 {
	direction := uint32(2)
	if write {
		direction = 3
	}
	return direction<<30 | size<<16 | 'u'<<8 | number
}

func TestCodes(t *testing.T) {
	for got, want := range map[uint32]uint32{
		codeInfo: code(false, 32, 2), codeAdd: code(true, 32, 4), codeDelete: code(true, 32, 5), codeStart: code(true, 32, 6),
		codeStop: code(true, 32, 7), codeSetParams: code(true, 32, 8), codeParams: code(false, 32, 9),
		codeStartRecovery: code(true, 32, 16), codeEndRecovery: code(true, 32, 17),
		codeInfoByPath: code(false, 32, 18), codeFeatures: code(false, 32, 19), codeDeleteAsync: code(false, 32, 20),
		codeQuiesce: code(true, 32, 22), codeTryStop: code(true, 32, 23),
		Fetch: code(true, 16, 32), CommitAndFetch: code(true, 16, 33),
	} {
		if got != want {
			t.Errorf("expected %#x, found %#x", want, got)
		}
	}
}

func TestLayouts(t *testing.T) {
	i := Info{Queues: 1, Depth: 2, State: 3, MaxIO: 4, ID: 5, PID: 6, Flags: 7, Private: 8, UID: 9, GID: 10}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&i)), 64)
	for at, want := range map[int]byte{0: 1, 2: 2, 4: 3, 8: 4, 12: 5, 16: 6, 24: 7, 32: 8, 40: 9, 44: 10} {
		if b[at] != want && b[at+1] != want && b[at+3] != want && b[min(at+7, 63)] != want { // either byte order
			t.Errorf("info: expected %d at %d, found %x", want, at, b)
		}
	}
	d := Desc{OpFlags: 1<<17 | OpFlush}
	if d.Op() != OpFlush || !d.Unregistered() || (&Desc{OpFlags: 1 << 16}).Unregistered() {
		t.Errorf("expected a flush without a buffer, found %+v", d)
	}
}

func TestOffsets(t *testing.T) {
	if CopyOffset(0, 0) != 0x80000000 || CopyOffset(0, 1) != 0x82000000 || CopyOffset(3, 0) != 0x80000000+3<<41 {
		t.Error("expected 32 MiB a tag and 65536 tags a queue")
	}
	for pageSize, want := range map[int][2]int64{4096: {98304, 4096}, 16384: {98304, 16384}, 65536: {131072, 65536}} {
		if DescOffset(1, pageSize) != want[0] || DescLength(32, pageSize) != int(want[1]) || DescOffset(0, pageSize) != 0 {
			t.Errorf("pages of %d: expected %d, found %d and %d", pageSize, want, DescOffset(1, pageSize), DescLength(32, pageSize))
		}
	}
	if DescLength(171, 4096) != 8192 || AutoBuffer(7) != 1<<16|7 {
		t.Error("expected two pages for 171 descriptors, and an index with the flag of falling back")
	}
}

func TestNeed(t *testing.T) {
	if err := Need(0x1fe, UserCopy|Recovery|Reissue); err != nil {
		t.Errorf("Linux 6.12: expected nothing to lack, found %v", err)
	}
	err := Need(0x1fe, UserCopy|Quiesce|1<<40)
	if !errors.Is(err, ErrNeeds) || !strings.Contains(err.Error(), "quiesce (6.16), feature 40") || strings.Contains(err.Error(), "copy") {
		t.Errorf("expected what is missing and no more, found %v", err)
	}
}

func TestErrors(t *testing.T) {
	if err := error(&Error{Op: "add", ID: AnyID, Errno: syscall.EPERM}); !errors.Is(err, syscall.EPERM) || strings.Contains(err.Error(), "device") {
		t.Errorf("expected EPERM of no device, found %v", err)
	}
	if err := (&Error{Op: "stop", ID: 3, Errno: syscall.EBUSY}); !strings.Contains(err.Error(), "stop of device 3") {
		t.Errorf("expected the device's number, found %v", err)
	}
}
