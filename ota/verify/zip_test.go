package verify

import (
	"archive/zip"
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"cowbird/tools/fixture"
)

// cms makes a message as Android's signing tool does, of a hash.
type cms struct {
	signers    []string
	hash       crypto.Hash
	content    []byte // within the message
	attributes []byte
	change     func(*signedData)
}

func (c cms) message(t testing.TB, b []byte) []byte {
	t.Helper()
	digest := c.hash.New()
	digest.Write(b)
	id := map[crypto.Hash]asn1.ObjectIdentifier{crypto.SHA1: oidSHA1, crypto.SHA256: oidSHA256, crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3}}[c.hash]
	data := signedData{Version: 1, Digests: []pkix.AlgorithmIdentifier{{Algorithm: id}}}
	data.Content.Type = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	if c.content != nil {
		data.Content.Content = asn1.RawValue{FullBytes: marshal(t, c.content, "explicit,tag:0")}
	}
	for _, name := range c.signers {
		sig, err := signers()[name].Sign(rand.Reader, digest.Sum(nil), c.hash)
		if err != nil {
			t.Fatal(err)
		}
		s := signer{Version: 1, ID: asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true}, Digest: pkix.AlgorithmIdentifier{Algorithm: id},
			Algorithm: pkix.AlgorithmIdentifier{Algorithm: oidSHA256}, Signature: sig}
		if c.attributes != nil {
			s.Attributes = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: c.attributes}
		}
		data.Signers = append(data.Signers, s)
	}
	if c.change != nil {
		c.change(&data)
	}
	return marshal(t, contentInfo{oidSignedData, asn1.RawValue{FullBytes: marshal(t, asn1.RawValue{
		Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: marshal(t, data, "")}, "")}}, "")
}

