package generate

import (
	"archive/zip"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"slices"
	"testing"

	"cowbird/formats/cowfile"
)

// newKey is a private key and, as PEM, its public one.
func newKey(t testing.TB, kind string) (KeySigner, []byte) {
	t.Helper()
	var key crypto.Signer
	var err error
	if kind == "rsa" {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	parsed, err := ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	must(t, err)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	return parsed, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
}

// memDevice is a device in memory.
type memDevice struct{ b []byte }

func (d *memDevice) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(d.b)) {
		return 0, io.EOF
	}
	n := copy(p, d.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *memDevice) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(d.b) {
		d.b = append(d.b, make([]byte, need-len(d.b))...)
	}
	return copy(d.b[off:], p), nil
}

func (d *memDevice) Sync() error { return nil }
func (d *memDevice) Size() int64 { return int64(len(d.b)) }

// sized is a block device of so many bytes.
type sized struct {
	*memDevice
	size int64
}

func (s *sized) Size() int64 { return s.size }

func (s *sized) Output() cowfile.Device { return &sizedOutput{s} }

type sizedOutput struct{ *sized }

func (s *sizedOutput) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > s.size {
		return 0, errors.New("the device is full")
	}
	return s.memDevice.WriteAt(p, off)
}

func (s *sizedOutput) Truncate(int64) error { return nil }

func (s *sizedOutput) Capacity() int64 { return s.size }

func (s *sized) ReadAt(p []byte, off int64) (int, error) {
	n, _ := s.memDevice.ReadAt(p, off)
	left := max(0, min(int64(len(p)), s.size-off))
	clear(p[n:max(int64(n), left)])
	if left < int64(len(p)) {
		return int(left), io.EOF
	}
	return len(p), nil
}

// Moves that wait for each other lose one of the ring, and the rest is in an order that
// a merge can follow.
func TestMergeOrder(t *testing.T) {
	for what, c := range map[string]struct {
		moves []move
		left  int
	}{
		"none":             {nil, 0},
		"chain":            {[]move{{dst: 1, src: 0, n: 1}, {dst: 2, src: 1, n: 1}, {dst: 3, src: 2, n: 1}}, 3},
		"ring of two":      {[]move{{dst: 1, src: 0, n: 1}, {dst: 0, src: 1, n: 1}}, 1},
		"two rings":        {[]move{{dst: 1, src: 0, n: 1}, {dst: 0, src: 1, n: 1}, {dst: 6, src: 5, n: 1}, {dst: 5, src: 6, n: 1}}, 2},
		"xor reads on":     {[]move{{xor: true, dst: 10, src: 0, n: 1, offset: 7}, {dst: 1, src: 10, n: 1}}, 1},
		"long into itself": {[]move{{dst: 8, src: 0, n: 4}, {dst: 0, src: 8, n: 4}, {dst: 12, src: 2, n: 1}}, 2},
	} {
		got := mergeOrder(slices.Clone(c.moves))
		if len(got) != c.left {
			t.Errorf("%s: expected %d moves to stay, found %d", what, c.left, len(got))
		}
		over := map[uint64]bool{}
		for _, m := range got {
			for b := range m.srcBlocks() {
				if over[m.src+b] {
					t.Errorf("%s: %+v reads block %d, which is overwritten", what, m, m.src+b)
				}
			}
			for b := range m.n {
				over[m.dst+b] = true
			}
		}
	}
	// The xor goes, whatever is shorter.
	ring := []move{{dst: 1, src: 0, n: 1}, {xor: true, dst: 0, src: 1, n: 1}}
	if got := mergeOrder(ring); len(got) != 1 || got[0].xor {
		t.Errorf("expected the copy to stay, found %+v", got)
	}
}

func zipOf(t testing.TB, entries map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, data := range entries {
		w, err := z.Create(name)
		if err == nil {
			_, err = w.Write(data)
		}
		must(t, err)
	}
	must(t, z.Close())
	return b.Bytes()
}
