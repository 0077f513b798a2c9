package payload

import (
	"archive/zip"
	"cmp"
	"fmt"
	"io"

	"cowbird/formats/payload/pb"
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
	// Metadata say what the package is for; nil: nothing. They come from the message
	// or, in older packages, the text.
	Metadata *pb.OtaMetadata
	// CareMap is the file, which ParseCareMap has found right; nil: there is none.
	CareMap []byte
}

// maxEntry bounds the entries that are held, in bytes.
const maxEntry = 1 << 20

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
	var text *pb.OtaMetadata
	for _, f := range z.File {
		switch f.Name {
		case prefix + EntryName:
			p.Payload, err = stored(f, size)
		case prefix + PropertiesName:
			p.Properties, err = readEntry(f, maxProperties, ParseProperties)
		case MetadataName:
			p.Metadata, err = readEntry(f, maxEntry, parseMetadata)
		case MetadataTextName:
			text, err = readEntry(f, maxEntry, ParseMetadataText)
		case CareMapName:
			p.CareMap, err = readEntry(f, maxEntry, func(b []byte) ([]byte, error) {
				_, err := ParseCareMap(b)
				return b, err
			})
		}
		if err != nil {
			return nil, err
		}
	}
	p.Metadata = cmp.Or(p.Metadata, text)
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

// readEntry takes an entry apart that has at most so many bytes.
func readEntry[T any](f *zip.File, most int64, parse func([]byte) (T, error)) (v T, err error) {
	r, err := f.Open()
	if err != nil {
		return v, fmt.Errorf("%w: %s: %w", ErrZip, f.Name, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("expected at most %d bytes, found %d", most, f.UncompressedSize64)
	}
	if err != nil {
		return v, fmt.Errorf("%w: %s: %w", ErrZip, f.Name, err)
	}
	if v, err = parse(b); err != nil {
		return v, fmt.Errorf("%s: %w", f.Name, err)
	}
	return v, nil
}
