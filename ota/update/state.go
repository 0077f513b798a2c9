package update

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/bootctl"
	"cowbird/formats/lpmeta"
	"cowbird/formats/snapshotpb"
)

// The files (specs/snapshot-manager.md 2).
const (
	stateFile     = "state"
	snapshotsDir  = "snapshots"
	bootFile      = "snapshot-boot"
	rollbackFile  = "rollback-indicator"
	forwardFile   = "allow-forward-merge"
	oldMetadata   = "old-partition-metadata"
	noSwitchFile  = "snapshot-boot-without-slot-switch"
	fromSystem    = "snapuserd-from-system"
	reportFile    = "merge_state"
	indicatorText = "1"
)

// Short names for the states.
const (
	none        = snapshotpb.UpdateState_None
	initiated   = snapshotpb.UpdateState_Initiated
	unverified  = snapshotpb.UpdateState_Unverified
	merging     = snapshotpb.UpdateState_Merging
	needsReboot = snapshotpb.UpdateState_MergeNeedsReboot
	completed   = snapshotpb.UpdateState_MergeCompleted
	failed      = snapshotpb.UpdateState_MergeFailed
	cancelled   = snapshotpb.UpdateState_Cancelled
)

// origin is what the running slot is to the update.
type origin int

const (
	unknown origin = iota // there is no update that could be booted
	source                // it was installed from here
	target                // it is what was installed
)

func (o origin) String() string { return [...]string{"unknown", "source", "target"}[o] }

// Status is the state of the update.
func (m *Manager) Status() (s *snapshotpb.SnapshotUpdateStatus, err error) {
	err = m.locked(false, func() error { s, err = m.readState(); return err })
	return s, err
}

// readState is the state in its file, or if that is damaged, the one that everything
// else speaks for: a device must come up, and its update must end.
func (m *Manager) readState() (*snapshotpb.SnapshotUpdateStatus, error) {
	s, damage, err := m.parseState()
	if err != nil || damage == nil {
		return s, err
	}
	if s, err = m.guessState(); err != nil {
		return nil, errors.Join(damage, err)
	}
	m.log().Warn("update", "error", damage, "taken for", s.State)
	return s, nil
}

// parseState reads the file. damage says what is wrong with its contents.
func (m *Manager) parseState() (s *snapshotpb.SnapshotUpdateStatus, damage, err error) {
	b, err := get(m.Files, stateFile)
	if err != nil {
		return nil, nil, fmt.Errorf("state of the update: %w", err)
	}
	if s, err = snapshotpb.ParseUpdate(b); err != nil {
		return nil, fmt.Errorf("state of the update, file %s: %w", stateFile, err), nil
	}
	return s, nil, nil
}

// guessState goes by the boot marker, the statuses of the snapshots and what the boot
// loader was told. Snapshots are mapped in both states that the new system can be in,
// and a merge in the first phase waits for no more than it has to.
func (m *Manager) guessState() (*snapshotpb.SnapshotUpdateStatus, error) {
	s := &snapshotpb.SnapshotUpdateStatus{State: initiated}
	o, err := m.origin()
	if err != nil || o == unknown {
		return s, err
	}
	s.State, s.UsingSnapuserd, s.UserspaceSnapshots = unverified, true, true
	if o == source {
		return s, nil
	}
	told, err := m.Slots.MergeStatus()
	if err != nil {
		return nil, err
	}
	current, _, err := m.suffixes()
	if err != nil {
		return nil, err
	}
	all, err := m.statuses(current)
	if err != nil {
		return nil, err
	}
	left := slices.DeleteFunc(slices.Clone(all), func(s *snapshotpb.SnapshotStatus) bool { return s.State == snapMerged })
	begun := slices.ContainsFunc(all, func(s *snapshotpb.SnapshotStatus) bool { return s.State != created })
	if told == bootctl.Merging || begun {
		s.State, s.MergePhase = merging, phaseOf(left)
	}
	return s, nil
}

// writeState goes to another state. edit, if not nil, changes what is carried over.
func (m *Manager) writeState(s snapshotpb.UpdateState, edit func(*snapshotpb.SnapshotUpdateStatus)) error {
	old, err := m.readState()
	if err != nil {
		return err
	}
	next := &snapshotpb.SnapshotUpdateStatus{}
	if s != none && s != initiated {
		next = proto.Clone(old).(*snapshotpb.SnapshotUpdateStatus)
		next.MergePhase, next.MergeFailureCode = old.MergePhase, snapshotpb.MergeFailureCode_Ok
		next.SectorsAllocated, next.TotalSectors, next.MetadataSectors = 0, 0, 0
	}
	if s == initiated {
		next.SourceBuildFingerprint = m.Build
	}
	next.State = s
	if edit != nil {
		edit(next)
	}
	b, err := snapshotpb.Marshal(next)
	if err != nil {
		return err
	}
	// The boot loader is never less careful than the file would have it be.
	status := mergeStatus(s)
	if status != bootctl.MergeNone {
		if err := m.remindBootLoader(s); err != nil {
			return err
		}
	}
	if err := put(m.Files, stateFile, b); err != nil {
		return err
	}
	m.log().Info("update", "was", old.State, "is", s)
	if status == bootctl.MergeNone {
		return m.remindBootLoader(s)
	}
	return nil
}

