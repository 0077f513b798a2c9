package verify

import (
	"archive/zip"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

// certificate is one that has long expired: on Android it counts all the same.
func certificate(t testing.TB, s crypto.Signer) []byte {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1, 0)}
	b, err := x509.CreateCertificate(rand.Reader, c, c, s.Public(), s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func certificatePEM(t testing.TB, s crypto.Signer) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate(t, s)})
}

func zipOf(t testing.TB, files ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		w, err := z.Create(files[i].(string))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[i+1].([]byte)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func der(t testing.TB, public any) []byte {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestParseKeys(t *testing.T) {
	r, e := signers()["RSA-2048"], signers()["ECDSA P-384"]
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(r.Public().(*rsa.PublicKey))})
	for name, c := range map[string]struct {
		b    []byte
		want []string
	}{
		"PEM":                 {publicPEM(t, r), []string{"RSA-2048"}},
		"PKCS#1 PEM":          {pkcs1, []string{"RSA-2048"}},
		"DER":                 {der(t, e.Public()), []string{"ECDSA P-384"}},
		"certificate, PEM":    {certificatePEM(t, e), []string{"ECDSA P-384"}},
		"certificate, DER":    {certificate(t, r), []string{"RSA-2048"}},
		"several":             {join([]byte("# two\n"), publicPEM(t, r), certificatePEM(t, e), []byte("end")), []string{"RSA-2048", "ECDSA P-384"}},
		"RSA-4096":            {publicPEM(t, signers()["RSA-4096"]), []string{"RSA-4096"}},
		"zip of certificates": {zipOf(t, "README", []byte("x"), "a.x509.pem", certificatePEM(t, r), "b/c.x509.pem", certificatePEM(t, e)), []string{"RSA-2048", "ECDSA P-384"}},
	} {
		keys, err := ParseKeys(c.b)
		if err != nil || len(keys) != len(c.want) {
			t.Errorf("%s: expected %v, found %v, %v", name, c.want, keys, err)
			continue
		}
		for i, k := range keys {
			if !strings.HasPrefix(k.String(), c.want[i]+" ") {
				t.Errorf("%s: expected %v, found %v", name, c.want[i], k)
			}
		}
	}
}

// A key is the same in each of its forms.
func TestKeyForms(t *testing.T) {
	s := signers()["RSA-2048"]
	for _, b := range [][]byte{certificatePEM(t, s), certificate(t, s), der(t, s.Public())} {
		keys, err := ParseKeys(b)
		if want := keysOf(t, "RSA-2048"); err != nil || keys.String() != want.String() {
			t.Errorf("expected %v, found %v, %v", want, keys, err)
		}
	}
}

// dsaKey is a public key of the standard's old sort, with small numbers.
const dsaKey = "MCQwGgYHKoZIzjgEATAPAgMBAAcCAwEABwIDAQAHAwYAAgMBAAc="

func TestKeysRefused(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	large := &rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 8191), big.NewInt(1)), E: 65537}
	dsa, err := base64.StdEncoding.DecodeString(dsaKey)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(p224)
	if err != nil {
		t.Fatal(err)
	}
	good := publicPEM(t, signers()["other"])
	for name, c := range map[string]struct {
		b    []byte
		says string
	}{
		"RSA-1024":     {der(t, small.Public()), "RSA-1024"},
		"RSA-8192":     {der(t, large), "RSA-8192"},
		"P-521":        {der(t, p521.Public()), "ECDSA P-521"},
		"P-224":        {der(t, p224.Public()), "ECDSA P-224"},
		"Ed25519":      {der(t, ed), "Ed25519"},
		"DSA":          {dsa, "dsa.PublicKey"},
		"private":      {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), `"PRIVATE KEY"`},
		"one is bad":   {join(good, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der(t, ed)})), "PEM block 1"},
		"empty":        {nil, "certificate"},
		"no block":     {[]byte("-----BEGIN CERTIFICATE-----\n"), "PEM blocks"},
		"garbage":      {[]byte("garbage"), "certificate"},
		"trailing":     {append(der(t, signers()["other"].Public()), 0), "certificate"},
		"zip, empty":   {zipOf(t, "README", good), "x509.pem"},
		"zip, cut":     {zipOf(t, "a.x509.pem", good)[:40], "zip"},
		"zip, bad":     {zipOf(t, "a.x509.pem", good, "b.x509.pem", []byte("x")), "b.x509.pem"},
		"zip, large":   {zipOf(t, "a.x509.pem", bytes.Repeat([]byte("x"), maxKeySize+1)), "at most"},
		"large":        {make([]byte, maxKeysSize+1), "at most"},
		"too many":     {bytes.Repeat(good, maxKeys+1), "at most"},
		"too many zip": {zipOf(t, "a.x509.pem", bytes.Repeat(good, maxKeys), "b.x509.pem", good), "at most"},
	} {
		keys, err := ParseKeys(c.b)
		if !errors.Is(err, ErrKeys) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: expected %v with %q, found %v, %v", name, ErrKeys, c.says, keys, err)
		}
	}
}
