//go:build vmtest

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/cow"
	"cowbird/formats/cowfile"
	"cowbird/ota/control"
	"cowbird/tools/vmlab/vmtest"
)

// daemonEnv makes this program the daemon itself.
const daemonEnv = "SNAPUSERD_VMTEST"

func init() {
	if os.Getenv(daemonEnv) != "" {
		os.Exit(daemon{}.run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
}

// rig is a daemon in a process of its own, and what it serves.
type rig struct {
	t                 *testing.T
	carrier           string
	dir               string
	base, cow, socket string
	target            []byte
	process           *exec.Cmd
	client            *control.Client
}

// newRig makes a base, and a COW that turns it into a file system.
func newRig(t *testing.T, carrier string) *rig {
	t.Helper()
	r := &rig{t: t, carrier: carrier, dir: t.TempDir()}
	r.base, r.cow, r.socket = filepath.Join(r.dir, "base"), filepath.Join(r.dir, "cow"), filepath.Join(r.dir, "socket")
	content, image := filepath.Join(r.dir, "content"), filepath.Join(r.dir, "image")
	r.must(os.Mkdir(content, 0o755))
	r.must(os.WriteFile(filepath.Join(content, "file"), bytes.Repeat([]byte("content of the file\n"), 100000), 0o644))
	r.run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", content, image, "16M")
	var err error
	r.target, err = os.ReadFile(image)
	r.must(err)
	old := append(bytes.Repeat([]byte("old"), 1<<20)[:1<<20], r.target[:len(r.target)-1<<20]...) // moved
	r.must(os.WriteFile(r.base, old, 0o600))
	out, err := os.Create(r.cow)
	r.must(err)
	defer out.Close()
	_, err = cow.Build(t.Context(), out, cow.BuildOptions{
		Base: imageOf(old), Target: imageOf(r.target), Version: 3, Compression: cowfile.None, MaxUnit: 4096, Workers: 1,
	})
	r.must(err)
	return r
}

func imageOf(b []byte) cow.Image { return cow.Image{R: bytes.NewReader(b), Size: int64(len(b))} }

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) run(name string, args ...string) {
	r.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		r.t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// start runs the daemon and maps the snapshot.
func (r *rig) start() (node string) {
	r.t.Helper()
	r.process = exec.Command("/proc/self/exe", "--socket", r.socket, "--carrier", r.carrier)
	r.process.Env = append(os.Environ(), daemonEnv+"=1")
	r.process.Stderr = os.Stderr
	r.must(r.process.Start())
	r.t.Cleanup(func() { _ = r.process.Process.Kill() })
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	var err error
	r.client, err = control.Dial(ctx, r.socket)
	r.must(err)
	_, err = r.client.Init(ctx, "system", r.cow, r.base, r.base)
	r.must(err)
	r.must(r.client.Do(ctx, control.Start, "system"))
	node, err = r.client.Device(ctx, "system")
	r.must(err)
	return node
}

func (r *rig) kill() {
	r.t.Helper()
	_ = r.client.Close()
	r.must(r.process.Process.Kill())
	_ = r.process.Wait()
}

// reading compares the device with the target again and again, until stop, which
// gives the first failure.
func (r *rig) reading(node string) (stop func() error, rounds *atomic.Int64) {
	r.t.Helper()
	f, err := os.OpenFile(node, os.O_RDONLY|unix.O_DIRECT, 0)
	r.must(err)
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	r.must(err)
	rounds = &atomic.Int64{}
	quit, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for off := 0; ; off = (off + len(buf)) % len(r.target) {
			select {
			case <-quit:
				ended <- nil
				return
			default:
			}
			if _, err := f.ReadAt(buf, int64(off)); err != nil {
				ended <- err
				return
			}
			if !bytes.Equal(buf, r.target[off:off+len(buf)]) {
				ended <- errors.New("the device is not the target")
				return
			}
			rounds.Add(1)
		}
	}()
	return func() error { close(quit); err := <-ended; _ = f.Close(); return err }, rounds
}

// The daemon is killed while its device is mounted, read and merged. The next one
// goes on with the same device, and nobody who has it open sees an error.
//
//vmtest:timeout 5m
func TestNbdDaemonRestart(t *testing.T) {
	r := newRig(t, "nbd")
	node := r.start()
	if !strings.HasPrefix(node, "/dev/nbd") {
		t.Fatalf("expected an nbd device, found %s", node)
	}
	point := t.TempDir()
	r.must(unix.Mount(node, point, "ext4", unix.MS_RDONLY, "noload"))
	stop, rounds := r.reading(node)
	for _, merging := range []bool{false, true, true} {
		if merging {
			r.must(r.client.Merge(t.Context(), "system", 1<<20)) // slowly, so that it is under way
		}
		rounds.Store(0)
		vmtest.Eventually(t, "reads", func() bool { return rounds.Load() > 20 })
		r.kill()
		if again := r.start(); again != node {
			t.Fatalf("expected %s again, found %s", node, again)
		}
	}
	rounds.Store(0)
	vmtest.Eventually(t, "reads after the last restart", func() bool { return rounds.Load() > 20 })
	r.must(stop())
	r.must(os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	got, err := os.ReadFile(filepath.Join(point, "file"))
	r.must(err)
	if !bytes.Equal(got, bytes.Repeat([]byte("content of the file\n"), 100000)) {
		t.Error("the mounted file differs")
	}
	if err := r.client.Do(t.Context(), control.Delete, "system"); err == nil || !strings.Contains(err.Error(), point) {
		t.Errorf("expected the mount on %s to keep the snapshot, found %v", point, err)
	}
	r.must(unix.Unmount(point, 0))
	r.must(r.client.Merge(t.Context(), "system", 0))
	vmtest.Eventually(t, "merged", func() bool {
		s, err := r.client.Status(t.Context(), "system")
		return err == nil && s.State == control.StateComplete
	})
	r.must(r.client.Do(t.Context(), control.Delete, "system"))
	r.must(r.process.Process.Signal(unix.SIGTERM))
	r.must(r.process.Wait())
	merged, err := os.ReadFile(r.base)
	r.must(err)
	if !bytes.Equal(merged, r.target) {
		t.Error("expected the base to be the target")
	}
}
