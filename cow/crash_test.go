package cow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

var errPowerCut = errors.New("power cut")

// power is the supply that some devices share. Each write and each sync is a
// numbered point; at the chosen one the power goes.
type power struct {
	point int
	cutAt int // −1: never
	torn  bool
	off   atomic.Bool // other goroutines read on meanwhile
}

// next reports whether the power goes at this point.
func (p *power) next() (cut bool) {
	cut = p.point == p.cutAt
	p.point++
	return cut
}

const sector = 512

// crashDevice forgets unsynced writes when the power goes, as it likes.
type crashDevice struct {
	p       *power
	durable []byte  // what was synced
	cache   []byte  // what a reader sees
	writes  []write // not synced
}

type write struct {
	off  int64
	data []byte
}

func newCrash(p *power, data []byte) *crashDevice {
	return &crashDevice{p: p, durable: append([]byte(nil), data...), cache: append([]byte(nil), data...)}
}

func (d *crashDevice) ReadAt(p []byte, off int64) (int, error) {
	if d.p.off.Load() {
		return 0, errPowerCut
	}
	return readAtBytes(d.cache, p, off)
}

func (d *crashDevice) WriteAt(p []byte, off int64) (int, error) {
	if d.p.off.Load() {
		return 0, errPowerCut
	}
	cut := d.p.next()
	if !cut || d.p.torn {
		d.writes = append(d.writes, write{off, append([]byte(nil), p...)})
		copy(d.cache[off:], p)
	}
	if cut {
		d.p.off.Store(true)
		return 0, errPowerCut
	}
	return len(p), nil
}

// Zero is a write like others, as far as power cuts go.
func (d *crashDevice) Zero(off, n int64) error {
	_, err := d.WriteAt(make([]byte, n), off)
	return err
}

func (d *crashDevice) Sync() error {
	if d.p.off.Load() {
		return errPowerCut
	}
	if d.p.next() {
		d.p.off.Store(true)
		return errPowerCut
	}
	d.durable = append(d.durable[:0], d.cache...)
	d.writes = nil
	return nil
}

func (d *crashDevice) Size() int64 { return int64(len(d.cache)) }

func (d *crashDevice) Grow(n int64) error {
	more := make([]byte, n-int64(len(d.cache)))
	d.cache = append(d.cache, more...)
	d.durable = append(d.durable, more...)
	return nil
}

// loss says which unsynced sectors survive a power cut.
type loss int

const (
	loseAll loss = iota
	keepAll
	loseWrites  // some writes, whole
	loseSectors // some sectors of each write
	losses
)

func (l loss) String() string {
	return [...]string{"all unsynced lost", "all unsynced kept", "some writes lost", "writes torn"}[l]
}

// survivor is what the device holds after the power cut.
func (d *crashDevice) survivor(l loss, r *rand.Rand) []byte {
	b := append([]byte(nil), d.durable...)
	for _, w := range d.writes {
		if l == loseAll || l == loseWrites && r.IntN(2) == 0 {
			continue
		}
		for start := int64(0); start < int64(len(w.data)); {
			end := min(int64(len(w.data)), (w.off+start)/sector*sector+sector-w.off)
			if l != loseSectors || r.IntN(2) == 0 {
				copy(b[w.off+start:], w.data[start:end])
			}
			start = end
		}
	}
	return b
}

// tight makes batches and windows so small that a handful of blocks needs
// several of each.
var tight = mergeLimits{batch: 5, window: 4, worth: 3, zeros: 2}

// mergeUntil merges on fresh devices and cuts the power at a point. It returns
// what survives, and false when the merge ended before that point.
func mergeUntil(t *testing.T, c sample, cow, base []byte, p *power, l loss, r *rand.Rand, limits mergeLimits) (cow2, base2 []byte, cut bool) {
	t.Helper()
	cd, bd := newCrash(p, cow), newCrash(p, base)
	s, err := Open(Options{Cow: cd, Base: bd, Size: int64(len(c.target))})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	defer s.Close()
	got := make([]byte, len(c.target))
	if err := readFull(s, got, 0); err != nil || !bytes.Equal(got, c.target) {
		t.Fatalf("the snapshot is not the target (%v), %s", err, firstDifference(got, c.target))
	}
	_, err = s.Merge(context.Background(), MergeOptions{limits: limits})
	if err == nil {
		return cd.cache, bd.cache, false
	}
	if !errors.Is(err, errPowerCut) {
		t.Fatalf("merge: %v", err)
	}
	return cd.survivor(l, r), bd.survivor(l, r), true
}

func firstDifference(got, want []byte) string {
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			return fmt.Sprintf("first difference in block %d at byte %d", i/blockSize, i%blockSize)
		}
	}
	return "no difference"
}

// finish merges without further power cuts and checks the base.
func finish(t *testing.T, c sample, cow, base []byte, limits mergeLimits) {
	t.Helper()
	_, base, cut := mergeUntil(t, c, cow, base, &power{cutAt: -1}, keepAll, nil, limits)
	if cut || !bytes.Equal(base[:len(c.target)], c.target) {
		t.Fatalf("the merged base is not the target: %s", firstDifference(base, c.target))
	}
}

// few is the number of cases: all, or some under the race detector or -short.
func few(all, some int) int {
	if raceDetector || testing.Short() {
		return some
	}
	return all
}

// SNU-007, SNU-008…015, SNU-031, SNU-033: the power goes at every point of the
// merge, before and within each write, and unsynced data are lost in every
// way; whatever remains reads as the target, and merges to it.
func TestCrashEveryPoint(t *testing.T) {
	cases := few(24, 4)
	for seed := range uint64(cases) {
		c := generate(t, seed, 6+int(seed), seed%3 > 0)
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			crashEverywhere(t, c, tight)
		})
	}
}

func crashEverywhere(t *testing.T, c sample, limits mergeLimits) {
	r := rand.New(rand.NewPCG(1, 1))
	for point := 0; ; point++ {
		for mode := range 2 * int(losses) {
			l, torn := loss(mode/2), mode%2 == 1
			p := &power{cutAt: point, torn: torn}
			cow, base, cut := mergeUntil(t, c, c.cow, c.base, p, l, r, limits)
			if !cut {
				finish(t, c, cow, base, limits)
				return
			}
			// Again soon after, then to the end.
			p = &power{cutAt: r.IntN(6), torn: torn}
			if cow, base, cut = mergeUntil(t, c, cow, base, p, l, r, limits); cut {
				finish(t, c, cow, base, limits)
			}
			if t.Failed() {
				t.Fatalf("point %d, torn %v, %v", point, torn, l)
			}
		}
	}
}

// SNU-012…015: larger cases, crashed many times at random points.
func TestCrashRandom(t *testing.T) {
	cases := few(12, 3)
	for seed := range uint64(cases) {
		c := generate(t, 1000+seed, 200+40*int(seed), seed%4 > 0)
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 2))
			limits := []mergeLimits{{}, tight, {batch: 64, window: 16, worth: 8}}[seed%3]
			cow, base := c.cow, c.base
			for crashes := 0; crashes < 25; crashes++ {
				p := &power{cutAt: r.IntN(40), torn: r.IntN(2) == 0}
				var cut bool
				if cow, base, cut = mergeUntil(t, c, cow, base, p, loss(r.IntN(int(losses))), r, limits); !cut {
					break
				}
			}
			finish(t, c, cow, base, limits)
		})
	}
}
