//go:build vmhost

package main

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"cowbird/tools/vmlab/volatile"
)

var sweepEvery = flag.Int("sweep-every", 1, "the power goes at each so-manieth flush")

// saved is all of a device while it is off.
type saved struct {
	disks     [][]byte
	from      int
	old, next *system
}

func (m *machine) save() *saved {
	s := &saved{from: m.from, old: m.old, next: m.next}
	for _, d := range m.disks() {
		s.disks = append(s.disks, d.Contents())
	}
	return s
}

func (m *machine) restore(s *saved) {
	m.from, m.old, m.next = s.from, s.old, s.next
	for i, d := range m.disks() {
		d.Put(s.disks[i], 0)
	}
}

// TestSweepKernel cuts the power at every flush of one update: of the boot in which it is
// installed, and of the one that starts the new system and merges. What was written
// since the flush before is lost in each of the four ways in turn. Every step of the
// update that is made durable, by whatever name, lies between two of them.
func TestSweepKernel(t *testing.T) {
	w := newWorkshop(t)
	m := newMachine(t, w, chance(*lifeSeed), w.make(0, 0, 0), 5<<20)
	words := m.offer(&offer{from: m.old, to: w.make(1, 1, 1), version: 3, codec: "lz4"})
	total, began := tally2{}, time.Now()
	for _, do := range []string{"install", "merge"} {
		start := m.save()
		whole := m.boot(cut{}, append(words, "lab.do="+do)...)
		m.went(whole)
		done := m.save()
		for k := 1; k <= whole.flushes; k += *sweepEvery {
			t.Run(fmt.Sprintf("%s/%d", do, k), func(t *testing.T) {
				l := &life{machine: m.in(t), count: total, offer: words}
				l.restore(start)
				l.sweep(do, cut{flush: k, loss: volatile.Loss(k % 4)})
			})
		}
		m.restore(done)
	}
	t.Logf("in %v:\n%v", time.Since(began).Round(time.Second), total)
}

// in gives the device to a subtest.
func (m *machine) in(t *testing.T) *machine {
	c := *m
	c.t = t
	return &c
}

// sweep has the power go once, and the update go on to its end.
func (l *life) sweep(do string, c cut) {
	o := l.boot(c, append(l.offer, "lab.do="+do)...)
	l.note(o, "")
	l.isComplete(o)
	for boots := 0; ; boots++ {
		if boots == 10 {
			l.fatal("expected the update to end, found that it did not in %d boots", boots)
		}
		o := l.boot(cut{}, append(l.offer, "lab.do=install,merge")...)
		l.note(o, "")
		l.went(o)
		states := o.states()
		if o.slot != l.from && states[len(states)-1].State == "None" {
			l.isOver(o)
			l.count["updates that ended"]++
			return
		}
	}
}