func marshal(t testing.TB, v any, params string) []byte {
	t.Helper()
	b, err := asn1.MarshalWithParams(v, params)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// unsignedZip is what is signed of a zip: all up to the length of the comment.
func unsignedZip(t testing.TB) []byte {
	b := zipOf(t, "payload.bin", blob())
	return b[:len(b)-2]
}

// comment puts a message behind, with some text before it.
func comment(b []byte, text string, message []byte) []byte {
	back := len(message) + footerSize
	size := len(text) + back
	out := binary.LittleEndian.AppendUint16(bytes.Clone(b), uint16(size))
	out = append(append(out, text...), message...)
	out = binary.LittleEndian.AppendUint16(out, uint16(back))
	out = append(out, 0xff, 0xff)
	return binary.LittleEndian.AppendUint16(out, uint16(size))
}

const commentText = "signed by SignApk\x00"

func signedZip(t testing.TB, names ...string) []byte {
	b := unsignedZip(t)
	return comment(b, commentText, cms{signers: names, hash: crypto.SHA256}.message(t, b))
}

func checkZip(b []byte, keys Keys, allow ...ZipOption) error {
	return Zip(bytes.NewReader(b), int64(len(b)), keys, allow...)
}

func TestZip(t *testing.T) {
	for _, name := range []string{"RSA-2048", "RSA-4096", "ECDSA P-256", "ECDSA P-384"} {
		b := signedZip(t, name)
		expectCode(t, name, checkZip(b, keysOf(t, "other", name)), Success)
		expectCode(t, name+", another key", checkZip(b, keysOf(t, "other")), DownloadPayloadPubKeyVerificationError)
		expectCode(t, name+", no keys", checkZip(b, nil), DownloadPayloadPubKeyVerificationError)
		if _, err := zip.NewReader(bytes.NewReader(b), int64(len(b))); err != nil {
			t.Errorf("expected a zip, found %v", err)
		}
	}
	expectCode(t, "second signer", checkZip(signedZip(t, "RSA-2048", "ECDSA P-256"), keysOf(t, "ECDSA P-256")), Success)
}

func TestZipSHA1(t *testing.T) {
	b := unsignedZip(t)
	b = comment(b, commentText, cms{signers: []string{"RSA-2048"}, hash: crypto.SHA1}.message(t, b))
	err := checkZip(b, keysOf(t, "RSA-2048"))
	expectCode(t, "SHA-1", err, DownloadPayloadVerificationError)
	if !errors.Is(err, ErrZipSignature) || !strings.Contains(fmt.Sprint(err), "allow SHA-1") {
		t.Errorf("expected to be told how to allow it, found %v", err)
	}
	expectCode(t, "SHA-1, allowed", checkZip(b, keysOf(t, "RSA-2048"), AllowSHA1), Success)
	expectCode(t, "SHA-1, allowed, another key", checkZip(b, keysOf(t, "other"), AllowSHA1), DownloadPayloadPubKeyVerificationError)
}

// No byte of a signed zip can be changed, and it cannot be cut or made longer.
func TestZipDamage(t *testing.T) {
	b, keys := signedZip(t, "ECDSA P-256"), keysOf(t, "ECDSA P-256")
	signed := int64(len(unsignedZip(t)))
	for at := range b {
		if int64(at) > 200 && int64(at) < signed-100 && at%16 != 0 {
			continue // the middle of the payload
		}
		if text := signed + 2; int64(at) >= text && int64(at) < text+int64(len(commentText)) {
			continue // the text before the signature is not signed
		}
		bad := bytes.Clone(b)
		bad[at] ^= 1 << (at % 8)
		err := checkZip(bad, keys)
		if c := CodeOf(err); c != DownloadPayloadVerificationError && c != DownloadPayloadPubKeyVerificationError {
			// Names of algorithms and of the signer are not signed either.
			if err != nil || int64(at) < signed {
				t.Errorf("byte %d: expected a refusal, found %v", at, err)
			}
		}
	}
	for n := range b {
		expectCode(t, "cut", checkZip(b[:n], keys), DownloadPayloadVerificationError)
	}
	expectCode(t, "longer", checkZip(append(bytes.Clone(b), 0), keys), DownloadPayloadVerificationError)
}

func TestZipMalformed(t *testing.T) {
	b, by := unsignedZip(t), []string{"ECDSA P-256"}
	good := cms{signers: by, hash: crypto.SHA256}.message(t, b)
	end := bytes.Clone(comment(b, "", good))
	binary.LittleEndian.PutUint16(end[len(b):], 77) // the zip's own length of the comment
	noEnd := comment(b, "", good)
	noEnd[len(b)-20]++ // its magic
	for name, c := range map[string]struct {
		b    []byte
		says string
	}{
		"not signed":        {append(bytes.Clone(b), 0, 0), "the zip is not signed"},
		"no zip":            {make([]byte, 27), "at least 28"},
		"no end of a zip":   {noEnd, "end of the central directory at"},
		"empty signature":   {comment(b, "x", nil), "within the comment"},
		"another end":       {comment(b, "PK\x05\x06", good), "found another"},
		"other lengths":     {end, "end of the central directory"},
		"no ASN.1":          {comment(b, "", []byte("garbage")), "asn1"},
		"trailing":          {comment(b, "", append(bytes.Clone(good), 0)), "found 1 more"},
		"not signed data":   {comment(b, "", marshal(t, contentInfo{oidSHA1, asn1.RawValue{FullBytes: []byte{0xa0, 2, 5, 0}}}, "")), "expected signed data"},
		"empty signed data": {comment(b, "", marshal(t, contentInfo{oidSignedData, asn1.RawValue{FullBytes: []byte{0xa0, 0}}}, "")), "asn1"},
		"attributes":        {comment(b, "", cms{signers: by, hash: crypto.SHA256, attributes: []byte{5, 0}}.message(t, b)), "no signed attributes"},
		"content":           {comment(b, "", cms{signers: by, hash: crypto.SHA256, content: []byte("x")}.message(t, b)), "of its own"},
		"no signers":        {comment(b, "", cms{hash: crypto.SHA256}.message(t, b)), "found 0"},
		"many signers":      {comment(b, "", cms{signers: []string{by[0], by[0], by[0], by[0], by[0]}, hash: crypto.SHA256}.message(t, b)), "found 5"},
		"SHA-512":           {comment(b, "", cms{signers: by, hash: crypto.SHA512}.message(t, b)), "expected SHA-256"},
	} {
		err := checkZip(c.b, keysOf(t, by[0]))
		expectCode(t, name, err, DownloadPayloadVerificationError)
		if !errors.Is(err, ErrZipSignature) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: expected %v with %q, found %v", name, ErrZipSignature, c.says, err)
		}
	}
	for at := range 3 {
		failing := &failingReader{b: comment(b, "", good), after: at}
		if err := Zip(failing, int64(len(failing.b)), keysOf(t, by[0])); !errors.Is(err, iotest.ErrTimeout) {
			t.Errorf("read %d: expected %v, found %v", at, iotest.ErrTimeout, err)
		}
	}
}

