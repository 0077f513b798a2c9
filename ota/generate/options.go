package generate

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"cowbird/cow"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/formats/vbmeta"
)

var (
	// ErrInput: images or options that no payload can be made of.
	ErrInput = errors.New("no payload can be made of this")
	// ErrItem: the result of an item is missing, damaged or another item's.
	ErrItem = errors.New("result of an item")
	// ErrCheck: the payload does not give the new partition. It is an error here, and
	// nothing to be released.
	ErrCheck = errors.New("the payload does not give the new partition")
)

const (
	blockSize = 4096
	// DefaultChunk is how many bytes an operation without file makes at most.
	DefaultChunk = 2 << 20
	// DefaultMemory is the limit of what operations hold together while they are made.
	DefaultMemory = 2 << 30
	// largestDiff is how long source and target of a diff may be, in bytes; an
	// operation's blob is held as a whole by those who apply it.
	largestDiff = 128 << 20
)

// Effort is how hard the smallest data are looked for.
type Effort int

const (
	// Default tries what a quick look promises something of.
	Default Effort = iota
	// Fast tries nothing more once there is a diff, but for deflate streams.
	Fast
	// Max tries everything on everything, and compresses as well as can be.
	Max
)

// ParseEffort reads "fast", "default" or "max".
func ParseEffort(s string) (Effort, error) {
	for e, name := range efforts {
		if s == name {
			return Effort(e), nil
		}
	}
	return 0, fmt.Errorf("effort: expected fast, default or max, found %q", s)
}

var efforts = [...]string{"default", "fast", "max"}

func (e Effort) String() string { return efforts[e] }

// Partition is one that the payload makes.
type Partition struct {
	Name string
	New  cow.Image
	Old  *cow.Image // nil: there is none, or it must not matter
	// Version is the partition's own, seconds since 1970 in decimal; "": none.
	Version     string
	Postinstall *Postinstall
	// Verity is the hash tree and error correction of New, which devices make
	// themselves (minor version 6); nil: they are data, if there are any.
	Verity *Verity
}

// Verity says where in a partition a hash tree and error correction are, and how they
// are made. A range without blocks is not there.
type Verity struct {
	Data, Tree Range
	Algorithm  string
	Salt       []byte
	FECData    Range
	FEC        Range
	Roots      uint32
}

// FindVerity reads the footer and metadata of verified boot, if an image has them. It
// is nil if there is no hash tree, or one that devices do not make so.
func FindVerity(img cow.Image) *Verity {
	v, err := vbmeta.FromPartition(img.R, img.Size)
	if err != nil {
		return nil
	}
	for _, d := range v.Descriptors {
		if t, ok := d.(*vbmeta.Hashtree); ok {
			return verityOf(t)
		}
	}
	return nil
}

func verityOf(t *vbmeta.Hashtree) *Verity {
	if t.DataBlockSize != blockSize || t.HashBlockSize != blockSize || (t.ImageSize|t.TreeOffset|t.TreeSize|t.FECOffset|t.FECSize)%blockSize != 0 || t.TreeSize == 0 {
		return nil
	}
	v := &Verity{Algorithm: t.Algorithm, Salt: t.Salt, Data: Range{0, uint64(t.ImageSize) / blockSize},
		Tree: Range{uint64(t.TreeOffset) / blockSize, uint64(t.TreeSize) / blockSize}}
	if t.FECSize > 0 {
		v.FECData = Range{0, uint64(t.FECOffset) / blockSize}
		v.FEC, v.Roots = Range{uint64(t.FECOffset) / blockSize, uint64(t.FECSize) / blockSize}, uint32(t.FECRoots)
	}
	return v
}

// Postinstall is a program of the new partition that the updater runs.
type Postinstall struct {
	Path       string // in the partition
	Filesystem string
	Optional   bool // its failure is none of the update
}

