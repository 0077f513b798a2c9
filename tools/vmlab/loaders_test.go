//go:build vmhost

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowbird/formats/grubenv"
	"cowbird/formats/loaderentry"
	"cowbird/formats/ubootenv"
	"cowbird/tools/vmlab/volatile"
)

// A bootLoader is one that is not of phones: what the device's configuration says of it,
// what it has from the factory, with slot a running, and how it boots once, which is -1 if
// it has to begin anew.
type bootLoader struct {
	slots string // JSON
	setUp func(m *machine)
	boot  func(m *machine) int
}

const (
	grubFile   = "grubenv"
	entriesDir = "loader/entries"
)

var bootLoaders = map[string]bootLoader{
	"uboot": uboot(`{"uboot": {"size": 16384, "copies": [{"path": "/run/block/misc"}, {"path": "/run/block/misc", "offset": 16384}]}}`),
	"grub":  {`{"grub": {"path": "/run/metadata/` + grubFile + `"}}`, setUpGrub, bootGrub},
	"pc":    {`{"entries": {"dir": "/run/metadata/` + entriesDir + `"}}`, setUpEntries, bootEntries},
}

// config is a device's, with another boot loader.
func (l bootLoader) config() string {
	var c map[string]any
	_ = json.Unmarshal([]byte(deviceConfig(0)), &c)
	c["slots"] = json.RawMessage(l.slots)
	b, _ := json.Marshal(c)
	return string(b)
}

// choose boots, or begins anew.
func (l bootLoader) choose(m *machine) int {
	m.t.Helper()
	for range 3 {
		if slot := l.boot(m); slot >= 0 {
			return slot
		}
	}
	m.fatal("expected the boot loader to find a slot, found none")
	return -1
}

// TestBootLoaders has a device of each boot loader live through an update, with power
// cuts while it is written and merged, and then through one that never proves good,
// which the boot loader has to leave.
func TestBootLoaders(t *testing.T) {
	w := newWorkshop(t)
	for name, l := range bootLoaders {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, w, chance(9), w.make(0, 0, 0), 24<<20)
			m.loader, m.config = &l, name+".json"
			m.check(os.WriteFile(filepath.Join(m.dir, m.config), []byte(l.config()), 0o644))
			l.setUp(m)
			m.liveWithLoader()
		})
	}
}

// liveWithLoader is one such life.
func (m *machine) liveWithLoader() {
	m.t.Helper()
	words := m.offer(&offer{from: m.old, to: m.make(1, 1, 1), version: 3, codec: "lz4"})
	m.boot(cut{flush: 40, loss: volatile.LoseSectors}, append(words, "lab.do=install")...)
	m.went(m.boot(cut{}, append(words, "lab.do=install")...))
	m.boot(cut{said: "merge begins", loss: volatile.LoseAll}, "lab.do=merge")
	m.isOver(m.boot(cut{}, "lab.do=merge"))
	m.isOver(m.boot(cut{}, "lab.do=nothing"))

	was := m.old
	words = m.offer(&offer{from: m.old, to: m.make(2, 0, -1), version: 3, codec: "lz4"})
	m.went(m.boot(cut{}, append(words, "lab.do=install")...))
	for boots := 0; ; boots++ {
		o := m.boot(cut{}, "lab.do=merge,bad")
		m.went(o)
		if o.slot == m.from {
			if boots == 0 {
				m.fatal("expected the new system to be tried, found that it was not")
			}
			break
		}
		if boots == 8 {
			m.fatal("expected the boot loader to leave a system that does not prove good, found that it did not")
		}
	}
	m.next = nil
	m.isOver(m.boot(cut{}, "lab.do=merge"))
	if m.old != was {
		m.fatal("expected the system from before")
	}
}

// ubootPlace is where the two copies of the environment are on the disk misc.
type ubootPlace struct {
	Size   int `json:"size"`
	Copies []struct {
		Offset int64 `json:"offset"`
	} `json:"copies"`
}

func ubootPlaceOf(slots string) ubootPlace {
	var c struct {
		UBoot ubootPlace `json:"uboot"`
	}
	_ = json.Unmarshal([]byte(slots), &c)
	return c.UBoot
}

// end is how large misc has to be, bytes.
func (p ubootPlace) end() (n int64) {
	for _, c := range p.Copies {
		n = max(n, c.Offset+int64(p.Size))
	}
	return n
}

func uboot(slots string) bootLoader {
	p := ubootPlaceOf(slots)
	return bootLoader{slots, p.setUp, p.boot}
}

func (p ubootPlace) setUp(m *machine) {
	if len(p.Copies) != 2 {
		m.fatal("expected two copies of U-Boot's environment, found %d", len(p.Copies))
	}
	e := &ubootenv.Env{Size: p.Size, Redundant: true}
	m.check(e.Set("bootcmd", "run scan"))
	b, err := e.Marshal()
	m.check(err)
	for _, c := range p.Copies {
		m.misc.Put(b, c.Offset)
	}
}

