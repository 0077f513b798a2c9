//go:build vmtest

package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"cowbird/cow"
	"cowbird/formats/lpmeta"
	"cowbird/formats/vbmeta"
	"cowbird/formats/verity"
)

const veritySuper = 8 << 20

// signedPartition is contents with a hash tree, and metadata that a key has signed.
func signedPartition(p *phone, key *rsa.PrivateKey, contents []byte, size int64) []byte {
	tree, err := verity.NewTree("sha256", []byte("salt"), 4096)
	p.check(err)
	l := vbmeta.NewLayout(int64(len(contents)), tree.Size(int64(len(contents))), 0)
	out := make([]byte, size)
	copy(out, contents)
	var hashes bytes.Buffer
	root, err := tree.Build(bytes.NewReader(contents), int64(len(contents)), &hashes)
	p.check(err)
	copy(out[l.TreeOffset:], hashes.Bytes())
	d := l.Hashtree()
	d.DataBlockSize, d.HashBlockSize, d.Algorithm, d.Partition, d.Salt, d.RootDigest = 4096, 4096, "sha256", "system", []byte("salt"), root
	signed, err := vbmeta.Sign(&vbmeta.VBMeta{Descriptors: []vbmeta.Descriptor{d}}, key, vbmeta.SHA256RSA2048)
	p.check(err)
	_, err = vbmeta.AppendFooter(bytesAt(out), l, signed, size)
	p.check(err)
	return out
}

type bytesAt []byte

func (b bytesAt) WriteAt(p []byte, off int64) (int, error) { return copy(b[off:], p), nil }

// TestVerityAtBoot maps a partition under dm-verity: what is good reads as it is, what is
// not fails, and a key that did not sign it boots nothing.
//
//vmtest:timeout 2m
func TestVerityAtBoot(t *testing.T) {
	p := &phone{t: t, dir: t.TempDir()}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	p.check(err)
	contents := make([]byte, 1<<20)
	_, _ = mrand.NewChaCha8([32]byte{5}).Read(contents)
	image := signedPartition(p, key, contents, 2<<20)
	at := p.flashVerity(image)
	p.writeVerityConfig(&key.PublicKey)

	device := pathsOf(p.otactl("boot"))["system_a"]
	got, err := os.ReadFile(device)
	p.check(err)
	if !bytes.Equal(got, contents) {
		t.Error("the device of dm-verity differs from what was signed")
	}
	p.otactl("verify")
	p.unmapVerity()

	loop, err := os.OpenFile(p.super, os.O_WRONLY, 0)
	p.check(err)
	_, err = loop.WriteAt([]byte("bad"), at+5*4096)
	p.check(err)
	p.check(loop.Sync())
	p.check(loop.Close())
	device = pathsOf(p.otactl("boot"))["system_a"]
	if _, err := os.ReadFile(device); err == nil {
		t.Error("expected the bad block to fail")
	}
	if code, out, errs := p.try("verify"); code != 1 || !strings.Contains(out+errs, "system") {
		t.Errorf("expected verify to find it, found %d, %s, %s", code, out, errs)
	}
	p.unmapVerity()

	other, err := rsa.GenerateKey(rand.Reader, 2048)
	p.check(err)
	p.writeVerityConfig(&other.PublicKey)
	if code, _, errs := p.try("boot"); code != 1 || !strings.Contains(errs, "verified boot") {
		t.Errorf("expected another key to boot nothing, found %d, %s", code, errs)
	}
	if out, err := exec.Command("dmsetup", "ls").Output(); err != nil || !strings.Contains(string(out), "No devices") {
		t.Errorf("expected nothing to be mapped, found %s, %v", out, err)
	}
}

// flashVerity makes super with one partition, and tells where that is.
func (p *phone) flashVerity(image []byte) int64 {
	p.check(os.WriteFile(p.path("super"), make([]byte, veritySuper), 0o600))
	b, err := lpmeta.NewBuilder([]lpmeta.DeviceInfo{{Name: "super", Size: veritySuper, Alignment: 4096, LogicalBlockSize: 4096}}, 8192, 2)
	p.check(err)
	p.check(b.AddGroup("main_a", 0))
	p.check(b.AddPartition("system_a", "main_a", lpmeta.ReadOnly))
	p.check(b.Resize("system_a", uint64(len(image)), nil))
	m, err := b.Export()
	p.check(err)
	d, err := cow.OpenDevice(p.path("super"), true)
	p.check(err)
	p.check(lpmeta.Flash(d, veritySuper, []*lpmeta.Metadata{m, m}))
	at := int64(m.Table(m.Partition("system_a"))[0].Data) * 512
	_, err = d.WriteAt(image, at)
	p.check(err)
	p.check(d.Sync())
	p.check(d.Close())
	p.check(os.WriteFile(p.path("misc"), make([]byte, 64<<10), 0o600))
	out, err := exec.Command("losetup", "-f", "--show", p.path("super")).Output()
	p.check(err)
	p.super = strings.TrimSpace(string(out))
	p.t.Cleanup(func() { _ = exec.Command("losetup", "-d", p.super).Run() })
	return at
}

func (p *phone) writeVerityConfig(key *rsa.PublicKey) {
	der, err := x509.MarshalPKIXPublicKey(key)
	p.check(err)
	p.check(os.WriteFile(p.path("avb.pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600))
	config, err := json.Marshal(map[string]any{
		"state": p.path("metadata"), "super": p.super,
		"slots":         map[string]any{"current": "_a", "misc": map[string]string{"path": p.path("misc")}},
		"verified_boot": map[string]any{"key": "avb.pem", "root": "system", "verity": true},
	})
	p.check(err)
	p.check(os.WriteFile(p.path("update.json"), config, 0o600))
}

func (p *phone) unmapVerity() {
	for _, name := range []string{"system_a-verity", "system_a"} {
		p.check(exec.Command("dmsetup", "remove", "--retry", name).Run())
	}
}
