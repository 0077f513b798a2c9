package zucchini

import (
	"bytes"
	"fmt"
	"slices"
)

// text is an image of zucchini's text format, with which its makers try
// algorithms. References are written as line and column in one of four kinds of
// brackets, with one to three digits each: (12,07), or <+1,-3> from where the
// reference is.
type text struct {
	img   []byte
	lines []uint32 // where they begin, and the end
}

const (
	textHead = "ZTxt"
	textFoot = "txTZ\n"
	textMax  = 1000 // bound of lines and columns
)

func isText(b []byte) bool {
	return len(b) >= len(textHead)+len(textFoot) && bytes.HasPrefix(b, []byte(textHead))
}

// parseText returns nil for what is no text image. What follows it is cut off.
func parseText(b []byte) *text {
	if len(b) >= maxOffset || !isText(b) {
		return nil
	}
	i := bytes.Index(b, []byte(textFoot))
	if i < 0 {
		return nil
	}
	t := &text{img: b[:i+len(textFoot)], lines: []uint32{0}}
	for i, c := range t.img {
		if c != '\n' {
			continue
		}
		begin := t.lines[len(t.lines)-1]
		if len(t.lines) >= textMax || uint32(i)+1-begin >= textMax {
			return nil
		}
		t.lines = append(t.lines, uint32(i)+1)
	}
	return t
}

// place is a line and a column, counted from 1, or a distance.
type place struct{ line, column int }

func (t *text) offset(p place) uint32 {
	if p.line < 1 || p.line >= len(t.lines) || p.column < 1 || p.column > int(t.lines[p.line]-t.lines[p.line-1]) {
		return badOffset
	}
	return t.lines[p.line-1] + uint32(p.column) - 1
}

func (t *text) place(offset uint32) (place, bool) {
	i, found := slices.BinarySearch(t.lines, offset)
	if found {
		i++
	}
	if i >= len(t.lines) {
		return place{}, false
	}
	return place{i, int(offset-t.lines[i-1]) + 1}, true
}

// textForm is how references of one type look.
type textForm struct {
	open, close byte
	digits      int
	relative    bool
}

func (f textForm) width() int {
	if f.relative {
		return 2*f.digits + 5
	}
	return 2*f.digits + 3
}

func (t *text) groups() []group {
	var all []group
	for pool, brackets := range []string{"<>", "{}", "[]", "()"} {
		for i := range 6 {
			f := textForm{brackets[0], brackets[1], i%3 + 1, i >= 3}
			all = append(all, group{pool: byte(pool), width: uint32(f.width()), whole: true,
				read:  func() []reference { return t.read(f) },
				write: func(img []byte, r reference) { t.write(img, f, r) }})
		}
	}
	return all
}

func (t *text) read(f textForm) []reference {
	var refs []reference
	for at := 0; at+f.width() <= len(t.img); at++ {
		p, ok := f.parse(t.img[at : at+f.width()])
		if !ok {
			continue
		}
		if f.relative {
			here, _ := t.place(uint32(at))
			p = place{here.line + p.line, here.column + p.column}
		}
		if target := t.offset(p); target != badOffset {
			refs = append(refs, reference{uint32(at), target})
			at += f.width() - 1
		}
	}
	return refs
}

func (f textForm) parse(b []byte) (p place, ok bool) {
	half := (f.width() - 1) / 2
	if b[0] != f.open || b[half] != ',' || b[len(b)-1] != f.close {
		return p, false
	}
	line, ok := f.number(b[1:half])
	column, ok2 := f.number(b[half+1 : len(b)-1])
	return place{line, column}, ok && ok2
}

func (f textForm) number(b []byte) (v int, ok bool) {
	sign := 1
	if f.relative {
		if b[0] != '+' && b[0] != '-' {
			return 0, false
		}
		if b[0] == '-' {
			sign = -1
		}
		b = b[1:]
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = 10*v + int(c-'0')
	}
	return sign * v, v > 0 || sign > 0
}

// write leaves line ends alone: they are what places are counted by.
func (t *text) write(img []byte, f textForm, r reference) {
	p, ok := t.place(r.target)
	if !ok {
		return
	}
	form := fmt.Sprintf("%c%%0%dd,%%0%[2]dd%c", f.open, f.digits, f.close)
	if f.relative {
		here, ok := t.place(r.location)
		if !ok {
			return
		}
		p = place{p.line - here.line, p.column - here.column}
		form = fmt.Sprintf("%c%%+0%dd,%%+0%[2]dd%c", f.open, f.digits+1, f.close)
	}
	at := img[r.location : r.location+uint32(f.width())]
	if s := fmt.Sprintf(form, p.line, p.column); len(s) == len(at) && bytes.IndexByte(at, '\n') < 0 {
		copy(at, s)
	}
}
