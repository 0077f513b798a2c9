package volatile

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

const sector = 512

func filled(c byte, sectors int) []byte { return bytes.Repeat([]byte{c}, sectors*sector) }

func disk(t *testing.T) (*Power, *Disk) {
	t.Helper()
	p := &Power{}
	d := p.AddDisk("a", sector, filled('0', 8))
	p.On(0, 0, nil)
	return p, d
}

func put(t *testing.T, d *Disk, c byte, first, sectors int) {
	t.Helper()
	if _, err := d.WriteAt(filled(c, sectors), int64(first*sector)); err != nil {
		t.Fatal(err)
	}
}

// letters gives the first byte of each sector.
func letters(b []byte) string {
	var s []byte
	for i := 0; i < len(b); i += sector {
		s = append(s, b[i])
	}
	return string(s)
}

// What was flushed is there after any power cut; what was not is lost, kept or torn
// as the seed says.
func TestLoss(t *testing.T) {
	for loss, want := range map[Loss]map[string]bool{
		LoseAll:    {"0aa00000": true},
		LoseNone:   {"0bbbbcc0": true},
		LoseWrites: {"0aa00000": true, "0bbbb000": true, "0aa00cc0": true, "0bbbbcc0": true},
	} {
		seen := map[string]bool{}
		for seed := range uint64(64) {
			p, d := disk(t)
			put(t, d, 'a', 1, 2)
			if err := d.Sync(); err != nil {
				t.Fatal(err)
			}
			put(t, d, 'b', 1, 4)
			put(t, d, 'c', 5, 2)
			p.Cut(rand.New(rand.NewPCG(seed, 1)), loss)
			seen[letters(d.Contents())] = true
		}
		if len(seen) != len(want) {
			t.Errorf("%v: expected %v, found %v", loss, want, seen)
		}
		for s := range seen {
			if !want[s] {
				t.Errorf("%v: expected one of %v, found %s", loss, want, s)
			}
		}
	}
}

func TestTornSectors(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(200) {
		p, d := disk(t)
		put(t, d, 'a', 0, 2)
		put(t, d, 'b', 1, 2)
		p.Cut(rand.New(rand.NewPCG(seed, 1)), LoseSectors)
		seen[letters(d.Contents())[:3]] = true
	}
	// The middle sector was written twice.
	for _, s := range []string{"000", "00b", "0a0", "0ab", "0b0", "0bb", "a00", "a0b", "aa0", "aab", "ab0", "abb"} {
		if !seen[s] {
			t.Errorf("expected %s once, found it never", s)
		}
		delete(seen, s)
	}
	if len(seen) > 0 {
		t.Errorf("expected nothing else, found %v", seen)
	}
}

// The power goes off at the step that was asked for, and nothing happens after it.
func TestCutAtStep(t *testing.T) {
	p, d := disk(t)
	gone := make(chan bool, 1)
	p.On(2, 0, func() { gone <- true })
	put(t, d, 'a', 0, 1)
	if _, err := d.WriteAt(filled('b', 1), sector); !errors.Is(err, ErrOff) {
		t.Errorf("expected the second write to fail, found %v", err)
	}
	<-gone
	if err := d.Sync(); !errors.Is(err, ErrOff) {
		t.Errorf("expected a flush without power to fail, found %v", err)
	}
	p.Cut(nil, LoseAll)
	if s := letters(d.Contents()); s != "00000000" {
		t.Errorf("expected nothing to be written, found %s", s)
	}
	p.On(0, 1, func() { gone <- true })
	put(t, d, 'c', 0, 1)
	if err := d.Sync(); !errors.Is(err, ErrOff) {
		t.Errorf("expected the first flush to fail, found %v", err)
	}
	<-gone
	if steps, flushes := p.Steps(); steps != 2 || flushes != 1 {
		t.Errorf("expected 2 steps, 1 of them a flush, found %d and %d", steps, flushes)
	}
}

func TestPut(t *testing.T) {
	p, d := disk(t)
	d.Put(filled('x', 1), 0)
	p.Cut(nil, LoseAll)
	if s := letters(d.Contents()); s != "x0000000" {
		t.Errorf("expected the boot loader's write, found %s", s)
	}
}
