package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
	"cowbird/formats/lpmeta"
	"cowbird/formats/sparse"
)

func superCommand(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "super",
		Short: "Look into, check, unpack and make super partitions",
		Long: `A super partition holds the logical partitions of a device, and metadata that say
where in it each of them is. SUPER is a block device, an image of one, also a sparse
one, or a file with metadata alone (super_empty.img).`,
		Example: `  cowtool super info super.img
  cowtool super check /dev/block/by-name/super
  cowtool super unpack -o images --partition 'system*' super.img
  cowtool super create -o super.img --size 4G --group main_a:4G --partition system_a:main_a=system.img`,
	}
	cmd.AddCommand(superInfoCommand(c), superCheckCommand(c), superUnpackCommand(c), superCreateCommand(c))
	return cmd
}

// superFile is a super partition, or metadata alone.
type superFile struct {
	io.ReaderAt
	file *cow.FileDevice
	name string
	size int64
}

func openSuper(name string) (*superFile, error) {
	f, err := cow.OpenDevice(name, false)
	if err != nil {
		return nil, err
	}
	s := &superFile{f, f, name, f.Size()}
	var magic [4]byte
	if n, _ := f.ReadAt(magic[:], 0); n < len(magic) || binary.LittleEndian.Uint32(magic[:]) != sparse.Magic {
		return s, nil
	}
	image, err := sparse.Open(f, f.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	s.ReaderAt, s.size = image, image.Size()
	return s, nil
}

func (s *superFile) close() { _ = s.file.Close() }

// metadata are those of a slot, or of the file with nothing else.
func (s *superFile) metadata(slot int) (m *lpmeta.Metadata, alone bool, err error) {
	if m, err := lpmeta.ReadImage(s); err == nil {
		return m, true, nil
	}
	if m, err = lpmeta.Read(s, slot); err != nil {
		return nil, false, fmt.Errorf("%s: %w", s.name, err)
	}
	return m, false, nil
}

type superFacts struct {
	Event        string        `json:"event"`
	File         string        `json:"file"`
	Slot         int           `json:"slot"`
	Slots        uint32        `json:"slots"`
	MetadataSize uint32        `json:"metadata_max_size"`
	BlockSize    uint32        `json:"logical_block_size"`
	Version      string        `json:"version"`
	Flags        uint32        `json:"flags"`
	Devices      []superDevice `json:"block_devices"`
	Groups       []superGroup  `json:"groups"`
	Partitions   []superPart   `json:"partitions"`
	Free         []superExtent `json:"free"`
	Alone        bool          `json:"metadata_only"`
}

type (
	superDevice struct {
		Name      string `json:"name"`
		Size      uint64 `json:"size"`
		First     uint64 `json:"first_sector"`
		Alignment uint32 `json:"alignment"`
	}
	superGroup struct {
		Name    string `json:"name"`
		Maximum uint64 `json:"maximum_size"`
	}
	superPart struct {
		Name       string        `json:"name"`
		Group      string        `json:"group"`
		Attributes uint32        `json:"attributes"`
		Size       uint64        `json:"size"`
		Extents    []superExtent `json:"extents"`
	}
	superExtent struct {
		Device  string `json:"device,omitempty"` // none: zeros
		Sector  uint64 `json:"sector"`
		Sectors uint64 `json:"sectors"`
	}
)

func superInfoCommand(c *common) *cobra.Command {
	slot := 0
	cmd := &cobra.Command{
		Use:   "info [--slot N] SUPER",
		Short: "Tell which partitions a super partition has, and where",
		Long: `Prints the geometry, and from the metadata of one slot the block devices, groups,
partitions with their extents, and the free space. Sectors have 512 bytes.`,
		Example: `  cowtool super info --slot 1 super.img
  cowtool super info --json super_empty.img`,
		RunE: func(cmd *cobra.Command, args []string) error { return superInfo(c.output(cmd), args[0], slot) },
	}
	superFlags(cmd, &slot)
	return cmd
}

func superFlags(cmd *cobra.Command, slot *int) {
	cmd.Flags().IntVar(slot, "slot", 0, "the slot whose metadata are read")
	cmd.Args, cmd.ValidArgsFunction = cli.Args("SUPER"), fileArgs(1)
}

func superInfo(out cli.Output, name string, slot int) error {
	s, err := openSuper(name)
	if err != nil {
		return err
	}
	defer s.close()
	m, alone, err := s.metadata(slot)
	if err != nil {
		return err
	}
	b, err := lpmeta.FromMetadata(m)
	if err != nil {
		return err
	}
	f := superFactsOf(m, b.Free())
	f.File, f.Slot, f.Alone = name, slot, alone
	if out.JSON {
		return out.Emit(f)
	}
	return f.print(out)
}

func superFactsOf(m *lpmeta.Metadata, free []lpmeta.Region) *superFacts {
	g := m.Geometry
	f := &superFacts{Event: "result", Slots: g.SlotCount, MetadataSize: g.MetadataMaxSize, BlockSize: g.LogicalBlockSize,
		Version: fmt.Sprintf("%d.%d", m.Major, m.Minor), Flags: m.Flags}
	for _, d := range m.BlockDevices {
		f.Devices = append(f.Devices, superDevice{d.Name, d.Size, d.FirstLogicalSector, d.Alignment})
	}
	for _, g := range m.Groups {
		f.Groups = append(f.Groups, superGroup{g.Name, g.MaximumSize})
	}
	for i := range m.Partitions {
		p := &m.Partitions[i]
		part := superPart{p.Name, m.Groups[p.Group].Name, p.Attributes, m.Size(p), []superExtent{}}
		for _, l := range m.Table(p) {
			e := superExtent{Sector: l.Data, Sectors: l.Length}
			if !l.Zero {
				e.Device = m.BlockDevices[l.Device].Name
			}
			part.Extents = append(part.Extents, e)
		}
		f.Partitions = append(f.Partitions, part)
	}
	for _, r := range free {
		f.Free = append(f.Free, superExtent{m.BlockDevices[r.Device].Name, r.Start, r.Sectors()})
	}
	return f
}

func (e superExtent) text() string {
	if e.Device == "" {
		return fmt.Sprintf("%d sectors of zeros", e.Sectors)
	}
	return fmt.Sprintf("%d sectors of %s from %d on", e.Sectors, e.Device, e.Sector)
}

func (f *superFacts) print(out cli.Output) error {
	t := tabwriter.NewWriter(out.Stdout, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) }
	row("metadata", "version %s, flags %#x, %d slots of %d bytes, blocks of %d bytes", f.Version, f.Flags, f.Slots, f.MetadataSize, f.BlockSize)
	for _, d := range f.Devices {
		row("device", "%s, %s, first sector %d", d.Name, amount(int64(d.Size)), d.First)
	}
	for _, g := range f.Groups {
		limit := "no limit"
		if g.Maximum > 0 {
			limit = fmt.Sprintf("at most %d bytes", g.Maximum)
		}
		row("group", "%s, %s", g.Name, limit)
	}
	for _, p := range f.Partitions {
		row("partition", "%s, %s, group %s, attributes %#x", p.Name, amount(int64(p.Size)), p.Group, p.Attributes)
		for _, e := range p.Extents {
			row("", "%s", e.text())
		}
	}
	for _, e := range f.Free {
		row("free", "%s", e.text())
	}
	return t.Flush()
}

