package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
)

type check struct {
	common       *common
	base, target string
	sum          string
	size         cli.Size
	workers      int
}

func checkCommand(c *common) *cobra.Command {
	o := check{common: c}
	cmd := &cobra.Command{
		Use:   "check [--base BASE] [--target FILE | --sha256 HEX] COW",
		Short: "Prove that a COW can be served and merged",
		Long: `Verifies every rule that a merge relies on and decodes all data. With --base it
also reads the whole target; with --target or --sha256 it compares the outcome.
Nothing is written. The exit code is 1 if anything is wrong.`,
		Example: `  cowtool check update.cow
  cowtool check --base old.img update.cow       # prints the target's SHA-256
  cowtool check --base old.img --target new.img update.cow
  cowtool check --base old.img --sha256 "$(sha256sum new.img | cut -d' ' -f1)" update.cow`,
		Args:              cli.Args("COW"),
		ValidArgsFunction: fileArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), o.common.output(cmd), args[0])
		},
	}
	flags := cmd.Flags()
	baseFlag(cmd, &o.base, "the partition as it is; checks sources and contents too")
	flags.StringVar(&o.target, "target", "", "the image that must come out")
	flags.StringVar(&o.sum, "sha256", "", "SHA-256 of what must come out, in `HEX`")
	flags.Var(&o.size, "size", "size of the target; 0 is the target's or BASE's, or more if the COW covers more")
	workersFlag(cmd, &o.workers)
	_ = cmd.MarkFlagFilename("target")
	return cmd
}

func (o *check) run(ctx context.Context, out cli.Output, cowPath string) error {
	options, err := o.options()
	if err != nil {
		return err
	}
	inputs, err := o.open(cowPath, &options)
	if err != nil {
		return err
	}
	defer inputs.close()
	meter := out.Meter("checking")
	options.OnProgress = meter.Update
	report, err := cow.Check(ctx, options)
	meter.End()
	if err != nil {
		return fmt.Errorf("%s: %w", cowPath, err)
	}
	return o.report(out, cowPath, report)
}

// options checks what was typed.
func (o *check) options() (c cow.CheckOptions, err error) {
	switch {
	case o.target != "" && o.sum != "":
		return c, cli.Usagef("expected --target or --sha256, found both")
	case o.base == "" && (o.target != "" || o.sum != ""):
		return c, cli.Usagef("the outcome can only be compared if the base is known: give --base too")
	}
	c = cow.CheckOptions{Size: int64(o.size), Workers: o.workers}
	if o.sum != "" {
		c.SHA256, err = hex.DecodeString(o.sum)
		if err != nil || len(c.SHA256) != sha256.Size {
			return c, cli.Usagef("--sha256: expected %d hexadecimal digits, found %q", 2*sha256.Size, o.sum)
		}
	}
	return c, checkWorkers(o.workers)
}

func (o *check) open(cowPath string, c *cow.CheckOptions) (devices, error) {
	paths := []string{cowPath}
	for _, p := range []string{o.base, o.target} {
		if p != "" {
			paths = append(paths, p)
		}
	}
	all, err := openAll(paths...)
	if err != nil {
		return nil, err
	}
	c.Cow = all[0]
	if o.base != "" {
		c.Base = all[1]
	}
	if o.target != "" {
		c.Target, c.TargetSize = all[2], all[2].Size()
	}
	return all, nil
}

func (o *check) report(out cli.Output, name string, r cow.Report) error {
	if out.JSON {
		return out.Emit(struct {
			Event string `json:"event"`
			cow.Report
		}{"result", r})
	}
	_, err := fmt.Fprintf(out.Stdout, "%s: good; %d ops, %d units decoded\n", name, r.Ops, r.Units)
	if r.SHA256 != "" {
		_, more := fmt.Fprintf(out.Stdout, "target: %d bytes, SHA-256 %s%s\n", r.Bytes, r.SHA256, o.verdict())
		return errors.Join(err, more)
	}
	_, more := fmt.Fprintln(out.Stdout, "sources and contents were not checked: give --base to do so")
	return errors.Join(err, more)
}

func (o *check) verdict() string {
	if o.target != "" || o.sum != "" {
		return ", as it must be"
	}
	return ""
}
