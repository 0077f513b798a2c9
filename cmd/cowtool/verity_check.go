package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/verity"
)

// damageFacts are what a check or a repair has found.
type damageFacts struct {
	Event        string `json:"event"`
	File         string `json:"file"`
	Good         bool   `json:"good"`
	Blocks       int64  `json:"blocks"`
	Bad          int64  `json:"bad_blocks"`
	First        *int64 `json:"first_bad_block,omitempty"`
	BadTree      int64  `json:"bad_tree_blocks"`
	Repaired     int64  `json:"repaired_blocks"`
	RepairedTree int64  `json:"repaired_tree_blocks"`
	Root         string `json:"root"`
	RootOnly     bool   `json:"root_only,omitempty"`
}

func verityCheckCommand(c *common) *cobra.Command {
	v, rootOnly := verities{common: c}, false
	cmd := &cobra.Command{
		Use:   "check [--key FILE] IMAGE",
		Short: "Find the damaged blocks of an image",
		Long: `Reads the whole image and compares it with its hash tree, and that with the root in
the metadata; with --key, these have to be signed by it. Where there is no tree, or with
--root-only, it is computed, which cannot tell what is wrong. The exit code is 1 then,
or if anything is damaged.`,
		Example: `  cowtool verity check --key release.pub.pem system.img
  cowtool verity check --vbmeta vbmeta.img --partition system system.img
  cowtool verity check --tree system.tree --root HEX --salt HEX system.img`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return v.check(cmd.Context(), v.output(cmd), args[0], rootOnly)
		},
	}
	v.flags(cmd)
	v.apart(cmd)
	cmd.Flags().BoolVar(&rootOnly, "root-only", false, "compute the hash tree instead of reading it")
	return cmd
}

func (v *verities) check(ctx context.Context, out cli.Output, name string, rootOnly bool) error {
	p, err := v.openProtected(name, false)
	if err != nil {
		return err
	}
	defer p.close()
	if rootOnly {
		p.tree = nil
	}
	f, err := p.check(ctx, out)
	if err != nil {
		return inFile(name, err)
	}
	if out.JSON {
		return out.Emit(f)
	}
	how := "as the hash tree says, and that as its root does"
	if f.RootOnly {
		how = "as the root of the hash tree says"
	}
	_, err = fmt.Fprintf(out.Stdout, "%s: good; %d blocks are %s, %x\n", name, f.Blocks, how, p.Root)
	return err
}

// check emits what is wrong if anything is, and gives it as the error too.
func (p *protected) check(ctx context.Context, out cli.Output) (*damageFacts, error) {
	f := &damageFacts{Event: "result", File: p.name, Blocks: p.Size / p.blockSize, Root: fmt.Sprintf("%x", p.Root), RootOnly: p.tree == nil}
	meter := out.Meter("checking")
	data := &watched{ReaderAt: p.file, ctx: ctx, onRead: meter.Update, total: p.Size}
	damage, err := p.compare(data)
	meter.End()
	if err != nil {
		return nil, err
	}
	f.tell(damage)
	if !f.Good && out.JSON {
		err = out.Emit(f)
	}
	return f, errors.Join(damage.Err(), err)
}

// compare gives no damage if there is no tree and the root is right.
func (p *protected) compare(data io.ReaderAt) (*verity.Damage, error) {
	if p.tree == nil {
		return &verity.Damage{Data: verity.NewBlocks(0), Tree: verity.NewBlocks(0)}, p.Tree.CheckRoot(data, p.Size, p.Root)
	}
	return p.Tree.Check(data, p.Size, p.tree, p.Root)
}

func (f *damageFacts) tell(d *verity.Damage) {
	f.Bad, f.BadTree = d.Data.Count(), d.Tree.Count()
	f.Good = f.Bad+f.BadTree == 0
	if f.Bad > 0 {
		first := d.Data.First()
		f.First = &first
	}
}

// watched tells how much has been read, and reads nothing when the context is done.
type watched struct {
	io.ReaderAt
	ctx    context.Context
	onRead func(done, total int64)
	done   atomic.Int64
	total  int64
}

func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := w.ReaderAt.ReadAt(p, off)
	w.onRead(min(w.done.Add(int64(n)), w.total), w.total)
	return n, err
}

// watchedArea can be written too.
type watchedArea struct {
	*watched
	io.WriterAt
}

func verityRepairCommand(c *common) *cobra.Command {
	v := verities{common: c}
	cmd := &cobra.Command{
		Use:   "repair IMAGE",
		Short: "Repair the damaged blocks of an image",
		Long: `Finds the damaged blocks and corrects them with the error correction, as dm-verity does
when it reads them. A block is written, in place, only if the root of the hash tree proves
that it is right then. The exit code is 1 if damage is left.`,
		Example: `  cowtool verity repair system.img
  cowtool verity repair --tree system.tree --fec system.fec --root HEX --salt HEX system.img`,
		RunE: func(cmd *cobra.Command, args []string) error { return v.repair(cmd.Context(), v.output(cmd), args[0]) },
	}
	v.flags(cmd)
	v.apart(cmd)
	cmd.Flags().StringVar(&v.fec, "fec", "", "the error correction, if it is a `FILE` of its own")
	cmd.Flags().IntVar(&v.roots, "fec-roots", 2, "its parity bytes, 2 to 24, with --fec")
	_ = cmd.MarkFlagFilename("fec")
	return cmd
}

func (v *verities) repair(ctx context.Context, out cli.Output, name string) error {
	p, err := v.openProtected(name, true)
	if err != nil {
		return err
	}
	defer p.close()
	switch {
	case p.tree == nil && p.treeSize > 0:
		return fmt.Errorf("%s: %w: expected one, or --tree: without it nobody knows what is damaged", name, errNoTree)
	case p.Parity == nil:
		return fmt.Errorf("%s: expected error correction, or --fec, found none", name)
	}
	meter := out.Meter("repairing")
	repaired, left, err := p.Repair(watchedArea{&watched{ReaderAt: p.area, ctx: ctx, onRead: meter.Update, total: p.Size}, p.area})
	meter.End()
	if err != nil {
		return inFile(name, err)
	}
	for _, d := range p.open {
		if err := d.Sync(); err != nil {
			return inFile(d.Path(), err)
		}
	}
	f := &damageFacts{Event: "result", File: name, Blocks: p.Size / p.blockSize, Root: fmt.Sprintf("%x", p.Root),
		Repaired: repaired.Data.Count(), RepairedTree: repaired.Tree.Count()}
	f.tell(left)
	if out.JSON {
		err = out.Emit(f)
	} else if n := f.Repaired + f.RepairedTree; n > 0 || f.Good {
		_, err = fmt.Fprintf(out.Stdout, "%s: repaired %d blocks of data and %d of the hash tree\n", name, f.Repaired, f.RepairedTree)
	}
	return errors.Join(inFile(name, left.Err()), err)
}
