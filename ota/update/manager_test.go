package update

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/bootctl"
	"cowbird/formats/lpmeta"
	"cowbird/formats/snapshotpb"
)

// plain are two partitions that keep their size.
func plain() map[string]part {
	system, vendor := noise(11, 24), noise(12, 12)
	return map[string]part{"system": {system, changed(13, system, 24)}, "vendor": {vendor, changed(14, vendor, 12)}}
}

// installed is a device with an update that waits for the reboot.
func installed(t *testing.T, parts map[string]part) (*world, *update) {
	u := newUpdate(t, parts)
	return u.installed(t, parts), u
}

func (u *update) installed(t *testing.T, parts map[string]part) *world {
	w := newWorld(t, 1, parts)
	w.images.room = 32 << 20
	_, err := w.m.Boot(ctx)
	must(t, err)
	must(t, u.install(w))
	return w
}

// tried is one whose new system runs.
func tried(t *testing.T, parts map[string]part) (*world, *update) {
	w, u := installed(t, parts)
	w.cycle()
	_, err := w.m.Boot(ctx)
	must(t, err)
	return w, u
}

func (w *world) wantState(want snapshotpb.UpdateState) {
	w.t.Helper()
	s, err := w.m.Status()
	must(w.t, err)
	if s.State != want {
		w.t.Errorf("expected the state %v, found %v", want, s.State)
	}
}

func (w *world) process(want snapshotpb.UpdateState) {
	w.t.Helper()
	got, err := w.m.Process(ctx)
	must(w.t, err)
	if got != want {
		w.t.Errorf("expected %v, found %v", want, got)
	}
}

func (w *world) wantError(err, want error) {
	w.t.Helper()
	if !errors.Is(err, want) {
		w.t.Errorf("expected %v, found %v", want, err)
	}
}

func (w *world) isSystemOf(u *update, after bool) {
	w.t.Helper()
	if err := w.isSystem(u.parts, after); err != nil {
		w.t.Error(err)
	}
}

// SNM-001, SNM-019, SNM-020, SNM-021: what is made, and where it is not.
func TestCreate(t *testing.T) {
	w, u := installed(t, swapped())
	w.wantState(unverified)
	all, err := w.m.Snapshots()
	must(t, err)
	if len(all) != 4 {
		t.Fatalf("expected 4 snapshots, found %v", all)
	}
	for _, s := range all {
		p := u.parts[strings.TrimSuffix(s.Name, "_b")]
		if s.State != created || s.SnapshotSize != s.DeviceSize || int(s.DeviceSize) != len(p.after) || int(s.OldPartitionSize) != len(p.before) {
			t.Errorf("expected CREATED with %d bytes that were %d, found %v", len(p.after), len(p.before), s)
		}
		if want := roundUp(s.EstimatedCowSize+cowMargin, blockSize); s.CowPartitionSize+s.CowFileSize != want {
			t.Errorf("%s: expected a COW of %d bytes, found %v", s.Name, want, s)
		}
	}
	a, err := lpmeta.Read(w.super, 0)
	must(t, err)
	b, err := lpmeta.Read(w.super, 1)
	must(t, err)
	for _, c := range b.Partitions {
		if b.Groups[c.Group].Name != cowGroup {
			if c.Attributes&lpmeta.Updated == 0 {
				t.Errorf("expected %s to be marked as updated", c.Name)
			}
			continue
		}
		for _, e := range b.ExtentsOf(&c) {
			for _, p := range a.Partitions {
				for _, f := range a.ExtentsOf(&p) {
					if e.Data < f.Data+f.NumSectors && f.Data < e.Data+e.NumSectors {
						t.Errorf("%s lies over %s", c.Name, p.Name)
					}
				}
			}
		}
	}
	w.isSystemOf(u, false)
	must(t, w.m.Finish(ctx, false)) // SNM-048: again is fine
}

