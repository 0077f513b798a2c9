package slots

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowbird/formats/bootctl"
	"cowbird/tools/fixture"
)

func tool(t *testing.T, name, debian string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		fixture.Missing(t, "%s is not installed (Debian: %s)", name, debian)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// update is what every update does.
func update(t *testing.T, c Config) {
	t.Helper()
	c.Current = "_a"
	s, err := Open(&c)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.MarkSuccessful(), s.SetUnbootable(1), s.SetMergeStatus(bootctl.MergeSnapshotted), s.SetActive(1)); err != nil {
		t.Fatal(err)
	}
}

// What is written is what U-Boot's own tools read.
func TestFwPrintenv(t *testing.T) {
	dir := t.TempDir()
	text, lines := filepath.Join(dir, "text"), ""
	if err := os.WriteFile(text, []byte("bootcmd=run x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	u := UBoot{Size: 4096}
	for _, name := range []string{"one", "two"} {
		file := filepath.Join(dir, name)
		tool(t, "mkenvimage", "u-boot-tools", "-r", "-s", "4096", "-o", file, text)
		u.Copies = append(u.Copies, Copy{Path: file})
		lines += file + " 0x0 0x1000\n"
	}
	update(t, Config{UBoot: &u})
	config := filepath.Join(dir, "fw_env.config")
	if err := os.WriteFile(config, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	got := tool(t, "fw_printenv", "libubootenv-tool", "-c", config)
	for _, want := range []string{"bootcmd=run x", "BOOT_ORDER=B A", "BOOT_A_LEFT=3", "BOOT_A_GOOD=1", "BOOT_B_LEFT=3", "cowbird_merge=snapshotted 0"} {
		if !strings.Contains("\n"+got, "\n"+want+"\n") {
			t.Errorf("expected %s, found\n%s", want, got)
		}
	}
}

// What is written is what GRUB's own tool reads.
func TestGrubEditenv(t *testing.T) {
	file := filepath.Join(t.TempDir(), "grubenv")
	tool(t, "grub-editenv", "grub-common", file, "create")
	tool(t, "grub-editenv", "grub-common", file, "set", "saved_entry=x")
	link := file + "-link"
	if err := os.Symlink("grubenv", link); err != nil {
		t.Fatal(err)
	}
	update(t, Config{Grub: &Grub{Path: link}})
	if to, err := os.Readlink(link); err != nil || to != "grubenv" {
		t.Errorf("expected the link to stay, found %q, %v", to, err)
	}
	got := tool(t, "grub-editenv", "grub-common", file, "list")
	if want := "saved_entry=x\nA_OK=1\nA_TRY=0\nA_GOOD=1\nB_OK=1\nB_TRY=0\nB_GOOD=0\ncowbird_merge=snapshotted 0\nORDER=B A\n"; got != want {
		t.Errorf("expected\n%s, found\n%s", want, got)
	}
}

// The order of entries is systemd's own.
func TestEntryOrder(t *testing.T) {
	e := &entries{config: (&Config{Entries: &Entries{Dir: "/"}}).filled()}
	names := []string{"cowbird-0-a", "cowbird-0-b", "cowbird-8-b", "cowbird-9-a", "cowbird-10-a", "cowbird-99-b", "cowbird-100-a", "cowbird-9223372036854775807-b"}
	for i, low := range names {
		for _, high := range names[i+1:] {
			_, a, ok := e.parse(low + ".conf")
			_, b, ok2 := e.parse(high + ".conf")
			if !ok || !ok2 || compare(b, a) >= 0 || compare(a, b) <= 0 {
				t.Errorf("expected %s before %s", high, low)
			}
			if got := tool(t, "systemd-analyze", "systemd", "compare-versions", high, "gt", low); got != "" {
				t.Errorf("%s, %s: %s", high, low, got)
			}
		}
	}
}

// Many updates, one after the other, with every rig: the slots change places.
func TestManyUpdates(t *testing.T) {
	for _, r := range rigs() {
		t.Run(r.name, func(t *testing.T) {
			m, _ := inMemory(t, r)
			s := m.first()
			for i := range 12 {
				old, now := i%2, 1-i%2
				m.do(errors.Join(s.SetUnbootable(now), s.SetMergeStatus(bootctl.MergeSnapshotted), s.SetActive(now)))
				s = m.up(now)
				m.do(errors.Join(s.MarkSuccessful(), s.SetMergeStatus(bootctl.Merging), s.SetUnbootable(old), s.SetMergeStatus(bootctl.MergeNone)))
				if active, err := s.Active(); err != nil || active != now {
					t.Fatalf("update %d: expected slot %d, found %d, %v", i, now, active, err)
				}
			}
			m.merge(bootctl.MergeNone)
			if r.config.Entries != nil {
				names, _ := m.disk.list(entryDir)
				if !strings.Contains(fmt.Sprint(names), "cowbird-21-a.conf") {
					t.Errorf("expected one number an update, found %q", names)
				}
			}
		})
	}
}
