package cow

import (
	"bytes"
	"context"
	"errors"
	"os"
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
