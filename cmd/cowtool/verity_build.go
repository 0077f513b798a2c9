package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/vbmeta"
	"cowbird/formats/verity"
)

type verityBuild struct {
	*common
	signer              signer
	partition           string
	partitionSize       cli.Size
	hash, salt          string
	roots               int
	properties          []string
	rollbackIndex       uint64
	once                bool
	tree, fec, metadata string
}

func verityBuildCommand(c *common) *cobra.Command {
	b := verityBuild{common: c}
	cmd := &cobra.Command{
		Use:   "build [--key KEY] IMAGE",
		Short: "Give an image a hash tree, error correction and metadata",
		Long: `Appends to the file IMAGE what a partition needs for dm-verity: a hash tree, error
correction, metadata about both (signed with --key) and a footer in the last 64
bytes. What an earlier build has appended is replaced. With --tree nothing is appended:
the tree, and with --fec the error correction, become files of their own, for dm-verity
without metadata. Same input, same bytes: the salt is none if not given.`,
		Example: `  cowtool verity build --key release.key --partition-size 64M system.img
  cowtool verity build --vbmeta system.vbmeta --salt "$(openssl rand -hex 32)" system.img
  cowtool verity build --tree system.tree --fec system.fec --fec-roots 2 system.img`,
		Args:              cli.Args("IMAGE"),
		ValidArgsFunction: fileArgs(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return b.run(cmd.Context(), b.output(cmd), args[0]) },
	}
	signerFlags(cmd, &b.signer)
	propertyFlag(cmd, &b.properties)
	f := cmd.Flags()
	f.StringVar(&b.partition, "partition", "", "the partition's name; the default is the file's, without its ending")
	f.Var(&b.partitionSize, "partition-size", "how large the partition is; 0 is as large as need be")
	f.StringVar(&b.hash, "hash", "sha256", strings.Join(verity.Algorithms, " or "))
	f.StringVar(&b.salt, "salt", "", "in `HEX`")
	f.IntVar(&b.roots, "fec-roots", 2, "parity bytes of error correction, 2 to 24; 0 is none")
	f.Uint64Var(&b.rollbackIndex, "rollback-index", 0, "devices do not go back to a lower one")
	f.BoolVar(&b.once, "check-at-most-once", false, "have each block verified the first time only")
	f.StringVar(&b.tree, "tree", "", "write the hash tree to a `FILE`, and append nothing")
	f.StringVar(&b.fec, "fec", "", "write the error correction to a `FILE`, with --tree")
	f.StringVar(&b.metadata, "vbmeta", "", "write the metadata to a `FILE`, and append no footer")
	for _, name := range []string{"tree", "fec", "vbmeta"} {
		_ = cmd.MarkFlagFilename(name)
	}
	values(cmd, "hash", verity.Algorithms...)
	return cmd
}

// built is what was made.
type built struct {
	Event     string `json:"event"`
	File      string `json:"file"`
	Partition string `json:"partition,omitempty"`
	Blocks    int64  `json:"blocks"`
	Hash      string `json:"hash_algorithm"`
	Salt      string `json:"salt"`
	Root      string `json:"root"`
	TreeSize  int64  `json:"tree_size"`
	FECSize   int64  `json:"fec_size"`
	Size      int64  `json:"size,omitempty"` // of the partition
}

func (b *verityBuild) run(ctx context.Context, out cli.Output, name string) error {
	salt, err := b.check(name)
	if err != nil {
		return err
	}
	tree, err := verity.NewTree(b.hash, salt, verityBlock)
	if err != nil {
		return cli.UsageError{Err: err}
	}
	made := &built{Event: "result", File: name, Hash: b.hash, Salt: b.salt}
	meter := out.Meter("building")
	watch := func(r io.ReaderAt, total int64) io.ReaderAt {
		return &watched{ReaderAt: r, ctx: ctx, onRead: meter.Update, total: total}
	}
	if b.tree != "" {
		err = b.apart(name, tree, watch, made)
	} else {
		made.Partition = b.partition
		err = b.inPlace(name, tree, salt, watch, made)
	}
	meter.End()
	if err != nil {
		return inFile(name, err)
	}
	if out.JSON {
		return out.Emit(made)
	}
	_, err = fmt.Fprintf(out.Stdout, "%s: %d blocks, tree of %s, error correction of %s\n%s root %s, salt %s\n", name, made.Blocks,
		amount(made.TreeSize), amount(made.FECSize), made.Hash, made.Root, orNone(made.Salt))
	return err
}

