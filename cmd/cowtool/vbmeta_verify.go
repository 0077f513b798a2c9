package main

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
	"cowbird/formats/vbmeta"
)

type vbmetaVerify struct {
	*common
	key, images string
	unsigned    bool
	open        devices
}

func vbmetaVerifyCommand(c *common) *cobra.Command {
	v := vbmetaVerify{common: c}
	cmd := &cobra.Command{
		Use:   "verify [--key FILE] [--images DIR] FILE",
		Short: "Prove that metadata are signed, and that partitions are what they say",
		Long: `Verifies the signature of the metadata in FILE: by the key, or without --key by the one
that they bring along, which proves only that they are whole. With --images it goes on
as a device does: chained partitions must be in DIR, as NAME.img or NAME, and signed by
the keys that FILE says; every partition of which the metadata have a hash or the root
of a hash tree is read if it is there. The exit code is 1 if anything is wrong.`,
		Example: `  cowtool vbmeta verify --key release.pub.pem vbmeta.img
  cowtool vbmeta verify --key release.pub.pem --images out vbmeta.img
  cowtool vbmeta verify --unsigned --images . system.img`,
		Args:              cli.Args("FILE"),
		ValidArgsFunction: fileArgs(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return v.run(cmd.Context(), v.output(cmd), args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&v.key, "key", "", "a public key or certificate, a `FILE`")
	f.StringVar(&v.images, "images", "", "the folder with the partitions, a `DIR`")
	f.BoolVar(&v.unsigned, "unsigned", false, "take metadata without a signature; chained partitions are left out")
	_ = cmd.MarkFlagFilename("key")
	_ = cmd.MarkFlagDirname("images")
	return cmd
}

// verified is a line about a partition.
type verified struct {
	Event     string `json:"event"`
	Partition string `json:"partition"`
	Kind      string `json:"kind"` // metadata, hash or hashtree
	File      string `json:"file,omitempty"`
	Good      bool   `json:"good"`
	Missing   bool   `json:"missing,omitempty"`
	Text      string `json:"text"`
	Error     string `json:"error,omitempty"`
	Bad       int64  `json:"bad_blocks,omitempty"`
	First     *int64 `json:"first_bad_block,omitempty"`
}

func (v *vbmetaVerify) run(ctx context.Context, out cli.Output, name string) error {
	if v.unsigned && v.key != "" {
		return cli.Usagef("expected --key or --unsigned, found both")
	}
	defer func() { v.open.close() }()
	m, err := readVBMeta(name)
	if err != nil {
		return err
	}
	trust, err := v.signature(m)
	if err != nil {
		return inFile(name, err)
	}
	if err := v.tell(out, verified{Event: "verified", Partition: vbmeta.RootPartition, Kind: "metadata", File: name, Good: true}, trust.text); err != nil {
		return err
	}
	if v.images == "" {
		return nil
	}
	descriptors, err := v.chain(out, name, m, trust.key)
	if err != nil {
		return err
	}
	return v.partitions(ctx, out, descriptors)
}

// trust is what is known of a signature.
type trust struct {
	key  *rsa.PublicKey
	text string
}

func (v *vbmetaVerify) signature(m *vbmeta.VBMeta) (t trust, err error) {
	switch {
	case v.unsigned && m.Algorithm == vbmeta.None:
		return trust{nil, "not signed"}, nil
	case v.key == "":
		t.key, err = m.VerifyEmbedded()
		return trust{t.key, "signed by the key in it, SHA-256 " + vbmeta.KeyDigest(m.PublicKey) + ", of which nothing is known"}, err
	}
	if t.key, err = readPublicKey(v.key); err != nil {
		return trust{}, err
	}
	return trust{t.key, "signed by the key"}, m.Verify(t.key)
}

// chain gives the descriptors by partition, of all metadata that belong together.
func (v *vbmetaVerify) chain(out cli.Output, name string, m *vbmeta.VBMeta, key *rsa.PublicKey) (map[string][]vbmeta.Descriptor, error) {
	if key == nil {
		all := map[string][]vbmeta.Descriptor{}
		for _, d := range m.Descriptors {
			all[vbmeta.Named(d)] = append(all[vbmeta.Named(d)], d)
		}
		return all, nil
	}
	c, err := vbmeta.VerifyChain(func(partition string) (io.ReaderAt, int64, error) { return v.load(name, partition) }, key)
	if err != nil {
		return nil, err
	}
	for _, l := range c.Links[1:] {
		line := verified{Event: "verified", Partition: l.Partition, Kind: "metadata", Good: true}
		if err := v.tell(out, line, "signed by the key it is chained with"); err != nil {
			return nil, err
		}
	}
	return c.Descriptors, nil
}

func (v *vbmetaVerify) load(root, partition string) (io.ReaderAt, int64, error) {
	path := root
	if partition != vbmeta.RootPartition {
		path = v.file(partition)
	}
	dev, err := v.openImage(path)
	if err != nil {
		return nil, 0, err
	}
	return dev, dev.Size(), nil
}

// file is where a partition is, or should be. Names are such that they can be files.
func (v *vbmetaVerify) file(partition string) string {
	path := filepath.Join(v.images, partition)
	if _, err := os.Stat(path + ".img"); err == nil {
		return path + ".img"
	}
	return path
}

func (v *vbmetaVerify) openImage(path string) (*cow.FileDevice, error) {
	dev, err := cow.OpenDevice(path, false)
	if err == nil {
		v.open = append(v.open, dev)
	}
	return dev, err
}

// partitions reads each and goes on after one that is wrong.
func (v *vbmetaVerify) partitions(ctx context.Context, out cli.Output, all map[string][]vbmeta.Descriptor) error {
	var failures []error
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for _, d := range all[name] {
			line := verified{Event: "verified", Partition: name, File: v.file(name)}
			switch d.(type) {
			case *vbmeta.Hash:
				line.Kind = "hash"
			case *vbmeta.Hashtree:
				line.Kind = "hashtree"
			default:
				continue
			}
			text, err := v.partition(ctx, out, &line, d)
			if err := v.tell(out, line, text); err != nil {
				return err
			}
			if err != nil {
				failures = append(failures, fmt.Errorf("partition %s: %w", name, err))
			}
		}
	}
	return errors.Join(failures...)
}

// partition compares one with a descriptor.
func (v *vbmetaVerify) partition(ctx context.Context, out cli.Output, line *verified, d vbmeta.Descriptor) (text string, err error) {
	dev, err := v.openImage(line.File)
	if errors.Is(err, os.ErrNotExist) {
		line.Missing, line.File = true, ""
		return "not there", nil
	}
	if err == nil {
		err = line.compare(ctx, out, dev, d)
	}
	if err != nil {
		line.Error = err.Error()
		return "wrong", err
	}
	line.Good = true
	return "good", nil
}

func (line *verified) compare(ctx context.Context, out cli.Output, dev *cow.FileDevice, d vbmeta.Descriptor) error {
	meter := out.Meter("verifying " + line.Partition)
	defer meter.End()
	switch d := d.(type) {
	case *vbmeta.Hash:
		return d.Check(&watched{ReaderAt: dev, ctx: ctx, onRead: meter.Update, total: d.ImageSize}, dev.Size())
	case *vbmeta.Hashtree:
		p := &protected{name: line.File, file: dev}
		if err := p.describe(d); err != nil {
			return err
		}
		damage, err := p.compare(&watched{ReaderAt: dev, ctx: ctx, onRead: meter.Update, total: p.Size})
		if err != nil {
			return err
		}
		if line.Bad = damage.Data.Count(); line.Bad > 0 {
			first := damage.Data.First()
			line.First = &first
		}
		return damage.Err()
	}
	return nil
}

func (v *vbmetaVerify) tell(out cli.Output, line verified, text string) error {
	if line.Text = text; out.JSON {
		return out.Emit(line)
	}
	_, err := fmt.Fprintf(out.Stdout, "%s: %s: %s\n", line.Partition, line.Kind, text)
	return err
}
