package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"sort"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
	"cowbird/formats/cowfile"
)

// topFiles is how many files an explanation lists.
const topFiles = 20

// explanation tells where the bytes of a COW go. HeaderBytes to ReplacedBytes add
// up to its size.
type explanation struct {
	HeaderBytes int64 `json:"header_bytes"` // header and scratch area
	TableBytes  int64 `json:"table_bytes"`  // ops, unused slots, resume points
	DeltaBytes  int64 `json:"delta_bytes"`  // data of xor ops
	CycleBytes  int64 `json:"cycle_bytes"`  // new data, about, because of blocks that no merge could order
	NewBytes    int64 `json:"new_bytes"`    // the other new data

	OfVersions int64 `json:"bytes_of_versions"`   // new data and deltas in files that the base has a version of
	OfNew      int64 `json:"bytes_of_new_files"`  // in those that it has not
	OfNone     int64 `json:"bytes_outside_files"` // directories, tables; all, if the file system is not known

	BaseSystem   string      `json:"base_file_system,omitempty"`
	TargetSystem string      `json:"target_file_system,omitempty"`
	Pairs        int         `json:"file_pairs"`
	Note         string      `json:"note,omitempty"`
	Files        []fileCost  `json:"files"` // those that cost the most
	Merge        mergeDemand `json:"merge"`
}

// fileCost is what a file of the target costs.
type fileCost struct {
	Path   string `json:"path"`
	Origin string `json:"origin,omitempty"` // the base's version of it
	Blocks int    `json:"blocks"`           // that are new or differ
	Bytes  int64  `json:"bytes"`            // stored for them
	Deltas int    `json:"xor_ops"`
}

// mergeDemand is what a merge will do and need.
type mergeDemand struct {
	ReadBase    int64 `json:"read_base_bytes"`
	ReadCow     int64 `json:"read_cow_bytes"`
	Written     int64 `json:"write_bytes"`
	OwnPlace    int   `json:"own_place_ops"` // ops that read the block that they write: these go through the scratch area
	IndexBytes  int64 `json:"index_bytes"`   // held while the snapshot is mapped, about
	MemoryBytes int64 `json:"memory_bytes"`  // of a merge, about
}

// explainer listens to a build.
type explainer struct {
	e       explanation
	files   files
	origin  map[int]int // by file of the target
	extents []fileExtent
	costs   []fileCost // by file of the target
	last    cowfile.Op
	maxUnit int
}

// fileExtent is a stretch of blocks of the target that a file has.
type fileExtent struct {
	first, end uint32
	file       int
}

func newExplainer(f files, maxUnit int) *explainer {
	x := &explainer{files: f, origin: map[int]int{}, costs: make([]fileCost, len(f.target.Files)), maxUnit: maxUnit}
	for i, t := range f.target.Files {
		x.costs[i].Path = t.Path
		for _, e := range t.Extents {
			x.extents = append(x.extents, fileExtent{uint32(e.Physical / cowfile.BlockSize), uint32((e.Physical + e.Stored + cowfile.BlockSize - 1) / cowfile.BlockSize), i})
		}
	}
	slices.SortFunc(x.extents, func(a, b fileExtent) int { return cmp.Compare(a.first, b.first) })
	for _, p := range f.pairs {
		x.origin[p.Target] = p.Base
		x.costs[p.Target].Origin = f.base.Files[p.Base].Path
	}
	x.e.BaseSystem, x.e.TargetSystem, x.e.Pairs = f.base.System, f.target.System, len(f.pairs)
	if f.note != nil {
		x.e.Note = f.note.Error()
	}
	return x
}

// fileOf returns the file that a block belongs to, or −1.
func (x *explainer) fileOf(block uint32) int {
	i := sort.Search(len(x.extents), func(i int) bool { return x.extents[i].first > block }) - 1
	if i >= 0 && block < x.extents[i].end {
		return x.extents[i].file
	}
	return -1
}