type failingReader struct {
	b     []byte
	after int
}

func (r *failingReader) ReadAt(p []byte, off int64) (int, error) {
	if r.after--; r.after < 0 {
		return 0, iotest.ErrTimeout
	}
	return bytes.NewReader(r.b).ReadAt(p, off)
}

// A signer with a certificate and revocation lists beside it, as openssl makes it.
func TestZipOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		fixture.Missing(t, "openssl is not installed")
	}
	for _, name := range []string{"RSA-2048", "RSA-4096", "ECDSA P-256", "ECDSA P-384"} {
		b := unsignedZip(t)
		for digest, want := range map[string]Code{"sha256": Success, "sha1": DownloadPayloadVerificationError} {
			message := opensslCMS(t, openssl, name, b, "-md", digest, "-noattr")
			expectCode(t, name+" "+digest, checkZip(comment(b, commentText, message), keysOf(t, name)), want)
			expectCode(t, name+" "+digest+", SHA-1 allowed", checkZip(comment(b, commentText, message), keysOf(t, name), AllowSHA1), Success)
		}
		for option, says := range map[string]string{"-nodetach": "found another", "-binary": "no signed attributes"} {
			message := opensslCMS(t, openssl, name, b, "-md", "sha256", option)
			if err := checkZip(comment(b, commentText, message), keysOf(t, name)); !strings.Contains(fmt.Sprint(err), says) {
				t.Errorf("%s %s: expected %q, found %v", name, option, says, err)
			}
		}
	}
}

func opensslCMS(t *testing.T, openssl, name string, b []byte, options ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(signers()[name])
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"in": b, "key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), "cert": certificatePEM(t, signers()[name])}
	for file, body := range files {
		if err := os.WriteFile(filepath.Join(dir, file), body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(openssl, append([]string{"cms", "-sign", "-binary", "-outform", "DER", "-in", "in", "-signer", "cert", "-inkey", "key", "-out", "out"}, options...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl cms: %v\n%s", err, out)
	}
	return read(t, filepath.Join(dir, "out"))
}

// Signing with the wrong hash for the name that is given does not help.
func TestZipHashConfusion(t *testing.T) {
	b := unsignedZip(t)
	long, short := sha256.Sum256(b), sha1.Sum(b)
	for name, digest := range map[string][]byte{"SHA-256 as SHA-1": long[:], "SHA-1 as SHA-256": short[:]} {
		sig, err := signers()["ECDSA P-256"].Sign(rand.Reader, digest, crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		h := crypto.SHA1
		if len(digest) == sha1.Size {
			h = crypto.SHA256
		}
		c := cms{signers: []string{"ECDSA P-256"}, hash: h, change: func(d *signedData) { d.Signers[0].Signature = sig }}
		expectCode(t, name, checkZip(comment(b, "", c.message(t, b)), keysOf(t, "ECDSA P-256"), AllowSHA1), DownloadPayloadPubKeyVerificationError)
	}
}
