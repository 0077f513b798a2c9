//go:build vmhost

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cowbird/tools/vmlab/volatile"
)

// A plain machine has no super. Each partition has a block device, which is larger than
// any system needs, and there is one for COWs. Its configuration is the example of
// docs/update.md, with the lab's paths.

const (
	plainDoc    = "../../docs/update.md"
	plainFolder = "/var/lib/cowbird" // of the example
	plainDisk   = "/dev/mmcblk0"     // likewise: U-Boot's environment
	plainFile   = "partitions"       // likewise, in the folder
	plainTail   = 96 << 10           // bytes of each device that no system has

	plainName      = "plain.json"
	plainFilesName = "plain-files.json" // COWs are in files if there is no room for them
)

// plainConfig is the example.
type plainConfig struct {
	State string `json:"state"`
	Super string `json:"super"`
	Plain struct {
		Partitions map[string]string `json:"partitions"`
		Cow        string            `json:"cow"`
	} `json:"plain"`
	Slots json.RawMessage `json:"slots"`
}

// plainExample finds the example, of which nothing may be left out here.
func plainExample(t *testing.T) *plainConfig {
	t.Helper()
	doc, err := os.ReadFile(plainDoc)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range bytes.Split(doc, []byte("```")) {
		text, ok := bytes.CutPrefix(block, []byte("json\n{"))
		if !ok || !bytes.Contains(text, []byte(`"plain"`)) {
			continue
		}
		c := &plainConfig{}
		d := json.NewDecoder(bytes.NewReader(append([]byte("{"), text...)))
		d.DisallowUnknownFields()
		if err := d.Decode(c); err != nil {
			t.Fatalf("%s: example of a device without super: %v", plainDoc, err)
		}
		return c
	}
	t.Fatalf("%s: expected an example of a device without super, found none", plainDoc)
	return nil
}

// inLab has the lab's paths in place of the example's.
func (c *plainConfig) inLab() {
	c.State = strings.Replace(c.State, plainFolder, "/run/metadata/ota", 1)
	c.Super = strings.Replace(c.Super, plainFolder, "/run/metadata/ota", 1)
	for name := range c.Plain.Partitions {
		c.Plain.Partitions[name] = "/run/block/" + name
	}
	c.Plain.Cow = "/run/block/cow"
	c.Slots = json.RawMessage(strings.ReplaceAll(string(c.Slots), `"`+plainDisk+`"`, `"/run/block/misc"`))
}

// config is the example's, and what every system of the lab needs. files has COWs in
// files, if there is no room for them.
func (c *plainConfig) config(files bool) string {
	var all map[string]any
	_ = json.Unmarshal([]byte(deviceConfig(0)), &all)
	if !files {
		delete(all, "images")
	}
	all["state"], all["super"], all["plain"], all["slots"] = c.State, c.Super, c.Plain, c.Slots
	b, _ := json.Marshal(all)
	return string(b)
}

// newPlainMachine flashes a system onto the devices of slot a. cow is how large that for
// COWs is, bytes.
func newPlainMachine(t *testing.T, w *workshop, r *rand.Rand, c *plainConfig, first *system, cow int64) *machine {
	m := &machine{workshop: w, t: t, r: r, power: new(volatile.Power), plain: map[string]*volatile.Disk{}, config: plainName}
	// Until the first update a partition is all of its device.
	m.old = &system{number: first.number, parts: map[string][]byte{}, data: first.data, vbmeta: first.vbmeta}
	for _, name := range slices.Sorted(maps.Keys(c.Plain.Partitions)) {
		tail := w.largestOf(name) + plainTail - int64(len(first.parts[name]))
		m.old.parts[name] = append(slices.Clone(first.parts[name]), random(uint64(tail), int(tail))...)
		m.plain[name] = m.power.AddDisk(name, 512, slices.Clone(m.old.parts[name]))
	}
	m.plain["cow"] = m.power.AddDisk("cow", 512, random(7, int(cow)))
	l := uboot(string(c.Slots))
	m.loader = &l
	m.addDisks(first, ubootPlaceOf(l.slots).end())
	l.setUp(m)
	return m
}

// plainStorage is storage: the metadata are a file.
func (m *machine) plainStorage() (super memoryDisk, devices map[string][]byte) {
	m.t.Helper()
	m.inMetadata(func(dir string) {
		b, err := os.ReadFile(filepath.Join(dir, "ota", plainFile))
		m.check(err)
		super = b
	})
	devices = map[string][]byte{}
	for name, d := range m.plain {
		devices[name] = d.Contents()
	}
	return super, devices
}

