package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/ota/generate"
)

func payloadPlanCommand(c *common) *cobra.Command {
	b, out := &build{payloads: payloads{common: c}}, ""
	cmd := &cobra.Command{
		Use:   "plan -o PLAN [--old IMAGES] NEW",
		Short: "Find out what a payload consists of, for many machines",
		Long: `Does the quick part of cowtool payload create, and writes what is left to do as a plan
of independent items. Each has an ID, the hash of all that its result depends on; so
results may be kept, and used by the next plan that has the same ID.

It prints the IDs, the largest items first. On machines that have the same images,
cowtool payload run makes items, in any order; then cowtool payload join puts
the results together. The payload has the bytes that create would have written.`,
		Example: `  cowtool payload plan -o plan.json --old v1 v2 > items
  xargs -n 8 -P 4 cowtool payload run --plan plan.json --results out --old v1 --new v2 < items
  cowtool payload join -o delta.bin --plan plan.json --results out --old v1 --new v2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return b.plan(cmd.Context(), b.output(cmd), out, args[0])
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "the `FILE` for the plan")
	_ = cmd.MarkFlagRequired("output")
	b.buildFlags(cmd)
	return cmd
}

func (b *build) plan(ctx context.Context, out cli.Output, name, images string) (err error) {
	defer func() { err = errors.Join(err, b.close()) }()
	o, err := b.options(images)
	if err != nil {
		return err
	}
	meter := out.Meter(string(generate.Reading))
	defer meter.End()
	o.OnProgress = showSteps(meter)
	p, err := generate.NewPlan(ctx, o)
	if err != nil {
		return err
	}
	meter.End()
	text, err := p.Encode()
	if err != nil {
		return err
	}
	f, err := cli.CreateOut(name)
	if err != nil {
		return err
	}
	defer f.Discard()
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Commit(); err != nil {
		return err
	}
	for _, t := range p.Work() {
		if out.JSON {
			err = out.Emit(taskReport{"item", t.Item.ID, p.Partitions[t.Partition].Name, t.Item.Name})
		} else {
			_, err = fmt.Fprintln(out.Stdout, t.Item.ID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type taskReport struct {
	Event     string `json:"event"`
	ID        string `json:"id"`
	Partition string `json:"partition"`
	File      string `json:"file,omitempty"`
}

// farm are the flags of run and join.
type farm struct {
	*common
	plan, results, old, new string
	res                     resources

	extras []generate.Extra // of a zip
}

func (f *farm) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.plan, "plan", "", "the plan, a `FILE`")
	cmd.Flags().StringVar(&f.results, "results", "", "the `FOLDER` of results, each named by its item's ID")
	cmd.Flags().StringVar(&f.new, "new", "", "the new images: a `FOLDER` or target files")
	cmd.Flags().StringVar(&f.old, "old", "", "the old ones")
	for _, name := range []string{"plan", "results", "new"} {
		_ = cmd.MarkFlagRequired(name)
	}
	f.res.flags(cmd)
}

// with opens the images and the plan.
func (f *farm) with(out cli.Output, do func(*generate.Plan) error) (err error) {
	if err := checkWorkers(f.res.workers); err != nil {
		return err
	}
	text, err := os.ReadFile(f.plan)
	if err != nil {
		return err
	}
	newer, err := generate.OpenInput(f.new, f.res.spool)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, newer.Close()) }()
	var older *generate.Input
	if f.old != "" {
		if older, err = generate.OpenInput(f.old, f.res.spool); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, older.Close()) }()
	}
	if f.extras, err = generate.Extras(newer, older); err != nil {
		return err
	}
	o := f.res.options()
	meter := out.Meter(string(generate.Reading))
	defer meter.End()
	o.OnProgress = showSteps(meter)
	p, err := generate.ReadPlan(text, o, imagesOf(newer, older))
	if err != nil {
		return fmt.Errorf("%s: %w", f.plan, err)
	}
	return do(p)
}

func (f *farm) result(id string) string { return filepath.Join(f.results, id) }

func payloadRunCommand(c *common) *cobra.Command {
	f := farm{common: c}
	index, of := 0, 0
	cmd := &cobra.Command{
		Use:   "run --plan PLAN --results FOLDER --new IMAGES [--old IMAGES] [ITEM...]",
		Short: "Make items of a plan",
		Long: `Makes items of a plan (see cowtool payload plan), given by their IDs, or those of one
part of several: part 3 of 8 is --part 3 --of 8, counted from 0, as a Kubernetes
indexed job does. Each result is a file in the folder, named by the ID, which appears
when it is complete. A result that is there is not made again. Images that are not
those of the plan are noticed.`,
		Example: `  cowtool payload run --plan plan.json --results out --old v1 --new v2 --part $JOB_COMPLETION_INDEX --of 8`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) > 0) == (of > 0) || of > 0 && (index < 0 || index >= of) {
				return cli.Usagef("expected items, or --part from 0 to below --of, found %d items, --part %d --of %d", len(args), index, of)
			}
			return f.with(f.output(cmd), func(p *generate.Plan) error { return f.run(cmd.Context(), p, args, index, of) })
		},
	}
	f.flags(cmd)
	cmd.Flags().IntVar(&index, "part", 0, "which part, from 0 on")
	cmd.Flags().IntVar(&of, "of", 0, "how many parts there are")
	return cmd
}

func (f *farm) run(ctx context.Context, p *generate.Plan, ids []string, index, of int) error {
	if err := os.MkdirAll(f.results, 0o777); err != nil {
		return err
	}
	var tasks []generate.Task
	for _, id := range ids {
		t, ok := p.Task(id)
		if !ok {
			return fmt.Errorf("expected an item of the plan, found %q", id)
		}
		tasks = append(tasks, t)
	}
	for i, t := range p.Work() {
		if of > 0 && i%of == index {
			tasks = append(tasks, t)
		}
	}
	return p.RunTasks(ctx, tasks, f.save, f.made)
}

// made tells whether an item has a result that is whole.
func (f *farm) made(t generate.Task) bool {
	b, err := os.ReadFile(f.result(t.Item.ID))
	if err == nil {
		_, err = generate.ReadResult(b, t.Item)
	}
	return err == nil
}

func (f *farm) save(t generate.Task, b []byte) error {
	out, err := cli.CreateOut(f.result(t.Item.ID))
	if err != nil {
		return err
	}
	defer out.Discard()
	if _, err := out.Write(b); err != nil {
		return err
	}
	return out.Commit()
}

func payloadJoinCommand(c *common) *cobra.Command {
	f, r := farm{common: c}, &release{}
	cmd := &cobra.Command{
		Use:   "join -o FILE --plan PLAN --results FOLDER --new IMAGES [--old IMAGES]",
		Short: "Put the results of a plan together",
		Long: `Makes the payload of a plan and the results of all its items, checks each result, and
applies the payload as cowtool payload create does. What is missing or damaged is named
by its ID: make it again with cowtool payload run, alone.`,
		Example: `  cowtool payload join -o ota.zip --key release.pem --plan plan.json --results out --old v1 --new v2`,
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := f.output(cmd)
			return f.with(out, func(p *generate.Plan) error { return f.join(cmd.Context(), out, p, r) })
		},
	}
	f.flags(cmd)
	r.flags(cmd)
	return cmd
}

func (f *farm) join(ctx context.Context, out cli.Output, p *generate.Plan, r *release) error {
	if err := r.check(); err != nil {
		return err
	}
	made, err := p.Join(ctx, func(_ context.Context, _ int, it *generate.Item) (*generate.Result, error) {
		b, err := os.ReadFile(f.result(it.ID))
		if err != nil {
			return nil, fmt.Errorf("%w: %w: make it with cowtool payload run", generate.ErrItem, err)
		}
		return generate.ReadResult(b, it)
	})
	if err != nil {
		return err
	}
	defer made.Close()
	w, err := r.write(made, f.res.spool, f.extras)
	if err != nil {
		return err
	}
	return reportPayload(out, r.out, w)
}
