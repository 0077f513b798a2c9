package generate

import (
	"archive/zip"
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"io"
	"path"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

const (
	streamingFiles = "ota-streaming-property-files"
	allFiles       = "ota-property-files"
	// reserved is how long a list of property files is, with spaces at its end: the
	// lists are in files whose place they tell.
	reserved = 400
)

// Extra is a file of an OTA zip besides those that every one has.
type Extra struct {
	Name string
	Data []byte
}

// Extras are what target files add to a zip: modules, each with its version in the old
// build if there is one, and what is to be read before the build counts as good. older is
// nil for a full payload.
func Extras(newer, older *Input) (all []Extra, err error) {
	if len(newer.Apexes) > 0 {
		m := &pb.ApexMetadata{}
		for _, a := range newer.Apexes {
			m.ApexInfo = append(m.ApexInfo, withSource(a, older))
		}
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			return nil, err
		}
		all = append(all, Extra{"apex_info.pb", b})
	}
	if newer.CareMap != nil {
		all = append(all, Extra{"care_map.pb", newer.CareMap})
	}
	return all, nil
}

// sourceVersion is a field that modules have in zips only (specs/payload.md 5.2).
const sourceVersion = 5

func withSource(a *pb.ApexInfo, older *Input) *pb.ApexInfo {
	a = proto.Clone(a).(*pb.ApexInfo)
	if older == nil {
		return a
	}
	for _, was := range older.Apexes {
		if was.GetPackageName() == a.GetPackageName() {
			b := protowire.AppendTag(a.ProtoReflect().GetUnknown(), sourceVersion, protowire.VarintType)
			a.ProtoReflect().SetUnknown(protowire.AppendVarint(b, uint64(was.GetVersion())))
		}
	}
	return a
}

// Package is what an OTA zip has besides the payload.
type Package struct {
	// Metadata tell what the payload is for; lists of files are added.
	Metadata *pb.OtaMetadata
	Extras   []Extra
	// Certificate, if not nil, is that of whom SignZip will sign the zip by.
	Certificate *x509.Certificate
}

// WritePackage writes an OTA zip with a payload, which w describes. Everything is stored,
// so that it can be streamed; times are not told. It returns how many bytes that are.
func WritePackage(out io.Writer, f io.ReaderAt, w *Written, p Package) (int64, error) {
	size := w.Properties.FileSize
	m, err := payload.Read(io.NewSectionReader(f, 0, size), size, payload.Limits{})
	if err != nil {
		return 0, err
	}
	z := &zipWriter{}
	z.Writer = zip.NewWriter(io.MultiWriter(out, &z.at))
	crc := crc32.NewIEEE()
	if _, err := io.Copy(crc, io.NewSectionReader(f, 0, size)); err != nil {
		return 0, err
	}
	if err := z.store(payload.EntryName, io.NewSectionReader(f, 0, size), size, crc.Sum32()); err != nil {
		return 0, err
	}
	if err := z.bytes(payload.PropertiesName, w.Properties.Append(nil)); err != nil {
		return 0, err
	}
	for _, e := range p.Extras {
		if err := z.bytes(e.Name, e.Data); err != nil {
			return 0, err
		}
	}
	meta := proto.Clone(p.Metadata).(*pb.OtaMetadata)
	meta.PropertyFiles = map[string]string{streamingFiles: strings.Repeat(" ", reserved), allFiles: strings.Repeat(" ", reserved)}
	text, message, err := forms(meta)
	if err != nil {
		return 0, err
	}
	textAt := int64(z.at) + entryHead(payload.MetadataTextName)
	messageAt := textAt + int64(len(text)) + entryHead(payload.MetadataName)
	list := z.list + entry(payload.MetadataTextName, textAt, len(text)) + entry(payload.MetadataName, messageAt, len(message))
	blobs := m.BlobOffset()
	meta.PropertyFiles[streamingFiles] = padded(list)
	meta.PropertyFiles[allFiles] = padded(fmt.Sprintf("payload_metadata.bin:%d:%d,", entryHead(payload.EntryName), blobs) + list)
	if text, message, err = forms(meta); err != nil {
		return 0, err
	}
	if err := z.bytes(payload.MetadataTextName, text); err != nil {
		return 0, err
	}
	if err := z.bytes(payload.MetadataName, message); err != nil {
		return 0, err
	}
	if c := p.Certificate; c != nil {
		if err := z.bytes(certificateName, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})); err != nil {
			return 0, err
		}
	}
	err = z.Close()
	return int64(z.at), err
}

func forms(m *pb.OtaMetadata) (text, message []byte, err error) {
	message, err = proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return payload.AppendMetadataText(nil, m), message, err
}

func padded(list string) string {
	list = strings.TrimSuffix(list, ",")
	return list + strings.Repeat(" ", max(0, reserved-len(list)))
}

func entry(name string, at int64, size int) string {
	return fmt.Sprintf("%s:%d:%d,", path.Base(name), at, size)
}

// entryHead is what comes before a stored entry's data, in bytes.
func entryHead(name string) int64 { return 30 + int64(len(name)) }

type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

type zipWriter struct {
	*zip.Writer
	at   counter
	list string // of property files so far
}

func (z *zipWriter) bytes(name string, b []byte) error {
	return z.store(name, bytes.NewReader(b), int64(len(b)), crc32.ChecksumIEEE(b))
}

func (z *zipWriter) store(name string, r io.Reader, size int64, crc uint32) error {
	w, err := z.CreateRaw(&zip.FileHeader{Name: name, Method: zip.Store, CRC32: crc, CompressedSize64: uint64(size), UncompressedSize64: uint64(size)})
	if err == nil {
		err = z.Flush()
	}
	if err != nil {
		return err
	}
	z.list += entry(name, int64(z.at), int(size))
	if _, err = io.Copy(w, r); err == nil {
		err = z.Flush()
	}
	return err
}
