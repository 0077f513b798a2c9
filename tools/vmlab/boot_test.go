//go:build vmhost

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"cowbird/cow"
	"cowbird/formats/bootctl"
	"cowbird/formats/lpmeta"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// What the tests of this file boot is not the host's root but a device of its own:
//
//	Debian's kernel ── initramfs by Debian's mkinitramfs or dracut (with systemd inside, too), with our hooks
//	                     │ otactl boot
//	vda  super ──────────┴─► /dev/mapper/system_X, the root; its init is bootInit
//	vdb  metadata     vdc  misc     vdd  data, with a payload
//
// Between two boots the test is the boot loader.

const (
	bootSuper  = 96 << 20
	bootRoot   = "24M"
	bootLimit  = 4 * time.Minute
	bootDebs   = "initramfs-tools-core klibc-utils libklibc busybox-static cpio kmod libkmod2 udev dracut-core"
	bootConfig = `{"state": "/metadata/ota", "super": "/dev/vda", "static": "/dev/disk/*", "slots": {"misc": {"path": "/dev/vdc"}}}`
	bootConf   = "DEVICES='/dev/vda /dev/vdb'\nMOUNTS='\n/dev/vdb /metadata ext4 rw,nosuid,nodev,noexec\n'\n"
)

// bootInit is process 1 of the device. First it does what systemd does when it has
// switched the root, for the makers that leave systemd out: it ends every process but
// those that are marked.
const bootInit = `#!/bin/sh
export PATH=/bin:/usr/sbin
say() { echo "device: $*" >/dev/console; }
run() { "$@" >/dev/console 2>&1 || { say "failed, $?: $*"; sync; poweroff -f; sleep 60; }; }
for p in /proc/[0-9]*; do
  case "${p#/proc/} $(tr '\0' ' ' <"$p/cmdline")" in
  "1 "* | *" " | *" @"*) ;;
  *) kill -9 "${p#/proc/}" 2>/dev/null ;;
  esac
done
read -r line </proc/cmdline
case $line in *slot_suffix=_a*) slot=_a ;; *) slot=_b ;; esac
run mount -t ext4 /dev/vdb /metadata
run mount -t ext4 -o ro /dev/vdd /data
look() {
  echo 3 >/proc/sys/vm/drop_caches
  say "sum $(dd if=/dev/mapper/system$slot bs=1M iflag=direct 2>/dev/null | sha256sum | cut -d' ' -f1)"
  for d in /sys/block/dm-*; do say "mapped $(cat $d/dm/name) on $(ls $d/slaves | tr '\n' ' ')"; done
  run otactl update
}
say "version $(cat /etc/version) in $slot, root $(cut -d' ' -f1,2 /proc/mounts | grep ' /$' | tail -n 1)"
look
case $line in
*do=install*)
  run otactl mark-successful
  run otactl install --quiet --unsigned /data/payload.bin
  ;;
*do=merge*)
  run otactl update --process
  run otactl mark-successful
  run otactl merge --wait --if-any
  ;;
esac
look
umount /metadata
sync
say well
poweroff -f
sleep 60
`

// board is a device: its disks, and what its boot loader has.
type board struct {
	t              *testing.T
	dir            string
	kernel, initrd string
	cmdline        string
}

func (b *board) path(name string) string { return filepath.Join(b.dir, name) }

