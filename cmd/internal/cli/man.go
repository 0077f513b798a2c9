package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manSection is that of commands for administrators.
const manSection = "8"

// manCommand writes the manual pages, which say what --help says.
func manCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:    "man FOLDER [PROGRAM]",
		Short:  "Write the manual pages into a folder",
		Long:   "Writes the pages of this program, or that of another one, whose --help comes on standard input.",
		Hidden: true,
		Args:   Args("FOLDER", "[PROGRAM]"),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				return writeManual(root, args[0])
			}
			h, err := readHelp(c.InOrStdin())
			if err != nil {
				return fmt.Errorf("%s: %w", args[1], err)
			}
			return writeFile(args[0], args[1], func(w io.Writer) error { return writeHelpPage(w, args[1], h) })
		},
	}
}

// writeFile writes the page of that name into a folder.
func writeFile(dir, name string, write func(io.Writer) error) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	out, err := CreateOut(filepath.Join(dir, name+"."+manSection))
	if err != nil {
		return err
	}
	defer out.Discard()
	if err := write(out); err != nil {
		return err
	}
	return out.Commit()
}

// writeManual writes a page for each command that is not hidden.
func writeManual(c *cobra.Command, dir string) error {
	return eachCommand(c, func(c *cobra.Command) error {
		return writeFile(dir, pageName(c), func(w io.Writer) error { return writePage(w, c) })
	})
}

func eachCommand(c *cobra.Command, f func(*cobra.Command) error) error {
	if c.Hidden || c.IsAdditionalHelpTopicCommand() || c.Name() == "help" || c.Name() == "completion" {
		return nil
	}
	if err := f(c); err != nil {
		return err
	}
	for _, sub := range c.Commands() {
		if err := eachCommand(sub, f); err != nil {
			return err
		}
	}
	return nil
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// writePage writes one page, in the macros of man(7).
func writePage(w io.Writer, c *cobra.Command) error {
	p := &page{}
	p.line(".TH %s %s \"\" \"Cowbird\" \"\"", quote(strings.ToUpper(pageName(c))), manSection)
	p.line(".SH NAME\n%s \\- %s", text(pageName(c)), text(c.Short))
	p.line(".SH SYNOPSIS\n.nf\n%s\n.fi", text(c.UseLine()))
	p.line(".SH DESCRIPTION")
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	p.paragraphs(long)
	p.flags("OPTIONS", c.NonInheritedFlags())
	p.flags("GLOBAL OPTIONS", c.InheritedFlags())
	if c.Example != "" {
		p.line(".SH EXAMPLES\n.nf\n%s\n.fi", text(c.Example))
	}
	p.line(".SH EXIT STATUS\n0 ok, 1 failed or refused, 2 usage.")
	p.seeAlso(c)
	_, err := io.WriteString(w, p.b.String())
	return err
}

type page struct{ b strings.Builder }

func (p *page) line(format string, args ...any) { fmt.Fprintf(&p.b, format+"\n", args...) }

// paragraphs sets indented ones as they are: those are examples.
func (p *page) paragraphs(long string) {
	for i, part := range strings.Split(strings.TrimSpace(long), "\n\n") {
		if i > 0 {
			p.line(".PP")
		}
		if strings.HasPrefix(part, " ") {
			p.line(".nf\n%s\n.fi", text(part))
		} else {
			p.line("%s", text(part))
		}
	}
}

func (p *page) flags(title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	p.line(".SH %s", title)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		arg, usage := pflag.UnquoteUsage(f)
		name := "\\fB" + text("--"+f.Name) + "\\fP"
		if f.Shorthand != "" {
			name = "\\fB" + text("-"+f.Shorthand) + "\\fP, " + name
		}
		if arg != "" {
			name += " \\fI" + text(arg) + "\\fP"
		}
		if d := f.DefValue; d != "" && d != "false" && d != "0" && d != "[]" {
			usage += " (default " + d + ")"
		}
		p.line(".TP\n%s\n%s", name, text(usage))
	})
}

// seeAlso names the pages above and below.
func (p *page) seeAlso(c *cobra.Command) {
	var pages []string
	if c.HasParent() {
		pages = append(pages, pageName(c.Parent()))
	}
	for _, sub := range c.Commands() {
		_ = eachCommand(sub, func(s *cobra.Command) error {
			if s.Parent() == c {
				pages = append(pages, pageName(s))
			}
			return nil
		})
	}
	if len(pages) == 0 {
		return
	}
	for i, name := range pages {
		pages[i] = "\\fB" + text(name) + "\\fP(" + manSection + ")"
	}
	p.line(".SH SEE ALSO\n%s", strings.Join(pages, ",\n"))
}

var escapes = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", "\\`", "^", `\(ha`, "~", `\(ti`,
	"…", "...", "–", `\(en`, "×", "x", "≤", "at most")

// text escapes what the typesetter would take for its own.
func text(s string) string {
	lines := strings.Split(escapes.Replace(s), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, `\(aq`) {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

func quote(s string) string { return `"` + strings.ReplaceAll(text(s), `"`, `\(dq`) + `"` }
