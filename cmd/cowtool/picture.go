package main

import (
	"fmt"
	"image/color"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/cowfile"
)

// kind is what happens to a block.
type kind int

const (
	unchanged kind = iota
	copied
	xored
	replaced
	zeroed
	kinds
)

var kindNames = [kinds]string{"unchanged", "copy", "xor", "replace", "zero"}

// kindColours can be told apart by people who do not see red or green, and in
// print.
var kindColours = [kinds]color.NRGBA{
	unchanged: {0xe4, 0xe7, 0xeb, 0xff},
	copied:    {0x2b, 0x7a, 0xc9, 0xff},
	xored:     {0x7d, 0x4a, 0xb8, 0xff},
	replaced:  {0xe0, 0x6c, 0x1f, 0xff},
	zeroed:    {0x3d, 0x46, 0x52, 0xff},
}

var (
	paper = color.NRGBA{0xff, 0xff, 0xff, 0xff}
	ink   = color.NRGBA{0x1c, 0x22, 0x2b, 0xff}
	faint = color.NRGBA{0x6b, 0x74, 0x80, 0xff}
)

// The field has at most this many cells.
const (
	maxColumns = 128
	maxRows    = 64
)

// picture is what there is to draw, whatever it is drawn with.
type picture struct {
	title, subtitle string
	blocks          int64 // of the partition
	perCell         int64 // blocks
	columns         int
	cells           []cell
	totals          [kinds]total
	cost            bool // colours are about bytes in the COW, not about blocks
}

// cell counts the blocks of each kind in its range, and their bytes in the COW.
type cell struct{ blocks, stored [kinds]int64 }

type total struct{ ops, blocks, stored int64 }

// newPicture counts what f does to a partition of size bytes, or of as many
// as f covers.
func newPicture(name string, f *cowfile.File, size int64, cost bool) *picture {
	c := f.Counts()
	blocks := (size + cowfile.BlockSize - 1) / cowfile.BlockSize
	if c.Ops() > 0 {
		blocks = max(blocks, int64(c.LastBlock)+1)
	}
	p := &picture{blocks: max(blocks, 1), cost: cost}
	p.layOut()
	for i := range f.NumOps() {
		p.add(f.Op(i))
	}
	p.fillUp()
	p.title = name
	p.subtitle = fmt.Sprintf("partition %s, COW %s, %s, a cell is %s", cli.Bytes(p.blocks*cowfile.BlockSize),
		cli.Bytes(f.Size()), f.Compression(), blocksText(p.perCell))
	return p
}

func blocksText(n int64) string {
	if n == 1 {
		return "1 block"
	}
	return fmt.Sprintf("%d blocks", n)
}

// layOut chooses the cells: twice as many columns as rows, about.
func (p *picture) layOut() {
	const most = maxColumns * maxRows
	p.perCell = (p.blocks + most - 1) / most
	n := (p.blocks + p.perCell - 1) / p.perCell
	p.columns = 16
	for p.columns < maxColumns && int64(p.columns*p.columns)/2 < n {
		p.columns += 8
	}
	p.cells = make([]cell, n)
}

func (p *picture) rows() int { return (len(p.cells) + p.columns - 1) / p.columns }

func kindOf(t cowfile.OpType) kind {
	switch t {
	case cowfile.OpCopy:
		return copied
	case cowfile.OpXor:
		return xored
	case cowfile.OpReplace:
		return replaced
	case cowfile.OpZero:
		return zeroed
	}
	return unchanged
}

func (p *picture) add(o cowfile.Op) {
	k := kindOf(o.Type)
	p.totals[k].ops++
	p.totals[k].blocks += int64(o.Blocks())
	p.totals[k].stored += int64(o.DataLength)
	n, data := int64(o.Blocks()), int64(o.DataLength)
	for i := range n {
		c := &p.cells[(int64(o.NewBlock)+i)/p.perCell]
		c.blocks[k]++
		c.stored[k] += data*(i+1)/n - data*i/n
	}
}

// fillUp counts the blocks that have no op.
func (p *picture) fillUp() {
	left := p.blocks
	for i := range p.cells {
		c := &p.cells[i]
		c.blocks[unchanged] = min(p.perCell, left) - c.changed()
		left -= p.perCell
		p.totals[unchanged].blocks += c.blocks[unchanged]
	}
}

