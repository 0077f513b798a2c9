package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/dm"
	"cowbird/ota/update"
)

// nodePatience is how long the kernel or udev may take to make a device's node.
const nodePatience = 10 * time.Second

// mapperDir is where people look for mapped devices. Where udev does not make the
// names there, as in an initramfs, this program does.
const mapperDir = "/dev/mapper"

// uuidPrefix begins what device-mapper keeps beside the names of our devices, by which
// udev's rules know them.
const uuidPrefix = "COWBIRD-"

// mapper is device-mapper.
type mapper struct{ dm *dm.Control }

func newMapper() (update.Mapper, func(), error) {
	c, err := dm.Open()
	if err != nil {
		return nil, nil, err
	}
	return mapper{c}, func() { _ = c.Close() }, nil
}

func (m mapper) Map(ctx context.Context, name string, table []update.Line, readOnly bool) (string, error) {
	info, err := m.dm.Create(name, uuidPrefix+name)
	if errors.Is(err, dm.ErrExists) {
		return m.existing(ctx, name, table)
	}
	if err != nil {
		return "", err
	}
	if err := m.activate(name, table, readOnly); err != nil {
		return "", errors.Join(err, m.dm.Remove(name))
	}
	return m.node(ctx, name, info)
}

func (m mapper) MapTarget(ctx context.Context, name, kind string, sectors uint64, args string) (string, error) {
	info, err := m.dm.Create(name, uuidPrefix+name)
	if errors.Is(err, dm.ErrExists) {
		if info, err = m.dm.Info(name); err != nil {
			return "", err
		}
		return m.node(ctx, name, info)
	}
	if err != nil {
		return "", err
	}
	_, err = m.dm.Load(name, []dm.Target{{Sectors: sectors, Type: kind, Args: args}}, dm.ReadOnly)
	if err == nil {
		_, err = m.dm.Resume(name)
	}
	if err != nil {
		return "", errors.Join(err, m.dm.Remove(name))
	}
	return m.node(ctx, name, info)
}

func (m mapper) existing(ctx context.Context, name string, table []update.Line) (string, error) {
	mapping, err := m.Compare(name, table)
	if err != nil {
		return "", err
	}
	if mapping != update.Same {
		return "", fmt.Errorf("%s: %w with another table", name, dm.ErrExists)
	}
	info, err := m.dm.Info(name)
	if err != nil {
		return "", err
	}
	return m.node(ctx, name, info)
}

func (m mapper) activate(name string, table []update.Line, readOnly bool) error {
	targets, err := targetsOf(table)
	if err != nil {
		return err
	}
	flags := dm.LoadFlag(0)
	if readOnly {
		flags = dm.ReadOnly
	}
	if _, err := m.dm.Load(name, targets, flags); err != nil {
		return err
	}
	_, err = m.dm.Resume(name)
	return err
}

// node waits for a device's node and sees to it that it has a name.
func (m mapper) node(ctx context.Context, name string, info dm.Info) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, nodePatience)
	defer cancel()
	if err := dm.WaitNode(ctx, info.Node()); err != nil {
		return "", err
	}
	link := filepath.Join(mapperDir, name)
	if _, err := os.Lstat(link); errors.Is(err, os.ErrNotExist) {
		_ = os.Symlink("../"+filepath.Base(info.Node()), link) // for people; udev may be quicker
	}
	return info.Node(), nil
}

// Swap replaces the table while the device may be the root file system, so a file
// system on it is left alone.
func (m mapper) Swap(_ context.Context, name string, table []update.Line, readOnly bool) error {
	targets, err := targetsOf(table)
	if err != nil {
		return err
	}
	flags := dm.LoadFlag(0)
	if readOnly {
		flags = dm.ReadOnly
	}
	if _, err := m.dm.Load(name, targets, flags); err != nil {
		return err
	}
	if _, err := m.dm.Suspend(name, dm.SkipLockFS); err != nil {
		return err
	}
	_, err = m.dm.Resume(name)
	return err
}

func (m mapper) Unmap(_ context.Context, name string) error {
	err := m.dm.Remove(name)
	switch {
	case errors.Is(err, dm.ErrNotFound):
		return nil
	case errors.Is(err, dm.ErrBusy):
		return fmt.Errorf("%w: %w", update.ErrBusy, err)
	case err == nil:
		if link := filepath.Join(mapperDir, name); isLink(link) {
			_ = os.Remove(link)
		}
	}
	return err
}

func (m mapper) Path(name string) (string, bool, error) {
	info, err := m.dm.Info(name)
	if errors.Is(err, dm.ErrNotFound) {
		return "", false, nil
	}
	return info.Node(), err == nil, err
}

func isLink(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.Mode()&os.ModeSymlink != 0
}

func (m mapper) Compare(name string, table []update.Line) (update.Mapping, error) {
	found, err := m.dm.Table(name)
	if errors.Is(err, dm.ErrNotFound) {
		return update.NotMapped, nil
	}
	if err != nil {
		return 0, err
	}
	want, err := targetsOf(table)
	if err != nil || len(found) != len(want) {
		return update.Different, err
	}
	for i := range want {
		if found[i] != want[i] {
			return update.Different, nil
		}
	}
	return update.Same, nil
}

// targetsOf gives devices by number, as the kernel gives them back.
func targetsOf(table []update.Line) (targets []dm.Target, err error) {
	for _, l := range table {
		t := dm.Target{Start: l.Start, Sectors: l.Sectors, Type: "zero"}
		if l.Device != "" {
			number, err := deviceNumber(l.Device)
			if err != nil {
				return nil, err
			}
			t.Type, t.Args = "linear", fmt.Sprintf("%s %d", number, l.From)
		}
		targets = append(targets, t)
	}
	return targets, nil
}

func deviceNumber(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", fmt.Errorf("%s: expected a block device, found mode %#o", path, st.Mode)
	}
	rdev := uint64(st.Rdev)
	return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev)), nil
}
