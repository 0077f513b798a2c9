package volatile

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
)

// ErrOff: the power is off.
var ErrOff = errors.New("the power is off")

// Power is what the disks of one machine share. Its methods may be called
// concurrently.
type Power struct {
	mu            sync.Mutex
	disks         []*Disk
	steps, cutAt  int
	cutFlush      int
	flushes       int
	off           bool
	gone          func()
	lastWriteDisk string
}

// Disk is one disk. Its methods may be called concurrently.
type Disk struct {
	name    string
	sector  int
	power   *Power
	now     []byte
	durable []byte
	since   []write // since the last flush
}

type write struct {
	off int64
	b   []byte
}

// AddDisk gives the machine another disk, with those contents, which it takes over.
// sector is in bytes.
func (p *Power) AddDisk(name string, sector int, contents []byte) *Disk {
	d := &Disk{name: name, sector: sector, power: p, now: contents, durable: append([]byte(nil), contents...)}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.disks = append(p.disks, d)
	return d
}

// On turns the power on. It goes off at that step, or at that flush, counted from now
// on; zero means never. gone is called once, on another goroutine, when it does.
func (p *Power) On(cutAt, cutFlush int, gone func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off, p.steps, p.flushes, p.cutAt, p.cutFlush, p.gone = false, 0, 0, cutAt, cutFlush, gone
}

// Steps tells how many writes and flushes there were since On, and how many of them
// were flushes.
func (p *Power) Steps() (steps, flushes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.steps, p.flushes
}

// WentOff tells whether the power went off at a step, and which disk was at work.
func (p *Power) WentOff() (disk string, off bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastWriteDisk, p.off
}

// Cut turns the power off if it is on, and settles what is on the disks: see Loss.
func (p *Power) Cut(r *rand.Rand, loss Loss) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off = true
	for _, d := range p.disks {
		d.settle(r, loss)
	}
}

// Loss is what happens to writes that were not flushed.
type Loss int

// The ways to lose them.
const (
	LoseAll     Loss = iota // the disk wrote nothing
	LoseNone                // the disk wrote everything
	LoseWrites              // each write is there or not
	LoseSectors             // each sector of each write is there or not
	losses
)

// AnyLoss is one of them by chance.
func AnyLoss(r *rand.Rand) Loss { return Loss(r.IntN(int(losses))) }

func (l Loss) String() string {
	return [...]string{"all unsynced lost", "nothing lost", "writes lost", "sectors lost"}[l]
}

func (d *Disk) settle(r *rand.Rand, loss Loss) {
	for _, w := range d.since {
		whole := loss == LoseNone || loss == LoseWrites && r.IntN(2) == 0
		for at := int64(0); at < int64(len(w.b)); {
			next := min(int64(len(w.b)), (w.off+at)/int64(d.sector)*int64(d.sector)+int64(d.sector)-w.off)
			if whole || loss == LoseSectors && r.IntN(2) == 0 {
				copy(d.durable[w.off+at:], w.b[at:next])
			}
			at = next
		}
	}
	d.since = nil
	copy(d.now, d.durable)
}

// step counts one, and reports whether the power is on before it, and after it.
func (p *Power) step(d *Disk, flush bool) (before, after bool) {
	if p.off {
		return false, false
	}
	p.steps++
	if flush {
		p.flushes++
	}
	p.lastWriteDisk = d.name
	if p.steps == p.cutAt || flush && p.flushes == p.cutFlush {
		p.off = true
		go p.gone()
		return true, false
	}
	return true, true
}

// Size is the disk's, in bytes.
func (d *Disk) Size() int64 { return int64(len(d.now)) }

// ReadAt implements io.ReaderAt; with the power off nothing can be read.
func (d *Disk) ReadAt(b []byte, off int64) (int, error) {
	d.power.mu.Lock()
	defer d.power.mu.Unlock()
	if d.power.off {
		return 0, ErrOff
	}
	if off < 0 || off >= d.Size() {
		return 0, io.EOF
	}
	n := copy(b, d.now[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt. A write at which the power goes off is one that may
// or may not get there.
func (d *Disk) WriteAt(b []byte, off int64) (int, error) {
	d.power.mu.Lock()
	defer d.power.mu.Unlock()
	if off < 0 || off+int64(len(b)) > d.Size() {
		return 0, fmt.Errorf("write %d bytes at %d of disk %s: expected an end up to %d", len(b), off, d.name, d.Size())
	}
	before, after := d.power.step(d, false)
	if !before {
		return 0, ErrOff
	}
	copy(d.now[off:], b)
	d.since = append(d.since, write{off, append([]byte(nil), b...)})
	if !after {
		return 0, ErrOff
	}
	return len(b), nil
}

// Sync makes all writes that have ended durable. A flush at which the power goes off
// does nothing.
func (d *Disk) Sync() error {
	d.power.mu.Lock()
	defer d.power.mu.Unlock()
	if _, after := d.power.step(d, true); !after {
		return ErrOff
	}
	for _, w := range d.since {
		copy(d.durable[w.off:], d.now[w.off:w.off+int64(len(w.b))])
	}
	d.since = nil
	return nil
}

// Contents is a copy of what is on the disk, whether the power is on or off.
func (d *Disk) Contents() []byte {
	d.power.mu.Lock()
	defer d.power.mu.Unlock()
	return append([]byte(nil), d.now...)
}

// Put writes durably whether the power is on or off: what a boot loader does.
func (d *Disk) Put(b []byte, off int64) {
	d.power.mu.Lock()
	defer d.power.mu.Unlock()
	copy(d.now[off:], b)
	copy(d.durable[off:], b)
}
