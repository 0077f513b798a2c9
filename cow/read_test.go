package cow

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"testing"

	"cowbird/formats/cowfile"
)

// counting counts reads.
type counting struct {
	Device
	reads atomic.Int64
}

func (d *counting) ReadAt(p []byte, off int64) (int, error) {
	d.reads.Add(1)
	return d.Device.ReadAt(p, off)
}

// runs is a COW of 1024 blocks: 0–255 unchanged, 256–511 a copy of 600–855, 512–
// 543 copied in descending order of the file, 544–799 two 64 KiB units and raw
// blocks, 800– zero.
func runsSample(t testing.TB) sample {
	t.Helper()
	base := make([]byte, 1024*blockSize)
	for i := range base {
		base[i] = byte(i / blockSize * 7)
	}
	target := append([]byte(nil), base...)
	mem := &growMem{}
	w, err := cowfile.NewWriter(cowfile.WriteOnly(mem), cowfile.WriterOptions{Version: 3, Compression: cowfile.LZ4, MaxUnit: 64 << 10, OpCountMax: 1024})
	if err != nil {
		t.Fatal(err)
	}
	enc := encoder(t, 3, cowfile.LZ4, 0, 64<<10)
	add := func(o cowfile.Op, stored []byte) {
		if err := w.Add(o, stored); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 256 {
		add(cowfile.Op{Type: cowfile.OpCopy, NewBlock: uint32(256 + i), Source: uint64(600 + i)}, nil)
	}
	copy(target[256*blockSize:512*blockSize], base[600*blockSize:])
	for i := 31; i >= 0; i-- {
		add(cowfile.Op{Type: cowfile.OpCopy, NewBlock: uint32(512 + i), Source: uint64(900 + i)}, nil)
	}
	copy(target[512*blockSize:544*blockSize], base[900*blockSize:])
	for i := range 2 {
		n := 544 + 16*i
		unit := bytes.Repeat([]byte{byte(100 + i), 3}, 32<<10)
		stored, c, err := enc.Encode(unit)
		if err != nil {
			t.Fatal(err)
		}
		add(cowfile.Op{Type: cowfile.OpReplace, NewBlock: uint32(n), Factor: 4, Compression: c}, stored)
		copy(target[n*blockSize:], unit)
	}
	for i := range 8 {
		raw := bytes.Repeat([]byte{byte(i), 9, 200, 1}, blockSize/4)
		add(cowfile.Op{Type: cowfile.OpReplace, NewBlock: uint32(576 + i)}, raw)
		copy(target[(576+i)*blockSize:], raw)
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return sample{"runs", mem.b, base, target, nil}
}

// One request over blocks that follow each other on a device is one read there,
// and a unit is decompressed once for it.
func TestReadsAreRuns(t *testing.T) {
	c := runsSample(t)
	cow, base := &counting{Device: newMem(c.cow)}, &counting{Device: newMem(c.base)}
	s, err := Open(Options{Cow: cow, Base: base})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, tc := range []struct {
		name           string
		block, blocks  int64
		fromBase, fCow int64
	}{
		{"unchanged", 0, 256, 1, 0},
		{"copies", 256, 256, 1, 0},
		{"copies in descending order", 512, 32, 1, 0},
		{"two units", 544, 32, 0, 1},
		{"raw blocks", 576, 8, 0, 1},
		{"inside a unit", 546, 7, 0, 1},
		{"the same unit again", 550, 3, 0, 0},
		{"behind the last op", 584, 256, 1, 0},
	} {
		base.reads.Store(0)
		cow.reads.Store(0)
		got := make([]byte, tc.blocks*blockSize)
		if err := readFull(s, got, tc.block*blockSize); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, c.target[tc.block*blockSize:][:len(got)]) {
			t.Errorf("%s: %s", tc.name, firstDifference(got, c.target[tc.block*blockSize:]))
		}
		if b, k := base.reads.Load(), cow.reads.Load(); b != tc.fromBase || k != tc.fCow {
			t.Errorf("%s: expected %d reads of the base and %d of the COW, found %d and %d", tc.name, tc.fromBase, tc.fCow, b, k)
		}
	}
}

// Nothing on the heap per request, and so none per op.
func TestReadAllocatesNothing(t *testing.T) {
	c := runsSample(t)
	s, _, _ := openSample(t, c)
	b := make([]byte, len(c.target))
	read := func() {
		if _, err := s.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ReadAt(b[:blockSize], 550*blockSize+17); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if n := testing.AllocsPerRun(20, read); n > 0 {
		t.Errorf("expected no allocation a request, found %v", n)
	}
}

// The ends of the device, as io.ReaderAt has them.
func TestReadAtTheEnd(t *testing.T) {
	c := generate(t, 3, 20, true)
	s, _, _ := openSample(t, c)
	size := s.Size()
	b := make([]byte, 100)
	for _, tc := range []struct {
		off  int64
		n    int
		fail error
	}{{size, 0, io.EOF}, {size + 1, 0, io.EOF}, {size - 10, 10, io.EOF}, {size - 100, 100, nil}} {
		n, err := s.ReadAt(b, tc.off)
		if n != tc.n || !errors.Is(err, tc.fail) {
			t.Errorf("100 bytes at %d of %d: expected %d, %v; found %d, %v", tc.off, size, tc.n, tc.fail, n, err)
		}
	}
	if _, err := s.ReadAt(b, -1); err == nil {
		t.Error("a negative offset was accepted")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadAt(b, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("expected ErrClosed, found %v", err)
	}
}

// Trim takes nothing away from requests that are under way, and reads go on
// after it.
func TestTrim(t *testing.T) {
	c := runsSample(t)
	s, _, _ := openSample(t, c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 200 {
			s.Trim()
		}
	}()
	b := make([]byte, 3*blockSize)
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		if err := readFull(s, b, 545*blockSize); err != nil || !bytes.Equal(b, c.target[545*blockSize:][:len(b)]) {
			t.Fatalf("read beside Trim: %v", err)
		}
	}
}

// A COW that somebody cuts short while it is mapped gives an error, not a
// crash.
func TestMappedFileCutShort(t *testing.T) {
	c := runsSample(t)
	dir := t.TempDir()
	cow, base := fileDevice(t, dir, "cow", c.cow), fileDevice(t, dir, "base", c.base)
	s, err := Open(Options{Cow: cow, Base: base})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := os.Truncate(cow.Path(), 0); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, blockSize)
	if _, err := s.ReadAt(b, 300*blockSize); err == nil {
		t.Error("expected an error")
	}
}
