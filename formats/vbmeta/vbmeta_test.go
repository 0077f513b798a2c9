package vbmeta

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"cowbird/formats/verity"
)

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(golden(t, fmt.Sprintf("rsa%d.pem", bits)))
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func encoded(t testing.TB, bits int) []byte {
	t.Helper()
	b, err := EncodeKey(&testKey(t, bits).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const release = "avbtool 1.3.0"

// Keys are encoded as avbtool does it.
func TestKey(t *testing.T) {
	for _, bits := range []int{2048, 4096} {
		want := golden(t, fmt.Sprintf("rsa%d.avbpub", bits))
		if got := encoded(t, bits); !bytes.Equal(got, want) {
			t.Errorf("%d bits: expected avbtool's bytes, found others", bits)
		}
		key, err := DecodeKey(want)
		if err != nil || !key.Equal(&testKey(t, bits).PublicKey) {
			t.Errorf("%d bits: expected the key, found %v", bits, err)
		}
	}
	good := encoded(t, 2048)
	for what, change := range map[string]func(b []byte) []byte{
		"short":      func(b []byte) []byte { return b[:7] },
		"truncated":  func(b []byte) []byte { return b[:len(b)-1] },
		"bits":       func(b []byte) []byte { binary.BigEndian.PutUint32(b, 4096); return b },
		"many bits":  func(b []byte) []byte { binary.BigEndian.PutUint32(b, 1<<31); return b },
		"few bits":   func(b []byte) []byte { binary.BigEndian.PutUint32(b, 64); return b[:8+16] },
		"n0inv":      func(b []byte) []byte { b[7] ^= 1; return b },
		"n is even":  func(b []byte) []byte { b[8+255] ^= 1; return b },
		"n is small": func(b []byte) []byte { b[8] = 0; return b },
		"rr":         func(b []byte) []byte { b[8+256+100] ^= 1; return b },
	} {
		if _, err := DecodeKey(change(bytes.Clone(good))); !errors.Is(err, ErrKey) {
			t.Errorf("%s: expected ErrKey, found %v", what, err)
		}
	}
	odd := testKey(t, 2048).PublicKey
	odd.E = 3
	for _, key := range []*rsa.PublicKey{nil, {}, &odd} {
		if _, err := EncodeKey(key); !errors.Is(err, ErrKey) {
			t.Errorf("expected ErrKey, found %v", err)
		}
	}
}

// What avbtool signs is verified, and signed again it is the same, byte for byte.
func TestAlgorithmsAgainstAvbtool(t *testing.T) {
	for a := SHA256RSA2048; a <= SHA512RSA8192; a++ {
		file := golden(t, strings.ToLower(a.String())+".vbmeta")
		v, err := Parse(file)
		if err != nil {
			t.Fatalf("%v: %v", a, err)
		}
		key := testKey(t, algorithms[a].bits)
		if err := v.Verify(&key.PublicKey); err != nil {
			t.Errorf("%v: %v", a, err)
		}
		if found, err := v.VerifyEmbedded(); err != nil || !found.Equal(&key.PublicKey) {
			t.Errorf("%v: expected the embedded key, found %v", a, err)
		}
		got, err := Sign(&VBMeta{RollbackIndex: 7, Release: release, Descriptors: []Descriptor{&Property{"a.b", []byte("c")}}}, key, a)
		if err != nil || !bytes.Equal(got, file) {
			t.Errorf("%v: expected avbtool's bytes, found others, %v", a, err)
		}
		if parsed, err := ParseAlgorithm(a.String()); err != nil || parsed != a {
			t.Errorf("%v: expected its name to be known, found %v", a, err)
		}
		verifyWrong(t, file, a, key)
	}
}

// verifyWrong changes each of the parts.
func verifyWrong(t *testing.T, file []byte, a Algorithm, key *rsa.PrivateKey) {
	t.Helper()
	hash := algorithms[a].hash.Size()
	for at, want := range map[int]error{
		119:                     ErrHash, // rollback index
		HeaderSize:              ErrHash, // the hash itself
		HeaderSize + hash:       ErrSignature,
		HeaderSize + hash + 200: ErrSignature,
		len(file) - 1:           ErrHash, // padding
	} {
		changed := bytes.Clone(file)
		changed[at] ^= 1
		v, err := Parse(changed)
		if err == nil {
			err = v.Verify(&key.PublicKey)
		}
		if !errors.Is(err, want) {
			t.Errorf("%v: byte %d changed: expected %v, found %v", a, at, want, err)
		}
	}
}

func TestVerifyKeys(t *testing.T) {
	key := testKey(t, 2048)
	v, err := Parse(golden(t, "sha256_rsa2048.vbmeta"))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Verify(&testKey(t, 4096).PublicKey); !errors.Is(err, ErrKey) {
		t.Errorf("another key: expected ErrKey, found %v", err)
	}
	if err := v.Verify(nil); !errors.Is(err, ErrKey) {
		t.Errorf("no key: expected ErrKey, found %v", err)
	}
	b, err := Marshal(&VBMeta{})
	if err != nil {
		t.Fatal(err)
	}
	if v, err = Parse(b); err != nil {
		t.Fatal(err)
	}
	if err := v.Verify(&key.PublicKey); !errors.Is(err, ErrUnsigned) {
		t.Errorf("algorithm none: expected ErrUnsigned, found %v", err)
	}
	if _, err := v.VerifyEmbedded(); !errors.Is(err, ErrUnsigned) {
		t.Errorf("algorithm none: expected ErrUnsigned, found %v", err)
	}
}

// allDescriptors are what testdata/all.vbmeta has, and it was made of.
func allDescriptors(t testing.TB) []Descriptor {
	key := encoded(t, 2048)
	digest, _ := hex.DecodeString("b161185020b97d4444eb4aa78d8b421236a1e6300304097cacec6c83c733272e")
	root, _ := hex.DecodeString("e96e97d36f7a41a366d1b05fc517d16d9bcf487f")
	vroot := `dm="1 vroot none ro 1,0 8 verity 1 PARTUUID=$(ANDROID_SYSTEM_PARTUUID) PARTUUID=$(ANDROID_SYSTEM_PARTUUID) 4096 4096 1 1 sha1 ` +
		`e96e97d36f7a41a366d1b05fc517d16d9bcf487f  2 $(ANDROID_VERITY_MODE) ignore_zero_blocks" root=/dev/dm-0`
	return []Descriptor{
		&ChainPartition{2, "system", key, 0},
		&ChainPartition{3, "modem", key, DoNotUseAB},
		&Property{"key", []byte("value")},
		&KernelCmdline{CmdlineIfEnabled, vroot},
		&KernelCmdline{CmdlineIfNot, "root=PARTUUID=$(ANDROID_SYSTEM_PARTUUID)"},
		&KernelCmdline{0, "root=/dev/dm-0 quiet"},
		&Hash{ImageSize: 30000, Algorithm: "sha256", Partition: "boot", Salt: []byte{0, 0xaa, 0xbb}, Digest: digest},
		&Hashtree{ImageSize: 4096, TreeOffset: 4096, DataBlockSize: 4096, HashBlockSize: 4096, Algorithm: "sha1", Partition: "one", Salt: []byte{}, RootDigest: root},
	}
}

func TestDescriptorsAgainstAvbtool(t *testing.T) {
	file, key := golden(t, "all.vbmeta"), testKey(t, 4096)
	v, err := Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	want := allDescriptors(t)
	if !reflect.DeepEqual(v.Descriptors, want) {
		t.Errorf("expected %#v\nfound %#v", want, v.Descriptors)
	}
	if v.RequiredMinor != 3 || v.RollbackIndex != 5 || v.RollbackIndexLocation != 4 || v.Flags != HashtreeDisabled || v.Release != release || v.Size() != int64(len(file)) {
		t.Errorf("found %+v", v)
	}
	made := &VBMeta{RollbackIndex: 5, RollbackIndexLocation: 4, Flags: HashtreeDisabled, Release: release, Descriptors: want, KeyMetadata: noise(2, 40)}
	got, err := Sign(made, key, SHA512RSA4096)
	if err != nil || !bytes.Equal(got, file) {
		t.Errorf("expected avbtool's bytes, found others, %v", err)
	}
}

// Descriptors of tags that nobody knows yet survive.
func TestUnknownDescriptor(t *testing.T) {
	want := []Descriptor{&Unknown{99, noise(5, 24)}, &Property{"k", []byte{0, 1}}, &Unknown{1 << 63, []byte{}}}
	b, err := Marshal(&VBMeta{Descriptors: want})
	if err != nil {
		t.Fatal(err)
	}
	v, err := Parse(append(b, "what follows"...))
	if err != nil || !reflect.DeepEqual(v.Descriptors, want) {
		t.Errorf("expected %v, found %v, %v", want, v.Descriptors, err)
	}
}

func TestParseRefuses(t *testing.T) {
	file := golden(t, "all.vbmeta")
	aux := HeaderSize + 576
	chain, hash := aux, descriptorAt(t, file, TagHash)
	tree, prop := descriptorAt(t, file, TagHashtree), descriptorAt(t, file, TagProperty)
	cmdline := descriptorAt(t, file, TagKernelCmdline)
	put := func(at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint64(b[at:], v); return b }
	}
	set := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], v); return b }
	}
	for what, c := range map[string]struct {
		change func(b []byte) []byte
		want   error
	}{
		"nothing":                   {func(b []byte) []byte { return nil }, ErrNotVBMeta},
		"magic":                     {set(0, 1), ErrNotVBMeta},
		"half a header":             {func(b []byte) []byte { return b[:255] }, ErrTruncated},
		"one byte less":             {func(b []byte) []byte { return b[:len(b)-1] }, ErrTruncated},
		"major":                     {set(4, 2), ErrVersion},
		"minor":                     {set(8, 4), ErrVersion},
		"authentication size":       {put(12, 577), ErrCorrupt},
		"large authentication":      {put(12, 1<<62), ErrTooLarge},
		"auxiliary size":            {put(20, 1), ErrCorrupt},
		"large auxiliary":           {put(20, ^uint64(63)), ErrTooLarge},
		"too large together":        {put(20, MaxSize), ErrTooLarge},
		"algorithm":                 {set(28, 7), ErrAlgorithm},
		"another algorithm":         {set(28, 1), ErrCorrupt},
		"none, but hashed":          {set(28, 0), ErrCorrupt},
		"hash offset":               {put(32, 513), ErrCorrupt},
		"hash offset wraps":         {put(32, ^uint64(0)), ErrCorrupt},
		"hash size":                 {put(40, 32), ErrCorrupt},
		"signature offset":          {put(48, 65), ErrCorrupt},
		"signature size":            {put(56, 0), ErrCorrupt},
		"key offset":                {put(64, 1<<63), ErrCorrupt},
		"key size":                  {put(72, 520), ErrCorrupt},
		"key metadata":              {put(88, 1<<40), ErrCorrupt},
		"descriptors offset":        {put(96, 8), ErrCorrupt},
		"descriptors size":          {put(104, 1<<33), ErrCorrupt},
		"descriptors end early":     {put(104, 8), ErrCorrupt},
		"release is not terminated": {func(b []byte) []byte { copy(b[128:], strings.Repeat("x", 48)); return b }, ErrCorrupt},
		"behind the release":        {func(b []byte) []byte { b[170] = 1; return b }, ErrCorrupt},
		"reserved":                  {func(b []byte) []byte { b[255] = 1; return b }, ErrCorrupt},
		"descriptor length":         {put(chain+8, 7), ErrCorrupt},
		"descriptor too long":       {put(chain+8, 1<<60), ErrCorrupt},
		"chain location":            {set(chain+16, 0), ErrCorrupt},
		"chain name":                {set(chain+20, 1<<31), ErrCorrupt},
		"chain key":                 {set(chain+24, 0), ErrKey},
		"chain reserved":            {set(chain+32, 1), ErrCorrupt},
		"slash in a name":           {func(b []byte) []byte { b[chain+chainSize] = '/'; return b }, ErrCorrupt},
		"hash image size":           {put(hash+16, 1<<63), ErrCorrupt},
		"hash algorithm":            {func(b []byte) []byte { b[hash+24] = ' '; return b }, ErrCorrupt},
		"hash algorithm's end":      {func(b []byte) []byte { b[hash+55] = 'x'; return b }, ErrCorrupt},
		"hash salt":                 {set(hash+60, 1000), ErrCorrupt},
		"hash digest":               {set(hash+64, ^uint32(0)), ErrCorrupt},
		"hash reserved":             {set(hash+72, 1), ErrCorrupt},
		"verity version":            {set(tree+16, 0), ErrVersion},
		"tree image size":           {put(tree+20, 4095), ErrCorrupt},
		"tree image overflow":       {put(tree+20, 1<<63-1), ErrCorrupt},
		"tree offset":               {put(tree+28, 1), ErrCorrupt},
		"tree overflow":             {put(tree+36, 1<<63-4096), ErrCorrupt},
		"tree in the image":         {func(b []byte) []byte { return put(tree+36, 4096)(put(tree+28, 0)(b)) }, ErrCorrupt},
		"data block size":           {set(tree+44, 0), ErrCorrupt},
		"hash block size":           {set(tree+48, 4097), ErrCorrupt},
		"FEC without roots":         {put(tree+64, 8192), ErrCorrupt},
		"many roots":                {set(tree+52, 1<<31|2), ErrCorrupt},
		"tree reserved":             {set(tree+120, 1), ErrCorrupt},
		"padding":                   {func(b []byte) []byte { b[tree+hashtreeSize+3+20] = 1; return b }, ErrCorrupt},
		"property key":              {put(prop+16, 1<<63-1), ErrCorrupt},
		"property value":            {put(prop+24, 1<<62), ErrCorrupt},
		"property without NUL":      {func(b []byte) []byte { b[prop+propertySize+3] = 'x'; return b }, ErrCorrupt},
		"property without a key":    {put(prop+16, 0), ErrCorrupt},
		"command line":              {set(cmdline+20, 1<<30), ErrCorrupt},
		"NUL in a command line":     {func(b []byte) []byte { b[cmdline+30] = 0; return b }, ErrCorrupt},
	} {
		_, err := Parse(c.change(bytes.Clone(file)))
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: expected %v, found %v", what, c.want, err)
		}
	}
}

