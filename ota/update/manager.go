package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"cowbird/formats/bootctl"
	"cowbird/formats/lpmeta"
	"cowbird/formats/snapshotpb"
	"cowbird/ota/slots"
)

var (
	// ErrState: the update is not in a state in which that can be done.
	ErrState = errors.New("not possible in this state of the update")
	// ErrLive: the running system is made of the snapshots that would be removed.
	ErrLive = errors.New("the running system consists of these snapshots")
	// ErrNeedsMerge: the merge has begun, so that there is no way back.
	ErrNeedsMerge = errors.New("the merge has begun and must be finished")
	// ErrManifest: the payload says too little, or contradicts itself or the device.
	ErrManifest = errors.New("payload does not fit this device")
	// ErrNoSpace: see NoSpaceError.
	ErrNoSpace = errors.New("not enough space for the update")
	// ErrBusy: a device is in use.
	ErrBusy = errors.New("device is in use")
	// ErrNotMapped: a snapshot of the running system is not mapped.
	ErrNotMapped = errors.New("snapshot is not mapped")
)

// NoSpaceError tells how much space the COWs need that there is not.
type NoSpaceError struct {
	Needed  int64 // bytes, of all COWs
	Super   int64 // bytes of these for which there is room in super
	Missing int64 // bytes for which there is room neither there nor in files
}

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("%v: %d bytes are needed, of which %d fit into super; %d bytes are missing for the rest",
		ErrNoSpace, e.Needed, e.Super, e.Missing)
}

func (e *NoSpaceError) Unwrap() error { return ErrNoSpace }

// Line is a piece of a mapped device: sectors of another one, or zeros.
type Line struct {
	Start, Sectors uint64 // of the mapped device
	Device         string // path; "" for zeros
	From           uint64 // first sector there
}

// Mapping is what is known of a mapped device.
type Mapping int

const (
	NotMapped Mapping = iota
	Same              // it is mapped as asked
	Different         // it is mapped to something else
)

// Mapper makes block devices out of pieces of others: device-mapper.
type Mapper interface {
	// Map makes a device and gives its path, also if it is there with that table.
	Map(ctx context.Context, name string, table []Line, readOnly bool) (path string, err error)
	// MapTarget makes a read-only device of one target of another kind, with these
	// arguments, and gives its path, also if it is there.
	MapTarget(ctx context.Context, name, kind string, sectors uint64, args string) (path string, err error)
	// Swap replaces the table of a device that may be in use.
	Swap(ctx context.Context, name string, table []Line, readOnly bool) error
	// Unmap removes a device; one that is not there is fine. It fails with ErrBusy.
	Unmap(ctx context.Context, name string) error
	// Path is where a device is, if it is mapped.
	Path(name string) (path string, mapped bool, err error)
	// Compare tells whether a device is mapped with this table.
	Compare(name string, table []Line) (Mapping, error)
}

// States of a snapshot, as Daemon tells them.
const (
	snapshotIdle    = "snapshot"
	snapshotMerging = "snapshot-merge"
	snapshotMerged  = "snapshot-merge-complete"
	snapshotFailed  = "snapshot-merge-failed"
)

// Daemon serves snapshots and merges them: snapuserd.
type Daemon interface {
	// Map serves base + COW and gives the block device's path. source may be base.
	Map(ctx context.Context, name, cow, source, base string) (device string, err error)
	// State is one of Android's four names for how far the merge is. An unknown
	// snapshot is an error.
	State(ctx context.Context, name string) (string, error)
	// Merge has a merge begin, which may be going on already.
	Merge(ctx context.Context, name string) error
	// Pause holds all merges, or lets them go on.
	Pause(ctx context.Context, on bool) error
	// Delete ends a snapshot; one that is not there is fine.
	Delete(ctx context.Context, name string) error
}

