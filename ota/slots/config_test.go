package slots

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowbird/formats/bootctl"
)

func TestConfig(t *testing.T) {
	for text, want := range map[string]string{ // the path that it comes to
		`{"misc": {"path": "misc"}}`:                                                               "/etc/misc",
		`{"misc": {"path": "/dev/misc", "backup": 32}, "count": 4}`:                                "/dev/misc",
		`{"uboot": {"copies": [{"path": "env"}], "size": 4096}, "names": ["one", "two"]}`:          "/etc/env",
		`{"uboot": {"copies": [{"path": "/e"}, {"path": "/e", "offset": 16}], "size": 16}}`:        "/e",
		`{"uboot": {"copies": [{"path": "/e"}], "size": 16, "scheme": "bootcount", "slot": "s"}}`:  "/e",
		`{"grub": {"path": "grubenv"}, "tries": 9, "current": "_b", "argument": "rauc.slot"}`:      "/etc/grubenv",
		`{"entries": {"dir": "entries", "prefix": "sys"}}`:                                         "/etc/entries",
		`{"entries": {"dir": "/efi/loader/entries", "merge": "m"}, "current": "B", "count": 2}`:    "/efi/loader/entries",
		`{"uboot": {"copies": [{"path": "/e", "offset": 99}, {"path": "/f"}], "size": 1048576}}`:   "/e",
		`{"misc": {"path": "misc"}, "names": ["A", "B", "C"], "count": 3, "argument": "slot.now"}`: "/etc/misc",
	} {
		c, err := ParseConfig([]byte(text), "/etc")
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := *c.paths()[0]; got != want {
			t.Errorf("%s: expected %s, found %s", text, want, got)
		}
		if s, err := Open(c); err != nil || s.Count() != c.Count {
			t.Errorf("%s: expected it to open, found %v", text, err)
		}
	}
	for _, bad := range []string{
		``, `{}`, `{"misc": {}}`, `{"misc": {"path": "m"}, "grub": {"path": "g"}}`, `{"msic": {"path": "m"}}`, `{"misc": {"path": "m"}, "count": 5}`,
		`{"misc": {"path": "m"}, "names": ["A"]}`, `{"misc": {"path": "m"}, "names": ["A", "A"]}`, `{"misc": {"path": "m"}, "names": ["A", "B C"]}`, `{"misc": {"path": "m"}, "names": ["A", ""]}`,
		`{"misc": {"path": "m"}, "tries": 10}`, `{"misc": {"path": "m"}, "tries": -1}`, `{"misc": {"path": "m"}, "current": "_c"}`, `{"misc": {"path": "m", "backup": 31}}`,
		`{"misc": {"path": "m", "backup": -1024}}`, `{"uboot": {"copies": [], "size": 4096}}`, `{"uboot": {"copies": [{"path": "e"}], "size": 4}}`, `{"uboot": {"copies": [{"path": "e"}], "size": 99999999}}`,
		`{"uboot": {"copies": [{"path": "e"}, {"path": "e", "offset": 15}], "size": 16}}`, `{"uboot": {"copies": [{"path": "e"}], "size": 16, "scheme": "other"}}`,
		`{"uboot": {"copies": [{"path": "e"}], "size": 16, "scheme": "bootcount"}, "count": 3}`, `{"entries": {"dir": ""}}`, `{"entries": {"dir": "d", "prefix": "a/b"}}`, `{"entries": {"dir": "d", "prefix": "a+"}}`,
	} {
		if c, err := ParseConfig([]byte(bad), "/etc"); !errors.Is(err, ErrConfig) || c != nil {
			t.Errorf("%s: expected %v, found %v", bad, ErrConfig, err)
		}
	}
	file := filepath.Join(t.TempDir(), "slots.json")
	if _, err := ReadConfig(file); err == nil {
		t.Error("expected no file to be an error")
	}
	if err := os.WriteFile(file, []byte(`{"grub": {"path": "g"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := ReadConfig(file); err != nil || c.Grub.Path != filepath.Join(filepath.Dir(file), "g") {
		t.Errorf("expected a path beside the file, found %+v, %v", c, err)
	}
}

// The examples of docs/slots.md are configurations.
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/slots.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, block := range strings.Split(string(b), "\n\n") {
		if !strings.HasPrefix(block, "    {") {
			continue
		}
		found++
		if _, err := ParseConfig([]byte(block), "/etc"); err != nil {
			t.Errorf("%s: %v", block, err)
		}
	}
	if found != 4 {
		t.Errorf("expected four examples, found %d", found)
	}
}

func TestCurrent(t *testing.T) {
	misc := Config{Misc: &Misc{Path: miscPath}}
	grub := Config{Grub: &Grub{Path: grubPath}}
	with := func(c Config, current, argument string) Config {
		c.Current, c.Argument = current, argument
		return c
	}
	for name, c := range map[string]struct {
		config              Config
		cmdline, bootconfig string
		want                int // -1: ErrCurrent
	}{
		"suffix":                  {grub, "root=x androidboot.slot_suffix=_b ro\n", "", 1},
		"last word wins":          {grub, "androidboot.slot_suffix=_b androidboot.slot_suffix=_a", "", 0},
		"name":                    {with(grub, "", "rauc.slot"), "rauc.slot=B", "", 1},
		"boot configuration":      {grub, "root=x", "androidboot.mode = \"normal\"\nandroidboot.slot_suffix = \"_b\"\n", 1},
		"configured":              {with(grub, "_b", ""), "androidboot.slot_suffix=_a", "", 1},
		"other argument":          {grub, "xandroidboot.slot_suffix=_b androidboot.slot_suffixes=_b", "", -1},
		"no such slot":            {grub, "androidboot.slot_suffix=_c", "", -1},
		"empty":                   {grub, "androidboot.slot_suffix=", "", -1},
		"not told":                {grub, "", "", -1},
		"not told, noted in misc": {misc, "", "", 0},
	} {
		d := newDisk(factoryMisc(true))
		d.files["/proc/cmdline"], d.files["/proc/bootconfig"] = []byte(c.cmdline), []byte(c.bootconfig)
		s, err := open(&c.config, d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Current()
		if c.want < 0 {
			if !errors.Is(err, ErrCurrent) {
				t.Errorf("%s: expected %v, found %d, %v", name, ErrCurrent, got, err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%s: expected %d, found %d, %v", name, c.want, got, err)
		}
	}
}

// Without knowing which slot runs nothing is changed, but much can be told.
func TestCurrentUnknown(t *testing.T) {
	d := newDisk(factoryGrub())
	s, err := open(&Config{Grub: &Grub{Path: grubPath}}, d)
	if err != nil {
		t.Fatal(err)
	}
	if active, err := s.Active(); err != nil || active != 0 {
		t.Errorf("expected slot 0 to be active, found %d, %v", active, err)
	}
	for _, err := range []error{s.SetActive(1), s.MarkSuccessful(), s.SetUnbootable(1), s.SetMergeStatus(bootctl.Merging)} {
		if !errors.Is(err, ErrCurrent) || d.points != 0 {
			t.Errorf("expected %v and no write, found %v", ErrCurrent, err)
		}
	}
}

func TestMergeText(t *testing.T) {
	for status := bootctl.MergeNone; status <= bootctl.MergeCancelled; status++ {
		for source := range bootctl.MaxSlots {
			want := bootctl.VirtualAB{Status: status, Source: source}
			if got := parseMerge(formatMerge(want) + "\n"); got != want {
				t.Errorf("expected %+v, found %+v", want, got)
			}
		}
	}
	for _, bad := range []string{"x", "merging", "merging x", "merging 256", "Merging 1", "merging 1 1", "\n"} {
		if got := parseMerge(bad); got.Status != bootctl.MergeUnknown {
			t.Errorf("%q: expected unknown, found %+v", bad, got)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("root=x androidboot.slot_suffix=_b\n", "merging 1", "cowbird-2-b+3-1.conf")
	f.Add("androidboot.slot_suffix = \"_a\"", "snapshotted 0\n", "cowbird-0-a.efi")
	f.Fuzz(func(t *testing.T, cmdline, merge, file string) {
		if value, found := argument(cmdline, "androidboot.slot_suffix"); found && strings.Contains(value, "\n") {
			t.Fatalf("expected one word, found %q", value)
		}
		if m := parseMerge(merge); m.Status > bootctl.MergeCancelled {
			t.Fatalf("expected a status, found %+v", m)
		}
		e := &entries{config: (&Config{Entries: &Entries{Dir: "/"}}).filled()}
		if slot, _, ok := e.parse(file); ok && (slot < 0 || slot > 1) {
			t.Fatalf("expected slot 0 or 1, found %d", slot)
		}
	})
}
