package cli

import (
	"fmt"
	"io"
	"strings"
)

// maxHelp is more than any program says of itself.
const maxHelp = 1 << 20

// help is what a program says of itself with --help, if its flags are those of Go's
// flag package: usage, what it does, and parts that begin with a word and a colon.
type help struct {
	usage, long, examples, flags, exit string
}

// Parts of a help text, by how their paragraphs begin.
const (
	usagePart    = "Usage:"
	examplesPart = "Examples:\n"
	flagsPart    = "Flags:\n"
	exitPart     = "Exit codes:"
)

// readHelp takes a help text apart.
func readHelp(r io.Reader) (help, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxHelp))
	if err != nil {
		return help{}, err
	}
	var h help
	for part := range strings.SplitSeq(strings.TrimSpace(string(b)), "\n\n") {
		h.take(part)
	}
	if h.usage == "" || h.long == "" || h.flags == "" {
		return h, fmt.Errorf("expected a help text with %q, what the program does, and %q; found %d bytes without", usagePart, strings.TrimSpace(flagsPart), len(b))
	}
	return h, nil
}

func (h *help) take(part string) {
	for begin, to := range map[string]*string{usagePart: &h.usage, examplesPart: &h.examples, flagsPart: &h.flags, exitPart: &h.exit} {
		if text, ok := strings.CutPrefix(part, begin); ok {
			if !strings.HasSuffix(begin, "\n") {
				text = strings.Repeat(" ", len(begin)) + text
			}
			*to = text
			return
		}
	}
	h.long += "\n\n" + part
}

// writeHelpPage writes the page of a program that is not made of this package's
// commands.
func writeHelpPage(w io.Writer, name string, h help) error {
	p := &page{}
	long := strings.TrimSpace(h.long)
	first, _, _ := strings.Cut(strings.Join(strings.Fields(long), " "), ". ")
	first = strings.TrimSuffix(first, ".")
	p.line(".TH %s %s \"\" \"Cowbird\" \"\"", quote(strings.ToUpper(name)), manSection)
	p.line(".SH NAME\n%s \\- %s", text(name), text(strings.ToLower(first[:1])+first[1:]))
	p.line(".SH SYNOPSIS\n.nf\n%s\n.fi", text(undent(h.usage)))
	p.line(".SH DESCRIPTION")
	p.paragraphs(long)
	p.line(".SH OPTIONS")
	p.goFlags(h.flags)
	if h.examples != "" {
		p.line(".SH EXAMPLES\n.nf\n%s\n.fi", text(undent(h.examples)))
	}
	if h.exit != "" {
		p.line(".SH EXIT STATUS\n%s", text(strings.TrimSpace(h.exit)))
	}
	_, err := io.WriteString(w, p.b.String())
	return err
}

// undent takes as much white space off all lines as each of them has.
func undent(s string) string {
	lines, least := strings.Split(s, "\n"), len(s)
	for _, l := range lines {
		least = min(least, len(l)-len(strings.TrimLeft(l, " ")))
	}
	for i := range lines {
		lines[i] = lines[i][least:]
	}
	return strings.Join(lines, "\n")
}

// goFlags sets what the flag package prints: "  -name value", and lines that begin with
// a tab on what it means.
func (p *page) goFlags(flags string) {
	for line := range strings.Lines(flags) {
		name, isFlag := strings.CutPrefix(line, "  -")
		if !isFlag {
			p.line("%s", text(strings.TrimSpace(line)))
			continue
		}
		name, arg, _ := strings.Cut(strings.TrimSpace(name), " ")
		if arg != "" {
			arg = " \\fI" + text(arg) + "\\fP"
		}
		p.line(".TP\n\\fB%s\\fP%s", text("--"+name), arg)
	}
}
