package main

import (
	"fmt"
	"os"
	"time"

	"cowbird/tools/fio"
)

// fuseTable compares our FUSE + loop device with QEMU's, and with a loop device on a
// plain file, over more patterns than the promised ones of reads.
func (b *bench) fuseTable() error {
	defer b.undo(b.mark())
	lean, err := b.mapQemu("differing", b.qemuDiffering)
	if err != nil {
		return err
	}
	for _, compression := range []string{"zstd", "lz4"} {
		cow, err := b.needCow(compression)
		if err != nil {
			return err
		}
		if err := b.fuseRows("the image pair, "+compression+", against QEMU's overlay (zstd)", b.base, cow, lean.device, atLeast(1.5), fuseJobs); err != nil {
			return err
		}
	}
	return b.unchangedRows()
}

// unchangedRows is for blocks that are the base's.
func (b *bench) unchangedRows() error {
	none := b.path("none.cow")
	if _, err := output(b.tool("cowtool"), "create", "-o", none, b.base, b.base); err != nil {
		return err
	}
	raw, err := b.mapQemuRaw(b.base)
	if err != nil {
		return err
	}
	plain, err := b.loop(b.base)
	if err != nil {
		return err
	}
	if err := b.fuseRows("unchanged blocks, against QEMU's export of the raw base", b.base, none, raw, atLeast(1), fuseJobs); err != nil {
		return err
	}
	deep := fuseJobs[len(fuseJobs)-1:]
	return b.fuseRows("unchanged blocks, against loop on the base", b.base, none, plain, atLeast(0.6), deep)
}

var fuseJobs = []job{
	{what: "sequential, 1 MiB, 1 in flight", args: fio.Sequential(1)},
	{what: "sequential, 1 MiB, 16 in flight", args: fio.Sequential(16)},
	{what: "random, 4 KiB, 1 in flight", args: fio.Random(1), iops: true},
	{what: "random, 4 KiB, 16 in flight", args: fio.Random(16), iops: true},
}

func (b *bench) fuseRows(what, base, cow, theirs string, l limit, jobs []job) error {
	defer b.undo(b.mark())
	ours, err := b.mapWith(base, cow)
	if err != nil {
		return err
	}
	for _, device := range []string{ours.device, theirs} {
		if err := warm(device); err != nil {
			return err
		}
	}
	for _, j := range jobs {
		got, err := alternate(b.repeats,
			func() (float64, error) { return b.fio(ours.device, j) },
			func() (float64, error) { return b.fio(theirs, j) })
		if err != nil {
			return err
		}
		unit := map[bool]string{true: " IOPS", false: " MB/s"}[j.iops]
		b.table.ratio(what+": "+j.what, spread(got[0], "%.0f")+unit, spread(got[1], "%.0f")+unit, median(got[0])/median(got[1]), l)
	}
	return nil
}

// mapQemuRaw has qemu-storage-daemon export a plain file.
func (b *bench) mapQemuRaw(file string) (string, error) {
	mountpoint := b.path("raw.export")
	if err := os.WriteFile(mountpoint, nil, 0o600); err != nil {
		return "", err
	}
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	s, err := b.startServer("qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=file,read-only=on,filename="+file,
		"--blockdev", "driver=raw,node-name=image,file=file,read-only=on",
		"--export", "type=fuse,id=export,node-name=image,mountpoint="+mountpoint)
	if err != nil {
		return "", err
	}
	err = s.until("its export", func() bool {
		now, err := os.Stat(mountpoint)
		return err == nil && now.Size() == info.Size()
	})
	if err != nil {
		return "", err
	}
	return b.loop(mountpoint)
}

// loop makes a loop device as ours are.
func (b *bench) loop(file string) (string, error) {
	out, err := output("losetup", "--direct-io=on", "-r", "-b", "4096", "-f", "--show", file)
	if err != nil {
		return "", fmt.Errorf("a loop device on %s: %w", file, err)
	}
	device := lastLine(out)
	b.later(func() { _, _ = output("losetup", "-d", device); time.Sleep(100 * time.Millisecond) })
	return device, nil
}
