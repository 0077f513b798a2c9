package payload

import (
	"archive/zip"
	"fmt"
	"io"
)

const (
	// EntryName and PropertiesName are what an OTA zip calls its parts.
	EntryName      = "payload.bin"
	PropertiesName = "payload_properties.txt"
)

// Range is bytes of a file.
type Range struct{ Offset, Size int64 }

// Package is an OTA zip.
type Package struct {
	Payload    Range
	Properties *Properties // nil: there are none
}

// IsZip tells from a file's first four bytes whether it may be a package.
func IsZip(first []byte) bool { return len(first) >= 4 && string(first[:4]) == "PK\x03\x04" }

// InZip finds the payload in an OTA zip of that size. prefix is "" or, in zips that
// hold more than one, as "secondary/", the folder.
func InZip(r io.ReaderAt, size int64, prefix string) (*Package, error) {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrZip, err)
	}
	var p Package
	for _, f := range z.File {
		switch f.Name {
		case prefix + EntryName:
			if p.Payload, err = stored(f, size); err != nil {
				return nil, err
			}
		case prefix + PropertiesName:
			if p.Properties, err = readProperties(f); err != nil {
				return nil, err
			}
		}
	}
	if p.Payload.Size == 0 {
		return nil, fmt.Errorf("%w: expected an entry %s, found none", ErrZip, prefix+EntryName)
	}
	return &p, nil
}

func stored(f *zip.File, size int64) (Range, error) {
	if f.Method != zip.Store {
		return Range{}, fmt.Errorf("%w: %s: expected it stored, so that it can be read as it comes, found method %d", ErrZip, f.Name, f.Method)
	}
	off, err := f.DataOffset()
	if err != nil {
		return Range{}, fmt.Errorf("%w: %s: %w", ErrZip, f.Name, err)
	}
	n := int64(f.UncompressedSize64)
	if n < HeaderSize || off < 0 || off > size || n > size-off {
		return Range{}, fmt.Errorf("%w: %s: expected it within %d bytes, found %d bytes at %d", ErrZip, f.Name, size, n, off)
	}
	return Range{off, n}, nil
}

func readProperties(f *zip.File) (*Properties, error) {
	r, err := f.Open()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrZip, f.Name, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxProperties+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrZip, f.Name, err)
	}
	p, err := ParseProperties(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	return p, nil
}
