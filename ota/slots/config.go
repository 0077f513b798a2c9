package slots

import (
	"fmt"
	"path/filepath"
	"strings"

	"cowbird/formats/bootctl"
	"cowbird/formats/ubootenv"
	"cowbird/ota/internal/settings"
)

// Config says which boot loader there is and where it keeps slots: exactly one of Misc,
// UBoot, Grub and Entries. Paths that are not absolute are relative to the file.
type Config struct {
	// Count is how many slots there are; 0 is 2.
	Count int `json:"count,omitempty"`
	// Current is the suffix of the running slot, for systems whose kernel is not
	// told. Otherwise Argument is looked for in the kernel's command line and boot
	// configuration; it is androidboot.slot_suffix if not given.
	Current  string `json:"current,omitempty"`
	Argument string `json:"argument,omitempty"`
	// Names are the slots' names in variables and in Argument; A, B and so on if not
	// given.
	Names []string `json:"names,omitempty"`
	// Tries is how many boots a slot on trial has; 0 is 3. In a misc partition it is
	// always 6, with GRUB and boot counts it is up to the boot loader.
	Tries int `json:"tries,omitempty"`

	Misc    *Misc    `json:"misc,omitempty"`
	UBoot   *UBoot   `json:"uboot,omitempty"`
	Grub    *Grub    `json:"grub,omitempty"`
	Entries *Entries `json:"entries,omitempty"`
}

// Misc is a misc partition as Android has it.
type Misc struct {
	Path string `json:"path"` // file or block device
	// Backup is how many bytes behind the control block a copy of it is, if U-Boot was built
	// to keep one (ANDROID_AB_BACKUP_OFFSET).
	Backup int64 `json:"backup,omitempty"`
}

// UBoot is U-Boot's environment, as in fw_env.config.
type UBoot struct {
	Copies []Copy `json:"copies"` // one or two
	Size   int    `json:"size"`   // bytes of each
	// Scheme is "order", for BOOT_ORDER and BOOT_A_LEFT, or "bootcount", for
	// upgrade_available and bootcount; "order" if not given.
	Scheme string `json:"scheme,omitempty"`
	// Slot is the variable that names the slot to boot in scheme "bootcount";
	// boot_slot if not given.
	Slot string `json:"slot,omitempty"`
}

// Copy is where a copy of the environment is.
type Copy struct {
	Path   string `json:"path"` // file or block device
	Offset int64  `json:"offset,omitempty"`
}

// Grub is GRUB's environment block.
type Grub struct {
	Path string `json:"path"` // the file grubenv
}

// Entries are boot loader entries with boot counting.
type Entries struct {
	Dir    string `json:"dir"`              // of the entries: loader/entries, or EFI/Linux
	Prefix string `json:"prefix,omitempty"` // of their names; cowbird if not given
	Merge  string `json:"merge,omitempty"`  // the file for the merge status; ../cowbird.merge from Dir if not given
}

// ReadConfig reads a configuration file.
func ReadConfig(path string) (*Config, error) { return settings.Read(path, ParseConfig) }

