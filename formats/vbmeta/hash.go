package vbmeta

import (
	"bytes"
	"crypto"
	"fmt"
	"io"
)

// Check reads a partition of so many bytes and compares its hash. The error wraps
// ErrDigest if it is another one, or ErrAlgorithm if it cannot be told, as where the
// device keeps the digest.
func (h *Hash) Check(r io.ReaderAt, size int64) error {
	digest, err := h.Sum(r, size)
	if err != nil {
		return err
	}
	if len(h.Digest) == 0 {
		return refuse(ErrAlgorithm, "digest of "+h.Partition, "one in the metadata", "none: the device keeps it")
	}
	if !bytes.Equal(digest, h.Digest) {
		return refuse(ErrDigest, h.Algorithm+" of "+h.Partition, fmt.Sprintf("%x", h.Digest), fmt.Sprintf("%x", digest))
	}
	return nil
}

// Sum is the digest of salt and image, of a partition of so many bytes.
func (h *Hash) Sum(r io.ReaderAt, size int64) ([]byte, error) {
	var hash crypto.Hash
	switch h.Algorithm {
	case "sha256":
		hash = crypto.SHA256
	case "sha512":
		hash = crypto.SHA512
	default:
		return nil, refuse(ErrAlgorithm, "hash of "+h.Partition, "sha256 or sha512", fmt.Sprintf("%q", h.Algorithm))
	}
	if size < h.ImageSize {
		return nil, refuse(ErrDigest, "bytes of "+h.Partition, fmt.Sprintf("at least %d", h.ImageSize), size)
	}
	sum := hash.New()
	sum.Write(h.Salt)
	buf := make([]byte, min(1<<20, h.ImageSize))
	n, err := io.CopyBuffer(sum, onlyReader{io.NewSectionReader(r, 0, h.ImageSize)}, buf)
	if err == nil && n < h.ImageSize {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("read %s at %d: %w", h.Partition, n, err)
	}
	return sum.Sum(nil), nil
}

// onlyReader hides what would make io.CopyBuffer do without the buffer.
type onlyReader struct{ io.Reader }
