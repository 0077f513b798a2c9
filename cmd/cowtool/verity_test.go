package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/vbmeta"
	"cowbird/formats/verity"
	"cowbird/tools/fixture"
)

const vbmetaKeys = "../../formats/vbmeta/testdata/"

// newVerityBox has two partitions and keys.
func newVerityBox(t *testing.T) box {
	t.Helper()
	b := box{t: t, dir: t.TempDir()}
	for name, size := range map[string]int{"system.img": 1500*4096 - 100, "boot.img": 100000} {
		data := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(data)
		b.write(name, data)
	}
	for _, name := range []string{"rsa2048.pem", "rsa4096.pem", "rsa2048.avbpub"} {
		data, err := os.ReadFile(vbmetaKeys + name)
		if err != nil {
			t.Fatal(err)
		}
		b.write(name, data)
	}
	return b
}

// spoil changes blocks of a file.
func (b box) spoil(name string, blocks ...int) {
	data := b.read(name)
	for _, n := range blocks {
		for i := range 4096 {
			data[n*4096+i] ^= byte(i) | 1
		}
	}
	b.write(name, data)
}

func (b box) damage(line string, code int) (f damageFacts) {
	b.t.Helper()
	found, out, errs := b.try(line)
	if err := json.Unmarshal(resultOf(out), &f); err != nil || found != code {
		b.t.Fatalf("%s: expected exit code %d and JSON, found %d, %s%s", line, code, found, out, errs)
	}
	return f
}

// resultOf is the last line; lines of progress may be in front of it.
func resultOf(out string) []byte {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return []byte(lines[len(lines)-1])
}

func TestVerityBuildCheckRepair(t *testing.T) {
	b := newVerityBox(t)
	original := b.read("system.img")
	text := b.run("verity build --key @rsa2048.pem --salt d00d --partition-size 8M --prop a=b @system.img")
	good := b.read("system.img")
	if len(good) != 8<<20 || !bytes.HasPrefix(good, original) || !strings.Contains(text, "salt d00d") {
		t.Fatalf("expected the image at the start of 8 MiB, found %d bytes, %s", len(good), text)
	}
	b.run("verity build --key @rsa2048.pem --salt d00d --partition-size 8M --prop a=b @system.img")
	if !bytes.Equal(b.read("system.img"), good) {
		t.Error("expected the same bytes when it is built again")
	}
	if text := b.run("verity check --key @rsa2048.avbpub @system.img"); !strings.Contains(text, "good; 1500 blocks") {
		t.Errorf("expected it to be good, found %s", text)
	}
	b.run("verity check --root-only @system.img")
	b.spoil("system.img", 17, 18, 1499, 1500)
	f := b.damage("verity check --json @system.img", 1)
	if f.Good || f.Bad < 3 || *f.First != 17 || f.BadTree == 0 {
		t.Errorf("expected blocks from 17 on to be bad, found %+v", f)
	}
	if code, _, errs := b.try("verity check --root-only @system.img"); code != 1 || !strings.Contains(errs, "wrong root") {
		t.Errorf("expected a wrong root, found %d, %s", code, errs)
	}
	f = b.damage("verity repair --json @system.img", 0)
	if !f.Good || f.Repaired != 3 || f.RepairedTree != 1 || !bytes.Equal(b.read("system.img"), good) {
		t.Errorf("expected 4 blocks to be repaired, found %+v", f)
	}
	if text := b.run("verity repair @system.img"); !strings.Contains(text, "repaired 0 blocks") {
		t.Errorf("expected nothing to be repaired, found %s", text)
	}
	// With 6 rounds these are three of the same code words, of which two can be wrong.
	b.spoil("system.img", 3, 9, 15)
	before := b.read("system.img")
	if f = b.damage("verity repair --json @system.img", 1); f.Bad != 3 || f.Repaired != 0 || !bytes.Equal(b.read("system.img"), before) {
		t.Errorf("expected nothing to be repaired, found %+v", f)
	}
}