// Too little space: the error says how much, and nothing is touched.
func TestNoSpace(t *testing.T) {
	u := newUpdate(t, swapped())
	w := newWorld(t, 1, u.parts)
	must(t, w.m.Begin(ctx))
	before, steps := bytes.Clone(w.super.now), w.steps
	for _, p := range u.manifest.Partitions {
		p.EstimateCowSize = proto.Uint64(1 << 20)
	}
	err := w.m.Create(ctx, u.manifest)
	var lack *NoSpaceError
	if !errors.As(err, &lack) || lack.Needed != 4*3<<20 || lack.Super+lack.Missing != lack.Needed {
		t.Fatalf("expected a NoSpaceError about 12 MiB, found %v", err)
	}
	if w.steps != steps || !bytes.Equal(before, w.super.now) {
		t.Error("expected nothing to be changed")
	}
	w.images.room = lack.Missing - 1
	w.wantError(w.m.Create(ctx, u.manifest), ErrNoSpace)
	w.images.room = lack.Missing
	must(t, w.m.Create(ctx, u.manifest))
}

// A device that refuses an update for want of space has none afterwards.
func TestNoSpaceLeavesNothing(t *testing.T) {
	u := newUpdate(t, swapped())
	w := newWorld(t, 1, u.parts)
	for _, p := range u.manifest.Partitions {
		p.EstimateCowSize = proto.Uint64(1 << 30)
	}
	d := &Device{Manager: w.m, config: &Config{}}
	w.wantError(d.begin(ctx, u.manifest, false), ErrNoSpace)
	w.wantState(none)
}

// SNM-044, and other manifests that cannot be.
func TestBadManifest(t *testing.T) {
	u := newUpdate(t, plain())
	w := newWorld(t, 1, u.parts)
	must(t, w.m.Begin(ctx))
	w.images.room = 32 << 20
	good := u.manifest
	for name, change := range map[string]func(){
		"version":     func() { u.manifest.DynamicPartitionMetadata.CowVersion = proto.Uint32(4) },
		"twice":       func() { u.manifest.Partitions = append(u.manifest.Partitions, u.manifest.Partitions[0]) },
		"missing":     func() { u.manifest.Partitions = u.manifest.Partitions[:1] },
		"no estimate": func() { u.manifest.Partitions[0].EstimateCowSize = nil },
		"none":        func() { u.manifest.DynamicPartitionMetadata.Groups = nil },
	} {
		u.manifest = proto.Clone(good).(*pbManifest)
		change()
		if err := w.m.Create(ctx, u.manifest); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: expected ErrManifest, found %v", name, err)
		}
	}
	must(t, w.m.Create(ctx, good))
}

// SNM-003, SNM-048, SNM-049: what is refused in which state.
func TestWrongState(t *testing.T) {
	u := newUpdate(t, plain())
	w := newWorld(t, 1, u.parts)
	w.images.room = 32 << 20
	w.wantError(w.m.Finish(ctx, false), ErrState)
	w.wantError(w.m.Create(ctx, u.manifest), ErrState)
	w.wantError(w.m.InitiateMerge(ctx), ErrState)
	must(t, w.m.Begin(ctx))
	w.wantError(w.m.Finish(ctx, false), ErrState)
	_, err := w.m.Targets(ctx)
	w.wantError(err, ErrState)
	must(t, u.install(w))
	w.wantError(w.m.InitiateMerge(ctx), ErrState)
	w.cycle()
	w.wantError(w.m.InitiateMerge(ctx), ErrNotMapped)
	_, err = w.m.Boot(ctx)
	must(t, err)
	w.wantError(w.m.Finish(ctx, false), ErrState)
	must(t, w.m.InitiateMerge(ctx))
	w.wantError(w.m.Cancel(ctx), ErrNeedsMerge)
}

