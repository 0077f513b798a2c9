package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"strings"
	"testing"
)

// newVBMetaBox has what a device has: vbmeta with a hash of boot and a chain to
// vbmeta_system, which has the hash tree of system.
func newVBMetaBox(t *testing.T) box {
	t.Helper()
	b := newVerityBox(t)
	b.run("verity build --salt 01 @system.img")
	b.run("vbmeta make -o @vbmeta_system.img --key @rsa2048.pem --rollback-index 9 --padding 4K --include " + b.path("system.img"))
	b.run("vbmeta make -o @vbmeta.img --key @rsa4096.pem --algorithm SHA512_RSA4096 --cmdline quiet --prop a.b=c --rollback-index 8" +
		" --hash boot=" + b.path("boot.img") + " --chain vbmeta_system:1:" + b.path("rsa2048.avbpub"))
	return b
}

func TestVBMetaInfo(t *testing.T) {
	b := newVBMetaBox(t)
	text := b.run("vbmeta info @vbmeta.img")
	for _, want := range []string{"SHA512_RSA4096, signature: good", "made by \"cowtool\"", "8 at location 0", "boot", "vbmeta_system", `"a.b" = "c"`, `"quiet"`} {
		if !strings.Contains(text, want) {
			t.Errorf("expected %q in\n%s", want, text)
		}
	}
	var f vbmetaFacts
	if err := json.Unmarshal([]byte(b.run("vbmeta info --json @system.img")), &f); err != nil {
		t.Fatal(err)
	}
	if f.Footer == nil || f.Footer.OriginalImageSize != 1500*4096-100 || f.Algorithm != "NONE" || f.Signature != "none" || len(f.Descriptors) != 1 || f.Descriptors[0].Salt != "01" {
		t.Errorf("expected the footer and the hash tree, found %+v", f)
	}
	if n := len(b.read("vbmeta_system.img")); n != 4096 {
		t.Errorf("expected 4096 bytes with padding, found %d", n)
	}
	data := b.read("vbmeta.img")
	data[116] ^= 1
	b.write("changed.img", data)
	if text := b.run("vbmeta info @changed.img"); !strings.Contains(text, "wrong hash") {
		t.Errorf("expected the wrong hash to be told, found\n%s", text)
	}
	all, err := os.ReadFile(vbmetaKeys + "all.vbmeta")
	if err != nil {
		t.Fatal(err)
	}
	b.write("all", all)
	if text := b.run("vbmeta info @all"); !strings.Contains(text, "hash trees disabled") || !strings.Contains(text, "key metadata") {
		t.Errorf("expected flags and key metadata, found\n%s", text)
	}
}

func TestVBMetaVerify(t *testing.T) {
	b := newVBMetaBox(t)
	lines := strings.Split(strings.TrimSpace(b.run("vbmeta verify --key @rsa4096.pem --images "+b.dir+" @vbmeta.img")), "\n")
	want := []string{"vbmeta: metadata: signed by the key", "vbmeta_system: metadata: signed by the key it is chained with", "boot: hash: good", "system: hashtree: good"}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("expected %q, found %q", want, lines)
	}
	if text := b.run("vbmeta verify @vbmeta.img"); !strings.Contains(text, "of which nothing is known") {
		t.Errorf("expected to be told of the embedded key, found %s", text)
	}
	if text := b.run("vbmeta verify --unsigned --images " + b.dir + " @system.img"); !strings.Contains(text, "system: hashtree: good") {
		t.Errorf("expected the image to be good, found %s", text)
	}
	if err := os.Rename(b.path("boot.img"), b.path("away")); err != nil {
		t.Fatal(err)
	}
	if text := b.run("vbmeta verify --images " + b.dir + " @vbmeta.img"); !strings.Contains(text, "boot: hash: not there") {
		t.Errorf("expected boot to be missing, found %s", text)
	}
	if err := os.Rename(b.path("away"), b.path("boot")); err != nil {
		t.Fatal(err)
	}
	b.run("vbmeta verify --json --images " + b.dir + " @vbmeta.img")
	b.spoil("system.img", 77, 78)
	b.spoil("boot", 3)
	code, out, errs := b.try("vbmeta verify --json --images " + b.dir + " @vbmeta.img")
	if code != 1 || !strings.Contains(errs, "boot: wrong digest") || !strings.Contains(errs, "found 2 of data, the first 77") || !strings.Contains(out, `"first_bad_block":77`) {
		t.Errorf("expected both partitions to be wrong, found %d, %s%s", code, out, errs)
	}
}