func (b *board) check(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *board) run(dir, name string, args ...string) string {
	b.t.Helper()
	cmd := exec.CommandContext(b.t.Context(), name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func (b *board) write(path, body string, mode os.FileMode) {
	b.t.Helper()
	b.check(os.MkdirAll(filepath.Dir(path), 0o755))
	b.check(os.WriteFile(path, []byte(body), mode))
}

func (b *board) copy(from, to string, mode os.FileMode) {
	b.t.Helper()
	body, err := os.ReadFile(from)
	b.check(err)
	b.write(to, string(body), mode)
}

// debian is a folder with the programs of an initramfs, unpacked.
func (l *lab) debian(ctx context.Context) (string, error) {
	return l.fill("initramfs-"+hash([]byte(bootDebs)), func(dir string) error {
		a := &apt{log: l.log}
		debs, err := a.download(ctx, dir, strings.Fields(bootDebs)...)
		if err != nil {
			return err
		}
		const script = `for d in "$@"; do dpkg -x "$d" tree; done
for d in bin sbin lib; do if [ -e tree/$d ]; then mkdir -p tree/usr/$d; cp -a tree/$d/. tree/usr/$d/; rm -rf tree/$d; fi; done`
		return l.run(ctx, filepath.Join(dir, "build.log"), dir, "sh", append([]string{"-ec", script, "sh"}, debs...)...)
	})
}

// release is the kernel's, as its modules have it.
func release(module string) (string, error) {
	b, err := os.ReadFile(module)
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`vermagic=(\S+)`).FindSubmatch(b)
	if m == nil {
		return "", fmt.Errorf("%s: expected a vermagic, found none", module)
	}
	return string(m[1]), nil
}

// maker is a program that makes an initramfs, and what the kernel's command line must
// say for that.
type maker struct{ name, command, cmdline string }

// In the commands, $5 stands for the kernel's version.
var makers = []maker{
	{"initramfs-tools", "mkinitramfs -o /initrd $5", ""},
	{"dracut", dracut + "--modules 'base rootfs-block udev-rules dm cowbird'", ""},
	{"dracut-systemd", dracut + "--modules 'base systemd systemd-initrd dracut-systemd rootfs-block udev-rules dm cowbird'", "root=/dev/cowbird/root"},
}

const dracut = "dracut --quiet --no-hostonly --no-early-microcode --no-compress --add-drivers 'virtio_blk ext4' --kver $5 /initrd "

// makeInitrd runs in a mount namespace of its own, over the host's root.
const makeInitrd = `mount -t tmpfs overlay "$1" && cd "$1" && mkdir up work root && cp -a "$2" lower && cp -a "$3/." lower/
mount -t overlay overlay -o lowerdir=lower:/,upperdir=up,workdir=work root
mount --bind /dev root/dev && mount -t proc proc root/proc && mount -t sysfs sys root/sys
mount -t tmpfs tmp root/tmp && mount -t tmpfs tmp root/var/tmp
chroot root sh -ec "depmod $5; $6"
cp root/initrd "$4"`

func newBoard(t *testing.T, l *lab, m maker) *board {
	kernel, err := l.qemu(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	debian, err := l.debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := &board{t: t, dir: t.TempDir(), kernel: kernel, cmdline: m.cmdline}
	b.initrd = b.path("initrd")
	for _, c := range []string{"otactl", "snapuserd"} {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", b.path("system/usr/sbin/"+c), "./cmd/"+c)
		cmd.Dir, cmd.Env = l.root, append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	b.makeInitramfs(l.root, filepath.Join(debian, "tree"), m)
	b.makeDisks(filepath.Join(debian, "tree/usr/bin/busybox"))
	return b
}

// makeInitramfs has one of Debian's own programs make it.
func (b *board) makeInitramfs(root, debian string, m maker) {
	system, ours := b.path("system"), filepath.Join(root, "tools/boot")
	b.copy(filepath.Join(ours, "boot.sh"), filepath.Join(system, "usr/lib/cowbird/boot.sh"), 0o644)
	b.copy(filepath.Join(ours, "udev/59-cowbird.rules"), filepath.Join(system, "usr/lib/udev/rules.d/59-cowbird.rules"), 0o644)
	conf := filepath.Join(system, "etc/initramfs-tools")
	for _, f := range []string{"hooks/cowbird", "scripts/local-top/cowbird"} {
		b.copy(filepath.Join(ours, "initramfs-tools", f), filepath.Join(conf, f), 0o755)
	}
	for _, f := range []string{"module-setup.sh", "parse-cowbird.sh", "cowbird-map.sh"} {
		b.copy(filepath.Join(ours, "dracut/90cowbird", f), filepath.Join(system, "usr/lib/dracut/modules.d/90cowbird", f), 0o755)
	}
	b.write(filepath.Join(conf, "conf.d/lab"), "MODULES=list\nCOMPRESS=gzip\nBUSYBOX=y\nRESUME=none\nFSTYPE=ext4\n", 0o644)
	b.write(filepath.Join(conf, "modules"), "virtio_blk\next4\n", 0o644)
	b.write(filepath.Join(system, "etc/cowbird/update.json"), bootConfig, 0o644)
	b.write(filepath.Join(system, "etc/cowbird/boot.conf"), bootConf, 0o644)
	modules, err := filepath.Glob(filepath.Join(b.kernel, "modules/*.ko"))
	b.check(err)
	version, err := release(modules[0])
	b.check(err)
	dir := filepath.Join(system, "usr/lib/modules", version)
	for _, m := range modules {
		_, name, _ := strings.Cut(filepath.Base(m), "-")
		b.copy(m, filepath.Join(dir, "kernel", name), 0o644)
	}
	for _, f := range []string{"order", "builtin", "builtin.modinfo"} {
		b.write(filepath.Join(dir, "modules."+f), "", 0o644)
	}
	b.write(filepath.Join(system, "boot/config-"+version), "CONFIG_RD_GZIP=y\n", 0o644)
	b.check(os.Mkdir(b.path("overlay"), 0o755))
	b.run("", "unshare", "-m", "sh", "-ec", makeInitrd, "sh", b.path("overlay"), debian, system, b.initrd, version, strings.ReplaceAll(m.command, "$5", version))
}

// image is the root file system of one version.
func (b *board) image(version, busybox string) []byte {
	dir, file := b.path("root-"+version), b.path(version+".img")
	b.copy(busybox, filepath.Join(dir, "bin/busybox"), 0o755)
	b.copy(b.path("system/usr/sbin/otactl"), filepath.Join(dir, "usr/sbin/otactl"), 0o755)
	for name := range strings.Lines(b.run("", busybox, "--list")) {
		b.check(os.Symlink("busybox", filepath.Join(dir, "bin", strings.TrimSpace(name)+".tmp")))
		_ = os.Rename(filepath.Join(dir, "bin", strings.TrimSpace(name)+".tmp"), filepath.Join(dir, "bin", strings.TrimSpace(name)))
	}
	b.check(os.Remove(filepath.Join(dir, "bin/busybox")))
	b.copy(busybox, filepath.Join(dir, "bin/busybox"), 0o755)
	b.write(filepath.Join(dir, "sbin/init"), bootInit, 0o755)
	b.write(filepath.Join(dir, "etc/version"), version, 0o644)
	b.write(filepath.Join(dir, "etc/os-release"), "ID=cowbird\n", 0o644) // without it systemd takes it for no root
	b.write(filepath.Join(dir, "etc/cowbird/update.json"), bootConfig, 0o644)
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "metadata", "data"} {
		b.check(os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	b.run("", "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", dir, file, bootRoot)
	body, err := os.ReadFile(file)
	b.check(err)
	return body
}

func (b *board) makeDisks(busybox string) {
	older, newer := b.image("old", busybox), b.image("new", busybox)
	b.makeSuper(older)
	b.write(b.path("vdc"), strings.Repeat("\x00", 64<<10), 0o600)
	b.check(os.Mkdir(b.path("none"), 0o755))
	b.run("", "mke2fs", "-q", "-t", "ext4", "-d", b.path("none"), b.path("vdb"), "8M")
	b.write(b.path("data/payload.bin"), string(b.payload(newer)), 0o644)
	b.run("", "mke2fs", "-q", "-t", "ext4", "-d", b.path("data"), b.path("vdd"), "64M")
}

func (b *board) makeSuper(system []byte) {
	super, err := os.Create(b.path("vda"))
	b.check(err)
	defer super.Close()
	b.check(super.Truncate(bootSuper))
	m, err := lpmeta.NewBuilder([]lpmeta.DeviceInfo{{Name: "super", Size: bootSuper, Alignment: 1 << 20, LogicalBlockSize: 4096}}, 65536, 2)
	b.check(err)
	none, err := m.Export()
	b.check(err)
	b.check(m.AddGroup("main_a", 32<<20))
	b.check(m.AddPartition("system_a", "main_a", lpmeta.ReadOnly))
	b.check(m.Resize("system_a", uint64(len(system)), nil))
	meta, err := m.Export()
	b.check(err)
	device, err := cow.NewFileDevice(super)
	b.check(err)
	b.check(lpmeta.Flash(device, bootSuper, []*lpmeta.Metadata{meta, none}))
	for _, l := range meta.Table(meta.Partition("system_a")) {
		_, err := super.WriteAt(system[l.Start*512:][:l.Length*512], int64(l.Data)*512)
		b.check(err)
	}
}

// payload is a full one that replaces everything, unsigned.
func (b *board) payload(system []byte) []byte {
	const piece = 1 << 20
	hash := sha256.Sum256(system)
	p := &pb.PartitionUpdate{
		PartitionName: proto.String("system"), EstimateCowSize: proto.Uint64(uint64(len(system)) / 2),
		NewPartitionInfo: &pb.PartitionInfo{Size: proto.Uint64(uint64(len(system))), Hash: hash[:]},
	}
	for off := 0; off < len(system); off += piece {
		sum := sha256.Sum256(system[off : off+piece])
		p.Operations = append(p.Operations, &pb.InstallOperation{
			Type: pb.InstallOperation_REPLACE.Enum(), DataOffset: proto.Uint64(uint64(off)), DataLength: proto.Uint64(piece), DataSha256Hash: sum[:],
			DstExtents: []*pb.Extent{{StartBlock: proto.Uint64(uint64(off) / 4096), NumBlocks: proto.Uint64(piece / 4096)}},
		})
	}
	out, err := payload.AppendMetadata(nil, &pb.DeltaArchiveManifest{
		Partitions: []*pb.PartitionUpdate{p},
		DynamicPartitionMetadata: &pb.DynamicPartitionMetadata{
			Groups:          []*pb.DynamicPartitionGroup{{Name: proto.String("main"), Size: proto.Uint64(32 << 20), PartitionNames: []string{"system"}}},
			SnapshotEnabled: proto.Bool(true), VabcEnabled: proto.Bool(true), CowVersion: proto.Uint32(3), VabcCompressionParam: proto.String("lz4"),
		},
	}, nil)
	b.check(err)
	return append(out, system...)
}

// choose is the boot loader.
func (b *board) choose() string {
	b.t.Helper()
	misc, err := os.ReadFile(b.path("vdc"))
	b.check(err)
	control, err := bootctl.ParseControl(misc[bootctl.ControlOffset:])
	if err != nil {
		return "_a" // never written
	}
	slot, control, err := control.Choose()
	b.check(err)
	block, err := control.Marshal()
	b.check(err)
	copy(misc[bootctl.ControlOffset:], block)
	b.check(os.WriteFile(b.path("vdc"), misc, 0o600))
	return lpmeta.SuffixOf(slot)
}

// boot runs the device until it turns itself off, and gives its console.
func (b *board) boot(do string) string {
	b.t.Helper()
	console, err := b.power(do, "")
	if err != nil || !strings.Contains(console, "device: well") {
		b.t.Fatalf("expected the device to come up and to go well, found %v", err)
	}
	return console
}

// bootUntil cuts the power when the console has said something.
func (b *board) bootUntil(do, said string) string {
	b.t.Helper()
	console, _ := b.power(do, said)
	if !strings.Contains(console, said) || strings.Contains(console, "device: well") {
		b.t.Fatalf("expected the device to be turned off at %q, found that it had ended before", said)
	}
	return console
}

// cutter is a console that calls off when something is said there.
type cutter struct {
	bytes.Buffer
	said string
	off  func()
}

func (c *cutter) Write(p []byte) (int, error) {
	n, err := c.Buffer.Write(p)
	if c.said != "" && strings.Contains(c.String(), c.said) {
		c.off()
	}
	return n, err
}

func (b *board) power(do, until string) (string, error) {
	ctx, cancel := context.WithTimeout(b.t.Context(), bootLimit)
	defer cancel()
	args := []string{
		"-accel", "tcg,thread=multi,tb-size=512", "-cpu", "qemu64", "-smp", "2", "-m", "768M",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", filepath.Join(b.kernel, "vmlinuz"), "-initrd", b.initrd,
		"-append", "console=ttyS0 panic=-1 mitigations=off nokaslr tsc=reliable ro fsck.mode=skip rd.skipfsck rd.shell=0 cowbird.root=system androidboot.slot_suffix=" + b.choose() + " do=" + do + " " + b.cmdline,
	}
	for _, disk := range []string{"vda", "vdb", "vdc", "vdd"} {
		args = append(args, "-drive", "if=virtio,format=raw,file="+b.path(disk))
	}
	console := &cutter{said: until, off: cancel}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Stdout = io.MultiWriter(console, b.t.Output())
	cmd.Stderr = cmd.Stdout
	err := cmd.Run()
	return strings.ReplaceAll(console.String(), "\r", ""), err
}

// expect wants patterns to be found in a console, in that order.
func expect(t *testing.T, console string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		at := regexp.MustCompile(p).FindStringIndex(console)
		if at == nil {
			t.Fatalf("expected %q on the console, found only %q", p, console)
		}
		console = console[at[1]:]
	}
}

// partition is what is on the disk of a partition in super.
func (b *board) partition(name string, slot int) []byte {
	b.t.Helper()
	super, err := os.Open(b.path("vda"))
	b.check(err)
	defer super.Close()
	device, err := cow.NewFileDevice(super)
	b.check(err)
	meta, err := lpmeta.Read(device, slot)
	b.check(err)
	var body []byte
	for _, l := range meta.Table(meta.Partition(name)) {
		piece := make([]byte, l.Length*512)
		_, err := super.ReadAt(piece, int64(l.Data)*512)
		b.check(err)
		body = append(body, piece...)
	}
	return body
}

// differ is the first byte in which two images differ; -1: none.
func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	return -1
}

// TestBootUpdate boots a device whose root is mapped in its initramfs: before an
// update, when it is tried, where the root is a snapshot that a daemon of the
// initramfs serves, again when the power was cut as the merge had begun, and after it.
func TestBootUpdate(t *testing.T) {
	l, err := newLab(t.Context(), 2, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range makers {
		t.Run(m.name, func(t *testing.T) { testBootUpdate(t, newBoard(t, l, m)) })
	}
}

func testBootUpdate(t *testing.T, b *board) {
	newer, err := os.ReadFile(b.path("new.img"))
	b.check(err)
	sum := fmt.Sprintf("device: sum %x", sha256.Sum256(newer))

	expect(t, b.boot("install"), `device: version old in _a, root /dev/mapper/system_a`, `device: mapped system_a on vda`, `state +None`, `state +Unverified`)
	expect(t, b.bootUntil("merge", "merge begins"), `device: version new in _b, root /dev/mapper/system_b`, sum,
		`device: mapped system_b on (ublkb|nbd|loop)\d+`, `state +Unverified`)
	expect(t, b.boot("merge"), `device: version new in _b`, sum, `device: mapped system_b on (ublkb|nbd|loop)\d+`, `state +Merging`,
		sum, `device: mapped system_b on vda`, `state +None`)
	if at := differ(newer, b.partition("system_b", 1)); at >= 0 {
		t.Errorf("expected the merged partition to be the target, found it different at byte %d", at)
	}
	expect(t, b.boot("nothing"), `device: version new in _b`, sum, `device: mapped system_b on vda`, `state +None`)
}