// SNM-010: what the boot loader is told, and before which file.
func TestBootLoaderHears(t *testing.T) {
	w, u := installed(t, plain())
	order := func(first, second string) {
		t.Helper()
		a, b := lastIndex(w.passed, first), lastIndex(w.passed, second)
		if a < 0 || b < 0 || a > b {
			t.Errorf("expected %q before %q, found steps %d and %d", first, second, a, b)
		}
	}
	order("rename "+bootFile, "set active")
	order("merge status", "rename "+stateFile)
	w.cycle()
	_, err := w.m.Boot(ctx)
	must(t, err)
	if s, err := w.m.Slots.MergeStatus(); err != nil || s != bootctl.MergeSnapshotted {
		t.Errorf("expected snapshotted, found %v, %v", s, err)
	}
	must(t, w.m.InitiateMerge(ctx))
	if s, err := w.m.Slots.MergeStatus(); err != nil || s != bootctl.Merging {
		t.Errorf("expected merging, found %v, %v", s, err)
	}
	order("merge status", "rename "+stateFile)
	_, err = merge(w)
	must(t, err)
	order("remove "+bootFile, "rename "+stateFile)
	order("rename "+stateFile, "merge status")
	u.isOver(w)
}

func lastIndex(s []string, v string) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == v {
			return i
		}
	}
	return -1
}

// SNM-004, SNM-005, SNM-023, SNM-051: back on the old system.
func TestRollback(t *testing.T) {
	w, u := installed(t, plain())
	for range 20 { // the new system never says that it is good
		w.cycle()
		if w.slot == 0 {
			break
		}
		_, err := w.m.Boot(ctx)
		must(t, err)
		w.isSystemOf(u, true)
	}
	if needed, err := w.m.NeedsDaemon(); needed || err != nil || w.slot != 0 {
		t.Fatalf("expected slot 0 without a daemon, found slot %d, %v, %v", w.slot, needed, err)
	}
	_, err := w.m.Boot(ctx)
	must(t, err)
	w.isSystemOf(u, false)
	w.process(cancelled)
	w.wantState(none)
	w.isSystemOf(u, false)
	must(t, u.install(w)) // SNM-025: the space is there again
}

// SNM-024, SNM-042.
func TestCancel(t *testing.T) {
	w, _ := installed(t, plain())
	for _, left := range []string{progressFile, progressFile + temporary, bootFile + temporary} {
		must(t, w.files.Write(left, []byte("x")))
	}
	must(t, w.m.Cancel(ctx))
	w.wantState(none)
	if names, err := w.files.List("."); err != nil || len(names) != 1 {
		t.Errorf("expected no file but the state, found %q, %v", names, err)
	}
	w.cycle()
	if w.slot != 0 {
		t.Fatal("expected the boot loader to take the old system")
	}
	w, u := tried(t, plain())
	w.wantError(w.m.Cancel(ctx), ErrLive)
	w.wantState(unverified)
	w.isSystemOf(u, true)
}

// SNM-022: a status without a COW does not stop the next update.
func TestStatusWithoutCow(t *testing.T) {
	w, u := installed(t, plain())
	for _, name := range []string{"system_b-cow", "vendor_b-cow"} {
		delete(w.images.files, name)
	}
	w.files.now[statusFile("gone_b")] = []byte("\x0a\x06gone_b")
	w.files.now[statusFile("torn_b")] = []byte("\xff")
	must(t, u.install(w))
	all, err := w.m.Snapshots()
	if err != nil || len(all) != 2 {
		t.Errorf("expected 2 snapshots, found %v, %v", all, err)
	}
}

// SNM-015, SNM-018: the power goes between the phases.
func TestPhases(t *testing.T) {
	w, u := tried(t, swapped())
	must(t, w.m.InitiateMerge(ctx))
	s, err := w.m.Status()
	must(t, err)
	if s.MergePhase != firstPhase || w.daemon.snaps["vendor_b"].state != snapshotMerging || w.daemon.snaps["system_b"].state != snapshotIdle {
		t.Fatalf("expected only vendor, which shrinks, to be merged, found phase %v", s.MergePhase)
	}
	must(t, w.daemon.work())
	w.process(merging) // vendor is done, the second phase begins
	if w.daemon.snaps["vendor_b"] != nil || w.daemon.snaps["system_b"].state != snapshotMerging {
		t.Fatal("expected the second phase")
	}
	// As if the power had gone after the phase was written and before any status.
	for _, name := range []string{"system_b", "odm_b", "product_b"} {
		s, err := w.m.readStatus(name)
		must(t, err)
		must(t, w.m.setStatus(s, created))
	}
	w.cycle()
	_, err = w.m.Boot(ctx)
	must(t, err)
	state, err := merge(w)
	if err != nil || state != none {
		t.Fatalf("expected the end, found %v, %v", state, err)
	}
	u.isOver(w)
}

