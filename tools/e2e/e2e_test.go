package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cowbird/tools/fixture"
)

const blockSize = 4096

var bin string // folder of the commands under test

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cowbird-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	build := exec.Command("go", "build", "-o", dir, "cowbird/cmd/snapuserd", "cowbird/cmd/cowtool", "cowbird/cmd/otactl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// device is a folder with an image pair, its COW and a daemon.
type device struct {
	t            *testing.T
	dir          string
	target       []byte
	daemon       *exec.Cmd
	exited       chan error
	socket       string
	base, cow    string
	originalBase string
}

func newDevice(t *testing.T, blocks int) *device {
	t.Helper()
	needDrivers(t)
	d := &device{t: t, dir: t.TempDir()}
	d.socket, d.base, d.cow = d.path("control"), d.path("base.img"), d.path("update.cow")
	d.originalBase = d.path("original.img")
	base, target := images(blocks)
	d.target = target
	d.write(d.base, base)
	d.write(d.originalBase, base)
	d.write(d.path("target.img"), target)
	d.must("cowtool", "create", "--compression", "zstd", "-o", d.cow, d.base, d.path("target.img"))
	return d
}

func needDrivers(t *testing.T) {
	t.Helper()
	for _, path := range []string{"/dev/fuse", "/dev/loop-control"} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			fixture.Missing(t, "no driver: %v", err)
		}
		f.Close()
	}
}

// images are a base and a target: moved, changed, new and zeroed stretches.
func images(blocks int) (base, target []byte) {
	r := rand.New(rand.NewPCG(11, 12))
	base = make([]byte, blocks*blockSize)
	for i := 0; i < len(base); i += 1 + r.IntN(6) {
		base[i] = byte(r.Uint32())
	}
	for len(target) < len(base) {
		n := min(blockSize*(1+r.IntN(60)), len(base)-len(target))
		at := len(target)
		switch r.IntN(5) {
		case 0:
			for range n {
				target = append(target, byte(r.Uint32()&3))
			}
		case 1:
			target = append(target, base[at:at+n]...)
		case 2:
			target = append(target, make([]byte, n)...)
		default:
			from := max(0, min(len(base)-n, at+(r.IntN(41)-20)*blockSize))
			target = append(target, base[from:from+n]...)
			target[at+r.IntN(n)]++
		}
	}
	return base, target
}

func (d *device) path(name string) string { return filepath.Join(d.dir, name) }

