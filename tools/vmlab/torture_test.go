//go:build vmhost

package main

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

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
	m := newMachine(t, w, chance(1), w.make(0, 0, 0), 12<<20)
	for _, o := range []*offer{
		{to: w.make(1, 1, 1), version: 3, codec: "lz4"},
		{to: w.make(1, 2, 1), version: 2, codec: "gz", partial: true},
		{to: w.make(2, 3, -1), version: 3, codec: "zstd", onDevice: true},
		{to: w.make(2, 0, 2), version: 3, codec: "none", full: true},
	} {
		o.from = m.old
		words := m.offer(o)
		m.went(m.boot(cut{}, append(words, "lab.do=install")...))
		m.isOver(m.boot(cut{}, "lab.do=merge,wait,verify"))
		m.isOver(m.boot(cut{}, "lab.do=nothing"))
	}
}

// TestDeviceExtents lives through updates whose COWs are mapped by the blocks of their
// files, so that the boot does not mount the file system, and through power cuts.
func TestDeviceExtents(t *testing.T) {
	w := newWorkshop(t)
	m := newMachine(t, w, chance(3), w.make(0, 0, 0), 1<<20)
	for i, o := range []*offer{
		{to: w.make(1, 1, 1), version: 3, codec: "lz4"},
		{to: w.make(0, 2, -1), version: 3, codec: "none", full: true},
	} {
		o.from = m.old
		const config = "lab.config=update-extents.json"
		words := append(m.offer(o), "lab.flags=--downgrade", config)
		m.boot(cut{flush: 40 + 10*i, loss: volatile.LoseSectors}, append(words, "lab.do=install,extents")...)
		m.went(m.boot(cut{}, append(words, "lab.do=install,extents")...))
		m.boot(cut{flush: 20 + 10*i, loss: volatile.LoseAll}, config, "lab.do=merge,extents")
		if images := lines(m.console, "images"); len(images) == 0 || !strings.Contains(images[0], "-cow-img.img") {
			m.fatal("expected files of COWs, found %q", images)
		}
		m.isOver(m.boot(cut{}, config, "lab.do=merge,verify,extents"))
		m.isOver(m.boot(cut{}, config, "lab.do=nothing,extents"))
	}
}

var (
	lives    = flag.Int("lives", 1, "how many devices suffer")
	lifeSeed = flag.Uint64("life-seed", 1, "seed of the first device")
	lifeTime = flag.Duration("life-time", 0, "begin with no further device after that; 0 is no limit")
)

// TestTortureKernel has devices live through updates while the power goes at random, systems
// turn out bad, data are wiped and people change their minds. Whatever is lost, the
// device boots; what it runs is the old system or the new one, complete; the update
// ends; nothing is left behind. A failure names its seed, which does the same again,
// as far as a kernel does.
func TestTortureKernel(t *testing.T) {
	w := newWorkshop(t)
	total, began := tally2{}, time.Now()
	for i := range *lives {
		if *lifeTime > 0 && time.Since(began) > *lifeTime {
			break
		}
		seed := *lifeSeed + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			l := &life{count: total}
			l.run(t, w, seed)
		})
	}
	t.Logf("in %v:\n%v", time.Since(began).Round(time.Second), total)
}

// tally2 counts what has happened.
type tally2 map[string]int

func (c tally2) String() string {
	var all []string
	for _, what := range slices.Sorted(maps.Keys(c)) {
		all = append(all, fmt.Sprintf("%8d  %s", c[what], what))
	}
	return strings.Join(all, "\n")
}

// life is one device's.
type life struct {
	*machine
	count tally2
	moods int
	offer []string
	was   string // the step at which the power went, if it did in the last boot
}

func (l *life) run(t *testing.T, w *workshop, seed uint64) {
	r := chance(seed)
	rooms := []int64{1 << 20, 5 << 20, 24 << 20}
	l.machine = newMachine(t, w, r, l.anySystem(w, r), rooms[r.IntN(len(rooms))])
	l.live()
}

func (l *life) live() {
	l.count["devices"]++
	for range 3 {
		l.update()
	}
	l.isOver(l.boot(cut{}, "lab.do=nothing"))
}

func (l *life) anySystem(w *workshop, r *rand.Rand) *system {
	return w.make(r.IntN(len(w.roots)), r.IntN(len(w.kinds["vendor"])), r.IntN(len(w.kinds["product"])+1)-1)
}

// anyOffer is one for what the device has, another system as a whole or in part.
func (l *life) anyOffer() *offer {
	r := l.r
	o := &offer{from: l.old, version: uint32(2 + r.IntN(2)), codec: []string{"lz4", "gz", "zstd", "none"}[r.IntN(4)]}
	if o.version == 2 && o.codec == "zstd" {
		o.codec = "brotli"
	}
	switch r.IntN(5) {
	case 0:
		o.full = true
	case 1:
		o.partial = true
	}
	o.onDevice = r.IntN(3) == 0
	o.to = l.anySystem(l.workshop, r)
	if o.partial {
		to := &system{number: l.old.number, parts: maps.Clone(l.old.parts), data: maps.Clone(l.old.data)}
		to.parts["vendor"], to.data["vendor"] = o.to.parts["vendor"], o.to.data["vendor"]
		l.sign(to)
		o.to = to
	}
	return o
}