// SNM-011, SNM-043: failures have codes, keep nobody else back, and are tried again.
func TestMergeFails(t *testing.T) {
	w, u := tried(t, plain())
	w.daemon.fails["vendor_b"] = true
	must(t, w.m.InitiateMerge(ctx))
	must(t, w.daemon.work())
	w.process(failed)
	s, err := w.m.Status()
	must(t, err)
	if s.MergeFailureCode != snapshotpb.MergeFailureCode_UnexpectedMergeState {
		t.Errorf("expected a code, found %v", s.MergeFailureCode)
	}
	if w.daemon.snaps["system_b"] != nil {
		t.Error("expected system to be merged all the same")
	}
	if s, err := w.m.Slots.MergeStatus(); err != nil || s != bootctl.Merging {
		t.Errorf("expected the boot loader to be told of a merge, found %v, %v", s, err)
	}
	must(t, w.m.Retry(ctx)) // to no avail
	must(t, w.daemon.work())
	w.process(failed)
	w.daemon.gone = true
	w.process(failed)
	if s, err = w.m.Status(); err != nil || s.MergeFailureCode != snapshotpb.MergeFailureCode_QuerySnapshotStatus {
		t.Errorf("expected QuerySnapshotStatus, found %v, %v", s, err)
	}
	w.cycle()
	_, err = w.m.Boot(ctx)
	must(t, err)
	w.isSystemOf(u, true)
	state, err := merge(w)
	if err != nil || state != none {
		t.Fatalf("expected the end, found %v, %v", state, err)
	}
	u.isOver(w)
}

// SNM-027: a COW that cannot be unmapped waits for a reboot.
func TestBusyCow(t *testing.T) {
	w, u := tried(t, plain())
	w.mapper.busy["vendor_b-cow"] = true
	must(t, w.m.InitiateMerge(ctx))
	must(t, w.daemon.work())
	w.process(needsReboot)
	w.isSystemOf(u, true)
	w.cycle()
	if needed, err := w.m.NeedsDaemon(); needed || err != nil {
		t.Errorf("expected no daemon to be needed, found %v, %v", needed, err)
	}
	_, err := w.m.Boot(ctx)
	must(t, err)
	w.process(none)
	u.isOver(w)
}

// reflash writes slot b's metadata as a tool would that flashes images.
func reflash(w *world) {
	b, err := lpmeta.Read(w.super, 1)
	must(w.t, err)
	for i := range b.Partitions {
		b.Partitions[i].Attributes &^= lpmeta.Updated
	}
	must(w.t, lpmeta.Update(w.super, 1, b))
}

// SNM-008, SNM-009: super is flashed under an update.
func TestFlashed(t *testing.T) {
	w, _ := installed(t, plain())
	reflash(w)
	w.cycle()
	_, err := w.m.Boot(ctx)
	must(t, err)
	w.process(cancelled)
	w.wantState(none)

	w, _ = tried(t, plain())
	must(t, w.m.InitiateMerge(ctx))
	reflash(w)
	w.cycle()
	_, err = w.m.Boot(ctx)
	must(t, err)
	for name := range w.mapper.tables {
		if strings.Contains(name, "-") {
			t.Errorf("expected flashed partitions to be plain, found %s", name)
		}
	}
	w.process(cancelled)
	w.wantState(none)
}