func (c *cell) changed() (n int64) {
	for k := copied; k < kinds; k++ {
		n += c.blocks[k]
	}
	return n
}

// colour is that of the kind that most of the changed blocks have, or of the one that
// takes most bytes of the COW. The paler it is, the more of the cell is unchanged, or
// the fewer bytes it takes; but one changed block, or byte, shows.
func (p *picture) colour(i int) color.NRGBA {
	c := &p.cells[i]
	counts, n, all := c.blocks, c.changed(), c.changed()+c.blocks[unchanged]
	if p.cost {
		counts, n, all = c.stored, c.bytes(), all*cowfile.BlockSize
	}
	best := unchanged
	for k := copied; k < kinds; k++ {
		if counts[k] > 0 && (best == unchanged || counts[k] > counts[best]) {
			best = k
		}
	}
	if best == unchanged {
		return kindColours[unchanged]
	}
	const least = 30 // percent
	return mix(kindColours[unchanged], kindColours[best], least+(100-least)*min(n, all)/all)
}

// bytes are those of the COW that the cell takes.
func (c *cell) bytes() (n int64) {
	for _, stored := range c.stored {
		n += stored
	}
	return n
}

// mix gives percent of b and the rest of a.
func mix(a, b color.NRGBA, percent int64) color.NRGBA {
	part := func(x, y uint8) uint8 { return uint8((int64(x)*(100-percent) + int64(y)*percent + 50) / 100) }
	return color.NRGBA{part(a.R, b.R), part(a.G, b.G), part(a.B, b.B), 0xff}
}

// legend is a row of text for each kind, in columns.
func (p *picture) legend() [][]string {
	rows := [][]string{{"", "blocks", "bytes", "share", "ops", "in the COW"}}
	for k, t := range p.totals {
		row := []string{kindNames[k], fmt.Sprint(t.blocks), cli.Bytes(t.blocks * cowfile.BlockSize), fmt.Sprintf("%.1f %%", 100*float64(t.blocks)/float64(p.blocks)), fmt.Sprint(t.ops), cli.Bytes(t.stored)}
		if kind(k) == unchanged {
			row[4], row[5] = "-", "-"
		} else if t.stored == 0 {
			row[5] = "-"
		}
		rows = append(rows, row)
	}
	return rows
}

// summary is the picture for programs.
func (p *picture) summary() any {
	blocks := map[string]int64{}
	for k, t := range p.totals {
		blocks[kindNames[k]] = t.blocks
	}
	return struct {
		Event    string           `json:"event"`
		Blocks   int64            `json:"blocks"`
		PerCell  int64            `json:"blocks_per_cell"`
		Columns  int              `json:"columns"`
		Rows     int              `json:"rows"`
		ByKind   map[string]int64 `json:"blocks_by_kind"`
		Title    string           `json:"title"`
		Subtitle string           `json:"subtitle"`
	}{"result", p.blocks, p.perCell, p.columns, p.rows(), blocks, p.title, p.subtitle}
}

// layout places the parts of a picture, in dots.
type layout struct {
	cell, gap, margin    int
	width, height        int
	fieldTop, legendTop  int
	line                 int // height of a line of text
	swatch               int
	columns              []int // right edges of the legend's columns
	titleBase, titleNext int   // tops of the two lines above the field
}

func (p *picture) layout() layout {
	l := layout{margin: 24, line: 22, swatch: 14, titleBase: 24, titleNext: 54}
	l.cell = max(8, min(24, 1024/p.columns))
	l.gap = 1
	l.fieldTop = 84
	l.legendTop = l.fieldTop + p.rows()*l.cell + 24
	l.columns = []int{150, 250, 370, 470, 570, 730}
	l.width = max(p.columns*l.cell, l.columns[len(l.columns)-1]) + 2*l.margin
	l.height = l.legendTop + (int(kinds)+1)*l.line + l.margin
	return l
}

// origin is the upper left corner of cell i.
func (l layout) origin(p *picture, i int) (x, y int) {
	return l.margin + i%p.columns*l.cell, l.fieldTop + i/p.columns*l.cell
}
