package verify

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" // for who allows it
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// ErrZipSignature: a zip without a whole-file signature, or with a malformed one.
var ErrZipSignature = errors.New("malformed whole-file signature")

// ZipOption allows what Zip refuses.
type ZipOption int

// AllowSHA1 takes signatures of SHA-1, as packages of before 2014 have.
const AllowSHA1 ZipOption = 1

const (
	footerSize = 6  // bytes, at the end of the comment
	endSize    = 22 // bytes of the end of central directory, without comment
)

var (
	endMagic = []byte("PK\x05\x06")

	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidSHA1       = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidSHA256     = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
)

// Zip checks the signature of a whole OTA zip of that size, which is in its comment,
// as Android's recovery does (specs/payload.md 5.2). It reads all of the zip.
func Zip(r io.ReaderAt, size int64, keys Keys, allow ...ZipOption) error {
	if len(keys) == 0 {
		return refuse(DownloadPayloadPubKeyVerificationError, giveKeys, "zip: expected keys to trust, found none")
	}
	signedSize, message, err := readComment(r, size)
	if err != nil {
		return err
	}
	signers, err := parseSignedData(message)
	if err != nil {
		return malformed("signature: %w", err)
	}
	for _, s := range signers {
		h, err := s.hash(slices.Contains(allow, AllowSHA1))
		if err != nil {
			return err
		}
		digest := h.New()
		if _, err := io.Copy(digest, io.NewSectionReader(r, 0, signedSize)); err != nil {
			return fmt.Errorf("zip: %w", err)
		}
		if keys.verify(h, digest.Sum(nil), s.Signature) {
			return nil
		}
	}
	return refuse(DownloadPayloadPubKeyVerificationError, checkKeys,
		"zip: expected a signature by %v, found %d by none of these", keys, len(signers))
}

func malformed(format string, args ...any) error {
	return &Error{DownloadPayloadVerificationError, fmt.Errorf("%w: "+format, append([]any{ErrZipSignature}, args...)...), fetchPackage}
}

const fetchPackage = "get the package again from its source, signed for recovery"

// readComment finds the signature, and how many bytes it is of: all up to the
// length of the comment.
func readComment(r io.ReaderAt, size int64) (signedSize int64, message []byte, err error) {
	var footer [footerSize]byte
	if size < endSize+footerSize {
		return 0, nil, malformed("expected at least %d bytes, found %d", endSize+footerSize, size)
	}
	if _, err := r.ReadAt(footer[:], size-footerSize); err != nil {
		return 0, nil, fmt.Errorf("zip: %w", err)
	}
	back, comment := int64(binary.LittleEndian.Uint16(footer[:])), int64(binary.LittleEndian.Uint16(footer[4:]))
	if footer[2] != 0xff || footer[3] != 0xff {
		return 0, nil, malformed("expected ffff at %d, found %x: the zip is not signed", size-4, footer[2:4])
	}
	if back <= footerSize || back > comment || comment > size-endSize {
		return 0, nil, malformed("expected it within the comment of %d bytes, found it %d before the end of %d", comment, back, size)
	}
	end := make([]byte, endSize+comment)
	if _, err := r.ReadAt(end, size-int64(len(end))); err != nil {
		return 0, nil, fmt.Errorf("zip: %w", err)
	}
	if !bytes.HasPrefix(end, endMagic) || int64(binary.LittleEndian.Uint16(end[endSize-2:])) != comment {
		return 0, nil, malformed("expected the end of the central directory at %d, found %x", size-int64(len(end)), end[:4])
	}
	// Who reads the zip would take the last one, and it is not signed.
	if i := bytes.LastIndex(end, endMagic); i != 0 {
		return 0, nil, malformed("expected one end of the central directory, found another %d bytes behind", i)
	}
	return size - comment - 2, end[int64(len(end))-back : len(end)-footerSize], nil
}

// The parts of CMS (RFC 5652) that such signatures have.
type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"explicit,tag:0"`
}

type signedData struct {
	Version int
	Digests []pkix.AlgorithmIdentifier `asn1:"set"`
	Content struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"optional,explicit,tag:0"`
	}
	Certificates asn1.RawValue `asn1:"optional,tag:0"`
	Revoked      asn1.RawValue `asn1:"optional,tag:1"`
	Signers      []signer      `asn1:"set"`
}

type signer struct {
	Version    int
	ID         asn1.RawValue
	Digest     pkix.AlgorithmIdentifier
	Attributes asn1.RawValue `asn1:"optional,tag:0"`
	Algorithm  pkix.AlgorithmIdentifier
	Signature  []byte
	Unsigned   asn1.RawValue `asn1:"optional,tag:1"`
}

// maxSigners bounds how often a zip is read.
const maxSigners = 4

func parseSignedData(b []byte) ([]signer, error) {
	var info contentInfo
	if err := parseAll(b, &info); err != nil {
		return nil, err
	}
	if !info.Type.Equal(oidSignedData) {
		return nil, fmt.Errorf("expected signed data (%v), found %v", oidSignedData, info.Type)
	}
	var data signedData
	if err := parseAll(info.Content.Bytes, &data); err != nil {
		return nil, err
	}
	if n := len(data.Content.Content.FullBytes); n != 0 {
		return nil, fmt.Errorf("expected it of the zip, found it of %d bytes of its own", n)
	}
	if n := len(data.Signers); n < 1 || n > maxSigners {
		return nil, fmt.Errorf("expected 1 to %d signers, found %d", maxSigners, n)
	}
	for i, s := range data.Signers {
		if len(s.Attributes.FullBytes) != 0 {
			return nil, fmt.Errorf("signer %d: expected no signed attributes, which recovery does not know, found %d bytes", i, len(s.Attributes.FullBytes))
		}
	}
	return data.Signers, nil
}

func parseAll(b []byte, v any) error {
	rest, err := asn1.Unmarshal(b, v)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("expected %d bytes of ASN.1, found %d more", len(b)-len(rest), len(rest))
	}
	return err
}

func (s *signer) hash(sha1 bool) (crypto.Hash, error) {
	switch id := s.Digest.Algorithm; {
	case id.Equal(oidSHA256):
		return crypto.SHA256, nil
	case id.Equal(oidSHA1) && sha1:
		return crypto.SHA1, nil
	case id.Equal(oidSHA1):
		return 0, refuse(DownloadPayloadVerificationError, "get a package that is signed with SHA-256, or allow SHA-1",
			"%w: expected SHA-256, found SHA-1", ErrZipSignature)
	default:
		return 0, malformed("expected SHA-256 (%v), found %v", oidSHA256, id)
	}
}
