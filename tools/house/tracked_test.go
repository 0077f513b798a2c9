package house

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// maxTracked is more than anything in the repository needs, in bytes. What is larger is
// a product, or a fixture that lies elsewhere.
const maxTracked = 1 << 20

// No product of a build is in the repository.
func TestTracked(t *testing.T) {
	if _, err := os.Stat(filepath.Join(root, ".git")); err != nil {
		t.Skip("not a checkout of git")
	}
	out, err := exec.Command("git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z").Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	for _, name := range strings.Split(strings.TrimRight(string(out), "\x00"), "\x00") {
		st, err := os.Lstat(filepath.Join(root, name))
		if err == nil && st.Size() > maxTracked {
			t.Errorf("%s: expected at most %d bytes, found %d", name, maxTracked, st.Size())
		}
	}
}