// boot is a script with BOOT_ORDER and BOOT_x_LEFT, and two copies of the environment.
func (p ubootPlace) boot(m *machine) int {
	block := m.misc.Contents()
	e, which, err := ubootenv.Choose(block[p.Copies[0].Offset:][:p.Size], block[p.Copies[1].Offset:][:p.Size])
	m.check(err)
	get := func(name, otherwise string) string {
		if v, ok := e.Get(name); ok {
			return v
		}
		return otherwise
	}
	slot := -1
	for _, name := range strings.Fields(get("BOOT_ORDER", "A B")) {
		if left, _ := strconv.Atoi(get("BOOT_"+name+"_LEFT", "3")); left > 0 {
			m.check(e.Set("BOOT_"+name+"_LEFT", strconv.Itoa(left-1)))
			slot = int(name[0] - 'A')
			break
		}
	}
	b, err := e.Next().Marshal()
	m.check(err)
	m.misc.Put(b, p.Copies[1-which].Offset)
	return slot
}

// inMetadata does something with the file system of the metadata, as a boot loader that
// can read and write it.
func (m *machine) inMetadata(do func(dir string)) {
	m.t.Helper()
	b := &board{t: m.t, dir: m.t.TempDir()}
	b.check(os.WriteFile(b.path("disk"), m.metadata.Contents(), 0o600))
	dir := b.path("mnt")
	b.check(os.Mkdir(dir, 0o755))
	device := strings.TrimSpace(b.run("", "losetup", "--find", "--show", b.path("disk")))
	defer b.run("", "losetup", "--detach", device)
	b.check(unix.Mount(device, dir, "ext4", 0, ""))
	do(dir)
	b.check(unix.Unmount(dir, 0))
	body, err := os.ReadFile(b.path("disk"))
	b.check(err)
	m.metadata.Put(body, 0)
}

func setUpGrub(m *machine) {
	e := grubenv.New()
	for _, v := range []string{"ORDER=A B", "A_OK=1", "A_TRY=0", "B_OK=0", "B_TRY=0"} {
		name, value, _ := strings.Cut(v, "=")
		m.check(e.Set(name, value))
	}
	b, err := e.Marshal()
	m.check(err)
	m.inMetadata(func(dir string) { m.check(os.WriteFile(filepath.Join(dir, grubFile), b, 0o600)) })
}

// bootGrub is a script with ORDER, x_OK and x_TRY, which overwrites the block in place.
func bootGrub(m *machine) (slot int) {
	m.inMetadata(func(dir string) {
		path := filepath.Join(dir, grubFile)
		b, err := os.ReadFile(path)
		m.check(err)
		e, err := grubenv.Parse(b)
		m.check(err)
		slot = tryGrub(m, e)
		b, err = e.Marshal()
		m.check(err)
		m.check(os.WriteFile(path, b, 0o600))
	})
	return slot
}

func tryGrub(m *machine, e *grubenv.Env) int {
	get := func(name string) string { v, _ := e.Get(name); return v }
	for _, name := range strings.Fields(get("ORDER")) {
		ok, try := get(name+"_OK"), get(name+"_TRY")
		m.check(e.Set(name+"_TRY", "1"))
		if ok == "1" && try == "0" {
			return int(name[0] - 'A')
		}
	}
	for _, name := range []string{"A", "B"} {
		if get(name+"_OK") == "1" {
			m.check(e.Set(name+"_TRY", "0"))
		}
	}
	return -1
}

func setUpEntries(m *machine) {
	m.inMetadata(func(dir string) {
		dir = filepath.Join(dir, entriesDir)
		m.check(os.MkdirAll(dir, 0o755))
		for _, name := range []string{"cowbird-2-a.conf", "cowbird-1-b+0.conf", "other.conf"} {
			m.check(os.WriteFile(filepath.Join(dir, name), []byte("title "+name+"\n"), 0o644))
		}
	})
}

// bootEntries is systemd-boot with "default cowbird-*": the first that is not bad by number,
// whose counter it changes.
func bootEntries(m *machine) (slot int) {
	m.inMetadata(func(dir string) {
		dir = filepath.Join(dir, entriesDir)
		files, err := os.ReadDir(dir)
		m.check(err)
		var names []loaderentry.Name
		for _, f := range files {
			if n, err := loaderentry.Parse(f.Name()); err == nil && strings.HasPrefix(f.Name(), "cowbird-") {
				names = append(names, n)
			}
		}
		slices.SortFunc(names, func(a, b loaderentry.Name) int {
			if a.Bad() != b.Bad() {
				return map[bool]int{true: 1, false: -1}[a.Bad()]
			}
			return strings.Compare(b.String(), a.String())
		})
		n := names[0]
		m.check(os.Rename(filepath.Join(dir, n.String()), filepath.Join(dir, n.Booted().String())))
		slot = int(n.ID[len(n.ID)-1] - 'a')
	})
	return slot
}
