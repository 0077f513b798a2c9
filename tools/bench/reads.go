package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"cowbird/tools/fio"
)

// job is one fio pattern on a device.
type job struct {
	what    string
	args    []string
	iops    bool // judged by requests a second instead of bytes a second
	reaches limit
}

var jobs = []job{
	{"sequential read, 1 MiB, 4 in flight", fio.Sequential(4), false, atLeast(1.2)},
	{"random read, 4 KiB, 1 in flight", fio.Random(1), true, atLeast(1.5)},
	{"random read, 4 KiB, 16 in flight", fio.Random(16), true, atLeast(1.5)},
}

// reads compares our mapped device with QEMU's FUSE export under a loop device
// of the same content, both with direct I/O and with their files in the page
// cache.
func (b *bench) reads() error {
	defer b.undo(b.mark())
	ours, err := b.mapOurs()
	if err != nil {
		return err
	}
	theirs, err := b.mapQemu("all", b.qemuAll)
	if err != nil {
		return err
	}
	lean, err := b.mapQemu("differing", b.qemuDiffering)
	if err != nil {
		return err
	}
	if err := b.sameContent(ours.device, theirs.device, lean.device); err != nil {
		return err
	}
	for _, j := range jobs {
		got, err := alternate(b.repeats,
			func() (float64, error) { return b.fio(ours.device, j) },
			func() (float64, error) { return b.fio(theirs.device, j) },
			func() (float64, error) { return b.fio(lean.device, j) },
		)
		if err != nil {
			return err
		}
		format, unit := "%.0f", " MB/s"
		if j.iops {
			unit = " IOPS"
		}
		b.table.ratio("mapped device, "+j.what, spread(got[0], format)+unit, spread(got[1], format)+unit,
			median(got[0])/median(got[1]), j.reaches)
		b.table.info("the same, the reference without what equals the base", "", spread(got[2], format)+unit,
			fmt.Sprintf("%.2f", median(got[0])/median(got[2])))
	}
	b.noteReferences(theirs, lean)
	return nil
}

func (b *bench) noteReferences(all, lean *mapped) {
	mb := func(path string) float64 {
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return float64(info.Size()) / 1e6
	}
	b.table.note("The reference for reads is qemu-storage-daemon's FUSE export under a loop device. "+
		"`qemu-img convert -c -B base` compresses every data cluster of the target, also those equal to the base (%.1f MB); "+
		"the second figure is for an overlay that holds only the clusters that differ (%.1f MB), the rest read from the raw base.",
		mb(all.file), mb(lean.file))
}

// sameContent reads both devices to the end, which also warms the cache, and
// compares them with the target.
func (b *bench) sameContent(devices ...string) error {
	for _, d := range devices {
		if err := b.mustEqualTarget(d); err != nil {
			return err
		}
	}
	return nil
}

// fio runs one job and returns MB/s or IOPS.
func (b *bench) fio(device string, j job) (float64, error) {
	r, err := fio.Read(device, b.fioLength(), j.args...)
	if j.iops {
		return r.IOPS, err
	}
	return r.BytesPerSecond / 1e6, err
}

func (b *bench) fioLength() time.Duration {
	if b.quick {
		return 2 * time.Second
	}
	return 4 * time.Second
}

// mapped is a block device and the process that serves it.
type mapped struct {
	*server
	device string
	file   string // what is served: the COW or the qcow2
	otactl func(args ...string) (string, error)
}

// mapOurs serves the pair's base + COW (zstd) with snapuserd.
func (b *bench) mapOurs() (*mapped, error) {
	cow, err := b.needCow("zstd")
	if err != nil {
		return nil, err
	}
	return b.mapWith(b.base, cow)
}

// mapWith serves base + COW with a snapuserd of its own, as "bench".
func (b *bench) mapWith(base, cow string) (*mapped, error) {
	o, err := b.startOurs()
	if err != nil {
		return nil, err
	}
	device, err := o.mapped("bench", base, cow)
	if err != nil {
		return nil, err
	}
	return &mapped{server: o.server, device: device, file: cow, otactl: o.otactl}, nil
}

// ours is a snapuserd.
type ours struct {
	*server
	b      *bench
	otactl func(args ...string) (string, error)
}

