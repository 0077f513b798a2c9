package payload

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Properties is a payload_properties.txt: what is known of a payload before it is
// read, and arguments for the client (specs/payload.md 5.1).
type Properties struct {
	FileHash     []byte // SHA-256 of the whole payload; nil: not given
	FileSize     int64  // bytes; 0: not given
	MetadataHash []byte // SHA-256 of header and manifest; nil: not given
	MetadataSize int64  // bytes; 0: not given
	// More are the keys that are not of the payload: POWERWASH, USER_AGENT, ….
	More map[string]string
}

const (
	keyFileHash     = "FILE_HASH"
	keyFileSize     = "FILE_SIZE"
	keyMetadataHash = "METADATA_HASH"
	keyMetadataSize = "METADATA_SIZE"
)

// maxProperties is how large such a file may be, in bytes.
const maxProperties = 64 << 10

// ParseProperties takes a properties file apart.
func ParseProperties(b []byte) (*Properties, error) {
	if len(b) > maxProperties {
		return nil, fmt.Errorf("%w: expected at most %d bytes, found %d", ErrProperties, maxProperties, len(b))
	}
	p, seen := &Properties{More: map[string]string{}}, map[string]bool{}
	number := 0
	for line := range strings.Lines(string(b)) {
		number++
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		key, value, found := strings.Cut(line, "=")
		if !found || key == "" {
			return nil, fmt.Errorf("%w: line %d: expected KEY=value, found %q", ErrProperties, number, line)
		}
		if seen[key] {
			return nil, fmt.Errorf("%w: line %d: expected each key once, found %s again", ErrProperties, number, key)
		}
		seen[key] = true
		if err := p.set(key, value); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
	}
	return p, nil
}

func (p *Properties) set(key, value string) (err error) {
	switch key {
	case keyFileHash:
		p.FileHash, err = parseHash(value)
	case keyMetadataHash:
		p.MetadataHash, err = parseHash(value)
	case keyFileSize:
		p.FileSize, err = parseSize(value)
	case keyMetadataSize:
		p.MetadataSize, err = parseSize(value)
	default:
		p.More[key] = value
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrProperties, key, err)
	}
	return nil
}

func parseHash(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err == nil && len(b) != 32 {
		err = fmt.Errorf("expected 32 bytes, found %d", len(b))
	}
	return b, err
}

func parseSize(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err == nil && n <= 0 {
		err = fmt.Errorf("expected a number above 0, found %d", n)
	}
	return n, err
}

// Append appends the file; keys that are not of the payload come last, sorted.
func (p *Properties) Append(b []byte) []byte {
	out := bytes.NewBuffer(b)
	hash := func(key string, h []byte) {
		if h != nil {
			fmt.Fprintf(out, "%s=%s\n", key, base64.StdEncoding.EncodeToString(h))
		}
	}
	size := func(key string, n int64) {
		if n > 0 {
			fmt.Fprintf(out, "%s=%d\n", key, n)
		}
	}
	hash(keyFileHash, p.FileHash)
	size(keyFileSize, p.FileSize)
	hash(keyMetadataHash, p.MetadataHash)
	size(keyMetadataSize, p.MetadataSize)
	for _, key := range slices.Sorted(maps.Keys(p.More)) {
		fmt.Fprintf(out, "%s=%s\n", key, p.More[key])
	}
	return out.Bytes()
}

// ID names the payload, so that a started installation is not continued with
// another one. It is empty if the hashes are not known.
func (p *Properties) ID() string {
	if p.FileHash == nil || p.MetadataHash == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(p.FileHash) + base64.StdEncoding.EncodeToString(p.MetadataHash)
}
