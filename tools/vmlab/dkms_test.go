//go:build vmhost

package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowbird/tools/fixture"
)

// dkmsScript follows the module's README for a kernel, in a mount namespace where what
// is written to the system's folders goes to another.
const dkmsScript = `
scratch=$1 kernel=$2
for dir in /usr/src /lib/modules /var/lib/dkms; do
	name=$scratch/$(basename $dir)
	mkdir -p $name/upper $name/work
	mount -t overlay overlay -o lowerdir=$dir,upperdir=$name/upper,workdir=$name/work $dir
done
cp -r . /usr/src/dm-user-1.0.0
dkms install dm-user/1.0.0 -k $kernel
modinfo -F depends $(find /lib/modules/$kernel/updates -name 'dm-user.ko*')
dkms remove dm-user/1.0.0 -k $kernel
test -z "$(find /lib/modules/$kernel/updates -name 'dm-user.ko*')"
`

// TestDKMS builds the module for one of Debian's kernels that does not run here,
// installs it and takes it away again.
func TestDKMS(t *testing.T) {
	headers, _ := filepath.Glob("/usr/src/linux-headers-*-cloud-amd64")
	if _, err := exec.LookPath("dkms"); err != nil || len(headers) == 0 {
		fixture.Missing(t, "no dkms or no headers of a kernel")
	}
	kernel := strings.TrimPrefix(filepath.Base(headers[0]), "linux-headers-")
	scratch := t.TempDir() // overlays want a file system that has no layers itself
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-eux", "-c", dkmsScript, "dkms", scratch, kernel)
	cmd.Dir = "../dm-user-kmod"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"\ndm-mod\n", "Cleaning build area...\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("expected %q, found %s", want, out)
		}
	}
	if strings.Contains(string(out), "bad exit status") {
		t.Errorf("expected every step to succeed, found %s", out)
	}
}
