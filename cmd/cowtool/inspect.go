package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/cowfile"
)

type inspect struct {
	common *common
	ops    bool
	order  string
	block  int64
}

func inspectCommand(c *common) *cobra.Command {
	o := inspect{common: c}
	cmd := &cobra.Command{
		Use:   "inspect [--ops] [--block N] COW",
		Short: "Tell what is in a COW",
		Long: `Prints the header, the counts and sizes of ops, data and scratch area, the merge
order and how far a merge is. Of a version 2 file that was never finished, it
tells the labels at which writing can be taken up, and shows the file as of the
last one.

With --ops it lists the ops as well, in the order of the file (metadata ops of
version 2 included) or of the merge; with --block it tells where the contents of
a block (4096 bytes, counted from 0) come from.`,
		Example: `  cowtool inspect update.cow
  cowtool inspect --json update.cow | jq .ops
  cowtool inspect --ops --order merge update.cow | less
  cowtool inspect --block 1234 update.cow`,
		Args:              cli.Args("COW"),
		ValidArgsFunction: fileArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(o.common.output(cmd), args[0], cmd.Flags().Changed("block"))
		},
	}
	cmd.Flags().BoolVar(&o.ops, "ops", false, "list the ops")
	cmd.Flags().StringVar(&o.order, "order", "file", "of the list: file or merge")
	cmd.Flags().Int64Var(&o.block, "block", 0, "explain block `N` only")
	values(cmd, "order", "file", "merge")
	return cmd
}

func (o *inspect) run(out cli.Output, path string, oneBlock bool) error {
	if o.order != "file" && o.order != "merge" {
		return cli.Usagef("--order: expected file or merge, found %q", o.order)
	}
	if oneBlock && (o.block < 0 || o.block >= 1<<32) {
		return cli.Usagef("--block: expected 0 to %d, found %d", uint32(1<<32-1), o.block)
	}
	inputs, err := openAll(path)
	if err != nil {
		return err
	}
	defer inputs.close()
	f, err := readFacts(path, inputs[0], inputs[0].Size())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	w := bufio.NewWriter(out.Stdout)
	out.Stdout = w
	if oneBlock {
		err = explainBlock(out, f, uint32(o.block))
	} else {
		err = o.print(out, f)
	}
	return errors.Join(err, w.Flush())
}

func (o *inspect) print(out cli.Output, f *facts) error {
	if err := printFacts(out, f); err != nil || !o.ops {
		return err
	}
	if !out.JSON {
		fmt.Fprintln(out.Stdout)
	}
	return listOps(out, f, o.order)
}

func printFacts(out cli.Output, f *facts) error {
	if out.JSON {
		return out.Emit(f)
	}
	t := tabwriter.NewWriter(out.Stdout, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) }
	row("file", "%s, %s", f.File, amount(f.Size))
	if f.Incomplete != "" {
		row("incomplete", "%s", f.Incomplete)
	}
	f.printHeader(row)
	f.printLabels(row)
	if f.file == nil {
		row("ops", "cannot be read: the file ends too early and has no label to go back to")
		return t.Flush()
	}
	f.printOps(row)
	f.printMerge(row)
	return t.Flush()
}

type rowFunc func(name, format string, args ...any)

func (f *facts) printHeader(row rowFunc) {
	row("version", "%s", f.Version)
	row("sizes", "header %d, footer %d, op %d, block %d bytes", f.HeaderSize, f.FooterSize, f.OpSize, f.BlockSize)
	if f.header.Major < 3 {
		row("clusters", "of %d ops", f.ClusterOps)
	}
	row("compression", "%s, units up to %s", f.Compression, sizeText(f.MaxUnit))
}

func (f *facts) printLabels(row rowFunc) {
	switch {
	case len(f.Resume) > 0:
		var points []string
		for _, p := range f.Resume {
			points = append(points, fmt.Sprintf("label %d after %d ops", p.Label, p.Ops))
		}
		row("resume points", "%s", strings.Join(points, ", "))
	case len(f.Labels) > 0:
		row("labels", "%s", listed(f.Labels))
	default:
		row("labels", "none")
	}
	if f.AsOfLabel != nil {
		row("shown", "as of label %d", *f.AsOfLabel)
	}
}

// listed shortens a long list.
func listed(labels []uint64) string {
	const show = 12
	var words []string
	for _, l := range labels[:min(len(labels), show)] {
		words = append(words, fmt.Sprint(l))
	}
	text := strings.Join(words, ", ")
	if n := len(labels) - show; n > 0 {
		text += fmt.Sprintf(", … and %d more up to %d", n, labels[len(labels)-1])
	}
	return text
}

