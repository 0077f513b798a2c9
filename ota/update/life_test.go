package update

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"cowbird/cow"
	"cowbird/formats/bootctl"
	"cowbird/formats/lpmeta"
	"cowbird/formats/payload/pb"
	"cowbird/formats/snapshotpb"
	"google.golang.org/protobuf/proto"
)

var ctx = context.Background()

type (
	pbManifest  = pb.DeltaArchiveManifest
	pbPartition = pb.PartitionUpdate
)

// noise is that many blocks of data that nothing compresses.
func noise(seed uint64, blocks int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, blocks*blockSize)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// changed is b with other blocks here and there, some moved, and another length.
func changed(seed uint64, b []byte, blocks int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	out := make([]byte, blocks*blockSize)
	copy(out, b)
	have := len(b) / blockSize
	for i := range blocks {
		block := out[i*blockSize:][:blockSize]
		switch {
		case i >= have || r.IntN(4) == 0:
			copy(block, noise(r.Uint64(), 1))
		case r.IntN(4) == 0: // moved, mostly with overlaps
			copy(block, b[r.IntN(have)*blockSize:][:blockSize])
		case r.IntN(12) == 0:
			clear(block)
		}
	}
	return out
}

// swapped are partitions that exchange space, and one that comes new (SNM-013,
// SNM-015, SNM-017, SNM-038).
func swapped() map[string]part {
	system, vendor, product := noise(1, 40), noise(2, 48), noise(3, 16)
	return map[string]part{
		"system":  {system, changed(4, system, 64)},
		"vendor":  {vendor, changed(5, vendor, 24)},
		"product": {product, changed(6, product, 16)},
		"odm":     {nil, noise(7, 8)},
	}
}

// deltas are the COWs of an update, made once.
func deltas(t testing.TB, parts map[string]part) map[string][]byte {
	out := map[string][]byte{}
	for name, p := range parts {
		if p.after == nil {
			continue
		}
		f := &memCow{}
		_, err := cow.Build(ctx, f, cow.BuildOptions{
			Base:    cow.Image{R: strings.NewReader(string(p.before)), Size: int64(len(p.before))},
			Target:  cow.Image{R: strings.NewReader(string(p.after)), Size: int64(len(p.after))},
			Workers: 1, ScratchSize: 64 << 10,
		})
		must(t, err)
		out[name] = f.b
	}
	return out
}

type memCow struct{ b []byte }

func (f *memCow) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(f.b) {
		f.b = append(f.b, make([]byte, need-len(f.b))...)
	}
	return copy(f.b[off:], p), nil
}

// manifest is that of an update with these partitions. The margin that COWs get is
// larger than all of them, so estimates may be small.
func manifest(parts map[string]part, cows map[string][]byte) *pb.DeltaArchiveManifest {
	group := &pb.DynamicPartitionGroup{Name: proto.String("main")}
	m := &pb.DeltaArchiveManifest{DynamicPartitionMetadata: &pb.DynamicPartitionMetadata{
		Groups: []*pb.DynamicPartitionGroup{group}, SnapshotEnabled: proto.Bool(true), VabcEnabled: proto.Bool(true),
		CowVersion: proto.Uint32(3), VabcCompressionParam: proto.String("lz4"),
	}}
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		if parts[name].after == nil {
			continue
		}
		group.PartitionNames = append(group.PartitionNames, name)
		m.Partitions = append(m.Partitions, &pb.PartitionUpdate{
			PartitionName:    proto.String(name),
			NewPartitionInfo: &pb.PartitionInfo{Size: proto.Uint64(uint64(len(parts[name].after)))},
			EstimateCowSize:  proto.Uint64(max(1, uint64(len(cows[name])))),
		})
	}
	return m
}

// update is an update to be installed again and again.
type update struct {
	from     int // slot
	parts    map[string]part
	cows     map[string][]byte
	manifest *pb.DeltaArchiveManifest
	care     []byte
}

func newUpdate(t testing.TB, parts map[string]part) *update {
	u := &update{parts: parts, cows: deltas(t, parts)}
	u.manifest = manifest(parts, u.cows)
	u.care = careMap(t, "system", "2,0,2")
	return u
}

// install does what an updater does until the reboot.
func (u *update) install(w *world) error {
	if err := w.m.Begin(ctx); err != nil {
		return err
	}
	if err := w.m.Create(ctx, u.manifest); err != nil {
		return err
	}
	targets, err := w.m.Targets(ctx)
	if err != nil {
		return err
	}
	for _, t := range targets {
		d, err := w.open(t.Cow)
		if err != nil {
			return err
		}
		// A little at a time, so that the power has occasions.
		for b, at := u.cows[t.Partition], 0; at < len(b); at += 64 << 10 {
			if _, err := d.WriteAt(b[at:min(at+64<<10, len(b))], int64(at)); err != nil {
				return err
			}
		}
		if err := d.Sync(); err != nil {
			return err
		}
	}
	if err := w.m.keepCareMap(u.care); err != nil {
		return err
	}
	return w.m.Finish(ctx, false)
}

// readCare is what happens before the new system is marked as successful.
func readCare(w *world) (int64, error) {
	return w.m.readCareMap(ctx, func(name string) (io.ReaderAt, error) { return w.open("/dev/mapper/" + name + lpmeta.SuffixOf(w.slot)) })
}

