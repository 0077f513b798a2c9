package cowfile_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"testing"

	"cowbird/formats/cowfile"
	"cowbird/tools/fixture"
)

// Cut-off version 2 files have no footer and open at a label only.
func opensWithoutLabel(c fixture.Cow) bool { return c.ParseNoLabel == "ok" || c.ParseNoLabel == "" }

// COW-048 and the whole interop suite: every file lists its ops as its sidecar
// says.
func TestFixturesOpen(t *testing.T) {
	for _, c := range fixture.Cows(t, false) {
		t.Run(c.Name, func(t *testing.T) {
			data := c.ReadAll(t)
			f, err := cowfile.Open(bytes.NewReader(data), int64(len(data)), nil)
			if !opensWithoutLabel(c) {
				if !errors.Is(err, cowfile.ErrTruncated) {
					t.Fatalf("expected ErrTruncated, found %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			compareCounts(t, f, c.Counts)
			decodeAll(t, f, data)
			walkMergeOrder(t, f)
		})
	}
}

func compareCounts(t *testing.T, f *cowfile.File, want map[string]json.RawMessage) {
	t.Helper()
	h, n := f.Header(), f.Counts()
	v3 := h.Major == 3
	found := map[string]int64{
		"major": int64(h.Major), "header_size": int64(h.HeaderSize), "footer_size": int64(h.FooterSize), "op_size": int64(h.OpSize),
		"block_size": int64(h.BlockSize), "cluster_ops": int64(h.ClusterOps), "buffer_size": int64(h.ScratchSize),
		"num_merge_ops": int64(h.NumMergeOps), "op_count": int64(h.OpCount), "op_count_max": int64(h.OpCountMax),
		"resume_point_count": int64(h.ResumePointCount), "resume_point_max": int64(h.ResumePointMax),
		"max_compression_size": int64(h.MaxCompression), "compression_algorithm": int64(h.Compression),
		"sequence_data_count": int64(h.SequenceCount),
		"copy":                int64(n.Copy), "replace": int64(n.Replace), "zero": int64(n.Zero), "xor": int64(n.Xor),
		"label": int64(n.Label), "cluster": int64(n.Cluster), "sequence": int64(n.Sequence),
		"stored_raw_ops": int64(n.StoredRaw), "stored_compressed_ops": int64(n.StoredCompressed),
		"data_bytes": n.DataBytes, "last_label": n.LastLabel, "max_new_block": maxNewBlock(f), "total_data_ops": int64(n.Ops()),
	}
	for key, raw := range want {
		var v int64
		if key == "ops_by_factor_bits" {
			var factors [8]int
			if err := json.Unmarshal(raw, &factors); err != nil || factors != n.ByFactor {
				t.Errorf("%s: expected %s, found %v", key, raw, n.ByFactor)
			}
			continue
		}
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		got, known := found[key]
		if !known {
			t.Errorf("%s: not compared", key)
		}
		if got != v {
			t.Errorf("%s: expected %d, found %d (version 3: %v)", key, v, got, v3)
		}
	}
}

func maxNewBlock(f *cowfile.File) (m int64) {
	for i := range f.NumOps() {
		m = max(m, int64(f.Op(i).NewBlock))
	}
	return m
}

func decodeAll(t *testing.T, f *cowfile.File, data []byte) {
	t.Helper()
	unit := make([]byte, f.MaxUnit())
	for i := range f.NumOps() {
		o := f.Op(i)
		if o.DataLength == 0 {
			continue
		}
		off := f.DataOffset(i, o)
		if err := cowfile.Decode(o.Compression, unit[:o.Unit()], data[off:off+int64(o.DataLength)]); err != nil {
			t.Fatalf("op %d (%v): %v", i, o, err)
		}
	}
}

// Each op occurs once in the merge order, ordered ones first, and its blocks
// are found through the index.
func walkMergeOrder(t *testing.T, f *cowfile.File) {
	t.Helper()
	seen := make([]bool, f.NumOps())
	n, ordered := 0, 0
	for it := f.Merge(0); ; n++ {
		i, ok := it.Next()
		if !ok {
			break
		}
		if seen[i] {
			t.Fatalf("op %d occurs twice in the merge order", i)
		}
		seen[i] = true
		o := f.Op(i)
		if o.Type.Ordered() {
			if n != ordered {
				t.Fatalf("position %d: ordered op behind an unordered one", n)
			}
			ordered++
		}
		for b := o.NewBlock; b < o.NewBlock+o.Blocks(); b++ {
			if found := f.Find(b); found != i {
				t.Fatalf("block %d: expected op %d, found %d", b, i, found)
			}
		}
	}
	if n != f.NumOps() || ordered != f.OrderedOps() {
		t.Fatalf("merge order: expected %d ops, %d ordered; found %d, %d", f.NumOps(), f.OrderedOps(), n, ordered)
	}
}

// COW-022 to COW-027, COW-115, COW-131: opening at a label sees what Android's
// reader sees there.
func TestFixturesOpenAtLabel(t *testing.T) {
	for _, c := range fixture.Cows(t, false) {
		for name, raw := range c.ByLabel {
			t.Run(c.Name+"/"+name, func(t *testing.T) {
				label, err := strconv.ParseUint(name, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				data := c.ReadAll(t)
				f, err := cowfile.Open(bytes.NewReader(data), int64(len(data)), &cowfile.Options{Label: &label})
				var want struct{ Copy, Replace, Zero, Xor, Label, Cluster, Sequence int }
				if json.Unmarshal(raw, &want) != nil {
					if !errors.Is(err, cowfile.ErrNoLabel) {
						t.Fatalf("expected ErrNoLabel, found %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				n := f.Counts()
				found := want
				found.Copy, found.Replace, found.Zero, found.Xor = n.Copy, n.Replace, n.Zero, n.Xor
				found.Label, found.Cluster, found.Sequence = n.Label, n.Cluster, n.Sequence
				if found != want {
					t.Errorf("expected %+v, found %+v", want, found)
				}
			})
		}
	}
}

// Damaged files whose damage shows only with the base or after decoding; they
// open here and are refused by the check of package cow.
var needsCheck = map[string]string{
	"v2_copy_source_past_base": "the base's size",
	"v2_data_corrupt":          "the decoded data",
	"v3_alg_wrong":             "the decoded data",
	"v2_trailing_garbage":      "the length of a regular file; a device always has more",
}

func TestFixturesReject(t *testing.T) {
	for _, c := range fixture.Cows(t, true) {
		t.Run(c.Name, func(t *testing.T) {
			data := c.ReadAll(t)
			_, err := cowfile.Open(bytes.NewReader(data), int64(len(data)), nil)
			_, later := needsCheck[c.Name]
			if later || c.Name == "v2_good" || c.Name == "v3_good" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var e *cowfile.Error
			if !errors.As(err, &e) {
				t.Fatalf("expected an *Error, found %v", err)
			}
			if e.Expected == "" || e.Found == "" || e.Where == "" {
				t.Errorf("incomplete error: %#v", e)
			}
			t.Log(err)
		})
	}
}
