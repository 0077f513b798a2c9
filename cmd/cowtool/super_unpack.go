package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/lpmeta"
)

type superUnpack struct {
	*common
	out   string
	globs []string
	slot  int
}

func superUnpackCommand(c *common) *cobra.Command {
	u := superUnpack{common: c}
	cmd := &cobra.Command{
		Use:   "unpack -o DIR [--partition PATTERNS] [--slot N] SUPER",
		Short: "Make images of the partitions of a super partition",
		Long: `Makes NAME.img for each partition of a slot in the folder that -o names. An image gets
its name when it is complete. Partitions without contents are left out.`,
		Example: `  cowtool super unpack -o images super.img
  cowtool super unpack -o images --partition 'system*,vendor_a' super.img`,
		RunE: func(cmd *cobra.Command, args []string) error { return u.run(u.output(cmd), args[0]) },
	}
	superFlags(cmd, &u.slot)
	cmd.Flags().StringSliceVar(&u.globs, "partition", nil, "only partitions that match one of these `PATTERNS`")
	cmd.Flags().StringVarP(&u.out, "output", "o", "", "`DIR` for the images; it is made if it is not there")
	_ = cmd.MarkFlagRequired("output")
	_ = cmd.MarkFlagDirname("output")
	return cmd
}

func (u *superUnpack) run(out cli.Output, name string) error {
	s, err := openSuper(name)
	if err != nil {
		return err
	}
	defer s.close()
	m, alone, err := s.metadata(u.slot)
	if err != nil {
		return err
	}
	if alone {
		return fmt.Errorf("%s: expected a super partition, found metadata alone", name)
	}
	wanted, err := u.wanted(m)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(u.out, 0o777); err != nil {
		return err
	}
	for _, p := range wanted {
		if err := u.one(out, s, m, p); err != nil {
			return fmt.Errorf("%s: partition %s: %w", name, p.Name, err)
		}
	}
	return nil
}

// wanted refuses patterns that are none, or that match nothing.
func (u *superUnpack) wanted(m *lpmeta.Metadata) (wanted []*lpmeta.Partition, err error) {
	hits := make([]int, len(u.globs))
	for i := range m.Partitions {
		p, take := &m.Partitions[i], len(u.globs) == 0
		for j, g := range u.globs {
			ok, err := path.Match(g, p.Name)
			if err != nil {
				return nil, cli.Usagef("--partition %s: %w", g, err)
			}
			if ok {
				take = true
				hits[j]++
			}
		}
		if take && m.Size(p) > 0 {
			wanted = append(wanted, p)
		}
	}
	for j, n := range hits {
		if n == 0 {
			return nil, fmt.Errorf("--partition %s: expected a partition of that name, found none: cowtool super info tells their names", u.globs[j])
		}
	}
	return wanted, nil
}

func (u *superUnpack) one(out cli.Output, s *superFile, m *lpmeta.Metadata, p *lpmeta.Partition) error {
	dst := filepath.Join(u.out, p.Name+".img")
	if err := cli.Distinct(dst, s.name); err != nil {
		return err
	}
	f, err := cli.CreateOut(dst)
	if err != nil {
		return err
	}
	defer f.Discard()
	if err := copyLines(f, s, m.Table(p)); err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(int64(m.Size(p))), f.Commit()); err != nil {
		return err
	}
	if out.JSON {
		return out.Emit(struct {
			Event string `json:"event"`
			Name  string `json:"partition"`
			Size  uint64 `json:"size"`
		}{"result", p.Name, m.Size(p)})
	}
	_, err = fmt.Fprintf(out.Stdout, "%s.img: %d bytes\n", p.Name, m.Size(p))
	return err
}

// copyLines copies what a table says from super; zeros are left out.
func copyLines(w io.WriterAt, s *superFile, lines []lpmeta.Line) error {
	for _, l := range lines {
		if l.Zero {
			continue
		}
		if l.Device != 0 {
			return fmt.Errorf("expected all extents on the first device, found one on device %d", l.Device)
		}
		n := int64(l.Length) * lpmeta.SectorSize
		from := io.NewSectionReader(s, int64(l.Data)*lpmeta.SectorSize, n)
		got, err := io.Copy(io.NewOffsetWriter(w, int64(l.Start)*lpmeta.SectorSize), from)
		if err == nil && got < n {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("sectors from %d on: %w", l.Data, err)
		}
	}
	return nil
}
