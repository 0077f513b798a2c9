package main

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median of %v: expected %v, found %v", c.in, c.want, got)
		}
	}
}

func TestAlternate(t *testing.T) {
	var order string
	step := func(name string, v float64) func() (float64, error) {
		return func() (float64, error) { order += name; return v, nil }
	}
	got, err := alternate(2, step("a", 1), step("b", 2))
	if err != nil || order != "ababab" || !slices.Equal(got[0], []float64{1, 1}) || !slices.Equal(got[1], []float64{2, 2}) {
		t.Errorf("expected two measured rounds after a first one, found %v, order %s, %v", got, order, err)
	}
	if _, err := alternate(1, func() (float64, error) { return 0, errors.New("no") }); err == nil {
		t.Error("expected the error of a step, found none")
	}
}

func TestTable(t *testing.T) {
	var tab table
	tab.ratio("a", "1 s", "2 s", 0.5, atMost(0.4, "×"))
	tab.ratio("b", "3 IOPS", "1 IOPS", 3, atLeast(1.5))
	tab.value("c", 5.5, "22 MB", atMost(6, "MB"))
	tab.note("read this")
	var out bytes.Buffer
	if err := tab.print(&out, "head"); err != nil {
		t.Fatal(err)
	}
	want := `head

| what | ours | reference | ratio | must reach | ok? |
|---|---|---|---|---|---|
| a | 1 s | 2 s | 0.50 | ≤ 0.4 × | **no** |
| b | 3 IOPS | 1 IOPS | 3.00 | ≥ 1.5 × | yes |
| c | 5.5 MB | 22 MB |  | ≤ 6 MB | yes |

read this
`
	if out.String() != want {
		t.Errorf("expected\n%s\nfound\n%s", want, out.String())
	}
}

func TestFields(t *testing.T) {
	got := fields([]byte("Rss:   5120 kB\nName:\tx\nvoluntary_ctxt_switches:\t42\n"))
	if got["Rss"] != 5120 || got["voluntary_ctxt_switches"] != 42 || len(got) != 2 {
		t.Errorf("expected Rss 5120 and 42 switches, found %v", got)
	}
}

func TestDiffRuns(t *testing.T) {
	base := make([]byte, 6*blockSize)
	target := make([]byte, 8*blockSize) // longer than the base
	target[1*blockSize] = 1
	target[2*blockSize+9] = 1
	target[5*blockSize] = 1
	if got, want := diffRuns(base, target, blockSize), []run{{1, 2}, {5, 3}}; !slices.Equal(got, want) {
		t.Errorf("expected %v, found %v", want, got)
	}
	if got, want := diffRuns(base, target, 2*blockSize), []run{{0, 8}}; !slices.Equal(got, want) {
		t.Errorf("coarse: expected %v, found %v", want, got)
	}
}

type fakeFile struct {
	data  []byte
	syncs int64
}

func (f *fakeFile) WriteAt(p []byte, off int64) (int, error) { return copy(f.data[off:], p), nil }
func (f *fakeFile) Sync() error                              { f.syncs++; return nil }

func TestCopyRuns(t *testing.T) {
	base := make([]byte, 300*blockSize)
	target := bytes.Repeat([]byte{7}, 300*blockSize)
	for i := range blockSize { // one block that does not differ
		target[100*blockSize+i] = 0
	}
	runs := diffRuns(base, target, blockSize)
	for _, like := range []merged{{299, 4}, {299, 40}, {1000, 3}, {299, 0}} {
		f := &fakeFile{data: slices.Clone(base)}
		if err := copyRuns(f, bytes.NewReader(target), runs, like); err != nil {
			t.Fatal(err)
		}
		if f.syncs != like.Syncs {
			t.Errorf("%+v: expected %d syncs, found %d", like, like.Syncs, f.syncs)
		}
		if !bytes.Equal(f.data, target) {
			t.Errorf("%+v: the copy differs from the target", like)
		}
	}
}

func TestKnown(t *testing.T) {
	for only, want := range map[string]bool{"": true, "create,size": true, "creat": false} {
		if got := known(only); got != want {
			t.Errorf("%q: expected %v, found %v", only, want, got)
		}
	}
}

func TestLastLine(t *testing.T) {
	if got := lastLine("a\nb \n\n"); got != "b" {
		t.Errorf("expected b, found %q", got)
	}
	if strings.Contains(lastLine(""), "\n") {
		t.Error("expected an empty line")
	}
}

func TestWakeups(t *testing.T) {
	before := map[string]int64{"1": 10, "2": 500, "3": 7}
	after := map[string]int64{"1": 12, "3": 7, "4": 3}
	if got := wakeups(before, after); got != 2+3+1 {
		t.Errorf("expected 6 wake-ups, found %d", got)
	}
}