// descriptorAt finds the last descriptor of a tag.
func descriptorAt(t *testing.T, file []byte, tag uint64) (found int) {
	t.Helper()
	for at, end := HeaderSize+576, HeaderSize+576+int(binary.BigEndian.Uint64(file[104:])); at < end; {
		if binary.BigEndian.Uint64(file[at:]) == tag {
			found = at
		}
		at += 16 + int(binary.BigEndian.Uint64(file[at+8:]))
	}
	if found == 0 {
		t.Fatalf("no descriptor with tag %d", tag)
	}
	return found
}

func TestSignRefuses(t *testing.T) {
	key := testKey(t, 2048)
	for what, c := range map[string]struct {
		v    VBMeta
		key  *rsa.PrivateKey
		a    Algorithm
		want error
	}{
		"algorithm":       {VBMeta{}, key, 7, ErrAlgorithm},
		"no key":          {VBMeta{}, nil, SHA256RSA2048, ErrKey},
		"key for none":    {VBMeta{}, key, None, ErrKey},
		"another size":    {VBMeta{}, key, SHA256RSA4096, ErrKey},
		"release":         {VBMeta{Release: strings.Repeat("x", 48)}, nil, None, ErrCorrupt},
		"version":         {VBMeta{RequiredMinor: 4}, nil, None, ErrVersion},
		"size":            {VBMeta{KeyMetadata: make([]byte, MaxSize)}, nil, None, ErrTooLarge},
		"block size":      {VBMeta{Descriptors: []Descriptor{&Hashtree{Partition: "a", Algorithm: "sha256", DataBlockSize: 1<<32 + 4096, HashBlockSize: 4096}}}, nil, None, ErrCorrupt},
		"name":            {VBMeta{Descriptors: []Descriptor{&Hash{Partition: "../a", Algorithm: "sha256"}}}, nil, None, ErrCorrupt},
		"algorithm name":  {VBMeta{Descriptors: []Descriptor{&Hash{Partition: "a", Algorithm: strings.Repeat("a", 33)}}}, nil, None, ErrCorrupt},
		"unknown's size":  {VBMeta{Descriptors: []Descriptor{&Unknown{9, []byte{1}}}}, nil, None, ErrCorrupt},
		"unknown's tag":   {VBMeta{Descriptors: []Descriptor{&Unknown{1, nil}}}, nil, None, ErrCorrupt},
		"negative size":   {VBMeta{Descriptors: []Descriptor{&Hash{Partition: "a", Algorithm: "sha256", ImageSize: -1}}}, nil, None, ErrCorrupt},
		"negative offset": {VBMeta{Descriptors: []Descriptor{&Hashtree{Partition: "a", Algorithm: "sha256", DataBlockSize: 4096, HashBlockSize: 4096, TreeOffset: -4096}}}, nil, None, ErrCorrupt},
	} {
		if _, err := Sign(&c.v, c.key, c.a); !errors.Is(err, c.want) {
			t.Errorf("%s: expected %v, found %v", what, c.want, err)
		}
	}
}

