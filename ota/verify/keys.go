package verify

import (
	"archive/zip"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrKey: not a key, or of a kind that payloads are not signed with.
var ErrKey = errors.New("key")

// Keys are public keys, each an *rsa.PublicKey or an *ecdsa.PublicKey.
type Keys []crypto.PublicKey

// maxKeys bounds a file of keys, and what a zip of them unpacks to, in bytes.
const maxKeys = 1 << 20

// ParseKeys takes public keys or certificates: PEM blocks, DER, or a zip of such
// files, as otacerts.zip is one. Payloads are signed by RSA keys of 2048 to 4096 bits
// and by ECDSA keys on P-256 or P-384. The dates of certificates do not matter, nor
// who has signed them: that they are in the file is the trust.
func ParseKeys(b []byte) (Keys, error) {
	if len(b) > maxKeys {
		return nil, fmt.Errorf("%w: expected at most %d bytes, found %d", ErrKey, maxKeys, len(b))
	}
	if bytes.HasPrefix(b, []byte("PK\x03\x04")) {
		return parseZip(b)
	}
	if !bytes.Contains(b, []byte("-----BEGIN")) {
		k, err := parseDER(b)
		return Keys{k}, err
	}
	var keys Keys
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		k, err := parseDER(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s %d: %w", block.Type, len(keys)+1, err)
		}
		keys, b = append(keys, k), rest
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: expected PEM blocks, found none", ErrKey)
	}
	return keys, nil
}

func parseZip(b []byte) (keys Keys, err error) {
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	left := int64(maxKeys)
	for _, f := range z.File {
		if strings.HasSuffix(f.Name, "/") {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrKey, f.Name, err)
		}
		body, err := io.ReadAll(io.LimitReader(r, left+1))
		if err = errors.Join(err, r.Close()); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrKey, f.Name, err)
		}
		if left -= int64(len(body)); left < 0 || bytes.HasPrefix(body, []byte("PK\x03\x04")) {
			return nil, fmt.Errorf("%w: %s: expected certificates of at most %d bytes together", ErrKey, f.Name, maxKeys)
		}
		more, err := ParseKeys(body)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		keys = append(keys, more...)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: expected certificates in the zip, found none", ErrKey)
	}
	return keys, nil
}

func parseDER(b []byte) (crypto.PublicKey, error) {
	k, err := x509.ParsePKIXPublicKey(b)
	if err != nil {
		c, certErr := x509.ParseCertificate(b)
		if certErr != nil {
			return nil, fmt.Errorf("%w: expected a public key or a certificate: %w", ErrKey, errors.Join(err, certErr))
		}
		k = c.PublicKey
	}
	switch k := k.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 4096 {
			return nil, fmt.Errorf("%w: expected an RSA key of 2048 to 4096 bits, found %d", ErrKey, n)
		}
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, fmt.Errorf("%w: expected a key on P-256 or P-384, found %s", ErrKey, k.Curve.Params().Name)
		}
	default:
		return nil, fmt.Errorf("%w: expected an RSA or ECDSA key, found %T", ErrKey, k)
	}
	return k, nil
}

// verify tells whether one of the keys has made the signature of a SHA-256.
func (k Keys) verify(hash, signature []byte) bool {
	for _, key := range k {
		switch key := key.(type) {
		case *rsa.PublicKey:
			if rsa.VerifyPKCS1v15(key, crypto.SHA256, hash, signature) == nil {
				return true
			}
		case *ecdsa.PublicKey:
			if ecdsa.VerifyASN1(key, hash, signature) {
				return true
			}
		}
	}
	return false
}
