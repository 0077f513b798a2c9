//go:build vmhost

package main

import (
	"math/rand/v2"
	"strings"
	"testing"

	"cowbird/tools/vmlab/volatile"
)

func chance(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 77)) }

// TestVolatileGuest proves for a guest's disks that what it has not synced can be lost,
// though it was written, and what it has synced cannot.
func TestVolatileGuest(t *testing.T) {
	w := newWorkshop(t)
	for loss, want := range map[volatile.Loss]string{volatile.LoseAll: "", volatile.LoseNone: "not synced"} {
		m := newMachine(t, w, chance(1), w.make(0, 0, -1), 0)
		m.boot(cut{said: "device: written", loss: loss}, "lab.do=proof")
		b := m.vbmeta[1].Contents()
		if got := strings.TrimRight(string(b[:4096]), "\x00"); got != "synced" {
			t.Errorf("%v: expected the synced block, found %q", loss, got)
		}
		if got := strings.TrimRight(string(b[8192:8192+4096]), "\x00"); got != want {
			t.Errorf("%v: expected %q in the block that was not synced, found %q", loss, want, got)
		}
	}
}

// TestDeviceUpdates lives through updates without an accident: forth and back, whole
// and partial.
func TestDeviceUpdates(t *testing.T) {
	w := newWorkshop(t)
	m := newMachine(t, w, chance(1), w.make(0, 0, 0), 24<<20)
	to := w.make(1, 1, 1)
	words := m.offer(&offer{from: m.old, to: to, version: 3, codec: "lz4"})
	o := m.boot(cut{}, append(words, "lab.do=install")...)
	t.Log(o.took, o.steps, o.flushes, tailOf(o.console, 30))
	m.went(o)
	o = m.boot(cut{}, "lab.do=merge")
	t.Log(o.took, o.steps, o.flushes, tailOf(o.console, 45))
	m.isOver(o)
	o = m.boot(cut{}, "lab.do=nothing")
	t.Log(o.took, o.steps, o.flushes, tailOf(o.console, 25))
	m.isOver(o)
}