func TestVerityInfo(t *testing.T) {
	b := newVerityBox(t)
	b.run("verity build --check-at-most-once --hash sha1 @system.img")
	text := b.run("verity info @system.img")
	for _, want := range []string{"hash tree", "system", "sha1 root", "salt none", "2 roots"} {
		if !strings.Contains(text, want) {
			t.Errorf("expected %q in\n%s", want, text)
		}
	}
	line := b.run("verity info --table 254:3 --on-corruption panic @system.img")
	var f struct {
		descriptorFacts
		Table string
	}
	if err := json.Unmarshal([]byte(b.run("verity info --json --table 254:3 --on-corruption panic @system.img")), &f); err != nil {
		t.Fatal(err)
	}
	// 1500 blocks, 8 of 128 hashes each for SHA-1 padded to 32 bytes, and so on: 12+1.
	want := "0 12000 verity 1 254:3 254:3 4096 4096 1500 1500 sha1 " + f.Digest +
		" - 11 use_fec_from_device 254:3 fec_roots 2 fec_blocks 1513 fec_start 1513 panic_on_corruption ignore_zero_blocks check_at_most_once\n"
	if line != want || f.Table+"\n" != want {
		t.Errorf("expected %s\nfound %s\nand %s", want, line, f.Table)
	}
}

// Trees in files of their own are veritysetup's.
func TestVerityApart(t *testing.T) {
	b := newVerityBox(t)
	b.write("data", make([]byte, 700*4096))
	b.spoil("data", 1, 2, 699)
	good := b.read("data")
	var f built
	if err := json.Unmarshal(resultOf(b.run("verity build --json --salt aabb --tree @tree --fec @fec --fec-roots 4 @data")), &f); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.read("data"), good) || int64(len(b.read("tree"))) != f.TreeSize || int64(len(b.read("fec"))) != f.FECSize {
		t.Errorf("expected files of their own, found %+v", f)
	}
	where := "--tree @tree --salt aabb --root " + f.Root
	b.run("verity check " + where + " @data")
	b.run("verity check --salt aabb --root " + f.Root + " @data")
	b.spoil("data", 0, 5, 300)
	b.spoil("tree", 1)
	if d := b.damage("verity check --json "+where+" @data", 1); d.Bad < 3 || *d.First != 0 || d.BadTree != 1 {
		t.Errorf("expected damage, found %+v", d)
	}
	if d := b.damage("verity repair --json --fec @fec --fec-roots 4 "+where+" @data", 0); d.Repaired != 3 || d.RepairedTree != 1 || !bytes.Equal(b.read("data"), good) {
		t.Errorf("expected 4 blocks to be repaired, found %+v", d)
	}
	tool, err := exec.LookPath("veritysetup")
	if err != nil {
		tool = "/usr/sbin/veritysetup"
	}
	if _, err := os.Stat(tool); err != nil {
		fixture.Missing(t, "veritysetup is not installed (Debian: cryptsetup-bin)")
	}
	if out, err := exec.Command(tool, "verify", "--no-superblock", "--hash=sha256", "--salt=aabb", b.path("data"), b.path("tree"), f.Root).CombinedOutput(); err != nil {
		t.Errorf("expected veritysetup to verify it, found %v\n%s", err, out)
	}
}

