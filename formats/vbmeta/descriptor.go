package vbmeta

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

// The tags of descriptors.
const (
	TagProperty uint64 = iota
	TagHashtree
	TagHash
	TagKernelCmdline
	TagChainPartition
)

const (
	descriptorHead  = 16
	descriptorAlign = 8

	propertySize = 32 // without what varies, as below
	hashtreeSize = 180
	hashSize     = 132
	cmdlineSize  = 24
	chainSize    = 92

	algorithmSize = 32
)

// Descriptor is a *Property, *Hashtree, *Hash, *KernelCmdline, *ChainPartition or
// *Unknown.
type Descriptor interface {
	Tag() uint64
	check() error
	encode() []byte // whole
}

// Property is a pair of strings; the value may be any bytes.
type Property struct {
	Key   string
	Value []byte
}

// Flags of Hashtree, and the first one of Hash and ChainPartition too.
const (
	DoNotUseAB       uint32 = 1 // the partition's name has no slot suffix
	CheckAtMostOnce  uint32 = 2 // dm-verity verifies a block the first time only
	CmdlineIfEnabled uint32 = 1 // a KernelCmdline for devices with hash trees in use
	CmdlineIfNot     uint32 = 2 // and for those without
)

// Hashtree says what dm-verity has to know. Sizes and offsets are bytes.
type Hashtree struct {
	ImageSize     int64
	TreeOffset    int64
	TreeSize      int64 // 0 if the tree is made on the device
	DataBlockSize int64
	HashBlockSize int64
	FECRoots      int // 0 without error correction
	FECOffset     int64
	FECSize       int64
	Algorithm     string // "sha1", "sha256", "blake2b-256"
	Partition     string // without the slot's suffix
	Salt          []byte
	RootDigest    []byte // none if the device keeps it
	Flags         uint32
}

// Hash is the hash of salt and image.
type Hash struct {
	ImageSize int64
	Algorithm string // "sha256" or "sha512"
	Partition string
	Salt      []byte
	Digest    []byte // none if the device keeps it
	Flags     uint32
}

// KernelCmdline is added to the kernel's command line.
type KernelCmdline struct {
	Flags uint32 // 0 is always
	Text  string
}

// ChainPartition has metadata of its own, signed with this key.
type ChainPartition struct {
	RollbackIndexLocation uint32 // 1 or more
	Partition             string
	PublicKey             []byte // as EncodeKey gives it
	Flags                 uint32
}

// Unknown is a descriptor of another tag.
type Unknown struct {
	Type uint64
	Data []byte // what follows tag and length, a multiple of 8 bytes
}

// Tag is TagProperty; and so on.
func (*Property) Tag() uint64       { return TagProperty }
func (*Hashtree) Tag() uint64       { return TagHashtree }
func (*Hash) Tag() uint64           { return TagHash }
func (*KernelCmdline) Tag() uint64  { return TagKernelCmdline }
func (*ChainPartition) Tag() uint64 { return TagChainPartition }
func (u *Unknown) Tag() uint64      { return u.Type }

// Named is the partition that a descriptor is about, "" if it is about none.
func Named(d Descriptor) string {
	switch d := d.(type) {
	case *Hashtree:
		return d.Partition
	case *Hash:
		return d.Partition
	case *ChainPartition:
		return d.Partition
	}
	return ""
}

