package main

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/vbmeta"
)

// readPublicKey takes a key in PEM, public or private, a certificate, or a key as
// metadata have it.
func readPublicKey(path string) (*rsa.PublicKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		key, err := vbmeta.DecodeKey(b)
		if err != nil {
			return nil, fmt.Errorf("%s: expected PEM or a key of metadata: %w", path, err)
		}
		return key, nil
	}
	switch block.Type {
	case "PUBLIC KEY":
		return asRSA(path, block.Bytes, x509.ParsePKIXPublicKey)
	case "RSA PUBLIC KEY":
		return asRSA(path, block.Bytes, func(der []byte) (any, error) { return x509.ParsePKCS1PublicKey(der) })
	case "CERTIFICATE":
		return asRSA(path, block.Bytes, func(der []byte) (any, error) {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, err
			}
			return c.PublicKey, nil
		})
	}
	key, err := readPrivateKey(path)
	if err != nil {
		return nil, err
	}
	return &key.PublicKey, nil
}

func asRSA(path string, der []byte, parse func([]byte) (any, error)) (*rsa.PublicKey, error) {
	key, err := parse(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	public, ok := key.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s: expected an RSA key, found %T", path, key)
	}
	return public, nil
}

func readPrivateKey(path string) (*rsa.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s: expected a private key in PEM, found none", path)
	}
	if block.Type == "RSA PRIVATE KEY" {
		key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
		return key, inFile(path, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: expected a private key, found %s: %w", path, block.Type, err)
	}
	private, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: expected an RSA key, found %T", path, key)
	}
	return private, nil
}

// inFile names the file that an error is about.
func inFile(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", path, err)
}

// signer signs metadata, or not, where there is no key.
type signer struct {
	path, algorithm string // as typed
}

func (s *signer) check() error {
	if s.path == "" && s.algorithm != "" {
		return cli.Usagef("--algorithm %s: expected --key, found none", s.algorithm)
	}
	return nil
}

func (s *signer) sign(v *vbmeta.VBMeta) ([]byte, error) {
	if s.path == "" {
		return vbmeta.Marshal(v)
	}
	key, err := readPrivateKey(s.path)
	if err != nil {
		return nil, err
	}
	name := s.algorithm
	if name == "" {
		name = fmt.Sprintf("SHA256_RSA%d", key.N.BitLen())
	}
	a, err := vbmeta.ParseAlgorithm(name)
	if err != nil && s.algorithm != "" {
		return nil, cli.UsageError{Err: err}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", s.path, vbmeta.ErrKey), err)
	}
	return vbmeta.Sign(v, key, a)
}