func TestVerityRefused(t *testing.T) {
	b := newVerityBox(t)
	b.write("empty", nil)
	b.write("odd", make([]byte, 5000))
	b.write("hash.vbmeta", nil)
	b.run("vbmeta make -o @hash.vbmeta --hash boot=" + b.path("boot.img"))
	b.write("good.img", b.read("system.img"))
	b.run("verity build --fec-roots 0 @good.img")
	b.write("two.vbmeta", nil)
	b.write("small.img", b.read("boot.img"))
	b.run("verity build @small.img")
	b.run("vbmeta make -o @two.vbmeta --include " + b.path("good.img") + " --include " + b.path("small.img"))
	before := b.read("good.img")
	root := strings.Repeat("00", 32)
	for line, c := range map[string]struct {
		code int
		text string
	}{
		"verity build @none":                                                {1, "no such file"},
		"verity build @empty":                                               {1, "found no bytes"},
		"verity build --salt x @system.img":                                 {2, "--salt"},
		"verity build --hash md5 @system.img":                               {2, "md5"},
		"verity build --fec-roots 1 @system.img":                            {2, "--fec-roots"},
		"verity build --fec @f @system.img":                                 {2, "--tree"},
		"verity build --tree @t --fec @t @system.img":                       {2, "another file"},
		"verity build --tree @t --key @k @system.img":                       {2, "no metadata"},
		"verity build --tree @system.img @system.img":                       {2, "is the input"},
		"verity build --tree @t @odd":                                       {1, "whole number of blocks"},
		"verity build --vbmeta @v --partition-size 8M @system.img":          {2, "no footer"},
		"verity build --algorithm SHA256_RSA2048 @good.img":                 {2, "--key"},
		"verity build --algorithm RSA --key @rsa2048.pem @good.img":         {2, "RSA"},
		"verity build --key @rsa2048.avbpub @good.img":                      {1, "private key"},
		"verity build --partition-size 6000K @good.img":                     {1, "larger --partition-size"},
		"verity build --partition a/b @good.img":                            {1, "partition name"},
		"verity build --prop x @good.img":                                   {2, "KEY=VALUE"},
		"verity build " + b.dir:                                             {1, "directory"},
		"verity check @boot.img":                                            {1, "give a metadata image"},
		"verity check --vbmeta @hash.vbmeta @boot.img":                      {1, "found none"},
		"verity check --vbmeta @two.vbmeta @good.img":                       {2, "give --partition"},
		"verity check --vbmeta @two.vbmeta --partition good @boot.img":      {1, "as the descriptor says"},
		"verity check --key @rsa2048.pem @good.img":                         {1, "not signed"},
		"verity check --root 00 @boot.img --tree @tree":                     {1, "no such file"},
		"verity check --root 00 --tree @empty @good.img":                    {1, "expected a hash tree"},
		"verity check --root xy @good.img":                                  {2, "--root"},
		"verity check --root 00 --key @rsa2048.pem @good.img":               {2, "not read"},
		"verity check --root 00 --hash md5 @good.img":                       {2, "md5"},
		"verity check --root " + root + " @good.img":                        {1, "wrong root"},
		"verity repair @good.img":                                           {1, "expected error correction"},
		"verity repair --root " + root + " @good.img":                       {1, "--tree"},
		"verity info --on-corruption explode @good.img":                     {2, "explode"},
		"verity info @boot.img":                                             {1, "give a metadata image"},
		"verity check --vbmeta @two.vbmeta --partition nobody @good.img":    {1, "found none"},
		"verity check --vbmeta @two.vbmeta --partition good --tree @x @odd": {1, "as the descriptor says"},
	} {
		code, _, errs := b.try(line)
		if code != c.code || !strings.Contains(errs, c.text) {
			t.Errorf("%s: expected %d, %q; found %d, %s", line, c.code, c.text, code, errs)
		}
	}
	if !bytes.Equal(b.read("good.img"), before) {
		t.Error("expected an image to stay as it was where a build is refused")
	}
	b.run("verity check --vbmeta @two.vbmeta --partition good @good.img")
}

