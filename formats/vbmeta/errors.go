package vbmeta

import (
	"errors"
	"fmt"
)

var (
	// ErrNotVBMeta: the input does not begin with the magic of metadata.
	ErrNotVBMeta = errors.New("not verified boot metadata")
	// ErrNoFooter: the last 64 bytes of a partition are no footer.
	ErrNoFooter = errors.New("no verified boot footer")
	// ErrTruncated: the input ends before the metadata does.
	ErrTruncated = errors.New("truncated verified boot metadata")
	// ErrCorrupt: the metadata or the footer break a rule of their format.
	ErrCorrupt = errors.New("corrupt verified boot metadata")
	// ErrTooLarge: the metadata have more than MaxSize bytes.
	ErrTooLarge = errors.New("verified boot metadata are too large")
	// ErrVersion: the metadata are for a newer version, or another one.
	ErrVersion = errors.New("unsupported version of verified boot metadata")
	// ErrAlgorithm: an algorithm that is not known here.
	ErrAlgorithm = errors.New("unsupported algorithm")

	// ErrUnsigned: the algorithm is none, so there is nothing to verify.
	ErrUnsigned = errors.New("verified boot metadata are not signed")
	// ErrKey: the key is not the one that was expected, or none.
	ErrKey = errors.New("wrong key of verified boot metadata")
	// ErrHash: the metadata are not those that were hashed.
	ErrHash = errors.New("wrong hash of verified boot metadata")
	// ErrSignature: the signature is not by the key.
	ErrSignature = errors.New("wrong signature of verified boot metadata")

	// ErrChain: a chain of partitions that is a loop or breaks a rule.
	ErrChain = errors.New("wrong chain of partitions")
	// ErrDigest: a partition is not what its descriptor says.
	ErrDigest = errors.New("wrong digest of a partition")
	// ErrNoRoom: the partition is too small for its metadata.
	ErrNoRoom = errors.New("no room for verified boot metadata")
)

// refuse says why an input is refused. kind is one of the errors above.
func refuse(kind error, where string, expected, found any) error {
	return fmt.Errorf("%w: %s: expected %v, found %v", kind, where, expected, found)
}
