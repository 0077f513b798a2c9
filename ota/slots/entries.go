package slots

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"cowbird/formats/bootctl"
	"cowbird/formats/loaderentry"
)

// entries keeps slots in the names of boot loader entries: cowbird-12-b+3.conf is slot b, which
// comes before the entry of a with any lower number, and may fail three times. One
// renaming changes everything of a slot at once.
//
// The default entry must not be named elsewhere: the file loader.conf says
// "default cowbird-*", of which the boot loader takes the first that is not bad.
// What is in an EFI variable would come before that.
type entries struct {
	config *Config
	disk   disk
}

// entry is the file of a slot.
type entry struct {
	name   loaderentry.Name
	serial uint64
	file   string // as found
}

type entriesTable struct {
	*entries
	slots     [bootctl.MaxSlots][]entry // the first one counts
	virtual   bootctl.VirtualAB
	newMerge  bool
	unchanged [bootctl.MaxSlots]entry
}

func (e *entries) load(int) (table, error) {
	t := &entriesTable{entries: e}
	files, err := e.disk.list(e.config.Entries.Dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if slot, found, ok := e.parse(f); ok {
			t.slots[slot] = append(t.slots[slot], found)
		}
	}
	for i, s := range t.slots {
		if slices.SortFunc(s, compare); len(s) > 0 {
			t.unchanged[i] = s[0]
		}
	}
	b, err := e.disk.readFile(e.config.Entries.Merge, 1024)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	t.virtual = parseMerge(string(b))
	return t, nil
}

// parse takes PREFIX-SERIAL-LETTER apart; ok says whether it is one of ours.
func (e *entries) parse(file string) (slot int, found entry, ok bool) {
	name, err := loaderentry.Parse(file)
	rest, ours := strings.CutPrefix(name.ID, e.config.Entries.Prefix+"-")
	number, letter, both := strings.Cut(rest, "-")
	serial, err2 := strconv.ParseUint(number, 10, 63)
	slot, known := bootctl.SlotOf("_" + letter)
	if err != nil || err2 != nil || !ours || !both || !known || slot >= e.config.Count {
		return 0, entry{}, false
	}
	return slot, entry{name: name, serial: serial, file: file}, true
}

// compare is the boot loader's order: first those that are not bad, then by number from
// the highest, then by letter from the last. A file system that does not rename in one step may have left two of a
// slot; then one that is good comes before one that is counted.
func compare(a, b entry) int {
	switch {
	case a.name.Bad() != b.name.Bad():
		return order(b.name.Bad())
	case a.serial != b.serial:
		return order(a.serial > b.serial)
	case a.name.ID != b.name.ID:
		return order(a.name.ID > b.name.ID)
	case a.name.Counted != b.name.Counted:
		return order(b.name.Counted)
	}
	return b.name.Left - a.name.Left
}

func order(first bool) int {
	if first {
		return -1
	}
	return 1
}

func (t *entriesTable) of(slot int) (*entry, error) {
	if len(t.slots[slot]) == 0 {
		return nil, fmt.Errorf("%w: %s: expected an entry %s-NUMBER-%s.conf, found none", ErrState, t.config.Entries.Dir, t.config.Entries.Prefix, bootctl.Suffix(slot)[1:])
	}
	return &t.slots[slot][0], nil
}

func (t *entriesTable) next() (int, error) {
	best := -1
	for i, s := range t.slots {
		if len(s) > 0 && !s[0].name.Bad() && (best < 0 || compare(s[0], t.slots[best][0]) < 0) {
			best = i
		}
	}
	if best < 0 {
		return 0, fmt.Errorf("%w: %s: expected an entry %s-NUMBER-LETTER.conf that is not bad, found none", ErrUnbootable, t.config.Entries.Dir, t.config.Entries.Prefix)
	}
	return best, nil
}

// above is the highest number of the other slots.
func (t *entriesTable) above(slot int) (highest uint64) {
	for i, s := range t.slots {
		for _, e := range s {
			if i != slot {
				highest = max(highest, e.serial)
			}
		}
	}
	return highest
}

func (t *entriesTable) setActive(slot, running int) error {
	e, err := t.of(slot)
	if err != nil {
		return err
	}
	if others := t.above(slot); e.serial <= others {
		e.serial = others + 1
		e.name.ID = fmt.Sprintf("%s-%d-%s", t.config.Entries.Prefix, e.serial, bootctl.Suffix(slot)[1:])
	}
	if slot != running || e.name.Counted {
		e.name = e.name.WithTries(t.config.Tries)
	}
	return nil
}

func (t *entriesTable) markSuccessful(slot int) error {
	e, err := t.of(slot)
	if err == nil {
		e.name = e.name.Good()
	}
	return err
}

// setUnbootable makes the entry bad; a slot without one is not booted as it is.
func (t *entriesTable) setUnbootable(slot int) error {
	if e, err := t.of(slot); err == nil {
		e.name.Counted, e.name.Left = true, 0
	}
	return nil
}

func (t *entriesTable) bootable(slot int) bool {
	e, err := t.of(slot)
	return err == nil && !e.name.Bad()
}

func (t *entriesTable) successful(slot int) bool {
	e, err := t.of(slot)
	return err == nil && !e.name.Counted
}

func (t *entriesTable) merge() bootctl.VirtualAB { return t.virtual }

func (t *entriesTable) setMerge(m bootctl.VirtualAB) error {
	t.virtual, t.newMerge = m, true
	return nil
}

// store renames what has another name now, and removes what else there is of a slot.
func (t *entriesTable) store() error {
	if t.newMerge {
		return t.disk.replace(t.config.Entries.Merge, []byte(formatMerge(t.virtual)+"\n"))
	}
	for i, s := range t.slots {
		if len(s) == 0 || s[0] == t.unchanged[i] {
			continue
		}
		if err := t.rename(s); err != nil {
			return err
		}
	}
	return nil
}

func (t *entriesTable) rename(s []entry) error {
	dir, to := t.config.Entries.Dir, s[0].name.String()
	if s[0].file != to {
		if err := t.disk.rename(dir, s[0].file, to); err != nil {
			return err
		}
	}
	for _, other := range s[1:] {
		if other.file == to {
			continue
		}
		if err := t.disk.remove(dir, other.file); err != nil {
			return err
		}
	}
	return nil
}
