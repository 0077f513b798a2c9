package payload

import (
	"fmt"
	"math"

	"cowbird/formats/payload/pb"
)

// Hole is the start of an extent that lies nowhere: it reads as zeros, and what is
// written to it is dropped (specs/payload.md 3).
const Hole = math.MaxUint64

const source, destination = "source", "destination"

// Blocks is how many blocks some extents have. Check has found that the sum fits.
func Blocks(extents []*pb.Extent) (n uint64) {
	for _, e := range extents {
		n += e.GetNumBlocks()
	}
	return n
}

// checkExtents finds extents that end behind so many blocks, and empty ones. A source
// may have those: a file that is new has an empty one before it.
func checkExtents(extents []*pb.Extent, blocks uint64, what string) error {
	total := uint64(0)
	for i, e := range extents {
		if what == source && e.GetNumBlocks() == 0 {
			continue
		}
		if err := checkExtent(e, blocks); err != nil {
			return fmt.Errorf("%s extent %d: %w", what, i, err)
		}
		if total += e.GetNumBlocks(); total > math.MaxInt64/4096 {
			return fmt.Errorf("%w: %s extents: expected fewer blocks than %d", ErrManifest, what, total)
		}
	}
	return nil
}

func checkExtent(e *pb.Extent, blocks uint64) error {
	start, n := e.GetStartBlock(), e.GetNumBlocks()
	if n == 0 || n > math.MaxInt64/4096 {
		return fmt.Errorf("%w: expected some blocks, found %d", ErrManifest, n)
	}
	if start != Hole && (start > blocks || n > blocks-start) {
		return fmt.Errorf("%w: expected to end at block %d at most, found %d blocks from %d", ErrManifest, blocks, n, start)
	}
	return nil
}
