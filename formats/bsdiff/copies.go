package bsdiff

import "bufio"

// Copy is a stretch of the target that is compared with one of the source, in bytes.
// Source may be below 0 or beyond the end.
type Copy struct{ Target, Source, Length int64 }

// Copies calls f for each stretch of the target that a patch takes from the source,
// in order. It reads the control stream alone.
func (p *Patch) Copies(f func(Copy)) error {
	a := applier{control: open(p.parts[0], p.r)}
	a.control.r = bufio.NewReaderSize(a.control.r, 4<<10)
	idle := 0
	for at := int64(0); at < p.targetSize; {
		x, y, z, err := a.triple(p.targetSize - at)
		if err != nil {
			return err
		}
		if x > 0 {
			f(Copy{at, a.pos, x})
		}
		if a.pos, err = move(a.pos, x); err == nil {
			a.pos, err = move(a.pos, z)
		}
		if err == nil {
			idle, err = a.idle(idle, x+y)
		}
		if err != nil {
			return err
		}
		at += x + y
	}
	return nil
}
