package update

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

var (
	tortureRuns = flag.Int("torture", 12, "how many devices are tortured")
	tortureSeed = flag.Uint64("torture-seed", 1, "seed of the first device")
)

// TestTorture lives through several updates a device, from slot to slot, of partitions
// that come, go, grow and shrink, while the power goes at random, systems turn out
// bad, and people change their minds. At every boot the system is the old one or the
// new one, complete; each update ends; nothing is left behind; and space does not get
// less. A failure names the seed, which does it again.
func TestTorture(t *testing.T) {
	total := tally{}
	for i := range *tortureRuns {
		seed := *tortureSeed + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			d := torture(t, seed)
			for what, n := range d.count {
				total[what] += n
			}
		})
	}
	t.Logf("%d devices:\n%v", *tortureRuns, total)
}

// tally counts what has happened.
type tally map[string]int

func (c tally) String() string {
	var lines []string
	for what, n := range c {
		lines = append(lines, fmt.Sprintf("%8d  %s", n, what))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[10:], b[10:]) })
	return strings.Join(lines, "\n")
}

// tortured is a device, and what it goes through.
type tortured struct {
	*world
	u     *update
	r     *rand.Rand
	count tally
	moods int // how often something but an update may still be wanted
}

func torture(t *testing.T, seed uint64) *tortured {
	r := rand.New(rand.NewPCG(seed, 99))
	parts := firstParts(r)
	w := newWorld(t, seed, parts)
	w.images.room = 64 << 20
	d := &tortured{world: w, r: r, count: tally{}}
	for range 3 {
		d.u = newUpdate(t, parts)
		d.u.from = w.slot
		d.moods = r.IntN(4)
		d.update()
		parts = nextParts(r, parts)
	}
	return d
}

func firstParts(r *rand.Rand) map[string]part {
	parts := map[string]part{}
	for _, name := range []string{"system", "vendor", "product"} {
		before := noise(r.Uint64(), 8+r.IntN(40))
		parts[name] = part{before, changed(r.Uint64(), before, 8+r.IntN(40))}
	}
	return parts
}

// nextParts go on from what the last update has made.
func nextParts(r *rand.Rand, last map[string]part) map[string]part {
	parts := map[string]part{}
	for name, p := range last {
		if p.after == nil {
			continue
		}
		next := part{p.after, changed(r.Uint64(), p.after, 8+r.IntN(40))}
		if r.IntN(6) == 0 && name != "system" {
			next.after = nil // it goes
		}
		parts[name] = next
	}
	if r.IntN(3) == 0 && parts["odm"].before == nil {
		parts["odm"] = part{nil, noise(r.Uint64(), 8)}
	}
	return parts
}

// update goes on until the update has ended well.
func (d *tortured) update() {
	for boots := 0; ; boots++ {
		if boots == 60 {
			d.t.Fatalf("expected the update to end, found that it did not in %d boots; steps: %v", boots, d.lastSteps())
		}
		d.cutAt = 0
		if d.r.IntN(3) > 0 {
			d.cutAt = d.steps + 1 + d.r.IntN(1+d.r.IntN(120))
		}
		done, err := d.boot()
		if done {
			d.cutAt = 0
			d.u.isOver(d.world)
			d.count["updates that ended"]++
			return
		}
		switch {
		case d.alive() != nil:
			d.count["power cuts"]++
		case err != nil:
			d.t.Fatalf("slot %d: %v; steps: %v", d.slot, err, d.lastSteps())
		}
		d.cycle()
	}
}

// boot is one boot, and what comes of it.
func (d *tortured) boot() (done bool, err error) {
	if _, err := d.m.Boot(ctx); err != nil {
		return false, err
	}
	isNew := d.slot != d.u.from
	if err := d.isSystem(d.u.parts, isNew); err != nil {
		d.t.Fatalf("%v; steps: %v", err, d.lastSteps())
	}
	if isNew {
		d.count["boots of the new system"]++
		return d.onNew()
	}
	d.count["boots of the old system"]++
	return false, d.onOld()
}

// onOld installs, unless the mood is another.
func (d *tortured) onOld() error {
	s, err := d.m.Process(ctx)
	if err != nil {
		return err
	}
	if s == cancelled {
		d.count["updates that were left, found and removed"]++
	}
	if err := d.u.install(d.world); err != nil {
		return err
	}
	if d.mood() {
		d.count["updates cancelled"]++
		return d.m.Cancel(ctx)
	}
	return nil
}

func (d *tortured) mood() bool {
	if d.moods == 0 || d.r.IntN(2) == 0 {
		return false
	}
	d.moods--
	return true
}

// onNew merges, unless the system proves bad, or somebody does not like it.
func (d *tortured) onNew() (done bool, err error) {
	s, err := d.m.Status()
	if err != nil {
		return false, err
	}
	if s.State == unverified && d.mood() {
		switch d.r.IntN(3) {
		case 0:
			d.count["boots that proved bad"]++
			return false, nil
		case 1:
			d.count["ways back on purpose"]++
			return false, d.m.Rollback(ctx)
		}
		d.count["merges that failed at first"]++
		d.daemon.fails["system"+d.m.Slots.Suffix(d.slot)] = true
	}
	state, err := merge(d.world)
	if err == nil && state == none {
		return true, nil
	}
	if err == nil && state == failed {
		return false, nil
	}
	return false, err
}
