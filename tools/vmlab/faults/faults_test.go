//go:build vmfault

package faults

import (
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/vmtest"
)

func TestPasses(t *testing.T) {}

func TestSkips(t *testing.T) { t.Skip("on purpose") }

func TestFails(t *testing.T) { t.Error("on purpose") }

func TestPanics(t *testing.T) { panic("on purpose") }

func TestExits(t *testing.T) { os.Exit(0) }

func TestHangs(t *testing.T) { select {} }

// TestHangsDeaf does not even let its own timer end it.
func TestHangsDeaf(t *testing.T) {
	signal.Ignore(syscall.SIGQUIT)
	if err := unix.Kill(os.Getpid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	select {} // another thread takes the signal, so that this one may go on for a while
}

// TestLeavesProcess starts one that outlives it.
func TestLeavesProcess(t *testing.T) {
	_, err := os.StartProcess("/bin/sleep", []string{"sleep", "1000"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWarns(t *testing.T) { provoke(t, "WARNING") }

func TestWarnsAllowed(t *testing.T) {
	vmtest.Allow(t, `WARNING: .*lkdtm`)
	provoke(t, "WARNING")
}

func TestLocksGuestUp(t *testing.T) { provoke(t, "HARDLOCKUP") }

func TestPowersOff(t *testing.T) {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	time.Sleep(time.Minute)
}

func TestPanicsKernel(t *testing.T) {
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
		provoke(t, "PANIC")
	}
	time.Sleep(time.Minute)
}

// TestAfterPanic needs a new guest if it shares one.
func TestAfterPanic(t *testing.T) {}

// provoke has the kernel's own test of its crashes do one.
func provoke(t *testing.T, what string) {
	t.Helper()
	if _, err := os.Stat("/sys/kernel/debug/provoke-crash"); err != nil {
		t.Skip("this kernel does not crash on demand")
	}
	_ = os.WriteFile("/sys/kernel/debug/provoke-crash/DIRECT", []byte(what), 0)
}