// SNM-031 to SNM-033, SNM-035: what a wipe of the user's data does to an update.
func TestBeforeWipe(t *testing.T) {
	t.Run("nothing", func(t *testing.T) {
		w := newWorld(t, 1, plain())
		must(t, w.m.BeforeWipe(ctx))
	})
	t.Run("not booted", func(t *testing.T) {
		w, _ := installed(t, plain())
		must(t, w.m.BeforeWipe(ctx))
		w.wantState(none)
		w.cycle()
		if w.slot != 0 {
			t.Error("expected the old system")
		}
	})
	t.Run("back", func(t *testing.T) {
		w, u := installed(t, plain())
		w.cycle() // into a recovery, which maps nothing
		must(t, w.m.BeforeWipe(ctx))
		w.wantState(none)
		w.cycle()
		if w.slot != 0 {
			t.Fatal("expected the old system")
		}
		_, err := w.m.Boot(ctx)
		must(t, err)
		w.isSystemOf(u, false)
	})
	for name, begun := range map[string]bool{"forward": false, "begun": true} {
		t.Run(name, func(t *testing.T) {
			w, u := installed(t, plain())
			if !begun {
				must(t, put(w.files, forwardFile, []byte(indicatorText)))
			}
			w.files.now[statusFile("stale_a")] = []byte("\x0a\x07stale_a")
			w.cycle()
			if begun {
				_, err := w.m.Boot(ctx)
				must(t, err)
				must(t, w.m.InitiateMerge(ctx))
				w.cycle()
			}
			w.daemon.eager = true
			must(t, w.m.BeforeWipe(ctx))
			w.wantState(none)
			w.isSystemOf(u, true)
		})
	}
	t.Run("failing", func(t *testing.T) {
		w, _ := tried(t, plain())
		must(t, w.m.InitiateMerge(ctx))
		w.cycle()
		w.daemon.eager = true
		w.daemon.fails["system_b"] = true
		w.wantError(w.m.BeforeWipe(ctx), ErrNeedsMerge)
		w.wantState(failed)
	})
}

// A status that cannot be read must not be taken for none: the partition would be
// mapped without its snapshot.
func TestDamagedStatus(t *testing.T) {
	w, _ := installed(t, plain())
	w.files.durable[statusFile("system_b")] = []byte("\xff\xff")
	w.cycle()
	if _, err := w.m.Boot(ctx); err == nil {
		t.Error("expected an error, since a status is damaged")
	}
	if len(w.mapper.tables) > 0 || len(w.daemon.snaps) > 0 {
		t.Errorf("expected all or nothing to be mapped, found %v", w.mapper.tables)
	}
}

// A state file that is damaged costs the update at most: the new system boots, unmerged
// or half merged, and merges; the old one can remove what there is.
func TestDamagedState(t *testing.T) {
	damage := func(w *world) {
		w.cycle()
		w.files.now[stateFile], w.files.durable[stateFile] = []byte("\xff\xff"), []byte("\xff\xff")
	}
	t.Run("unverified", func(t *testing.T) {
		w, u := installed(t, swapped())
		damage(w)
		u.isOver(u.runOn(w))
	})
	t.Run("merging", func(t *testing.T) {
		u := newUpdate(t, swapped())
		for _, cut := range []int{3, 9, 20, 40} {
			w, _ := tried(t, swapped())
			must(t, w.m.InitiateMerge(ctx))
			w.cutAt = w.steps + cut
			_, _ = merge(w)
			if w.alive() == nil {
				t.Fatalf("expected the power to go at step %d", cut)
			}
			damage(w)
			u.isOver(u.runOn(w))
		}
	})
	t.Run("old system", func(t *testing.T) {
		w, _ := installed(t, plain())
		w.files.now[stateFile] = []byte("\xff\xff")
		must(t, w.m.Cancel(ctx))
		w.wantState(none)
	})
}

