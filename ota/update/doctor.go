package update

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"cowbird/formats/bootctl"
	"cowbird/formats/lpmeta"
	"cowbird/formats/snapshotpb"
)

// Finding is something about a device that is not as it should be.
type Finding struct {
	What string `json:"what"`
	// Fix is what to do about it; "" if it goes by itself.
	Fix string `json:"fix,omitempty"`
	// Fixed: Treat has done so.
	Fixed bool `json:"fixed,omitempty"`

	treat func() error // what loses nothing; nil: somebody has to decide
}

// Doctor reads everything and changes nothing.
func (m *Manager) Doctor(ctx context.Context) (all []Finding, err error) {
	err = m.locked(false, func() error { all = m.examine(ctx); return nil })
	return all, err
}

// Treat does what Doctor says where nothing can be lost by it: it makes the copies of
// metadata the same, removes what is left of no update, writes a damaged state anew and
// tells the boot loader what it missed. It gives what it has fixed, and what is left.
func (m *Manager) Treat(ctx context.Context) (all []Finding, err error) {
	err = m.locked(true, func() error {
		before := m.examine(ctx)
		var errs []error
		for _, f := range before {
			if f.treat != nil {
				errs = append(errs, f.treat())
			}
		}
		left := m.examine(ctx)
		for _, f := range before {
			if !slices.ContainsFunc(left, func(l Finding) bool { return l.What == f.What }) {
				f.Fixed = true
				all = append(all, f)
			}
		}
		all = append(all, left...)
		return errors.Join(errs...)
	})
	return all, err
}

func (m *Manager) examine(ctx context.Context) []Finding {
	d := &doctor{Manager: m, ctx: ctx}
	d.super()
	d.slots()
	d.state()
	return d.found
}

type doctor struct {
	*Manager
	ctx   context.Context
	found []Finding
}

func (d *doctor) say(fix, what string, args ...any) {
	d.found = append(d.found, Finding{What: fmt.Sprintf(what, args...), Fix: fix})
}

// by says how the last finding can be fixed.
func (d *doctor) by(treat func() error) { d.found[len(d.found)-1].treat = treat }

// super looks at both copies of all metadata.
func (d *doctor) super() {
	geometry, all := lpmeta.Inspect(d.Super.Metadata)
	d.condition("geometry", geometry)
	for slot, c := range all {
		if slot < d.Slots.Count() {
			d.condition("metadata of slot "+d.Slots.Suffix(slot), c)
		}
	}
}

func (d *doctor) condition(what string, c lpmeta.Condition) {
	const fix = "otactl doctor --fix, or the next update, repairs it"
	switch {
	case c.Good():
		return
	case !c.Usable():
		d.say("flash super, or install a full update from the other slot", "super: %s: both copies are damaged: %v", what, c.Primary)
		return
	case c.Primary != nil:
		d.say(fix, "super: %s: the primary copy is damaged: %v", what, c.Primary)
	case c.Backup != nil:
		d.say(fix, "super: %s: the backup copy is damaged: %v", what, c.Backup)
	case c.Differ:
		d.say(fix, "super: %s: the copies differ", what)
	}
	d.by(func() error { return lpmeta.Repair(d.Super.Metadata) })
}

func (d *doctor) slots() {
	current, err := d.Slots.Current()
	if err != nil {
		d.say("name the slot on the kernel's command line, or in the configuration", "slots: %v", err)
		return
	}
	if good, err := d.Slots.IsSuccessful(current); err != nil {
		d.say("otactl mark-successful makes the boot loader's state anew", "slots: %v", err)
	} else if !good {
		d.say("otactl mark-successful, if all works", "the running slot %s is on trial: the boot loader will give it up", d.Slots.Suffix(current))
	}
	if next, err := d.Slots.Active(); err == nil && next != current {
		d.say("", "the next boot takes slot %s", d.Slots.Suffix(next))
	}
}

