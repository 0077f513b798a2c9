package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
	"cowbird/formats/vbmeta"
)

const vbmetaRelease = "cowtool"

type vbmetaMake struct {
	*common
	out                        string
	signer                     signer
	properties, cmdlines       []string
	includes, hashes, chains   []string
	rollbackIndex              uint64
	rollbackLocation           uint32
	noHashtree, noVerification bool
	padding                    cli.Size
}

func vbmetaMakeCommand(c *common) *cobra.Command {
	m := vbmetaMake{common: c}
	cmd := &cobra.Command{
		Use:   "make -o FILE [--key KEY]",
		Short: "Make metadata, signed or not",
		Long: `Makes a metadata image. Without --key it is not signed, which no locked device takes.
Descriptors stand in this order: chained partitions, those of included images, hashes,
properties, command lines; each in the order in which they are given.`,
		Example: `  cowtool vbmeta make -o vbmeta.img --key release.key --include system.img --include vendor.img --hash boot=boot.img
  cowtool vbmeta make -o vbmeta.img --key root.key --chain vbmeta_system:1:system.pub.pem --rollback-index 1767225600
  cowtool vbmeta make -o vbmeta.img --verification-disabled    # what unlocked devices take`,
		Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error { return m.run(m.output(cmd)) },
	}
	outFlag(cmd, &m.out, "the metadata image")
	signerFlags(cmd, &m.signer)
	f := cmd.Flags()
	f.StringArrayVar(&m.includes, "include", nil, "an image whose metadata's descriptors are taken, a `FILE`")
	f.StringArrayVar(&m.hashes, "hash", nil, "an image to be hashed whole, `NAME=FILE`")
	f.StringArrayVar(&m.chains, "chain", nil, "a partition with metadata by another key, `NAME:LOCATION:KEY`")
	propertyFlag(cmd, &m.properties)
	f.StringArrayVar(&m.cmdlines, "cmdline", nil, "what is added to the kernel's command line, a `TEXT`")
	f.Uint64Var(&m.rollbackIndex, "rollback-index", 0, "devices do not go back to a lower one")
	f.Uint32Var(&m.rollbackLocation, "rollback-index-location", 0, "which of a device's indexes that is")
	f.BoolVar(&m.noHashtree, "hashtree-disabled", false, "have partitions used without dm-verity")
	f.BoolVar(&m.noVerification, "verification-disabled", false, "have descriptors not looked at")
	f.Var(&m.padding, "padding", "make the image a multiple of so many bytes")
	return cmd
}

func signerFlags(cmd *cobra.Command, s *signer) {
	cmd.Flags().StringVar(&s.path, "key", "", "the private key to sign with, PEM")
	cmd.Flags().StringVar(&s.algorithm, "algorithm", "", "such as SHA512_RSA4096; the default is SHA256 and the key's size")
	_ = cmd.MarkFlagFilename("key")
	var names []string
	for a := vbmeta.SHA256RSA2048; a <= vbmeta.SHA512RSA8192; a++ {
		names = append(names, a.String())
	}
	values(cmd, "algorithm", names...)
}

func propertyFlag(cmd *cobra.Command, to *[]string) {
	cmd.Flags().StringArrayVar(to, "prop", nil, "a property, `KEY=VALUE`")
}

func (m *vbmetaMake) run(out cli.Output) error {
	if err := m.signer.check(); err != nil {
		return err
	}
	if m.padding < 0 || m.padding > 1<<30 {
		return cli.Usagef("--padding: expected at most 1G, found %d", m.padding)
	}
	v := &vbmeta.VBMeta{RollbackIndex: m.rollbackIndex, RollbackIndexLocation: m.rollbackLocation, Release: vbmetaRelease}
	if m.noHashtree {
		v.Flags |= vbmeta.HashtreeDisabled
	}
	if m.noVerification {
		v.Flags |= vbmeta.VerificationDisabled
	}
	if err := m.describe(v); err != nil {
		return err
	}
	b, err := m.signer.sign(v)
	if err != nil {
		return err
	}
	size := len(b)
	if pad := int(m.padding); pad > 0 {
		b = append(b, make([]byte, (pad-size%pad)%pad)...)
	}
	if err := writeFile(m.out, b); err != nil {
		return err
	}
	if out.JSON {
		made, err := vbmeta.Parse(b)
		if err != nil {
			return err
		}
		f := vbmetaFactsOf(made)
		f.File, f.Size = m.out, int64(len(b))
		return out.Emit(f)
	}
	_, err = fmt.Fprintf(out.Stdout, "%s: %d bytes of metadata, %d descriptors\n", m.out, size, len(v.Descriptors))
	return err
}