// A partial update leaves what it does not name alone.
func TestPartialUpdate(t *testing.T) {
	parts := plain()
	u := newUpdate(t, parts)
	u.manifest.PartialUpdate = proto.Bool(true)
	u.manifest.Partitions = slices.DeleteFunc(u.manifest.Partitions, func(p *pbPartition) bool { return p.GetPartitionName() == "vendor" })
	group := u.manifest.DynamicPartitionMetadata.Groups[0]
	group.PartitionNames = []string{"system"}
	w := newWorld(t, 1, parts)
	w.images.room = 32 << 20
	must(t, u.install(w))
	w.cycle()
	_, err := w.m.Boot(ctx)
	must(t, err)
	parts["vendor"] = part{parts["vendor"].before, parts["vendor"].before}
	w.isSystemOf(u, true)
	state, err := merge(w)
	if err != nil || state != none {
		t.Fatalf("expected the end, found %v, %v", state, err)
	}
	u.isOver(w)
}

// SNM-021: blocks that a partition gives away still hold the old system.
func TestCowsAvoidOldPartitions(t *testing.T) {
	vendor := noise(21, 400)
	u := newUpdate(t, map[string]part{"vendor": {vendor, changed(22, vendor, 40)}})
	w := newWorld(t, 1, u.parts)
	w.images.room = 32 << 20
	must(t, u.install(w))
	_, err := w.m.Boot(ctx)
	must(t, err)
	w.isSystemOf(u, false)
	a, err := lpmeta.Read(w.super, 0)
	must(t, err)
	b, err := lpmeta.Read(w.super, 1)
	must(t, err)
	old := a.ExtentsOf(a.Partition("vendor_a"))[0]
	for _, e := range b.ExtentsOf(b.Partition("vendor_b-cow")) {
		if e.Data < old.Data+old.NumSectors {
			t.Errorf("expected the COW behind sector %d, found it at %d", old.Data+old.NumSectors, e.Data)
		}
	}
}

// What lies where a COW will be is not taken for one.
func TestStaleCow(t *testing.T) {
	w, u := installed(t, plain())
	must(t, w.m.Begin(ctx))
	must(t, w.m.Create(ctx, u.manifest))
	targets, err := w.m.Targets(ctx)
	must(t, err)
	for _, target := range targets {
		d, err := w.open(target.Cow)
		must(t, err)
		head := make([]byte, blockSize)
		_, err = d.ReadAt(head, 0)
		must(t, err)
		if !bytes.Equal(head, make([]byte, blockSize)) {
			t.Errorf("%s: expected an empty COW, found %x …", target.Partition, head[:16])
		}
	}
}

func TestLeaveOnPurpose(t *testing.T) {
	w, u := installed(t, plain())
	w.wantError(w.m.Rollback(ctx), ErrState)
	w.cycle()
	_, err := w.m.Boot(ctx)
	must(t, err)
	must(t, w.m.Rollback(ctx))
	w.cycle()
	if w.slot != 0 {
		t.Fatal("expected the old system")
	}
	_, err = w.m.Boot(ctx)
	must(t, err)
	w.isSystemOf(u, false)
	w.process(cancelled)
	w.wantState(none)

	w, _ = tried(t, plain())
	must(t, w.m.InitiateMerge(ctx))
	w.wantError(w.m.Rollback(ctx), ErrNeedsMerge)
}

// What Doctor says of a device that is well, and of some that are not.
func TestDoctor(t *testing.T) {
	says := func(w *world, want ...string) {
		t.Helper()
		steps := w.steps
		found, err := w.m.Doctor(ctx)
		must(t, err)
		for _, text := range want {
			if !slices.ContainsFunc(found, func(f Finding) bool { return strings.Contains(f.What, text) }) {
				t.Errorf("expected %q, found %v", text, found)
			}
		}
		if len(found) != len(want) || w.steps != steps {
			t.Errorf("expected %d findings and no change, found %v and %d changes", len(want), found, w.steps-steps)
		}
	}
	says(newWorld(t, 1, plain()))

	w, _ := installed(t, plain())
	says(w, "the next boot takes slot _b")
	w.super.now[4096] ^= 1  // the geometry's first copy
	w.super.now[12300] ^= 1 // slot a's
	w.files.now[statusFile("gone_b")] = []byte("\x0a\x06gone_b")
	w.files.now[statusFile("torn_b")] = []byte("\xff")
	delete(w.files.now, bootFile)
	says(w, "the next boot takes slot _b", "geometry: the primary copy is damaged", "metadata of slot _a: the primary copy is damaged",
		"snapshot gone_b: super has no such partition", "snapshot torn_b", "snapshot-boot is missing")

	w, _ = tried(t, plain())
	says(w, "the running slot _b is on trial")
	w.cycle()
	says(w, "the running slot _b is on trial", "system_b: it is not mapped", "vendor_b: it is not mapped")

	w, _ = tried(t, plain())
	must(t, w.m.Slots.MarkSuccessful())
	w.daemon.fails["vendor_b"] = true
	must(t, w.m.InitiateMerge(ctx))
	must(t, w.daemon.work())
	w.process(failed)
	says(w, "the merge failed")
}