// Keys come as PEM, public, private or in a certificate, and as metadata have them.
func TestVBMetaKeys(t *testing.T) {
	b := newVBMetaBox(t)
	block, _ := pem.Decode(b.read("rsa2048.pem"))
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.CreateCertificate(nil, &x509.Certificate{SerialNumber: key.N}, &x509.Certificate{}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	for kind, der := range map[string][]byte{"PUBLIC KEY": pkix, "PRIVATE KEY": pkcs8, "CERTIFICATE": certificate, "RSA PUBLIC KEY": x509.MarshalPKCS1PublicKey(&key.PublicKey)} {
		b.write("key", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
		if code, _, errs := b.try("vbmeta verify --key @key @vbmeta_system.img"); code != 0 {
			t.Errorf("%s: found %s", kind, errs)
		}
		b.write("key", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der[:20]}))
		if code, _, _ := b.try("vbmeta verify --key @key @vbmeta_system.img"); code != 1 {
			t.Errorf("%s, cut short: expected to be refused", kind)
		}
	}
	b.write("key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	b.run("vbmeta make -o @one --key @key")
	b.run("vbmeta make -o @two --key @rsa2048.pem")
	if !bytes.Equal(b.read("one"), b.read("two")) {
		t.Error("expected the same metadata by the same key")
	}
}

func TestVBMetaRefused(t *testing.T) {
	b := newVBMetaBox(t)
	b.run("vbmeta make -o @unsigned.img")
	if err := os.Mkdir(b.path("empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.run("vbmeta make -o @disabled.img --hashtree-disabled --verification-disabled --rollback-index-location 3")
	for line, c := range map[string]struct {
		code int
		text string
	}{
		"vbmeta info @boot.img":                                      {1, "give a metadata image"},
		"vbmeta info @none":                                          {1, "no such file"},
		"vbmeta verify --key @rsa2048.pem @vbmeta.img":               {1, "wrong key"},
		"vbmeta verify --key @boot.img @vbmeta.img":                  {1, "expected PEM"},
		"vbmeta verify --key @rsa2048.pem --unsigned @vbmeta.img":    {2, "found both"},
		"vbmeta verify @unsigned.img":                                {1, "look at it with --unsigned"},
		"vbmeta verify --images " + b.path("empty") + " @vbmeta.img": {1, "vbmeta_system"},
		"vbmeta make":                 {2, "required flag"},
		"vbmeta make -o @x --chain a": {2, "NAME:LOCATION:KEY"},
		"vbmeta make -o @x --chain a:0:" + b.path("rsa2048.avbpub"):            {2, "location"},
		"vbmeta make -o @x --chain a:1:" + b.path("boot.img"):                  {1, "expected PEM"},
		"vbmeta make -o @x --hash boot":                                        {2, "NAME=FILE"},
		"vbmeta make -o @x --hash boot=" + b.path("none"):                      {1, "no such file"},
		"vbmeta make -o @x --hash a/b=" + b.path("boot.img"):                   {1, "partition name"},
		"vbmeta make -o @x --include " + b.path("boot.img"):                    {1, "give a metadata image"},
		"vbmeta make -o @x --prop =x":                                          {2, "KEY=VALUE"},
		"vbmeta make -o @x --padding 2G":                                       {2, "--padding"},
		"vbmeta make -o @x --algorithm SHA256_RSA2048":                         {2, "--key"},
		"vbmeta make -o @x --algorithm SHA256_RSA2048 --key @rsa4096.pem":      {1, "2048 bits"},
		"vbmeta make -o @x --algorithm MD5_RSA2048 --key @rsa4096.pem":         {2, "MD5_RSA2048"},
		"vbmeta make -o @x --key @boot.img":                                    {1, "private key"},
		"vbmeta make -o @x --rollback-index-location 99999999999":              {2, "value out of range"},
		"vbmeta verify --key @rsa4096.pem --images @none --json @unsigned.img": {1, "not signed"},
	} {
		code, _, errs := b.try(line)
		if code != c.code || !strings.Contains(errs, c.text) {
			t.Errorf("%s: expected %d, %q; found %d, %s", line, c.code, c.text, code, errs)
		}
	}
	if text := b.run("vbmeta info @disabled.img"); !strings.Contains(text, "0x3, hash trees disabled, verification disabled") || !strings.Contains(text, "version 1.2") {
		t.Errorf("expected the flags, found\n%s", text)
	}
}
