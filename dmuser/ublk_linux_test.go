package dmuser

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/internal/ublkctl"
)

// What is missing is said, with what to do about it.
func TestUblkProbe(t *testing.T) {
	err := ublks.Probe()
	if err != nil && !errors.Is(err, ErrUnsupported) {
		t.Errorf("expected ErrUnsupported, found %v", err)
	}
	if errors.Is(err, unix.ENOENT) && !strings.Contains(err.Error(), "modprobe ublk_drv") {
		t.Errorf("expected advice, found %v", err)
	}
	if _, attachErr := ublks.Attach(t.Context(), "probe", pattern(0)); !errors.Is(attachErr, ErrBadSize) {
		t.Errorf("expected ErrBadSize, found %v", attachErr)
	}
	if err == nil {
		return
	}
	if _, attachErr := ublks.Attach(t.Context(), "probe", pattern(4096)); !errors.Is(attachErr, ErrUnsupported) {
		t.Errorf("expected ErrUnsupported, found %v", attachErr)
	}
	if removed, err := ublks.Sweep(); len(removed) > 0 || err != nil {
		t.Errorf("expected nothing to sweep, found %q, %v", removed, err)
	}
}

// A mode's flags tell the mode, whatever else a device has.
func TestUblkModes(t *testing.T) {
	for _, m := range []ublkMode{ublkUserCopy, ublkCopy, ublkZeroCopy} {
		if got := modeOf(m.flags() | ublkWanted | ublkWelcome); got != m {
			t.Errorf("expected mode %d, found %d", m, got)
		}
	}
	if got := modeOf(ublkctl.UserCopy | ublkctl.ZeroCopy); got != ublkUserCopy {
		t.Errorf("without automatic buffers: expected user copy, found %d", got)
	}
}

// A name comes back if it fits; else the device's number stands for it.
func TestUblkName(t *testing.T) {
	long := strings.Repeat("long name ", 6)
	for name, want := range map[string]string{
		"system_a": "system_a", long[:32]: long[:32], long[:52]: long[:52], long[:53]: "ublkb7",
	} {
		p := ublkParams(name, 4096, 4096)
		if got := ublkNameOf(ublkctl.Info{ID: 7, Private: ublkIdentity(name)}, p); got != want {
			t.Errorf("%q: expected %q, found %q", name, want, got)
		}
	}
	if ublkIdentity("a") == ublkIdentity("b") || ublkIdentity("a")&ublkMarkMask != ublkMark {
		t.Error("expected two names to differ, and to be marked as ours")
	}
}

func TestUblkServerRunning(t *testing.T) {
	for pid, want := range map[int]bool{unix.Getpid(): true, 1: true, -1: false, 0: false, 1<<31 - 2: false} {
		if got := isRunning(pid); got != want {
			t.Errorf("process %d: expected %v, found %v", pid, want, got)
		}
	}
}
