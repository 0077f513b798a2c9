package vbmeta

import (
	"crypto"
	_ "crypto/sha256" // for crypto.SHA256
	_ "crypto/sha512" // for crypto.SHA512
	"fmt"
)

// Algorithm is how metadata are hashed and signed.
type Algorithm uint32

// The algorithms: a hash, and RSA PKCS#1 v1.5 with a key of so many bits.
const (
	None Algorithm = iota
	SHA256RSA2048
	SHA256RSA4096
	SHA256RSA8192
	SHA512RSA2048
	SHA512RSA4096
	SHA512RSA8192
)

type algorithm struct {
	name string
	hash crypto.Hash
	bits int
}

var algorithms = [...]algorithm{
	{name: "NONE"},
	{"SHA256_RSA2048", crypto.SHA256, 2048},
	{"SHA256_RSA4096", crypto.SHA256, 4096},
	{"SHA256_RSA8192", crypto.SHA256, 8192},
	{"SHA512_RSA2048", crypto.SHA512, 2048},
	{"SHA512_RSA4096", crypto.SHA512, 4096},
	{"SHA512_RSA8192", crypto.SHA512, 8192},
}

// facts are the zero algorithm's for None. The error is ErrAlgorithm.
func (a Algorithm) facts() (algorithm, error) {
	if uint64(a) >= uint64(len(algorithms)) {
		return algorithm{}, refuse(ErrAlgorithm, "algorithm", fmt.Sprintf("0 to %d", len(algorithms)-1), uint32(a))
	}
	return algorithms[a], nil
}

// String is a name such as SHA256_RSA4096.
func (a Algorithm) String() string {
	f, err := a.facts()
	if err != nil {
		return fmt.Sprintf("algorithm %d", uint32(a))
	}
	return f.name
}

// ParseAlgorithm finds the algorithm that has a name. The error is ErrAlgorithm.
func ParseAlgorithm(name string) (Algorithm, error) {
	for i, a := range algorithms {
		if a.name == name {
			return Algorithm(i), nil
		}
	}
	return None, fmt.Errorf("%w: expected NONE or a name such as SHA256_RSA4096, found %.40q", ErrAlgorithm, name)
}

func (a algorithm) hashSize() int {
	if a.bits == 0 {
		return 0
	}
	return a.hash.Size()
}

func (a algorithm) signatureSize() int { return a.bits / 8 }

func (a algorithm) keySize() int {
	if a.bits == 0 {
		return 0
	}
	return keySize(a.bits)
}
