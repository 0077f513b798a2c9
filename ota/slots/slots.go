package slots

import (
	"errors"
	"fmt"

	"cowbird/formats/bootctl"
)

var (
	// ErrConfig: the configuration contradicts itself or says too little.
	ErrConfig = errors.New("configuration of slots")
	// ErrSlot: there is no such slot.
	ErrSlot = errors.New("no such slot")
	// ErrCurrent: which slot runs cannot be told.
	ErrCurrent = errors.New("running slot is not known")
	// ErrUnbootable: the boot loader finds no slot that it may boot.
	ErrUnbootable = errors.New("no bootable slot")
	// ErrLast: afterwards no slot could be booted.
	ErrLast = errors.New("last bootable slot")
	// ErrMerging: the merge has begun, and the other slot's system is gone.
	ErrMerging = errors.New("merge has begun")
	// ErrState: what the boot loader keeps is not understood, or cannot express what is
	// asked for.
	ErrState = errors.New("state of slots")
)

// Slots is what an update must know of slots and do to them. Every change is durable
// when the method returns, and none but the one asked for is made; one that changes
// nothing writes nothing. What a method tells is read anew each time. Only one
// process at a time may make changes, and a value is not for concurrent use.
//
// Besides those named, errors are those of reading and writing.
type Slots interface {
	// Count is how many slots there are.
	Count() int
	// Suffix is what partitions of a slot have behind their names: _a for 0.
	Suffix(slot int) string
	// Current is the slot that runs. The error is ErrCurrent.
	Current() (int, error)
	// Active is the slot that the boot loader takes at the next boot. The errors are
	// ErrUnbootable and ErrState.
	Active() (int, error)
	// SetActive makes the boot loader take a slot at the next boot. Any but the
	// running one is on trial from then on: it has so many boots to become
	// successful, then the boot loader falls back. The errors are ErrSlot, ErrState and,
	// for any slot but the running one, ErrMerging.
	SetActive(slot int) error
	// IsBootable says whether the boot loader may take a slot at the next boot. Where
	// one boot is all there is the running slot is not, until it is marked.
	IsBootable(slot int) (bool, error)
	// IsSuccessful says whether a slot has been marked as successful since it was made
	// active.
	IsSuccessful(slot int) (bool, error)
	// MarkSuccessful ends the trial of the running slot. Call it after every boot:
	// some boot loaders count each one.
	MarkSuccessful() error
	// SetUnbootable keeps the boot loader from a slot until it is made active, as
	// it must be kept from one that is being written. The errors are ErrSlot, ErrLast,
	// ErrState and, for the running slot, ErrMerging.
	SetUnbootable(slot int) error
	// MergeStatus is how far an update is, as the running slot sees it: what has been
	// written but not booted is nothing.
	MergeStatus() (bootctl.MergeStatus, error)
	// SetMergeStatus tells the boot loader. It is called before an update's own state says
	// as much, and for MergeNone after (specs/snapshot-manager.md 4).
	SetMergeStatus(bootctl.MergeStatus) error
}

// backend is where a boot loader keeps slots.
type backend interface {
	// load reads everything. running may be -1, for not known.
	load(running int) (table, error)
}

// table is what a boot loader has of slots, read into memory. Slots that are passed
// exist.
type table interface {
	next() (int, error)
	setActive(slot, running int) error
	markSuccessful(slot int) error
	setUnbootable(slot int) error
	bootable(slot int) bool
	successful(slot int) bool
	merge() bootctl.VirtualAB
	setMerge(bootctl.VirtualAB) error
	// store makes durable what has changed.
	store() error
}

// system is Slots over any backend.
type system struct {
	config  *Config
	backend backend
	disk    disk
}

func (s *system) Count() int { return s.config.Count }

func (s *system) Suffix(slot int) string { return bootctl.Suffix(slot) }

func (s *system) check(slot int) error {
	if slot < 0 || slot >= s.config.Count {
		return fmt.Errorf("%w: expected 0 to %d, found %d", ErrSlot, s.config.Count-1, slot)
	}
	return nil
}

// read loads the table, also if it is not known which slot runs.
func (s *system) read() (t table, running int, err error) {
	if running, err = s.Current(); err != nil {
		running = -1
	}
	t, err = s.backend.load(running)
	return t, running, err
}

// change loads the table, changes it and makes it durable.
func (s *system) change(f func(t table, running int) error) error {
	running, err := s.Current()
	if err != nil {
		return err
	}
	t, err := s.backend.load(running)
	if err != nil {
		return err
	}
	if err := f(t, running); err != nil {
		return err
	}
	return t.store()
}

func (s *system) Active() (int, error) {
	t, _, err := s.read()
	if err != nil {
		return 0, err
	}
	return t.next()
}

func (s *system) ask(slot int, what func(table, int) bool) (bool, error) {
	if err := s.check(slot); err != nil {
		return false, err
	}
	t, _, err := s.read()
	if err != nil {
		return false, err
	}
	return what(t, slot), nil
}

func (s *system) IsBootable(slot int) (bool, error) { return s.ask(slot, table.bootable) }

func (s *system) IsSuccessful(slot int) (bool, error) { return s.ask(slot, table.successful) }

func (s *system) SetActive(slot int) error {
	if err := s.check(slot); err != nil {
		return err
	}
	return s.change(func(t table, running int) error {
		if t.merge().Status == bootctl.Merging && slot != running {
			return fmt.Errorf("%w: expected to stay with the running slot %d, found slot %d to be made active", ErrMerging, running, slot)
		}
		return t.setActive(slot, running)
	})
}

func (s *system) MarkSuccessful() error { return s.change(table.markSuccessful) }

func (s *system) SetUnbootable(slot int) error {
	if err := s.check(slot); err != nil {
		return err
	}
	return s.change(func(t table, running int) error {
		if t.merge().Status == bootctl.Merging && slot == running {
			return fmt.Errorf("%w: expected to stay with the running slot %d, found it to be made unbootable", ErrMerging, running)
		}
		return setUnbootable(t, slot)
	})
}

func setUnbootable(t table, slot int) error {
	_, before := t.next()
	if err := t.setUnbootable(slot); err != nil {
		return err
	}
	if _, after := t.next(); before == nil && after != nil {
		return fmt.Errorf("%w: expected another than slot %d to be bootable: %w", ErrLast, slot, after)
	}
	return nil
}

func (s *system) MergeStatus() (bootctl.MergeStatus, error) {
	t, running, err := s.read()
	if err != nil {
		return bootctl.MergeUnknown, err
	}
	return t.merge().Seen(running), nil
}

func (s *system) SetMergeStatus(status bootctl.MergeStatus) error {
	return s.change(func(t table, running int) error {
		m, err := bootctl.NewVirtualAB(status, running)
		if err != nil {
			return err
		}
		if _, err := m.Marshal(); err != nil {
			return fmt.Errorf("%w: %w", ErrState, err)
		}
		if was := t.merge(); was.Status == status && was.Source == running {
			return nil
		}
		return t.setMerge(m)
	})
}
