package update

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"cowbird/cow"
	"cowbird/formats/lpmeta"
)

// plainWorld is a device without super.
func plainWorld(t testing.TB, seed uint64, parts map[string]part) *world {
	w := bareWorld(t, seed)
	p := Plain{Partitions: map[string]string{}, Cow: "/dev/cow"}
	sizes := map[string]uint64{plainCow: uint64(newMemDisk(w, plainCow, 8<<20).Size())}
	for name, part := range parts {
		d := newMemDisk(w, name, len(part.before))
		copy(d.now, part.before)
		copy(d.durable, part.before)
		p.Partitions[name], sizes[name] = "/dev/"+name, uint64(d.Size())
	}
	w.super = newMemDisk(w, "super", int(plainSize()))
	all, err := p.metadata(sizes, 0)
	must(t, err)
	must(t, lpmeta.Flash(w.super, w.super.Size(), all))
	must(t, w.super.Sync())
	w.setUp()
	return w
}

// An update, and then the next one back, of partitions that keep their size, through
// power cuts; each stays on its own device.
func TestPlainDevice(t *testing.T) {
	parts := plain()
	u := newUpdate(t, parts)
	steps := u.runOn(plainWorld(t, 1, parts)).steps
	for cut := 5; cut < steps; cut += 10 {
		w := plainWorld(t, uint64(cut), parts)
		u.isOver(u.runOn(w, cut))
		meta, err := lpmeta.Read(w.super, 1)
		must(t, err)
		for name, p := range parts {
			extents := meta.ExtentsOf(meta.Partition(name + "_b"))
			if len(extents) != 1 || meta.BlockDevices[extents[0].Source].Name != name || !slices.Equal(w.disks["/dev/"+name].durable, p.after) {
				t.Errorf("expected %s on its own device, found %v", name, extents)
			}
		}
	}
}

// A partition that shrinks, goes or grows does not leave its own device, which is where
// it is expected once the metadata are lost. One without a device is refused.
func TestPlainDevicesApart(t *testing.T) {
	w := plainWorld(t, 1, map[string]part{"product": {before: noise(1, 64)}, "system": {before: noise(2, 64)}, "vendor": {before: noise(3, 64)}})
	meta, err := lpmeta.Read(w.super, 0)
	must(t, err)
	from, to := "_a", "_b"
	for _, blocks := range []map[string]int{{"system": 20, "vendor": 8}, {"product": 30, "system": 64, "vendor": 40}, {"product": 64, "system": 1, "vendor": 64}} {
		parts := map[string]part{}
		for name, n := range blocks {
			parts[name] = part{after: noise(4, n)}
		}
		p, err := planUpdate(meta, from, to, manifest(parts, deltas(t, parts)), 0)
		must(t, err)
		meta = p.target
		for name, n := range blocks {
			extents := meta.ExtentsOf(meta.Partition(name + to))
			if len(extents) != 1 || meta.BlockDevices[extents[0].Source].Name != name || extents[0].Data != 0 || extents[0].NumSectors != uint64(n*blockSize/sectorSize) {
				t.Errorf("expected %d blocks of %s at the start of its own device, found %v", n, name, extents)
			}
		}
		from, to = to, from
	}
	for name, n := range map[string]int{"vendor": 65, "odm": 1, "cow": 1, "super": 1} {
		parts := map[string]part{name: {after: noise(5, n)}}
		_, err := planUpdate(meta, from, to, manifest(parts, deltas(t, parts)), 0)
		if want := map[bool]error{true: ErrNoSpace, false: ErrManifest}[name == "vendor"]; !errors.Is(err, want) {
			t.Errorf("%s of %d blocks: expected %v, found %v", name, n, want, err)
		}
	}
}

