package bsdiff

import "io"

// ahead reads from r in a goroutine of its own, a few buffers ahead: what takes
// the time in most patches is to decompress, and the rest need not wait for it.
type ahead struct {
	free chan []byte // to be filled
	full chan filled
	now  filled
	rest []byte // of now
}

type filled struct {
	b   []byte
	err error // after b
}

const (
	aheadBuffers = 3
	// aheadFrom is the length of a compressed stream from which on it pays.
	aheadFrom = 8 << 10
)

func readAhead(r io.Reader) *ahead {
	a := &ahead{make(chan []byte, aheadBuffers), make(chan filled, aheadBuffers), filled{}, nil}
	for range aheadBuffers {
		a.free <- make([]byte, bufferSize)
	}
	go a.run(r)
	return a
}

func (a *ahead) run(r io.Reader) {
	defer close(a.full)
	for b := range a.free {
		n, err := 0, error(nil)
		for n < len(b) && err == nil {
			var m int
			m, err = r.Read(b[n:])
			n += m
		}
		a.full <- filled{b[:n], err}
		if err != nil {
			return
		}
	}
}

func (a *ahead) Read(b []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if cap(a.now.b) > 0 {
			a.free <- a.now.b[:cap(a.now.b)]
		}
		a.now = <-a.full
		a.rest = a.now.b
	}
	n := copy(b, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// stop ends the goroutine and waits for it. Nothing can be read afterwards.
func (a *ahead) stop() {
	close(a.free)
	for range a.full {
	}
}
