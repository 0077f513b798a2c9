// Command otactl installs payloads, and maps, merges and unmaps snapshots through
// snapuserd.
package main

import (
	"io"
	"os"

	"cowbird/cmd/internal/cli"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return cli.Program{Root: newRoot(), Advice: advice}.Run(args, stdin, stdout, stderr)
}