// ParseConfig takes a configuration apart, of a file in that folder. The error is
// ErrConfig.
func ParseConfig(b []byte, dir string) (*Config, error) {
	c := &Config{}
	if err := settings.Decode(b, c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	for _, p := range c.paths() {
		*p = settings.InDir(dir, *p)
	}
	c = c.filled()
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Config) paths() (all []*string) {
	if c.Misc != nil {
		all = append(all, &c.Misc.Path)
	}
	if c.UBoot != nil {
		for i := range c.UBoot.Copies {
			all = append(all, &c.UBoot.Copies[i].Path)
		}
	}
	if c.Grub != nil {
		all = append(all, &c.Grub.Path)
	}
	if c.Entries != nil {
		all = append(all, &c.Entries.Dir, &c.Entries.Merge)
	}
	return all
}

// filled is a copy with what was not given.
func (c *Config) filled() *Config {
	f := *c
	f.Count, f.Tries = or(f.Count, 2), or(f.Tries, 3)
	f.Argument = or(f.Argument, "androidboot.slot_suffix")
	if len(f.Names) == 0 {
		for i := range min(f.Count, bootctl.MaxSlots) {
			f.Names = append(f.Names, string(rune('A'+i)))
		}
	}
	if c.UBoot != nil {
		u := *c.UBoot
		u.Scheme, u.Slot = or(u.Scheme, schemeOrder), or(u.Slot, "boot_slot")
		f.UBoot = &u
	}
	if c.Entries != nil {
		e := *c.Entries
		e.Prefix = or(e.Prefix, "cowbird")
		e.Merge = or(e.Merge, filepath.Join(filepath.Dir(e.Dir), "cowbird.merge"))
		f.Entries = &e
	}
	return &f
}

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

func (c *Config) check() error {
	if c.Count < 1 || c.Count > bootctl.MaxSlots || len(c.Names) != c.Count || c.Tries < 1 || c.Tries > 9 {
		return fmt.Errorf("%w: expected 1 to %d slots, as many names and 1 to 9 tries, found %d slots, names %q, %d tries", ErrConfig, bootctl.MaxSlots, c.Count, c.Names, c.Tries)
	}
	seen := map[string]bool{"": true}
	for _, n := range c.Names {
		if seen[n] || strings.ContainsAny(n, " =\n\\\"") {
			return fmt.Errorf("%w: expected different names of one word, found %q", ErrConfig, c.Names)
		}
		seen[n] = true
	}
	if _, found := c.slotOf(c.Current); c.Current != "" && !found {
		return fmt.Errorf("%w: expected the suffix of a slot, found %q", ErrConfig, c.Current)
	}
	return c.checkBackend()
}

func (c *Config) checkBackend() error {
	n := 0
	for _, given := range []bool{c.Misc != nil, c.UBoot != nil, c.Grub != nil, c.Entries != nil} {
		if given {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("%w: expected one of misc, uboot, grub and entries, found %d", ErrConfig, n)
	}
	for _, p := range c.paths() {
		if *p == "" {
			return fmt.Errorf("%w: expected a path, found none", ErrConfig)
		}
	}
	switch {
	case c.Misc != nil:
		return c.Misc.check()
	case c.UBoot != nil:
		return c.UBoot.check(c.Count)
	case c.Entries != nil && strings.ContainsAny(c.Entries.Prefix, "/+*?[]\x00"):
		return fmt.Errorf("%w: expected a prefix of letters, digits and - or _, found %q", ErrConfig, c.Entries.Prefix)
	}
	return nil
}

func (m *Misc) check() error {
	if m.Backup != 0 && m.Backup < bootctl.ControlSize || m.Backup > 1<<30 {
		return fmt.Errorf("%w: expected a backup behind the control block, found it %d bytes behind its start", ErrConfig, m.Backup)
	}
	return nil
}

func (u *UBoot) check(count int) error {
	if n := len(u.Copies); n != 1 && n != 2 {
		return fmt.Errorf("%w: expected one or two copies of the environment, found %d", ErrConfig, n)
	}
	if u.Size < 16 || u.Size > ubootenv.MaxSize {
		return fmt.Errorf("%w: expected a size of the environment from 16 to %d bytes, found %d", ErrConfig, ubootenv.MaxSize, u.Size)
	}
	if len(u.Copies) == 2 && u.Copies[0].Path == u.Copies[1].Path && max(u.Copies[0].Offset, u.Copies[1].Offset)-min(u.Copies[0].Offset, u.Copies[1].Offset) < int64(u.Size) {
		return fmt.Errorf("%w: expected copies that do not overlap, found %+v of %d bytes", ErrConfig, u.Copies, u.Size)
	}
	if u.Scheme != schemeOrder && (u.Scheme != schemeBootcount || count != 2) {
		return fmt.Errorf("%w: expected scheme %s, or %s with two slots, found %q with %d", ErrConfig, schemeOrder, schemeBootcount, u.Scheme, count)
	}
	return nil
}

// slotOf is a slot by its suffix or its name.
func (c *Config) slotOf(text string) (int, bool) {
	for i, n := range c.Names {
		if text == n {
			return i, true
		}
	}
	slot, found := bootctl.SlotOf(text)
	return slot, found && text != "" && slot < c.Count
}

// Open returns the slots of a system. Nothing is read yet. The error is ErrConfig.
func Open(c *Config) (Slots, error) { return open(c, osDisk{}) }

func open(c *Config, d disk) (*system, error) {
	c = c.filled()
	if err := c.check(); err != nil {
		return nil, err
	}
	s := &system{config: c, disk: d}
	switch {
	case c.Misc != nil:
		s.backend = &misc{c, d}
	case c.UBoot != nil:
		s.backend = &uboot{c, d}
	case c.Grub != nil:
		s.backend = &grub{c, d}
	default:
		s.backend = &entries{c, d}
	}
	return s, nil
}