// state looks at what is known of an update, and whether that fits.
func (d *doctor) state() {
	_, damage, _ := d.parseState()
	s, err := d.readState()
	if err != nil {
		d.say("remove the file; an update that was not booted is lost", "%v", err)
		return
	}
	if damage != nil {
		d.say("otactl doctor --fix, or going on with the update, writes it anew", "%v: it is taken for %v", damage, s.State)
		d.by(func() error { return d.writeState(s.State, nil) })
	}
	d.markers(s.State)
	want := mergeStatus(s.State)
	if got, err := d.Slots.MergeStatus(); err == nil && got != want && want != bootctl.MergeSnapshotted {
		d.say("otactl update --process", "the boot loader was told %v, and the state of the update is %v", got, s.State)
		d.by(func() error { return d.remindBootLoader(s.State) })
	}
	if s.State == failed {
		d.say("otactl merge --wait tries again", "the merge failed: %v", s.MergeFailureCode)
	}
	if s.State == needsReboot {
		d.say("reboot", "the merge is done, but a device could not be removed")
	}
	d.snapshots(s.State)
}

func (d *doctor) markers(s snapshotpb.UpdateState) {
	boot, err := d.has(bootFile)
	if err != nil {
		d.say("", "%v", err)
	}
	if booted := s == unverified || s == merging || s == failed; booted && !boot {
		d.say("otactl update --process ends it", "the state is %v, but no boot would find the update: %s is missing", s, bootFile)
	}
	if s == none && boot {
		d.say("otactl cancel", "there is no update, but %s is there", bootFile)
		d.by(d.removeRest)
	}
}

// removeRest removes what is left of no update.
func (d *doctor) removeRest() error { return d.removeUpdate(d.ctx) }

// snapshots looks for statuses without partitions, and the other way round.
func (d *doctor) snapshots(s snapshotpb.UpdateState) {
	names, err := list(d.Files, snapshotsDir)
	if err != nil {
		d.say("", "%v", err)
		return
	}
	for _, name := range names {
		if err := d.snapshot(name); err != nil {
			d.say("reboot to the old system and otactl cancel, if it is not merged", "snapshot %s: %v", name, err)
		}
	}
	if s == none && len(names) > 0 {
		d.say("otactl cancel", "there is no update, but %s has %s", snapshotsDir, strings.Join(names, ", "))
		d.by(d.removeRest)
	}
	d.images(names)
}

func (d *doctor) snapshot(name string) error {
	s, err := d.readStatus(name)
	if err != nil || s == nil || s.State == snapshotpb.SnapshotState_MERGE_COMPLETED {
		return err
	}
	slot := lpmeta.SlotOf(lpmeta.Suffix(name))
	meta, err := d.metadataOf(slot)
	if err != nil {
		return err
	}
	if meta.Partition(name) == nil {
		return fmt.Errorf("super has no such partition")
	}
	if got, want := length(d.lines(meta, cowName(name))), s.CowPartitionSize/sectorSize; got != want {
		return fmt.Errorf("expected %d sectors of super for its COW, found %d", want, got)
	}
	if current, _, err := d.suffixes(); err != nil || lpmeta.Suffix(name) != current {
		return err
	}
	mapping, err := d.Mapper.Compare(name, d.lines(meta, name))
	if err != nil || mapping == Different {
		return err
	}
	return fmt.Errorf("it is not mapped as a snapshot, though its state is %v", s.State)
}

func (d *doctor) images(snapshots []string) {
	if d.Images == nil {
		return
	}
	all, err := d.Images.List()
	if err != nil {
		d.say("", "files of COWs: %v", err)
	}
	for _, image := range all {
		if !slices.ContainsFunc(snapshots, func(s string) bool { return cowName(s) == path.Base(image) }) {
			d.say("otactl update --process removes it, if there is no update", "%s is a file of a COW that no snapshot has", image)
			d.by(d.removeStrayImages)
		}
	}
}
