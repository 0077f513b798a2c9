package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
	"cowbird/formats/payload/pb"
	"cowbird/ota/generate"
)

// build are the flags of what makes payloads.
type build struct {
	payloads
	old          string
	minor        uint32
	chunk        cli.Size
	effort       string
	zstd         bool
	timestamp    int64
	patch        string
	versions     map[string]string
	partial      bool
	groups       []string
	vabc         string
	cowVersion   uint32
	unit         cli.Size
	noVerity     bool
	postinstalls []string
	res          resources

	inputs []*generate.Input
	extras []generate.Extra // of a zip
}

// resources are what a machine gives.
type resources struct {
	workers int
	memory  cli.Size
	spool   string
}

func (r *resources) flags(cmd *cobra.Command) {
	workersFlag(cmd, &r.workers)
	r.memory = generate.DefaultMemory
	cmd.Flags().Var(&r.memory, "memory", "how much the operations that are made at a time may hold")
	cmd.Flags().StringVar(&r.spool, "spool", "", "the `FOLDER` for what does not fit into memory; none is that of temporary files")
	_ = cmd.MarkFlagDirname("spool")
}

func (r *resources) options() generate.Options {
	return generate.Options{Workers: r.workers, Memory: int64(r.memory), Spool: r.spool}
}

func (b *build) buildFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&b.globs, "partition", nil, "only partitions that match one of these `PATTERNS`")
	f.StringVar(&b.old, "old", "", "the images of the build that devices have, for a delta: a `FOLDER` or target files")
	f.Uint32Var(&b.minor, "minor", 0, "minor version of a delta, which says what devices understand; 0 is the highest")
	b.chunk = generate.DefaultChunk
	f.Var(&b.chunk, "chunk", "how much an operation makes at most that is not a file's")
	f.StringVar(&b.effort, "effort", "default", "fast, default or max: how hard the smallest data are looked for")
	f.BoolVar(&b.zstd, "zstd", false, "allow data compressed with zstd, which no Android understands")
	f.Int64Var(&b.timestamp, "timestamp", 0, "when the new build was made, `SECONDS` since 1970")
	f.StringVar(&b.patch, "security-patch-level", "", "that of the new build, as 2026-01-01")
	f.StringToStringVar(&b.versions, "version", nil, "versions of partitions, as `NAME=SECONDS`")
	f.BoolVar(&b.partial, "partial", false, "other partitions stay as they are")
	f.StringArrayVar(&b.groups, "group", nil, "a group of partitions in super, as `NAME:SIZE:PARTITIONS`, the last with commas; target files tell theirs")
	f.StringVar(&b.vabc, "vabc", "", "compression of COWs on devices, as lz4 or zstd,3; none: devices make no COWs")
	f.Uint32Var(&b.cowVersion, "cow-version", 3, "version of COWs on devices, 2 or 3")
	b.unit = 64 << 10
	f.Var(&b.unit, "unit", "the largest unit of COWs on devices (version 3)")
	f.BoolVar(&b.noVerity, "no-verity", false, "send hash trees and error correction, which devices make otherwise")
	f.StringArrayVar(&b.postinstalls, "postinstall", nil, "a program that devices run, as `NAME=PATH[:FILESYSTEM[:optional]]` in the partition; target files tell theirs")
	_ = cmd.MarkFlagDirname("old")
	values(cmd, "effort", "fast", "default", "max")
	b.res.flags(cmd)
	cmd.Args, cmd.ValidArgsFunction = cli.Args("NEW"), fileArgs(1)
}

func (b *build) close() (err error) {
	for _, in := range b.inputs {
		err = errors.Join(err, in.Close())
	}
	return err
}

func (b *build) open(path string) (*generate.Input, error) {
	in, err := generate.OpenInput(path, b.res.spool)
	if err == nil {
		b.inputs = append(b.inputs, in)
	}
	return in, err
}

