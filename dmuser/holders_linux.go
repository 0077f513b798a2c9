package dmuser

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// busyError is an ErrBusy that says who holds the disk called base, whose node
// is path, as far as can be found out: mounts, other block devices, processes.
func busyError(base, path string, dev uint64) error {
	holders := holdersOf(base, dev)
	if len(holders) == 0 {
		return fmt.Errorf("%w: %s, by something that could not be found", ErrBusy, path)
	}
	return fmt.Errorf("%w: %s, by %s", ErrBusy, path, strings.Join(holders, ", "))
}

func holdersOf(base string, dev uint64) []string {
	holders := mountsOf(dev)
	stacked, _ := filepath.Glob("/sys/block/" + base + "/holders/*")
	for _, path := range stacked {
		holders = append(holders, "block device "+filepath.Base(path))
	}
	return append(holders, openersOf(dev)...)
}

// mountsOf looks into every mount namespace that some process is in, this
// process's own first.
func mountsOf(dev uint64) []string {
	var found []string
	seen := map[string]bool{}
	for _, proc := range append([]string{"/proc/self"}, processes()...) {
		ns, err := os.Readlink(proc + "/ns/mnt")
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		table, _ := os.ReadFile(proc + "/mountinfo")
		for _, point := range mountPoints(string(table), dev) {
			found = append(found, "mount on "+point)
		}
	}
	return found
}

// mountPoints picks the mounts of dev from the text of a mountinfo file.
func mountPoints(table string, dev uint64) []string {
	id := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	var points []string
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) > 4 && f[2] == id {
			points = append(points, f[4])
		}
	}
	return points
}

func openersOf(dev uint64) []string {
	me := strconv.Itoa(os.Getpid())
	var found []string
	for _, proc := range processes() {
		pid := filepath.Base(proc)
		if pid != me && hasOpen(proc, dev) {
			name, _ := os.ReadFile(proc + "/comm")
			found = append(found, fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(name))))
		}
	}
	return found
}

// hasOpen looks at device numbers and not at names, for one device may have
// several nodes.
func hasOpen(proc string, dev uint64) bool {
	fds, _ := os.ReadDir(proc + "/fd")
	for _, fd := range fds {
		if isNode(proc+"/fd/"+fd.Name(), dev) {
			return true
		}
	}
	return false
}

func processes() []string {
	paths, _ := filepath.Glob("/proc/[0-9]*")
	return paths
}
