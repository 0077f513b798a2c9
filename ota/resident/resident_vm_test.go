//go:build vmtest

package resident

import (
	"strings"
	"testing"
)

// Where everything is allowed, everything is done.
func TestResidentSettles(t *testing.T) {
	out := settle(t, "root")
	for _, want := range []string{"settled: <nil>", "exec: fork/exec /bin/true: operation not permitted", "oom: -1000"} {
		if !strings.Contains(out, want) {
			t.Errorf("expected %q", want)
		}
	}
	for _, bad := range []string{"complaint", "VmLck: 0 kB", "NoNewPrivs: 0", "Seccomp: 0"} {
		if strings.Contains(out, bad) {
			t.Errorf("found %q", bad)
		}
	}
}
