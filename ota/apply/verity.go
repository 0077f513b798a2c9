package apply

import (
	"fmt"
	"io"

	"cowbird/formats/payload/pb"
	"cowbird/formats/verity"
)

// ReaderWriterAt is a new partition whose operations are done.
type ReaderWriterAt interface {
	io.ReaderAt
	io.WriterAt
}

// WriteVerity makes the hash tree and then the error correction of a partition,
// which a payload may leave to the device (specs/payload.md 11).
func WriteVerity(p *pb.PartitionUpdate, blockSize int64, f ReaderWriterAt) error {
	if area := p.GetHashTreeExtent(); area.GetNumBlocks() > 0 {
		if err := writeTree(p, blockSize, f); err != nil {
			return fmt.Errorf("hash tree: %w", err)
		}
	}
	if area := p.GetFecExtent(); area.GetNumBlocks() > 0 {
		if err := writeFEC(p, blockSize, f); err != nil {
			return fmt.Errorf("error correction: %w", err)
		}
	}
	return nil
}

func writeTree(p *pb.PartitionUpdate, blockSize int64, f ReaderWriterAt) error {
	tree, err := verity.NewTree(p.GetHashTreeAlgorithm(), p.GetHashTreeSalt(), blockSize)
	if err != nil {
		return err
	}
	data, area := bytesOf(p.GetHashTreeDataExtent(), blockSize), bytesOf(p.GetHashTreeExtent(), blockSize)
	if n := tree.Size(data.size); n != area.size {
		return fmt.Errorf("%w: expected %d bytes, found room for %d", ErrOutput, n, area.size)
	}
	_, err = tree.Build(io.NewSectionReader(f, data.offset, data.size), data.size, io.NewOffsetWriter(f, area.offset))
	return err
}

func writeFEC(p *pb.PartitionUpdate, blockSize int64, f ReaderWriterAt) error {
	fec := verity.FEC{Roots: int(p.GetFecRoots()), BlockSize: blockSize}
	data, area := bytesOf(p.GetFecDataExtent(), blockSize), bytesOf(p.GetFecExtent(), blockSize)
	if n := fec.Size(data.size); n != area.size {
		return fmt.Errorf("%w: expected %d bytes, found room for %d", ErrOutput, n, area.size)
	}
	return fec.Build(io.NewSectionReader(f, data.offset, data.size), data.size, io.NewOffsetWriter(f, area.offset))
}

type byteRange struct{ offset, size int64 }

func bytesOf(e *pb.Extent, blockSize int64) byteRange {
	return byteRange{int64(e.GetStartBlock()) * blockSize, int64(e.GetNumBlocks()) * blockSize}
}
