//go:build !race

package resident

import (
	"fmt"
	"strings"
	"testing"
)

// The race detector brings cgo, with whose threads the Go runtime does not meddle,
// and memory of its own.

// A process that has settled cannot run programs, on no thread, nor get more
// rights; and what it could not have, it said.
func TestSettle(t *testing.T) {
	out := settle(t, "plain")
	for _, want := range []string{"settled: <nil>", "exec: fork/exec /bin/true: operation not permitted"} {
		if !strings.Contains(out, want) {
			t.Errorf("expected %q", want)
		}
	}
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		var caps uint64
		_, _ = fmt.Sscanf(value, "%x", &caps)
		switch {
		case name == "NoNewPrivs" && value != "1", name == "Seccomp" && value != "2",
			strings.HasPrefix(name, "Cap") && caps&^(uint64(keptMask(0))|uint64(keptMask(1))<<32) != 0,
			name == "VmLck" && value != "0 kB":
			t.Errorf("found %s %s", name, value)
		}
	}
	if strings.Contains(out, "oom: -1000") == strings.Contains(out, "complaint: be killed last") {
		t.Error("expected either a score of -1000 or a complaint")
	}
}

// The program is locked, and nothing of it copied.
func TestLockProgram(t *testing.T) {
	out := settle(t, "lock")
	before, after, ok := strings.Cut(out, "locked: <nil>")
	if !ok {
		t.Fatal("expected the program to be locked")
	}
	if locked := number(t, after, "VmLck"); locked < 1024 {
		t.Errorf("expected some MiB locked, found %d KiB", locked)
	}
	if grown := number(t, after, "RssAnon") - number(t, before, "RssAnon"); grown > 200 {
		t.Errorf("expected no memory of its own, found %d KiB more", grown)
	}
}

// number is the first that has that name.
func number(t *testing.T, list, name string) (n int) {
	t.Helper()
	_, rest, _ := strings.Cut(list, name+":")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatal(err)
	}
	return n
}
