package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A prober reads single blocks of a device, with direct I/O, one after the other,
// wherever chance has it.
type prober struct {
	fd     int
	blocks int64
	buf    []byte
	rand   *rand.Rand
}

func newProber(device string) (*prober, error) {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", device, err)
	}
	size, err := unix.Seek(fd, 0, unix.SEEK_END)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("size of %s: %w", device, err)
	}
	room := make([]byte, 2*blockSize)
	skip := -uintptr(unsafe.Pointer(&room[0])) % blockSize
	return &prober{fd, size / blockSize, room[skip : skip+blockSize], rand.New(rand.NewPCG(7, 8))}, nil
}

func (p *prober) close() { _ = unix.Close(p.fd) }

func (p *prober) read() (time.Duration, error) {
	off := p.rand.Int64N(p.blocks) * blockSize
	start := time.Now()
	_, err := unix.Pread(p.fd, p.buf, off)
	return time.Since(start), err
}

// readWhile reads as long as more holds, which it asks between reads.
func (p *prober) readWhile(more func() bool) (took []time.Duration, err error) {
	for more() {
		d, err := p.read()
		if err != nil {
			return nil, err
		}
		took = append(took, d)
	}
	return took, nil
}

func (p *prober) readFor(length time.Duration) ([]time.Duration, error) {
	end := time.Now().Add(length)
	return p.readWhile(func() bool { return time.Now().Before(end) })
}

// percentile is in microseconds.
func percentile(took []time.Duration, p float64) float64 {
	if len(took) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(took))
	return float64(s[int(float64(len(s)-1)*p/100)].Nanoseconds()) / 1e3
}

// firstRead compares the read that wakes the daemon with those that follow. What
// the machine takes to wake up itself shows at a device that nobody serves.
func (b *bench) firstRead() error {
	defer b.undo(b.mark())
	d, err := b.mapOurs()
	if err != nil {
		return err
	}
	plain, err := b.loop(b.base)
	if err != nil {
		return err
	}
	var first, following [2][]float64
	for i, device := range []string{d.device, plain} {
		if err := warm(device); err != nil {
			return err
		}
		if first[i], following[i], err = b.firstReads(device); err != nil {
			return err
		}
	}
	what := fmt.Sprintf("first read of 4 KiB, %v after the last request, against the p50 of reads without a pause", b.settle())
	us := func(v []float64) string { return spread(v, "%.0f") + " µs" }
	b.table.ratio(what, us(first[0]), us(following[0]), median(first[0])/median(following[0]), atMost(2, "×"))
	b.table.info("the same of a loop device on the plain base", us(first[1]), us(following[1]), fmt.Sprintf("%.2f", median(first[1])/median(following[1])))
	return nil
}

func (b *bench) firstReads(device string) (first, following []float64, err error) {
	p, err := newProber(device)
	if err != nil {
		return nil, nil, err
	}
	defer p.close()
	for range b.repeats {
		warmed, err := p.readFor(time.Second)
		if err != nil {
			return nil, nil, err
		}
		following = append(following, percentile(warmed, 50))
		progress("  waiting %v", b.settle())
		time.Sleep(b.settle())
		took, err := p.read()
		if err != nil {
			return nil, nil, err
		}
		first = append(first, percentile([]time.Duration{took}, 50))
	}
	return first, following, nil
}

// mergeLatency compares reads during merges with reads when nothing is merged.
func (b *bench) mergeLatency() error {
	zstd, err := b.needCow("zstd")
	if err != nil {
		return err
	}
	for _, rate := range []string{"", "32M"} {
		var calm, merging []time.Duration
		for range b.repeats {
			c, m, err := b.latencyOnce(zstd, rate)
			if err != nil {
				return err
			}
			calm, merging = append(calm, c...), append(merging, m...)
		}
		what := "reads of 4 KiB, one at a time, p99 while merging as fast as possible"
		if rate != "" {
			what = "the same, merging " + rate + "iB a second"
		}
		us := func(took []time.Duration) string {
			return fmt.Sprintf("%.0f µs (p50 %.0f, of %d)", percentile(took, 99), percentile(took, 50), len(took))
		}
		b.table.ratio(what+", against not merging", us(merging), us(calm), percentile(merging, 99)/percentile(calm, 99), atMost(3, "×"))
	}
	return nil
}

// latencyOnce maps a fresh copy, reads, and reads during its merge.
func (b *bench) latencyOnce(from, rate string) (calm, merging []time.Duration, err error) {
	defer b.undo(b.mark())
	base, delta := b.path("latency.base"), b.path("latency.cow")
	if err := freshCopies(b.base, base, from, delta); err != nil {
		return nil, nil, err
	}
	d, err := b.mapWith(base, delta)
	if err != nil {
		return nil, nil, err
	}
	p, err := newProber(d.device)
	if err != nil {
		return nil, nil, err
	}
	defer p.close()
	if calm, err = p.readFor(2 * time.Second); err != nil {
		return nil, nil, err
	}
	ended := make(chan error, 1)
	go func() {
		args := []string{"merge", "--wait", "bench"}
		if rate != "" {
			args = append(args, "--rate", rate)
		}
		_, err := d.otactl(args...)
		ended <- err
	}()
	merging, err = p.readWhile(func() bool { return len(ended) == 0 })
	if e := <-ended; e != nil {
		err = e
	}
	return calm, merging, err
}
