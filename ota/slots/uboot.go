package slots

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cowbird/formats/bootctl"
	"cowbird/formats/ubootenv"
)

// The ways in which U-Boot's scripts keep slots, and their variables.
const (
	schemeOrder     = "order"
	schemeBootcount = "bootcount"

	ubootOrder       = "BOOT_ORDER"
	upgradeAvailable = "upgrade_available"
	bootCount        = "bootcount"
	bootLimit        = "bootlimit"
)

func ubootLeft(name string) string { return "BOOT_" + name + "_LEFT" }
func ubootGood(name string) string { return "BOOT_" + name + "_GOOD" }

// uboot keeps slots in U-Boot's environment. All variables of a change are in one write: of
// the copy that is not in use, if there are two, so a torn write changes nothing.
// With one copy U-Boot falls back to the variables that it was built with.
type uboot struct {
	config *Config
	disk   disk
}

// ubootEnv is the environment as it was found, and changed.
type ubootEnv struct {
	*uboot
	env     *ubootenv.Env
	which   int // the copy that is in use
	changed bool
}

func (u *uboot) load(int) (table, error) {
	e, err := u.read()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrState, u.config.UBoot.Copies[0].Path, err)
	}
	if u.config.UBoot.Scheme == schemeBootcount {
		return &ubootCount{e}, nil
	}
	return &ubootOrdered{e}, nil
}

func (u *uboot) read() (*ubootEnv, error) {
	e, c := &ubootEnv{uboot: u}, u.config.UBoot
	var copies [2][]byte
	var errs [2]error
	for i, at := range c.Copies {
		copies[i] = make([]byte, c.Size)
		errs[i] = u.disk.readAt(at.Path, copies[i], at.Offset)
	}
	err := errors.Join(errs[:]...)
	if err != nil {
		return nil, err
	}
	if len(c.Copies) == 2 {
		e.env, e.which, err = ubootenv.Choose(copies[0], copies[1])
	} else {
		e.env, err = ubootenv.Parse(copies[0], false)
	}
	return e, err
}

func (e *ubootEnv) get(name, otherwise string) string {
	if v, found := e.env.Get(name); found {
		return v
	}
	return otherwise
}

// set changes a variable, an empty value deletes it.
func (e *ubootEnv) set(name, value string) error {
	if e.get(name, "") == value {
		return nil
	}
	e.changed = true
	return e.env.Set(name, value)
}

// number is a variable that U-Boot counts with. It counts in hexadecimal, which is the
// same up to 9.
func (e *ubootEnv) number(name string, otherwise int) int {
	n, err := strconv.ParseUint(e.get(name, strconv.Itoa(otherwise)), 10, 16)
	if err != nil {
		return 0
	}
	return int(n)
}

func (e *ubootEnv) merge() bootctl.VirtualAB           { return parseMerge(e.get(mergeVariable, "")) }
func (e *ubootEnv) setMerge(m bootctl.VirtualAB) error { return e.set(mergeVariable, formatMerge(m)) }

func (e *ubootEnv) store() error {
	if !e.changed {
		return nil
	}
	next := e.env.Next()
	b, err := next.Marshal()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	to := e.config.UBoot.Copies[(e.which+1)%len(e.config.UBoot.Copies)]
	return e.disk.writeAt(to.Path, b, to.Offset)
}

// ubootOrdered is scheme "order": BOOT_ORDER names the slots, and BOOT_A_LEFT is how
// many boots of A are left, which the script counts at every boot. BOOT_A_GOOD is ours:
// the scheme has no other way to tell a slot that was successful from one on trial.
type ubootOrdered struct{ *ubootEnv }

// order is the names to boot, first to last; a script without the variable takes all.
func (t *ubootOrdered) order() []string {
	return strings.Fields(t.get(ubootOrder, strings.Join(t.config.Names, " ")))
}

