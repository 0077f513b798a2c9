package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
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
		Short: "Look into and apply the payloads of A/B updates",
		Long: `A payload (payload.bin) is what an A/B update consists of: operations that make
new partitions, out of its own data or out of the old partitions. PAYLOAD is one,
or an OTA zip with one inside, which is not unpacked.

Partitions are named by patterns, as a shell's: --partition 'system*'.`,
		Example: `  cowtool payload info ota.zip
  cowtool payload extract -o new --partition boot,'vendor*' full.zip
  cowtool payload apply --old old -o new delta.zip`,
	}
	cmd.AddCommand(payloadInfoCommand(c), payloadListCommand(c), payloadStatsCommand(c), payloadApplyCommand(c), payloadExtractCommand(c))
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

// openPayload is a payload in a file, or in an OTA zip.
type openPayload struct {
	*payload.Metadata
	file       *os.File
	whole      *io.SectionReader
	properties *payload.Properties // nil: not known
}

func (o *openPayload) close() { _ = o.file.Close() }

// open reads the metadata and checks it, which is what every command needs.
func (p *payloads) open(name string) (*openPayload, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	o := &openPayload{file: f}
	if err := o.read(p); err != nil {
		o.close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return o, nil
}

func (o *openPayload) read(p *payloads) error {
	size, err := o.file.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("expected a file that can be read at any place, found none: %w", err)
	}
	if err := o.locate(size, p.secondary); err != nil {
		return err
	}
	if o.Metadata, err = payload.Read(o.whole, o.whole.Size(), payload.Limits{}); err != nil {
		return err
	}
	return errors.Join(o.Check(), p.check(o.Metadata))
}

func (o *openPayload) locate(size int64, secondary bool) error {
	var first [4]byte
	if _, err := o.file.ReadAt(first[:], 0); err != nil && err != io.EOF {
		return err
	}
	if !payload.IsZip(first[:]) {
		o.whole = io.NewSectionReader(o.file, 0, size)
		return nil
	}
	prefix := ""
	if secondary {
		prefix = "secondary/"
	}
	in, err := payload.InZip(o.file, size, prefix)
	if err != nil {
		return err
	}
	o.whole, o.properties = io.NewSectionReader(o.file, in.Payload.Offset, in.Payload.Size), in.Properties
	return nil
}