// describe makes the descriptors.
func (m *vbmetaMake) describe(v *vbmeta.VBMeta) error {
	for _, c := range m.chains {
		d, err := chainOf(c)
		if err != nil {
			return err
		}
		v.Descriptors = append(v.Descriptors, d)
	}
	for _, name := range m.includes {
		from, err := readVBMeta(name)
		if err != nil {
			return err
		}
		v.Descriptors = append(v.Descriptors, from.Descriptors...)
		v.RequiredMinor = max(v.RequiredMinor, from.RequiredMinor)
	}
	for _, h := range m.hashes {
		d, err := hashOf(h)
		if err != nil {
			return err
		}
		v.Descriptors = append(v.Descriptors, d)
	}
	properties, err := propertiesOf(m.properties)
	v.Descriptors = append(v.Descriptors, properties...)
	for _, c := range m.cmdlines {
		v.Descriptors = append(v.Descriptors, &vbmeta.KernelCmdline{Text: c})
	}
	return err
}

func propertiesOf(pairs []string) (all []vbmeta.Descriptor, err error) {
	for _, p := range pairs {
		key, value, ok := strings.Cut(p, "=")
		if !ok || key == "" {
			return nil, cli.Usagef("--prop %s: expected KEY=VALUE", p)
		}
		all = append(all, &vbmeta.Property{Key: key, Value: []byte(value)})
	}
	return all, nil
}

func chainOf(text string) (*vbmeta.ChainPartition, error) {
	words := strings.SplitN(text, ":", 3)
	if len(words) != 3 {
		return nil, cli.Usagef("--chain %s: expected NAME:LOCATION:KEY", text)
	}
	location, err := strconv.ParseUint(words[1], 10, 32)
	if err != nil || location == 0 {
		return nil, cli.Usagef("--chain %s: expected a location of 1 or more, found %q", text, words[1])
	}
	key, err := readPublicKey(words[2])
	if err != nil {
		return nil, err
	}
	encoded, err := vbmeta.EncodeKey(key)
	return &vbmeta.ChainPartition{Partition: words[0], RollbackIndexLocation: uint32(location), PublicKey: encoded}, inFile(words[2], err)
}

func hashOf(text string) (*vbmeta.Hash, error) {
	name, path, ok := strings.Cut(text, "=")
	if !ok {
		return nil, cli.Usagef("--hash %s: expected NAME=FILE", text)
	}
	dev, err := cow.OpenDevice(path, false)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	h := &vbmeta.Hash{Partition: name, ImageSize: dev.Size(), Algorithm: "sha256"}
	if f, err := vbmeta.ReadFooter(dev, dev.Size()); err == nil {
		h.ImageSize = f.OriginalImageSize
	} else if !errors.Is(err, vbmeta.ErrNoFooter) {
		return nil, inFile(path, err)
	}
	h.Digest, err = h.Sum(dev, dev.Size())
	return h, inFile(path, err)
}

func readVBMeta(name string) (*vbmeta.VBMeta, error) {
	dev, err := cow.OpenDevice(name, false)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	v, err := vbmeta.FromPartition(dev, dev.Size())
	return v, inFile(name, err)
}

// writeFile makes a file that appears whole.
func writeFile(path string, b []byte) error {
	o, err := cli.CreateOut(path)
	if err != nil {
		return err
	}
	defer o.Discard()
	if _, err := o.WriteAt(b, 0); err != nil {
		return err
	}
	return o.Commit()
}