var errSuperDamaged = errors.New("damaged super metadata")

func superCheckCommand(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check SUPER",
		Short: "Check both copies of all metadata of a super partition",
		Long: `Reads both copies of the geometry and of the metadata of each slot, and says of each
what is wrong with it and what would repair it. The exit code is 1 if anything is.`,
		Example: `  cowtool super check super.img`,
		RunE:    func(cmd *cobra.Command, args []string) error { return superCheck(c.output(cmd), args[0]) },
	}
	cmd.Args, cmd.ValidArgsFunction = cli.Args("SUPER"), fileArgs(1)
	return cmd
}

func superCheck(out cli.Output, name string) error {
	s, err := openSuper(name)
	if err != nil {
		return err
	}
	defer s.close()
	if _, err := lpmeta.ReadImage(s); err == nil {
		return tellCopies(out, "metadata", lpmeta.Condition{}, "")
	}
	geometry, slots := lpmeta.Inspect(s)
	err = tellCopies(out, "geometry", geometry, "the other copy, 4096 bytes at 4096 (primary) or 8192 (backup), copied over it")
	good := geometry.Good()
	for i, c := range slots {
		err = errors.Join(err, tellCopies(out, fmt.Sprintf("slot %d", i), c, "the next update of the slot"))
		good = good && c.Good()
	}
	if err == nil && !good {
		return fmt.Errorf("%s: %w", name, errSuperDamaged)
	}
	return err
}

// tellCopies says what is wrong with the copies of something.
func tellCopies(out cli.Output, what string, c lpmeta.Condition, repair string) error {
	if !c.Usable() {
		repair = "nothing but flashing"
	}
	wrong := []string{}
	for _, one := range []struct {
		name string
		err  error
	}{{"primary", c.Primary}, {"backup", c.Backup}} {
		if one.err != nil {
			wrong = append(wrong, fmt.Sprintf("the %s copy is damaged: %v", one.name, one.err))
		}
	}
	if c.Differ {
		wrong = append(wrong, "the copies differ, of which the primary counts")
	}
	if out.JSON {
		return out.Emit(struct {
			Event string   `json:"event"`
			What  string   `json:"what"`
			Good  bool     `json:"good"`
			Wrong []string `json:"wrong"`
		}{"copies", what, c.Good(), wrong})
	}
	if c.Good() {
		_, err := fmt.Fprintf(out.Stdout, "%s: good\n", what)
		return err
	}
	var err error
	for _, w := range wrong {
		_, e := fmt.Fprintf(out.Stdout, "%s: %s; repaired by %s\n", what, w, repair)
		err = errors.Join(err, e)
	}
	return err
}