func (b *bench) startOurs() (*ours, error) {
	socket := b.path("snapuserd.socket")
	s, err := b.startServer(b.tool("snapuserd"), "--socket", socket, "--carrier", "auto")
	if err != nil {
		return nil, err
	}
	otactl := func(args ...string) (string, error) {
		return output(b.tool("otactl"), append([]string{"--socket", socket}, args...)...)
	}
	if err := s.until("an answer on its socket", func() bool { _, err := otactl("status"); return err == nil }); err != nil {
		return nil, err
	}
	return &ours{s, b, otactl}, nil
}

// mapped maps a snapshot and returns its device.
func (o *ours) mapped(name, base, cow string) (string, error) {
	out, err := o.otactl("map", name, "--base", base, "--cow", cow)
	if err != nil {
		return "", err
	}
	o.b.later(func() { _, _ = o.otactl("unmap", name) })
	return lastLine(out), nil
}

// mapQemu serves a qcow2 with qemu-storage-daemon.
func (b *bench) mapQemu(name string, build func(string) error) (*mapped, error) {
	qcow2, mountpoint := b.path(name+".qcow2"), b.path(name+".export")
	if _, err := os.Stat(qcow2); err != nil {
		if err := build(qcow2); err != nil {
			return nil, err
		}
	}
	if err := warm(qcow2); err != nil {
		return nil, err
	}
	s, err := b.exportQemu(qcow2, mountpoint, false)
	if err != nil {
		return nil, err
	}
	device, err := b.loop(mountpoint)
	if err != nil {
		return nil, err
	}
	return &mapped{server: s, device: device, file: qcow2}, nil
}

// exportQemu mounts a qcow2's content over a regular file.
func (b *bench) exportQemu(qcow2, mountpoint string, writable bool) (*server, error) {
	if err := os.WriteFile(mountpoint, nil, 0o600); err != nil {
		return nil, err
	}
	onOff := map[bool]string{true: "on", false: "off"}
	s, err := b.startServer("qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=file,filename="+qcow2+",read-only="+onOff[!writable],
		"--blockdev", "driver=qcow2,node-name=image,file=file,read-only="+onOff[!writable],
		"--export", "type=fuse,id=export,node-name=image,mountpoint="+mountpoint+",writable="+onOff[writable])
	if err != nil {
		return nil, err
	}
	return s, s.until("its export", func() bool {
		info, err := os.Stat(mountpoint)
		return err == nil && info.Size() == b.size
	})
}

// qemuAll is the reference as qemu-img makes it.
func (b *bench) qemuAll(qcow2 string) error {
	_, err := output("qemu-img", "convert", "-q", "-c", "-B", b.base, "-F", "raw",
		"-o", "compression_type=zstd,cluster_size=64K", "-O", "qcow2", b.target, qcow2)
	return err
}

// qemuDiffering is an overlay with only the clusters that differ from the base.
func (b *bench) qemuDiffering(qcow2 string) error {
	plain := qcow2 + ".plain"
	if _, err := output("qemu-img", "create", "-q", "-f", "qcow2", "-b", b.base, "-F", "raw",
		"-o", "cluster_size=64K", plain, fmt.Sprint(b.size)); err != nil {
		return err
	}
	if err := b.fillOverlay(plain); err != nil {
		return err
	}
	_, err := output("qemu-img", "convert", "-q", "-c", "-B", b.base, "-F", "raw",
		"-o", "compression_type=zstd,cluster_size=64K", "-O", "qcow2", plain, qcow2)
	return err
}

// fillOverlay writes the differing clusters through a writable export.
func (b *bench) fillOverlay(plain string) error {
	defer b.undo(b.mark())
	mountpoint := plain + ".export"
	if _, err := b.exportQemu(plain, mountpoint, true); err != nil {
		return err
	}
	out, err := os.OpenFile(mountpoint, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	in, err := os.Open(b.target)
	if err != nil {
		return errors.Join(err, out.Close())
	}
	defer in.Close()
	runs, err := changedRuns(b.base, b.target, 64<<10)
	if err == nil {
		err = copyRuns(out, in, runs, merged{BlocksWritten: blocksIn(runs)})
	}
	return errors.Join(err, out.Sync(), out.Close())
}
