package update

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"cowbird/cow"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/formats/vbmeta"
	"cowbird/ota/install"
	"cowbird/ota/verify"
)

// bootable is a device whose metadata of verified boot lie in vbmeta, which is static,
// and in product, which is a snapshot and chained.
type bootable struct {
	t     *testing.T
	dir   string
	keys  [2]*rsa.PrivateKey // of vbmeta and product
	d     *Device
	c     *install.Config
	sizes map[string]int64
	log   bytes.Buffer
}

func newBootable(t *testing.T) *bootable {
	b := &bootable{t: t, dir: t.TempDir(), sizes: map[string]int64{}}
	for i := range b.keys {
		var err error
		b.keys[i], err = rsa.GenerateKey(rand.Reader, 2048)
		must(t, err)
	}
	public, err := x509.MarshalPKIXPublicKey(&b.keys[0].PublicKey)
	must(t, err)
	must(t, os.WriteFile(b.path("key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o600))
	w := newWorld(t, 1, swapped())
	w.m.Log = slog.New(slog.NewTextHandler(&b.log, nil))
	b.d = &Device{Manager: w.m, config: &Config{Static: b.path("*"), VerifiedBoot: &VerifiedBoot{Key: b.path("key.pem")}}}
	b.c = &install.Config{Partitions: map[string]install.Partition{
		"vbmeta":  {Old: b.path("vbmeta_a"), New: b.path("vbmeta_b")},
		"product": {Old: b.path("product_a"), Cow: b.path("product.cow")},
	}}
	b.write("vbmeta_a", b.vbmeta(5))
	b.write("product_a", b.product(0, 7))
	return b
}

func (b *bootable) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bootable) write(name string, data []byte) {
	must(b.t, os.WriteFile(b.path(name), data, 0o600))
}

func (b *bootable) vbmeta(index uint64) []byte {
	key, err := vbmeta.EncodeKey(&b.keys[1].PublicKey)
	must(b.t, err)
	signed, err := vbmeta.Sign(&vbmeta.VBMeta{RollbackIndex: index, Descriptors: []vbmeta.Descriptor{
		&vbmeta.ChainPartition{Partition: "product", RollbackIndexLocation: 3, PublicKey: key}}}, b.keys[0], vbmeta.SHA256RSA2048)
	must(b.t, err)
	return append(signed, make([]byte, 64<<10-len(signed))...)
}

// product is a partition of 64 blocks with a footer.
func (b *bootable) product(seed uint64, index uint64) []byte {
	signed, err := vbmeta.Sign(&vbmeta.VBMeta{RollbackIndex: index}, b.keys[1], vbmeta.SHA256RSA2048)
	must(b.t, err)
	image := noise(seed, 8)
	f := &memCow{b: make([]byte, 64*blockSize)}
	copy(f.b, image)
	_, err = vbmeta.AppendFooter(f, vbmeta.NewLayout(int64(len(image)), 0, 0), signed, int64(len(f.b)))
	must(b.t, err)
	return f.b
}

// install writes a new system.
func (b *bootable) install(meta, product []byte) *payload.Metadata {
	b.t.Helper()
	m := &pb.DeltaArchiveManifest{}
	add := func(name string, data []byte) {
		m.Partitions = append(m.Partitions, &pb.PartitionUpdate{PartitionName: proto.String(name),
			NewPartitionInfo: &pb.PartitionInfo{Size: proto.Uint64(uint64(len(data)))}})
	}
	if meta != nil {
		b.write("vbmeta_b", meta)
		add("vbmeta", meta)
	}
	if product != nil {
		old, err := os.ReadFile(b.path("product_a"))
		must(b.t, err)
		out := &memCow{}
		_, err = cow.Build(ctx, out, cow.BuildOptions{Base: cow.Image{R: bytes.NewReader(old), Size: int64(len(old))},
			Target: cow.Image{R: bytes.NewReader(product), Size: int64(len(product))}, ScratchSize: 64 << 10})
		must(b.t, err)
		b.write("product.cow", out.b)
		add("product", product)
	}
	return &payload.Metadata{Manifest: m}
}

// What the boot loader would refuse is not given to it: another key, and an older
// system, wherever in the chain that shows.
func TestNewSystem(t *testing.T) {
	b := newBootable(t)
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	forged := func() []byte {
		mine := b.keys[0]
		b.keys[0] = stranger
		defer func() { b.keys[0] = mine }()
		return b.vbmeta(9)
	}()
	damaged := b.product(1, 8)
	at := bytes.Index(damaged, []byte("AVB0"))
	damaged[at+vbmeta.HeaderSize+40] ^= 1
	for what, c := range map[string]struct {
		meta, product []byte
		downgrade     bool
		want          verify.Code
		says          string
	}{
		"the same":          {b.vbmeta(5), b.product(1, 7), false, verify.Success, ""},
		"newer":             {b.vbmeta(6), b.product(1, 8), false, verify.Success, ""},
		"another key":       {forged, b.product(1, 8), false, verify.NewRootfsVerificationError, "vbmeta"},
		"downgrade forged":  {forged, b.product(1, 8), true, verify.NewRootfsVerificationError, "vbmeta"},
		"damaged":           {b.vbmeta(6), damaged, false, verify.NewRootfsVerificationError, "product"},
		"older":             {b.vbmeta(4), b.product(1, 8), false, verify.PayloadTimestampError, "vbmeta: expected a rollback index of 5 or more, found 4"},
		"older further on":  {b.vbmeta(6), b.product(1, 6), false, verify.PayloadTimestampError, "product: expected a rollback index of 7 or more, found 6"},
		"older, allowed":    {b.vbmeta(4), b.product(1, 6), true, verify.Success, ""},
		"partial":           {b.vbmeta(6), nil, false, verify.NewRootfsVerificationError, "product"}, // nothing in the other slot
		"nothing of a kind": {nil, b.product(1, 8), false, verify.NewRootfsVerificationError, "vbmeta"},
	} {
		t.Run(what, func(t *testing.T) {
			_ = os.Remove(b.path("vbmeta_b"))
			m := b.install(c.meta, c.product)
			err := b.d.checkNewSystem(m, b.c, c.downgrade)
			if verify.CodeOf(err) != c.want || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("expected %v and %q, found %v", c.want, c.says, err)
			}
		})
	}
	t.Run("the rest in the other slot", func(t *testing.T) {
		b.write("product_b", b.product(2, 7))
		if err := b.d.checkNewSystem(b.install(b.vbmeta(6), nil), b.c, false); err != nil {
			t.Error(err)
		}
	})
	t.Run("without verified boot", func(t *testing.T) {
		d := &Device{Manager: b.d.Manager, config: &Config{}}
		if err := d.checkNewSystem(b.install(forged, nil), b.c, false); err != nil {
			t.Error(err)
		}
	})
	t.Run("a running system that does not verify", func(t *testing.T) {
		b.write("vbmeta_a", forged)
		if err := b.d.checkNewSystem(b.install(b.vbmeta(1), b.product(1, 1)), b.c, false); err != nil || !strings.Contains(b.log.String(), "not compared") {
			t.Errorf("expected a warning, found %v, %s", err, b.log.String())
		}
	})
}
