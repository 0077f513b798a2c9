package slots

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"cowbird/formats/bootctl"
)

// step is one change, in a situation where some slots have a system that works.
type step struct {
	name   string
	before func(m *machine)
	change func(Slots) error
	works  []int
}

func steps() []step {
	first := func(m *machine) { m.first() }
	installed := func(m *machine) { m.do(m.first().SetActive(1)) }
	onTrial := func(m *machine) { installed(m); m.up(1) }
	updated := func(m *machine) { installed(m); m.do(m.up(1).MarkSuccessful()) }
	status := func(s bootctl.MergeStatus) func(Slots) error {
		return func(l Slots) error { return l.SetMergeStatus(s) }
	}
	active := func(slot int) func(Slots) error { return func(l Slots) error { return l.SetActive(slot) } }
	unbootable := func(slot int) func(Slots) error { return func(l Slots) error { return l.SetUnbootable(slot) } }
	return []step{
		{"first boot is good", func(m *machine) { m.up(0) }, Slots.MarkSuccessful, []int{0}},
		{"update begins", func(m *machine) { m.do(m.up(0).MarkSuccessful()) }, unbootable(1), []int{0}},
		{"update is complete", first, active(1), []int{0, 1}},
		{"update is complete, and broken", first, active(1), []int{0}},
		{"update is written", first, status(bootctl.MergeSnapshotted), []int{0}},
		{"update is taken back", installed, active(0), []int{0, 1}},
		{"update is cancelled", installed, unbootable(1), []int{0}},
		{"old system is good, late", installed, Slots.MarkSuccessful, []int{0, 1}},
		{"new system is good", onTrial, Slots.MarkSuccessful, []int{0, 1}},
		{"new system goes back", onTrial, active(0), []int{0}},
		{"merge begins", updated, status(bootctl.Merging), []int{1}},
		{"merge ends", func(m *machine) { updated(m); m.do(m.open().SetMergeStatus(bootctl.Merging)) }, status(bootctl.MergeNone), []int{1}},
		{"next update begins", updated, unbootable(0), []int{1}},
		{"next update is complete", func(m *machine) { updated(m); m.do(m.open().SetUnbootable(0)) }, active(0), []int{0, 1}},
		{"back to the old one", updated, active(0), []int{0, 1}},
	}
}

// The power goes before, within and after every write of every change. The next boot is
// then as before the change or as after it, also after a torn write where the place
// allows for that; everywhere a system that works comes up in the end, and the change
// can be made again.
func TestPowerCuts(t *testing.T) {
	for _, r := range rigs() {
		for _, s := range steps() {
			t.Run(r.name+"/"+s.name, func(t *testing.T) { testCuts(t, r, s) })
		}
	}
}

func testCuts(t *testing.T, r rig, s step) {
	m, d := inMemory(t, r)
	s.before(m)
	before, start := newDisk(d.files), d.points
	m.do(s.change(m.open()))
	n := d.points - start
	expected := []int{r.boot(newDisk(before.files)), r.boot(newDisk(d.files))}
	views := []string{view(t, r, before), view(t, r, d)}
	for cut := 1; cut <= n; cut++ {
		for how := range cutWays {
			broken := newDisk(before.files)
			broken.cut, broken.how = cut, how
			l, err := open(&r.config, broken)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.change(l); !errors.Is(err, errCut) {
				t.Fatalf("write %d: expected %v, found %v", cut, errCut, err)
			}
			where := fmt.Sprintf("write %d of %d, way %d", cut, n, how)
			if got := r.boot(newDisk(broken.files)); !slices.Contains(expected, got) && (r.atomic || how < cutTorn) {
				t.Errorf("%s: expected one of slots %d to boot, found %d", where, expected, got)
			}
			got, isSeen := view(t, r, newDisk(broken.files)), false
			for _, v := range views {
				isSeen = isSeen || got == v || r.config.Misc != nil && got == unknownMerge(v)
			}
			if !isSeen && (r.atomic || how < cutTorn) {
				t.Errorf("%s: expected one of %q, found %s", where, views, got)
			}
			checkComesUp(t, r, s, newDisk(broken.files), where)
		}
	}
}

// view is all that Slots tells.
func view(t *testing.T, r rig, d *memDisk) string {
	l, err := open(&r.config, d)
	if err != nil {
		t.Fatal(err)
	}
	active, err := l.Active()
	text := fmt.Sprintf("active %d (%v)", active, errors.Is(err, ErrUnbootable))
	for slot := range 2 {
		bootable, err1 := l.IsBootable(slot)
		good, err2 := l.IsSuccessful(slot)
		text += fmt.Sprintf(", %d bootable %v (%v), good %v (%v)", slot, bootable, err1, good, err2)
	}
	merge, err := l.MergeStatus()
	return fmt.Sprintf("%s, merge %v (%v)", text, merge, err)
}

// unknownMerge is a view after the message in a misc partition, of which there is no copy,
// was torn.
func unknownMerge(view string) string {
	text, _, _ := strings.Cut(view, ", merge")
	return text + ", merge unknown (<nil>)"
}

// checkComesUp boots until a system works, and makes the change again, if it is still
// the same system.
func checkComesUp(t *testing.T, r rig, s step, d *memDisk, where string) {
	t.Helper()
	was := string(d.files["/proc/cmdline"])
	m := &machine{r, t, d, func(line string) { d.files["/proc/cmdline"] = []byte(line) }}
	slot := -1
	for boots := 0; !slices.Contains(s.works, slot); boots++ {
		if boots == 20 {
			t.Errorf("%s: expected one of slots %d to come up, found none in %d boots", where, s.works, boots)
			return
		}
		slot = r.boot(d)
	}
	m.told("androidboot.slot_suffix=" + bootctl.Suffix(slot))
	if err := m.open().MarkSuccessful(); err != nil {
		t.Errorf("%s: slot %d is up: %v", where, slot, err)
	}
	if was != "quiet androidboot.slot_suffix="+bootctl.Suffix(slot)+" ro\n" {
		return
	}
	if err := s.change(m.open()); err != nil {
		t.Errorf("%s: again: %v", where, err)
	}
	points, files := d.points, newDisk(d.files).files
	if err := s.change(m.open()); err != nil || d.points != points || !maps.EqualFunc(files, d.files, bytes.Equal) {
		t.Errorf("%s: once more: expected no write, found %d, %v", where, d.points-points, err)
	}
}

// A cut in the middle of a renaming that leaves both names: the boot loader takes one of
// them, so does Slots, and the next change cleans up.
func TestBothNames(t *testing.T) {
	r := rigs()[len(rigs())-1]
	m, d := inMemory(t, r)
	s := m.first()
	d.cut, d.how = d.points+1, cutTorn
	if err := s.SetActive(1); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	d.dead = false
	m.is(1, both, [2]bool{true, false})
	m.do(m.up(1).MarkSuccessful())
	names, _ := d.list(entryDir)
	want := []string{"cowbird-10-b.conf", "cowbird-10-c.conf", "cowbird-9-a.conf", "cowbird-x-a.conf", "notes.txt", "zz.conf"}
	if !slices.Equal(names, want) {
		t.Errorf("expected %q, found %q", want, names)
	}
}
