// Package cli is what the commands for people have in common: exit codes and
// error lines, sizes with suffixes, progress for people and for programs, and
// files that appear whole or not at all.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Exit codes of every command.
const (
	OK     = 0 // done
	Failed = 1 // failed, or refused
	Usage  = 2 // not understood
)

// ExitCodes is the part of a command's help that explains them.
const ExitCodes = "Exit codes: 0 ok, 1 failed or refused, 2 usage."

// UsageError is an error in what the user typed.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }
func (e UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// Program is a tree of commands.
type Program struct {
	Root *cobra.Command
	// Advice returns what to do about an error, or "".
	Advice func(error) string
}

// Run executes the command that args name and returns the exit code. SIGINT
// and SIGTERM end the context that the command gets.
func (p Program) Run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	root := p.Root
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return UsageError{err} })
	root.AddCommand(manCommand(root))
	began := false
	onRun(root, func() { began = true })
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return OK
	}
	var usage UsageError
	// What cobra refuses before a command begins is a matter of usage.
	if errors.As(err, &usage) || !began {
		fmt.Fprintf(stderr, "%s: %s; see %s --help\n", root.Name(), oneLine(err), cmd.CommandPath())
		return Usage
	}
	fmt.Fprintf(stderr, "%s: %s%s\n", root.Name(), oneLine(err), p.advice(err))
	return Failed
}

// onRun has f called when a command has taken its arguments and begins.
func onRun(c *cobra.Command, f func()) {
	if run := c.RunE; run != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			f()
			return run(c, args)
		}
	}
	for _, sub := range c.Commands() {
		onRun(sub, f)
	}
}

// Args expects exactly the arguments of these names; one whose name is in
// brackets, which comes last, may be missing.
func Args(names ...string) cobra.PositionalArgs {
	least := len(names)
	for _, n := range names {
		if strings.HasPrefix(n, "[") {
			least--
		}
	}
	return func(_ *cobra.Command, args []string) error {
		if len(args) < least || len(args) > len(names) {
			return Usagef("expected %s, found %d arguments", strings.Join(names, " "), len(args))
		}
		return nil
	}
}

func (p Program) advice(err error) string {
	if p.Advice == nil {
		return ""
	}
	if a := p.Advice(err); a != "" {
		return ": " + a
	}
	return ""
}

// oneLine joins the lines of errors.Join and of cobra's suggestions.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\t' }), "; ")
}
