package bsdiff

import (
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"sync"

	"github.com/andybalholm/brotli"
)

// Options says how a patch is made. The zero value is BSDF2 by bzip2 or brotli,
// whatever is smaller.
type Options struct {
	// Legacy asks for BSDIFF40, which is bzip2 only.
	Legacy bool
	// Algorithms are tried on each stream of a BSDF2 patch. The smallest result
	// is taken, the first of equal ones. Default: Bzip2, Brotli. Android does not
	// read None.
	Algorithms []Algorithm
	// BrotliQuality is 1 to 11. Default: 11.
	BrotliQuality int
	// Quick finds matches by a table of short strings rather than by sorting the source
	// (which takes most of the time), and misses some. A patch gets larger by one percent
	// or so.
	Quick bool
	// Local asks for fewer far moves in the source, for the sake of readers that
	// pay for them. A patch of large files gets larger by one percent or so.
	Local bool
	// Worth, if not nil, is asked before the streams are compressed, which takes most of
	// the time, whether that is worth it. Create fails with ErrNotWorth if not. It does not
	// change or keep what it is given.
	Worth func(control, diff, extra []byte) bool
}

// ErrNotWorth says that nobody wants the patch.
var ErrNotWorth = errors.New("the patch is not worth compressing")

func (o *Options) defaults() error {
	if o.Legacy {
		o.Algorithms = []Algorithm{Bzip2}
	} else if len(o.Algorithms) == 0 {
		o.Algorithms = []Algorithm{Bzip2, Brotli}
	}
	for _, a := range o.Algorithms {
		if a > Brotli {
			return refuse(ErrAlgorithm, "options", "none, bzip2 or brotli", a)
		}
	}
	if o.BrotliQuality == 0 {
		o.BrotliQuality = brotli.BestCompression
	}
	if o.BrotliQuality < 1 || o.BrotliQuality > brotli.BestCompression {
		return fmt.Errorf("brotli quality: expected 1 to %d, found %d", brotli.BestCompression, o.BrotliQuality)
	}
	return nil
}

// Create writes a patch that makes target from source. It reads both, and keeps
// neither. Equal inputs give equal bytes.
func Create(patch io.Writer, source, target []byte, o Options) error {
	if err := o.defaults(); err != nil {
		return err
	}
	d := differ{source: source, target: target, local: o.Local}
	switch {
	case len(source) > math.MaxInt32:
		d.find = newFinder[int64](source).find
	case o.Quick:
		g := newGrams(source, target)
		defer g.giveBack()
		d.find = g.find
	default:
		d.find = newFinder[int32](source).find
	}
	d.run()
	d.find = nil // the suffix array has done its part
	if o.Worth != nil && !o.Worth(d.control, d.diff, d.extra) {
		return ErrNotWorth
	}
	return o.write(patch, int64(len(target)), [3][]byte{d.control, d.diff, d.extra})
}

func (o *Options) write(w io.Writer, targetSize int64, streams [3][]byte) error {
	packed, algorithms, err := o.compress(streams)
	if err != nil {
		return err
	}
	header := []byte(magicLegacy)
	if !o.Legacy {
		header = append(header[:0], magic2...)
		for _, a := range algorithms {
			header = append(header, byte(a))
		}
	}
	for _, n := range []int64{int64(len(packed[0])), int64(len(packed[1])), targetSize} {
		header = appendInt(header, n)
	}
	for _, b := range [][]byte{header, packed[0], packed[1], packed[2]} {
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("writing a bsdiff patch: %w", err)
		}
	}
	return nil
}

// compress tries every algorithm on every stream, as many at once as there are
// processors.
func (o *Options) compress(streams [3][]byte) (best [3][]byte, chosen [3]Algorithm, err error) {
	n := len(o.Algorithms)
	results, errs := make([][]byte, 3*n), make([]error, 3*n)
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	var all sync.WaitGroup
	for i := range results {
		all.Go(func() {
			slots <- struct{}{}
			results[i], errs[i] = o.pack(o.Algorithms[i%n], streams[i/n])
			<-slots
		})
	}
	all.Wait()
	for i, b := range results {
		if errs[i] != nil {
			return best, chosen, fmt.Errorf("%v: %w", o.Algorithms[i%n], errs[i])
		}
		if s := i / n; i%n == 0 || len(b) < len(best[s]) {
			best[s], chosen[s] = b, o.Algorithms[i%n]
		}
	}
	return best, chosen, nil
}