// Images are files in which COWs lie that do not fit into super. Their blocks
// never move, so they can be mapped without their file system.
type Images interface {
	// Room is how many bytes files can take.
	Room() (int64, error)
	// Create makes a file of zeros, durably. One of that name is replaced.
	Create(name string, bytes int64) error
	// Table is where a file's bytes are.
	Table(name string) ([]Line, error)
	// Delete removes a file; one that is not there is fine.
	Delete(name string) error
	// Disable notes that a file is nobody's any more, where its file system cannot
	// be written: Delete follows when that can be.
	Disable(name string) error
	// List gives the names of all.
	List() ([]string, error)
}

// belowName is what Boot maps over the device of the user's data, and that device's name
// in ExtentImages' record.
const belowName = "userdata"

// Super is where the metadata of partitions are, and their data.
type Super struct {
	// Metadata is the super partition, or a file that has the metadata of other
	// partitions.
	Metadata lpmeta.Device
	// Device gives the path of a block device by its name in the metadata.
	Device func(name string) string
}

// Disk opens a mapped device for writing.
type Disk func(path string) (WriteDevice, error)

// WriteDevice is a block device. Sync makes writes durable.
type WriteDevice interface {
	io.WriterAt
	Sync() error
	Close() error
}

// Manager is all that an update consists of. Every field but Images and Log is
// needed.
type Manager struct {
	Files  Files
	Slots  slots.Slots
	Super  Super
	Mapper Mapper
	Daemon Daemon
	Open   Disk
	Images Images // nil: COWs are in super only
	// Below is the block device of the user's data, which Boot maps as it is, under
	// the name userdata; see ExtentImages. Without lines it maps nothing.
	Below []Line
	Log   *slog.Logger
	// Build is the name of the running system, which is kept with the update.
	Build string
	// Recovery: what runs is a recovery system and not the slot's, and the user's data
	// may be locked. Files of COWs are left, disabled, for the device's own system.
	Recovery bool
}

func (m *Manager) log() *slog.Logger {
	if m.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return m.Log
}

// locked runs f under the lock of the folder.
func (m *Manager) locked(exclusive bool, f func() error) error {
	unlock, err := m.Files.Lock(exclusive)
	if err != nil {
		return fmt.Errorf("lock the state of updates: %w", err)
	}
	defer unlock()
	return f()
}

// suffixes are those of the running slot and of the other one.
func (m *Manager) suffixes() (current, other string, err error) {
	if m.Slots.Count() != 2 {
		return "", "", fmt.Errorf("%w: expected 2 slots, found %d", slots.ErrConfig, m.Slots.Count())
	}
	slot, err := m.Slots.Current()
	if err != nil {
		return "", "", err
	}
	return m.Slots.Suffix(slot), m.Slots.Suffix(1 - slot), nil
}

// metadata are those of the running slot.
func (m *Manager) metadata() (*lpmeta.Metadata, error) {
	slot, err := m.Slots.Current()
	if err != nil {
		return nil, err
	}
	return m.metadataOf(slot)
}

func (m *Manager) metadataOf(slot int) (*lpmeta.Metadata, error) {
	meta, err := lpmeta.Read(m.Super.Metadata, slot)
	if err != nil {
		return nil, fmt.Errorf("partitions of slot %s: %w", m.Slots.Suffix(slot), err)
	}
	return meta, nil
}

// lines are a partition's, for the Mapper.
func (m *Manager) lines(meta *lpmeta.Metadata, name string) []Line {
	p := meta.Partition(name)
	if p == nil {
		return nil
	}
	var lines []Line
	for _, l := range meta.Table(p) {
		line := Line{Start: l.Start, Sectors: l.Length}
		if !l.Zero {
			line.Device, line.From = m.Super.Device(meta.BlockDevices[l.Device].Name), l.Data
		}
		lines = append(lines, line)
	}
	return lines
}

// boot status per state (specs/snapshot-manager.md 4).
func mergeStatus(s snapshotpb.UpdateState) bootctl.MergeStatus {
	switch s {
	case snapshotpb.UpdateState_Unverified:
		return bootctl.MergeSnapshotted
	case snapshotpb.UpdateState_Merging, snapshotpb.UpdateState_MergeFailed:
		return bootctl.Merging
	}
	return bootctl.MergeNone
}
