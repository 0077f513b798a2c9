package main

import (
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
)

// canvas is a picture made of dots.
type canvas struct {
	img  *image.NRGBA
	font map[rune]glyph
}

func drawPNG(w io.Writer, p *picture) error {
	l := p.layout()
	c := canvas{img: image.NewNRGBA(image.Rect(0, 0, l.width, l.height)), font: loadFont()}
	c.rect(0, 0, l.width, l.height, paper)
	c.text(l.margin, l.titleBase, 3, p.title, ink)
	c.text(l.margin, l.titleNext, 2, p.subtitle, faint)
	for i := range p.cells {
		x, y := l.origin(p, i)
		c.rect(x, y, l.cell-l.gap, l.cell-l.gap, p.colour(i))
	}
	c.legend(l, p)
	return png.Encode(w, c.img)
}

func (c canvas) legend(l layout, p *picture) {
	for i, row := range p.legend() {
		y := l.legendTop + i*l.line
		colour := ink
		if i == 0 {
			colour = faint
		} else {
			c.rect(l.margin, y, l.swatch, l.swatch, kindColours[i-1])
		}
		c.text(l.margin+l.swatch+8, y, 2, row[0], colour)
		for k, value := range row[1:] {
			c.text(l.margin+l.columns[k+1]-textWidth(value, 2), y, 2, value, colour)
		}
	}
}

func (c canvas) rect(x, y, w, h int, colour color.NRGBA) {
	draw.Draw(c.img, image.Rect(x, y, x+w, y+h), image.NewUniform(colour), image.Point{}, draw.Src)
}

// text draws s with dots of scale by scale.
func (c canvas) text(x, y, scale int, s string, colour color.NRGBA) {
	for _, r := range s {
		g, ok := c.font[r]
		if !ok {
			g = c.font['?']
		}
		for dy, row := range g {
			for dx := range glyphWidth {
				if row>>(glyphWidth-1-dx)&1 != 0 {
					c.rect(x+dx*scale, y+dy*scale, scale, scale, colour)
				}
			}
		}
		x += glyphStep * scale
	}
}

func textWidth(s string, scale int) int { return len([]rune(s)) * glyphStep * scale }