// merge does what the new system does.
func merge(w *world) (snapshotpb.UpdateState, error) {
	if _, err := readCare(w); err != nil {
		return none, err
	}
	if err := w.m.Slots.MarkSuccessful(); err != nil {
		return none, err
	}
	s, err := w.m.Status()
	if err != nil {
		return none, err
	}
	if s.State == unverified {
		if err := w.m.InitiateMerge(ctx); err != nil {
			return none, err
		}
	}
	for range 12 {
		if err := w.daemon.work(); err != nil && w.alive() != nil {
			return none, err
		}
		state, err := w.m.Process(ctx)
		if err != nil || state != merging {
			return state, err
		}
	}
	return merging, errors.New("merging and no end")
}

// live runs one boot: whatever system it is does what it should. done is true when
// the update is over.
func (u *update) live(w *world) (done bool, err error) {
	if _, err := w.m.Boot(ctx); err != nil {
		return false, err
	}
	if err := w.isSystem(u.parts, w.slot != u.from); err != nil {
		w.t.Fatalf("%v; steps: %v", err, w.lastSteps())
	}
	if w.slot != u.from {
		state, err := merge(w)
		return err == nil && state == none, err
	}
	if _, err := w.m.Process(ctx); err != nil {
		return false, err
	}
	return false, u.install(w)
}

// isOver checks that nothing is left of the update but the new system.
func (u *update) isOver(w *world) {
	w.t.Helper()
	if err := w.isSystem(u.parts, true); err != nil {
		w.t.Fatal(err)
	}
	for name, b := range w.files.now {
		if name != stateFile {
			w.t.Errorf("expected no file but the state, found %s with %q", name, b)
		}
	}
	for name := range w.mapper.tables {
		if strings.ContainsAny(name, "-") {
			w.t.Errorf("expected no more devices than partitions, found %s", name)
		}
	}
	if len(w.images.files) > 0 || len(w.daemon.snaps) > 0 {
		w.t.Errorf("expected no images and snapshots, found %v and %v", w.images.files, w.daemon.snaps)
	}
	if s, err := w.m.Slots.MergeStatus(); err != nil || s != bootctl.MergeNone {
		w.t.Errorf("expected the boot loader to know of no merge, found %v, %v", s, err)
	}
}

// runThrough runs an update, with the power cut at a step, to its end.
func (u *update) runThrough(t testing.TB, seed uint64, room int64, cuts ...int) *world {
	w := newWorld(t, seed, u.parts)
	w.images.room = room
	return u.runOn(w, cuts...)
}

func (u *update) runOn(w *world, cuts ...int) *world {
	t := w.t
	w.cutAt = 0
	if len(cuts) > 0 {
		w.cutAt, cuts = w.steps+cuts[0], cuts[1:]
	}
	for boots := 0; ; boots++ {
		if boots == 10 {
			t.Fatalf("expected the update to end, found that it did not in %d boots; steps: %v", boots, w.lastSteps())
		}
		done, err := u.live(w)
		if done {
			return w
		}
		if err != nil && w.alive() == nil {
			t.Fatalf("slot %d: %v; steps: %v", w.slot, err, w.lastSteps())
		}
		if w.alive() != nil && len(cuts) > 0 {
			w.cutAt, cuts = w.steps+cuts[0], cuts[1:]
		}
		w.cycle()
	}
}

// TestLife is an update without an accident (SNM-006, SNM-007, SNM-013 to SNM-015,
// SNM-017, SNM-038, SNM-052).
func TestLife(t *testing.T) {
	u := newUpdate(t, swapped())
	for name, room := range map[string]int64{"super": 0, "files": 32 << 20} {
		t.Run(name, func(t *testing.T) {
			if room == 0 {
				u := *u
				u.manifest = proto.Clone(u.manifest).(*pb.DeltaArchiveManifest)
				// COWs of 2 MiB each do not fit into this super.
				u.parts = map[string]part{"system": u.parts["system"], "vendor": u.parts["vendor"]}
				u.manifest = manifest(u.parts, u.cows)
				u.isOver(u.runThrough(t, 1, room))
				return
			}
			w := u.runThrough(t, 1, room)
			u.isOver(w)
			t.Logf("%d steps", w.steps)
		})
	}
}

var (
	everyCut = flag.Bool("every-cut", false, "cut the power at every step, not at a sample")
	cutSeed  = flag.Uint64("cut-seed", 1, "how storage and chance behave")
)

// TestPowerCuts cuts the power at the steps of an update, one in each run. Whatever
// is lost, what boots is the old system or the new one, complete, and the update
// comes to its end (SNM-050, and specs/snapshot-manager.md 10).
func TestPowerCuts(t *testing.T) {
	u := newUpdate(t, swapped())
	steps := u.runThrough(t, 1, 32<<20).steps
	t.Logf("%d steps", steps)
	stride := 3
	if *everyCut || steps < 200 {
		stride = 1
	}
	for cut := 1 + int(*cutSeed)%stride; cut <= steps; cut += stride {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			u.isOver(u.runThrough(t, *cutSeed+uint64(cut), 32<<20, cut))
		})
	}
}

// TestManyPowerCuts cuts it again and again, a few steps after each boot at times.
func TestManyPowerCuts(t *testing.T) {
	u := newUpdate(t, swapped())
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, *cutSeed))
			cuts := make([]int, 6)
			for i := range cuts {
				cuts[i] = 1 + r.IntN(1+r.IntN(150))
			}
			u.isOver(u.runThrough(t, seed, 32<<20, cuts...))
		})
	}
}
