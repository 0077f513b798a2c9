package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
	"cowbird/formats/vbmeta"
)

func vbmetaCommand(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "vbmeta",
		Short: "Look into, verify and make the metadata of verified boot",
		Long: `Metadata of Android Verified Boot say which partitions a device may start: by their
hash, by the root of their hash tree, or by the key of metadata of their own. FILE is a
metadata image (vbmeta.img), or a partition that has metadata behind its contents.`,
		Example: `  cowtool vbmeta info vbmeta.img
  cowtool vbmeta verify --key release.pem --images out vbmeta.img
  cowtool vbmeta make -o vbmeta.img --key release.key --include system.img --hash boot=boot.img`,
	}
	cmd.AddCommand(vbmetaInfoCommand(c), vbmetaVerifyCommand(c), vbmetaMakeCommand(c))
	return cmd
}

// vbmetaFacts is what info tells.
type vbmetaFacts struct {
	Event            string            `json:"event"`
	File             string            `json:"file"`
	Size             int64             `json:"size"`
	Footer           *footerFacts      `json:"footer,omitempty"`
	VBMetaSize       int64             `json:"vbmeta_size"`
	Version          string            `json:"required_version"`
	Algorithm        string            `json:"algorithm"`
	PublicKey        string            `json:"public_key_sha256,omitempty"`
	Signature        string            `json:"signature"`
	RollbackIndex    uint64            `json:"rollback_index"`
	RollbackLocation uint32            `json:"rollback_index_location"`
	Flags            uint32            `json:"flags"`
	Release          string            `json:"release"`
	KeyMetadata      int               `json:"key_metadata_size,omitempty"`
	Descriptors      []descriptorFacts `json:"descriptors"`
}

type footerFacts struct {
	OriginalImageSize int64 `json:"original_image_size"`
	VBMetaOffset      int64 `json:"vbmeta_offset"`
}

// descriptorFacts has what a descriptor of the type has.
type descriptorFacts struct {
	Type             string `json:"type"`
	Partition        string `json:"partition,omitempty"`
	ImageSize        int64  `json:"image_size,omitempty"`
	Algorithm        string `json:"hash_algorithm,omitempty"`
	Salt             string `json:"salt,omitempty"`
	Digest           string `json:"digest,omitempty"` // of a tree its root
	TreeOffset       int64  `json:"tree_offset,omitempty"`
	TreeSize         int64  `json:"tree_size,omitempty"`
	DataBlockSize    int64  `json:"data_block_size,omitempty"`
	HashBlockSize    int64  `json:"hash_block_size,omitempty"`
	FECRoots         int    `json:"fec_roots,omitempty"`
	FECOffset        int64  `json:"fec_offset,omitempty"`
	FECSize          int64  `json:"fec_size,omitempty"`
	RollbackLocation uint32 `json:"rollback_index_location,omitempty"`
	PublicKey        string `json:"public_key_sha256,omitempty"`
	Key              string `json:"key,omitempty"`
	Value            string `json:"value,omitempty"`
	Text             string `json:"text,omitempty"`
	Tag              uint64 `json:"tag,omitempty"`
	Flags            uint32 `json:"flags,omitempty"`
}

func vbmetaInfoCommand(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "info FILE",
		Short: "Tell what metadata say",
		Long: `Prints the header and the descriptors, and whether the signature is by the key that
the metadata bring along. Whether that key is to be trusted is not known here.`,
		Example: `  cowtool vbmeta info system.img
  cowtool vbmeta info --json vbmeta.img | jq '.descriptors[].partition'`,
		Args:              cli.Args("FILE"),
		ValidArgsFunction: fileArgs(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return vbmetaInfo(c.output(cmd), args[0]) },
	}
}

func vbmetaInfo(out cli.Output, name string) error {
	dev, err := cow.OpenDevice(name, false)
	if err != nil {
		return err
	}
	defer dev.Close()
	v, err := vbmeta.FromPartition(dev, dev.Size())
	if err != nil {
		return inFile(name, err)
	}
	f := vbmetaFactsOf(v)
	f.File, f.Size = name, dev.Size()
	if footer, err := vbmeta.ReadFooter(dev, dev.Size()); err == nil {
		f.Footer = &footerFacts{footer.OriginalImageSize, footer.VBMetaOffset}
	}
	if out.JSON {
		return out.Emit(f)
	}
	return f.print(out)
}

func vbmetaFactsOf(v *vbmeta.VBMeta) *vbmetaFacts {
	f := &vbmetaFacts{Event: "result", VBMetaSize: v.Size(), Version: fmt.Sprintf("1.%d", v.RequiredMinor), Algorithm: v.Algorithm.String(),
		Signature: "good", RollbackIndex: v.RollbackIndex, RollbackLocation: v.RollbackIndexLocation, Flags: uint32(v.Flags),
		Release: v.Release, KeyMetadata: len(v.KeyMetadata)}
	if len(v.PublicKey) > 0 {
		f.PublicKey = vbmeta.KeyDigest(v.PublicKey)
	}
	switch _, err := v.VerifyEmbedded(); {
	case errors.Is(err, vbmeta.ErrUnsigned):
		f.Signature = "none"
	case err != nil:
		f.Signature = err.Error()
	}
	for _, d := range v.Descriptors {
		f.Descriptors = append(f.Descriptors, descriptorFactsOf(d))
	}
	return f
}