// remindBootLoader tells the boot loader of the state there is. The power may have
// gone after it was told of one that was not written then, or before it was told.
func (m *Manager) remindBootLoader(s snapshotpb.UpdateState) error {
	if err := m.Slots.SetMergeStatus(mergeStatus(s)); err != nil {
		return fmt.Errorf("tell the boot loader of state %v: %w", s, err)
	}
	return nil
}

// Snapshots are the statuses of all snapshots of the update.
func (m *Manager) Snapshots() (all []*snapshotpb.SnapshotStatus, err error) {
	err = m.locked(false, func() error {
		for _, suffix := range []string{m.Slots.Suffix(0), m.Slots.Suffix(1)} {
			s, err := m.statuses(suffix)
			if err != nil {
				return err
			}
			all = append(all, s...)
		}
		return nil
	})
	return all, err
}

// statuses are those of a slot's partitions; the others are left from another update.
func (m *Manager) statuses(suffix string) (all []*snapshotpb.SnapshotStatus, err error) {
	names, err := list(m.Files, snapshotsDir)
	if err != nil {
		return nil, fmt.Errorf("list the snapshots: %w", err)
	}
	for _, name := range names {
		if lpmeta.Suffix(name) != suffix {
			continue
		}
		s, err := m.readStatus(name)
		if err != nil {
			return nil, err
		}
		if s != nil {
			all = append(all, s)
		}
	}
	return all, nil
}

// readStatus is nil if there is none.
func (m *Manager) readStatus(name string) (*snapshotpb.SnapshotStatus, error) {
	b, err := get(m.Files, statusFile(name))
	if err != nil || b == nil {
		return nil, err
	}
	s, err := snapshotpb.ParseStatus(b)
	if err == nil && s.Name != name {
		err = fmt.Errorf("expected the status of %s, found that of %s", name, s.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("status of snapshot %s: %w", name, err)
	}
	return s, nil
}

func (m *Manager) writeStatus(s *snapshotpb.SnapshotStatus) error {
	b, err := snapshotpb.Marshal(s)
	if err == nil {
		err = put(m.Files, statusFile(s.Name), b)
	}
	return err
}

func (m *Manager) setStatus(s *snapshotpb.SnapshotStatus, state snapshotpb.SnapshotState) error {
	if s.State == state {
		return nil
	}
	s.State = state
	return m.writeStatus(s)
}

func statusFile(name string) string { return snapshotsDir + "/" + name }

// origin tells what the running slot is, by the boot marker.
func (m *Manager) origin() (origin, error) {
	b, err := get(m.Files, bootFile)
	if err != nil {
		return unknown, err
	}
	current, _, err := m.suffixes()
	switch {
	case err != nil:
		return unknown, err
	case len(b) == 0:
		return unknown, nil
	case strings.TrimSpace(string(b)) == current:
		return source, nil
	}
	return target, nil
}

func (m *Manager) has(file string) (bool, error) {
	b, err := get(m.Files, file)
	return b != nil, err
}

// expect refuses what is not done in this state.
func (m *Manager) expect(what string, allowed ...snapshotpb.UpdateState) (*snapshotpb.SnapshotUpdateStatus, error) {
	s, err := m.readState()
	if err != nil {
		return nil, err
	}
	for _, a := range allowed {
		if s.State == a {
			return s, nil
		}
	}
	return nil, fmt.Errorf("%s: %w: expected %v, found %v", what, ErrState, allowed, s.State)
}

// failure is an error with the code that is kept of it.
type failure struct {
	code snapshotpb.MergeFailureCode
	err  error
}

func (f *failure) Error() string { return fmt.Sprintf("%v: %v", f.code, f.err) }
func (f *failure) Unwrap() error { return f.err }

func fail(code snapshotpb.MergeFailureCode, format string, args ...any) error {
	return &failure{code, fmt.Errorf(format, args...)}
}

func codeOf(err error) snapshotpb.MergeFailureCode {
	var f *failure
	if errors.As(err, &f) {
		return f.code
	}
	return snapshotpb.MergeFailureCode_Ok
}
