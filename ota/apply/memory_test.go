package apply

import (
	"bytes"
	"context"
	"cowbird/cow"
	"cowbird/formats/payload"
	"cowbird/formats/xz"
	"crypto/sha256"
	"errors"
	"google.golang.org/protobuf/proto"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cowbird/formats/payload/pb"
)

// Operations that hold source and target do so in files if there is little memory,
// and give the same.
func TestSpill(t *testing.T) {
	for _, s := range samples(t) {
		if !strings.Contains(s.name, "zucchini") && !strings.Contains(s.name, "lz4diff") {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b, m := s.read(t)
			old, out := s.unpackOld(t), t.TempDir()
			o := ImageOptions{Metadata: m, Blobs: BlobsAt(m, bytes.NewReader(b)), Old: old, Out: out, Memory: 1}
			if err := Images(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			for _, p := range s.Partitions {
				compare(t, filepath.Join(out, p.Name+".img"), p.New.Sha256)
			}
		})
	}
}

func compare(t *testing.T, path, want string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	expectSum(t, path, f, want)
}

// What spills lies in the folder that was told, without a name; and that there is no
// room there is nobody's damage.
func TestSpillFolder(t *testing.T) {
	dir := t.TempDir()
	a := NewMemory(1<<20, dir).take(2 << 20)
	b, err := a.alloc(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, make([]byte, 1<<20)) || len(a.files) != 1 {
		t.Errorf("expected zeros in a file, found %d files", len(a.files))
	}
	b[len(b)-1] = 1
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("expected no names, found %v, %v", names, err)
	}
	a.giveBack()
	// More than a file may have: the file system, had it been asked, would say so.
	if _, err := mapFile(dir, 1<<62); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("expected no space, found %v", err)
	}

	o := &Operation{InstallOperation: &pb.InstallOperation{}, Memory: NewMemory(1<<20, filepath.Join(dir, "none"))}
	o.arena = o.Memory.take(2 << 20)
	defer o.arena.giveBack()
	_, err = o.alloc(1 << 20)
	if err = o.badBlob(err); !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrBlob) {
		t.Errorf("expected that the folder does not exist, found %v", err)
	}
}

// What needs more than there is runs alone; the others share.
func TestMemoryShared(t *testing.T) {
	const limit = 10
	m := newDeviceMemory(limit, "")
	var held, most, alone atomic.Int64
	var wg sync.WaitGroup
	for i := range 200 {
		need := int64(1 + i%5)
		if i%20 == 0 {
			need = 3 * limit
		}
		wg.Go(func() {
			a := m.take(need)
			now := held.Add(need)
			if now > limit {
				if now != need {
					t.Errorf("expected what needs %d to run alone, found %d held", need, now)
				}
				alone.Add(1)
			} else {
				most.Store(max(most.Load(), now))
			}
			held.Add(-need)
			a.giveBack()
		})
	}
	wg.Wait()
	if alone.Load() != 10 {
		t.Errorf("expected 10 alone, found %d", alone.Load())
	}
}

// manual is a full update of one partition, put together by hand.
type manual struct {
	u     *pb.PartitionUpdate
	blobs bytes.Buffer
	image bytes.Buffer
}

// xz adds an operation that makes contents.
func (m *manual) xz(contents []byte) {
	blob := new(xz.Encoder).Append(nil, contents, xz.Fast)
	hash := sha256.Sum256(blob)
	m.u.Operations = append(m.u.Operations, &pb.InstallOperation{Type: pb.InstallOperation_REPLACE_XZ.Enum(), DataOffset: proto.Uint64(uint64(m.blobs.Len())),
		DataLength: proto.Uint64(uint64(len(blob))), DataSha256Hash: hash[:],
		DstExtents: extentList(uint64(m.image.Len()/4096), uint64(len(contents)/4096))})
	m.blobs.Write(blob)
	m.image.Write(contents)
}

func (m *manual) Blob(off, n int64) (*io.SectionReader, func(), error) {
	return io.NewSectionReader(bytes.NewReader(m.blobs.Bytes()), off, n), func() {}, nil
}

func (m *manual) cow(t *testing.T, o CowOptions) {
	t.Helper()
	hash := sha256.Sum256(m.image.Bytes())
	m.u.NewPartitionInfo = &pb.PartitionInfo{Size: proto.Uint64(uint64(m.image.Len())), Hash: hash[:]}
	f, err := os.Create(filepath.Join(t.TempDir(), "cow"))
	if err != nil {
		t.Fatal(err)
	}
	if o.Cow, err = cow.NewFileDevice(f); err != nil {
		t.Fatal(err)
	}
	o.Metadata = &payload.Metadata{Manifest: &pb.DeltaArchiveManifest{BlockSize: proto.Uint32(4096), Partitions: []*pb.PartitionUpdate{m.u}}}
	o.Partition, o.Blobs = m.u, m
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := Cow(ctx, o); err != nil {
		t.Fatal(err)
	}
}

// An operation whose output has to wait for that of an earlier one does not hold the
// memory that the earlier one needs.
func TestMemoryInOrder(t *testing.T) {
	m := &manual{u: &pb.PartitionUpdate{PartitionName: proto.String("system")}}
	slow := make([]byte, 5<<20) // takes a while to begin: its blob is long, and hashed before
	rand.NewChaCha8([32]byte{}).Read(slow)
	m.xz(slow)
	m.xz(make([]byte, 5<<20))
	m.cow(t, CowOptions{Workers: 2, Memory: 1})
}
