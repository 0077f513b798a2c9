//go:build vmhost

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cowbird/cow"
	"cowbird/formats/bootctl"
	"cowbird/formats/lpmeta"
	"cowbird/tools/vmlab/volatile"
)

// A machine is a device whose disks lose what was not flushed when the power goes:
//
//	test ── boot loader, power ──► User-mode Linux ── labdevice: initramfs, system
//	  └──── volatile disks ◄─FUSE─ hostfs ◄─ loop devices

const (
	machineBoot  = 90 * time.Second
	metadataDisk = 8 << 20
	dataDisk     = 64 << 20
	// superHead is what the metadata of super and its alignment take, bytes.
	superHead = 1 << 20
)

// workshop is what all machines have in common.
type workshop struct {
	kernel string
	dir    string // what guests see
	*factory
}

func newWorkshop(t *testing.T) *workshop {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for FUSE")
	}
	l, err := newLab(t.Context(), 2, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := l.uml(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	w := &workshop{kernel: kernel, dir: t.TempDir()}
	for program, path := range map[string]string{"otactl": "cmd/otactl", "snapuserd": "cmd/snapuserd", "labdevice": "tools/vmlab/labdevice"} {
		if err := l.compile(t.Context(), "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(w.dir, program), "./"+path); err != nil {
			t.Fatal(err)
		}
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	b := &board{t: t, dir: w.dir}
	b.write(b.path("avb.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), 0o644)
	b.write(b.path("update.json"), deviceConfig(0), 0o644)
	b.write(b.path("update-extents.json"), strings.Replace(deviceConfig(0), "{", `{"images_device": "/run/block/data", `, 1), 0o644)
	b.check(os.Mkdir(b.path("payloads"), 0o755))
	w.factory = newFactory(t, w.dir, key)
	return w
}

// machine is one device.
type machine struct {
	*workshop
	t                           *testing.T
	r                           *mrand.Rand
	power                       *volatile.Power
	super, metadata, misc, data *volatile.Disk
	vbmeta                      [2]*volatile.Disk
	plain                       map[string]*volatile.Disk // instead of super: see plain_test.go
	server                      *volatile.Server
	loader                      *bootLoader // nil: a phone's
	config                      string      // a file in the workshop's folder; "": the system's own
	from                        int         // the slot with old
	old, next                   *system
	console                     string // of the last boot
	bootCount, cutCount         int
}

// newMachine flashes a system into slot a. room is what super has beside the largest
// partitions that any system has, bytes.
func newMachine(t *testing.T, w *workshop, r *mrand.Rand, first *system, room int64) *machine {
	m := &machine{workshop: w, t: t, r: r, power: new(volatile.Power), old: first}
	m.super = m.power.AddDisk("super", 512, m.flash(first, superHead+w.largest()+room))
	m.addDisks(first, 64<<10)
	return m
}

// addDisks adds those that every machine has, and shows them all. misc is in bytes.
func (m *machine) addDisks(first *system, misc int64) {
	m.t.Helper()
	m.metadata = m.power.AddDisk("metadata", labBlock, m.ext4(metadataDisk))
	m.misc = m.power.AddDisk("misc", 512, make([]byte, misc))
	m.data = m.power.AddDisk("data", labBlock, m.ext4(dataDisk))
	m.vbmeta[0] = m.power.AddDisk("vbmeta_a", 512, slices.Clone(first.vbmeta))
	m.vbmeta[1] = m.power.AddDisk("vbmeta_b", 512, make([]byte, vbmetaSize))
	var err error
	m.server, err = volatile.Serve(m.t.TempDir(), m.disks()...)
	m.check(err)
	m.t.Cleanup(func() { m.check(m.server.Close()) })
}

func (m *machine) disks() []*volatile.Disk {
	all := []*volatile.Disk{m.metadata, m.misc, m.data, m.vbmeta[0], m.vbmeta[1]}
	if m.super != nil {
		all = append(all, m.super)
	}
	for _, name := range slices.Sorted(maps.Keys(m.plain)) {
		all = append(all, m.plain[name])
	}
	return all
}

func (m *machine) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) ext4(size int) []byte {
	m.t.Helper()
	b := &board{t: m.t, dir: m.t.TempDir()}
	b.run("", "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0", b.path("disk"), fmt.Sprint(size/1024))
	body, err := os.ReadFile(b.path("disk"))
	m.check(err)
	return body
}

// flash makes super with a system in slot a.
func (m *machine) flash(s *system, size int64) []byte {
	size &^= 1<<20 - 1
	super := memoryDisk(make([]byte, size))
	b, err := lpmeta.NewBuilder([]lpmeta.DeviceInfo{{Name: "super", Size: uint64(size), Alignment: 1 << 20, LogicalBlockSize: 4096}}, 65536, 2)
	m.check(err)
	none, err := b.Export()
	m.check(err)
	m.check(b.AddGroup("main_a", 0))
	for _, name := range slices.Sorted(maps.Keys(s.parts)) {
		m.check(b.AddPartition(name+"_a", "main_a", lpmeta.ReadOnly))
		m.check(b.Resize(name+"_a", uint64(len(s.parts[name])), nil))
	}
	meta, err := b.Export()
	m.check(err)
	m.check(lpmeta.Flash(super, size, []*lpmeta.Metadata{meta, none}))
	for name, body := range s.parts {
		for _, l := range meta.Table(meta.Partition(name + "_a")) {
			copy(super[l.Data*512:], body[l.Start*512:][:l.Length*512])
		}
	}
	return super
}

// memoryDisk is a cow.Device in memory.
type memoryDisk []byte

func (d memoryDisk) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(d)) {
		return 0, io.EOF
	}
	n := copy(p, d[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
func (d memoryDisk) WriteAt(p []byte, off int64) (int, error) { return copy(d[off:], p), nil }
func (d memoryDisk) Size() int64                              { return int64(len(d)) }
func (d memoryDisk) Sync() error                              { return nil }

var _ cow.Device = memoryDisk(nil)

// choose is the boot loader; it counts the attempt, but for a recovery system.
func (m *machine) choose(recovery bool) int {
	m.t.Helper()
	if m.loader != nil {
		if recovery {
			misc, metadata := m.misc.Contents(), m.metadata.Contents()
			defer func() { m.misc.Put(misc, 0); m.metadata.Put(metadata, 0) }()
		}
		return m.loader.choose(m)
	}
	block := m.misc.Contents()
	control, err := bootctl.ParseControl(block[bootctl.ControlOffset:])
	if errors.Is(err, bootctl.ErrBlank) {
		return 0 // never written
	}
	m.check(err)
	slot, control, err := control.Choose()
	m.check(err)
	if recovery {
		return slot
	}
	b, err := control.Marshal()
	m.check(err)
	m.misc.Put(b, bootctl.ControlOffset)
	return slot
}

// cut says when the power goes in a boot: at a step or at a flush, counted from 1, or
// when the console has said something. Zero: not at all.
type cut struct {
	step, flush int
	said        string
	loss        volatile.Loss
}

// outcome is what came of one boot.
type outcome struct {
	slot           int
	off            bool   // the power went
	disk           string // at which disk
	steps, flushes int
	console        string
	well           bool
	during         string // the last thing that the device began
	took           time.Duration
}

// boot runs the device until it is off, one way or the other.
func (m *machine) boot(c cut, words ...string) *outcome {
	m.t.Helper()
	slot := m.choose(slices.Contains(words, "lab.do=wipe") || slices.Contains(words, "lab.do=recover"))
	ctx, cancel := context.WithTimeout(m.t.Context(), machineBoot)
	defer cancel()
	folder := m.t.TempDir()
	args := []string{"noreboot", "kmemleak=off", "mem=384M", "ncpus=1", "seccomp=on", "panic=-1", "printk.devkmsg=on", "con=null", "con0=null,fd:2",
		"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "init=" + filepath.Join(m.dir, "labdevice"),
		"lab.folder=" + m.dir, "lab.disks=" + m.server.Dir(), "androidboot.slot_suffix=" + lpmeta.SuffixOf(slot), "lab.from=" + lpmeta.SuffixOf(m.from)}
	if m.config != "" {
		args = append(args, "lab.config="+m.config)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(m.kernel, "linux"), append(args, words...)...)
	cmd.Env = append(os.Environ(), "HOME="+folder)
	m.power.On(c.step, c.flush, cancel)
	began := time.Now()
	console, err := start(cmd)
	m.check(err)
	watch := &cutter{said: c.said, off: cancel}
	_, _ = io.Copy(struct{ io.Writer }{watch}, console) // not by the buffer's ReadFrom
	_ = cmd.Wait()
	o := &outcome{slot: slot, console: watch.String()}
	o.steps, o.flushes = m.power.Steps()
	o.disk, o.off = m.power.WentOff()
	o.well = strings.Contains(o.console, "device: well")
	o.off = o.off || c.said != "" && strings.Contains(o.console, c.said)
	if !o.off && ctx.Err() != nil {
		m.t.Fatalf("expected the device to turn itself off within %v, found that it hangs; its console:\n%s", machineBoot, o.console)
	}
	m.power.Cut(m.r, c.loss)
	o.during = during(o.console)
	m.console = o.console
	m.bootCount++
	o.took = time.Since(began)
	if o.off {
		m.cutCount++
	}
	return o
}

// lines are what the device has said, by its first word.
func lines(console, word string) (all []string) {
	for line := range strings.Lines(console) {
		if _, said, ok := strings.Cut(line, "device: "); ok {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(said), word+" "); ok {
				all = append(all, rest)
			}
		}
	}
	return all
}

// during names the last step that began, as the console has it.
func during(console string) string {
	step := "kernel and initramfs"
	for line := range strings.Lines(console) {
		_, said, ok := strings.Cut(line, "device: ")
		if !ok {
			continue
		}
		said = strings.TrimSpace(said)
		switch word, rest, _ := strings.Cut(said, " "); word {
		case "boots":
			step = "otactl boot"
		case "mapped":
			step = "switch of the root"
		case "version":
			step = "reading all partitions"
		case "otactl":
			step = "otactl " + strings.Fields(rest)[0]
		case "afterwards":
			step = "reading all partitions again"
		case "well":
			step = "turning off"
		}
	}
	return step
}

// standingLine is what otactl update says, as far as the tests care.
type standingLine struct {
	State     string `json:"state"`
	Slot      string `json:"slot"`
	Next      string `json:"next_slot"`
	Good      bool   `json:"successful"`
	Snapshots []struct {
		Name  string `json:"name"`
		State string `json:"state"`
		Cow   int64  `json:"cow_size"`
	} `json:"snapshots"`
}

// states are the update's, each time that the device told it.
func (o *outcome) states() (all []standingLine) {
	for _, l := range lines(o.console, "update") {
		var s standingLine
		if json.Unmarshal([]byte(l), &s) == nil {
			all = append(all, s)
		}
	}
	return all
}

// list is the last of what the device told as a JSON array.
func (o *outcome) list(word string) (names []string) {
	if all := lines(o.console, word); len(all) > 0 {
		_ = json.Unmarshal([]byte(all[len(all)-1]), &names)
	}
	return names
}

// systemOf is what ought to be in a slot.
func (m *machine) systemOf(slot int) *system {
	if slot == m.from || m.next == nil {
		return m.old
	}
	return m.next
}

// fatal tells everything.
func (m *machine) fatal(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("boot %d: %s; the console of the last boot:\n%s", m.bootCount, fmt.Sprintf(format, args...), tailOf(m.console, 80))
}

func tailOf(s string, n int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-n):], "\n")
}

