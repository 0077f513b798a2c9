package cow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"cowbird/formats/cowfile"
)

// A file's bytes are zero afterwards, and their space stays the file's.
func TestZero(t *testing.T) {
	old := bytes.Repeat([]byte{7}, 64*blockSize)
	d := fileDevice(t, t.TempDir(), "base", old)
	if err := d.Zero(8*blockSize, 40*blockSize); errors.Is(err, errors.ErrUnsupported) {
		t.Logf("the file system of %s cannot: %v", d.Path(), err)
		return
	} else if err != nil {
		t.Fatal(err)
	}
	clear(old[8*blockSize : 48*blockSize])
	if got, err := os.ReadFile(d.Path()); err != nil || !bytes.Equal(got, old) {
		t.Errorf("%v, %s", err, firstDifference(got, old))
	}
	if err := d.Zero(63*blockSize, 2*blockSize); err == nil {
		t.Error("expected zeros beyond the end to be refused")
	}
}

// unable is a device that says that it cannot zero.
type unable struct{ *memDevice }

func (unable) Zero(_, _ int64) error { return errors.ErrUnsupported }

// zeroing can zero, and counts how often it is told to.
type zeroing struct {
	*memDevice
	calls, bytes int
}

func (d *zeroing) Zero(off, n int64) error {
	d.calls++
	d.bytes += int(n)
	_, err := d.WriteAt(make([]byte, n), off)
	return err
}

// Long runs of zero ops are one call where the device has one, and zeros that
// are written where it has none.
func TestZeroRuns(t *testing.T) {
	const blocks = 300
	base := bytes.Repeat([]byte{7}, blocks*blockSize)
	target := bytes.Clone(base)
	mem := &growMem{}
	w, err := cowfile.NewWriter(cowfile.WriteOnly(mem), cowfile.WriterOptions{Version: 3, OpCountMax: blocks})
	if err != nil {
		t.Fatal(err)
	}
	for i := range blocks {
		if i < 20 || i >= 200 || i == 100 { // two long runs and one short one
			if err := w.Add(cowfile.Op{Type: cowfile.OpZero, NewBlock: uint32(i)}, nil); err != nil {
				t.Fatal(err)
			}
			clear(target[i*blockSize : (i+1)*blockSize])
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	able, unable := &zeroing{memDevice: newMem(base)}, unable{newMem(base)}
	for _, d := range []Device{able, unable} {
		s, err := Open(Options{Cow: newMem(mem.b), Base: d})
		if err != nil {
			t.Fatal(err)
		}
		stats, err := s.Merge(context.Background(), MergeOptions{})
		if err != nil || stats.BlocksWritten+stats.BlocksZeroed != 121 {
			t.Errorf("expected 121 blocks, found %+v, %v", stats, err)
		}
		_ = s.Close()
	}
	if able.calls != 2 || able.bytes != 120*blockSize {
		t.Errorf("expected 2 calls for 120 blocks, found %d for %d", able.calls, able.bytes/blockSize)
	}
	for _, d := range []*memDevice{able.memDevice, unable.memDevice} {
		if !bytes.Equal(d.data, target) {
			t.Error(firstDifference(d.data, target))
		}
	}
}

// ontoItself is a sample of version 2 without a scratch area, in which an op
// reads the block that it writes.
func ontoItself(t *testing.T) sample {
	t.Helper()
	for seed := uint64(0); ; seed++ {
		c := generate(t, seed, 40, false)
		for _, o := range c.ops {
			first, last := o.SourceBlocks()
			if own := uint64(o.NewBlock); c.cow[8] == 2 && o.Type == cowfile.OpXor && first <= own && own <= last {
				return c
			}
		}
	}
}

// A COW file without a scratch area grows by the journal, which Check knows; a
// device without room for it is refused, and says how much there must be.
func TestJournal(t *testing.T) {
	c := ontoItself(t)
	cow, base := fileDevice(t, t.TempDir(), "cow", c.cow), newMem(c.base)
	s, err := Open(Options{Cow: cow, Base: base, Size: int64(len(c.target))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Merge(context.Background(), MergeOptions{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(base.data, c.target) {
		t.Error(firstDifference(base.data, c.target))
	}
	if want := journalAt(s.file) + journalSize; cow.Size() != want {
		t.Errorf("the COW: expected %d bytes, found %d", want, cow.Size())
	}
	if _, err := Check(context.Background(), CheckOptions{Cow: cow}); err != nil {
		t.Error(err)
	}
	if err := cow.Grow(cow.Size() + 1); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(context.Background(), CheckOptions{Cow: cow}); !errors.Is(err, cowfile.ErrCorrupt) {
		t.Errorf("a byte behind the journal: expected ErrCorrupt, found %v", err)
	}
}

func TestNoRoomForJournal(t *testing.T) {
	c := ontoItself(t)
	bounded := struct{ Device }{newMem(c.cow)}
	s, err := Open(Options{Cow: bounded, Base: newMem(c.base), Size: int64(len(c.target))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Merge(context.Background(), MergeOptions{})
	if !errors.Is(err, ErrSize) || !strings.Contains(err.Error(), fmt.Sprint(journalAt(s.file)+journalSize)) {
		t.Errorf("expected ErrSize and the bytes that are needed, found %v", err)
	}
	if got := readWhole(t, s, s.Size()); !bytes.Equal(got, c.target) {
		t.Error("not served afterwards: " + firstDifference(got, c.target))
	}
}
