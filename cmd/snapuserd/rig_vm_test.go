//go:build vmtest || vmbench

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/cow"
	"cowbird/formats/cowfile"
	"cowbird/ota/control"
	"cowbird/ota/resident"
)

// daemonEnv makes this program the daemon itself.
const daemonEnv = "SNAPUSERD_VMTEST"

// roles are what this program may be besides the tests and the daemon.
var roles []func()

// addRole is for initializers, which come before init.
func addRole(f func()) bool {
	roles = append(roles, f)
	return true
}

func init() {
	for _, f := range roles {
		f()
	}
	if os.Getenv(daemonEnv) != "" {
		os.Exit(daemon{settle: resident.Settle}.run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
}

// rig is a daemon in a process of its own, and what it serves.
type rig struct {
	t                 *testing.T
	carrier           string
	dir               string
	base, cow, socket string
	target            []byte
	flags             []string
	process           *exec.Cmd
	client            *control.Client
}

// newRig makes a base, and a COW that turns it into a file system of that size
// with what fill puts into it.
func newRig(t *testing.T, carrier, size string, fill func(dir string)) *rig {
	t.Helper()
	r := &rig{t: t, carrier: carrier, dir: t.TempDir()}
	r.base, r.cow, r.socket = filepath.Join(r.dir, "base"), filepath.Join(r.dir, "cow"), filepath.Join(r.dir, "socket")
	content, image := filepath.Join(r.dir, "content"), filepath.Join(r.dir, "image")
	r.must(os.Mkdir(content, 0o755))
	fill(content)
	r.run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", content, image, size)
	r.must(os.RemoveAll(content))
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
	r.must(os.Remove(image))
	return r
}

var fileContent = bytes.Repeat([]byte("content of the file\n"), 100000)

// oneFile puts a file into an image.
func oneFile(dir string) {
	if err := os.WriteFile(filepath.Join(dir, "file"), fileContent, 0o644); err != nil {
		panic(err)
	}
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
	r.launch(exec.Command("/proc/self/exe", append([]string{"--socket", r.socket, "--carrier", r.carrier}, r.flags...)...))
	return r.mapSnapshot()
}

// launch starts a program as the daemon.
func (r *rig) launch(cmd *exec.Cmd) {
	r.t.Helper()
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, daemonEnv+"=1")
	cmd.Stderr = os.Stderr
	r.must(cmd.Start())
	r.process = cmd
	r.t.Cleanup(func() { _ = cmd.Process.Kill() })
}

// connect waits until the daemon serves.
func (r *rig) connect() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	var err error
	r.client, err = control.Dial(ctx, r.socket)
	r.must(err)
}

func (r *rig) mapSnapshot() (node string) {
	r.t.Helper()
	r.connect()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	_, err := r.client.Init(ctx, "system", r.cow, r.base, r.base)
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

// terminate asks the daemon to end, which it must do well.
func (r *rig) terminate() {
	r.t.Helper()
	_ = r.client.Close()
	r.must(r.process.Process.Signal(unix.SIGTERM))
	ended := make(chan error, 1)
	go func() { ended <- r.process.Wait() }()
	select {
	case err := <-ended:
		r.must(err)
	case <-time.After(time.Minute):
		r.t.Fatal("the daemon does not end")
	}
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
				r.t.Log("the reader ends:", err)
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
