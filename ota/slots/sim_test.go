package slots

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"cowbird/formats/grubenv"
	"cowbird/formats/ubootenv"
)

// The boot loaders here are simulated from what theirs do, by their bytes, and share no
// code with the backends beyond the codecs of environments.

// bootloader boots once: it counts, and returns the slot; -1 is none.
type bootloader func(d disk) int

const (
	miscPath  = "/misc"
	grubPath  = "/boot/grubenv"
	entryDir  = "/efi/loader/entries"
	mergePath = "/efi/loader/cowbird.merge"
)

// bootMisc is U-Boot's A/B selection.
func bootMisc(backup int64) bootloader {
	return func(d disk) int {
		b, spare := make([]byte, 32), make([]byte, 32)
		must(d.readAt(miscPath, b, 2048))
		if backup != 0 {
			must(d.readAt(miscPath, spare, 2048+backup))
		}
		switch {
		case sound(b):
		case backup != 0 && sound(spare):
			copy(b, spare)
		default:
			copy(b, []byte{'a', 0, 0, 0, 0x42, 0x43, 0x41, 0x42, 1, 2, 0, 0, 0x7f, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		}
		slot := pick(b)
		if slot >= 0 {
			if b[12+2*slot]&0x80 == 0 {
				b[12+2*slot] -= 0x10
			}
			copy(b, []byte{byte('a' + slot), 0, 0, 0})
		}
		binary.LittleEndian.PutUint32(b[28:], crc32.ChecksumIEEE(b[:28]))
		must(d.writeAt(miscPath, b, 2048))
		if backup != 0 {
			must(d.writeAt(miscPath, b, 2048+backup))
		}
		return slot
	}
}

func sound(b []byte) bool { return binary.LittleEndian.Uint32(b[28:]) == crc32.ChecksumIEEE(b[:28]) }

func pick(b []byte) int {
	best, rank := -1, -1
	for i := range int(b[9] & 7) {
		s, tries := b[12+2*i], int(b[12+2*i]>>4&7)
		if r := int(s&15)<<8 | int(s&0x80) | tries; tries > 0 && b[13+2*i]&1 == 0 && r > rank {
			best, rank = i, r
		}
	}
	return best
}

// environment is U-Boot's, which saves to the copy that it did not load.
type environment struct {
	copies   []Copy
	size     int
	env      *ubootenv.Env
	which    int
	defaults map[string]string // what it was built with
}

func (e *environment) load(d disk) {
	var b [2][]byte
	for i, c := range e.copies {
		b[i] = make([]byte, e.size)
		must(d.readAt(c.Path, b[i], c.Offset))
	}
	var err error
	if len(e.copies) == 2 {
		e.env, e.which, err = ubootenv.Choose(b[0], b[1])
	} else {
		e.env, err = ubootenv.Parse(b[0], false)
	}
	if err != nil {
		e.env = &ubootenv.Env{Size: e.size, Redundant: len(e.copies) == 2}
		for k, v := range e.defaults {
			must(e.env.Set(k, v))
		}
	}
}

func (e *environment) save(d disk) {
	n := e.env.Next()
	b, err := n.Marshal()
	must(err)
	c := e.copies[(e.which+1)%len(e.copies)]
	must(d.writeAt(c.Path, b, c.Offset))
}

func (e *environment) get(name, otherwise string) string {
	if v, found := e.env.Get(name); found {
		return v
	}
	return otherwise
}

// bootOrder is a script with BOOT_ORDER and BOOT_x_LEFT.
func bootOrder(e *environment) bootloader {
	return func(d disk) int {
		e.load(d)
		for _, name := range strings.Fields(e.get("BOOT_ORDER", "A B")) {
			left, err := strconv.Atoi(e.get("BOOT_"+name+"_LEFT", "3"))
			if err != nil || left <= 0 {
				continue
			}
			must(e.env.Set("BOOT_"+name+"_LEFT", strconv.Itoa(left-1)))
			e.save(d)
			return int(name[0] - 'A')
		}
		must(errors.Join(e.env.Set("BOOT_A_LEFT", "3"), e.env.Set("BOOT_B_LEFT", "3")))
		e.save(d)
		return -1
	}
}

// bootCounted is bootcount, with an altbootcmd that goes back to the other slot.
func bootCounted(e *environment) bootloader {
	return func(d disk) int {
		e.load(d)
		slot := int(e.get("boot_slot", "A")[0] - 'A')
		if e.get("upgrade_available", "0") != "1" {
			return slot
		}
		count, _ := strconv.Atoi(e.get("bootcount", "0"))
		limit, _ := strconv.Atoi(e.get("bootlimit", "0"))
		count++
		if limit > 0 && count > limit {
			slot, count = 1-slot, 0
			must(errors.Join(e.env.Set("boot_slot", string(rune('A'+slot))), e.env.Set("upgrade_available", "0")))
		}
		must(e.env.Set("bootcount", strconv.Itoa(count)))
		e.save(d)
		return slot
	}
}

// bootGrub is a script with ORDER, x_OK and x_TRY, which overwrites the block in place.
func bootGrub(d disk) int {
	b := make([]byte, grubenv.Size)
	must(d.readAt(grubPath, b, 0))
	e, err := grubenv.Parse(b)
	must(err)
	get := func(name string) string { v, _ := e.Get(name); return v }
	slot := -1
	for _, name := range strings.Fields(get("ORDER")) {
		ok, try := get(name+"_OK"), get(name+"_TRY")
		must(e.Set(name+"_TRY", "1"))
		if ok == "1" && try == "0" {
			slot = int(name[0] - 'A')
			break
		}
	}
	for _, name := range []string{"A", "B"} {
		if slot < 0 && get(name+"_OK") == "1" {
			must(e.Set(name+"_TRY", "0"))
		}
	}
	b, err = e.Marshal()
	must(err)
	must(d.writeAt(grubPath, b, 0))
	return slot
}

var entryName = regexp.MustCompile(`^cowbird-(\d+)-([ab])(?:\+(\d+)(?:-(\d+))?)?\.conf$`)

// bootEntries is systemd-boot with "default cowbird-*".
func bootEntries(d disk) int {
	names, err := d.list(entryDir)
	must(err)
	var best []string
	for _, n := range names {
		if m := entryName.FindStringSubmatch(n); m != nil && (best == nil || entryBefore(m, best)) {
			best = m
		}
	}
	if left, done := atoi(best[3]), atoi(best[4]); best[3] != "" && left > 0 {
		must(d.rename(entryDir, best[0], fmt.Sprintf("cowbird-%s-%s+%d-%d.conf", best[1], best[2], left-1, done+1)))
	}
	return int(best[2][0] - 'a')
}

func entryBefore(a, b []string) bool {
	bad := func(m []string) bool { return m[3] != "" && atoi(m[3]) == 0 }
	if bad(a) != bad(b) {
		return bad(b)
	}
	if a[1] != b[1] {
		return atoi(a[1]) > atoi(b[1])
	}
	return a[2] > b[2]
}

func atoi(s string) int { n, _ := strconv.Atoi(s); return n }

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// rig is a machine: its storage as it leaves the factory, slot a running for good.
type rig struct {
	name   string
	config Config
	files  map[string][]byte
	boot   bootloader
	tries  int
	// counts: each boot is counted, also of a slot that was successful.
	counts bool
	// atomic: a torn write changes nothing.
	atomic bool
}

func rigs() []rig {
	one := []Copy{{Path: "/env", Offset: 4096}}
	two := []Copy{{Path: "/env", Offset: 0}, {Path: "/env2", Offset: 512}}
	fresh := factoryMisc(true)
	return []rig{
		{"misc", Config{Misc: &Misc{Path: miscPath}}, fresh, bootMisc(0), 6, false, false},
		{"misc, blank", Config{Misc: &Misc{Path: miscPath}}, factoryMisc(false), bootMisc(0), 6, false, false},
		{"misc with backup", Config{Misc: &Misc{Path: miscPath, Backup: 1024}}, fresh, bootMisc(1024), 6, false, true},
		{"U-Boot, one copy", Config{UBoot: &UBoot{Copies: one, Size: 1024}}, factoryEnv(one, nil), bootOrder(&environment{copies: one, size: 1024}), 3, true, false},
		{"U-Boot, two copies", Config{UBoot: &UBoot{Copies: two, Size: 1024}}, factoryEnv(two, nil), bootOrder(&environment{copies: two, size: 1024}), 3, true, true},
		{"U-Boot, bootcount", Config{UBoot: &UBoot{Copies: two, Size: 1024, Scheme: "bootcount"}}, factoryEnv(two, map[string]string{"bootlimit": "3"}),
			bootCounted(&environment{copies: two, size: 1024}), 3, false, true},
		{"GRUB", Config{Grub: &Grub{Path: grubPath}}, factoryGrub(), bootGrub, 1, true, true},
		{"entries", Config{Entries: &Entries{Dir: entryDir}}, factoryEntries("cowbird-9-a.conf", "cowbird-8-b+0.conf"), bootEntries, 3, false, true},
		{"entries, same numbers", Config{Entries: &Entries{Dir: entryDir}}, factoryEntries("cowbird-9-a.conf", "cowbird-9-b+0.conf"), bootEntries, 3, false, true},
	}
}

func factoryMisc(made bool) map[string][]byte {
	b := bytes.Repeat([]byte{0}, 64<<10)
	copy(b, "boot-recovery\x00")
	copy(b[40000:], "vendor")
	if made {
		copy(b[2048:], []byte{'_', 'a', 0, 0, 0x42, 0x43, 0x41, 0x42, 1, 2, 0, 0, 0x9f, 0, 0, 0})
		binary.LittleEndian.PutUint32(b[2048+28:], crc32.ChecksumIEEE(b[2048:2048+28]))
	}
	return map[string][]byte{miscPath: b}
}

func factoryEnv(copies []Copy, more map[string]string) map[string][]byte {
	files := map[string][]byte{}
	e := &ubootenv.Env{Size: 1024, Redundant: len(copies) == 2}
	must(e.Set("bootcmd", "run scan"))
	for k, v := range more {
		must(e.Set(k, v))
	}
	b, err := e.Marshal()
	must(err)
	for _, c := range copies {
		files[c.Path] = append(bytes.Repeat([]byte{0xee}, int(c.Offset)), append(b, 0xee)...)
	}
	return files
}

func factoryGrub() map[string][]byte {
	e := grubenv.New()
	for _, v := range []string{"ORDER=A B", "A_OK=1", "A_TRY=0", "B_OK=0", "B_TRY=0", "saved_entry=x"} {
		name, value, _ := strings.Cut(v, "=")
		must(e.Set(name, value))
	}
	b, err := e.Marshal()
	must(err)
	return map[string][]byte{grubPath: b}
}

func factoryEntries(ours ...string) map[string][]byte {
	files := map[string][]byte{}
	for _, n := range append(ours, "zz.conf", "cowbird-x-a.conf", "cowbird-10-c.conf", "notes.txt") {
		files[path.Join(entryDir, n)] = []byte("title " + n + "\n")
	}
	return files
}

// memDisk is storage in memory, whose power can be cut at any change.
type memDisk struct {
	files  map[string][]byte
	points int // changes so far
	cut    int // at which change the power goes; 0 is never
	how    int // what has become of it then
	dead   bool
}

// How a change ends when the power goes: not at all, wholly, or torn, in so many ways.
const (
	cutBefore = iota
	cutAfter
	cutTorn
	cutWays = cutTorn + 6
)

var errCut = errors.New("power cut")

func newDisk(files map[string][]byte) *memDisk {
	d := &memDisk{files: map[string][]byte{}}
	for name, b := range files {
		d.files[name] = bytes.Clone(b)
	}
	return d
}

// point does a change, or that part of it which the cut lets through.
func (d *memDisk) point(whole func(), torn func(way int)) error {
	if d.dead {
		return errCut
	}
	if d.points++; d.points != d.cut {
		whole()
		return nil
	}
	d.dead = true
	switch {
	case d.how == cutAfter:
		whole()
	case d.how >= cutTorn && torn != nil:
		torn(d.how - cutTorn)
	}
	return errCut
}

func (d *memDisk) readAt(name string, b []byte, at int64) error {
	all, found := d.files[name]
	if !found {
		return fs.ErrNotExist
	}
	if at+int64(len(b)) > int64(len(all)) {
		return io.ErrUnexpectedEOF
	}
	copy(b, all[at:])
	return nil
}

func (d *memDisk) readFile(name string, limit int) ([]byte, error) {
	b, found := d.files[name]
	if !found || len(b) > limit {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(b), nil
}

func (d *memDisk) list(dir string) (names []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		if path.Dir(name) == dir {
			names = append(names, path.Base(name))
		}
	}
	return names, nil
}

// writeAt is torn at one of the bytes that it changes: the first ones after which there is
// another, in the middle, or the last; and only what comes before that is written, or
// only what comes behind.
func (d *memDisk) writeAt(name string, b []byte, at int64) error {
	to, found := d.files[name]
	if !found || at+int64(len(b)) > int64(len(to)) {
		return fs.ErrNotExist
	}
	to = to[at : at+int64(len(b))]
	return d.point(func() { copy(to, b) }, func(way int) {
		var changed []int
		for i := range b {
			if b[i] != to[i] {
				changed = append(changed, i)
			}
		}
		n := changed[[]int{min(1, len(changed)-1), len(changed) / 2, len(changed) - 1}[way%3]]
		if way < 3 {
			copy(to, b[:n])
		} else {
			copy(to[n:], b[n:])
		}
	})
}

func (d *memDisk) replace(name string, b []byte) error {
	return d.point(func() { d.files[name] = bytes.Clone(b) }, func(int) { d.files[name+".tmp"] = b[:len(b)/2] })
}

// rename may leave both names, as on a FAT.
func (d *memDisk) rename(dir, from, to string) error {
	from, to = path.Join(dir, from), path.Join(dir, to)
	b, found := d.files[from]
	if !found {
		return fs.ErrNotExist
	}
	return d.point(func() { delete(d.files, from); d.files[to] = b }, func(int) { d.files[to] = b })
}

func (d *memDisk) remove(dir, name string) error {
	return d.point(func() { delete(d.files, path.Join(dir, name)) }, nil)
}

// rooted is real storage below a folder.
type rooted struct {
	osDisk
	root string
}

func (r rooted) at(name string) string { return filepath.Join(r.root, name) }
func (r rooted) readAt(name string, b []byte, at int64) error {
	return r.osDisk.readAt(r.at(name), b, at)
}
func (r rooted) readFile(name string, limit int) ([]byte, error) {
	return r.osDisk.readFile(r.at(name), limit)
}
func (r rooted) list(dir string) ([]string, error) { return r.osDisk.list(r.at(dir)) }
func (r rooted) writeAt(name string, b []byte, at int64) error {
	return r.osDisk.writeAt(r.at(name), b, at)
}
func (r rooted) replace(name string, b []byte) error { return r.osDisk.replace(r.at(name), b) }
func (r rooted) rename(dir, from, to string) error   { return r.osDisk.rename(r.at(dir), from, to) }
func (r rooted) remove(dir, name string) error       { return r.osDisk.remove(r.at(dir), name) }
