package main

import (
	"errors"
	"io"

	"cowbird/formats/cowfile"
)

// facts are all that inspect tells about a COW as a whole. Sizes are in bytes.
type facts struct {
	Event       string         `json:"event"`
	File        string         `json:"file"`
	Size        int64          `json:"size"`
	Incomplete  string         `json:"incomplete,omitempty"` // why the writer did not get to the end
	AsOfLabel   *uint64        `json:"as_of_label,omitempty"`
	Version     string         `json:"version"`
	HeaderSize  int            `json:"header_size"`
	FooterSize  int            `json:"footer_size"`
	OpSize      int            `json:"op_size"`
	BlockSize   int            `json:"block_size"`
	ClusterOps  int            `json:"cluster_ops"`
	Compression string         `json:"compression"`
	MaxUnit     int            `json:"max_unit"`
	Ops         opFacts        `json:"ops"`
	Data        dataFacts      `json:"data"`
	Index       indexFacts     `json:"index"`
	Merge       mergeFacts     `json:"merge"`
	Scratch     scratchFacts   `json:"scratch"`
	Labels      []uint64       `json:"labels"`
	Resume      []resumeFacts  `json:"resume_points"`
	file        *cowfile.File  // nil if nothing of it can be used
	source      io.ReaderAt    // its bytes
	header      cowfile.Header // also of a file that is incomplete
}

type opFacts struct {
	Count    int   `json:"count"` // data ops
	Capacity int   `json:"capacity,omitempty"`
	Bytes    int64 `json:"bytes"` // of all ops, metadata included
	Copy     int   `json:"copy"`
	Xor      int   `json:"xor"`
	Replace  int   `json:"replace"`
	Zero     int   `json:"zero"`
	Label    int   `json:"label"`
	Cluster  int   `json:"cluster"`
	Sequence int   `json:"sequence"`
}

type dataFacts struct {
	Bytes      int64       `json:"bytes"`
	Compressed int         `json:"compressed_units"`
	Raw        int         `json:"raw_units"`
	UnitsBy    map[int]int `json:"units_by_size"`
	Blocks     int64       `json:"blocks_covered"`
	LastBlock  int64       `json:"last_block"` // -1 without ops
	End        int64       `json:"end"`
}

type indexFacts struct {
	Runs int `json:"runs"`
}

type mergeFacts struct {
	Order    string `json:"order"`
	Sequence int    `json:"sequence_length"`
	Ordered  int    `json:"ordered_ops"`
	Merged   int    `json:"merged_ops"`
}

type scratchFacts struct {
	Size     int64  `json:"size"`
	Capacity int    `json:"capacity_blocks"`
	State    string `json:"state"`
	Filled   int    `json:"filled_blocks"`
}

type resumeFacts struct {
	Label uint64 `json:"label"`
	Ops   uint64 `json:"ops"`
}

// readFacts opens the COW in r, or as much of an incomplete one as its labels
// allow.
func readFacts(name string, r io.ReaderAt, size int64) (*facts, error) {
	h, err := cowfile.ReadHeader(r, size)
	if err != nil {
		return nil, err
	}
	f := &facts{Event: "cow", File: name, Size: size, header: h, source: r, Labels: []uint64{}, Resume: []resumeFacts{}}
	f.readLabels(r, size)
	f.file, err = cowfile.Open(r, size, nil)
	if errors.Is(err, cowfile.ErrTruncated) {
		f.Incomplete = err.Error()
		f.openAtLabel(r, size)
		err = nil
	}
	if err != nil {
		return nil, err
	}
	f.fromHeader()
	if f.file == nil {
		return f, nil
	}
	f.fromFile()
	return f, f.readScratch(r)
}

// readLabels takes what it can get: the file may end anywhere.
func (f *facts) readLabels(r io.ReaderAt, size int64) {
	labels, _ := cowfile.Labels(r, size)
	f.Labels = append(f.Labels, labels...)
	if f.header.Major > 2 {
		points, _ := cowfile.ReadResumePoints(r, f.header)
		for _, p := range points {
			f.Resume = append(f.Resume, resumeFacts(p))
		}
	}
}

func (f *facts) openAtLabel(r io.ReaderAt, size int64) {
	for i := len(f.Labels) - 1; i >= 0; i-- {
		file, err := cowfile.Open(r, size, &cowfile.Options{Label: &f.Labels[i]})
		if err == nil {
			f.file, f.AsOfLabel = file, &f.Labels[i]
			return
		}
	}
}

func (f *facts) fromHeader() {
	h := &f.header
	f.Version = versionOf(h)
	f.HeaderSize, f.FooterSize, f.OpSize = int(h.HeaderSize), int(h.FooterSize), int(h.OpSize)
	f.BlockSize, f.ClusterOps = int(h.BlockSize), int(h.ClusterOps)
	f.Compression, f.MaxUnit = h.Compression.String(), int(max(h.MaxCompression, cowfile.BlockSize))
	f.Ops.Capacity = int(h.OpCountMax)
	f.Merge.Merged = int(h.NumMergeOps)
	f.Scratch = scratchFacts{Size: int64(h.ScratchSize), Capacity: h.Scratch().Capacity, State: "not in use"}
}

func (f *facts) fromFile() {
	c := f.file.Counts()
	f.Compression, f.MaxUnit = f.file.Compression().String(), f.file.MaxUnit()
	f.Ops.Count, f.Ops.Copy, f.Ops.Xor, f.Ops.Replace, f.Ops.Zero = c.Ops(), c.Copy, c.Xor, c.Replace, c.Zero
	f.Ops.Label, f.Ops.Cluster, f.Ops.Sequence = c.Label, c.Cluster, c.Sequence
	f.Ops.Bytes = int64(c.Ops()+c.Label+c.Cluster+c.Sequence) * int64(f.OpSize)
	f.Data = dataFacts{Bytes: c.DataBytes, Compressed: c.StoredCompressed, Raw: c.StoredRaw, UnitsBy: map[int]int{},
		Blocks: int64(c.BlocksCovered), LastBlock: -1, End: f.file.End()}
	for factor, n := range c.ByFactor {
		if n > 0 {
			f.Data.UnitsBy[cowfile.BlockSize<<factor] = n
		}
	}
	if c.Ops() > 0 {
		f.Data.LastBlock = int64(c.LastBlock)
	}
	f.Index.Runs = f.file.Runs()
	f.Merge.Order, f.Merge.Sequence, f.Merge.Ordered = f.order(), f.file.SequenceLen(), f.file.OrderedOps()
}

// order says which of the format's rules gives the merge order.
func (f *facts) order() string {
	switch {
	case f.AsOfLabel != nil:
		return "none: the file is incomplete"
	case f.file.SequenceLen() > 0:
		return "the sequence, then the others by block"
	case f.file.InTableOrder():
		return "the op table"
	}
	return "copy and xor ops as in the file, then the others by block"
}

func (f *facts) readScratch(r io.ReaderAt) error {
	if f.AsOfLabel != nil || f.Scratch.Size == 0 {
		return nil
	}
	state, err := f.file.ReadState(r)
	if err != nil {
		return err
	}
	f.Scratch.State = stateName(state)
	if state != cowfile.StateReadDone {
		return nil
	}
	entries, err := f.file.ReadScratch(r)
	f.Scratch.Filled = len(entries)
	return err
}

func stateName(s cowfile.State) string {
	switch s {
	case cowfile.StateMerging:
		return "merging"
	case cowfile.StateReadDone:
		return "filled"
	}
	return "idle"
}
