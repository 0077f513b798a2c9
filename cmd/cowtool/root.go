package main

import (
	"errors"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
	"cowbird/formats/cowfile"
	"cowbird/formats/lpmeta"
	"cowbird/formats/payload"
	"cowbird/formats/vbmeta"
	"cowbird/ota/apply"
	"cowbird/ota/verify"
)

// common are the flags that every command has.
type common struct{ json, quiet bool }

func (c *common) output(cmd *cobra.Command) cli.Output {
	return cli.Output{JSON: c.json, Quiet: c.quiet, Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr()}
}

func newRoot() *cobra.Command {
	c := &common{}
	root := &cobra.Command{
		Use:   "cowtool",
		Short: "Make, inspect, check and apply COW files and A/B payloads",
		Long: `cowtool makes, inspects, checks and applies COW files, applies the payloads of A/B
updates, and makes and checks what verified boot wants of their partitions.

A COW holds the difference between a base (a partition as it is) and a target
(as it will be): for each block that changes, an op that copies it, holds its
new contents, or says that it is zero. Images are files or block devices.

Sizes take K, M, G and T (powers of 1024). On a terminal, long steps show their
progress on standard error. With --json, each line of standard output is an
object: {"event":"progress",…} at most five times a second, then the result.

` + cli.ExitCodes,
		Example: `  cowtool create -o update.cow old.img new.img      # the difference
  cowtool estimate old.img new.img                  # how large it will be
  cowtool convert --format v2 -o v2.cow update.cow  # the same, in another form
  cowtool inspect update.cow                        # what is in it
  cowtool map -o update.png update.cow              # what it does to the partition
  cowtool check --base old.img --target new.img update.cow
  cowtool cat --base old.img -o new.img update.cow  # the target, as a file
  cowtool merge --base old.img update.cow           # the target, in place
  cowtool payload info ota.zip                      # what an A/B update consists of
  cowtool payload apply --old old -o new ota.zip    # its partitions, as files
  cowtool vbmeta verify --images new new/vbmeta.img # are they what was signed
  cowtool verity build --key release.key new.img    # what dm-verity checks them with
  cowtool super unpack -o images super.img          # those of a super partition`,
	}
	root.PersistentFlags().BoolVar(&c.json, "json", false, "print a JSON object a line, for programs")
	root.PersistentFlags().BoolVarP(&c.quiet, "quiet", "q", false, "no progress bar")
	root.AddCommand(createCommand(c), convertCommand(c), estimateCommand(c), inspectCommand(c), checkCommand(c), catCommand(c), mergeCommand(c), mapCommand(c), payloadCommand(c), superCommand(c), vbmetaCommand(c), verityCommand(c))
	return root
}

// advice says what to do about an error of which that is known.
func advice(err error) string {
	var refusal *verify.Error
	switch {
	case errors.As(err, &refusal):
		return "" // it says so itself
	case errors.Is(err, cow.ErrSource):
		return "is --base the image that the COW was made from, and complete?"
	case errors.Is(err, cowfile.ErrNotCOW):
		return "give a file that cowtool create, or Android's tools, have made"
	case errors.Is(err, cowfile.ErrTruncated):
		return "make it again, or look at what is there with cowtool inspect"
	case errors.Is(err, cowfile.ErrNoSpace):
		return "make room, or a smaller COW: --compression zstd,19 --unit 256K; cowtool estimate tells how many bytes it takes"
	case errors.Is(err, cow.ErrProgress):
		return "finish it with cowtool merge, or convert the COW as it was before the merge; --ignore-progress takes this one for it"
	case errors.Is(err, apply.ErrSource):
		return "is --old the folder with the partitions that the payload is for, and are they unchanged?"
	case errors.Is(err, payload.ErrMagic):
		return "give a payload.bin or an OTA zip"
	case errors.Is(err, lpmeta.ErrNotFound):
		return "give a super partition, an image of one, or super_empty.img"
	case errors.Is(err, payload.ErrTruncated):
		return "get it again"
	case errors.Is(err, vbmeta.ErrNotVBMeta), errors.Is(err, errNoTree):
		return "give a metadata image, a partition that cowtool verity build or Android's tools have made, or --vbmeta"
	case errors.Is(err, vbmeta.ErrNoRoom):
		return "give a larger --partition-size, or a smaller image"
	case errors.Is(err, vbmeta.ErrUnsigned):
		return "sign it with cowtool vbmeta make --key, or look at it with --unsigned"
	case errors.Is(err, cow.ErrMismatch):
		return "are the base and the target those that the COW was made from?"
	}
	return ""
}

// fileArgs completes the first n arguments with file names.
func fileArgs(n int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) < n {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// values completes a flag from a list.
func values(cmd *cobra.Command, flag string, list ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp))
}

// outFlag adds the flag -o, which is required.
func outFlag(cmd *cobra.Command, out *string, what string) {
	cmd.Flags().StringVarP(out, "output", "o", "", what)
	_ = cmd.MarkFlagRequired("output")
	_ = cmd.MarkFlagFilename("output")
}

func workersFlag(cmd *cobra.Command, workers *int) {
	cmd.Flags().IntVar(workers, "workers", 0, "how many to work at a time; 0 is one a processor. The outcome is the same")
}

func checkWorkers(n int) error {
	if n < 0 {
		return cli.Usagef("--workers: expected 0 or more, found %d", n)
	}
	return nil
}
