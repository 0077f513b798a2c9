package puffin

import "io"

// behind writes to w in a goroutine of its own, a few buffers behind: huffing
// the target need not wait for puffing the source, nor the other way round.
type behind struct {
	w      io.Writer
	free   chan []byte
	full   chan []byte
	failed chan struct{} // closed once err is set
	done   chan struct{}
	err    error
}

const (
	behindBuffers = 3
	behindSize    = 64 << 10
	// behindFrom is the size of a puffed target from which on it pays.
	behindFrom = 256 << 10
)

func writeBehind(w io.Writer) *behind {
	b := &behind{
		w: w, free: make(chan []byte, behindBuffers), full: make(chan []byte, behindBuffers),
		failed: make(chan struct{}), done: make(chan struct{}),
	}
	for range behindBuffers {
		b.free <- make([]byte, behindSize)
	}
	go b.run()
	return b
}

func (b *behind) run() {
	defer close(b.done)
	for buf := range b.full {
		if b.err == nil {
			if _, err := b.w.Write(buf); err != nil {
				b.err = err
				close(b.failed)
			}
		}
		b.free <- buf[:cap(buf)]
	}
}

// Write returns the error of an earlier write, if there was one.
func (b *behind) Write(p []byte) (n int, err error) {
	for n < len(p) {
		select {
		case <-b.failed:
			return n, b.err
		case buf := <-b.free:
			m := copy(buf, p[n:])
			b.full <- buf[:m]
			n += m
		}
	}
	return n, nil
}

// Close waits until all has been written.
func (b *behind) Close() error {
	close(b.full)
	<-b.done
	return b.err
}
