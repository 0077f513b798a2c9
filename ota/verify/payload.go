package verify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// Blob checks the SHA-256 of an operation's blob, before anybody looks into it.
// What has no hash in the manifest passes: Metadata has allowed it. Which operation
// it is, the caller says.
func Blob(u *pb.PartitionUpdate, operation int, hash [sha256.Size]byte) error {
	op := u.GetOperations()[operation]
	if want := op.GetDataSha256Hash(); len(want) > 0 && !bytes.Equal(want, hash[:]) {
		return refuse(DownloadOperationHashMismatch, fetchAgain, "%d bytes at %d: expected the hash %x, found %x",
			op.GetDataLength(), op.GetDataOffset(), want, hash)
	}
	return nil
}

// Source checks the SHA-256 of the blocks that an operation reads, one extent behind
// the other. What has no hash in the manifest passes. old is the hash of the whole
// old partition, if somebody knows it, or nil: it tells what a mismatch comes from.
func Source(u *pb.PartitionUpdate, operation int, hash [sha256.Size]byte, old []byte) error {
	op := u.GetOperations()[operation]
	want := op.GetSrcSha256Hash()
	if len(want) == 0 || bytes.Equal(want, hash[:]) {
		return nil
	}
	next := "compare the old partition's hash with the update's"
	switch {
	case old == nil || u.OldPartitionInfo == nil:
	case bytes.Equal(old, u.OldPartitionInfo.GetHash()):
		next = "the old partition as a whole is the right one, so read it again, and see whether its storage fails"
	default:
		next = fmt.Sprintf("the old partition is another one than the update was made for (expected the hash %x, found %x): "+
			"get the update for this build, or a full one", u.OldPartitionInfo.GetHash(), old)
	}
	return refuse(DownloadStateInitializationError, next, "source blocks %s: expected the hash %x, found %x",
		blocks(op.GetSrcExtents()), want, hash)
}

// blocks lists some extents as first-last.
func blocks(extents []*pb.Extent) string {
	const most = 16
	var all []string
	for i, e := range extents {
		if i == most {
			all = append(all, fmt.Sprintf("and %d extents more", len(extents)-most))
			break
		}
		if e.GetStartBlock() == payload.Hole {
			all = append(all, fmt.Sprintf("a hole of %d", e.GetNumBlocks()))
		} else if n := e.GetNumBlocks(); n > 0 {
			all = append(all, fmt.Sprintf("%d-%d", e.GetStartBlock(), e.GetStartBlock()+n-1))
		}
	}
	return strings.Join(all, ", ")
}

// OldPartition checks whether the update was made for this partition: the SHA-256 of
// the first OldPartitionInfo.Size bytes of it. Full updates fit all.
func OldPartition(u *pb.PartitionUpdate, hash [sha256.Size]byte) error {
	if want := u.GetOldPartitionInfo().GetHash(); u.OldPartitionInfo != nil && !bytes.Equal(want, hash[:]) {
		return refuse(DownloadStateInitializationError, "get the update for this build, or a full one",
			"old partition %s: expected the hash %x of %d bytes, found %x", u.GetPartitionName(), want, u.OldPartitionInfo.GetSize(), hash)
	}
	return nil
}

// Operation is an operation whose hashes are right and which fails all the same; nil
// stays nil.
func Operation(err error) error {
	if err == nil {
		return nil
	}
	return &Error{DownloadOperationExecutionError, err, askProducer}
}

// Partition checks what was installed: the SHA-256 of the first NewPartitionInfo.Size
// bytes of the new partition.
func Partition(u *pb.PartitionUpdate, hash [sha256.Size]byte) error {
	if want := u.GetNewPartitionInfo().GetHash(); !bytes.Equal(want, hash[:]) {
		return refuse(NewRootfsVerificationError, "install again, and see whether the storage fails",
			"new partition %s: expected the hash %x of %d bytes, found %x", u.GetPartitionName(), want, u.GetNewPartitionInfo().GetSize(), hash)
	}
	return nil
}

// Payload checks what is known only when all has been read: size, hash and signature
// of the whole payload. s has everything written to it.
func Payload(m *payload.Metadata, s *Sum, p Policy) error {
	if err := p.checkFile(s); err != nil {
		return err
	}
	signatures, err := payload.ParseSignatures(s.signature)
	if err != nil {
		return &Error{DownloadPayloadVerificationError, err, fetchAgain}
	}
	switch {
	case p.unchecked(signatures):
		return nil
	case len(p.Keys) == 0:
		return refuse(DownloadPayloadPubKeyVerificationError, giveKeys, "payload signature: expected keys to trust, found none")
	case len(signatures) == 0:
		return refuse(SignedDeltaPayloadExpectedError, checkKeys, "payload signature: expected one, found none")
	case !signed(signatures, [sha256.Size]byte(s.signed.Sum(nil)), p.Keys):
		return refuse(DownloadPayloadPubKeyVerificationError, checkKeys,
			"payload signature: expected one by %v, found %d by none of these", p.Keys, len(signatures))
	}
	return nil
}

// File is Payload of one that can be read at any place, and reads what is behind the
// metadata. onProgress may be nil.
func File(ctx context.Context, m *payload.Metadata, r io.ReaderAt, size int64, p Policy, onProgress func(done, total int64)) error {
	s, err := NewSum(m)
	if err != nil {
		return err
	}
	for s.Offset() < size {
		if onProgress != nil {
			onProgress(s.Offset(), size)
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := io.Copy(s, io.NewSectionReader(r, s.Offset(), min(4<<20, size-s.Offset())))
		if err != nil || n == 0 {
			return fmt.Errorf("read the payload: %w", cmp.Or(err, io.ErrUnexpectedEOF))
		}
	}
	return Payload(m, s, p)
}

func (p Policy) checkFile(s *Sum) error {
	want := s.at
	if p.Properties != nil && p.Properties.FileSize != 0 {
		want = p.Properties.FileSize
	}
	if s.at != want {
		return refuse(PayloadSizeMismatchError, fetchAgain, "payload: expected %d bytes, found %d", want, s.at)
	}
	if s.to > s.from && s.at != s.to { // it comes last (specs/payload.md 1)
		return refuse(PayloadSizeMismatchError, fetchAgain, "payload: expected its signature to end at %d, found the end at %d", s.to, s.at)
	}
	return p.checkFileHash(s)
}

func (p Policy) checkFileHash(s *Sum) error {
	if p.Properties == nil || p.Properties.FileHash == nil {
		return nil
	}
	if hash := s.whole.Sum(nil); !bytes.Equal(hash, p.Properties.FileHash) {
		return refuse(PayloadHashMismatchError, fetchAgain, "payload: expected the hash %x, found %x", p.Properties.FileHash, hash)
	}
	return nil
}