func (b *verityBuild) check(name string) (salt []byte, err error) {
	if b.partition == "" {
		b.partition = strings.TrimSuffix(filepath.Base(name), filepath.Ext(name))
	}
	if salt, err = hex.DecodeString(b.salt); err != nil || len(salt) > 256 {
		return nil, cli.Usagef("--salt: expected at most 256 bytes in hexadecimal, found %.80q", b.salt)
	}
	switch {
	case b.roots != 0 && (b.roots < 2 || b.roots > 24):
		return nil, cli.Usagef("--fec-roots: expected 0, or 2 to 24, found %d", b.roots)
	case b.fec != "" && (b.tree == "" || b.roots == 0):
		return nil, cli.Usagef("--fec: expected --tree and --fec-roots too")
	case b.fec != "" && b.fec == b.tree:
		return nil, cli.Usagef("--fec: expected another file than --tree, found %s", b.fec)
	case b.tree != "" && (b.metadata != "" || b.signer.path != "" || b.partitionSize != 0):
		return nil, cli.Usagef("--tree: expected no --vbmeta, --key or --partition-size, since there are no metadata")
	case b.metadata != "" && b.partitionSize != 0:
		return nil, cli.Usagef("--vbmeta: expected no --partition-size, since there is no footer")
	}
	for _, o := range []string{b.tree, b.fec, b.metadata} {
		if err := cli.Distinct(o, name); err != nil {
			return nil, err
		}
	}
	return salt, b.signer.check()
}

// watch makes reading tell how far it is, and end with the command's context.
type watch func(r io.ReaderAt, total int64) io.ReaderAt

// apart leaves the image alone.
func (b *verityBuild) apart(name string, tree *verity.Tree, watch watch, made *built) error {
	all, err := openAll(name)
	if err != nil {
		return err
	}
	defer all.close()
	size := all[0].Size()
	t, err := cli.CreateOut(b.tree)
	if err != nil {
		return err
	}
	defer t.Discard()
	root, err := tree.Build(watch(all[0], size), size, io.NewOffsetWriter(t, 0))
	if err != nil {
		return err
	}
	made.Blocks, made.TreeSize, made.Root = size/verityBlock, tree.Size(size), hex.EncodeToString(root)
	if b.fec != "" {
		f, err := cli.CreateOut(b.fec)
		if err != nil {
			return err
		}
		defer f.Discard()
		fec := verity.FEC{Roots: b.roots, BlockSize: verityBlock}
		made.FECSize = fec.Size(size + made.TreeSize)
		if err := fec.Build(watch(appended{all[0], t, size}, size+made.TreeSize), size+made.TreeSize, f); err != nil {
			return err
		}
		if err := f.Commit(); err != nil {
			return err
		}
	}
	return t.Commit()
}

// appended is one file behind the other; a read may be of both.
type appended struct {
	first, second io.ReaderAt
	size          int64 // of the first
}

func (a appended) ReadAt(p []byte, off int64) (n int, err error) {
	if off < a.size {
		n, err = a.first.ReadAt(p[:min(int64(len(p)), a.size-off)], off)
		if n == len(p) || off+int64(n) < a.size {
			return n, err
		}
	}
	more, err := a.second.ReadAt(p[n:], off+int64(n)-a.size)
	return n + more, err
}

