package update

import "testing"

// What there is room for does not change with an update that takes some of it: another
// one would begin by removing it.
func TestSpace(t *testing.T) {
	u := newUpdate(t, swapped())
	w := newWorld(t, 1, u.parts)
	w.images.room = 12 << 20
	before, err := w.m.Space()
	must(t, err)
	const partitions = (40 + 48 + 16) * blockSize
	if most := int64(superSize - partitions); before.Used != 0 || before.Super > most || before.Super < most-1<<20 || before.Files != 12<<20 {
		t.Errorf("expected nearly %d bytes in super, found %+v", most, before)
	}
	must(t, w.m.Begin(ctx))
	must(t, w.m.Create(ctx, u.manifest))
	all, err := w.m.Snapshots()
	must(t, err)
	used := int64(0)
	for _, s := range all {
		used += int64(s.CowPartitionSize + s.CowFileSize)
	}
	after, err := w.m.Space()
	must(t, err)
	if after.Used != used || used < int64(len(all))*cowMargin || after.Super != before.Super {
		t.Errorf("expected %d bytes to be used and as much room as before, %+v, found %+v", used, before, after)
	}
}
