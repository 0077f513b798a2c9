// Command verifyreads reads random ranges of a block device (or file) and
// compares each with the same range of a target image, until it is told to
// stop (SIGTERM, SIGINT) or the time is over.
//
//	verifyreads [-seed N] [-for 10s] DEVICE TARGET
//
// The device is read with direct I/O, so that every comparison is a request
// that the server behind the device has to answer. Exit codes: 0 all ranges
// were equal, 1 one was not, 2 usage, 3 the device failed a read (all ranges
// before it were equal). One line at the end says how much was compared.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

const (
	block    = 4096
	maxBytes = 1 << 20
)

var errDifferent = errors.New("the device differs from the target")

func main() {
	seed := flag.Uint64("seed", 1, "seed of the random ranges")
	limit := flag.Duration("for", time.Hour, "stop after this time")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: verifyreads [-seed N] [-for 10s] DEVICE TARGET")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 2 {
		flag.Usage()
		os.Exit(2)
	}
	os.Exit(run(flag.Arg(0), flag.Arg(1), *seed, *limit))
}

func run(devicePath, targetPath string, seed uint64, limit time.Duration) int {
	device, err := openDirect(devicePath)
	if err != nil {
		return report(err)
	}
	defer device.Close()
	target, err := os.Open(targetPath)
	if err != nil {
		return report(err)
	}
	defer target.Close()
	size, err := target.Seek(0, io.SeekEnd)
	if err != nil {
		return report(err)
	}

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, unix.SIGTERM)
	v := verifier{device: device, target: target, blocks: size / block, rng: rand.New(rand.NewPCG(seed, 0))}
	start := time.Now()
	err = v.loop(stop, start.Add(limit))
	seconds := time.Since(start).Seconds()
	fmt.Printf("%d ranges, %.0f MB compared, %.0f MB/s\n", v.ranges, float64(v.bytes)/1e6, float64(v.bytes)/1e6/seconds)
	if err != nil {
		return report(err)
	}
	return 0
}

func report(err error) int {
	fmt.Fprintln(os.Stderr, "verifyreads:", err)
	if errors.Is(err, errDifferent) {
		return 1
	}
	return 3
}

// openDirect opens for direct I/O where the file system can do it.
func openDirect(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		return os.Open(path)
	}
	return f, err
}

type verifier struct {
	device, target io.ReaderAt
	blocks         int64
	rng            *rand.Rand
	ranges, bytes  int64
}

func (v *verifier) loop(stop <-chan os.Signal, until time.Time) error {
	got, err := aligned(maxBytes)
	if err != nil {
		return err
	}
	defer unix.Munmap(got)
	want := make([]byte, maxBytes)
	for time.Now().Before(until) {
		select {
		case <-stop:
			return nil
		default:
		}
		off, n := v.next()
		if err := v.compare(got[:n], want[:n], off); err != nil {
			return err
		}
	}
	return nil
}

// next draws a range: mostly small ones, as a file system asks, some large.
func (v *verifier) next() (off, n int64) {
	first := v.rng.Int64N(v.blocks)
	limit := int64(maxBytes / block)
	if v.rng.IntN(4) > 0 {
		limit = 8
	}
	blocks := min(1+v.rng.Int64N(limit), v.blocks-first)
	return first * block, blocks * block
}

func (v *verifier) compare(got, want []byte, off int64) error {
	if _, err := v.device.ReadAt(got, off); err != nil {
		return fmt.Errorf("reading the device at byte %d: %w", off, err)
	}
	if _, err := v.target.ReadAt(want, off); err != nil {
		return fmt.Errorf("reading the target at byte %d: %w", off, err)
	}
	if i := mismatch(got, want); i >= 0 {
		return fmt.Errorf("%w at byte %d (block %d): expected %#02x, found %#02x", errDifferent, off+i, (off+i)/block, want[i], got[i])
	}
	v.ranges++
	v.bytes += int64(len(got))
	return nil
}

func mismatch(a, b []byte) int64 {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return int64(i)
		}
	}
	return int64(len(a))
}

// aligned returns page-aligned memory, which direct I/O needs.
func aligned(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
}
