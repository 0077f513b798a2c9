package slots

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cowbird/formats/bootctl"
)

// machine is a rig that boots. Its systems are told by the kernel which slot they are.
type machine struct {
	rig
	t    *testing.T
	disk disk
	told func(cmdline string)
}

func inMemory(t *testing.T, r rig) (*machine, *memDisk) {
	d := newDisk(r.files)
	return &machine{r, t, d, func(line string) { d.files["/proc/cmdline"] = []byte(line) }}, d
}

func onFiles(t *testing.T, r rig) *machine {
	root := t.TempDir()
	write := func(name string, b []byte) {
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range r.files {
		write(name, b)
	}
	return &machine{r, t, rooted{root: root}, func(line string) { write("/proc/cmdline", []byte(line)) }}
}

func (m *machine) open() Slots {
	s, err := open(&m.config, m.disk)
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

// up boots once and checks which slot.
func (m *machine) up(want int) Slots {
	m.t.Helper()
	got := m.boot(m.disk)
	if got != want {
		m.t.Fatalf("expected slot %d to boot, found %d", want, got)
	}
	m.told(fmt.Sprintf("quiet androidboot.slot_suffix=%s ro\n", bootctl.Suffix(got)))
	return m.open()
}

func (m *machine) do(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// is checks everything that can be asked of slots.
func (m *machine) is(active int, bootable, successful [2]bool) {
	m.t.Helper()
	s := m.open()
	if got, err := s.Active(); err != nil || got != active {
		m.t.Fatalf("expected active slot %d, found %d, %v", active, got, err)
	}
	for slot := range 2 {
		if got, err := s.IsBootable(slot); err != nil || got != bootable[slot] {
			m.t.Fatalf("slot %d: expected bootable %v, found %v, %v", slot, bootable[slot], got, err)
		}
		if got, err := s.IsSuccessful(slot); err != nil || got != successful[slot] {
			m.t.Fatalf("slot %d: expected successful %v, found %v, %v", slot, successful[slot], got, err)
		}
	}
}

func (m *machine) merge(want bootctl.MergeStatus) {
	m.t.Helper()
	if got, err := m.open().MergeStatus(); err != nil || got != want {
		m.t.Fatalf("expected merge status %v, found %v, %v", want, got, err)
	}
}

// first boots slot a and starts an update of b.
func (m *machine) first() Slots {
	m.t.Helper()
	s := m.up(0)
	m.do(s.MarkSuccessful())
	m.do(s.SetUnbootable(1))
	return s
}

var both = [2]bool{true, true}

// All backends keep the same promises, in memory and on files.
func TestConformance(t *testing.T) {
	for _, r := range rigs() {
		for name, test := range map[string]func(*machine){
			"slots": testSlots, "fall back": testFallBack, "stay": testStay, "take back": testTakeBack, "go back": testGoBack, "merge": testMerge, "last": testLast,
			"others": testOthers, "mark late": testMarkLate, "trial goes on": testTrial,
		} {
			t.Run(r.name+"/"+name, func(t *testing.T) {
				m, _ := inMemory(t, r)
				test(m)
			})
			t.Run(r.name+"/"+name+"/files", func(t *testing.T) { test(onFiles(t, r)) })
		}
	}
}

func testSlots(m *machine) {
	s := m.first()
	if s.Count() != 2 || s.Suffix(0)+s.Suffix(1) != "_a_b" {
		m.t.Errorf("expected two slots _a and _b, found %d, %s, %s", s.Count(), s.Suffix(0), s.Suffix(1))
	}
	if slot, err := s.Current(); err != nil || slot != 0 {
		m.t.Errorf("expected slot 0 to run, found %d, %v", slot, err)
	}
	for _, slot := range []int{-1, 2} {
		_, err1 := s.IsBootable(slot)
		_, err2 := s.IsSuccessful(slot)
		for _, err := range []error{err1, err2, s.SetActive(slot), s.SetUnbootable(slot)} {
			if !errors.Is(err, ErrSlot) {
				m.t.Errorf("slot %d: expected %v, found %v", slot, ErrSlot, err)
			}
		}
	}
	if err := s.SetMergeStatus(9); !errors.Is(err, ErrState) {
		m.t.Errorf("expected %v, found %v", ErrState, err)
	}
	m.is(0, [2]bool{true, false}, [2]bool{true, false})
}

// An update that does not come up is tried as often as it may be, then a is back, for ever.
func testFallBack(m *machine) {
	s := m.first()
	m.do(s.SetActive(1))
	m.is(1, both, [2]bool{true, false})
	if slot, err := s.Current(); err != nil || slot != 0 {
		m.t.Fatalf("expected slot 0 to run on, found %d, %v", slot, err)
	}
	for range m.tries {
		m.up(1)
	}
	for range 3 {
		m.do(m.up(0).MarkSuccessful())
		m.is(0, [2]bool{true, false}, [2]bool{true, false})
	}
}

// An update that comes up at its last try stays.
func testStay(m *machine) {
	m.do(m.first().SetActive(1))
	for range m.tries - 1 {
		m.up(1)
	}
	m.do(m.up(1).MarkSuccessful())
	if ok, err := m.open().IsSuccessful(1); err != nil || !ok {
		m.t.Fatalf("expected b to be successful, found %v, %v", ok, err)
	}
	for range 10 {
		if s := m.up(1); m.counts {
			m.do(s.MarkSuccessful())
		}
	}
}

// An update that was made active is taken back before the reboot.
func testTakeBack(m *machine) {
	s := m.first()
	m.do(s.SetActive(1))
	m.do(s.SetActive(0))
	if ok, err := s.IsSuccessful(0); err != nil || !ok {
		m.t.Fatalf("expected a to stay successful, found %v, %v", ok, err)
	}
	m.do(s.SetUnbootable(1))
	m.is(0, [2]bool{true, false}, [2]bool{true, false})
	m.up(0)
}

// SNM-031: from the new system, unmerged, back to the old one.
func testGoBack(m *machine) {
	m.do(m.first().SetActive(1))
	s := m.up(1)
	m.do(s.SetActive(0))
	if active, err := s.Active(); err != nil || active != 0 {
		m.t.Fatalf("expected a to be active, found %d, %v", active, err)
	}
	m.do(m.up(0).MarkSuccessful())
	m.up(0)
}

// SNM-010: what the statuses of an update become on the way, and what they forbid.
func testMerge(m *machine) {
	s := m.first()
	m.merge(bootctl.MergeNone)
	m.do(s.SetMergeStatus(bootctl.MergeSnapshotted))
	m.merge(bootctl.MergeNone)
	m.do(s.SetActive(1))
	s = m.up(1)
	m.do(s.MarkSuccessful())
	m.merge(bootctl.MergeSnapshotted)
	m.do(s.SetMergeStatus(bootctl.Merging))
	m.merge(bootctl.Merging)
	if err := s.SetActive(0); !errors.Is(err, ErrMerging) {
		m.t.Errorf("expected %v, found %v", ErrMerging, err)
	}
	if err := s.SetUnbootable(1); !errors.Is(err, ErrMerging) {
		m.t.Errorf("expected %v, found %v", ErrMerging, err)
	}
	m.do(m.up(1).MarkSuccessful())
	m.merge(bootctl.Merging)
	m.do(s.SetActive(1))
	m.do(s.SetMergeStatus(bootctl.MergeNone))
	m.merge(bootctl.MergeNone)
	m.do(s.SetMergeStatus(bootctl.MergeCancelled))
	m.merge(bootctl.MergeCancelled)
	m.do(s.SetMergeStatus(bootctl.MergeNone))
	m.do(s.SetActive(0))
}

func testLast(m *machine) {
	s := m.first()
	if err := s.SetUnbootable(0); !errors.Is(err, ErrLast) {
		m.t.Errorf("expected %v, found %v", ErrLast, err)
	}
	m.is(0, [2]bool{true, false}, [2]bool{true, false})
	m.up(0)
}

// The old system, marked as successful after the new one was made active, leaves that.
func testMarkLate(m *machine) {
	s := m.first()
	m.do(s.SetActive(1))
	m.do(s.MarkSuccessful())
	m.is(1, both, [2]bool{true, false})
	m.up(1)
}

// What is not ours stays as it is.
func testOthers(m *machine) {
	s := m.first()
	m.do(s.SetActive(1))
	m.do(s.SetMergeStatus(bootctl.MergeSnapshotted))
	for name, want := range m.files {
		switch {
		case name == miscPath:
			b := make([]byte, len(want))
			m.do(m.disk.readAt(name, b, 0))
			if !bytes.Equal(b[:2048], want[:2048]) || !bytes.Equal(b[2080:3072], want[2080:3072]) || !bytes.Equal(b[32768+64:], want[32768+64:]) {
				m.t.Error("expected the rest of misc to stay")
			}
		case strings.HasPrefix(name, "/env"):
			e := &environment{copies: m.config.UBoot.Copies, size: m.config.UBoot.Size}
			if e.load(m.disk); e.get("bootcmd", "") != "run scan" {
				m.t.Error("expected other variables to stay")
			}
			b, err := m.disk.readFile(name, 1<<20)
			if err != nil || len(b) != len(want) || b[len(b)-1] != 0xee || b[0] != want[0] && want[0] == 0xee {
				m.t.Errorf("%s: expected what is around the environment to stay, found %v", name, err)
			}
		case name == grubPath:
			b, err := m.disk.readFile(name, 1<<20)
			if err != nil || len(b) != 1024 || !strings.Contains(string(b), "\nsaved_entry=x\n") {
				m.t.Errorf("expected other variables to stay, found %s, %v", b, err)
			}
		}
	}
	if m.config.Entries != nil {
		names, err := m.disk.list(entryDir)
		want := []string{"cowbird-10-b+3.conf", "cowbird-10-c.conf", "cowbird-9-a.conf", "cowbird-x-a.conf", "notes.txt", "zz.conf"}
		if err != nil || !slices.Equal(names, want) {
			m.t.Errorf("expected %q, found %q, %v", want, names, err)
		}
	}
}

// What is as asked already is not written again.
func TestNoNeedlessWrites(t *testing.T) {
	for _, r := range rigs() {
		t.Run(r.name, func(t *testing.T) {
			m, d := inMemory(t, r)
			for range 2 {
				m.first()
			}
			for _, f := range []func(Slots) error{
				Slots.MarkSuccessful, func(s Slots) error { return s.SetUnbootable(1) }, func(s Slots) error { return s.SetActive(1) },
				func(s Slots) error { return s.SetMergeStatus(bootctl.MergeSnapshotted) },
			} {
				m.do(f(m.open()))
				points, before := d.points, newDisk(d.files)
				m.do(f(m.open()))
				if d.points != points || !maps.EqualFunc(before.files, d.files, bytes.Equal) {
					t.Errorf("expected %d writes, found %d", points, d.points)
				}
			}
		})
	}
}

// A slot on trial that is made active again, while it runs, stays on trial.
func testTrial(m *machine) {
	m.do(m.first().SetActive(1))
	s := m.up(1)
	m.do(s.SetActive(1))
	m.is(1, both, [2]bool{true, false})
	for range m.tries {
		m.up(1)
	}
	m.up(0)
}
