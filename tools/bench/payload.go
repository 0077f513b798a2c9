package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// chunkSize is what producers compress at a time, in bytes.
const chunkSize = 2 << 20

// chunk is a piece of a partition as a full payload has it.
type chunk struct {
	kind pb.InstallOperation_Type
	data []byte // as stored
	hash [32]byte
}

// packers are the commands that make chunks; nil stores them.
var packers = []struct {
	kind    pb.InstallOperation_Type
	command []string
}{
	{pb.InstallOperation_REPLACE_XZ, []string{"xz", "-2", "--check=none", "-T1", "-c"}},
	{pb.InstallOperation_REPLACE_BZ, []string{"bzip2", "-9", "-c"}},
	{pb.InstallOperation_REPLACE_XZ, []string{"xz", "-2", "--check=none", "-T1", "-c"}},
	{pb.InstallOperation_REPLACE, nil},
}

// extract compares unpacking a full payload, nearly all of which is one partition, with
// decompressing the same chunks by xz and bzip2, one after the other.
func (b *bench) extract() error {
	whole := b.path("whole.img")
	if _, err := output("bash", "-c", fmt.Sprintf("cat %s %s > %s", b.base, b.target, whole)); err != nil {
		return err
	}
	progress("  a payload of %s", whole)
	chunks, err := pack(whole)
	if err != nil {
		return err
	}
	path := b.path("full.payload.bin")
	if err := b.writePayload(path, whole, chunks); err != nil {
		return err
	}
	xz, bz := b.path("chunks.xz"), b.path("chunks.bz2")
	if err := errors.Join(writeKind(xz, chunks, pb.InstallOperation_REPLACE_XZ), writeKind(bz, chunks, pb.InstallOperation_REPLACE_BZ)); err != nil {
		return err
	}
	out := b.path("extracted")
	peak := int64(0)
	got, err := alternate(b.repeats,
		func() (float64, error) {
			if err := os.RemoveAll(out); err != nil {
				return 0, err
			}
			took, most, err := measured(twoCores(b.tool("cowtool"), "payload", "extract", "-o", out, path)...)
			peak = max(peak, most)
			return took, err
		},
		func() (float64, error) {
			first, err := seconds("bash", "-c", "xz -dc -T1 "+xz+" >/dev/null")
			if err != nil {
				return 0, err
			}
			second, err := seconds("bash", "-c", "bzip2 -dc "+bz+" >/dev/null")
			return first + second, err
		})
	if err != nil {
		return err
	}
	b.table.ratio("`cowtool payload extract`, 512 MiB in XZ, BZ and raw chunks, two cores, against `xz -dc -T1` and `bzip2 -dc` of the chunks, one core",
		spread(got[0], "%.2f")+" s", spread(got[1], "%.2f")+" s", median(got[0])/median(got[1]), atMost(0.75, "×"))
	b.table.value("the same, peak RSS", float64(peak)/1e6, "", atMost(48*1.048576, "MB"))
	return nil
}

// pack compresses a file chunk by chunk, in turn by each packer.
func pack(path string) ([]chunk, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	chunks := make([]chunk, (len(b)+chunkSize-1)/chunkSize)
	errs := make([]error, len(chunks))
	next := make(chan int, len(chunks))
	for i := range chunks {
		next <- i
	}
	close(next)
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() {
			for i := range next {
				chunks[i], errs[i] = packOne(i, b[i*chunkSize:min(len(b), (i+1)*chunkSize)])
			}
		})
	}
	wg.Wait()
	return chunks, errors.Join(errs...)
}

func packOne(i int, data []byte) (chunk, error) {
	p := packers[i%len(packers)]
	c := chunk{kind: p.kind, data: data}
	if p.command != nil {
		cmd := exec.Command(p.command[0], p.command[1:]...)
		cmd.Stdin = bytes.NewReader(data)
		out, err := cmd.Output()
		if err != nil {
			return c, fmt.Errorf("%v: %w", p.command, err)
		}
		c.data = out
	}
	c.hash = sha256.Sum256(c.data)
	return c, nil
}

func writeKind(path string, chunks []chunk, kind pb.InstallOperation_Type) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for _, c := range chunks {
		if c.kind == kind {
			if _, err := f.Write(c.data); err != nil {
				return errors.Join(err, f.Close())
			}
		}
	}
	return f.Close()
}

func (b *bench) writePayload(path, image string, chunks []chunk) error {
	info, err := os.Stat(image)
	if err != nil {
		return err
	}
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	p := &pb.PartitionUpdate{PartitionName: proto.String("system"), NewPartitionInfo: &pb.PartitionInfo{Size: proto.Uint64(uint64(info.Size())), Hash: h.Sum(nil)}}
	at, block := uint64(0), uint64(0)
	for i, c := range chunks {
		n := uint64(min(chunkSize, info.Size()-int64(i)*chunkSize)) / blockSize
		p.Operations = append(p.Operations, &pb.InstallOperation{Type: c.kind.Enum(), DataOffset: proto.Uint64(at), DataLength: proto.Uint64(uint64(len(c.data))),
			DataSha256Hash: c.hash[:], DstExtents: []*pb.Extent{{StartBlock: proto.Uint64(block), NumBlocks: proto.Uint64(n)}}})
		at, block = at+uint64(len(c.data)), block+n
	}
	head, err := payload.AppendMetadata(nil, &pb.DeltaArchiveManifest{Partitions: []*pb.PartitionUpdate{p}}, nil)
	if err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := out.Write(head); err != nil {
		return err
	}
	for _, c := range chunks {
		if _, err := out.Write(c.data); err != nil {
			return err
		}
	}
	return out.Sync()
}
