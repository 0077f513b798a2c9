package main

import (
	"bufio"
	"errors"
	"fmt"
	"image/color"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/payload/pb"
)

type payloadMap struct {
	payloads
	out string
}

func payloadMapCommand(c *common) *cobra.Command {
	m := payloadMap{payloads: payloads{common: c}}
	cmd := &cobra.Command{
		Use:   "map -o PICTURE.svg [--partition PATTERNS] PAYLOAD",
		Short: "Draw what the bytes of a payload are spent on",
		Long: `Draws two bars for each partition: how many blocks each type of operation makes, and
how many bytes of the payload it takes for that. All bars of blocks have one scale, and
all bars of bytes another. The same payload gives the same picture.`,
		Example: `  cowtool payload map -o delta.svg delta.zip`,
		RunE:    func(cmd *cobra.Command, args []string) error { return m.run(m.output(cmd), args[0]) },
	}
	m.flags(cmd)
	outFlag(cmd, &m.out, "the picture to write: FILE.svg")
	_ = cmd.MarkFlagFilename("output", "svg")
	return cmd
}

func (m *payloadMap) run(out cli.Output, name string) error {
	if strings.ToLower(filepath.Ext(m.out)) != ".svg" {
		return cli.Usagef("-o: expected a name that ends in .svg, found %q", m.out)
	}
	if err := cli.Distinct(m.out, name); err != nil {
		return err
	}
	o, err := m.open(name)
	if err != nil {
		return err
	}
	defer o.close()
	file, err := cli.CreateOut(m.out)
	if err != nil {
		return err
	}
	defer file.Discard()
	w := bufio.NewWriter(file)
	c := newBarChart(filepath.Base(name), o.File.Size(), m.partitions(o.Metadata))
	if err := errors.Join(c.draw(w), w.Flush()); err != nil {
		return fmt.Errorf("write %s: %w", m.out, err)
	}
	return file.Commit()
}

// typeColours are by what a type does: raw data and their compressed forms are warm,
// what comes out of the old partition is cold, and zeros are dark.
var typeColours = map[pb.InstallOperation_Type]color.NRGBA{
	pb.InstallOperation_REPLACE:          {0xb3, 0x3a, 0x1d, 0xff},
	pb.InstallOperation_REPLACE_BZ:       {0xe0, 0x6c, 0x1f, 0xff},
	pb.InstallOperation_REPLACE_XZ:       {0xf2, 0xa1, 0x3c, 0xff},
	pb.InstallOperation_REPLACE_ZSTD:     {0xf7, 0xcf, 0x6b, 0xff},
	pb.InstallOperation_SOURCE_COPY:      {0x2b, 0x7a, 0xc9, 0xff},
	pb.InstallOperation_SOURCE_BSDIFF:    {0x5a, 0x3f, 0x9e, 0xff},
	pb.InstallOperation_BROTLI_BSDIFF:    {0x7d, 0x4a, 0xb8, 0xff},
	pb.InstallOperation_PUFFDIFF:         {0xa8, 0x6f, 0xd8, 0xff},
	pb.InstallOperation_ZUCCHINI:         {0x2f, 0x8f, 0x83, 0xff},
	pb.InstallOperation_LZ4DIFF_BSDIFF:   {0x3f, 0xa7, 0x5c, 0xff},
	pb.InstallOperation_LZ4DIFF_PUFFDIFF: {0x86, 0xc4, 0x6a, 0xff},
	pb.InstallOperation_ZERO:             {0x3d, 0x46, 0x52, 0xff},
	pb.InstallOperation_DISCARD:          {0x8a, 0x94, 0xa0, 0xff},
}

// barChart is what there is to draw.
type barChart struct {
	title, subtitle       string
	partitions            []partitionBars
	mostBlocks, mostBytes uint64
	types                 []pb.InstallOperation_Type
}

type partitionBars struct {
	name          string
	stats         []typeStats
	blocks, bytes uint64
}

func newBarChart(name string, size int64, partitions []*pb.PartitionUpdate) *barChart {
	c := &barChart{title: name, subtitle: "payload of " + cli.Bytes(size) + "; above, blocks of the new partition; below, bytes of the payload", mostBlocks: 1, mostBytes: 1}
	seen := map[string]bool{}
	for _, p := range partitions {
		b := partitionBars{name: p.GetPartitionName(), stats: statsOf(p)}
		for _, s := range b.stats {
			b.blocks, b.bytes = b.blocks+s.Blocks, b.bytes+s.Bytes
			seen[s.Type] = true
		}
		c.mostBlocks, c.mostBytes = max(c.mostBlocks, b.blocks), max(c.mostBytes, b.bytes)
		c.partitions = append(c.partitions, b)
	}
	for t := range pb.InstallOperation_Type(len(pb.InstallOperation_Type_name)) {
		if seen[t.String()] {
			c.types = append(c.types, t)
		}
	}
	return c
}

// The picture's measures, in pixels.
const (
	chartMargin = 24
	chartBars   = 760 // the longest bar
	chartName   = 150
	chartAmount = 150
	chartBar    = 18
	chartRow    = 60
	chartTop    = 96
	chartLegend = 22
)

func (c *barChart) draw(w io.Writer) error {
	width := 2*chartMargin + chartName + chartBars + chartAmount
	legend := chartTop + len(c.partitions)*chartRow + 12
	height := legend + (len(c.types)+3)/4*chartLegend + chartMargin
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="14">`+"\n",
		width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="%s"/>`+"\n", width, height, hexColour(paper))
	svgText(&b, chartMargin, chartMargin+20, "start", ink, ` font-size="22" font-weight="600"`, c.title)
	svgText(&b, chartMargin, chartMargin+44, "start", faint, "", c.subtitle)
	for i, p := range c.partitions {
		y := chartTop + i*chartRow
		svgText(&b, chartMargin, y+chartBar+5, "start", ink, ` font-weight="600"`, p.name)
		c.bar(&b, y, p.stats, c.mostBlocks, func(s typeStats) uint64 { return s.Blocks }, "blocks", blocksText(int64(p.blocks)))
		c.bar(&b, y+chartBar+3, p.stats, c.mostBytes, func(s typeStats) uint64 { return s.Bytes }, "bytes", cli.Bytes(int64(p.bytes)))
	}
	for i, t := range c.types {
		x, y := chartMargin+i%4*(width-2*chartMargin)/4, legend+i/4*chartLegend
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="14" height="14" fill="%s"/>`+"\n", x, y, hexColour(typeColours[t]))
		svgText(&b, x+22, y+12, "start", ink, "", t.String())
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// bar draws one bar, a piece a type, and the sum behind it.
func (c *barChart) bar(b *strings.Builder, y int, stats []typeStats, most uint64, amount func(typeStats) uint64, unit, sum string) {
	x, done := chartMargin+chartName, uint64(0)
	at := func(n uint64) int { return x + int(float64(n)/float64(most)*chartBars) }
	for _, s := range stats {
		n := amount(s)
		if n == 0 {
			continue
		}
		from, to := at(done), at(done+n)
		colour := typeColours[pb.InstallOperation_Type(pb.InstallOperation_Type_value[s.Type])]
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"><title>%s: %d %s in %d operations</title></rect>`+"\n",
			from, y, max(1, to-from), chartBar, hexColour(colour), s.Type, n, unit, s.Operations)
		done += n
	}
	svgText(b, at(done)+8, y+chartBar-4, "start", faint, ` font-size="12"`, sum)
}
