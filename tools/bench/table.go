package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// table collects rows and prints them as markdown.
type table struct {
	rows  [][]string
	notes []string
}

var columns = []string{"what", "ours", "reference", "ratio", "must reach", "ok?"}

// limit is what a row promises: value at most or at least bound.
type limit struct {
	bound   float64
	atLeast bool
	unit    string
}

func atMost(bound float64, unit string) limit { return limit{bound, false, unit} }
func atLeast(bound float64) limit             { return limit{bound, true, "×"} }

func (l limit) holds(v float64) bool {
	if l.atLeast {
		return v >= l.bound
	}
	return v <= l.bound
}

func (l limit) String() string {
	sign := "≤"
	if l.atLeast {
		sign = "≥"
	}
	return strings.TrimSpace(fmt.Sprintf("%s %g %s", sign, l.bound, l.unit))
}

// ratio adds a row that is judged by ours divided by the reference.
func (t *table) ratio(what, ours, reference string, ratio float64, l limit) {
	t.add(what, ours, reference, fmt.Sprintf("%.2f", ratio), l.String(), verdict(l.holds(ratio)))
}

// value adds a row that is judged by our figure alone. reference may be "".
func (t *table) value(what string, ours float64, reference string, l limit) {
	t.add(what, strings.TrimSpace(fmt.Sprintf("%.4g %s", ours, l.unit)), reference, "", l.String(), verdict(l.holds(ours)))
}

// info adds a row that nothing is promised for.
func (t *table) info(what, ours, reference, ratio string) {
	t.add(what, ours, reference, ratio, "", "")
}

func (t *table) add(cells ...string) {
	t.rows = append(t.rows, cells)
	progress("  %s", strings.Join(cells, " | "))
}

// note adds a line below the table.
func (t *table) note(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

func verdict(ok bool) string {
	if ok {
		return "yes"
	}
	return "**no**"
}

func (t *table) print(w io.Writer, heading string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n| %s |\n|%s\n", heading, strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, r := range t.rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(r, " | "))
	}
	for _, n := range t.notes {
		fmt.Fprintf(&b, "\n%s\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// median of at least one value; the lower of the two middle ones is not
// preferred: their mean counts.
func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	if n == 0 {
		return 0
	}
	return (s[(n-1)/2] + s[n/2]) / 2
}

// spread renders a median with the lowest and highest value.
func spread(v []float64, format string) string {
	return fmt.Sprintf(format+" ("+format+"–"+format+")", median(v), slices.Min(v), slices.Max(v))
}

// alternate runs each of the functions in turn, n times over, after one
// unmeasured round, and returns what each of them measured.
func alternate(n int, fs ...func() (float64, error)) ([][]float64, error) {
	got := make([][]float64, len(fs))
	for round := -1; round < n; round++ {
		for i, f := range fs {
			v, err := f()
			if err != nil {
				return nil, err
			}
			if round >= 0 {
				got[i] = append(got[i], v)
			}
		}
	}
	return got, nil
}