func (t *ubootOrdered) next() (int, error) {
	for _, name := range t.order() {
		if slot := slices.Index(t.config.Names, name); slot >= 0 && t.left(slot) > 0 {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("%w: expected a slot of %s=%q with boots left, found none", ErrUnbootable, ubootOrder, t.order())
}

func (t *ubootOrdered) left(slot int) int {
	return t.number(ubootLeft(t.config.Names[slot]), t.config.Tries)
}

func (t *ubootOrdered) setLeft(slot, n int) error {
	return t.set(ubootLeft(t.config.Names[slot]), strconv.Itoa(n))
}

func (t *ubootOrdered) setActive(slot, running int) error {
	name := t.config.Names[slot]
	good := ""
	if slot == running {
		good = t.get(ubootGood(name), "")
	}
	return errors.Join(t.set(ubootOrder, strings.Join(first(name, t.order()), " ")), t.setLeft(slot, t.config.Tries), t.set(ubootGood(name), good))
}

// first is the names with one of them at the front.
func first(name string, names []string) []string {
	rest := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })
	return append([]string{name}, rest...)
}

func (t *ubootOrdered) markSuccessful(slot int) error {
	return errors.Join(t.setLeft(slot, t.config.Tries), t.set(ubootGood(t.config.Names[slot]), "1"))
}

func (t *ubootOrdered) setUnbootable(slot int) error {
	return errors.Join(t.setLeft(slot, 0), t.set(ubootGood(t.config.Names[slot]), ""))
}

func (t *ubootOrdered) bootable(slot int) bool {
	return t.left(slot) > 0 && slices.Contains(t.order(), t.config.Names[slot])
}

func (t *ubootOrdered) successful(slot int) bool {
	return t.bootable(slot) && t.get(ubootGood(t.config.Names[slot]), "") == "1"
}

// ubootCount is scheme "bootcount": a variable names the slot, and while
// upgrade_available is 1 U-Boot counts boots in bootcount; above bootlimit it runs altbootcmd,
// which must name the other slot and end the trial.
type ubootCount struct{ *ubootEnv }

func (t *ubootCount) slotName() string { return t.config.UBoot.Slot }

// named is the slot in the variable, the first one if there is none.
func (t *ubootCount) named() (int, error) {
	value := t.get(t.slotName(), t.config.Names[0])
	slot, found := t.config.slotOf(value)
	if !found {
		return 0, fmt.Errorf("%w: expected one of %q in %s, found %q", ErrState, t.config.Names, t.slotName(), value)
	}
	return slot, nil
}

func (t *ubootCount) onTrial() bool { return t.get(upgradeAvailable, "0") == "1" }

// failed says whether the boots of a trial are used up. Without a limit they never are.
func (t *ubootCount) failed() bool {
	limit := t.number(bootLimit, 0)
	return t.onTrial() && limit > 0 && t.number(bootCount, 0) >= limit
}

func (t *ubootCount) next() (int, error) {
	slot, err := t.named()
	if err == nil && t.failed() {
		slot = 1 - slot
	}
	return slot, err
}

func (t *ubootCount) put(slot int, trial string) error {
	return errors.Join(t.set(t.slotName(), t.config.Names[slot]), t.set(upgradeAvailable, trial), t.set(bootCount, "0"))
}

// setActive puts a slot on trial, but for the running one if its trial is over.
func (t *ubootCount) setActive(slot, running int) error {
	if slot == running && t.successful(slot) {
		return t.put(slot, "0")
	}
	return t.put(slot, "1")
}

// markSuccessful ends the slot's own trial, and leaves another's alone: that of an update which
// has just been installed.
func (t *ubootCount) markSuccessful(slot int) error {
	named, err := t.named()
	if err != nil || named != slot {
		return err
	}
	return t.put(slot, "0")
}

// setUnbootable takes back a trial. A slot that is not named is not booted anyway, unless as the
// way back from a trial, which has nowhere else to go.
func (t *ubootCount) setUnbootable(slot int) error {
	named, err := t.named()
	switch {
	case err != nil:
		return err
	case named != slot && !t.onTrial():
		return nil
	case named == slot && t.onTrial():
		return t.put(1-slot, "0")
	case named == slot:
		return fmt.Errorf("%w: expected another than slot %d in %s", ErrLast, slot, t.slotName())
	}
	return fmt.Errorf("%w: expected no trial, since slot %d is the way back from it, found %s=%q", ErrState, slot, upgradeAvailable, t.get(upgradeAvailable, ""))
}

func (t *ubootCount) bootable(slot int) bool {
	next, err := t.next()
	return err == nil && (next == slot || t.onTrial() && !t.failed())
}

func (t *ubootCount) successful(slot int) bool {
	named, err := t.named()
	return err == nil && (named == slot) != t.onTrial()
}
