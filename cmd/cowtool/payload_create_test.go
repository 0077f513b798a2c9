package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"cowbird/ota/generate"
)

// newImagesBox has two builds of one partition each.
func newImagesBox(t *testing.T) box {
	b := newBox(t)
	for _, dir := range []string{"v1", "v2"} {
		if err := os.Mkdir(b.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	b.write("v1/system.img", b.read("base"))
	b.write("v2/system.img", b.target)
	return b
}

// A payload of images gives the images: full, as a delta, and in a signed zip.
func TestPayloadCreate(t *testing.T) {
	b := newImagesBox(t)
	b.write("key.pem", []byte(testPrivateKey(t)))
	public(t, b)
	b.run("payload create -q --effort fast -o @full.bin @v2")
	b.run("payload extract -q -o @out @full.bin")
	b.same("out/system.img", b.target)
	b.run("payload create -q --effort fast -o @ota.zip --key @key.pem --timestamp 7 --device bird,robin --to-build x/2 --wipe --group main:16M:system --vabc lz4 --old @v1 @v2")
	b.run("payload verify -q --key @key.pub @ota.zip")
	b.run("payload apply -q --old @v1 -o @new @ota.zip")
	b.same("new/system.img", b.target)
	info := b.run("payload info @ota.zip")
	for _, want := range []string{"bird robin", "x/2", "wipes the user's data", "COW_COPY", "estimated cow"} {
		if !strings.Contains(info, want) {
			t.Errorf("expected %q, found %s", want, info)
		}
	}
	for _, line := range []string{
		"payload create -o @x.bin --minor 12 --old @v1 @v2", "payload create -o @x.bin --minor 4 @v2", "payload create -o @x.bin --vabc lz4 @v2",
		"payload create -o @x.zip --signature-size 256 @v2", "payload create -o @x.bin --effort most @v2", "payload create -o @x.bin @absent",
		"payload create -o @x.bin --group main:1 @v2", "payload create -o @x.bin --key @base @v2",
	} {
		if code, _, errs := b.try(line); code == 0 || errs == "" {
			t.Errorf("%s: expected an error, found none", line)
		}
	}
	if _, err := os.Stat(b.path("x.bin")); err == nil {
		t.Error("expected no output of what failed")
	}
}

// Programs to be run come from target files, and from flags, which come before them.
func TestPayloadPostinstall(t *testing.T) {
	b := newBox(t)
	for _, dir := range []string{"t", "t/IMAGES", "t/META"} {
		if err := os.Mkdir(b.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	b.write("t/IMAGES/system.img", b.target)
	b.write("t/IMAGES/vendor.img", b.target)
	b.write("t/META/postinstall_config.txt", []byte("RUN_POSTINSTALL_system=true\nPOSTINSTALL_PATH_system=bin/one\nRUN_POSTINSTALL_vendor=true\nPOSTINSTALL_PATH_vendor=bin/two\n"))
	b.run("payload create -q --effort fast -o @a.bin --postinstall vendor=bin/three:erofs:optional @t")
	if info := b.run("payload info @a.bin"); !strings.Contains(info, "runs bin/one after") || !strings.Contains(info, "runs bin/three after") || strings.Contains(info, "bin/two") {
		t.Errorf("expected the programs one and three, found %s", info)
	}
	for _, bad := range []string{"vendor", "vendor=", "vendor=a:b:c", "vendor=a:b:optional:d", "odm=a"} {
		if code, _, errs := b.try("payload create -o @x.bin --postinstall " + bad + " @t"); code != 2 || !strings.Contains(errs, "--postinstall") {
			t.Errorf("%s: expected to be refused, found %d, %s", bad, code, errs)
		}
	}
}

// Items that are made by themselves give the same payload; what is missing is named.
func TestPayloadFarm(t *testing.T) {
	b := newImagesBox(t)
	b.run("payload create -q --effort fast --chunk 64K -o @one.bin --old @v1 @v2")
	items := strings.Fields(b.run("payload plan -q --effort fast --chunk 64K -o @plan --old @v1 @v2"))
	if len(items) < 2 {
		t.Fatalf("expected items, found %v", items)
	}
	images := " --plan @plan --results @results --old @v1 --new @v2"
	b.run("payload run" + images + " " + items[0])
	if code, _, errs := b.try("payload join -q -o @farm.bin" + images); code == 0 || !strings.Contains(errs, items[1][:12]) && !strings.Contains(errs, "cowtool payload run") {
		t.Errorf("expected the missing item and what to do, found %d, %s", code, errs)
	}
	b.run("payload run" + images + " --part 0 --of 2")
	b.run("payload run" + images + " --part 1 --of 2")
	b.run("payload join -q -o @farm.bin" + images)
	b.same("farm.bin", b.read("one.bin"))
	for _, line := range []string{"payload run" + images, "payload run" + images + " x", "payload run" + images + " --part 2 --of 2",
		"payload run --plan @plan --results @results --new @v2 " + items[0], "payload join -o @x --plan @base --results @results --new @v2"} {
		if code, _, errs := b.try(line); code == 0 || errs == "" {
			t.Errorf("%s: expected an error, found none", line)
		}
	}
}

// What is signed in two steps is what is signed at once.
func TestPayloadSign(t *testing.T) {
	b := newImagesBox(t)
	b.write("key.pem", []byte(testPrivateKey(t)))
	public(t, b)
	b.run("payload create -q --effort fast -o @once.bin --key @key.pem @v2")
	var facts payloadReport
	out := strings.Split(strings.TrimSpace(b.run("payload create -q --json --effort fast -o @later.bin --signature-size 256 --digests @digests @v2")), "\n")
	if err := json.Unmarshal([]byte(out[len(out)-1]), &facts); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"metadata", "payload"} {
		b.write(name+".sig", signWith(t, b.read("key.pem"), b.read("digests/"+name+".sha256")))
	}
	b.run("payload sign -q --metadata-signature @metadata.sig --payload-signature @payload.sig @later.bin")
	b.same("later.bin", b.read("once.bin"))
	b.run("payload verify -q --key @key.pub @later.bin")
	if code, _, errs := b.try("payload sign --metadata-signature @metadata.sig --payload-signature @base @later.bin"); code == 0 || errs == "" {
		t.Error("a signature that is too long: expected an error, found none")
	}
}

func testPrivateKey(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}

// public writes key.pub for key.pem.
func public(t *testing.T, b box) {
	t.Helper()
	k, err := generate.ParsePrivateKey(b.read("key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	b.write("key.pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func signWith(t *testing.T, key, digest []byte) []byte {
	t.Helper()
	k, err := generate.ParsePrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := k.Sign([32]byte(digest))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A zip that is signed as a whole is what recovery takes: made at once, packed later, or
// signed by somebody else.
func TestPayloadPack(t *testing.T) {
	b := newImagesBox(t)
	b.write("key.pem", []byte(testPrivateKey(t)))
	public(t, b)
	key, err := generate.ParsePrivateKey(b.read("key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "release"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key.Signer)
	if err != nil {
		t.Fatal(err)
	}
	b.write("cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	b.run("payload create -q --effort fast -o @once.zip --key @key.pem --certificate @cert.pem --device bird @v2")
	b.run("payload verify -q --zip-signature --key @key.pub @once.zip")
	b.run("payload create -q --effort fast -o @new.bin --key @key.pem @v2")
	b.run("payload pack -q -o @packed.zip --key @key.pem --certificate @cert.pem --device bird @new.bin")
	b.same("packed.zip", b.read("once.zip"))
	b.run("payload pack -q -o @later.zip --certificate @cert.pem --digests @digests --device bird @new.bin")
	b.write("zip.sig", signWith(t, b.read("key.pem"), b.read("digests/zip.sha256")))
	b.run("payload sign -q --certificate @cert.pem --zip-signature @zip.sig @later.zip")
	b.same("later.zip", b.read("once.zip"))
	b.write("other.pem", []byte(testPrivateKey(t)))
	for _, line := range []string{
		"payload create -o @x.zip --key @other.pem --certificate @cert.pem @v2", "payload create -o @x.bin --key @key.pem --certificate @cert.pem @v2",
		"payload create -o @x.zip --certificate @cert.pem @v2", "payload pack -o @x.zip --certificate @cert.pem @new.bin",
		"payload pack -o @x.zip --key @key.pem @new.bin", "payload pack -o @x.zip --digests @digests @new.bin", "payload pack -o @x.zip @base",
		"payload pack -o @x.zip --old @v1 @new.bin", "payload sign --certificate @cert.pem --zip-signature @zip.sig @once.zip", "payload sign @new.bin",
	} {
		if code, _, errs := b.try(line); code == 0 || errs == "" {
			t.Errorf("%s: expected an error, found none", line)
		}
	}
}
