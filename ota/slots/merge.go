package slots

import (
	"fmt"
	"strconv"
	"strings"

	"cowbird/formats/bootctl"
)

// mergeVariable is where boot loaders without a place of their own for it have the merge
// status.
const mergeVariable = "cowbird_merge"

// noMerge is the message where none was ever written.
var noMerge = bootctl.VirtualAB{Source: bootctl.NoSlot}

// formatMerge is a status and the slot that it was written in, "snapshotted 0".
func formatMerge(m bootctl.VirtualAB) string { return fmt.Sprintf("%v %d", m.Status, m.Source) }

// parseMerge reads what formatMerge wrote. Nothing is no merge, and what is not
// understood is not known.
func parseMerge(text string) bootctl.VirtualAB {
	if text == "" {
		return noMerge
	}
	name, number, _ := strings.Cut(strings.TrimSuffix(text, "\n"), " ")
	source, err := strconv.ParseUint(number, 10, 8)
	for s := bootctl.MergeNone; s <= bootctl.MergeCancelled && err == nil; s++ {
		if s.String() == name {
			return bootctl.VirtualAB{Status: s, Source: int(source)}
		}
	}
	return bootctl.VirtualAB{Status: bootctl.MergeUnknown, Source: bootctl.NoSlot}
}