// The tree and error correction that Android's own engine accepted (a fixture) find and
// repair damage; SNM-036.
func TestVerityFixture(t *testing.T) {
	dir := filepath.Join(fixture.Dir(t), "payload")
	b := box{t: t, dir: t.TempDir()}
	if err := os.Mkdir(b.path("old"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.write("old/zarm", fixture.Gunzip(t, filepath.Join(dir, "src/zarmv_A.img.gz")))
	// This payload has tree and error correction as data, not computed by us.
	b.run("payload apply --old @old -o @new " + filepath.Join(dir, "delta_verity_disabled.payload.bin"))
	image := b.read("new/zarm.img")
	salt, _ := hex.DecodeString("aabbccddeeff00112233445566778899aabbccddeeff00112233445566778899")
	tree, err := verity.NewTree("sha1", salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	const size = 512 * 4096
	root, err := tree.Root(bytes.NewReader(image), size)
	if err != nil {
		t.Fatal(err)
	}
	b.write("data", image[:size])
	b.write("tree", image[size:517*4096])
	b.write("fec", image[517*4096:529*4096])
	where := "--hash sha1 --tree @tree --salt " + hex.EncodeToString(salt) + " --root " + hex.EncodeToString(root)
	b.run("verity check " + where + " @data")
	b.spoil("data", 0, 3, 100, 511)
	b.spoil("tree", 0, 2)
	if d := b.damage("verity repair --json --fec @fec --fec-roots 4 "+where+" @data", 0); d.Repaired != 4 || d.RepairedTree != 2 {
		t.Errorf("expected 6 blocks to be repaired, found %+v", d)
	}
	if !bytes.Equal(b.read("data"), image[:size]) || !bytes.Equal(b.read("tree"), image[size:517*4096]) {
		t.Error("expected the partition as it was")
	}
}

// A descriptor cannot make a check take more memory than the file is worth.
func TestVerityHostile(t *testing.T) {
	b := newVerityBox(t)
	for name, h := range map[string]vbmeta.Hashtree{
		"huge":        {ImageSize: 1 << 62, TreeOffset: 1 << 62, TreeSize: 4096, DataBlockSize: 4096, HashBlockSize: 4096, RootDigest: make([]byte, 32)},
		"no size":     {DataBlockSize: 4096, HashBlockSize: 4096, RootDigest: make([]byte, 32)},
		"other sizes": {ImageSize: 4096, DataBlockSize: 4096, HashBlockSize: 512, RootDigest: make([]byte, 32)},
		"other tree":  {ImageSize: 8192, TreeOffset: 8192, TreeSize: 8192, DataBlockSize: 4096, HashBlockSize: 4096, RootDigest: make([]byte, 32)},
		"short fec":   {ImageSize: 4096, DataBlockSize: 4096, HashBlockSize: 4096, FECRoots: 24, FECOffset: 4096, FECSize: 4096, RootDigest: make([]byte, 32)},
		"no root":     {ImageSize: 4096, DataBlockSize: 4096, HashBlockSize: 4096},
		"long root":   {ImageSize: 4096, DataBlockSize: 4096, HashBlockSize: 4096, RootDigest: make([]byte, 64)},
	} {
		h.Partition, h.Algorithm = "boot", "sha256"
		m, err := vbmeta.Marshal(&vbmeta.VBMeta{Descriptors: []vbmeta.Descriptor{&h}})
		if err != nil {
			t.Fatal(err)
		}
		b.write("vbmeta", m)
		for _, line := range []string{"verity check --vbmeta @vbmeta @boot.img", "verity repair --vbmeta @vbmeta @boot.img"} {
			if code, _, errs := b.try(line); code != 1 {
				t.Errorf("%s: %s: expected to be refused, found %d, %s", name, line, code, errs)
			}
		}
	}
}

// avbtool, where somebody has it, verifies what is built here.
func TestVerityAvbtool(t *testing.T) {
	tool, err := exec.LookPath("avbtool")
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("avbtool is not installed, and not in Debian")
	}
	b := newVerityBox(t)
	b.run("verity build --key @rsa2048.pem --partition-size 8M @system.img")
	b.run("vbmeta make -o @vbmeta.img --key @rsa4096.pem --include " + b.path("system.img") + " --hash boot=" + b.path("boot.img"))
	for image, key := range map[string]string{"system.img": "rsa2048.pem", "vbmeta.img": "rsa4096.pem"} {
		if out, err := exec.Command(tool, "verify_image", "--image", b.path(image), "--key", b.path(key)).CombinedOutput(); err != nil {
			t.Errorf("%s: expected avbtool to verify it, found %v\n%s", image, err, out)
		}
	}
}

// A build that is interrupted leaves the image as it was.
func TestVerityInterrupted(t *testing.T) {
	b := newVerityBox(t)
	before := b.read("system.img")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	v := &verityBuild{hash: "sha256", roots: 2}
	if err := v.run(ctx, cli.Output{Stdout: io.Discard, Stderr: io.Discard}, b.path("system.img")); !errors.Is(err, context.Canceled) {
		t.Errorf("expected context.Canceled, found %v", err)
	}
	if !bytes.Equal(b.read("system.img"), before) {
		t.Error("expected the image as it was")
	}
}