// sparse is a file in memory.
type sparse []byte

func (s *sparse) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(*s) {
		*s = append(*s, make([]byte, need-len(*s))...)
	}
	return copy((*s)[off:], p), nil
}

// The partitions are those of avbtool add_hashtree_footer and add_hash_footer, which
// were given the same images; the sums are of avbtool's files.
func TestFooterAgainstAvbtool(t *testing.T) {
	system := withTree(t, noise(1, 1003000), 1310720, &Hashtree{Partition: "system", Algorithm: "sha256", Salt: []byte{0xd0, 0x0d}, Flags: CheckAtMostOnce},
		&VBMeta{RollbackIndex: 3, Release: release, Descriptors: []Descriptor{&Property{"com.example.build", []byte("1")}}}, SHA256RSA2048)
	one := withTree(t, noise(3, 4096), 0, &Hashtree{Partition: "one", Algorithm: "sha1"}, &VBMeta{Release: release}, None)
	image := sparse(noise(2, 30000))
	hash := &Hash{ImageSize: 30000, Algorithm: "sha256", Partition: "boot", Salt: []byte{0, 0xaa, 0xbb}}
	var err error
	if hash.Digest, err = hash.Sum(bytes.NewReader(image), 30000); err != nil {
		t.Fatal(err)
	}
	b, err := Marshal(&VBMeta{Release: release, Descriptors: []Descriptor{hash}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := AppendFooter(&image, NewLayout(30000, 0, 0), b, 131072); err != nil {
		t.Fatal(err)
	}
	for sum, got := range map[string][]byte{
		"b82466d4302f9462edbccc90d29800be1d9b73fe7683b9a3e363a22b3f0938d7": system,
		"45a017909220af009cb4ddee09236cb6a7a8bf911dd0632089e12f0b59dcd847": image,
		"af349566f5e05075ad9aee53eaa68bc5f4d9a9dec837d37fbcb38d73309609bd": one,
	} {
		if found := fmt.Sprintf("%x", sha256.Sum256(got)); found != sum {
			t.Errorf("%d bytes: expected the SHA-256 %s of avbtool's file, found %s", len(got), sum, found)
		}
	}
	v, err := FromPartition(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	found := v.Descriptors[0].(*Hash)
	if err := found.Check(bytes.NewReader(image), int64(len(image))); err != nil {
		t.Error(err)
	}
	image[29999] ^= 1
	if err := found.Check(bytes.NewReader(image), int64(len(image))); !errors.Is(err, ErrDigest) {
		t.Errorf("expected ErrDigest, found %v", err)
	}
}

// withTree makes a partition with a hash tree.
func withTree(t *testing.T, image []byte, partition int64, h *Hashtree, v *VBMeta, a Algorithm) []byte {
	t.Helper()
	tree, err := verity.NewTree(h.Algorithm, h.Salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	l := NewLayout(int64(len(image)), tree.Size(blocks(int64(len(image)))), 0)
	out := make(sparse, l.ImageSize)
	copy(out, image)
	var hashes bytes.Buffer
	root, err := tree.Build(bytes.NewReader(out), l.ImageSize, &hashes)
	if err != nil {
		t.Fatal(err)
	}
	made := l.Hashtree()
	made.Partition, made.Algorithm, made.Salt, made.Flags, made.RootDigest = h.Partition, h.Algorithm, h.Salt, h.Flags, root
	v.Descriptors = append([]Descriptor{made}, v.Descriptors...)
	var key *rsa.PrivateKey
	if a != None {
		key = testKey(t, algorithms[a].bits)
	}
	b, err := Sign(v, key, a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.WriteAt(hashes.Bytes(), l.TreeOffset); err != nil {
		t.Fatal(err)
	}
	if _, err := AppendFooter(&out, l, b, partition); err != nil {
		t.Fatal(err)
	}
	return out
}

// avbtool itself, where somebody has installed it: Debian does not have it.
func TestAvbtool(t *testing.T) {
	tool, err := exec.LookPath("avbtool")
	if err != nil {
		t.Skip("avbtool is not installed; TestAlgorithmsAgainstAvbtool and others know what it makes")
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "system.img")
	made := withTree(t, noise(9, 300*4096), 0, &Hashtree{Partition: "system", Algorithm: "sha256", Salt: noise(8, 32)},
		&VBMeta{RollbackIndexLocation: 1, Descriptors: allDescriptors(t)[2:6]}, SHA512RSA2048)
	if err := os.WriteFile(image, made, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool, "verify_image", "--image", image, "--key", "testdata/rsa2048.pem").CombinedOutput(); err != nil {
		t.Errorf("expected avbtool to verify our partition, found %v\n%s", err, out)
	}
}

func TestFooterRefuses(t *testing.T) {
	good := withTree(t, noise(3, 8192), 0, &Hashtree{Partition: "a", Algorithm: "sha256"}, &VBMeta{}, None)
	size := int64(len(good))
	f, err := ReadFooter(bytes.NewReader(good), size)
	if want := (&Footer{0, 8192, 12288, 512}); err != nil || *f != *want {
		t.Errorf("expected %+v, found %+v, %v", want, f, err)
	}
	at := int(size) - FooterSize
	for what, c := range map[string]struct {
		change func(b []byte)
		want   error
	}{
		"magic":     {func(b []byte) { b[at] = 0 }, ErrNoFooter},
		"major":     {func(b []byte) { b[at+7] = 2 }, ErrVersion},
		"original":  {func(b []byte) { binary.BigEndian.PutUint64(b[at+12:], uint64(at)+1) }, ErrCorrupt},
		"offset":    {func(b []byte) { binary.BigEndian.PutUint64(b[at+20:], ^uint64(0)) }, ErrCorrupt},
		"past end":  {func(b []byte) { binary.BigEndian.PutUint64(b[at+20:], uint64(at)-511) }, ErrCorrupt},
		"too small": {func(b []byte) { binary.BigEndian.PutUint64(b[at+28:], 255) }, ErrCorrupt},
		"too large": {func(b []byte) { binary.BigEndian.PutUint64(b[at+28:], 1<<62) }, ErrCorrupt},
		"reserved":  {func(b []byte) { b[at+63] = 1 }, ErrCorrupt},
	} {
		b := bytes.Clone(good)
		c.change(b)
		if _, err := ReadFooter(bytes.NewReader(b), size); !errors.Is(err, c.want) {
			t.Errorf("%s: expected %v, found %v", what, c.want, err)
		}
	}
	short := bytes.Clone(good)
	binary.BigEndian.PutUint64(short[at+28:], 448)
	if _, err := FromPartition(bytes.NewReader(short), size); !errors.Is(err, ErrTruncated) {
		t.Errorf("metadata longer than the footer says: expected ErrTruncated, found %v", err)
	}
	if _, err := FromPartition(bytes.NewReader(good[:63]), 63); !errors.Is(err, ErrNotVBMeta) {
		t.Errorf("a partition of 63 bytes: expected ErrNotVBMeta, found %v", err)
	}
	if _, err := FromPartition(bytes.NewReader(nil), 0); !errors.Is(err, ErrNotVBMeta) {
		t.Errorf("an empty partition: expected ErrNotVBMeta, found %v", err)
	}
	if _, err := FromPartition(bytes.NewReader(good[:100]), 4096); err == nil {
		t.Error("a partition that cannot be read: expected an error, found none")
	}
	for _, n := range []int64{20480 - 4096, 20481} {
		if _, err := AppendFooter(&sparse{}, NewLayout(8192, 4096, 0), make([]byte, 512), n); !errors.Is(err, ErrNoRoom) {
			t.Errorf("a partition of %d bytes: expected ErrNoRoom, found %v", n, err)
		}
	}
}

// Padding of a metadata partition is ignored, and it needs no footer.
func TestFromPartitionStart(t *testing.T) {
	b := append(golden(t, "all.vbmeta"), make([]byte, 100000)...)
	v, err := FromPartition(bytes.NewReader(b), int64(len(b)))
	if err != nil || v.RollbackIndex != 5 {
		t.Errorf("expected the metadata, found %+v, %v", v, err)
	}
	if err := v.Verify(&testKey(t, 4096).PublicKey); err != nil {
		t.Error(err)
	}
}

func TestTable(t *testing.T) {
	h := &Hashtree{ImageSize: 1 << 20, TreeOffset: 1 << 20, TreeSize: 3 << 12, DataBlockSize: 4096, HashBlockSize: 4096, Algorithm: "sha256",
		RootDigest: []byte{0xab, 0xcd}, Salt: []byte{1, 2}}
	for _, c := range []struct {
		change func()
		o      TableOptions
		want   string
	}{
		{func() {}, TableOptions{}, "1 254:1 254:1 4096 4096 256 256 sha256 abcd 0102 1 ignore_zero_blocks"},
		{func() { h.Salt = nil }, TableOptions{OnCorruption: "restart_on_corruption"}, "1 254:1 254:1 4096 4096 256 256 sha256 abcd - 2 restart_on_corruption ignore_zero_blocks"},
		{func() { h.FECRoots, h.FECOffset, h.FECSize, h.Flags = 2, 259<<12, 4<<12, CheckAtMostOnce }, TableOptions{OnCorruption: "restart_on_corruption"},
			"1 254:1 254:1 4096 4096 256 256 sha256 abcd - 11 use_fec_from_device 254:1 fec_roots 2 fec_blocks 259 fec_start 259 restart_on_corruption ignore_zero_blocks check_at_most_once"},
		{func() {}, TableOptions{WithoutFEC: true}, "1 254:1 254:1 4096 4096 256 256 sha256 abcd - 2 ignore_zero_blocks check_at_most_once"},
	} {
		c.change()
		if got := h.Table("254:1", c.o); got != c.want || h.Sectors() != 2048 {
			t.Errorf("expected %s\nfound %s, %d sectors", c.want, got, h.Sectors())
		}
	}
}

func TestHashRefuses(t *testing.T) {
	image := bytes.NewReader(noise(1, 100))
	for what, c := range map[string]struct {
		h    Hash
		want error
	}{
		"algorithm": {Hash{ImageSize: 100, Algorithm: "md5"}, ErrAlgorithm},
		"no digest": {Hash{ImageSize: 100, Algorithm: "sha512"}, ErrAlgorithm},
		"too short": {Hash{ImageSize: 101, Algorithm: "sha512"}, ErrDigest},
	} {
		if err := c.h.Check(image, 100); !errors.Is(err, c.want) {
			t.Errorf("%s: expected %v, found %v", what, c.want, err)
		}
	}
	if _, err := (&Hash{ImageSize: 200, Algorithm: "sha256"}).Sum(image, 200); err == nil {
		t.Error("expected an error where the partition ends early, found none")
	}
}
