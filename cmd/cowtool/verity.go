package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
	"cowbird/formats/vbmeta"
	"cowbird/formats/verity"
)

// errNoTree: nothing says what a partition should be.
var errNoTree = errors.New("no hash tree")

func verityCommand(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verity",
		Short: "Build, check and repair what dm-verity reads",
		Long: `dm-verity checks each block of a partition that is read with a hash tree, whose root
is in signed metadata, and repairs it with error correction. IMAGE is a partition
with all of these behind its contents, as verity build makes it. They can be files of
their own too: give --tree, --fec and the root, such as veritysetup prints it.`,
		Example: `  cowtool verity build --key release.key --partition-size 64M system.img
  cowtool verity check --key release.pub.pem system.img
  cowtool verity repair system.img
  dmsetup create system --readonly --table "$(cowtool verity info --table /dev/sda3 system.img)"`,
	}
	cmd.AddCommand(verityInfoCommand(c), verityBuildCommand(c), verityCheckCommand(c), verityRepairCommand(c))
	return cmd
}

const verityBlock = 4096

// verities are the flags that say where an image's tree and error correction are.
type verities struct {
	*common
	key, vbmeta, partition string
	tree, fec              string
	root, salt, hash       string
	roots                  int
}

func (v *verities) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&v.key, "key", "", "the key by which the metadata must be signed, a `FILE`")
	f.StringVar(&v.vbmeta, "vbmeta", "", "metadata elsewhere than in IMAGE, a `FILE`")
	f.StringVar(&v.partition, "partition", "", "the partition's name in them, if there are several")
	_ = cmd.MarkFlagFilename("key")
	_ = cmd.MarkFlagFilename("vbmeta")
	cmd.Args, cmd.ValidArgsFunction = cli.Args("IMAGE"), fileArgs(1)
}

// apart adds the flags for files that have no metadata.
func (v *verities) apart(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&v.tree, "tree", "", "the hash tree, if it is a `FILE` of its own")
	f.StringVar(&v.root, "root", "", "the root of the hash tree in `HEX`, instead of metadata")
	f.StringVar(&v.salt, "salt", "", "the salt in `HEX`, with --root")
	f.StringVar(&v.hash, "hash", "sha256", "the algorithm, with --root")
	_ = cmd.MarkFlagFilename("tree")
	values(cmd, "hash", verity.Algorithms...)
}

// protected is an image, and what is known about it.
type protected struct {
	verity.Protected
	treeSize  int64
	blockSize int64
	name      string
	file      *cow.FileDevice
	tree      io.ReaderAt // nil if there is none
	area      verity.ReaderWriterAt
	open      devices
}

func (p *protected) close() { p.open.close() }