func descriptorFactsOf(d vbmeta.Descriptor) descriptorFacts {
	switch d := d.(type) {
	case *vbmeta.Hashtree:
		return descriptorFacts{Type: "hashtree", Partition: d.Partition, ImageSize: d.ImageSize, Algorithm: d.Algorithm, Salt: hex.EncodeToString(d.Salt),
			Digest: hex.EncodeToString(d.RootDigest), TreeOffset: d.TreeOffset, TreeSize: d.TreeSize, DataBlockSize: d.DataBlockSize,
			HashBlockSize: d.HashBlockSize, FECRoots: d.FECRoots, FECOffset: d.FECOffset, FECSize: d.FECSize, Flags: d.Flags}
	case *vbmeta.Hash:
		return descriptorFacts{Type: "hash", Partition: d.Partition, ImageSize: d.ImageSize, Algorithm: d.Algorithm, Salt: hex.EncodeToString(d.Salt),
			Digest: hex.EncodeToString(d.Digest), Flags: d.Flags}
	case *vbmeta.ChainPartition:
		return descriptorFacts{Type: "chain", Partition: d.Partition, RollbackLocation: d.RollbackIndexLocation,
			PublicKey: vbmeta.KeyDigest(d.PublicKey), Flags: d.Flags}
	case *vbmeta.Property:
		return descriptorFacts{Type: "property", Key: d.Key, Value: string(d.Value)}
	case *vbmeta.KernelCmdline:
		return descriptorFacts{Type: "cmdline", Text: d.Text, Flags: d.Flags}
	}
	return descriptorFacts{Type: "unknown", Tag: d.Tag()}
}

func (f *vbmetaFacts) print(out cli.Output) error {
	t := tabwriter.NewWriter(out.Stdout, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) }
	row("file", "%s, %s", f.File, amount(f.Size))
	if f.Footer != nil {
		row("footer", "metadata at byte %d, behind an image of %s", f.Footer.VBMetaOffset, amount(f.Footer.OriginalImageSize))
	}
	row("metadata", "%d bytes, for version %s, made by %q", f.VBMetaSize, f.Version, f.Release)
	row("algorithm", "%s, signature: %s", f.Algorithm, f.Signature)
	if f.PublicKey != "" {
		row("public key", "SHA-256 %s", f.PublicKey)
	}
	row("rollback index", "%d at location %d", f.RollbackIndex, f.RollbackLocation)
	row("flags", "%s", flagsText(vbmeta.Flags(f.Flags)))
	if f.KeyMetadata > 0 {
		row("key metadata", "%d bytes", f.KeyMetadata)
	}
	for _, d := range f.Descriptors {
		d.print(row)
	}
	return t.Flush()
}

func flagsText(f vbmeta.Flags) string {
	text := fmt.Sprintf("%#x", uint32(f))
	if f&vbmeta.HashtreeDisabled != 0 {
		text += ", hash trees disabled"
	}
	if f&vbmeta.VerificationDisabled != 0 {
		text += ", verification disabled"
	}
	return text
}

func (d *descriptorFacts) print(row rowFunc) {
	switch d.Type {
	case "hashtree":
		d.printHashtree(row)
	case "hash":
		row("hash", "%s, %s", d.Partition, amount(d.ImageSize))
		row("", "%s %s, salt %s, flags %d", d.Algorithm, orNone(d.Digest), orNone(d.Salt), d.Flags)
	case "chain":
		row("chain", "%s, rollback index location %d, flags %d", d.Partition, d.RollbackLocation, d.Flags)
		row("", "key SHA-256 %s", d.PublicKey)
	case "property":
		row("property", "%q = %q", d.Key, d.Value)
	case "cmdline":
		row("command line", "%q, flags %d", d.Text, d.Flags)
	default:
		row("unknown", "descriptor of tag %d", d.Tag)
	}
}

func (d *descriptorFacts) printHashtree(row rowFunc) {
	row("hash tree", "%s, %s, blocks of %d and %d bytes, flags %d", d.Partition, amount(d.ImageSize), d.DataBlockSize, d.HashBlockSize, d.Flags)
	row("", "%s root %s, salt %s", d.Algorithm, orNone(d.Digest), orNone(d.Salt))
	row("", "tree of %s at byte %d", amount(d.TreeSize), d.TreeOffset)
	if d.FECSize > 0 {
		row("", "error correction of %s at byte %d, %d roots", amount(d.FECSize), d.FECOffset, d.FECRoots)
	}
}
