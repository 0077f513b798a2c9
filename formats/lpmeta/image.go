package lpmeta

import (
	"fmt"
	"io"
)

// ReadImage reads an image file of metadata. Names that are left open stay so:
// see ForSlot.
func ReadImage(r io.ReaderAt) (*Metadata, error) {
	g, err := readGeometryAt(r, 0)
	if err != nil {
		return nil, err
	}
	return readMetadata(r, geometrySize, g)
}

// WriteImage writes an image file of metadata.
func WriteImage(w io.Writer, m *Metadata) error {
	if err := m.Validate(); err != nil {
		return err
	}
	if _, err := w.Write(append(m.Geometry.encode(), m.encode()...)); err != nil {
		return fmt.Errorf("write an image of metadata: %w", err)
	}
	return nil
}