// options opens the images; close must follow.
func (b *build) options(name string) (o generate.Options, err error) {
	if err = checkWorkers(b.res.workers); err != nil {
		return o, err
	}
	o = b.res.options()
	o.Minor, o.Chunk, o.Zstd, o.Timestamp, o.SecurityPatch, o.Partial = b.minor, int64(b.chunk), b.zstd, b.timestamp, b.patch, b.partial
	if o.Effort, err = generate.ParseEffort(b.effort); err != nil {
		return o, cli.UsageError{Err: err}
	}
	newer, err := b.open(name)
	if err != nil {
		return o, err
	}
	var older *generate.Input
	if b.old != "" {
		if older, err = b.open(b.old); err != nil {
			return o, err
		}
	}
	programs, err := b.programs(newer)
	if err != nil {
		return o, err
	}
	for _, n := range newer.Names {
		if b.selects(n) {
			p := b.partition(n, newer, older)
			p.Postinstall = programs[n]
			o.Partitions = append(o.Partitions, p)
		}
	}
	o.Apexes = newer.Apexes
	if b.extras, err = generate.Extras(newer, older); err != nil {
		return o, err
	}
	o.Dynamic, err = b.dynamic(newer.Dynamic)
	return o, err
}

func (b *build) partition(name string, newer, older *generate.Input) generate.Partition {
	p := generate.Partition{Name: name, Version: b.versions[name]}
	p.New, _ = newer.Image(name)
	if older != nil {
		if img, ok := older.Image(name); ok {
			p.Old = &img
		}
	}
	if !b.noVerity {
		p.Verity = generate.FindVerity(p.New)
	}
	return p
}

// programs are what the target files have devices run, and the flags, which come before
// them.
func (b *build) programs(in *generate.Input) (map[string]*generate.Postinstall, error) {
	all := map[string]*generate.Postinstall{}
	maps.Copy(all, in.Postinstalls)
	for _, text := range b.postinstalls {
		name, program, found := strings.Cut(text, "=")
		parts := strings.Split(program, ":")
		if !found || parts[0] == "" || len(parts) > 3 || len(parts) == 3 && parts[2] != "optional" {
			return nil, cli.Usagef("--postinstall: expected NAME=PATH, :FILESYSTEM and :optional, found %q", text)
		}
		if !slices.Contains(in.Names, name) {
			return nil, cli.Usagef("--postinstall: expected one of the partitions %s, found %q", strings.Join(in.Names, ", "), name)
		}
		p := &generate.Postinstall{Path: parts[0], Optional: len(parts) == 3}
		if len(parts) > 1 {
			p.Filesystem = parts[1]
		}
		all[name] = p
	}
	return all, nil
}

// dynamic is what the flags say of super, or else the target files.
func (b *build) dynamic(d *pb.DynamicPartitionMetadata) (*pb.DynamicPartitionMetadata, error) {
	if len(b.groups) > 0 {
		d = &pb.DynamicPartitionMetadata{SnapshotEnabled: proto.Bool(true)}
		for _, text := range b.groups {
			parts := strings.Split(text, ":")
			var size cli.Size
			if len(parts) != 3 || size.Set(parts[1]) != nil {
				return nil, cli.Usagef("--group: expected NAME:SIZE:PARTITIONS, found %q", text)
			}
			d.Groups = append(d.Groups, &pb.DynamicPartitionGroup{Name: proto.String(parts[0]), Size: proto.Uint64(uint64(size)), PartitionNames: strings.Split(parts[2], ",")})
		}
	}
	if b.vabc == "" {
		return d, nil
	}
	if d == nil {
		return nil, cli.Usagef("--vabc: expected --group, or target files that tell the partitions in super, found neither")
	}
	d.SnapshotEnabled, d.VabcEnabled, d.VabcCompressionParam, d.CowVersion = proto.Bool(true), proto.Bool(true), proto.String(b.vabc), proto.Uint32(b.cowVersion)
	if b.cowVersion >= 3 {
		d.CompressionFactor = proto.Uint64(uint64(b.unit))
	}
	return d, nil
}

