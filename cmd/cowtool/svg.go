package main

import (
	"fmt"
	"image/color"
	"io"
	"strings"
)

func drawSVG(w io.Writer, p *picture) error {
	l := p.layout()
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="14">`+"\n",
		l.width, l.height, l.width, l.height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="%s"/>`+"\n", l.width, l.height, hexColour(paper))
	svgText(&b, l.margin, l.titleBase+20, "start", ink, ` font-size="22" font-weight="600"`, p.title)
	svgText(&b, l.margin, l.titleNext+12, "start", faint, "", p.subtitle)
	svgCells(&b, l, p)
	svgLegend(&b, l, p)
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// svgCells draws neighbours of one colour as one shape, which keeps the file
// small, and says what each is.
func svgCells(b *strings.Builder, l layout, p *picture) {
	for i := 0; i < len(p.cells); {
		colour, n := p.colour(i), 1
		for i+n < len(p.cells) && (i+n)%p.columns != 0 && p.colour(i+n) == colour {
			n++
		}
		x, y := l.origin(p, i)
		first := int64(i) * p.perCell
		last := min(int64(i+n)*p.perCell, p.blocks) - 1
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"><title>blocks %d to %d: %s</title></rect>`+"\n",
			x, y, n*l.cell-l.gap, l.cell-l.gap, hexColour(colour), first, last, describe(p.cells[i:i+n]))
		i += n
	}
}

func describe(cells []cell) string {
	var sum cell
	for _, c := range cells {
		for k, n := range c.blocks {
			sum.blocks[k] += n
			sum.stored[k] += c.stored[k]
		}
	}
	var parts []string
	for k, n := range sum.blocks {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, kindNames[k]))
		}
	}
	if n := sum.bytes(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d bytes of the COW", n))
	}
	return strings.Join(parts, ", ")
}

func svgLegend(b *strings.Builder, l layout, p *picture) {
	for i, row := range p.legend() {
		y := l.legendTop + i*l.line
		colour := ink
		if i == 0 {
			colour = faint
		} else {
			fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"/>`+"\n", l.margin, y, l.swatch, l.swatch, hexColour(kindColours[i-1]))
		}
		svgText(b, l.margin+l.swatch+8, y+12, "start", colour, "", row[0])
		for k, value := range row[1:] {
			svgText(b, l.margin+l.columns[k+1], y+12, "end", colour, "", value)
		}
	}
}

func svgText(b *strings.Builder, x, y int, anchor string, colour color.NRGBA, more, text string) {
	if text == "" {
		return
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="%s" fill="%s"%s>%s</text>`+"\n", x, y, anchor, hexColour(colour), more, svgEscaper.Replace(text))
}

var svgEscaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

func hexColour(c color.NRGBA) string { return fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B) }
