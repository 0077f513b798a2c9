package main

import (
	"fmt"
	"io"
	"os"
	"time"
)

// phone is the partitions of a phone, and how many of a thousand ops each has.
var phone = []struct {
	name  string
	share int
}{
	{"system", 330}, {"product", 240}, {"vendor", 170}, {"system_ext", 110}, {"odm", 50}, {"vendor_dlkm", 30},
	{"boot", 20}, {"vendor_boot", 15}, {"init_boot", 10}, {"system_dlkm", 10}, {"odm_dlkm", 10}, {"dtbo", 5},
}

// phoneIdle measures what the daemon holds with a phone's partitions mapped and read.
func (b *bench) phoneIdle() error {
	defer b.undo(b.mark())
	d, err := b.startOurs()
	if err != nil {
		return err
	}
	read := int64(0)
	for _, p := range phone {
		n := uint32(million * p.share / 1000)
		base, delta := b.path(p.name+".base"), b.path(p.name+".cow")
		if err := sparse(base, 4*int64(n)*blockSize); err != nil {
			return err
		}
		if err := runLike(delta, n); err != nil {
			return err
		}
		device, err := d.mapped(p.name, base, delta)
		if err != nil {
			return err
		}
		done, err := readStart(device, int64(n)*blockSize)
		if err != nil {
			return err
		}
		read += done
	}
	progress("  read %d MiB; waiting %v", read>>20, b.settle())
	time.Sleep(b.settle())
	f, err := observe(d.pid())
	if err != nil {
		return err
	}
	what := fmt.Sprintf("daemon idle, %d snapshots with 2^20 ops together mapped, %d MiB read, %v later: ", len(phone), read>>20, b.settle())
	b.table.value(what+"RSS", float64(f.rss)/1e6, "", atMost(8, "MB"))
	b.table.value(what+"anonymous", float64(f.anonymous)/1e6, "", atMost(3, "MB"))
	b.table.value(what+"threads", float64(f.threads), "", atMost(float64(2+len(phone)), ""))
	return b.phoneWakeups(d.pid())
}

func (b *bench) phoneWakeups(pid int) error {
	before, err := switches(pid)
	if err != nil {
		return err
	}
	time.Sleep(b.settle())
	after, err := switches(pid)
	if err != nil {
		return err
	}
	b.table.value(fmt.Sprintf("the same, wake-ups in %v", b.settle()), float64(wakeups(before, after)), "", atMost(0, ""))
	return nil
}

// readStart reads the first n bytes of a device.
func readStart(device string, n int64) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(f, n), make([]byte, 1<<20))
}
