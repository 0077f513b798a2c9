package main

import (
	"fmt"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/cowfile"
)

// blockFacts tell where the contents of a block come from.
type blockFacts struct {
	Event    string `json:"event"`
	Block    uint32 `json:"block"`
	Op       int    `json:"op"` // -1: none
	Type     string `json:"type"`
	Text     string `json:"text"`
	Position int    `json:"merge_position"` // of the op; -1: none
	Merged   bool   `json:"merged"`
	Scratch  int64  `json:"scratch_offset,omitempty"` // in the COW, if it is there
	Nearby   uint64 `json:"nearby_blocks"`            // blocks from here on in the same run
}

func explainBlock(out cli.Output, f *facts, block uint32) error {
	if f.file == nil {
		return fmt.Errorf("%w: the ops cannot be read", cowfile.ErrTruncated)
	}
	b, err := lookAt(f, block)
	if err != nil {
		return err
	}
	if out.JSON {
		return out.Emit(b)
	}
	_, err = fmt.Fprint(out.Stdout, b.text())
	return err
}

func lookAt(f *facts, block uint32) (blockFacts, error) {
	hint := 0
	op, nearby := f.file.Lookup(&hint, block)
	b := blockFacts{Event: "block", Block: block, Op: op, Nearby: nearby, Type: "unchanged", Position: -1, Text: "no op"}
	if op < 0 {
		return b, nil
	}
	o := f.file.Op(op)
	b.Type, b.Text = o.Type.String(), o.String()
	if f.AsOfLabel != nil {
		return b, nil
	}
	b.Position = positionOf(f.file, op)
	b.Merged = b.Position < f.file.NumMergeOps()
	return b, b.findInScratch(f)
}

// positionOf is the op's place in the merge order.
func positionOf(f *cowfile.File, op int) int {
	if f.InTableOrder() {
		return op
	}
	it := f.Merge(0)
	for {
		at := it.Pos()
		if i, ok := it.Next(); !ok || i == op {
			return at
		}
	}
}

func (b *blockFacts) findInScratch(f *facts) error {
	if f.Scratch.Filled == 0 {
		return nil
	}
	entries, err := f.file.ReadScratch(f.source)
	for _, e := range entries {
		if e.NewBlock == uint64(b.Block) {
			b.Scratch = e.Offset
		}
	}
	return err
}

func (b blockFacts) text() string {
	head := fmt.Sprintf("block %d, bytes %d to %d of the target\n", b.Block, int64(b.Block)*cowfile.BlockSize, (int64(b.Block)+1)*cowfile.BlockSize-1)
	if b.Op < 0 {
		return head + fmt.Sprintf("no op: the base has it already, as the next %d blocks from here\n", b.Nearby)
	}
	text := head + fmt.Sprintf("op %d: %s\nits run serves %d blocks from here\n", b.Op, b.Text, b.Nearby)
	switch {
	case b.Position < 0:
		return text + "the file is incomplete and has no merge order\n"
	case b.Merged:
		return text + fmt.Sprintf("number %d in merge order; merged: read from the base\n", b.Position)
	case b.Scratch > 0:
		return text + fmt.Sprintf("number %d in merge order; read from the scratch area, byte %d of the COW\n", b.Position, b.Scratch)
	}
	return text + fmt.Sprintf("number %d in merge order; not merged yet\n", b.Position)
}
