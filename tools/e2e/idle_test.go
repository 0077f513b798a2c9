package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// The budget of docs/memory.md with the tolerance that a test on a shared
// machine needs; `make bench` holds the daemon to the budget itself.
const (
	maxResident  = 6500 << 10
	maxAnonymous = 2300 << 10

	// What a daemon that has collected its heap keeps above that (same file).
	collected = 300 << 10
)

// A daemon with a snapshot that has been read, and that nobody asks any more,
// holds almost nothing and does not wake up.
func TestIdle(t *testing.T) {
	d := newDevice(t, 16384)
	d.start()
	node := d.mapIt("system")
	d.isTarget(node)
	d.isIdle(0)
	d.must("otactl", "unmap", "system")
	if err := d.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}

// isIdle checks the daemon's budget, and that many bytes more, once nothing has been
// asked for a while.
func (d *device) isIdle(more int) {
	t := d.t
	t.Helper()
	time.Sleep(4 * time.Second) // the daemon gives memory back after 2
	pid := d.daemon.Process.Pid
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for field, limit := range map[string]int{"Rss": maxResident, "Anonymous": maxAnonymous} {
		m := regexp.MustCompile(`(?m)^` + field + `:\s+(\d+) kB`).FindSubmatch(rollup)
		if m == nil {
			t.Fatalf("no %s in %s", field, rollup)
		}
		kib, _ := strconv.Atoi(string(m[1]))
		t.Logf("%s: %d KiB", field, kib)
		if limit += more; kib<<10 > limit {
			t.Errorf("%s: expected at most %d KiB, found %d", field, limit>>10, kib)
		}
	}
	// The runtime's own monitor wakes once a minute.
	wakeUps := -1
	for try := 0; try < 3 && wakeUps != 0; try++ {
		before := switches(t, pid)
		time.Sleep(2 * time.Second)
		wakeUps = switches(t, pid) - before
	}
	if wakeUps != 0 {
		t.Errorf("expected no wake-up in 2 seconds, found %d", wakeUps)
	}
}

// switches adds up how often the process's threads went to sleep.
func switches(t *testing.T, pid int) (sum int) {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		m := regexp.MustCompile(`(?m)^voluntary_ctxt_switches:\s+(\d+)`).FindSubmatch(b)
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}