// TestPlainKernel has devices without super live: through updates forth and back, a system
// that never proves good, power cuts while they boot, install and merge, and what else
// TestTortureKernel has, for a fourth as many devices.
func TestPlainKernel(t *testing.T) {
	w := newWorkshop(t)
	c := plainExample(t)
	c.inLab()
	for name, files := range map[string]bool{plainName: false, plainFilesName: true} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(c.config(files)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first := w.make(0, 0, 0)
	t.Run("ForthAndBack", func(t *testing.T) {
		m := newPlainMachine(t, w, chance(1), c, first, 32<<20)
		m.forthAndBack(first)
	})
	t.Run("Files", func(t *testing.T) {
		m := newPlainMachine(t, w, chance(9), c, first, 1<<20)
		m.config = plainFilesName
		m.liveWithLoader()
	})
	t.Run("Cuts", func(t *testing.T) {
		m := newPlainMachine(t, w, chance(*lifeSeed), c, first, 32<<20)
		total, began := tally2{}, time.Now()
		m.cutUpdate(t, total, m.offer(&offer{from: first, to: w.make(1, 1, 1), version: 3, codec: "lz4"}))
		m.cutUpdate(t, total, append(m.offer(&offer{from: m.old, to: first, version: 3, codec: "gz"}), "lab.flags=--downgrade"))
		t.Logf("in %v:\n%v", time.Since(began).Round(time.Second), total)
	})
	total := tally2{}
	for i := range (*lives + 3) / 4 {
		t.Run(fmt.Sprint("Lives/", *lifeSeed+uint64(i)), func(t *testing.T) {
			r := chance(*lifeSeed + uint64(i))
			l := &life{count: total}
			first := w.make(r.IntN(len(w.roots)), r.IntN(len(w.kinds["vendor"])), r.IntN(len(w.kinds["product"])))
			l.machine = newPlainMachine(t, w, r, c, first, []int64{1 << 20, 8 << 20, 32 << 20}[r.IntN(3)])
			l.config = plainFilesName
			l.live()
		})
	}
	t.Logf("lives:\n%v", total)
}

// forthAndBack has partitions shrink, grow, go and come back.
func (m *machine) forthAndBack(first *system) {
	m.t.Helper()
	from := first
	for _, o := range []*offer{
		{to: m.make(1, 1, 1), version: 3, codec: "lz4"},
		{to: m.make(2, 2, -1), version: 3, codec: "zstd", onDevice: true},
		{to: m.make(0, 0, 0), version: 2, codec: "gz"},
	} {
		o.from = from
		words := append(m.offer(o), "lab.flags=--downgrade")
		m.went(m.boot(cut{}, append(words, "lab.do=install")...))
		m.isOver(m.boot(cut{}, "lab.do=merge,wait,verify"))
		m.isOver(m.boot(cut{}, "lab.do=nothing"))
		from = m.old
	}
}

// cutUpdate cuts the power in the boot in which an update is installed, and in the one
// that tries it and merges: early, such as while the file of metadata is made, while the
// partitions are mapped, when that is done, and at steps and flushes by chance. Then the
// device has the update.
func (m *machine) cutUpdate(t *testing.T, total tally2, words []string) {
	for _, do := range []string{"install", "merge"} {
		start := m.save()
		whole := m.boot(cut{}, append(words, "lab.do="+do)...)
		m.went(whole)
		done := m.save()
		t.Logf("%s: %d steps, %d flushes", do, whole.steps, whole.flushes)
		early := len(m.disks()) + 3 + m.r.IntN(8) // there is one for each loop device, and two for mounts
		cuts := []cut{{flush: early}, {said: "device: boots slot"}, {said: "device: mapped"}}
		for range (*lives + 3) / 4 {
			cuts = append(cuts, cut{flush: 1 + m.r.IntN(whole.flushes)}, cut{step: 1 + m.r.IntN(whole.steps)})
		}
		for i, c := range cuts {
			c.loss = volatile.AnyLoss(m.r)
			t.Run(fmt.Sprintf("%d/%s/%d", m.old.number, do, i), func(t *testing.T) {
				l := &life{machine: m.in(t), count: total, offer: words}
				l.restore(start)
				l.sweep(do, c)
			})
		}
		m.restore(done)
	}
	m.isOver(m.boot(cut{}, "lab.do=nothing"))
}
