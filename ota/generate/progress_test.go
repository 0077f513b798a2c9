package generate

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload/pb"
)

// No step goes on for long without a report: each tells its bytes in pieces of at most
// so many, up to the last one.
func TestProgress(t *testing.T) {
	const size, piece = 24 << 20, DefaultChunk
	newer := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(newer)
	old := append(bytes.Clone(newer[8<<20:]), newer[:8<<20]...) // copies
	rand.NewChaCha8([32]byte{1}).Read(newer[:4<<20])
	was := imageOf(old)
	seen := map[Step]Progress{}
	var order []Step
	o := Options{Spool: t.TempDir(), Workers: 1, Partitions: []Partition{{Name: "a", New: imageOf(newer), Old: &was}, {Name: "b", New: imageOf(newer)}},
		Dynamic: &pb.DynamicPartitionMetadata{VabcEnabled: proto.Bool(true), CowVersion: proto.Uint32(3), VabcCompressionParam: proto.String("lz4"),
			Groups: []*pb.DynamicPartitionGroup{{Name: proto.String("main"), PartitionNames: []string{"a"}}}},
		OnProgress: func(p Progress) {
			last, ok := seen[p.Step]
			if !ok {
				order = append(order, p.Step)
			} else if p.Total != last.Total || p.Done < last.Done || p.Done > p.Total || p.Done-last.Done > piece && last.Done > 0 {
				t.Errorf("expected up to %d bytes more than in %+v, found %+v", piece, last, p)
			}
			seen[p.Step] = p
		}}
	all := func(steps ...Step) {
		t.Helper()
		for i, step := range steps {
			if i >= len(order) || order[i] != step {
				t.Fatalf("expected the step %s, found %v", step, order)
			}
			if s := seen[step]; s.Done != s.Total || s.Total == 0 {
				t.Errorf("%s: expected all of it in the end, found %+v", step, s)
			}
		}
	}
	p, err := Create(t.Context(), o)
	must(t, err)
	defer p.Close()
	_, err = p.Write(&bytes.Buffer{}, nil)
	must(t, err)
	all(Reading, Comparing, Checking, Writing)
	clear(seen)
	order = nil
	_, err = NewPlan(t.Context(), o)
	must(t, err)
	all(Reading, Naming)
}

// What takes long by itself is reported all the same.
func TestBeat(t *testing.T) {
	reports := make(chan Progress, 100)
	p := begin(func(p Progress) { reports <- p }, Comparing, 9)
	for start := time.Now(); len(reports) < 3; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > 10*beat {
			t.Fatalf("expected a report every %v, found %d", beat, len(reports))
		}
	}
	p.end()
	if n := len(reports); n > 4 {
		t.Errorf("expected a report every %v, found %d", beat, n)
	}
}
