package slots

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowbird/formats/bootctl"
	"cowbird/tools/fixture"
)

func miscRig(backup bool) rig {
	if backup {
		return rigs()[2]
	}
	return rigs()[0]
}

// Whoever does not know of the backup leaves it old. Then it is made new before the
// first copy is touched.
func TestBackup(t *testing.T) {
	r := miscRig(true)
	m, d := inMemory(t, r)
	m.first()
	other, err := open(&Config{Misc: &Misc{Path: miscPath}}, d)
	if err != nil {
		t.Fatal(err)
	}
	m.do(other.SetActive(1))
	for i, want := range []int{1, 1, 0} {
		cut := i + 1
		for how := cutTorn; how < cutWays; how++ {
			broken := newDisk(d.files)
			broken.cut, broken.how = cut, how
			l, err := open(&r.config, broken)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.SetActive(0); !errors.Is(err, errCut) {
				t.Fatalf("write %d: expected %v, found %v", cut, errCut, err)
			}
			active, err := l.Active()
			if err != nil || active != want {
				t.Errorf("write %d, way %d: expected slot %d to be active, found %d, %v", cut, how, want, active, err)
			}
		}
	}
	m.do(m.open().SetActive(0))
	if b := d.files[miscPath]; !bytes.Equal(b[2048:2080], b[3072:3104]) {
		t.Errorf("expected two equal copies, found %x and %x", b[2048:2080], b[3072:3104])
	}
}

// Both copies are broken, as is one without another: a system that runs takes itself for
// good, and writes a whole block at the next change.
func TestBrokenControl(t *testing.T) {
	for _, backup := range []bool{false, true} {
		m, d := inMemory(t, miscRig(backup))
		m.first()
		d.files[miscPath][2050] ^= 1
		d.files[miscPath][3074] ^= 1
		m.is(0, both, [2]bool{true, false})
		m.do(m.open().SetUnbootable(1))
		m.is(0, [2]bool{true, false}, [2]bool{true, false})
		m.up(0)
	}
}

// What is whole, but not understood, is not overwritten.
func TestForeignControl(t *testing.T) {
	for name, change := range map[string]func(b []byte){
		"three slots": func(b []byte) { b[9] = 3 },
		"version 2":   func(b []byte) { b[8] = 2 },
		"other magic": func(b []byte) { b[4] = 'X' },
	} {
		m, d := inMemory(t, miscRig(false))
		m.first()
		b := d.files[miscPath][2048:2080]
		change(b)
		binary.LittleEndian.PutUint32(b[28:], crc32.ChecksumIEEE(b[:28]))
		before := bytes.Clone(d.files[miscPath])
		if err := m.open().SetActive(1); !errors.Is(err, ErrState) || !bytes.Equal(d.files[miscPath], before) {
			t.Errorf("%s: expected %v and nothing written, found %v", name, ErrState, err)
		}
	}
}

// SNM-010: what an old or a strange message says.
func TestMergeMessage(t *testing.T) {
	m, d := inMemory(t, miscRig(false))
	m.first()
	at := d.files[miscPath][32768:]
	copy(at, []byte{1, 0xb0, 0x0a, 0x74, 0x56, 2, 0})
	m.merge(bootctl.MergeSnapshotted)
	at[63] = 9
	m.do(m.open().SetMergeStatus(bootctl.MergeSnapshotted))
	if m.merge(bootctl.MergeNone); at[0] != 2 || at[63] != 9 {
		t.Errorf("expected version 2 and what else there was, found %x", at[:64])
	}
	at[1] = 0
	m.merge(bootctl.MergeUnknown)
	m.do(m.open().SetMergeStatus(bootctl.MergeNone))
	m.merge(bootctl.MergeNone)
}

// A misc partition of old devices has no room for the message.
func TestSmallMisc(t *testing.T) {
	m, d := inMemory(t, miscRig(false))
	d.files[miscPath] = d.files[miscPath][:4096]
	s := m.first()
	m.merge(bootctl.MergeNone)
	if err := s.SetMergeStatus(bootctl.Merging); !errors.Is(err, ErrState) {
		t.Errorf("expected %v, found %v", ErrState, err)
	}
	m.do(s.SetActive(1))
	d.files[miscPath] = d.files[miscPath][:2050]
	if _, err := s.Active(); err == nil {
		t.Error("expected an error, found none")
	}
}

// The backend works on a block device as on a file.
func TestBlockDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	file := filepath.Join(t.TempDir(), "misc")
	if err := os.WriteFile(file, factoryMisc(true)[miscPath], 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		fixture.Missing(t, "losetup: %v", err)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", loop).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v\n%s", err, out)
		}
	})
	s, err := Open(&Config{Misc: &Misc{Path: loop}, Current: "_a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.MarkSuccessful(), s.SetActive(1), s.SetMergeStatus(bootctl.Merging)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c, err := bootctl.ParseControl(b[bootctl.ControlOffset:])
	if next, _ := c.Next(); err != nil || next != 1 || !c.IsSuccessful(0) || b[bootctl.VirtualABOffset+5] != byte(bootctl.Merging) {
		t.Errorf("expected slot 1 to be active, found %+v, %v", c, err)
	}
}