func (f *facts) printOps(row rowFunc) {
	row("ops", "%d in %d bytes: %d copy, %d xor, %d replace, %d zero", f.Ops.Count, f.Ops.Bytes, f.Ops.Copy, f.Ops.Xor, f.Ops.Replace, f.Ops.Zero)
	if f.header.Major < 3 {
		row("metadata ops", "%d label, %d cluster, %d sequence", f.Ops.Label, f.Ops.Cluster, f.Ops.Sequence)
	} else {
		row("op table", "room for %d ops", f.Ops.Capacity)
	}
	row("data", "%s in %d compressed and %d raw units", amount(f.Data.Bytes), f.Data.Compressed, f.Data.Raw)
	var units []string
	for _, size := range slices.Sorted(maps.Keys(f.Data.UnitsBy)) {
		units = append(units, fmt.Sprintf("%d of %s", f.Data.UnitsBy[size], sizeText(size)))
	}
	if len(units) > 0 {
		row("units", "%s", strings.Join(units, ", "))
	}
	row("covered", "%d blocks (%s), the last is %d", f.Data.Blocks, cli.Bytes(f.Data.Blocks*cowfile.BlockSize), f.Data.LastBlock)
	row("end", "of ops and data at byte %d", f.Data.End)
	row("index", "%d runs of blocks", f.Index.Runs)
}

func (f *facts) printMerge(row rowFunc) {
	row("merge order", "%s", f.Merge.Order)
	if f.Merge.Sequence > 0 {
		row("sequence", "%d blocks", f.Merge.Sequence)
	}
	row("merged", "%d of %d ops, %d of them ordered", f.Merge.Merged, f.Ops.Count, f.Merge.Ordered)
	if f.Scratch.Size == 0 {
		row("scratch area", "none")
		return
	}
	text := fmt.Sprintf("%s, room for %d blocks, %s", amount(f.Scratch.Size), f.Scratch.Capacity, f.Scratch.State)
	if f.Scratch.Filled > 0 {
		text += fmt.Sprintf(" with %d blocks", f.Scratch.Filled)
	}
	row("scratch area", "%s", text)
}

func versionOf(h *cowfile.Header) string { return fmt.Sprintf("%d.%d", h.Major, h.Minor) }

func amount(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%s (%d bytes)", cli.Bytes(n), n)
}

func sizeText(n int) string {
	s := cli.Size(n)
	return s.String()
}

// opLine is an op in a list for programs.
type opLine struct {
	Event       string `json:"event"`
	Position    int    `json:"position"` // in the list
	Op          *int   `json:"op,omitempty"`
	Type        string `json:"type"`
	Block       uint64 `json:"block"`
	Blocks      uint32 `json:"blocks"`
	Source      uint64 `json:"source"`
	Data        int64  `json:"data_offset,omitempty"`
	Length      int64  `json:"data_length"`
	Compression string `json:"compression"`
}

// lister prints ops one after the other.
type lister struct {
	out cli.Output
	enc *json.Encoder
	pos int
}

func listOps(out cli.Output, f *facts, order string) error {
	l := &lister{out: out, enc: json.NewEncoder(out.Stdout)}
	switch {
	case f.file == nil:
		return nil
	case order == "merge" && f.AsOfLabel != nil:
		return cli.Usagef("--order merge: an incomplete file has no merge order: use --order file")
	case order == "merge":
		return l.inMergeOrder(f)
	case f.header.Major < 3:
		return l.raw(f)
	}
	for i := range f.file.NumOps() {
		if err := l.op(f, i); err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) inMergeOrder(f *facts) error {
	for it := f.file.Merge(0); ; {
		i, ok := it.Next()
		if !ok {
			return nil
		}
		if err := l.op(f, i); err != nil {
			return err
		}
	}
}

func (l *lister) op(f *facts, i int) error {
	o := f.file.Op(i)
	line := opLine{Op: &i, Type: o.Type.String(), Block: uint64(o.NewBlock), Blocks: o.Blocks(), Source: o.Source,
		Length: int64(o.DataLength), Compression: o.Compression.String()}
	if o.DataLength > 0 {
		line.Data = f.file.DataOffset(i, o)
	}
	return l.print(line, fmt.Sprintf("op %d: %v", i, o))
}

// raw lists a version 2 file as it stands there.
func (l *lister) raw(f *facts) error {
	var failed error
	err := cowfile.WalkRaw(f.source, f.Size, func(o cowfile.RawOp) bool {
		if o.Type == 0 {
			return false // an unused slot: the writer got no further
		}
		line := opLine{Type: o.Type.String(), Block: o.NewBlock, Blocks: 1, Source: o.Source, Length: int64(o.DataLength), Compression: o.Compression.String()}
		if o.DataLength > 0 {
			line.Data = o.DataOffset
		}
		failed = l.print(line, fmt.Sprintf("byte %d: %s", o.Offset, rawText(o)))
		return failed == nil
	})
	if f.Incomplete != "" && errors.Is(err, cowfile.ErrTruncated) {
		err = nil // as the facts said
	}
	return errors.Join(failed, err)
}

func rawText(o cowfile.RawOp) string {
	if o.Type == cowfile.OpFooter {
		return fmt.Sprintf("footer after %d ops", o.Source)
	}
	return cowfile.Op{Type: o.Type, NewBlock: uint32(o.NewBlock), DataLength: uint32(o.DataLength), Source: o.Source, Compression: o.Compression}.String()
}

func (l *lister) print(line opLine, text string) error {
	line.Event, line.Position = "op", l.pos
	l.pos++
	if l.out.JSON {
		return l.enc.Encode(line)
	}
	_, err := fmt.Fprintf(l.out.Stdout, "%7d  %s\n", line.Position, text)
	return err
}
