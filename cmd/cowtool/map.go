package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/cowfile"
)

type mapOptions struct {
	common *common
	out    string
	base   string
	size   cli.Size
	cost   bool
}

func mapCommand(c *common) *cobra.Command {
	o := mapOptions{common: c}
	cmd := &cobra.Command{
		Use:   "map -o PICTURE COW",
		Short: "Draw what a COW does to the partition",
		Long: `Draws the partition as a field of cells, from left to right and from top to
bottom. Each cell is a range of blocks. Its colour is the kind of op that most of
its changed blocks have, the paler the fewer they are; unchanged blocks are grey.
The picture is a PNG or an SVG, by the name of the file. The same COW gives the
same picture.

With --cost the colour tells instead what the blocks take of the COW: it is that of
the kind of op with most bytes, the paler the fewer bytes there are; what costs
nothing is grey. cowtool create --explain says which files that is.

The partition ends with the last block that has an op, unless --base or --size
says how large it is.`,
		Example: `  cowtool map -o update.png update.cow
  cowtool map --base old.img -o update.svg update.cow
  cowtool map --cost -o update.svg update.cow`,
		Args:              cli.Args("COW"),
		ValidArgsFunction: fileArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(o.common.output(cmd), args[0])
		},
	}
	outFlag(cmd, &o.out, "the picture to write: FILE.png or FILE.svg")
	_ = cmd.MarkFlagFilename("output", "png", "svg")
	baseFlag(cmd, &o.base, "the partition, for its size")
	cmd.Flags().BoolVar(&o.cost, "cost", false, "show what takes bytes of the COW")
	cmd.Flags().Var(&o.size, "size", "size of the partition")
	return cmd
}

func (o *mapOptions) run(out cli.Output, cowPath string) error {
	draw, err := o.drawer()
	if err != nil {
		return err
	}
	if err := cli.Distinct(o.out, cowPath, o.base); err != nil {
		return err
	}
	p, err := o.load(cowPath)
	if err != nil {
		return err
	}
	file, err := cli.CreateOut(o.out)
	if err != nil {
		return err
	}
	defer file.Discard()
	w := bufio.NewWriter(file)
	if err := errors.Join(draw(w, p), w.Flush()); err != nil {
		return fmt.Errorf("write %s: %w", o.out, err)
	}
	if err := file.Commit(); err != nil || !out.JSON {
		return err
	}
	return out.Emit(p.summary())
}

func (o *mapOptions) drawer() (func(io.Writer, *picture) error, error) {
	switch strings.ToLower(filepath.Ext(o.out)) {
	case ".png":
		return drawPNG, nil
	case ".svg":
		return drawSVG, nil
	}
	return nil, cli.Usagef("-o: expected a name that ends in .png or .svg, found %q", o.out)
}

func (o *mapOptions) load(cowPath string) (*picture, error) {
	paths := []string{cowPath}
	if o.base != "" {
		paths = append(paths, o.base)
	}
	inputs, err := openAll(paths...)
	if err != nil {
		return nil, err
	}
	defer inputs.close()
	f, err := cowfile.Open(inputs[0], inputs[0].Size(), nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cowPath, err)
	}
	size := int64(o.size)
	if o.base != "" && size == 0 {
		size = inputs[1].Size()
	}
	return newPicture(filepath.Base(cowPath), f, size, o.cost), nil
}
