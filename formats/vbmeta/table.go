package vbmeta

import (
	"encoding/hex"
	"fmt"
	"strings"
)

const sectorSize = 512

// TableOptions are what a device decides about dm-verity.
type TableOptions struct {
	// OnCorruption is what a bad block does besides failing the read:
	// "restart_on_corruption", "panic_on_corruption", "ignore_corruption" or, with "",
	// nothing.
	OnCorruption string
	WithoutFEC   bool // no error correction even if the partition has it
}

// Sectors is the length of the dm-verity device, in sectors of 512 bytes.
func (h *Hashtree) Sectors() int64 { return h.ImageSize / sectorSize }

// Table is the parameters of the dm-verity target for a partition, a path or
// major:minor. dmsetup wants "0 SECTORS verity" in front.
func (h *Hashtree) Table(device string, o TableOptions) string {
	hexOr := func(b []byte) string {
		if len(b) == 0 {
			return "-"
		}
		return hex.EncodeToString(b)
	}
	options := h.tableOptions(device, o)
	return fmt.Sprintf("1 %s %s %d %d %d %d %s %s %s %d %s", device, device, h.DataBlockSize, h.HashBlockSize,
		h.ImageSize/h.DataBlockSize, h.TreeOffset/h.HashBlockSize, h.Algorithm, hexOr(h.RootDigest), hexOr(h.Salt),
		len(options), strings.Join(options, " "))
}

func (h *Hashtree) tableOptions(device string, o TableOptions) (words []string) {
	if h.FECSize > 0 && !o.WithoutFEC {
		start := fmt.Sprint(h.FECOffset / h.DataBlockSize)
		words = append(words, "use_fec_from_device", device, "fec_roots", fmt.Sprint(h.FECRoots), "fec_blocks", start, "fec_start", start)
	}
	if o.OnCorruption != "" {
		words = append(words, o.OnCorruption)
	}
	words = append(words, "ignore_zero_blocks")
	if h.Flags&CheckAtMostOnce != 0 {
		words = append(words, "check_at_most_once")
	}
	return words
}
