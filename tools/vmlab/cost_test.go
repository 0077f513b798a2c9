//go:build vmhost

package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A costOf collects what boots of one kind took, in ms since power on, and held, in
// KiB, by what it was that they did.
type costOf map[string][]float64

// saw adds the moments and sizes that a boot told of.
func (c costOf) saw(m *machine, kind string, o *outcome) {
	for word, what := range map[string]string{"boots": "otactl boot begins", "mapped": "partitions mapped", "version": "system runs", "well": "all done"} {
		for _, l := range lines(o.console, word) {
			var at float64
			if _, clock, ok := strings.Cut(l, "at "); ok {
				_, err := fmt.Sscanf(clock, "%f s", &at)
				m.check(err)
				c[kind+": "+what] = append(c[kind+": "+what], at*1e3)
			}
		}
	}
	for _, word := range []string{"daemon", "merging"} {
		for i, l := range lines(o.console, word) {
			var held struct{ RSS, Anonymous float64 }
			m.check(json.Unmarshal([]byte(l), &held))
			c[fmt.Sprintf("%s: RSS, %s %d", kind, word, i)] = append(c[fmt.Sprintf("%s: RSS, %s %d", kind, word, i)], held.RSS)
			c[fmt.Sprintf("%s: anonymous, %s %d", kind, word, i)] = append(c[fmt.Sprintf("%s: anonymous, %s %d", kind, word, i)], held.Anonymous)
		}
	}
	for _, program := range []string{"install", "merge", "update"} {
		for _, l := range lines(o.console, "peak-of-"+program) {
			var kib float64
			m.check(json.Unmarshal([]byte(l), &kib))
			c[kind+": peak RSS of otactl "+program] = append(c[kind+": peak RSS of otactl "+program], kib)
		}
	}
}

func (c costOf) median(what string) float64 {
	v := slices.Sorted(slices.Values(c[what]))
	if len(v) == 0 {
		return 0
	}
	return v[len(v)/2]
}

// TestUpdateCost tells what an update costs a device: how much later it boots, how
// long it takes from the reboot to the end of the merge, what is in memory. The same
// boots, from the same disks, without an update, are beside it.
func TestUpdateCost(t *testing.T) {
	w := newWorkshop(t)
	m := newMachine(t, w, chance(1), w.make(0, 0, 0), 5<<20)
	words := m.offer(&offer{from: m.old, to: w.make(1, 1, 1), version: 3, codec: "lz4"})
	costs := costOf{}
	do := func(kind, what string) *outcome {
		o := m.boot(cut{}, append(words, "lab.do="+what)...)
		m.went(o)
		costs.saw(m, kind, o)
		return o
	}
	start := m.save()
	for range 7 {
		m.restore(start)
		do("no update", "nothing")
		do("installing", "install")
		do("new system, not merged", "nothing")
		m.isOver(do("new system, merging", "merge"))
		do("new system, merged", "nothing")
	}
	var all []string
	for what := range costs {
		all = append(all, fmt.Sprintf("%-60s %10.0f", what, costs.median(what)))
	}
	slices.Sort(all)
	t.Logf("medians, ms and KiB:\n%s", strings.Join(all, "\n"))
	if without, with := costs.median("no update: partitions mapped"), costs.median("new system, not merged: partitions mapped"); without <= 0 || with <= 0 {
		t.Errorf("expected moments of both boots, found %v and %v ms", without, with)
	}
}
