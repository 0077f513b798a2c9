package main

import (
	"errors"
	"fmt"
	"path"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/ota/install"
)

// payloads are the flags that all payload commands have.
type payloads struct {
	*common
	globs     []string
	secondary bool
}

func payloadCommand(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "payload",
		Short: "Make, look into and apply the payloads of A/B updates",
		Long: `A payload (payload.bin) is what an A/B update consists of: operations that make
new partitions, out of its own data or out of the old partitions. PAYLOAD is one,
or an OTA zip with one inside, which is not unpacked.

Partitions are named by patterns, as a shell's: --partition 'system*'.`,
		Example: `  cowtool payload info ota.zip
  cowtool payload verify --key otacerts.zip ota.zip
  cowtool payload extract -o new --partition boot,'vendor*' full.zip
  cowtool payload apply --old old -o new delta.zip
  cowtool payload create -o delta.zip --key release.pem --old old new`,
	}
	cmd.AddCommand(payloadInfoCommand(c), payloadListCommand(c), payloadStatsCommand(c), payloadApplyCommand(c), payloadExtractCommand(c), payloadVerifyCommand(c), payloadMapCommand(c),
		payloadCreateCommand(c), payloadPlanCommand(c), payloadRunCommand(c), payloadJoinCommand(c), payloadSignCommand(c), payloadPackCommand(c))
	return cmd
}

func (p *payloads) flags(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&p.globs, "partition", nil, "only partitions that match one of these `PATTERNS`")
	cmd.Flags().BoolVar(&p.secondary, "secondary", false, "the zip's other payload, secondary/payload.bin")
	cmd.Args, cmd.ValidArgsFunction = cli.Args("PAYLOAD"), fileArgs(1)
}

// selects tells whether a partition is wanted.
func (p *payloads) selects(name string) bool {
	for _, g := range p.globs {
		if ok, _ := path.Match(g, name); ok {
			return true
		}
	}
	return len(p.globs) == 0
}

// check refuses patterns that are none, or that match nothing.
func (p *payloads) check(m *payload.Metadata) error {
	for _, g := range p.globs {
		found := false
		for _, part := range m.Manifest.GetPartitions() {
			ok, err := path.Match(g, part.GetPartitionName())
			if err != nil {
				return cli.Usagef("--partition %s: %w", g, err)
			}
			found = found || ok
		}
		if !found {
			return fmt.Errorf("--partition %s: expected a partition of that name, found none: cowtool payload info tells their names", g)
		}
	}
	return nil
}

func (p *payloads) partitions(m *payload.Metadata) (wanted []*pb.PartitionUpdate) {
	for _, part := range m.Manifest.GetPartitions() {
		if p.selects(part.GetPartitionName()) {
			wanted = append(wanted, part)
		}
	}
	return wanted
}

// openPayload is a payload in a file, or in an OTA zip, whose metadata are checked.
type openPayload struct {
	*payload.Metadata
	*install.File
}

func (o *openPayload) close() { _ = o.File.Close() }

func (p *payloads) openFile(name string) (*install.File, error) {
	folder := ""
	if p.secondary {
		folder = "secondary/"
	}
	return install.OpenFile(name, folder)
}

// open reads the metadata and checks it, which is what every command needs.
func (p *payloads) open(name string) (*openPayload, error) {
	f, err := p.openFile(name)
	if err != nil {
		return nil, err
	}
	m, err := payload.Read(f, f.Size(), payload.Limits{})
	if err == nil {
		err = m.Check()
	}
	if err == nil {
		err = p.check(m)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return &openPayload{m, f}, nil
}