// Options say what payload to make.
type Options struct {
	Partitions []Partition
	// Minor version of a delta, 3 to payload.MostMinor: which types of operations the
	// devices know. 0 is the highest. Without old partitions the payload is a full one.
	Minor uint32
	// Chunk is how many bytes an operation makes at most that is not a file's; 0 means
	// DefaultChunk.
	Chunk  int64
	Effort Effort
	// Zstd allows operations of the type REPLACE_ZSTD, which no Android knows.
	Zstd bool
	// Timestamp of the new build, seconds since 1970, and its security patch level.
	Timestamp     int64
	SecurityPatch string
	// Partial: partitions that are not named stay as they are.
	Partial bool
	// Dynamic says which partitions are in super, and what snapshots devices make.
	Dynamic *pb.DynamicPartitionMetadata
	// Apexes are the modules of the new build, which tell devices how much room those
	// that are compressed need.
	Apexes []*pb.ApexInfo

	// Workers is how many operations are made at a time; 0 means one a processor. The
	// payload does not depend on it.
	Workers int
	// Memory is how many bytes they may hold together; 0 means DefaultMemory. One that
	// takes more is made alone.
	Memory int64
	// Spool is a folder for files that last as long as the call; "" is that of
	// temporary files.
	Spool string
	// OnProgress, unless nil, is called every half second at least, by one goroutine at a
	// time.
	OnProgress func(Progress)
}

// isDelta tells whether any partition has an old one.
func (o *Options) isDelta() bool {
	for _, p := range o.Partitions {
		if p.Old != nil {
			return true
		}
	}
	return o.Partial
}

// check fills in defaults.
func (o *Options) check() error {
	switch {
	case len(o.Partitions) == 0:
		return fmt.Errorf("%w: expected partitions, found none", ErrInput)
	case !o.isDelta():
		if o.Minor != 0 {
			return fmt.Errorf("%w: expected old partitions for minor version %d, found none", ErrInput, o.Minor)
		}
	case o.Minor == 0:
		o.Minor = payload.MostMinor
	case o.Minor < 3 || o.Minor > payload.MostMinor:
		return fmt.Errorf("%w: expected a minor version from 3 to %d, found %d", ErrInput, payload.MostMinor, o.Minor)
	}
	if o.Partial && o.Minor < 7 {
		return fmt.Errorf("%w: expected a minor version from 7 on for a partial update, found %d", ErrInput, o.Minor)
	}
	o.Chunk = cmp.Or(o.Chunk, DefaultChunk)
	if o.Chunk < blockSize || o.Chunk%blockSize != 0 || o.Chunk > largestDiff {
		return fmt.Errorf("%w: expected chunks of whole blocks of %d bytes, at most %d, found %d", ErrInput, blockSize, largestDiff, o.Chunk)
	}
	if o.Minor < 6 {
		o.Partitions = slices.Clone(o.Partitions)
		for i := range o.Partitions {
			o.Partitions[i].Verity = nil // devices do not make it
		}
	}
	o.Workers = cmp.Or(o.Workers, runtime.GOMAXPROCS(0))
	o.Memory = cmp.Or(o.Memory, DefaultMemory)
	return o.checkPartitions()
}

func (o *Options) checkPartitions() error {
	names := map[string]bool{}
	for _, p := range o.Partitions {
		if p.Name == "" || names[p.Name] {
			return fmt.Errorf("%w: expected each partition's name once, found %q again", ErrInput, p.Name)
		}
		names[p.Name] = true
		if p.New.Size == 0 || p.New.Size%blockSize != 0 {
			return fmt.Errorf("%w: partition %s: expected whole blocks of %d bytes, found %d bytes", ErrInput, p.Name, blockSize, p.New.Size)
		}
		if v := p.Verity; v != nil && (v.Tree.Start+v.Tree.Count > uint64(p.New.Size/blockSize) || v.FEC.Start+v.FEC.Count > uint64(p.New.Size/blockSize)) {
			return fmt.Errorf("%w: partition %s: expected a hash tree and error correction within %d bytes, found %+v", ErrInput, p.Name, p.New.Size, *v)
		}
		if p.Old != nil && p.Old.Size%blockSize != 0 {
			return fmt.Errorf("%w: partition %s: expected an old partition of whole blocks of %d bytes, found %d bytes", ErrInput, p.Name, blockSize, p.Old.Size)
		}
	}
	for _, g := range o.Dynamic.GetGroups() {
		for _, name := range g.GetPartitionNames() {
			if !names[name] && !o.Partial {
				return fmt.Errorf("%w: group %s: expected its partition %s among the images, found none", ErrInput, g.GetName(), name)
			}
		}
	}
	return nil
}

// snapshots tells whether devices install a partition into a COW.
func (o *Options) snapshots(name string) bool {
	if !o.Dynamic.GetVabcEnabled() {
		return false
	}
	for _, g := range o.Dynamic.GetGroups() {
		for _, n := range g.GetPartitionNames() {
			if n == name {
				return true
			}
		}
	}
	return false
}
