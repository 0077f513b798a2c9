package slots

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"cowbird/formats/bootctl"
)

// misc keeps slots in a control block and the merge status in the message behind it.
//
// A block is 32 bytes within a sector, which storage writes as a whole; should it be torn all
// the same, its checksum tells, and the boot loader starts from its defaults. With a backup
// that cannot happen: both copies are the same before the first one is written, and
// the second one is written when the first is durable.
type misc struct {
	config *Config
	disk   disk
}

type miscTable struct {
	*misc
	control bootctl.Control
	virtual bootctl.VirtualAB
	// primary, backup and message are the bytes found; nil where they are not valid.
	primary, backup, message []byte
	small                    bool // no room for the message
	touched, mergeTouched    bool
}

func (m *misc) load(running int) (table, error) {
	t := &miscTable{misc: m}
	if err := t.loadControl(running); err != nil {
		return nil, err
	}
	return t, t.loadMessage()
}

func (t *miscTable) loadControl(running int) error {
	first, err := t.readControl(bootctl.ControlOffset)
	if err != nil {
		return err
	}
	if t.primary = first; t.config.Misc.Backup != 0 {
		if t.backup, err = t.readControl(bootctl.ControlOffset + t.config.Misc.Backup); err != nil {
			return err
		}
	}
	valid := t.primary
	if valid == nil {
		valid = t.backup
	}
	if valid == nil {
		t.control, err = bootctl.Default(t.config.Count, running)
		return err
	}
	if t.control, err = bootctl.ParseControl(valid); err == nil && t.control.Count != t.config.Count {
		err = fmt.Errorf("%w: %s: expected %d slots, found %d", ErrState, t.config.Misc.Path, t.config.Count, t.control.Count)
	}
	return err
}

// readControl returns a block, or nil where there is none or a torn one: what the boot
// loader would make anew. A block that is whole but not understood is an error.
func (t *miscTable) readControl(at int64) ([]byte, error) {
	b := make([]byte, bootctl.ControlSize)
	if err := t.disk.readAt(t.config.Misc.Path, b, at); err != nil {
		return nil, err
	}
	_, err := bootctl.ParseControl(b)
	if errors.Is(err, bootctl.ErrBlank) || errors.Is(err, bootctl.ErrChecksum) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: byte %d: %w", ErrState, t.config.Misc.Path, at, err)
	}
	return b, nil
}

func (t *miscTable) loadMessage() error {
	b := make([]byte, bootctl.VirtualABSize)
	err := t.disk.readAt(t.config.Misc.Path, b, bootctl.VirtualABOffset)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		t.virtual, t.small = noMerge, true
		return nil
	}
	if err != nil {
		return err
	}
	t.virtual, err = bootctl.ParseVirtualAB(b)
	switch {
	case err == nil:
		t.message = b
	case errors.Is(err, bootctl.ErrBlank):
		t.virtual = noMerge
	default:
		t.virtual = bootctl.VirtualAB{Status: bootctl.MergeUnknown, Source: bootctl.NoSlot}
	}
	return nil
}

// booted is the slot that the boot loader noted when it chose it.
func (m *misc) booted() (int, error) {
	t := &miscTable{misc: m}
	if err := t.loadControl(-1); err != nil {
		return 0, err
	}
	slot, found := m.config.slotOf(t.control.Suffix)
	if !found {
		return 0, fmt.Errorf("%w: expected %s= from the kernel, or a suffix in the control block, found %q", ErrCurrent, m.config.Argument, t.control.Suffix)
	}
	return slot, nil
}

func (t *miscTable) next() (int, error) {
	slot, err := t.control.Next()
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUnbootable, err)
	}
	return slot, err
}

func (t *miscTable) setActive(slot, running int) error {
	t.touched = true
	return t.control.SetActive(slot, running)
}

func (t *miscTable) markSuccessful(slot int) error {
	t.touched = true
	return t.control.MarkSuccessful(slot)
}

func (t *miscTable) setUnbootable(slot int) error {
	t.touched = true
	return t.control.SetUnbootable(slot)
}

func (t *miscTable) bootable(slot int) bool   { return t.control.IsBootable(slot) }
func (t *miscTable) successful(slot int) bool { return t.control.IsSuccessful(slot) }
func (t *miscTable) merge() bootctl.VirtualAB { return t.virtual }

func (t *miscTable) setMerge(m bootctl.VirtualAB) error {
	if t.small {
		return fmt.Errorf("%w: %s: expected %d bytes at %d for the merge status, found the end", ErrState, t.config.Misc.Path, bootctl.VirtualABSize, bootctl.VirtualABOffset)
	}
	if t.message == nil {
		t.virtual = m
	}
	t.virtual.Version, t.virtual.Status, t.virtual.Source = m.Version, m.Status, m.Source
	t.mergeTouched = true
	return nil
}

// store writes one of the two; no method changes both.
func (t *miscTable) store() error {
	if t.mergeTouched {
		b, err := t.virtual.Marshal()
		if err != nil {
			return err
		}
		return t.write(b, t.message, bootctl.VirtualABOffset)
	}
	if !t.touched {
		return nil
	}
	b, err := t.control.Marshal()
	if err != nil {
		return err
	}
	if t.config.Misc.Backup == 0 {
		return t.write(b, t.primary, bootctl.ControlOffset)
	}
	return t.storeBoth(b)
}

func (t *miscTable) storeBoth(b []byte) error {
	second := bootctl.ControlOffset + t.config.Misc.Backup
	if t.primary != nil && !bytes.Equal(b, t.primary) {
		if err := t.write(t.primary, t.backup, second); err != nil {
			return err
		}
		t.backup = t.primary
	}
	if err := t.write(b, t.primary, bootctl.ControlOffset); err != nil {
		return err
	}
	return t.write(b, t.backup, second)
}

func (t *miscTable) write(b, found []byte, at int64) error {
	if bytes.Equal(b, found) {
		return nil
	}
	return t.disk.writeAt(t.config.Misc.Path, b, at)
}
