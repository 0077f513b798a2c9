package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/compress"
	"cowbird/formats/cowfile"
)

// form are the flags for what COW to write, as they were typed.
type form struct {
	compression string
	format      string
	unit        cli.Size
	given       func(flag string) bool
}

// flags adds the flags. Without defaults, otherwise says what holds.
func (f *form) flags(cmd *cobra.Command, otherwise string) {
	if otherwise != "" {
		otherwise = " (default " + otherwise + ")"
	}
	flags := cmd.Flags()
	f.given = flags.Changed
	flags.StringVar(&f.compression, "compression", f.compression, "`ALGORITHM[,LEVEL]`: none, gz, brotli, lz4 or zstd"+otherwise)
	flags.StringVar(&f.format, "format", f.format, "v3 or v2"+otherwise)
	flags.Var(&f.unit, "unit", "largest piece that is compressed as one: 4K, 8K, … 256K"+otherwise)
	values(cmd, "compression", "none", "gz", "brotli", "lz4", "lz4,9", "zstd", "zstd,9", "zstd,19")
	values(cmd, "format", "v3", "v2")
	values(cmd, "unit", "4K", "8K", "16K", "32K", "64K", "128K", "256K")
}

// createForm is what cowtool create makes unless it is told otherwise.
var createForm = form{compression: "lz4", format: "v3", unit: 64 << 10}

// or sets what was not given.
func (f form) or(defaults form) form {
	if !f.given("compression") {
		f.compression = defaults.compression
	}
	if !f.given("format") {
		f.format = defaults.format
	}
	if !f.given("unit") {
		f.unit = defaults.unit
	}
	return f
}

// parsedForm is a form that has been checked. What was left out is zero.
type parsedForm struct {
	version     int
	compression cowfile.Compression
	level       int
	levelGiven  bool
	unit        int // bytes
}

// parse checks what was typed.
func (f *form) parse() (p parsedForm, err error) {
	switch f.format {
	case "v2":
		p.version = 2
	case "v3":
		p.version = 3
	case "":
		if f.given("format") {
			return p, cli.Usagef("--format: expected v3 or v2, found nothing")
		}
	default:
		return p, cli.Usagef("--format: expected v3 or v2, found %q", f.format)
	}
	if err := f.parseUnit(&p); err != nil {
		return p, err
	}
	p.compression, p.level, err = cowfile.ParseCompression(f.compression)
	p.levelGiven = strings.Contains(f.compression, ",")
	if err == nil {
		_, err = p.compressor(p.compression, max(p.unit, cowfile.BlockSize))
	}
	if err != nil {
		return p, cli.UsageError{Err: fmt.Errorf("--compression: %w", err)}
	}
	return p, nil
}

func (f *form) parseUnit(p *parsedForm) error {
	if p.unit = int(min(f.unit, 1<<30)); !f.given("unit") {
		if p.version == 2 {
			p.unit = 0
		}
		return nil
	}
	if u := p.unit; u < cowfile.BlockSize || u > cowfile.MaxUnit || u&(u-1) != 0 {
		return cli.Usagef("--unit: expected 4K, 8K, 16K, 32K, 64K, 128K or 256K, found %s", f.unit.String())
	}
	if p.version == 2 && p.unit != cowfile.BlockSize {
		return cli.Usagef("--unit: format v2 has units of 4K only: leave --unit out, or use --format v3")
	}
	return nil
}

// compressor makes a compressor of the level that was given, if one was.
func (p parsedForm) compressor(c cowfile.Compression, maxUnit int) (func(dst, unit []byte) ([]byte, error), error) {
	level := c.DefaultLevel()
	if p.levelGiven {
		level = p.level
	}
	return compress.New(c.String(), level, maxUnit)
}