// isComplete checks that all that the device has read was the old system or the new
// one, as a whole, and that the kernel had nothing to complain of.
func (m *machine) isComplete(o *outcome) {
	m.t.Helper()
	want := m.systemOf(o.slot)
	for _, l := range lines(o.console, "sums") {
		sums := map[string]string{}
		m.check(json.Unmarshal([]byte(l), &sums))
		if !maps.Equal(sums, want.sums()) {
			m.fatal("slot %d: expected %v, found %v", o.slot, want.sums(), sums)
		}
	}
	for _, l := range lines(o.console, "version") {
		if v, _, _ := strings.Cut(l, " "); v != fmt.Sprint(want.number) {
			m.fatal("slot %d: expected version %d, found %s", o.slot, want.number, v)
		}
	}
	if o.off {
		return // errors of disks without power are no fault
	}
	if bad := splats(strings.Split(o.console, "\n")); len(bad) > 0 {
		m.fatal("expected no complaint of the kernel, found %q", bad)
	}
}

// went wants a boot without a power cut to have gone well.
func (m *machine) went(o *outcome) {
	m.t.Helper()
	m.isComplete(o)
	if !o.well || o.off {
		m.fatal("expected the device to come up and to go well")
	}
}

// isOver checks that nothing is left of the update but the new system, and makes that
// the old one.
func (m *machine) isOver(o *outcome) {
	m.t.Helper()
	m.went(o)
	states := o.states()
	if last := states[len(states)-1]; last.State != "None" || len(last.Snapshots) > 0 || !last.Good {
		m.fatal("expected no update and a good slot, found %+v", last)
	}
	files := slices.DeleteFunc(o.list("files"), func(f string) bool { return f == "state" || m.plain != nil && f == plainFile })
	if len(files) > 0 {
		m.fatal("expected no file but the state, found %q", files)
	}
	if images := o.list("images"); len(images) > 0 {
		m.fatal("expected no files of COWs, found %q", images)
	}
	m.onlyPartitions(o)
	block := m.misc.Contents()
	if v, err := bootctl.ParseVirtualAB(block[bootctl.VirtualABOffset:]); err == nil && v.Status != bootctl.MergeNone {
		m.fatal("expected the boot loader to know of no merge, found %v", v.Status)
	}
	m.from, m.old, m.next = o.slot, m.systemOf(o.slot), nil
	m.superIsTidy()
}

