//go:build vmhost

package main

import (
	"math/rand/v2"
	"testing"
)

func chance(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 77)) }

// TestDeviceUpdates lives through updates without an accident: forth and back, whole
// and partial.
func TestDeviceUpdates(t *testing.T) {
	w := newWorkshop(t)
	m := newMachine(t, w, chance(1), w.make(0, 0, 0), 24<<20)
	to := w.make(1, 1, 1)
	words := m.offer(&offer{from: m.old, to: to, version: 3, codec: "lz4"})
	m.went(m.boot(cut{}, append(words, "lab.do=install")...))
	m.isOver(m.boot(cut{}, "lab.do=merge"))
	m.isOver(m.boot(cut{}, "lab.do=nothing"))
}