// update goes on until an update has ended well.
func (l *life) update() {
	o := l.anyOffer()
	l.offer, l.moods = l.machine.offer(o), l.r.IntN(3)
	downgrade := !o.partial && o.to.number < l.old.number
	l.countUpdate(o, downgrade)
	if downgrade {
		if l.config == "" && l.r.IntN(2) == 0 { // only a system's own knows how old it is
			l.isRefused()
		}
		l.offer = append(l.offer, "lab.flags=--downgrade")
	}
	for boots := 0; ; boots++ {
		if boots == 40 {
			l.fatal("expected the update to end, found that it did not in %d boots", boots)
		}
		if l.once() {
			l.count["updates that ended"]++
			return
		}
	}
}

func (l *life) countUpdate(o *offer, downgrade bool) {
	for what, is := range map[string]bool{
		"updates: partial": o.partial, "updates: full payloads": o.full, "updates: deltas": !o.full && !o.partial, "updates: downgrades": downgrade,
		"updates: vendor shrinks": len(o.to.parts["vendor"]) < len(o.from.parts["vendor"]), "updates: vendor grows": len(o.to.parts["vendor"]) > len(o.from.parts["vendor"]),
		"updates: product comes": o.from.parts["product"] == nil && o.to.parts["product"] != nil,
		"updates: product goes":  o.from.parts["product"] != nil && o.to.parts["product"] == nil,
	} {
		if is {
			l.count[what]++
		}
	}
}

// isRefused wants a downgrade to be refused that nobody has asked for.
func (l *life) isRefused() {
	o := l.boot(cut{}, append([]string{"lab.do=install,refused"}, l.offer...)...)
	l.went(o)
	states := o.states()
	if !strings.Contains(o.console, "device: refused: otactl: ") || states[len(states)-1].State != "None" {
		l.fatal("expected the downgrade to be refused, with no change, found the state %v", states)
	}
	l.count["downgrades refused"]++
}

// once is one boot, and tells whether the update is over.
func (l *life) once() bool {
	do := []string{"install", "merge"}
	if l.r.IntN(4) == 0 {
		do = append(do, "wait")
	}
	if l.r.IntN(4) == 0 {
		do = append(do, "verify")
	}
	mood := l.mood()
	if mood != "" {
		do = append(do, mood)
	}
	if mood == "wipe" {
		return l.wipe()
	}
	o := l.boot(l.anyCut(), append([]string{"lab.do=" + strings.Join(do, ",")}, l.offer...)...)
	l.note(o, mood)
	l.isComplete(o)
	if o.off {
		return false
	}
	if !o.well {
		l.fatal("expected the device to come up and to go well")
	}
	states := o.states()
	if o.slot != l.from && states[len(states)-1].State == "None" {
		l.isOver(o)
		return true
	}
	return false
}

// mood is what people or a bad system do besides.
func (l *life) mood() string {
	if l.moods == 0 || l.r.IntN(3) > 0 {
		return ""
	}
	l.moods--
	return []string{"cancel", "bad", "rollback,too-late", "wipe"}[l.r.IntN(4)]
}

// usual is how many steps the boots take in which an update is installed, or merged, and
// how many of them are flushes. The power goes at one of these.
var usual = [2]struct{ steps, flushes int }{{2500, 110}, {3000, 100}}

// anyCut has the power go in seven of ten boots: at a flush, or at any step.
func (l *life) anyCut() cut {
	c := cut{loss: volatile.AnyLoss(l.r)}
	like := &usual[0]
	if l.choose(true) != l.from {
		like = &usual[1]
	}
	switch l.r.IntN(10) {
	case 0, 1, 2, 3:
		c.flush = 1 + l.r.IntN(like.flushes)
	case 4, 5, 6:
		c.step = 1 + l.r.IntN(1+l.r.IntN(like.steps))
	}
	return c
}

// note counts a boot.
func (l *life) note(o *outcome, mood string) {
	states := o.states()
	if l.was != "" && len(states) > 0 {
		l.count["power cuts, then found: "+states[0].State+where(o.slot != l.from)]++
	}
	l.was = ""
	l.count["boots"]++
	if mood != "" && !o.off {
		l.count["moods: "+mood+where(o.slot != l.from)]++
	}
	if o.off {
		l.was = o.during
		l.count["power cuts"]++
		l.count["power cuts during: "+o.during+where(o.slot != l.from)]++
		l.count["power cuts at a write to: "+o.disk]++
	}
}

func where(isNew bool) string {
	if isNew {
		return ", new system"
	}
	return ", old system"
}

// wipe erases the user's data, in a recovery system that does so until it is done.
func (l *life) wipe() bool {
	for try := 0; ; try++ {
		if try == 20 {
			l.fatal("expected the data to be erased, found that they were not")
		}
		o := l.boot(l.anyCut(), "lab.do=wipe")
		l.note(o, "wipe")
		l.isComplete(o)
		if o.off {
			continue
		}
		if !o.well {
			l.fatal("expected the data to be erased")
		}
		return false
	}
}
