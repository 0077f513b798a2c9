package slots

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cowbird/formats/bootctl"
	"cowbird/formats/grubenv"
)

const grubOrder = "ORDER"

// grub keeps slots in GRUB's environment block: ORDER names them, A_OK=1 says that A may
// be booted, and the script sets A_TRY=1 before it boots A, so that it takes another
// one the next time. A_GOOD is ours, as in U-Boot's scheme "order".
//
// The block has no checksum, and its bytes must not be half new. So another file takes its
// place by renaming.
type grub struct {
	config *Config
	disk   disk
}

type grubTable struct {
	*grub
	env     *grubenv.Env
	changed bool
}

func (g *grub) load(int) (table, error) {
	b, err := g.disk.readFile(g.config.Grub.Path, grubenv.MaxSize)
	if err != nil {
		return nil, err
	}
	e, err := grubenv.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrState, g.config.Grub.Path, err)
	}
	return &grubTable{grub: g, env: e}, nil
}

func (t *grubTable) get(name string) string {
	v, _ := t.env.Get(name)
	return v
}

func (t *grubTable) set(name, value string) error {
	if v, found := t.env.Get(name); found && v == value {
		return nil
	}
	t.changed = true
	return t.env.Set(name, value)
}

// flags sets OK and GOOD of a slot, and that it was not tried.
func (t *grubTable) flags(slot int, ok, good string) error {
	n := t.config.Names[slot]
	return errors.Join(t.set(n+"_OK", ok), t.set(n+"_TRY", "0"), t.set(n+"_GOOD", good))
}

// order is the names to boot, first to last.
func (t *grubTable) order() []string {
	if words := strings.Fields(t.get(grubOrder)); len(words) > 0 {
		return words
	}
	return t.config.Names
}

func (t *grubTable) next() (int, error) {
	for _, name := range t.order() {
		if slot := slices.Index(t.config.Names, name); slot >= 0 && t.bootable(slot) {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("%w: expected a slot of %s=%q that is OK and was not tried, found none", ErrUnbootable, grubOrder, t.order())
}

func (t *grubTable) setActive(slot, running int) error {
	name, good := t.config.Names[slot], "0"
	if slot == running && t.get(name+"_GOOD") == "1" {
		good = "1"
	}
	return errors.Join(t.set(grubOrder, strings.Join(first(name, t.order()), " ")), t.flags(slot, "1", good))
}

func (t *grubTable) markSuccessful(slot int) error { return t.flags(slot, "1", "1") }
func (t *grubTable) setUnbootable(slot int) error  { return t.flags(slot, "0", "0") }

func (t *grubTable) bootable(slot int) bool {
	n := t.config.Names[slot]
	return t.get(n+"_OK") == "1" && t.get(n+"_TRY") != "1" && slices.Contains(t.order(), n)
}

func (t *grubTable) successful(slot int) bool {
	n := t.config.Names[slot]
	return t.get(n+"_OK") == "1" && t.get(n+"_GOOD") == "1"
}

func (t *grubTable) merge() bootctl.VirtualAB { return parseMerge(t.get(mergeVariable)) }
func (t *grubTable) setMerge(m bootctl.VirtualAB) error {
	return t.set(mergeVariable, formatMerge(m))
}

func (t *grubTable) store() error {
	if !t.changed {
		return nil
	}
	b, err := t.env.Marshal()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return t.disk.replace(t.config.Grub.Path, b)
}