func parseDescriptors(b []byte) (all []Descriptor, err error) {
	for at := 0; at < len(b); {
		where := fmt.Sprintf("descriptor %d at byte %d", len(all), at)
		rest := b[at:]
		if len(rest) < descriptorHead {
			return nil, refuse(ErrCorrupt, where, fmt.Sprintf("%d bytes", descriptorHead), len(rest))
		}
		n := binary.BigEndian.Uint64(rest[8:])
		if n%descriptorAlign != 0 || n > uint64(len(rest)-descriptorHead) {
			return nil, refuse(ErrCorrupt, where, fmt.Sprintf("a multiple of %d bytes, at most %d", descriptorAlign, len(rest)-descriptorHead), n)
		}
		raw := rest[:descriptorHead+n]
		d, err := parseDescriptor(raw)
		if err == nil {
			err = d.check()
		}
		if err == nil && !bytes.Equal(d.encode(), raw) {
			err = refuse(ErrCorrupt, "layout", "zeros where it is reserved or padded, and no byte more", "something else")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		all, at = append(all, d), at+len(raw)
	}
	return all, nil
}

func parseDescriptor(raw []byte) (Descriptor, error) {
	r := &fields{b: raw}
	var d Descriptor
	switch tag := binary.BigEndian.Uint64(raw); tag {
	case TagProperty:
		d = r.property()
	case TagHashtree:
		d = r.hashtree()
	case TagHash:
		d = r.hash()
	case TagKernelCmdline:
		d = r.cmdline()
	case TagChainPartition:
		d = r.chain()
	default:
		d = &Unknown{tag, raw[descriptorHead:]}
	}
	return d, r.err
}

// fields reads a descriptor; after an error it reads zeros.
type fields struct {
	b   []byte
	at  int
	err error
}

// need tells whether there is the part of fixed size, and where what varies begins.
func (f *fields) need(n int) bool {
	if f.at = n; len(f.b) < n {
		f.err = refuse(ErrCorrupt, "bytes of the descriptor", fmt.Sprintf("at least %d", n), len(f.b))
	}
	return f.err == nil
}

func (f *fields) u32(at int) uint32 { return binary.BigEndian.Uint32(f.b[at:]) }

// size reads a number of 64 bits that has to be an int64.
func (f *fields) size(at int) int64 {
	v := binary.BigEndian.Uint64(f.b[at:])
	if v > math.MaxInt64 && f.err == nil {
		f.err = refuse(ErrCorrupt, fmt.Sprintf("number at byte %d", at), "less than 2^63", v)
	}
	return int64(v & math.MaxInt64)
}

// name reads text that zeros follow.
func (f *fields) name(at, size int) string {
	text, _, _ := bytes.Cut(f.b[at:][:size], []byte{0})
	return string(text)
}

// take gives the next of the parts that vary.
func (f *fields) take(n uint64) []byte {
	if left := len(f.b) - f.at; n > uint64(left) {
		if f.err == nil {
			f.err = refuse(ErrCorrupt, fmt.Sprintf("part at byte %d", f.at), fmt.Sprintf("at most %d bytes", left), n)
		}
		return nil
	}
	f.at += int(n)
	return f.b[f.at-int(n) : f.at]
}

func (f *fields) property() *Property {
	if !f.need(propertySize) {
		return nil
	}
	keySize, valueSize := f.size(16), f.size(24)
	p := &Property{Key: string(f.take(uint64(keySize)))}
	f.take(1)
	p.Value = f.take(uint64(valueSize))
	return p
}

func (f *fields) hashtree() *Hashtree {
	if !f.need(hashtreeSize) {
		return nil
	}
	if v := f.u32(16); v != 1 {
		f.err = refuse(ErrVersion, "dm-verity", 1, v)
	}
	return &Hashtree{ImageSize: f.size(20), TreeOffset: f.size(28), TreeSize: f.size(36), DataBlockSize: int64(f.u32(44)),
		HashBlockSize: int64(f.u32(48)), FECRoots: int(f.u32(52) & math.MaxInt32), FECOffset: f.size(56), FECSize: f.size(64), Algorithm: f.name(72, algorithmSize),
		Flags: f.u32(116), Partition: string(f.take(uint64(f.u32(104)))), Salt: f.take(uint64(f.u32(108))), RootDigest: f.take(uint64(f.u32(112)))}
}

func (f *fields) hash() *Hash {
	if !f.need(hashSize) {
		return nil
	}
	return &Hash{ImageSize: f.size(16), Algorithm: f.name(24, algorithmSize), Flags: f.u32(68),
		Partition: string(f.take(uint64(f.u32(56)))), Salt: f.take(uint64(f.u32(60))), Digest: f.take(uint64(f.u32(64)))}
}

func (f *fields) cmdline() *KernelCmdline {
	if !f.need(cmdlineSize) {
		return nil
	}
	return &KernelCmdline{f.u32(16), string(f.take(uint64(f.u32(20))))}
}

func (f *fields) chain() *ChainPartition {
	if !f.need(chainSize) {
		return nil
	}
	return &ChainPartition{RollbackIndexLocation: f.u32(16), Flags: f.u32(28),
		Partition: string(f.take(uint64(f.u32(20)))), PublicKey: f.take(uint64(f.u32(24)))}
}

// begin gives the part of fixed size, and the padded whole.
func begin(tag uint64, fixed int, varying ...int) []byte {
	n := fixed
	for _, v := range varying {
		n += v
	}
	n = (n + descriptorAlign - 1) &^ (descriptorAlign - 1)
	b := make([]byte, n)
	binary.BigEndian.PutUint64(b, tag)
	binary.BigEndian.PutUint64(b[8:], uint64(n-descriptorHead))
	return b
}

func put32(b []byte, at int, v uint32) { binary.BigEndian.PutUint32(b[at:], v) }
func put64(b []byte, at int, v int64)  { binary.BigEndian.PutUint64(b[at:], uint64(v)) }

func (p *Property) encode() []byte {
	b := begin(TagProperty, propertySize, len(p.Key), 1, len(p.Value), 1)
	put64(b, 16, int64(len(p.Key)))
	put64(b, 24, int64(len(p.Value)))
	copy(b[propertySize:], p.Key)
	copy(b[propertySize+len(p.Key)+1:], p.Value)
	return b
}

func (h *Hashtree) encode() []byte {
	b := begin(TagHashtree, hashtreeSize, len(h.Partition), len(h.Salt), len(h.RootDigest))
	put32(b, 16, 1)
	put64(b, 20, h.ImageSize)
	put64(b, 28, h.TreeOffset)
	put64(b, 36, h.TreeSize)
	put32(b, 44, uint32(h.DataBlockSize))
	put32(b, 48, uint32(h.HashBlockSize))
	put32(b, 52, uint32(h.FECRoots))
	put64(b, 56, h.FECOffset)
	put64(b, 64, h.FECSize)
	copy(b[72:][:algorithmSize], h.Algorithm)
	put32(b, 104, uint32(len(h.Partition)))
	put32(b, 108, uint32(len(h.Salt)))
	put32(b, 112, uint32(len(h.RootDigest)))
	put32(b, 116, h.Flags)
	join(b[hashtreeSize:], []byte(h.Partition), h.Salt, h.RootDigest)
	return b
}

func (h *Hash) encode() []byte {
	b := begin(TagHash, hashSize, len(h.Partition), len(h.Salt), len(h.Digest))
	put64(b, 16, h.ImageSize)
	copy(b[24:][:algorithmSize], h.Algorithm)
	put32(b, 56, uint32(len(h.Partition)))
	put32(b, 60, uint32(len(h.Salt)))
	put32(b, 64, uint32(len(h.Digest)))
	put32(b, 68, h.Flags)
	join(b[hashSize:], []byte(h.Partition), h.Salt, h.Digest)
	return b
}

func (k *KernelCmdline) encode() []byte {
	b := begin(TagKernelCmdline, cmdlineSize, len(k.Text))
	put32(b, 16, k.Flags)
	put32(b, 20, uint32(len(k.Text)))
	copy(b[cmdlineSize:], k.Text)
	return b
}

func (c *ChainPartition) encode() []byte {
	b := begin(TagChainPartition, chainSize, len(c.Partition), len(c.PublicKey))
	put32(b, 16, c.RollbackIndexLocation)
	put32(b, 20, uint32(len(c.Partition)))
	put32(b, 24, uint32(len(c.PublicKey)))
	put32(b, 28, c.Flags)
	join(b[chainSize:], []byte(c.Partition), c.PublicKey)
	return b
}

func (u *Unknown) encode() []byte {
	b := begin(u.Type, descriptorHead, len(u.Data))
	copy(b[descriptorHead:], u.Data)
	return b
}

func join(to []byte, parts ...[]byte) {
	for _, p := range parts {
		to = to[copy(to, p):]
	}
}

func (p *Property) check() error {
	if p.Key == "" || strings.ContainsRune(p.Key, 0) {
		return refuse(ErrCorrupt, "key of a property", "text", fmt.Sprintf("%.80q", p.Key))
	}
	return nil
}

func (k *KernelCmdline) check() error {
	if strings.ContainsRune(k.Text, 0) {
		return refuse(ErrCorrupt, "kernel command line", "text", fmt.Sprintf("%.80q", k.Text))
	}
	return nil
}

func (c *ChainPartition) check() error {
	if c.RollbackIndexLocation == 0 {
		return refuse(ErrCorrupt, "rollback index location", "1 or more", 0)
	}
	if _, err := DecodeKey(c.PublicKey); err != nil {
		return err
	}
	return checkName(c.Partition)
}

func (u *Unknown) check() error {
	if len(u.Data)%descriptorAlign != 0 {
		return refuse(ErrCorrupt, "bytes of the descriptor", fmt.Sprintf("a multiple of %d", descriptorAlign), len(u.Data))
	}
	if u.Type <= TagChainPartition {
		return refuse(ErrCorrupt, "tag of an unknown descriptor", fmt.Sprintf("more than %d", TagChainPartition), u.Type)
	}
	return nil
}

func (h *Hash) check() error {
	if err := checkAlgorithm(h.Algorithm); err != nil {
		return err
	}
	if h.ImageSize < 0 {
		return refuse(ErrCorrupt, "image size", "0 or more", h.ImageSize)
	}
	return checkName(h.Partition)
}

func (h *Hashtree) check() error {
	if err := checkAlgorithm(h.Algorithm); err != nil {
		return err
	}
	for _, size := range []int64{h.DataBlockSize, h.HashBlockSize} {
		if size < 512 || size > 1<<20 || size&(size-1) != 0 {
			return refuse(ErrCorrupt, "block size", "a power of two from 512 to 1048576", size)
		}
	}
	if err := h.checkAreas(); err != nil {
		return err
	}
	return checkName(h.Partition)
}

func (h *Hashtree) checkAreas() error {
	for _, a := range []struct {
		name         string
		offset, size int64
		block        int64
	}{
		{"image", 0, h.ImageSize, h.DataBlockSize},
		{"hash tree", h.TreeOffset, h.TreeSize, h.HashBlockSize},
		{"error correction", h.FECOffset, h.FECSize, h.DataBlockSize},
	} {
		if a.offset < 0 || a.size < 0 || a.size > math.MaxInt64-a.offset {
			return refuse(ErrCorrupt, a.name, "to end before 2^63", fmt.Sprintf("%d bytes at %d", a.size, a.offset))
		}
		if a.offset%a.block != 0 || a.size%a.block != 0 {
			return refuse(ErrCorrupt, a.name, fmt.Sprintf("whole blocks of %d bytes", a.block), fmt.Sprintf("%d bytes at %d", a.size, a.offset))
		}
	}
	if h.TreeSize > 0 && h.TreeOffset < h.ImageSize {
		return refuse(ErrCorrupt, "hash tree", fmt.Sprintf("to begin behind the image of %d bytes", h.ImageSize), h.TreeOffset)
	}
	if h.FECRoots < 0 || h.FECRoots > 24 {
		return refuse(ErrCorrupt, "error correction", "0 to 24 roots", h.FECRoots)
	}
	if h.FECSize > 0 && (h.FECRoots < 2 || h.FECOffset < max(h.ImageSize, h.TreeOffset+h.TreeSize)) {
		return refuse(ErrCorrupt, "error correction", "2 to 24 roots, behind image and tree", fmt.Sprintf("%d roots, at %d", h.FECRoots, h.FECOffset))
	}
	return nil
}

// checkName wants what can be a file, as tools have one for each partition.
func checkName(name string) error {
	plain := func(r rune) bool {
		return r == '_' || r == '-' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	}
	if name == "" || len(name) > 255 || strings.HasPrefix(name, ".") || strings.IndexFunc(name, func(r rune) bool { return !plain(r) }) >= 0 {
		return refuse(ErrCorrupt, "partition name", "letters, digits, _, - and .", fmt.Sprintf("%.80q", name))
	}
	return nil
}

// checkAlgorithm wants what can be a word of a device-mapper table.
func checkAlgorithm(name string) error {
	plain := func(r rune) bool { return r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' }
	if name == "" || len(name) > algorithmSize || strings.IndexFunc(name, func(r rune) bool { return !plain(r) }) >= 0 {
		return refuse(ErrCorrupt, "hash algorithm", "small letters, digits and -", fmt.Sprintf("%.40q", name))
	}
	return nil
}
