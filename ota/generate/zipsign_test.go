package generate

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cowbird/formats/payload/pb"
	"cowbird/ota/verify"
	"cowbird/tools/fixture"
)

func newCertificate(t testing.TB, key KeySigner) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1 << 40), Subject: pkix.Name{CommonName: "release"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key.Signer)
	must(t, err)
	c, err = ParseCertificate(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	must(t, err)
	return c
}

// newZip is a zip to be signed by the owner of a certificate.
func newZip(t testing.TB, key KeySigner, c *x509.Certificate) []byte {
	t.Helper()
	p, err := Create(t.Context(), Options{Partitions: []Partition{{Name: "boot", New: imageOf(bytes.Repeat([]byte("cowbird "), 4096))}}})
	must(t, err)
	defer p.Close()
	var b, z bytes.Buffer
	w, err := p.Write(&b, []Signer{key})
	must(t, err)
	n, err := WritePackage(&z, bytes.NewReader(b.Bytes()), w, Package{Metadata: &pb.OtaMetadata{Type: pb.OtaMetadata_AB}, Certificate: c})
	must(t, err)
	if n != int64(z.Len()) {
		t.Errorf("expected a zip of %d bytes, found %d", n, z.Len())
	}
	return z.Bytes()
}

// zipFile is a zip in a file.
func zipFile(t testing.TB, b []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "ota.zip"))
	must(t, err)
	t.Cleanup(func() { f.Close() })
	_, err = f.Write(b)
	must(t, err)
	return f
}

// A zip is signed as recovery wants it, and as openssl reads it; nobody else's signature
// is put in.
func TestSignZip(t *testing.T) {
	for _, kind := range []string{"rsa", "ecdsa"} {
		t.Run(kind, func(t *testing.T) {
			key, trust := newKey(t, kind)
			other, distrust := newKey(t, kind)
			c := newCertificate(t, key)
			if !key.IsOf(c) || other.IsOf(c) {
				t.Error("expected the certificate to be of its key alone")
			}
			plain := newZip(t, key, c)
			f, size := zipFile(t, plain), int64(len(plain))
			digest, err := ZipDigest(f, size)
			must(t, err)
			if want := sha256.Sum256(plain[:size-2]); digest != want {
				t.Errorf("expected the hash of all but the length of the comment, %x, found %x", want, digest)
			}
			if err := SignZip(f, size, c, other); !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), "release") {
				t.Errorf("another's signature: expected to be refused with the certificate's name, found %v", err)
			}
			if now, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(now, plain) {
				t.Errorf("expected the zip as it was, found %d bytes, %v", len(now), err)
			}
			signature, err := key.Sign(digest)
			must(t, err)
			must(t, SignZip(f, size, c, Given(signature)))
			b, err := os.ReadFile(f.Name())
			must(t, err)
			for _, with := range []struct {
				keys []byte
				good bool
			}{{trust, true}, {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), true}, {distrust, false}} {
				keys, err := verify.ParseKeys(with.keys)
				must(t, err)
				if err := verify.Zip(bytes.NewReader(b), int64(len(b)), keys); (err == nil) != with.good {
					t.Errorf("expected good: %t, found %v", with.good, err)
				}
			}
			if err := SignZip(f, int64(len(b)), c, key); !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), "signed already") {
				t.Errorf("expected that it is signed already, found %v", err)
			}
			opensslVerify(t, plain[:size-2], b[size+int64(len(zipComment)):len(b)-zipFooterSize], c)
		})
	}
}

// opensslVerify has another program judge the message.
func opensslVerify(t *testing.T, signed, message []byte, c *x509.Certificate) {
	t.Helper()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		fixture.Missing(t, "openssl is not installed")
	}
	dir := t.TempDir()
	for name, b := range map[string][]byte{"in": signed, "cms": message, "cert": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})} {
		must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	cmd := exec.Command(openssl, "cms", "-verify", "-binary", "-inform", "DER", "-in", "cms", "-content", "in", "-CAfile", "cert", "-purpose", "any", "-out", os.DevNull)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("openssl cms: %v\n%s", err, out)
	}
}

func TestSignZipRefuses(t *testing.T) {
	key, _ := newKey(t, "ecdsa")
	c := newCertificate(t, key)
	for name, b := range map[string][]byte{"short": []byte("PK"), "no zip": bytes.Repeat([]byte{7}, 100), "comment": append(newZip(t, key, c), 'x')} {
		if err := SignZip(zipFile(t, b), int64(len(b)), c, key); !errors.Is(err, ErrInput) {
			t.Errorf("%s: expected to be refused, found %v", name, err)
		}
	}
	for _, b := range []string{"", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if c, err := ParseCertificate([]byte(b)); err == nil {
			t.Errorf("%q: expected to be refused, found %v", b, c.Subject)
		}
	}
}

// A payload that waits for signatures is not described.
func TestDescribe(t *testing.T) {
	key, _ := newKey(t, "rsa")
	p, err := Create(t.Context(), Options{Partitions: []Partition{{Name: "boot", New: imageOf(make([]byte, 8192))}}})
	must(t, err)
	defer p.Close()
	for name, signers := range map[string][]Signer{"unsigned": nil, "signed": {key}, "waiting": {Later(256)}} {
		var b bytes.Buffer
		want, err := p.Write(&b, signers)
		must(t, err)
		_, got, err := Describe(bytes.NewReader(b.Bytes()), int64(b.Len()))
		if name == "waiting" {
			if !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), "cowtool payload sign") {
				t.Errorf("expected to be told to sign, found %v", err)
			}
			continue
		}
		must(t, err)
		if g, w := got.Properties.Append(nil), want.Properties.Append(nil); !bytes.Equal(g, w) || got.PayloadDigest != want.PayloadDigest || got.MetadataDigest != want.MetadataDigest {
			t.Errorf("%s: expected\n%s, found\n%s", name, w, g)
		}
	}
}
