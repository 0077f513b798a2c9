package control

import (
	"fmt"
	"strconv"
	"strings"
)

// The states of a snapshot, as getstatus names them.
const (
	StateSnapshot = "snapshot"
	StateMerging  = "snapshot-merge"
	StateComplete = "snapshot-merge-complete"
	StateFailed   = "snapshot-merge-failed"
)

// Status is all that the daemon tells about a snapshot.
type Status struct {
	Name         string  `json:"name"`
	State        string  `json:"state"`
	Device       string  `json:"device,omitempty"` // the block device's path; empty before start
	Carrier      string  `json:"carrier"`
	Base         string  `json:"base"`
	Cow          string  `json:"cow"`
	Source       string  `json:"source"`
	Size         int64   `json:"size"` // bytes
	Percent      float64 `json:"percent"`
	MergedOps    int64   `json:"merged_ops"`
	TotalOps     int64   `json:"total_ops"`
	OrderedOps   int64   `json:"ordered_ops"`
	BytesWritten int64   `json:"bytes_written"`
	BytesTotal   int64   `json:"bytes_total"`
	SecondsLeft  int64   `json:"seconds_left"` // of the merge at its rate so far; 0: not known
	ReadErrors   int64   `json:"read_errors"`  // requests of the device that failed
	Rate         int64   `json:"rate"`         // bytes a second; 0: no limit
	Queued       bool    `json:"queued"`       // the merge waits for others
	Paused       bool    `json:"paused"`
	Error        string  `json:"error,omitempty"` // of the last merge or of the device
}

// Percent is the share of ops that are merged. Without ops all is done.
func Percent(merged, total int) float64 {
	if total == 0 {
		return 100
	}
	return float64(merged) * 100 / float64(total)
}

// field couples a key on the wire with the place of its value.
type field struct {
	key   string
	value any // *string, *int64, *float64 or *bool
}

func (s *Status) fields() []field {
	return []field{
		{"name", &s.Name}, {"state", &s.State}, {"device", &s.Device}, {"carrier", &s.Carrier},
		{"base", &s.Base}, {"cow", &s.Cow}, {"source", &s.Source}, {"size", &s.Size},
		{"percent", &s.Percent}, {"merged_ops", &s.MergedOps}, {"total_ops", &s.TotalOps},
		{"ordered_ops", &s.OrderedOps}, {"bytes_written", &s.BytesWritten}, {"bytes_total", &s.BytesTotal},
		{"seconds_left", &s.SecondsLeft}, {"read_errors", &s.ReadErrors}, {"rate", &s.Rate}, {"queued", &s.Queued}, {"paused", &s.Paused}, {"error", &s.Error},
	}
}

var (
	escaper   = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	unescaper = strings.NewReplacer(`\\`, `\`, `\n`, "\n")
)

// Text is the status as it goes over the wire.
func (s Status) Text() string {
	var b strings.Builder
	for _, f := range s.fields() {
		b.WriteString(f.key + "=" + escaper.Replace(f.text()) + "\n")
	}
	return b.String()
}

func (f field) text() string {
	switch v := f.value.(type) {
	case *string:
		return *v
	case *int64:
		return strconv.FormatInt(*v, 10)
	case *float64:
		return FormatPercent(*v)
	case *bool:
		return strconv.FormatBool(*v)
	}
	return ""
}

func (f field) parse(text string) (err error) {
	switch v := f.value.(type) {
	case *string:
		*v = text
	case *int64:
		*v, err = strconv.ParseInt(text, 10, 64)
	case *float64:
		*v, err = strconv.ParseFloat(text, 64)
	case *bool:
		*v, err = strconv.ParseBool(text)
	}
	return err
}

// FormatPercent is the reply to merge_percent: six digits after the point, as
// Android's daemon writes it.
func FormatPercent(p float64) string { return strconv.FormatFloat(p, 'f', 6, 64) }

// ParseStatus reads what Text wrote. Keys that are not known are passed over,
// for they belong to a later version.
func ParseStatus(text string) (Status, error) {
	var s Status
	fields := s.fields()
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok {
			return s, fmt.Errorf("%w: expected key=value, found %q", ErrReply, line)
		}
		for _, f := range fields {
			if f.key != key {
				continue
			}
			if err := f.parse(unescaper.Replace(value)); err != nil {
				return s, fmt.Errorf("%w: %s: %w", ErrReply, key, err)
			}
		}
	}
	return s, nil
}
