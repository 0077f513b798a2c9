package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/ota/apply"
)

// garbagePercent is how much garbage there may be when partitions are made, in percent
// of what lives.
const garbagePercent = 30

type payloadApply struct {
	payloads
	old, out string
	workers  int
	memory   cli.Size
}

func payloadApplyCommand(c *common) *cobra.Command {
	a := payloadApply{payloads: payloads{common: c}}
	cmd := &cobra.Command{
		Use:   "apply --old DIR -o DIR [--partition PATTERNS] PAYLOAD",
		Short: "Make images of the new partitions out of the old ones and a payload",
		Long: `Makes NAME.img for each new partition in the folder that -o names, out of the
payload and the old partitions, which are NAME.img or NAME in the folder that --old
names. They are read only. Everything that is read is compared with the hashes of
the manifest first, and a new image gets its name once it has its own hash; what
had that name before is then replaced. Zeros are left out of the files.

Operations of all partitions run at once. --memory bounds what they hold together
beyond the usual; an operation that alone needs more runs while no other does.
No signature is verified: see cowtool payload verify.`,
		Example: `  cowtool payload apply --old old -o new delta.zip
  cowtool payload apply --old old -o new --partition 'system*' --json delta.zip`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.run(cmd.Context(), a.output(cmd), args[0]) },
	}
	cmd.Flags().StringVar(&a.old, "old", "", "`DIR` with the old partitions")
	_ = cmd.MarkFlagRequired("old")
	_ = cmd.MarkFlagDirname("old")
	a.outFlags(cmd)
	return cmd
}

func payloadExtractCommand(c *common) *cobra.Command {
	a := payloadApply{payloads: payloads{common: c}}
	cmd := &cobra.Command{
		Use:   "extract -o DIR [--partition PATTERNS] PAYLOAD",
		Short: "Make images of the partitions of a full payload",
		Long: `Makes NAME.img for each partition in the folder that -o names, as cowtool payload apply
does, out of a payload that needs no old partitions.`,
		Example: `  cowtool payload extract -o images full.zip
  cowtool payload extract -o images --partition boot,init_boot full.zip`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.run(cmd.Context(), a.output(cmd), args[0]) },
	}
	a.outFlags(cmd)
	return cmd
}

func (a *payloadApply) outFlags(cmd *cobra.Command) {
	a.flags(cmd)
	cmd.Flags().StringVarP(&a.out, "output", "o", "", "`DIR` for the new partitions; it is made if it is not there")
	_ = cmd.MarkFlagRequired("output")
	_ = cmd.MarkFlagDirname("output")
	a.memory = 512 << 20
	cmd.Flags().Var(&a.memory, "memory", "how much all operations may hold together; 0 is as much as they need")
	workersFlag(cmd, &a.workers)
}

func (a *payloadApply) run(ctx context.Context, out cli.Output, name string) error {
	if err := checkWorkers(a.workers); err != nil {
		return err
	}
	o, err := a.open(name)
	if err != nil {
		return err
	}
	defer o.close()
	if err := os.MkdirAll(a.out, 0o777); err != nil {
		return err
	}
	if sameFolder(a.old, a.out) {
		return cli.Usagef("the output %s is the folder of the old partitions: give another -o", a.out)
	}
	meter := out.Meter("applying")
	// What lives are decoders of some MiB each, which are used again; there is little
	// garbage, and no reason to let as much of it pile up.
	defer debug.SetGCPercent(debug.SetGCPercent(garbagePercent))
	err = apply.Images(ctx, apply.ImageOptions{Metadata: o.Metadata, Blobs: apply.BlobsAt(o.Metadata, o.File), Old: a.old, Out: a.out, Partition: a.selects,
		Workers: a.workers, Memory: int64(a.memory), OnProgress: meter.Update})
	meter.End()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return a.report(out, o)
}

func sameFolder(a, b string) bool {
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	return a != "" && err == nil && err2 == nil && os.SameFile(x, y)
}

func (a *payloadApply) report(out cli.Output, o *openPayload) (err error) {
	type result struct {
		Event  string `json:"event"`
		Name   string `json:"partition"`
		Size   uint64 `json:"size"`
		SHA256 string `json:"sha256"`
	}
	for _, p := range a.partitions(o.Metadata) {
		info := p.GetNewPartitionInfo()
		if out.JSON {
			err = errors.Join(err, out.Emit(result{"result", p.GetPartitionName(), info.GetSize(), fmt.Sprintf("%x", info.GetHash())}))
			continue
		}
		_, e := fmt.Fprintf(out.Stdout, "%s.img: %d bytes, SHA-256 %x, as it must be\n", p.GetPartitionName(), info.GetSize(), info.GetHash())
		err = errors.Join(err, e)
	}
	return err
}