// inPlace appends to the image, which is as it was before any build if that fails.
func (b *verityBuild) inPlace(name string, tree *verity.Tree, salt []byte, watch watch, made *built) (err error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	original, err := originalSize(f)
	if err != nil {
		return err
	}
	layout := b.layout(original, tree)
	if err := b.rehearse(layout, tree, salt); err != nil {
		return err
	}
	root, err := b.append(f, layout, tree, watch)
	if err == nil {
		var m []byte
		if m, err = b.describe(layout, salt, root); err == nil {
			made.Size, err = b.writeMetadata(f, layout, m)
		}
	}
	if err != nil {
		return errors.Join(err, f.Truncate(original))
	}
	made.Blocks, made.TreeSize, made.FECSize, made.Root = layout.ImageSize/verityBlock, layout.TreeSize, layout.FECSize, hex.EncodeToString(root)
	return f.Sync()
}

// rehearse finds out whether the metadata can be made and have room, before anything
// is written.
func (b *verityBuild) rehearse(layout vbmeta.Layout, tree *verity.Tree, salt []byte) error {
	m, err := b.describe(layout, salt, make([]byte, tree.RootSize()))
	if err != nil || b.metadata != "" || b.partitionSize == 0 {
		return err
	}
	return layout.CheckRoom(len(m), int64(b.partitionSize))
}

// originalSize is how many bytes an image has without what was appended to it.
func originalSize(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !st.Mode().IsRegular() {
		return 0, fmt.Errorf("expected a file that can be appended to, found %v", st.Mode().Type())
	}
	size := st.Size()
	footer, err := vbmeta.ReadFooter(f, size)
	if err == nil {
		size = footer.OriginalImageSize
	} else if !errors.Is(err, vbmeta.ErrNoFooter) {
		return 0, err
	}
	if size == 0 {
		return 0, fmt.Errorf("%w: expected an image, found no bytes", verity.ErrSize)
	}
	return size, nil
}

func (b *verityBuild) append(f *os.File, layout vbmeta.Layout, tree *verity.Tree, watch watch) (root []byte, err error) {
	// What was there before is cut off first: padding must be zero.
	if err := errors.Join(f.Truncate(layout.OriginalImageSize), f.Truncate(layout.VBMetaOffset)); err != nil {
		return nil, err
	}
	root, err = tree.Build(watch(f, layout.ImageSize), layout.ImageSize, io.NewOffsetWriter(f, layout.TreeOffset))
	if err == nil && b.roots > 0 {
		fec := verity.FEC{Roots: b.roots, BlockSize: verityBlock}
		err = fec.Build(watch(f, layout.FECOffset), layout.FECOffset, io.NewOffsetWriter(f, layout.FECOffset))
	}
	return root, err
}

func (b *verityBuild) layout(original int64, tree *verity.Tree) vbmeta.Layout {
	size := vbmeta.NewLayout(original, 0, 0).ImageSize
	layout := vbmeta.NewLayout(original, tree.Size(size), 0)
	if b.roots > 0 {
		fec := verity.FEC{Roots: b.roots, BlockSize: verityBlock}
		layout = vbmeta.NewLayout(original, layout.TreeSize, fec.Size(layout.FECOffset))
	}
	return layout
}

// describe makes the metadata.
func (b *verityBuild) describe(layout vbmeta.Layout, salt, root []byte) ([]byte, error) {
	h := layout.Hashtree()
	h.Partition, h.Algorithm, h.Salt, h.RootDigest = b.partition, b.hash, salt, root
	if layout.FECSize > 0 {
		h.FECRoots = b.roots
	}
	if b.once {
		h.Flags = vbmeta.CheckAtMostOnce
	}
	properties, err := propertiesOf(b.properties)
	if err != nil {
		return nil, err
	}
	return b.signer.sign(&vbmeta.VBMeta{RollbackIndex: b.rollbackIndex, Release: vbmetaRelease, Descriptors: append([]vbmeta.Descriptor{h}, properties...)})
}

// writeMetadata says how large the partition is.
func (b *verityBuild) writeMetadata(f *os.File, layout vbmeta.Layout, m []byte) (size int64, err error) {
	if b.metadata != "" {
		return layout.VBMetaOffset, writeFile(b.metadata, m)
	}
	_, err = vbmeta.AppendFooter(f, layout, m, int64(b.partitionSize))
	return max(int64(b.partitionSize), layout.PartitionSize(len(m))), err
}