func TestPlainFile(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "sys"), make([]byte, 64<<10), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "cow"), make([]byte, 4<<20), 0o600))
	config := `{"state": "state", "super": "state/super.meta", "slots": {"current": "_b", "misc": {"path": "misc"}},
		"plain": {"partitions": {"system": "sys"}, "cow": "cow"}}`
	c, err := ParseConfig([]byte(config), dir)
	must(t, err)
	for range 2 { // made once, then used
		d, err := Open(c, nil, nil, nil)
		must(t, err)
		meta, err := d.metadata()
		must(t, err)
		p := meta.Partition("system_b")
		if p == nil || meta.Size(p) != 64<<10 || c.device("system") != filepath.Join(dir, "sys") {
			t.Errorf("expected system_b of 64 KiB, found %v", meta.Partitions)
		}
		must(t, d.Close())
	}
	must(t, os.WriteFile(filepath.Join(dir, "sys"), make([]byte, 5000), 0o600))
	must(t, os.Remove(filepath.Join(dir, "state", "super.meta")))
	if _, err := Open(c, nil, nil, nil); !errors.Is(err, ErrConfig) && !errors.Is(err, cow.ErrSize) {
		t.Errorf("expected a device of no whole blocks to be refused, found %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "state", "super.meta")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("expected no file, found %v", err)
	}
}

// The file is there after a power cut, once it was made, and never made again.
func TestPlainFileDurable(t *testing.T) {
	for seed := range uint64(8) {
		w := bareWorld(t, seed)
		p := Plain{Partitions: map[string]string{"system": "/dev/system"}, Cow: "/dev/cow"}
		all, err := p.metadata(map[string]uint64{"system": 64 << 10, plainCow: 4 << 20}, 0)
		must(t, err)
		must(t, writePlain(w.files, "partitions", all))
		w.files.crash()
		first, err := w.files.Read("partitions")
		must(t, err)
		all, err = p.metadata(map[string]uint64{"system": 64 << 10, plainCow: 4 << 20}, 1)
		must(t, err)
		must(t, writePlain(w.files, "partitions", all))
		if again, err := w.files.Read("partitions"); err != nil || !bytes.Equal(first, again) {
			t.Errorf("expected the file from before, found another one, %v", err)
		}
	}
}

func TestConfig(t *testing.T) {
	const slots = `"slots": {"misc": {"path": "m"}}`
	for name, text := range map[string]string{
		"no json":     `x`,
		"unknown":     `{"state": "s", "super": "p", "bogus": 1, ` + slots + `}`,
		"no slots":    `{"state": "s", "super": "p"}`,
		"bad slots":   `{"state": "s", "super": "p", "slots": {}}`,
		"no super":    `{"state": "s", ` + slots + `}`,
		"no asterisk": `{"state": "s", "super": "p", "static": "/dev/x", ` + slots + `}`,
		"plain":       `{"state": "s", "super": "p", "plain": {"partitions": {"a": "a"}}, ` + slots + `}`,
		"plain name":  `{"state": "s", "super": "p", "plain": {"partitions": {"cow": "a"}, "cow": "c"}, ` + slots + `}`,
	} {
		if _, err := ParseConfig([]byte(text), "/etc"); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: expected ErrConfig, found %v", name, err)
		}
	}
	c, err := ParseConfig([]byte(`{"state": "s", "super": "/p", "static": "parts/*", `+slots+`}`), "/etc")
	must(t, err)
	if c.State != "/etc/s" || c.device("super") != "/p" || c.static("boot", "_b") != "/etc/parts/boot_b" {
		t.Errorf("expected paths relative to the file, found %+v", c)
	}
}

// A COW that is damaged keeps the new system from booting, as a whole; the boot
// loader goes back.
func TestDamagedCow(t *testing.T) {
	w, u := installed(t, plain())
	meta, err := lpmeta.Read(w.super, 1)
	must(t, err)
	head := w.super.durable[meta.ExtentsOf(meta.Partition("vendor_b-cow"))[0].Data*512:][:64]
	for i := range head {
		head[i] ^= 0x55
	}
	for boots := 0; ; boots++ {
		w.cycle()
		if w.slot == 0 {
			break
		}
		if _, err := w.m.Boot(ctx); err == nil || len(w.mapper.tables) > 0 || boots > 10 {
			t.Fatalf("expected a boot that fails and leaves nothing, found %v, %v, after %d", err, w.mapper.tables, boots)
		}
	}
	_, err = w.m.Boot(ctx)
	must(t, err)
	w.isSystemOf(u, false)
	w.process(cancelled)
}
