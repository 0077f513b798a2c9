package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
)

const chunkSize = 1 << 20

type cat struct {
	common    *common
	base, out string
	size      cli.Size
	workers   int
}

func catCommand(c *common) *cobra.Command {
	o := cat{common: c}
	cmd := &cobra.Command{
		Use:   "cat --base BASE -o OUT COW",
		Short: "Write the target image",
		Long: `Writes the target, that is, BASE with the ops of COW applied. BASE and COW are
only read. A merge that has begun is taken into account, also one that was
interrupted.

OUT is a file (which appears when it is complete, with holes where there are
zeros), a block device that nobody has mounted, or - for standard output. The size is BASE's, or larger
if the COW covers more; --size sets it.`,
		Example: `  cowtool cat --base old.img -o new.img update.cow
  cowtool cat --base /dev/sda3 -o - update.cow | sha256sum`,
		Args:              cli.Args("COW"),
		ValidArgsFunction: fileArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), o.common.output(cmd), args[0])
		},
	}
	outFlag(cmd, &o.out, "the image to write, or - for standard output")
	baseFlag(cmd, &o.base, "the partition as it is")
	_ = cmd.MarkFlagRequired("base")
	cmd.Flags().Var(&o.size, "size", "size of the target; 0 is BASE's, or more if the COW covers more")
	workersFlag(cmd, &o.workers)
	return cmd
}

func baseFlag(cmd *cobra.Command, base *string, usage string) {
	cmd.Flags().StringVar(base, "base", "", usage)
	_ = cmd.MarkFlagFilename("base")
}

func (o *cat) run(ctx context.Context, out cli.Output, cowPath string) error {
	if err := checkWorkers(o.workers); err != nil {
		return err
	}
	if err := cli.Distinct(o.out, o.base, cowPath); err != nil {
		return err
	}
	inputs, err := openAll(cowPath, o.base)
	if err != nil {
		return err
	}
	defer inputs.close()
	s, err := openSnapshot(inputs, int64(o.size))
	if err != nil {
		return err
	}
	defer s.Close()
	if o.out == "-" {
		return o.toStdout(ctx, out, s)
	}
	return o.toFile(ctx, out, s)
}

func (o *cat) toStdout(ctx context.Context, out cli.Output, s *cow.Snapshot) error {
	if out.JSON {
		return cli.Usagef("--json: standard output is taken by the image: use -o FILE")
	}
	if f, ok := out.Stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return cli.Usagef("-o -: will not write an image to a terminal: use a pipe or -o FILE")
	}
	return o.copy(ctx, out, s, func(p []byte, _ int64) error {
		_, err := out.Stdout.Write(p)
		return err
	})
}

func (o *cat) toFile(ctx context.Context, out cli.Output, s *cow.Snapshot) error {
	file, err := cli.CreateOut(o.out)
	if err != nil {
		return err
	}
	defer file.Discard()
	write := func(p []byte, off int64) error {
		if !file.InPlace() && isZero(p) {
			return nil // a hole
		}
		_, err := file.WriteAt(p, off)
		return err
	}
	if err := o.copy(ctx, out, s, write); err != nil {
		return fmt.Errorf("write %s: %w", o.out, err)
	}
	if !file.InPlace() {
		if err := file.Truncate(s.Size()); err != nil {
			return err
		}
	}
	if err := file.Commit(); err != nil || !out.JSON {
		return err
	}
	return out.Emit(struct {
		Event string `json:"event"`
		Bytes int64  `json:"bytes"`
	}{"result", s.Size()})
}

var zeros [chunkSize]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// copy passes the snapshot to write, a chunk at a time and in order.
func (o *cat) copy(ctx context.Context, out cli.Output, s *cow.Snapshot, write func(p []byte, off int64) error) error {
	meter := out.Meter("writing")
	defer meter.End()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	workers := o.workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	lanes := readAhead(ctx, s, s.Size(), workers)
	for off := int64(0); off < s.Size(); {
		var c chunk
		select {
		case c = <-lanes[off/chunkSize%int64(workers)]:
		case <-ctx.Done():
			return ctx.Err()
		}
		if c.err != nil {
			return c.err
		}
		if err := write(c.data, off); err != nil {
			return err
		}
		off += int64(len(c.data))
		c.back <- c.data[:cap(c.data)]
		meter.Update(off, s.Size())
	}
	return nil
}

// chunk is a piece of the snapshot; its buffer goes back when it is written.
type chunk struct {
	data []byte
	back chan<- []byte
	err  error
}

// readAhead starts workers that read every workers-th chunk each, into two
// buffers each. They end with ctx.
func readAhead(ctx context.Context, r io.ReaderAt, size int64, workers int) []<-chan chunk {
	lanes := make([]<-chan chunk, workers)
	for i := range workers {
		lane, free := make(chan chunk), make(chan []byte, 2)
		free <- make([]byte, chunkSize)
		free <- make([]byte, chunkSize)
		lanes[i] = lane
		go readLane(ctx, r, size, int64(i), int64(workers), lane, free)
	}
	return lanes
}

func readLane(ctx context.Context, r io.ReaderAt, size, first, step int64, lane chan<- chunk, free chan []byte) {
	for off := first * chunkSize; off < size; off += step * chunkSize {
		var p []byte
		select {
		case p = <-free:
		case <-ctx.Done():
			return
		}
		p = p[:min(chunkSize, size-off)]
		n, err := r.ReadAt(p, off)
		if n == len(p) {
			err = nil
		}
		select {
		case lane <- chunk{p, free, err}:
		case <-ctx.Done():
			return
		}
	}
}
