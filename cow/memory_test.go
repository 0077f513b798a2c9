//go:build !race

package cow

import (
	"bufio"
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"testing"

	"cowbird/formats/cowfile"

	"golang.org/x/sys/unix"

	"cowbird/tools/fixture"
)

// mapped is the number of bytes of anonymous memory that the process has mapped
// and Go's runtime knows nothing of.
func mapped(t testing.TB) int64 {
	t.Helper()
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		fixture.Missing(t, "memory cannot be measured: %v", err)
	}
	defer f.Close()
	total := int64(0)
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) > 5 && !strings.HasPrefix(fields[5], "[anon") || !strings.HasPrefix(fields[1], "rw") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		a, _ := strconv.ParseUint(from, 16, 64)
		b, _ := strconv.ParseUint(to, 16, 64)
		total += int64(b - a)
	}
	m := []metrics.Sample{{Name: "/memory/classes/total:bytes"}}
	metrics.Read(m)
	return total - int64(m[0].Value.Uint64())
}

// largeSample has ordered ops with and without conflicts, and units of 64 KiB.
func largeSample(t testing.TB, blocks int) sample {
	t.Helper()
	h := history{blocks: blocks}
	for b := 0; b < blocks/4; b++ { // each reads what the next one writes
		h.steps = append(h.steps, step{op: cowfile.OpCopy, count: 1, block: b, source: (b + 1) * blockSize})
	}
	for b := blocks / 4; b < blocks/2; b++ {
		h.steps = append(h.steps, step{op: cowfile.OpCopy, count: 1, block: b, source: (b + blocks/4 + 1) * blockSize})
	}
	h.steps = append(h.steps, step{op: cowfile.OpReplace, count: blocks / 4, block: 3 * blocks / 4, seed: 4})
	f := format{version: 3, comp: cowfile.LZ4, unit: 64 << 10}
	return sample{cow: h.cowOf(t, f, encoder(t, 3, f.comp, 0, f.unit)), base: h.base(), target: h.target()}
}

// budget is what docs/memory.md says that a merge maps.
func budget(s *Snapshot) int64 {
	fillers := min(runtime.GOMAXPROCS(0), maxFillers)
	b := 16*256<<10 + 256<<10 + 256<<10 + 4*4096*8
	b += int(s.source.Size()/blockSize)/8*2 + fillers*(max(256<<10, s.file.MaxStored())+blockSize)
	return int64(b)
}

// What a merge maps stays within the budget whatever its length, and all of it
// is given back: when it ends, when it is paused and when it fails.
func TestMergeMemory(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // the runtime's tables keep their size
	for _, blocks := range []int{2000, few(16000, 4000)} {
		c := largeSample(t, blocks)
		cow, base := newMem(c.cow), &measured{memDevice: newMem(c.base), t: t}
		s, err := Open(Options{Cow: cow, Base: base})
		if err != nil {
			t.Fatal(err)
		}
		before := mapped(t)
		base.fail = true
		if _, err := s.Merge(context.Background(), MergeOptions{}); err == nil {
			t.Fatal("expected the merge to fail")
		}
		checkMapped(t, "after a failed merge", before, 0)
		base.fail = false
		stats, err := s.Merge(context.Background(), MergeOptions{OnProgress: func(p Progress) {
			if p.MergedOps == p.TotalOps {
				checkMapped(t, "in the merge", before, budget(s))
			}
		}})
		if err != nil || stats.Windows == 0 || stats.Batches == 0 {
			t.Fatalf("expected windows and batches, found %+v, %v", stats, err)
		}
		t.Logf("%d blocks: at most %d bytes mapped, expected at most %d", blocks, base.most-before, budget(s))
		if base.most-before > budget(s)+slack || base.most-before < loads*loadBlocks*blockSize {
			t.Errorf("expected at most %d bytes mapped, found %d", budget(s), base.most-before)
		}
		checkMapped(t, "after the merge", before, 0)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// slack is for the ends of pages.
const slack = 4 * blockSize

func checkMapped(t *testing.T, when string, before, most int64) {
	t.Helper()
	if now := mapped(t) - before; now > most+slack {
		t.Errorf("%s: expected %d bytes mapped at most, found %d", when, most, now)
	}
}

// measured notes what is mapped at each write and sync.
type measured struct {
	*memDevice
	t    *testing.T
	most int64
	fail bool
}

func (d *measured) WriteAt(p []byte, off int64) (int, error) {
	d.most = max(d.most, mapped(d.t))
	return d.memDevice.WriteAt(p, off)
}

func (d *measured) Sync() error {
	d.most = max(d.most, mapped(d.t))
	if d.fail {
		return unix.EIO
	}
	return nil
}

// A paused merge holds nothing, and a snapshot that is closed neither, even
// after merges that failed at every call.
func TestNoMappingLeaks(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	c := generate(t, 600, 12, true)
	before := int64(0)
	for round := range 3 { // the first warms up
		for i := range faults {
			for calls := 0; ; calls++ {
				f := fault{disk: faults[i].disk, method: faults[i].method, how: faults[i].how, err: faults[i].err, calls: calls}
				hit, err := mergeWithFault(c, &f)
				if err != nil {
					t.Fatal(err)
				}
				if !hit {
					break
				}
			}
		}
		if round == 0 {
			before = mapped(t)
		}
	}
	// A leak of the smallest mapping by one kind of fault would be more; the
	// runtime's own tables may grow a little.
	checkMapped(t, "after all faults", before, 128<<10)

	s, _, _ := openSample(t, largeSample(t, 2000))
	before = mapped(t)
	merged := make(chan error, 1)
	go func() {
		_, err := s.Merge(context.Background(), MergeOptions{OnProgress: func(p Progress) { s.Pause() }})
		merged <- err
	}()
	for !s.Progress().Paused {
		runtime.Gosched()
	}
	for range 1000 {
		if mapped(t)-before <= slack {
			break
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
	}
	checkMapped(t, "paused", before, 0)
	for s.Progress().Status != StatusComplete {
		s.Resume()
		runtime.Gosched()
	}
	if err := <-merged; err != nil {
		t.Fatal(err)
	}
}