// openProtected opens an image and finds out what protects it.
func (v *verities) openProtected(name string, writable bool) (*protected, error) {
	if v.root != "" && (v.key != "" || v.vbmeta != "") {
		return nil, cli.Usagef("--root: expected no --key or --vbmeta, since metadata are not read")
	}
	p := &protected{name: name}
	file, err := p.openFile(name, writable)
	if err != nil {
		return nil, err
	}
	p.file, p.area = file, file
	if v.root != "" {
		err = v.fromFlags(p, writable)
	} else {
		err = v.fromMetadata(p, writable)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *protected) openFile(name string, writable bool) (*cow.FileDevice, error) {
	d, err := cow.OpenDevice(name, writable)
	if err == nil {
		p.open = append(p.open, d)
	}
	return d, err
}

func (v *verities) fromMetadata(p *protected, writable bool) error {
	h, err := v.descriptor(p.file)
	if err != nil {
		return err
	}
	if err := p.describe(h); err != nil {
		return inFile(p.name, err)
	}
	return v.openApart(p, writable)
}

// fromFlags is for files that no metadata are about.
func (v *verities) fromFlags(p *protected, writable bool) error {
	salt, err := hex.DecodeString(v.salt)
	if err != nil {
		return cli.Usagef("--salt %s: %w", v.salt, err)
	}
	if p.Root, err = hex.DecodeString(v.root); err != nil {
		return cli.Usagef("--root %s: %w", v.root, err)
	}
	if p.Tree, err = verity.NewTree(v.hash, salt, verityBlock); err != nil {
		return cli.UsageError{Err: err}
	}
	p.blockSize = verityBlock
	p.Size = p.file.Size()
	p.treeSize = p.Tree.Size(p.Size)
	p.TreeOffset, p.AreaSize = p.Size, p.Size+p.treeSize
	return v.openApart(p, writable)
}

// openApart opens the files of --tree and --fec.
func (v *verities) openApart(p *protected, writable bool) error {
	if v.tree != "" {
		t, err := p.openFile(v.tree, writable)
		if err != nil {
			return err
		}
		if t.Size() < p.treeSize {
			return fmt.Errorf("%s: expected a hash tree of %d bytes, found %d", v.tree, p.treeSize, t.Size())
		}
		p.tree, p.treeSize = t, t.Size()
		p.TreeOffset, p.AreaSize = p.Size, p.Size+t.Size()
		p.area = joined{p.file, t, p.Size}
	}
	if v.fec != "" {
		f, err := p.openFile(v.fec, false)
		if err != nil {
			return err
		}
		p.Parity, p.FEC = f, verity.FEC{Roots: v.roots, BlockSize: verityBlock}
	}
	return nil
}

// joined is one file behind the other.
type joined struct {
	first, second *cow.FileDevice
	size          int64 // of the first
}

func (j joined) ReadAt(p []byte, off int64) (int, error) {
	if off < j.size {
		return j.first.ReadAt(p, off)
	}
	return j.second.ReadAt(p, off-j.size)
}

func (j joined) WriteAt(p []byte, off int64) (int, error) {
	if off < j.size {
		return j.first.WriteAt(p, off)
	}
	return j.second.WriteAt(p, off-j.size)
}

// descriptor finds the hash tree of an image in its metadata, or in other ones.
func (v *verities) descriptor(image *cow.FileDevice) (*vbmeta.Hashtree, error) {
	name := image.Path()
	if v.vbmeta != "" {
		name = v.vbmeta
	}
	m, err := readVBMeta(name)
	if err != nil {
		return nil, err
	}
	if v.key != "" {
		key, err := readPublicKey(v.key)
		if err == nil {
			err = inFile(name, m.Verify(key))
		}
		if err != nil {
			return nil, err
		}
	}
	var found []*vbmeta.Hashtree
	for _, d := range m.Descriptors {
		if h, ok := d.(*vbmeta.Hashtree); ok && (v.partition == "" || h.Partition == v.partition) {
			found = append(found, h)
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("%s: %w: expected the descriptor of one, found none", name, errNoTree)
	case len(found) > 1:
		return nil, cli.Usagef("%s: expected the hash tree of one partition, found %d: give --partition", name, len(found))
	}
	return found[0], nil
}

// describe believes a descriptor as far as the file has what it says.
func (p *protected) describe(h *vbmeta.Hashtree) (err error) {
	if h.DataBlockSize != h.HashBlockSize {
		return fmt.Errorf("%w: expected blocks of one size, found %d and %d bytes", verity.ErrUnsupported, h.DataBlockSize, h.HashBlockSize)
	}
	if end := max(h.ImageSize, h.TreeOffset+h.TreeSize, h.FECOffset+h.FECSize); end > p.file.Size() {
		return fmt.Errorf("%w: expected at least %d bytes, as the descriptor says, found %d", io.ErrUnexpectedEOF, end, p.file.Size())
	}
	if p.Tree, err = verity.NewTree(h.Algorithm, h.Salt, h.HashBlockSize); err != nil {
		return err
	}
	p.Root, p.Size, p.TreeOffset, p.blockSize = h.RootDigest, h.ImageSize, h.TreeOffset, h.HashBlockSize
	p.treeSize = p.Tree.Size(h.ImageSize)
	if h.TreeSize > 0 || p.treeSize == 0 {
		if h.TreeSize != p.treeSize {
			return fmt.Errorf("%w: expected a hash tree of %d bytes, found %d", vbmeta.ErrCorrupt, p.treeSize, h.TreeSize)
		}
		p.tree = io.NewSectionReader(p.file, h.TreeOffset, h.TreeSize)
	}
	p.AreaSize = h.TreeOffset + h.TreeSize
	if h.FECSize > 0 {
		p.FEC, p.AreaSize = verity.FEC{Roots: h.FECRoots, BlockSize: h.DataBlockSize}, h.FECOffset
		if n := p.FEC.Size(p.AreaSize); h.FECSize < n {
			return fmt.Errorf("%w: expected error correction of %d bytes, found %d", vbmeta.ErrCorrupt, n, h.FECSize)
		}
		p.Parity = io.NewSectionReader(p.file, h.FECOffset, h.FECSize)
	}
	return nil
}

func verityInfoCommand(c *common) *cobra.Command {
	v := verities{common: c}
	table, corruption := "", ""
	cmd := &cobra.Command{
		Use:   "info [--table DEVICE] IMAGE",
		Short: "Tell what dm-verity needs to know about an image",
		Long: `Prints the sizes, places and hashes. With --table it prints the line that dmsetup wants
for the partition that has the image, a path or major:minor.`,
		Example: `  cowtool verity info system.img
  cowtool verity info --table 254:3 --on-corruption restart system.img
  cowtool verity info --vbmeta vbmeta.img --partition system --table /dev/sda3 system.img`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return v.info(v.output(cmd), args[0], table, corruption)
		},
	}
	v.flags(cmd)
	cmd.Flags().StringVar(&table, "table", "", "print the device-mapper table for a `DEVICE`")
	cmd.Flags().StringVar(&corruption, "on-corruption", "", "what a bad block does besides failing the read: restart, panic or ignore")
	values(cmd, "on-corruption", "restart", "panic", "ignore")
	return cmd
}

var corruptions = map[string]string{"": "", "restart": "restart_on_corruption", "panic": "panic_on_corruption", "ignore": "ignore_corruption"}

func (v *verities) info(out cli.Output, name, table, corruption string) error {
	mode, ok := corruptions[corruption]
	if !ok {
		return cli.Usagef("--on-corruption: expected restart, panic or ignore, found %q", corruption)
	}
	p, err := cow.OpenDevice(name, false)
	if err != nil {
		return err
	}
	defer p.Close()
	h, err := v.descriptor(p)
	if err != nil {
		return err
	}
	line := ""
	if table != "" {
		line = fmt.Sprintf("0 %d verity %s", h.Sectors(), h.Table(table, vbmeta.TableOptions{OnCorruption: mode}))
	}
	f := descriptorFactsOf(h)
	switch {
	case out.JSON:
		return out.Emit(struct {
			Event string `json:"event"`
			descriptorFacts
			Table string `json:"table,omitempty"`
		}{"result", f, line})
	case line != "":
		_, err := fmt.Fprintln(out.Stdout, line)
		return err
	}
	t := tabwriter.NewWriter(out.Stdout, 0, 0, 2, ' ', 0)
	f.print(func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) })
	return t.Flush()
}