// release are the flags of what is written in the end.
type release struct {
	out     string
	keys    []string
	sizes   []int
	digests string
	zip     packaging
}

func (r *release) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&r.out, "output", "o", "", "the `FILE` to write: a payload or, if it ends with .zip, an OTA zip")
	f.StringArrayVar(&r.keys, "key", nil, "sign with the private key in a `FILE` (RSA or ECDSA, PEM); may be given again")
	f.IntSliceVar(&r.sizes, "signature-size", nil, "leave room for signatures of so many `BYTES`, which cowtool payload sign puts in")
	f.StringVar(&r.digests, "digests", "", "a `FOLDER` for what is to be signed: payload.sha256 and metadata.sha256, 32 bytes each")
	r.zip.flags(cmd)
	_ = cmd.MarkFlagRequired("output")
	_ = cmd.MarkFlagFilename("output")
	_ = cmd.MarkFlagFilename("key")
	_ = cmd.MarkFlagDirname("digests")
	cmd.MarkFlagsMutuallyExclusive("key", "signature-size")
}

func (r *release) signers() (all []generate.Signer, err error) {
	if len(r.sizes) > 0 && r.isZip() {
		return nil, cli.Usagef("--signature-size: expected a payload, found %s: pack it when it is signed, with cowtool payload pack", r.out)
	}
	for _, n := range r.sizes {
		if n <= 0 || n > 4096 {
			return nil, cli.Usagef("--signature-size: expected 1 to 4096 bytes, found %d", n)
		}
		all = append(all, generate.Later(n))
	}
	keys, err := readKeys(r.keys)
	for _, k := range keys {
		all = append(all, k)
	}
	return all, err
}

// check finds out before anything is made whether it can be signed.
func (r *release) check() error {
	if _, err := r.signers(); err != nil {
		return err
	}
	if !r.isZip() {
		return r.zip.unwanted(r.out)
	}
	if r.zip.certificate != "" && len(r.keys) == 0 {
		return cli.Usagef("--certificate: expected its --key beside it, found none: with a key that is elsewhere, see cowtool payload pack")
	}
	_, _, err := r.zip.signer(r.keys)
	return err
}

func (r *release) isZip() bool { return strings.HasSuffix(r.out, ".zip") }

// write writes the payload, or a zip with it.
func (r *release) write(p *generate.Payload, spool string, extras []generate.Extra) (w *generate.Written, err error) {
	signers, err := r.signers()
	if err != nil {
		return nil, err
	}
	out, err := cli.CreateOut(r.out)
	if err != nil {
		return nil, err
	}
	defer out.Discard()
	if r.isZip() {
		w, err = r.writeZip(out, p, signers, spool, extras)
	} else {
		w, err = p.Write(out, signers)
	}
	if err == nil {
		err = out.Commit()
	}
	if err == nil && r.digests != "" {
		err = r.writeDigests(w)
	}
	return w, err
}

func (r *release) writeDigests(w *generate.Written) error {
	if err := os.MkdirAll(r.digests, 0o777); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(r.digests, "payload.sha256"), w.PayloadDigest[:], 0o666),
		os.WriteFile(filepath.Join(r.digests, "metadata.sha256"), w.MetadataDigest[:], 0o666))
}

func (r *release) writeZip(out *cli.OutFile, p *generate.Payload, signers []generate.Signer, spool string, extras []generate.Extra) (*generate.Written, error) {
	f, err := os.CreateTemp(spool, "payload.*")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	w, err := p.Write(f, signers)
	if err != nil {
		return nil, err
	}
	_, err = r.zip.write(out, f, w, p.Manifest, r.keys, extras)
	return w, err
}

