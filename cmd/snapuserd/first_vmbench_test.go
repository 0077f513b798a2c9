//go:build vmbench

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/vmtest"
)

const (
	firstRounds = 15
	// firstPause is long enough for the daemon to have given all back, which it does
	// after a second or two.
	firstPause = 4 * time.Second
)

// TestFirstRead compares the read of 4 KiB that wakes the daemon with those that follow,
// on each carrier, and on a loop device that nobody serves. It prints medians.
//
//vmtest:timeout 30m
func TestFirstRead(t *testing.T) {
	fmt.Printf("| %s | first read after %v, µs | reads without a pause, µs | ratio |\n|---|---|---|---|\n", vmtest.Vehicle(), firstPause)
	for _, carrier := range []string{"ublk"} {
		t.Run(carrier, func(t *testing.T) {
			r := newRig(t, carrier, "64M", oneFile)
			defer r.loopBase()()
			printFirst(t, carrier, r.start())
			r.terminate()
		})
	}
	t.Run("loop", func(t *testing.T) {
		r := newRig(t, "", "64M", oneFile)
		defer r.loopBase()()
		printFirst(t, "loop device on the base", r.base)
	})
}

// loopBase makes the base a block device, as it is on devices.
func (r *rig) loopBase() (free func()) {
	r.t.Helper()
	out, err := exec.Command("losetup", "-f", "--show", r.base).Output()
	r.must(err)
	r.base = strings.TrimSpace(string(out))
	return func() { _ = exec.Command("losetup", "-d", r.base).Run() }
}

func printFirst(t *testing.T, what, node string) {
	f, err := os.OpenFile(node, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	room := make([]byte, 2*4096)
	buf := room[-uintptr(unsafe.Pointer(&room[0]))%4096:][:4096]
	read := func() float64 {
		off := rand.Int64N(size/4096) * 4096
		start := time.Now()
		if _, err := f.ReadAt(buf, off); err != nil {
			t.Fatal(err)
		}
		return float64(time.Since(start).Nanoseconds()) / 1e3
	}
	for off := int64(0); off < size; off += 4096 { // so that all of it is in the page cache
		if _, err := f.ReadAt(buf, off); err != nil {
			t.Fatal(err)
		}
	}
	var first, following []float64
	for range firstRounds {
		var warm []float64
		for end := time.Now().Add(time.Second); time.Now().Before(end); {
			warm = append(warm, read())
		}
		following = append(following, middle(warm))
		time.Sleep(firstPause)
		first = append(first, read())
	}
	fmt.Printf("| %s | %.0f | %.0f | %.2f |\n", what, middle(first), middle(following), middle(first)/middle(following))
}

func middle(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}