func (d *device) write(path string, b []byte) {
	d.t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// command runs a command; otactl gets the socket.
func (d *device) command(name string, args ...string) (string, error) {
	if name == "otactl" {
		args = append([]string{"--socket", d.socket}, args...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var stderr bytes.Buffer
	c := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out)), err
}

func (d *device) must(name string, args ...string) string {
	d.t.Helper()
	out, err := d.command(name, args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// start runs the daemon, with more flags if given.
func (d *device) start(flags ...string) {
	d.t.Helper()
	log, err := os.OpenFile(d.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	d.daemon = exec.Command(filepath.Join(bin, "snapuserd"), append([]string{"--socket", d.socket, "--carrier", "fuse"}, flags...)...)
	d.daemon.Stderr = log
	if err := d.daemon.Start(); err != nil {
		d.t.Fatal(err)
	}
	log.Close()
	d.exited = make(chan error, 1)
	go func(c *exec.Cmd, done chan error) { done <- c.Wait() }(d.daemon, d.exited)
	d.t.Cleanup(func() {
		_ = d.daemon.Process.Kill()
		if d.t.Failed() {
			b, _ := os.ReadFile(d.path("log"))
			d.t.Logf("the daemon's log:\n%s", b)
		}
	})
}

// end sends a signal and waits for the daemon to leave.
func (d *device) end(sig syscall.Signal) error {
	d.t.Helper()
	if err := d.daemon.Process.Signal(sig); err != nil {
		d.t.Fatal(err)
	}
	select {
	case err := <-d.exited:
		return err
	case <-time.After(time.Minute):
		d.t.Fatal("the daemon does not leave")
		return nil
	}
}

func (d *device) mapIt(name string) (node string) {
	d.t.Helper()
	return d.must("otactl", "map", name, "--base", d.base, "--cow", d.cow)
}

type status struct {
	Name    string  `json:"name"`
	Device  string  `json:"device"`
	State   string  `json:"state"`
	Percent float64 `json:"percent"`
}

func (d *device) status(name string) status {
	d.t.Helper()
	out := d.must("otactl", "status", name, "--json")
	var s status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		d.t.Fatalf("status: %v: %s", err, out)
	}
	return s
}

func (d *device) isTarget(path string) {
	d.t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, d.target) {
		d.t.Fatalf("%s is not the target (%d of %d bytes, %v)", path, len(got), len(d.target), err)
	}
}

// readers verify random ranges until stop; errors after the daemon's end are
// the caller's to expect.
func (d *device) readers(node string) (stop func() error) {
	var ending atomic.Bool
	result := make(chan error)
	go func() {
		f, err := os.Open(node)
		if err != nil {
			result <- err
			return
		}
		defer f.Close()
		r := rand.New(rand.NewPCG(1, 3))
		b := make([]byte, 300<<10)
		for n := 0; ; n++ {
			off := r.IntN(len(d.target))
			p := b[:min(1+r.IntN(len(b)), len(d.target)-off)]
			_, err := f.ReadAt(p, int64(off))
			if ending.Load() {
				result <- nil
				return
			}
			if err == nil && !bytes.Equal(p, d.target[off:off+len(p)]) {
				err = fmt.Errorf("read %d: %d bytes at %d are not the target's", n, len(p), off)
			}
			if err != nil {
				result <- err
				return
			}
		}
	}()
	return func() error { ending.Store(true); return <-result }
}

func gone(t *testing.T, node string) {
	t.Helper()
	file := filepath.Join("/sys/block", filepath.Base(node), "loop/backing_file")
	for range 200 {
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	b, _ := os.ReadFile(file)
	t.Fatalf("%s is still there, on %s", node, b)
}

// The whole life: mapped, read, merged through a kill, merged to the end, and
// nothing to do the second time. SNU-001…007, SNU-011…015, SNU-026.
func TestUpdateThroughKills(t *testing.T) {
	d := newDevice(t, 6000)
	d.start()
	node := d.mapIt("system")
	d.isTarget(node)
	for kill := range 3 {
		stop := d.readers(node)
		d.must("otactl", "merge", "system", "--rate", "4M")
		for d.status("system").Percent < float64(15*(kill+1)) {
			time.Sleep(10 * time.Millisecond)
		}
		if s := d.status("system"); s.State != "snapshot-merge" {
			t.Fatalf("kill %d: %+v", kill, s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		_ = d.end(syscall.SIGKILL)
		gone(t, node)
		d.start()
		node = d.mapIt("system")
		d.isTarget(node)
	}
	stop := d.readers(node)
	d.must("otactl", "merge", "system", "--wait")
	if s := d.status("system"); s.State != "snapshot-merge-complete" || s.Percent != 100 {
		t.Fatalf("after the merge: %+v", s)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	d.isTarget(d.base)
	d.must("otactl", "merge", "system", "--wait")
	d.isTarget(node)
	d.must("otactl", "unmap", "system")
	gone(t, node)
	if err := d.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if out := d.must("cowtool", "merge", "--base", d.base, "--json", d.cow); !strings.Contains(out, `"blocks_written":0`) {
		t.Errorf("a merge of what is merged: %s", out)
	}
}

// SIGTERM in the middle of a merge: the batch is committed, the device goes,
// and the next daemon goes on from there.
func TestTerminateDuringMerge(t *testing.T) {
	d := newDevice(t, 3000)
	d.start()
	node := d.mapIt("system")
	d.must("otactl", "merge", "system", "--rate", "2M")
	for d.status("system").Percent < 20 {
		time.Sleep(10 * time.Millisecond)
	}
	if err := d.end(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	gone(t, node)
	if _, err := os.Stat(d.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	d.start()
	node = d.mapIt("system")
	if s := d.status("system"); s.Percent < 20 || s.Percent >= 100 {
		t.Errorf("progress after the restart: %+v", s)
	}
	d.isTarget(node)
	d.must("otactl", "merge", "system", "--wait")
	d.isTarget(d.base)
}

// A device in use is not taken away by unmap; SIGTERM takes it, and says so;
// after SIGKILL the next daemon clears it once it is free.
func TestDeviceInUse(t *testing.T) {
	d := newDevice(t, 1000)
	d.start()
	node := d.mapIt("system")
	f, err := os.Open(node)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if out, err := d.command("otactl", "unmap", "system"); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("unmap of a device in use: %s, %v", out, err)
	}
	d.isTarget(node)
	if err := d.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if log, _ := os.ReadFile(d.path("log")); !bytes.Contains(log, []byte("in use")) {
		t.Error("the log does not say that the device was in use")
	}
	if _, err := f.ReadAt(make([]byte, blockSize), 500*blockSize); err == nil || err == io.EOF {
		t.Logf("a read after the end gave %v", err) // from the page cache
	}
	f.Close()
	gone(t, node)

	d.start()
	node = d.mapIt("system")
	if f, err = os.Open(node); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_ = d.end(syscall.SIGKILL)
	d.start()
	other := d.mapIt("system")
	d.isTarget(other)
	f.Close()
	gone(t, node)
	d.must("otactl", "unmap", "system")
	gone(t, other)
}

// Several snapshots at a time, paused, resumed, and their merges.
func TestSeveralSnapshots(t *testing.T) {
	a, b := newDevice(t, 1500), newDevice(t, 1500)
	b.socket = a.socket
	a.start()
	nodes := []string{a.mapIt("system"), b.mapIt("vendor")}
	a.isTarget(nodes[0])
	b.isTarget(nodes[1])
	a.must("otactl", "pause")
	a.must("otactl", "merge", "system")
	b.must("otactl", "merge", "vendor")
	time.Sleep(100 * time.Millisecond)
	if s := a.status("system"); s.Percent != 0 {
		t.Errorf("merged while paused: %+v", s)
	}
	a.must("otactl", "resume")
	a.must("otactl", "merge", "system", "--wait")
	b.must("otactl", "merge", "vendor", "--wait")
	a.isTarget(a.base)
	b.isTarget(b.base)
	if err := a.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	for _, node := range nodes {
		gone(t, node)
	}
}

// The offline commands give the same outcome as the device.
func TestOffline(t *testing.T) {
	d := newDevice(t, 1500)
	d.must("cowtool", "check", "--base", d.base, "--target", d.path("target.img"), d.cow)
	d.must("cowtool", "cat", "--base", d.base, "-o", d.path("out.img"), d.cow)
	d.isTarget(d.path("out.img"))
	if out := d.must("cowtool", "cat", "--base", d.base, "-o", "-", d.cow); out != strings.TrimSpace(string(d.target)) {
		t.Error("cat to standard output is not the target")
	}
	for _, picture := range []string{"map.png", "map.svg"} {
		d.must("cowtool", "map", "-o", d.path(picture), d.cow)
	}
	d.must("cowtool", "inspect", "--json", d.cow)
	d.must("cowtool", "merge", "--base", d.base, d.cow)
	d.isTarget(d.base)
	if _, err := d.command("cowtool", "check", "--base", d.originalBase, "--sha256", strings.Repeat("0", 64), d.cow); exitCode(err) != 1 {
		t.Errorf("a wrong checksum: expected exit code 1, found %v", err)
	}
	if _, err := d.command("cowtool", "create"); exitCode(err) != 2 {
		t.Errorf("no arguments: expected exit code 2, found %v", err)
	}
}

func exitCode(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}
