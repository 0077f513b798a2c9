package payload

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload/pb"
)

// BlockRange is a half-open range of blocks.
type BlockRange struct{ Start, End uint64 }

// CarePartition is what of a partition is read once after the first boot.
type CarePartition struct {
	Name        string
	Ranges      []BlockRange
	ID          string // the property that fingerprint is compared with
	Fingerprint string
}

// ParseCareMap reads a care_map.pb (specs/payload.md 5.3). The error is
// ErrCareMap.
func ParseCareMap(b []byte) ([]CarePartition, error) {
	m := &pb.CareMap{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCareMap, err)
	}
	var all []CarePartition
	for _, p := range m.GetPartitions() {
		if p.GetName() == "" {
			return nil, fmt.Errorf("%w: partition %d: expected a name, found none", ErrCareMap, len(all))
		}
		ranges, err := ParseRanges(p.GetRanges())
		if err != nil {
			return nil, fmt.Errorf("partition %.80q: %w", p.GetName(), err)
		}
		all = append(all, CarePartition{p.GetName(), ranges, p.GetId(), p.GetFingerprint()})
	}
	return all, nil
}

// ParseRanges reads a range set as text: how many numbers follow, then the
// start and end of each range, joined by commas. Ranges are not empty and
// rise; the error is ErrCareMap.
func ParseRanges(text string) ([]BlockRange, error) {
	words := strings.Split(text, ",")
	numbers := make([]uint64, len(words))
	for i, w := range words {
		n, err := strconv.ParseUint(w, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%w: expected number %d of a range set, found %.40q", ErrCareMap, i, w)
		}
		numbers[i] = n
	}
	count, numbers := numbers[0], numbers[1:]
	if count != uint64(len(numbers)) || count%2 != 0 || count == 0 {
		return nil, fmt.Errorf("%w: expected %d numbers of a range set, in pairs, found %d", ErrCareMap, count, len(numbers))
	}
	var ranges []BlockRange
	at := uint64(0)
	for i := 0; i < len(numbers); i += 2 {
		r := BlockRange{numbers[i], numbers[i+1]}
		if r.Start < at || r.End <= r.Start {
			return nil, fmt.Errorf("%w: range %d: expected blocks that rise from %d on, found %d to %d", ErrCareMap, i/2, at, r.Start, r.End)
		}
		ranges, at = append(ranges, r), r.End
	}
	return ranges, nil
}

// FormatRanges is the text that ParseRanges reads.
func FormatRanges(ranges []BlockRange) string {
	text := strconv.Itoa(2 * len(ranges))
	for _, r := range ranges {
		text += fmt.Sprintf(",%d,%d", r.Start, r.End)
	}
	return text
}