// op takes note of an op; a unit of several files is shared among its blocks.
func (x *explainer) op(o cowfile.Op, stored int) {
	x.demand(o, stored)
	if o.Type != cowfile.OpReplace && o.Type != cowfile.OpXor {
		return
	}
	for k := range o.Blocks() {
		n := int64(stored)*int64(k+1)/int64(o.Blocks()) - int64(stored)*int64(k)/int64(o.Blocks())
		file := x.fileOf(o.NewBlock + k)
		_, version := x.origin[file]
		switch {
		case file < 0:
			x.e.OfNone += n
			continue
		case version:
			x.e.OfVersions += n
		default:
			x.e.OfNew += n
		}
		c := &x.costs[file]
		c.Blocks++
		c.Bytes += n
		if o.Type == cowfile.OpXor {
			c.Deltas++
		}
	}
}

func (x *explainer) demand(o cowfile.Op, stored int) {
	m := &x.e.Merge
	m.Written += int64(o.Unit())
	m.ReadCow += int64(stored)
	if o.Type.Ordered() {
		m.ReadBase += cowfile.BlockSize
		if first, last := o.SourceBlocks(); first <= uint64(o.NewBlock) && uint64(o.NewBlock) <= last {
			m.OwnPlace++
		}
	}
	step := int64(o.NewBlock) - int64(x.last.NewBlock)
	if o.Factor != x.last.Factor || step != int64(x.last.Blocks()) && step != -1 {
		m.IndexBytes += 12
	}
	x.last = o
}

// finish returns what has been found.
func (x *explainer) finish(s cow.BuildStats) explanation {
	e := x.e
	e.HeaderBytes, e.TableBytes, e.DeltaBytes = s.HeaderBytes, s.OpBytes, s.XorBytes
	e.CycleBytes = min(s.CycleBytes, s.ReplaceBytes)
	e.NewBytes = s.ReplaceBytes - e.CycleBytes
	e.Merge.MemoryBytes = 9<<19 + 2*int64(x.maxUnit) + e.Merge.IndexBytes
	costly := slices.DeleteFunc(slices.Clone(x.costs), func(c fileCost) bool { return c.Bytes == 0 })
	slices.SortFunc(costly, func(a, b fileCost) int { return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Path, b.Path)) })
	e.Files = costly[:min(len(costly), topFiles)]
	return e
}

func (e *explanation) print(w io.Writer) error {
	p := printer{w: w}
	p.line("%12d  header and scratch area", e.HeaderBytes)
	p.line("%12d  table of ops", e.TableBytes)
	p.line("%12d  deltas (xor ops)", e.DeltaBytes)
	p.line("%12d  new data", e.NewBytes)
	p.line("%12d  new data because no merge could order a ring of moves, about", e.CycleBytes)
	switch {
	case e.Note != "":
		p.line("files are not known: %s", e.Note)
	case e.BaseSystem == "" || e.TargetSystem == "":
		p.line("files are not known: no known file system in base, target or both, or --effort fast")
	default:
		p.line("deltas and new data, by file (%d have a version in the base):", e.Pairs)
		p.line("%12d  in files that the base has a version of", e.OfVersions)
		p.line("%12d  in new files", e.OfNew)
		p.line("%12d  outside of files", e.OfNone)
		p.line("files that cost most:")
	}
	for _, f := range e.Files {
		p.line("%12d  %s: %d blocks, %d of them deltas%s", f.Bytes, f.Path, f.Blocks, f.Deltas, originNote(f))
	}
	m := e.Merge
	p.line("a merge reads %s of the base and %s of the COW, and writes %s; %d ops read the block that they write, and are written twice",
		cli.Bytes(m.ReadBase), cli.Bytes(m.ReadCow), cli.Bytes(m.Written), m.OwnPlace)
	p.line("mapped it holds about %s, and while it is merged %s", cli.Bytes(m.IndexBytes), cli.Bytes(m.MemoryBytes))
	return p.err
}

func originNote(f fileCost) string {
	switch f.Origin {
	case "":
		return ", new"
	case f.Path:
		return ""
	}
	return ", from " + f.Origin
}

type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}
