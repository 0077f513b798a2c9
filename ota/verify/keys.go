package verify

import (
	"archive/zip"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrKeys: no keys, or ones that this package does not use.
var ErrKeys = errors.New("no usable public keys")

// Limits of what ParseKeys takes.
const (
	maxKeysSize = 1 << 20 // bytes of all together
	maxKeySize  = 64 << 10
	maxKeys     = 64
	// certificateSuffix is how entries of Android's otacerts.zip end.
	certificateSuffix = "x509.pem"
)

// Key is a public key that is trusted to sign updates.
type Key struct {
	public crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey
	name   string
}

// String is the kind of the key and the beginning of the SHA-256 of its
// SubjectPublicKeyInfo.
func (k Key) String() string { return k.name }

// Keys are trusted alike: one of them is enough. They may be used concurrently.
type Keys []Key

// ParseKeys takes a file of public keys: PEM with public keys and X.509
// certificates in any number, one of them as DER, or a zip of certificates as
// Android's otacerts.zip. Of a certificate only the key counts, as on Android:
// neither its dates nor who has signed it.
func ParseKeys(b []byte) (Keys, error) {
	if len(b) > maxKeysSize {
		return nil, fmt.Errorf("%w: expected at most %d bytes, found %d", ErrKeys, maxKeysSize, len(b))
	}
	switch {
	case bytes.HasPrefix(b, []byte("PK\x03\x04")):
		return parseZip(b)
	case bytes.Contains(b, []byte("-----BEGIN ")):
		return parsePEM(b)
	}
	k, err := parseDER(b)
	if err != nil {
		return nil, err
	}
	return Keys{k}, nil
}

func parseZip(b []byte) (keys Keys, err error) {
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	for _, f := range z.File {
		if !strings.HasSuffix(f.Name, certificateSuffix) {
			continue
		}
		more, err := parseEntry(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		if keys = append(keys, more...); len(keys) > maxKeys {
			return nil, fmt.Errorf("%w: expected at most %d keys, found more", ErrKeys, maxKeys)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: expected entries *%s in a zip, found none", ErrKeys, certificateSuffix)
	}
	return keys, nil
}

func parseEntry(f *zip.File) (Keys, error) {
	r, err := f.Open()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxKeySize+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	if len(b) > maxKeySize {
		return nil, fmt.Errorf("%w: expected at most %d bytes, found more", ErrKeys, maxKeySize)
	}
	return parsePEM(b)
}

func parsePEM(b []byte) (keys Keys, err error) {
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if len(keys) == maxKeys {
			return nil, fmt.Errorf("%w: expected at most %d keys, found more", ErrKeys, maxKeys)
		}
		k, err := parseBlock(block)
		if err != nil {
			return nil, fmt.Errorf("PEM block %d: %w", len(keys), err)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: expected PEM blocks, found none in %d bytes", ErrKeys, len(b))
	}
	return keys, nil
}

func parseBlock(block *pem.Block) (Key, error) {
	switch block.Type {
	case "PUBLIC KEY", "CERTIFICATE":
		return parseDER(block.Bytes)
	case "RSA PUBLIC KEY":
		public, err := x509.ParsePKCS1PublicKey(block.Bytes)
		if err != nil {
			return Key{}, fmt.Errorf("%w: %w", ErrKeys, err)
		}
		return newKey(public)
	}
	return Key{}, fmt.Errorf("%w: expected a public key or a certificate, found %q", ErrKeys, block.Type)
}

func parseDER(b []byte) (Key, error) {
	public, errKey := x509.ParsePKIXPublicKey(b)
	if errKey == nil {
		return newKey(public)
	}
	certificate, err := x509.ParseCertificate(b)
	if err != nil {
		return Key{}, fmt.Errorf("%w: expected a public key (%w) or a certificate (%w)", ErrKeys, errKey, err)
	}
	return newKey(certificate.PublicKey)
}

// newKey refuses kinds that updates are not signed with.
func newKey(public crypto.PublicKey) (Key, error) {
	kind, ok := describe(public)
	if !ok {
		return Key{}, fmt.Errorf("%w: expected RSA of 2048 to 4096 bits, ECDSA P-256 or P-384, found %s", ErrKeys, kind)
	}
	info, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return Key{}, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	id := sha256.Sum256(info)
	return Key{public, fmt.Sprintf("%s %x", kind, id[:8])}, nil
}

func describe(public crypto.PublicKey) (kind string, ok bool) {
	switch k := public.(type) {
	case *rsa.PublicKey:
		bits := k.N.BitLen()
		return fmt.Sprintf("RSA-%d", bits), bits >= 2048 && bits <= 4096
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name, k.Curve == elliptic.P256() || k.Curve == elliptic.P384()
	case ed25519.PublicKey:
		return "Ed25519", false
	}
	return fmt.Sprintf("%T", public), false
}

// verify reports whether one of the keys has signed the hash.
func (keys Keys) verify(h crypto.Hash, digest, signature []byte) bool {
	for _, k := range keys {
		switch public := k.public.(type) {
		case *rsa.PublicKey:
			if rsa.VerifyPKCS1v15(public, h, digest, signature) == nil {
				return true
			}
		case *ecdsa.PublicKey:
			if ecdsa.VerifyASN1(public, digest, signature) {
				return true
			}
		}
	}
	return false
}

// String lists the keys, for messages.
func (keys Keys) String() string {
	var all []string
	for _, k := range keys {
		all = append(all, k.name)
	}
	return strings.Join(all, ", ")
}
