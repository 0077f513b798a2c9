package verify

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math"

	"cowbird/formats/payload"
)

// ErrState: a Sum's saved state is not one, or is another payload's.
var ErrState = errors.New("no state of this payload's sum")

const (
	maxSignature = payload.DefaultSignature
	stateVersion = 1
)

// Sum follows a payload while it streams through: the hash of the whole file, the
// hash of what is signed, and the payload signature itself. Everything behind the
// metadata has to be written to it, in order and once. It is for one goroutine.
type Sum struct {
	whole, signed hash.Hash
	id            [sha256.Size]byte // of header and manifest
	at            int64             // bytes of the payload so far
	from, to      int64             // where the payload signature is; equal: there is none
	signature     []byte
}

// NewSum begins with the metadata, so that the first byte to be written is that at
// m.BlobOffset.
func NewSum(m *payload.Metadata) (*Sum, error) {
	s := &Sum{whole: sha256.New(), signed: sha256.New(), at: m.BlobOffset()}
	s.from, s.to = s.at, s.at
	if off, n := m.Manifest.GetSignaturesOffset(), m.Manifest.GetSignaturesSize(); n > 0 && m.Manifest.SignaturesOffset != nil {
		if n > maxSignature || off > uint64(math.MaxInt64-s.at)-n {
			return nil, refuse(DownloadPayloadVerificationError, askProducer,
				"payload signature: expected at most %d bytes, found %d at %d", maxSignature, n, off)
		}
		s.from = s.at + int64(off)
		s.to = s.from + int64(n)
	}
	s.signed.Write(m.Signed)
	s.signed.Sum(s.id[:0])
	s.whole.Write(m.Signed)
	s.whole.Write(m.SignatureBytes)
	return s, nil
}

// Offset is how many bytes of the payload are in the sum: where to go on.
func (s *Sum) Offset() int64 { return s.at }

// Write takes the next bytes. It does not fail.
func (s *Sum) Write(p []byte) (int, error) {
	s.whole.Write(p)
	before := clamp(s.from-s.at, len(p))
	inside := clamp(s.to-s.at, len(p))
	s.signed.Write(p[:before])
	s.signature = append(s.signature, p[before:inside]...)
	s.at += int64(len(p))
	return len(p), nil
}

func clamp(n int64, most int) int { return int(max(0, min(n, int64(most)))) }

// MarshalBinary saves the sum, so that an installation goes on in another process.
// A state is good for the same payload and the same version of Cowbird.
func (s *Sum) MarshalBinary() ([]byte, error) {
	b := append([]byte{stateVersion}, s.id[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(s.at))
	for _, h := range []hash.Hash{s.whole, s.signed} {
		state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			return nil, err
		}
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(state))), state...)
	}
	return append(b, s.signature...), nil
}

// ResumeSum goes on where MarshalBinary was. The error wraps ErrState if the state
// is not of this payload: then the payload has to be read from its beginning.
func ResumeSum(m *payload.Metadata, state []byte) (*Sum, error) {
	s, err := NewSum(m)
	if err != nil {
		return nil, err
	}
	const head = 1 + sha256.Size
	if len(state) < head+8 || state[0] != stateVersion || !bytes.Equal(state[1:head], s.id[:]) {
		return nil, fmt.Errorf("%w: expected version %d and the manifest %x, found %d bytes", ErrState, stateVersion, s.id, len(state))
	}
	at := binary.BigEndian.Uint64(state[head:])
	rest := state[head+8:]
	for _, h := range []hash.Hash{s.whole, s.signed} {
		if rest, err = restore(h, rest); err != nil {
			return nil, err
		}
	}
	if at < uint64(s.at) || at > math.MaxInt64 {
		return nil, fmt.Errorf("%w: expected an offset of at least %d, found %d", ErrState, s.at, at)
	}
	s.at = int64(at)
	if want := clamp(s.at-s.from, int(s.to-s.from)); len(rest) != want {
		return nil, fmt.Errorf("%w: expected %d bytes of signature, found %d", ErrState, want, len(rest))
	}
	s.signature = bytes.Clone(rest)
	return s, nil
}

func restore(h hash.Hash, b []byte) (rest []byte, err error) {
	if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
		return nil, fmt.Errorf("%w: expected a hash, found %d bytes", ErrState, len(b))
	}
	end := 2 + int(binary.BigEndian.Uint16(b))
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(b[2:end]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	return b[end:], nil
}
