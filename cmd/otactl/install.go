package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/payload"
	"cowbird/ota/apply"
	"cowbird/ota/fetch"
	"cowbird/ota/install"
	"cowbird/ota/update"
	"cowbird/ota/verify"
)

type installation struct {
	whole
	unsigned             bool
	downgrade, patchDown bool
	restart              bool
	secondary            bool
	quiet                bool
	workers              int
	memory               cli.Size
	spool                string
	progress             func(done, total int64) // nil: a bar, or lines of JSON
	noted                bool                    // so that others may watch
}

func (r *remote) installCommand() *cobra.Command {
	i := &installation{whole: whole{remote: r}}
	cmd := &cobra.Command{
		Use:   "install --config FILE PAYLOAD",
		Short: "Install an A/B payload into COWs and partitions",
		Long: `Installs a payload: a payload.bin or an OTA zip, a file or an http(s) URL, or - for a
payload on standard input. What comes over a line that is cut is gone on with at the
byte where that was; a zip needs a server that sends parts of files.
Partitions that are snapshots go into COWs, which otactl map serves and otactl merge
merges; others are written directly. Old partitions are only read.

It may be interrupted at any moment; the same command then goes on where it was. While
it is not complete, another payload is refused unless --restart is given.

The configuration is JSON; paths in it are relative to its folder:

  {
    "state": "state.json",
    "keys": "otacerts.zip",
    "device": {"timestamp": 1767225600, "security_patch_level": "2026-01-01"},
    "partitions": {
      "system": {"old": "/dev/disk/by-partlabel/system_a", "cow": "system.cow"},
      "boot":   {"old": "/dev/disk/by-partlabel/boot_a", "new": "/dev/disk/by-partlabel/boot_b"}
    }
  }

Or it describes the whole device, whose partitions lie in a super partition. Then
the room for the COWs is made first, and when all is written the boot loader is told
to try the other slot at the next boot:

  {
    "state": "/metadata/ota",
    "super": "/dev/disk/by-partlabel/super",
    "static": "/dev/disk/by-partlabel/*",
    "slots": {"misc": {"path": "/dev/disk/by-partlabel/misc"}},
    "keys": "otacerts.zip"
  }

"cow_version", "compression" (as "zstd,9") and "max_unit" override what the payload
says of COWs. A payload without a signature by one of the keys is refused, and so is
one that is older than the device, unless a flag says otherwise.`,
		Example: `  otactl install --config /etc/ota.json ota.zip
  otactl install --config /etc/ota.json https://example.org/ota.zip
  zcat payload.bin.gz | otactl install --config /etc/ota.json -`,
		Args: cli.Args("PAYLOAD"),
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cli.Output{JSON: i.json, Quiet: i.quiet, Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr()}
			return i.run(cmd.Context(), cmd, out, args[0])
		},
	}
	f := cmd.Flags()
	f.StringVar(&i.config, "config", defaultConfig, "where partitions go, a `FILE`")
	f.BoolVar(&i.unsigned, "unsigned", false, "trust the payload for where it comes from")
	f.BoolVar(&i.downgrade, "downgrade", false, "take a payload that is older than the device")
	f.BoolVar(&i.patchDown, "security-downgrade", false, "take a payload with an older security patch level")
	f.BoolVar(&i.restart, "restart", false, "drop another payload that was being installed, or is not merged")
	f.BoolVar(&i.secondary, "secondary", false, "the zip's other payload, secondary/payload.bin")
	f.BoolVar(&i.json, "json", false, "print a JSON object a line, for programs")
	f.BoolVarP(&i.quiet, "quiet", "q", false, "no progress bar")
	f.IntVar(&i.workers, "workers", 0, "how many to work at a time; 0 is one a processor")
	f.Var(&i.memory, "memory", "how much operations may hold together; one that needs more runs alone and spills to files. 0 is 32M, and none spills")
	f.StringVar(&i.spool, "spool", "", "the `FOLDER` for what does not fit into memory; none is that of temporary files")
	_ = cmd.MarkFlagFilename("config")
	_ = cmd.MarkFlagDirname("spool")
	return cmd
}

