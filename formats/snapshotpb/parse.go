package snapshotpb

import (
	"bytes"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
)

var (
	// ErrMessage: not a message of its kind.
	ErrMessage = errors.New("malformed snapshot message")
	// ErrTooLarge: above MaxFile.
	ErrTooLarge = errors.New("snapshot message too large")
)

// MaxFile is how many bytes a file with a status or a report may have. Real ones have
// some hundred.
const MaxFile = 64 << 10

// legacy are the texts that stood in the state file before it was a message.
var legacy = map[string]UpdateState{
	"none":               UpdateState_None,
	"initiated":          UpdateState_Initiated,
	"unverified":         UpdateState_Unverified,
	"merging":            UpdateState_Merging,
	"merge-completed":    UpdateState_MergeCompleted,
	"merge-needs-reboot": UpdateState_MergeNeedsReboot,
	"merge-failed":       UpdateState_MergeFailed,
	"cancelled":          UpdateState_Cancelled,
}

// ParseUpdate reads a state file. An empty one says None, as does one that is missing
// (whose caller passes nil); the texts of older systems are understood. A state that
// is not known here is kept as its number. The errors are ErrMessage and ErrTooLarge.
func ParseUpdate(b []byte) (*SnapshotUpdateStatus, error) {
	if state, found := legacy[string(bytes.TrimSuffix(b, []byte("\n")))]; found {
		return &SnapshotUpdateStatus{State: state}, nil
	}
	m := &SnapshotUpdateStatus{}
	if err := parse("update status", b, m); err != nil {
		return nil, err
	}
	return m, nil
}

// ParseStatus reads the status of one partition's snapshot, which has a name. The
// errors are ErrMessage and ErrTooLarge.
func ParseStatus(b []byte) (*SnapshotStatus, error) {
	m := &SnapshotStatus{}
	if err := parse("snapshot status", b, m); err != nil {
		return nil, err
	}
	if m.Name == "" {
		return nil, fmt.Errorf("%w: snapshot status: expected a name, found none in %d bytes", ErrMessage, len(b))
	}
	return m, nil
}

// ParseReport reads a merge_state file; an empty one is an empty report. The errors are
// ErrMessage and ErrTooLarge.
func ParseReport(b []byte) (*SnapshotMergeReport, error) {
	m := &SnapshotMergeReport{}
	if err := parse("merge report", b, m); err != nil {
		return nil, err
	}
	return m, nil
}

func parse(what string, b []byte, m proto.Message) error {
	if len(b) > MaxFile {
		return fmt.Errorf("%w: %s: expected at most %d bytes, found %d", ErrTooLarge, what, MaxFile, len(b))
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: %s of %d bytes: %w", ErrMessage, what, len(b), err)
	}
	return nil
}

// Marshal returns the bytes of a message of this package: known fields by number, then
// those that were not known when it was read. Equal messages give equal bytes. The only error
// is ErrMessage, for strings that are not UTF-8.
func Marshal(m proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return b, nil
}
