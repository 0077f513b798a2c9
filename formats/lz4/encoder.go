package lz4

import (
	"errors"
	"fmt"
	"slices"
)

// MaxInput is the length of the longest block, in bytes.
const MaxInput = 0x7e000000

// The ranges of NewFast and NewHigh.
const (
	MaxAcceleration = 65537
	MinHigh         = 3
	MaxHigh         = 12
)

var (
	// ErrTooLong means that a block is longer than MaxInput.
	ErrTooLong = errors.New("lz4: block too long")
	// ErrLevel means that there is no such level or acceleration.
	ErrLevel = errors.New("lz4: no such level")
)

// Bound returns how long the encoding of a block of n bytes can be at most, in
// bytes.
func Bound(n int) int { return n + n/255 + 16 }

// Encoder makes blocks. It belongs to one goroutine at a time and keeps only
// tables between blocks, which do not influence the next one.
type Encoder struct {
	search interface{ encode(*block) }
	b      block
}

// NewFast returns an encoder that takes the first match it finds. An
// acceleration of 1 is the default of LZ4; larger ones, up to MaxAcceleration,
// skip more of what does not match. It holds 48 KiB.
func NewFast(acceleration int) (*Encoder, error) {
	if acceleration < 1 || acceleration > MaxAcceleration {
		return nil, fmt.Errorf("%w: expected an acceleration from 1 to %d, found %d", ErrLevel, MaxAcceleration, acceleration)
	}
	return &Encoder{search: &fastSearch{acceleration: acceleration}}, nil
}

// NewHigh returns an encoder that searches for the longest matches, at a level
// from MinHigh to MaxHigh: up to 9 by comparing what overlaps, from 10 on by
// the price of every way to write the block. It holds 256 KiB, from level 10
// on 400 KiB.
func NewHigh(level int) (*Encoder, error) {
	if level < MinHigh || level > MaxHigh {
		return nil, fmt.Errorf("%w: expected one from %d to %d, found %d", ErrLevel, MinHigh, MaxHigh, level)
	}
	if p := high[level]; p.goodLength > 0 {
		s := &pricedSearch{goodLength: p.goodLength, thorough: level == MaxHigh}
		s.effort = p.effort
		return &Encoder{search: s}, nil
	}
	s := new(lazySearch)
	s.effort = high[level].effort
	return &Encoder{search: s}, nil
}

// high has the parameters of the levels.
var high = [MaxHigh + 1]struct {
	effort
	goodLength int // a match that is longer is taken at once
}{
	3:  {effort{tries: 4}, 0},
	4:  {effort{tries: 8}, 0},
	5:  {effort{tries: 16}, 0},
	6:  {effort{tries: 32}, 0},
	7:  {effort{tries: 64}, 0},
	8:  {effort{tries: 128}, 0},
	9:  {effort{tries: 256, runs: true}, 0},
	10: {effort{tries: 96, runs: true, detours: true}, 64},
	11: {effort{tries: 512, runs: true, detours: true}, 128},
	12: {effort{tries: 16384, runs: true, detours: true}, horizon - 1},
}

// Encode appends src as one block to dst and returns the result, which is at
// most Bound(len(src)) bytes longer. With that much capacity in dst nothing is
// allocated; what dst's array holds behind the result is undefined. dst and
// src must not overlap. Equal src give equal bytes. The only error is
// ErrTooLong.
func (e *Encoder) Encode(dst, src []byte) ([]byte, error) {
	if err := checkLength(len(src)); err != nil {
		return nil, err
	}
	bound := Bound(len(src))
	dst = slices.Grow(dst, bound)
	_, n := e.encode(dst[len(dst):len(dst)+bound], src, unlimited)
	return dst[:len(dst)+n], nil
}

// Fill encodes as much of the front of src as fits into dst, and mostly fills
// it: it returns how many bytes of src it has taken and how many of dst it has
// written. The rest of dst is undefined. An empty dst takes nothing. Otherwise
// Fill is like Encode.
func (e *Encoder) Fill(dst, src []byte) (taken, written int, err error) {
	if err := checkLength(len(src)); err != nil || len(dst) == 0 {
		return 0, 0, err
	}
	taken, written = e.encode(dst, src, len(dst))
	return taken, written, nil
}

func checkLength(n int) error {
	if n > MaxInput {
		return fmt.Errorf("%w: expected at most %d bytes, found %d", ErrTooLong, MaxInput, n)
	}
	return nil
}

func (e *Encoder) encode(dst, src []byte, limit int) (taken, written int) {
	e.b = block{src: src, dst: dst, limit: limit}
	e.search.encode(&e.b)
	taken, written = e.b.anchor, e.b.op
	e.b = block{} // keep no hold of the caller's bytes
	return taken, written
}