// payloadReport is what create, join and sign tell.
type payloadReport struct {
	Event          string `json:"event"`
	File           string `json:"file"`
	Size           int64  `json:"payload_size"`
	SHA256         string `json:"payload_sha256"`
	MetadataSHA256 string `json:"metadata_digest"`
	PayloadSHA256  string `json:"payload_digest"`
}

func reportPayload(out cli.Output, name string, w *generate.Written) error {
	if out.JSON {
		return out.Emit(payloadReport{"result", name, w.Properties.FileSize, fmt.Sprintf("%x", w.Properties.FileHash),
			fmt.Sprintf("%x", w.MetadataDigest), fmt.Sprintf("%x", w.PayloadDigest)})
	}
	_, err := fmt.Fprintf(out.Stdout, "%s: a payload of %s, which gives the new partitions\n", name, amount(w.Properties.FileSize))
	return err
}

func payloadCreateCommand(c *common) *cobra.Command {
	b, r := &build{payloads: payloads{common: c}}, &release{}
	cmd := &cobra.Command{
		Use:   "create -o FILE [--old IMAGES] NEW",
		Short: "Make a payload of images",
		Long: `Makes the payload that installs the images of NEW: a folder with NAME.img, or the
target files of an Android build (a folder or zip with IMAGES and META). Images may be
sparse. With --old it is a delta: for devices that have those images, and no others.

Blocks that the old partition has are copied, files are compared with their old
versions (ext4, erofs), and whatever comes out smallest is taken. --effort max takes many
times as long. What is written has been applied, as a device would; with --vabc, into
a COW, whose exact size the payload tells.

The same images and options give the same bytes, except for ECDSA's signatures, on
any machine and with any number of workers. Keys that lie in a hardware module
sign in two steps: --signature-size and --digests, then cowtool payload sign. For many
machines see cowtool payload plan.`,
		Example: `  cowtool payload create -o full.bin --key release.pem images/
  cowtool payload create -o ota.zip --key release.pem --old target-1.zip target-2.zip
  cowtool payload create -o delta.bin --old v1 --group main:4G:system,vendor --vabc lz4 v2
  cowtool payload create -o new.bin --signature-size 256 --digests . images/`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return b.create(cmd.Context(), b.output(cmd), r, args[0])
		},
	}
	r.flags(cmd)
	b.buildFlags(cmd)
	return cmd
}

func (b *build) create(ctx context.Context, out cli.Output, r *release, name string) (err error) {
	defer func() { err = errors.Join(err, b.close()) }()
	o, err := b.options(name)
	if err != nil {
		return err
	}
	if err := r.check(); err != nil {
		return err
	}
	meter := out.Meter(string(generate.Reading))
	defer meter.End()
	o.OnProgress = showSteps(meter)
	p, err := generate.Create(ctx, o)
	if err != nil {
		return err
	}
	defer p.Close()
	w, err := r.write(p, b.res.spool, b.extras)
	if err != nil {
		return err
	}
	meter.End()
	return reportPayload(out, r.out, w)
}

func showSteps(m *cli.Meter) func(generate.Progress) {
	return func(p generate.Progress) {
		m.Step(string(p.Step))
		m.Update(p.Done, p.Total)
	}
}

// imagesOf gives a plan's images from two inputs.
func imagesOf(newer, older *generate.Input) func(string, bool) (cow.Image, *cow.Image, error) {
	return func(name string, withOld bool) (cow.Image, *cow.Image, error) {
		img, ok := newer.Image(name)
		if !ok {
			return img, nil, fmt.Errorf("expected an image of partition %s, which is in the plan, found none", name)
		}
		if !withOld {
			return img, nil, nil
		}
		if older != nil {
			if old, ok := older.Image(name); ok {
				return img, &old, nil
			}
		}
		return img, nil, fmt.Errorf("expected an old image of partition %s, which is in the plan, found none: give --old", name)
	}
}