// What Treat fixes loses nothing: an update that waits for its reboot still boots.
func TestTreat(t *testing.T) {
	fixes := func(w *world, fixed, left []string) {
		t.Helper()
		found, err := w.m.Treat(ctx)
		must(t, err)
		for _, f := range found {
			among := left
			if f.Fixed {
				among = fixed
			}
			if !slices.ContainsFunc(among, func(text string) bool { return strings.Contains(f.What, text) }) {
				t.Errorf("expected not to find %+v", f)
			}
		}
		if len(found) != len(fixed)+len(left) {
			t.Errorf("expected to fix %q and to leave %q, found %v", fixed, left, found)
		}
	}
	w, u := installed(t, plain())
	w.super.now[4096] ^= 1
	w.super.now[12300] ^= 1
	w.files.now[stateFile] = []byte("\xff")
	must(t, w.m.Slots.SetMergeStatus(bootctl.MergeCancelled))
	w.images.files["nobody_b-cow"] = [2]int64{4 << 20, 4096}
	fixes(w, []string{"geometry: the primary copy", "metadata of slot _a: the primary copy", "taken for Unverified", "nobody_b-cow"}, []string{"the next boot takes slot _b"})
	w.wantState(unverified)
	w.cycle()
	_, err := w.m.Boot(ctx)
	must(t, err)
	w.isSystemOf(u, true)

	w = newWorld(t, 1, plain())
	w.files.now[statusFile("torn_b")] = []byte("\xff")
	w.files.now[bootFile] = []byte("_a")
	fixes(w, []string{"snapshot-boot is there", "snapshots has torn_b", "snapshot torn_b"}, nil)
	w.wantState(none)

	w, _ = tried(t, plain())
	fixes(w, nil, []string{"the running slot _b is on trial"}) // which is not for a program to say
}

// A boot that is done again changes nothing, also when it fails.
func TestBootTwice(t *testing.T) {
	w, u := tried(t, plain())
	tables, steps := len(w.mapper.tables), w.steps
	_, err := w.m.Boot(ctx)
	must(t, err)
	w.daemon.gone = true
	if _, err := w.m.Boot(ctx); err == nil {
		t.Error("expected an error without a daemon")
	}
	if len(w.mapper.tables) != tables || w.steps != steps {
		t.Errorf("expected %d devices and no change, found %d and %d changes", tables, len(w.mapper.tables), w.steps-steps)
	}
	w.isSystemOf(u, true)
}

// SNM-041: a system that runs from the update without a switch of slots.
func TestLiveWithoutSwitch(t *testing.T) {
	w, _ := installed(t, plain())
	must(t, put(w.files, noSwitchFile, []byte(indicatorText)))
	w.wantError(w.m.Cancel(ctx), ErrLive)
	w.wantState(unverified)
}

// A merge that failed is tried again without a reboot.
func TestRetry(t *testing.T) {
	w, u := tried(t, plain())
	w.wantError(w.m.Retry(ctx), ErrState)
	w.daemon.fails["vendor_b"] = true
	must(t, w.m.InitiateMerge(ctx))
	must(t, w.daemon.work())
	w.process(failed)
	w.daemon.fails["vendor_b"] = false
	must(t, w.m.Retry(ctx))
	w.process(merging)
	must(t, w.daemon.work())
	w.process(none)
	u.isOver(w)
}
