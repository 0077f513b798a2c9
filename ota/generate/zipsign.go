package generate

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"math"
	"math/big"
)

// certificateName is where a zip has the certificate of its signer.
const certificateName = "META-INF/com/android/otacert"

// ParseCertificate reads the first X.509 certificate of a PEM file, which must be of a
// key of RSA or ECDSA.
func ParseCertificate(b []byte) (*x509.Certificate, error) {
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		switch c.PublicKey.(type) {
		case *rsa.PublicKey, *ecdsa.PublicKey:
			return c, nil
		}
		return nil, fmt.Errorf("%w: expected a certificate of a key of RSA or ECDSA, found %T", ErrInput, c.PublicKey)
	}
	return nil, fmt.Errorf("%w: expected an X.509 certificate as PEM, found none", ErrInput)
}

// IsOf tells whether a certificate is a key's.
func (k KeySigner) IsOf(c *x509.Certificate) bool {
	public, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(k.Public())
}

// Given is a signature that somebody else has made.
type Given []byte

// Size implements Signer.
func (g Given) Size() int { return len(g) }

// Sign implements Signer.
func (g Given) Sign([sha256.Size]byte) ([]byte, error) { return g, nil }

const (
	zipEndSize    = 22 // bytes of the end of the central directory
	zipFooterSize = 6  // bytes at the end of a comment with a signature
)

var zipEndMagic = []byte("PK\x05\x06")

// ZipDigest is what the signature of a whole zip of size bytes is of: the SHA-256 of all
// before the length of its comment, which must be empty.
func ZipDigest(r io.ReaderAt, size int64) (digest [sha256.Size]byte, err error) {
	end := make([]byte, zipEndSize)
	if size < zipEndSize {
		return digest, fmt.Errorf("%w: expected a zip, found %d bytes", ErrInput, size)
	}
	if _, err := r.ReadAt(end, size-zipEndSize); err != nil {
		return digest, err
	}
	if !bytes.HasPrefix(end, zipEndMagic) || end[zipEndSize-2] != 0 || end[zipEndSize-1] != 0 {
		return digest, fmt.Errorf("%w: expected a zip without a comment, found its end elsewhere than at %d: it is no zip, or signed already",
			ErrInput, size-zipEndSize)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(r, 0, size-2)); err != nil {
		return digest, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// SignZip signs a whole zip of size bytes, which has no comment yet, as recovery wants it
// (specs/payload.md 5.2): the comment gets a CMS message with the signature and the
// signer's certificate. Whether the signature is of the certificate's key is checked
// before anything is written.
func SignZip(f File, size int64, c *x509.Certificate, s Signer) error {
	digest, err := ZipDigest(f, size)
	if err != nil {
		return err
	}
	signature, err := s.Sign(digest)
	if err != nil {
		return err
	}
	if !signedBy(c, digest, signature) {
		return fmt.Errorf("%w: expected a signature of this zip by the key of the certificate of %q, found %d bytes that are not", ErrInput, c.Subject, len(signature))
	}
	message, err := signedData(c, signature)
	if err != nil {
		return err
	}
	if len(message)+len(zipComment)+zipFooterSize > math.MaxUint16 {
		return fmt.Errorf("%w: expected a certificate that fits into a comment, found one of %d bytes", ErrInput, len(c.Raw))
	}
	back := len(message) + zipFooterSize
	comment := append([]byte(zipComment), message...)
	comment = binary.LittleEndian.AppendUint16(comment, uint16(back))
	comment = append(comment, 0xff, 0xff)
	comment = binary.LittleEndian.AppendUint16(comment, uint16(len(comment)+2))
	if bytes.Contains(comment, zipEndMagic) { // once in a million zips
		return fmt.Errorf("%w: expected a signature without the mark of a zip's end, which recovery refuses: change anything, as --to-build", ErrInput)
	}
	if _, err := f.WriteAt(comment, size); err != nil {
		return err
	}
	_, err = f.WriteAt(comment[len(comment)-2:], size-2) // now it has one
	return err
}

// zipComment is what people see.
const zipComment = "signed by cowbird\x00"

func signedBy(c *x509.Certificate, digest [sha256.Size]byte, signature []byte) bool {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest[:], signature)
	}
	return false
}

// The parts of CMS (RFC 5652) that such a signature has: no contents, and no signed
// attributes, which recovery does not know.
type (
	cmsMessage struct {
		Type    asn1.ObjectIdentifier
		Content cmsSignedData `asn1:"explicit,tag:0"`
	}
	cmsSignedData struct {
		Version      int
		Digests      []pkix.AlgorithmIdentifier `asn1:"set"`
		Content      struct{ Type asn1.ObjectIdentifier }
		Certificates asn1.RawValue
		Signers      []cmsSigner `asn1:"set"`
	}
	cmsSigner struct {
		Version   int
		ID        cmsIssuer
		Digest    pkix.AlgorithmIdentifier
		Algorithm pkix.AlgorithmIdentifier
		Signature []byte
	}
	cmsIssuer struct {
		Name   asn1.RawValue
		Serial *big.Int
	}
)

func signedData(c *x509.Certificate, signature []byte) ([]byte, error) {
	digest := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, Parameters: asn1.NullRawValue}
	algorithm := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, Parameters: asn1.NullRawValue} // RSA
	if _, ok := c.PublicKey.(*ecdsa.PublicKey); ok {
		algorithm = pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}} // with SHA-256
	}
	m := cmsMessage{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}, Content: cmsSignedData{
		Version: 1, Digests: []pkix.AlgorithmIdentifier{digest},
		Certificates: asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: c.Raw},
		Signers:      []cmsSigner{{1, cmsIssuer{asn1.RawValue{FullBytes: c.RawIssuer}, c.SerialNumber}, digest, algorithm, signature}},
	}}
	m.Content.Content.Type = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1} // data
	return asn1.Marshal(m)
}
