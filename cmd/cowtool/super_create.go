package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/lpmeta"
	"cowbird/formats/sparse"
)

type superCreate struct {
	*common
	out                           string
	size, metadataSize, alignment cli.Size
	slots                         uint32
	groups, partitions            []string
	sparse, virtualAB             bool
}

// superImage is what goes into a partition.
type superImage struct{ partition, path string }

func superCreateCommand(c *common) *cobra.Command {
	s := superCreate{common: c, metadataSize: 64 << 10, alignment: 1 << 20}
	cmd := &cobra.Command{
		Use:   "create -o FILE --size SIZE [--group NAME:MAX] [--partition NAME:GROUP[:SIZE|=IMAGE]]",
		Short: "Make a super partition out of images of its partitions",
		Long: `Makes an image of a super partition, with the same metadata in each slot. A partition
is read-only, and as large as it is said to be or as its raw image is. All groups are
made first; a group called default, without a limit, is always there.`,
		Example: `  cowtool super create -o super.img --size 4G --group main_a:4G --group main_b:4G \
      --partition system_a:main_a=system.img --partition system_b:main_b
  cowtool super create -o super.simg --sparse --size 1G --partition data:default:512M`,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(s.output(cmd)) },
	}
	cmd.Args = cli.Args()
	outFlag(cmd, &s.out, "the image to make")
	f := cmd.Flags()
	f.Var(&s.size, "size", "of the super partition")
	_ = cmd.MarkFlagRequired("size")
	f.Var(&s.metadataSize, "metadata-size", "room for the metadata of a slot")
	f.Var(&s.alignment, "alignment", "extents begin at multiples of this")
	f.Uint32Var(&s.slots, "slots", 2, "how many slots have metadata")
	f.StringArrayVar(&s.groups, "group", nil, "a group and what it may take at most, `NAME:MAX`; 0 is no limit")
	f.StringArrayVar(&s.partitions, "partition", nil, "a partition, `NAME:GROUP`, with :SIZE or =IMAGE behind it")
	f.BoolVar(&s.sparse, "sparse", false, "make a sparse image")
	f.BoolVar(&s.virtualAB, "virtual-ab", false, "say in the metadata that the device updates by Virtual A/B")
	return cmd
}

func (s *superCreate) run(out cli.Output) error {
	m, images, err := s.plan()
	if err != nil {
		return err
	}
	f, err := cli.CreateOut(s.out)
	if err != nil {
		return err
	}
	defer f.Discard()
	if err := s.write(f, m, images); err != nil {
		return err
	}
	if err := f.Commit(); err != nil {
		return err
	}
	if out.JSON {
		return out.Emit(struct {
			Event string `json:"event"`
			File  string `json:"file"`
			Size  int64  `json:"size"`
		}{"result", s.out, int64(s.size)})
	}
	_, err = fmt.Fprintf(out.Stdout, "%s: %d partitions\n", s.out, len(m.Partitions))
	return err
}

// plan reads the flags.
func (s *superCreate) plan() (*lpmeta.Metadata, []superImage, error) {
	const most = 1<<32 - 1
	if s.metadataSize > most || s.alignment > most {
		return nil, nil, cli.Usagef("--metadata-size and --alignment: expected less than 4G")
	}
	b, err := lpmeta.NewBuilder([]lpmeta.DeviceInfo{{Name: "super", Size: uint64(s.size), Alignment: uint32(s.alignment), LogicalBlockSize: 4096}}, uint32(s.metadataSize), s.slots)
	if err != nil {
		return nil, nil, err
	}
	if s.virtualAB {
		b.SetFlags(lpmeta.VirtualAB)
	}
	for _, g := range s.groups {
		name, text, ok := strings.Cut(g, ":")
		var limit cli.Size
		if err := limit.Set(text); !ok || err != nil {
			return nil, nil, cli.Usagef("--group %s: expected NAME:MAX", g)
		}
		if err := b.AddGroup(name, uint64(limit)); err != nil {
			return nil, nil, err
		}
	}
	var images []superImage
	for _, p := range s.partitions {
		image, err := s.addPartition(b, p)
		if err != nil {
			return nil, nil, fmt.Errorf("--partition %s: %w", p, err)
		}
		if image.path != "" {
			images = append(images, image)
		}
	}
	m, err := b.Export()
	return m, images, err
}

func (s *superCreate) addPartition(b *lpmeta.Builder, text string) (image superImage, err error) {
	spec, file, _ := strings.Cut(text, "=")
	parts := strings.Split(spec, ":")
	if len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && file != "" {
		return image, cli.Usagef("expected NAME:GROUP, NAME:GROUP:SIZE or NAME:GROUP=IMAGE")
	}
	var size cli.Size
	if len(parts) == 3 {
		if err := size.Set(parts[2]); err != nil {
			return image, cli.UsageError{Err: err}
		}
	}
	if file != "" {
		d, err := openAll(file)
		if err != nil {
			return image, err
		}
		size = cli.Size(d[0].Size())
		d.close()
		if err := cli.Distinct(s.out, file); err != nil {
			return image, err
		}
	}
	if err := b.AddPartition(parts[0], parts[1], lpmeta.ReadOnly); err != nil {
		return image, err
	}
	return superImage{parts[0], file}, b.Resize(parts[0], uint64(size), nil)
}

// write fills the output, by way of a file beside it if it is to be sparse.
func (s *superCreate) write(out *cli.OutFile, m *lpmeta.Metadata, images []superImage) error {
	if !s.sparse {
		return s.fill(out.File, m, images, !out.IsBlockDevice())
	}
	raw, err := os.CreateTemp("", "cowtool-super-*")
	if err != nil {
		return err
	}
	defer func() { _ = errors.Join(raw.Close(), os.Remove(raw.Name())) }()
	if err := s.fill(raw, m, images, true); err != nil {
		return err
	}
	return sparse.Write(out, raw, int64(s.size), int64(m.Geometry.LogicalBlockSize))
}

func (s *superCreate) fill(f *os.File, m *lpmeta.Metadata, images []superImage, truncate bool) error {
	if truncate {
		if err := f.Truncate(int64(s.size)); err != nil {
			return err
		}
	}
	if err := lpmeta.Flash(f, int64(s.size), slices.Repeat([]*lpmeta.Metadata{m}, int(s.slots))); err != nil {
		return err
	}
	for _, image := range images {
		if err := copyImage(f, m, image); err != nil {
			return fmt.Errorf("%s: %w", image.path, err)
		}
	}
	return nil
}

func copyImage(w io.WriterAt, m *lpmeta.Metadata, image superImage) error {
	d, err := openAll(image.path)
	if err != nil {
		return err
	}
	defer d.close()
	for _, l := range m.Table(m.Partition(image.partition)) {
		from := io.NewSectionReader(d[0], int64(l.Start)*lpmeta.SectorSize, int64(l.Length)*lpmeta.SectorSize)
		if _, err := io.Copy(io.NewOffsetWriter(w, int64(l.Data)*lpmeta.SectorSize), from); err != nil {
			return err
		}
	}
	return nil
}
