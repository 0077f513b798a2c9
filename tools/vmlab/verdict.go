package main

import (
	"fmt"
	"regexp"
	"strings"

	"cowbird/tools/vmlab/job"
)

// Verdicts.
const (
	pass = "PASS"
	fail = "FAIL"
	skip = "SKIP"
)

// splat matches what a kernel says when something is wrong with it: warnings,
// lockdep's and other checkers' findings, stalls, oopses.
var splat = regexp.MustCompile(`\b(WARNING|BUG|Oops|UBSAN|KASAN|KFENCE|KCSAN)\b[: ]` +
	`|\bINFO: (task|rcu|possible|suspicious|lockdep)` +
	`|Kernel panic|general protection|Unable to handle|refcount_t:|DEBUG_LOCKS_WARN_ON` +
	`|kmemleak: \d+ new|blocked for more than|self-detected stall`)

// splats lists the lines of a kernel log that say that something is wrong and
// that the test has not allowed. An allowance counts from its own line on.
func splats(kernel []string) (lines []string) {
	var allowed []*regexp.Regexp
	for _, s := range kernel {
		if word, rest, ok := job.ParseMark(s); ok {
			if re, err := regexp.Compile(rest); word == job.Allow && err == nil {
				allowed = append(allowed, re)
			}
			continue
		}
		if m := job.Message(s); splat.MatchString(m) && !matchesAny(allowed, m) {
			lines = append(lines, m)
		}
	}
	return lines
}

func matchesAny(res []*regexp.Regexp, s string) bool {
	for _, re := range res {
		if re.MatchString(s) {
			return true
		}
	}
	return false
}

// judge says how a test went, and why it failed: by what its process wrote and
// exited with, by the kernel's log, and by the guest's own end if the test was
// running then.
func judge(t *watched, exit, output, guestEnd string) (verdict string, why []string) {
	switch {
	case t.ended.IsZero() && guestEnd != "":
		why = append(why, guestEnd)
	case t.ended.IsZero():
		why = append(why, "it did not end")
	case exit != job.ExitOK:
		why = append(why, exit)
	case !ran(t.Name, output):
		why = append(why, "the binary did not run it")
	}
	for _, s := range splats(t.kernel) {
		why = append(why, "kernel: "+s)
	}
	switch {
	case len(why) > 0:
		return fail, why
	case strings.Contains(output, "--- SKIP: "+t.Name+" "):
		return skip, []string{skipReason(t.Name, output)}
	}
	return pass, nil
}

func ran(name, output string) bool {
	return strings.Contains(output, "--- PASS: "+name+" ") || strings.Contains(output, "--- SKIP: "+name+" ")
}

// skipReason is the last thing that a skipped test has said.
func skipReason(name, output string) string {
	before, _, _ := strings.Cut(output, "--- SKIP: "+name+" ")
	lines := strings.Split(strings.TrimSpace(before), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// A report is what is told of one test.
type report struct {
	guestTest
	vehicle string
	verdict string
	why     []string
	seconds float64
	output  string
	kernel  []string
}

// line is the report in the form of go test.
func (r *report) line() string {
	s := fmt.Sprintf("--- %s: %s (%.2fs) [%s]", r.verdict, r.name, r.seconds, r.vehicle)
	if len(r.why) == 0 {
		return s
	}
	return s + "\n    " + strings.Join(r.why, "\n    ")
}

// logs are what the test and the kernel have said, for a person to read.
func (r *report) logs(kernelLines int) string {
	var b strings.Builder
	section := func(title string, lines []string) {
		fmt.Fprintf(&b, "    %s:\n", title)
		for _, l := range lines {
			fmt.Fprintf(&b, "        %s\n", l)
		}
	}
	section("output", strings.Split(strings.TrimRight(r.output, "\n"), "\n"))
	kernel := r.kernel
	if cut := len(kernel) - kernelLines; cut > 0 {
		section(fmt.Sprintf("kernel log (%d lines more before)", cut), kernel[cut:])
	} else {
		section("kernel log", kernel)
	}
	return b.String()
}

// A tally counts verdicts, of a package or of all.
type tally struct {
	passed, failed, skipped int
	seconds                 float64
}

func (t *tally) add(r *report) {
	switch r.verdict {
	case pass:
		t.passed++
	case skip:
		t.skipped++
	default:
		t.failed++
	}
	t.seconds += r.seconds
}

// packageLine closes a package as go test does.
func (t *tally) packageLine(pkg, vehicle string) string {
	word := "ok  "
	if t.failed > 0 {
		word = "FAIL"
	}
	return fmt.Sprintf("%s\tcowbird/%s\t%.3fs [%s]", word, pkg, t.seconds, vehicle)
}

// summary is the last line of a run.
func (t *tally) summary() string {
	s := fmt.Sprintf("%d passed, %d failed", t.passed, t.failed)
	if t.skipped > 0 {
		s += fmt.Sprintf(", %d skipped", t.skipped)
	}
	return s
}