// onlyPartitions wants no device to be mapped but the partitions and dm-verity.
func (m *machine) onlyPartitions(o *outcome) {
	m.t.Helper()
	var want []string
	for name := range m.systemOf(o.slot).parts {
		name += lpmeta.SuffixOf(o.slot)
		want = append(want, name, name+"-verity")
	}
	slices.Sort(want)
	got := slices.DeleteFunc(o.list("devices"), func(name string) bool { return name == "userdata" }) // see TestDeviceExtents
	if !slices.Equal(got, want) {
		m.fatal("expected the devices %q, found %q", want, got)
	}
}

// storage gives what has the metadata of partitions, and what is on the block devices
// that these name.
func (m *machine) storage() (super memoryDisk, devices map[string][]byte) {
	m.t.Helper()
	if m.plain != nil {
		return m.plainStorage()
	}
	super = m.super.Contents()
	return super, map[string][]byte{"super": super}
}

// superIsTidy checks what is in super: partitions of the right sizes and contents,
// nothing else but COWs, and in either copy of the metadata the same.
func (m *machine) superIsTidy() {
	m.t.Helper()
	super, devices := m.storage()
	meta, err := lpmeta.Read(super, m.from)
	m.check(err)
	geometry, err := lpmeta.ReadGeometry(super)
	m.check(err)
	size := int(geometry.MetadataMaxSize)
	first, second := geometry.Offset(m.from, false), geometry.Offset(m.from, true)
	if !bytes.Equal(super[first:][:size], super[second:][:size]) {
		m.fatal("expected both copies of the metadata of slot %d to be one, found two", m.from)
	}
	found := map[string]bool{}
	for i := range meta.Partitions {
		p := &meta.Partitions[i]
		if meta.Groups[p.Group].Name == "cow" || p.Attributes&lpmeta.Disabled != 0 {
			continue
		}
		name := strings.TrimSuffix(p.Name, lpmeta.SuffixOf(m.from))
		var body []byte
		for _, l := range meta.Table(p) {
			device := meta.BlockDevices[l.Device].Name
			if m.plain != nil && device != name {
				m.fatal("expected partition %s on its own device, found %v", p.Name, meta.Table(p))
			}
			body = append(body, devices[device][l.Data*512:][:l.Length*512]...)
		}
		if !bytes.Equal(body, m.old.parts[name]) {
			m.fatal("super: expected partition %s of %d bytes, found one of %d that differs at %d", p.Name, len(m.old.parts[name]), len(body), differ(body, m.old.parts[name]))
		}
		found[name] = true
	}
	if want := slices.Sorted(maps.Keys(m.old.parts)); !reflect.DeepEqual(slices.Sorted(maps.Keys(found)), want) {
		m.fatal("super: expected the partitions %q, found %v", want, found)
	}
}

// offer makes a payload and says where it is served.
func (m *machine) offer(o *offer) (words []string) {
	m.t.Helper()
	body, err := o.payload()
	m.check(err)
	name := fmt.Sprintf("%s-%d.bin", strings.ReplaceAll(m.t.Name(), "/", "-"), m.bootCount)
	m.check(os.WriteFile(filepath.Join(m.dir, "payloads", name), body, 0o644))
	m.t.Cleanup(func() { _ = os.Remove(filepath.Join(m.dir, "payloads", name)) })
	m.next = o.to
	return []string{"lab.payload=" + name}
}
