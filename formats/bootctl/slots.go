package bootctl

import "fmt"

// Suffix is what a slot's partitions have behind their names: _a, _b and so on.
func Suffix(slot int) string { return "_" + string(rune('a'+slot)) }

// SlotOf is the number of a slot by its suffix or letter: none, "a" and "_a" are 0,
// "b" and "_b" are 1 and so on. What is not known is slot 0 as well, as Android has it;
// found tells.
func SlotOf(suffix string) (slot int, found bool) {
	switch {
	case suffix == "":
		return 0, true
	case len(suffix) == 2 && suffix[0] == '_':
		suffix = suffix[1:]
	}
	if len(suffix) != 1 || suffix[0] < 'a' || suffix[0] >= 'a'+MaxSlots {
		return 0, false
	}
	return int(suffix[0] - 'a'), true
}

func (c *Control) slot(n int) (*Slot, error) {
	if n < 0 || n >= min(c.Count, MaxSlots) {
		return nil, fmt.Errorf("%w: expected a slot from 0 to %d, found %d", ErrSlot, c.Count-1, n)
	}
	return &c.Slots[n], nil
}

// MarkSuccessful says that a slot, the running one, is good: boots of it are counted no
// more. One try is left, since a slot with none is not booted. The error is ErrSlot.
func (c *Control) MarkSuccessful(slot int) error {
	s, err := c.slot(slot)
	if err != nil {
		return err
	}
	s.Successful, s.Tries = true, 1
	return nil
}

// SetActive makes a slot the next one to boot: it gets the highest priority and all
// tries, other slots come after it. A slot that is not running (-1: none is) must prove
// itself again. The running one stays as successful, and its verity as corrupted, as it is; to
// make it active takes back an update. The error is ErrSlot.
func (c *Control) SetActive(slot, running int) error {
	s, err := c.slot(slot)
	if err != nil {
		return err
	}
	for i := range c.Count {
		if o := &c.Slots[i]; o != s && o.Priority >= MaxPriority {
			o.Priority = MaxPriority - 1
		}
	}
	s.Priority, s.Tries = MaxPriority, activeTries
	if slot != running {
		s.Successful, s.VerityCorrupted = false, false
	}
	return nil
}

// SetUnbootable takes a slot out of what may be booted, until it is made active. The
// error is ErrSlot.
func (c *Control) SetUnbootable(slot int) error {
	s, err := c.slot(slot)
	if err != nil {
		return err
	}
	s.Priority, s.Tries, s.Successful = 0, 0, false
	return nil
}

// IsSuccessful says whether a slot has been marked as successful and may still be booted.
func (c *Control) IsSuccessful(slot int) bool {
	s, err := c.slot(slot)
	return err == nil && s.Successful && s.Tries > 0
}

// IsBootable says whether a slot exists and may be booted.
func (c *Control) IsBootable(slot int) bool {
	s, err := c.slot(slot)
	return err == nil && s.Bootable()
}

// Active is what Android calls the active slot: the one of highest priority, bootable
// or not, the running one if that is as high, otherwise the first of several. To
// know what will really boot, see Next.
func (c *Control) Active(running int) int {
	active := 0
	if _, err := c.slot(running); err == nil {
		active = running
	}
	for i := range min(c.Count, MaxSlots) {
		if c.Slots[i].Priority > c.Slots[active].Priority {
			active = i
		}
	}
	return active
}

// Next is the slot that a bootloader takes at the next boot. The error is
// ErrUnbootable.
func (c *Control) Next() (int, error) {
	best := -1
	for i := range min(c.Count, MaxSlots) {
		if s := c.Slots[i]; s.Bootable() && (best < 0 || s.before(c.Slots[best])) {
			best = i
		}
	}
	if best < 0 {
		return 0, fmt.Errorf("%w: expected one of %d with tries, found %+v", ErrUnbootable, c.Count, c.Slots)
	}
	return best, nil
}

func (s Slot) before(o Slot) bool {
	if s.Priority != o.Priority {
		return s.Priority > o.Priority
	}
	if s.Successful != o.Successful {
		return s.Successful
	}
	return s.Tries > o.Tries
}

// Choose is what a bootloader does at each boot: it takes the next slot, and one try of
// it unless that slot was successful. After the last try the slot is not bootable any more, so the
// following boot is another slot's. The caller writes the returned block before it boots;
// c itself stays. The error is ErrUnbootable, and then the block is c.
func (c Control) Choose() (slot int, after Control, err error) {
	if slot, err = c.Next(); err != nil {
		return 0, c, err
	}
	if !c.Slots[slot].Successful {
		c.Slots[slot].Tries--
	}
	c.Suffix = Suffix(slot)
	return slot, c, nil
}
