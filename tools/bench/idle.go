package main

import (
	"fmt"
	"os"
	"time"
)

// idle measures what the daemon holds some time after the last request, with
// one snapshot mapped that has been read to the end, beside QEMU's daemon with
// the same content.
func (b *bench) idle() error {
	defer b.undo(b.mark())
	ours, err := b.mapOurs()
	if err != nil {
		return err
	}
	theirs, err := b.mapQemu("all", b.qemuAll)
	if err != nil {
		return err
	}
	if err := b.sameContent(ours.device, theirs.device); err != nil {
		return err
	}
	settle, window := b.settle(), 10*time.Second
	progress("  waiting %v", settle)
	time.Sleep(settle)
	o, err := observe(ours.pid())
	if err != nil {
		return err
	}
	q, err := observe(theirs.pid())
	if err != nil {
		return err
	}
	b.idleRows(o, q, settle)
	return b.wakeupRow(ours.pid(), theirs.pid(), window)
}

// wakeupRow counts wake-ups in six windows, so that what happens once a minute
// is seen.
func (b *bench) wakeupRow(ours, theirs int, window time.Duration) error {
	var counts [2][]float64
	for range 6 {
		var both [2]map[string]int64
		for i, pid := range []int{ours, theirs} {
			var err error
			if both[i], err = switches(pid); err != nil {
				return err
			}
		}
		time.Sleep(window)
		for i, pid := range []int{ours, theirs} {
			after, err := switches(pid)
			if err != nil {
				return err
			}
			counts[i] = append(counts[i], float64(wakeups(both[i], after)))
		}
	}
	what := fmt.Sprintf("daemon idle, wake-ups in %v, median of 6 windows", window)
	l := atMost(0, "")
	b.table.add(what, spread(counts[0], "%.0f"), spread(counts[1], "%.0f"), "", l.String(), verdict(l.holds(median(counts[0]))))
	b.table.note("Wake-ups are counted over a minute: Go's runtime looks around once in each.")
	return nil
}

// settle is how long a daemon is left alone before it counts as idle.
func (b *bench) settle() time.Duration {
	if b.quick {
		return 10 * time.Second
	}
	return 60 * time.Second
}

func (b *bench) idleRows(ours, qemu footprint, settle time.Duration) {
	mb := func(n int64) float64 { return float64(n) / 1e6 }
	ref := func(n int64) string { return fmt.Sprintf("%.1f MB", mb(n)) }
	when := fmt.Sprintf("daemon idle, %v after the last request: ", settle)
	b.table.value(when+"RSS", mb(ours.rss), ref(qemu.rss), atMost(6, "MB"))
	b.table.value(when+"anonymous", mb(ours.anonymous), ref(qemu.anonymous), atMost(2, "MB"))
	b.table.info(when+"private dirty", ref(ours.privateDirty), ref(qemu.privateDirty), "")
	b.table.info(when+"threads", fmt.Sprint(ours.threads), fmt.Sprint(qemu.threads), "")
}

// binary builds the daemon for a device and weighs it.
func (b *bench) binary() error {
	path := b.path("snapuserd.arm64")
	if _, err := output("env", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64",
		"go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", path, "./cmd/snapuserd"); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	b.table.value("snapuserd, stripped, linux/arm64", float64(info.Size())/1e6, "", atMost(6, "MB"))
	return nil
}
