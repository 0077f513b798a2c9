package vbmeta

import (
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"math/big"
)

const (
	exponent   = 65537
	keyHead    = 8
	minKeyBits = 2048
	maxKeyBits = 8192
)

// keySize is how many bytes the encoded key has.
func keySize(bits int) int { return keyHead + 2*bits/8 }

// EncodeKey gives the bytes that stand for a key in metadata: its bits, -1/n modulo
// 2^32, n, and 2^(2·bits) modulo n, which spare a bootloader some arithmetic.
// The key has 2048, 4096 or 8192 bits and the exponent 65537; the error
// otherwise is ErrKey.
func EncodeKey(key *rsa.PublicKey) ([]byte, error) {
	if key == nil || key.N == nil {
		return nil, refuse(ErrKey, "key", "an RSA key", "none")
	}
	bits := key.N.BitLen()
	if err := checkKey(bits, key); err != nil {
		return nil, err
	}
	out := make([]byte, keySize(bits))
	binary.BigEndian.PutUint32(out, uint32(bits))
	binary.BigEndian.PutUint32(out[4:], negativeInverse(key.N))
	key.N.FillBytes(out[keyHead:][:bits/8])
	montgomery(key.N, bits).FillBytes(out[keyHead+bits/8:])
	return out, nil
}

// DecodeKey reads what EncodeKey gives, and checks the derived numbers too. The error
// is ErrKey.
func DecodeKey(b []byte) (*rsa.PublicKey, error) {
	if len(b) < keyHead {
		return nil, refuse(ErrKey, "bytes of a key", fmt.Sprintf("at least %d", keyHead), len(b))
	}
	bits := binary.BigEndian.Uint32(b)
	if bits < minKeyBits || bits > maxKeyBits || bits&(bits-1) != 0 {
		return nil, refuse(ErrKey, "bits of a key", "2048, 4096 or 8192", bits)
	}
	if want := keySize(int(bits)); len(b) != want {
		return nil, refuse(ErrKey, "bytes of a key", want, len(b))
	}
	half := int(bits) / 8
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(b[keyHead:][:half]), E: exponent}
	if err := checkKey(int(bits), key); err != nil {
		return nil, err
	}
	if want, found := negativeInverse(key.N), binary.BigEndian.Uint32(b[4:]); found != want {
		return nil, refuse(ErrKey, "-1/n", fmt.Sprintf("%#x", want), fmt.Sprintf("%#x", found))
	}
	if montgomery(key.N, int(bits)).Cmp(new(big.Int).SetBytes(b[keyHead+half:])) != 0 {
		return nil, refuse(ErrKey, "r²", "2^(2·bits) modulo n", "another number")
	}
	return key, nil
}

func checkKey(bits int, key *rsa.PublicKey) error {
	switch {
	case bits < minKeyBits || bits > maxKeyBits || bits&(bits-1) != 0 || key.N.BitLen() != bits:
		return refuse(ErrKey, "bits of a key", "2048, 4096 or 8192", key.N.BitLen())
	case key.N.Bit(0) == 0:
		return refuse(ErrKey, "modulus", "an odd number", "an even one")
	case key.E != exponent:
		return refuse(ErrKey, "exponent", exponent, key.E)
	}
	return nil
}

// negativeInverse is -1/n modulo 2^32, by Newton's iteration, each step of which
// doubles the number of right bits.
func negativeInverse(n *big.Int) uint32 {
	var low [4]byte
	new(big.Int).And(n, big.NewInt(0xffffffff)).FillBytes(low[:])
	v := binary.BigEndian.Uint32(low[:])
	inverse := v // right in 3 bits, as for every odd number
	for range 4 {
		inverse *= 2 - v*inverse
	}
	return -inverse
}

func montgomery(n *big.Int, bits int) *big.Int {
	r := new(big.Int).Lsh(big.NewInt(1), uint(2*bits))
	return r.Mod(r, n)
}