func (i *installation) run(ctx context.Context, cmd *cobra.Command, out cli.Output, name string) error {
	if i.workers < 0 {
		return cli.Usagef("--workers: expected 0 or more, found %d", i.workers)
	}
	device, err := readDeviceConfig(i.config)
	if err != nil {
		return err
	}
	if device != nil {
		return i.withConfig(ctx, cmd, device, func(ctx context.Context, d *update.Device) error {
			return i.runWith(ctx, cmd, out, name, nil, d)
		})
	}
	config, err := install.ReadConfig(i.config)
	if err != nil {
		return err
	}
	return i.runWith(ctx, cmd, out, name, config, nil)
}

// runWith installs into the partitions of a configuration, or on the whole device.
func (i *installation) runWith(ctx context.Context, cmd *cobra.Command, out cli.Output, name string, config *install.Config, device *update.Device) error {
	run, policyOf := install.Run, config.Policy
	if i.noted = device != nil; i.noted {
		run, policyOf = device.Install, device.Policy
	}
	policy, err := policyOf()
	if err != nil {
		return err
	}
	policy.AllowUnsigned, policy.AllowDowngrade, policy.AllowSPLDowngrade = i.unsigned, i.downgrade, i.patchDown
	o := install.Options{Config: config, Restart: i.restart, Workers: i.workers, Memory: int64(i.memory), Stream: apply.StreamOptions{Spool: i.spool}}
	source, zip, done, err := i.open(ctx, cmd, name)
	if err != nil {
		return err
	}
	defer done()
	if zip != nil {
		policy.Properties, policy.Package, o.CareMap = zip.Properties, zip.Metadata, zip.CareMap
	}
	o.Source, o.Policy = source, *policy
	return i.install(ctx, out, run, o, name)
}

// open also gives the zip that the payload is in, or nil.
func (i *installation) open(ctx context.Context, cmd *cobra.Command, name string) (install.Source, *payload.Package, func(), error) {
	if name == "-" {
		return &install.Once{R: cmd.InOrStdin()}, nil, func() {}, nil
	}
	if strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://") {
		return i.openURL(ctx, name)
	}
	f, err := install.OpenFile(name, i.folder())
	if err != nil {
		return nil, nil, nil, err
	}
	return f, f.Package, func() { _ = f.Close() }, nil
}

// openURL also finds the payload in a zip there, by a few requests for its directory.
func (i *installation) openURL(ctx context.Context, address string) (install.Source, *payload.Package, func(), error) {
	s, err := fetch.Open(ctx, address, fetch.Options{})
	if err != nil {
		return nil, nil, nil, err
	}
	done := func() { _ = s.Close() }
	r, err := s.From(ctx, 0)
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	defer r.Close()
	var first [4]byte
	if _, err := io.ReadFull(r, first[:]); err != nil {
		done()
		return nil, nil, nil, err
	}
	if !payload.IsZip(first[:]) {
		return s, nil, done, nil
	}
	in, err := payload.InZip(s, s.Size(), i.folder())
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	return &install.Part{Of: s, Range: in.Payload}, in, done, nil
}

func (i *installation) folder() string {
	if i.secondary {
		return "secondary/"
	}
	return ""
}

func (i *installation) install(ctx context.Context, out cli.Output, run func(context.Context, install.Options) error, o install.Options, name string) error {
	meter := out.Meter("installing")
	show := i.progress
	if show == nil {
		show = meter.Update
	}
	o.OnProgress = show
	if i.noted {
		n := &notes{}
		defer n.end()
		o.OnProgress = func(done, total int64) { n.update(done, total); show(done, total) }
	}
	o.OnPartition = func(partition, _ string) { meter.Describe("installing " + partition) }
	err := run(ctx, o)
	meter.End()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if out.JSON {
		return out.Emit(struct {
			Event string `json:"event"`
			Done  bool   `json:"done"`
		}{"result", true})
	}
	_, err = fmt.Fprintf(out.Stdout, "%s: installed and verified\n", name)
	return err
}

// installAdvice says what to do about an error of an installation.
func installAdvice(err error) string {
	var refusal *verify.Error
	switch {
	case errors.As(err, &refusal):
		return "" // it says so itself
	case errors.Is(err, install.ErrOther):
		return "finish that one first, or give --restart to forget it"
	case errors.Is(err, install.ErrPending):
		return "merge it first, or give --restart to drop it"
	case errors.Is(err, payload.ErrTruncated):
		return "get it again; what is installed already stays"
	}
	return ""
}
