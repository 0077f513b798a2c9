package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cowbird/cow"
	"cowbird/formats/cowfile"
	"cowbird/ota/control"
	"cowbird/ota/snapd"
)

// carrier makes devices that exist only in memory.
type carrier struct {
	mu     sync.Mutex
	refuse error
	busy   error
}

func (c *carrier) Name() string { return "fake" }

func (c *carrier) Attach(_ context.Context, name string, _ snapd.Backend) (snapd.Device, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &device{c: c, name: name, done: make(chan struct{})}, c.refuse
}

func (c *carrier) set(refuse, busy error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse, c.busy = refuse, busy
}

type device struct {
	c    *carrier
	name string
	once sync.Once
	done chan struct{}
}

func (d *device) Path() string          { return "/dev/fake-" + d.name }
func (d *device) Done() <-chan struct{} { return d.done }
func (d *device) Leave() (bool, error)  { return true, errors.ErrUnsupported }
func (d *device) Abort() error          { d.once.Do(func() { close(d.done) }); return nil }
func (d *device) Close() error {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	if d.c.busy != nil {
		return d.c.busy
	}
	return d.Abort()
}

// site is a running daemon and a pair of images.
type site struct {
	t       *testing.T
	dir     string
	carrier *carrier
	target  []byte
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), carrier: &carrier{}}
	s.images()
	server, err := snapd.Listen(snapd.Config{Socket: filepath.Join(s.dir, "sock"), Group: snapd.NoGroup, Carrier: s.carrier, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Serve(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return s
}

type image []byte

func (i image) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(i).ReadAt(p, off) }

func (s *site) images() {
	s.t.Helper()
	base := make([]byte, 64*4096)
	s.target = make([]byte, 64*4096)
	for i := range base {
		base[i], s.target[i] = byte(i>>12), byte(i>>12)+100
	}
	if err := os.WriteFile(filepath.Join(s.dir, "base"), base, 0o600); err != nil {
		s.t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(s.dir, "cow"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer out.Close()
	_, err = cow.Build(s.t.Context(), out, cow.BuildOptions{
		Base: cow.Image{R: image(base), Size: int64(len(base))}, Target: cow.Image{R: image(s.target), Size: int64(len(s.target))},
		Version: 3, Compression: cowfile.None, MaxUnit: 4096,
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// try runs a command line; @NAME stands for a file of the site.
func (s *site) try(line string) (code int, stdout, stderr string) {
	args := []string{"--socket", filepath.Join(s.dir, "sock"), "--timeout", "2s"}
	for _, a := range strings.Fields(line) {
		if name, ok := strings.CutPrefix(a, "@"); ok {
			a = filepath.Join(s.dir, name)
		}
		args = append(args, a)
	}
	var out, errs bytes.Buffer
	code = run(args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func (s *site) run(line string) string {
	s.t.Helper()
	code, out, errs := s.try(line)
	if code != 0 || errs != "" {
		s.t.Fatalf("otactl %s: exit code %d: %s", line, code, errs)
	}
	return out
}

func (s *site) fails(line string, code int, text string) {
	s.t.Helper()
	got, out, errs := s.try(line)
	if got != code || out != "" || !strings.HasPrefix(errs, "otactl: ") || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, text) {
		s.t.Errorf("otactl %s: expected exit code %d and one line with %q, found %d, %q, %q", line, code, text, got, out, errs)
	}
}

func TestMapMergeUnmap(t *testing.T) {
	s := newSite(t)
	if out := s.run("status"); !strings.Contains(out, "no snapshots") {
		t.Errorf("found %q", out)
	}
	if out := s.run("status --json"); out != "[]\n" {
		t.Errorf("found %q", out)
	}
	if out := s.run("map sys --base @base --cow @cow"); out != "/dev/fake-sys\n" {
		t.Errorf("expected the device, found %q", out)
	}
	s.fails("map sys --base @base --cow @cow", 1, "exists already")
	if out := s.run("status"); !strings.Contains(out, "/dev/fake-sys") {
		t.Errorf("found %q", out)
	}
	s.run("pause")
	s.run("merge sys")
	if out := s.run("status sys"); !strings.Contains(out, "paused") || !strings.Contains(out, control.StateMerging) {
		t.Errorf("found %q", out)
	}
	s.run("resume sys")
	s.run("merge sys --wait --rate 64M")
	var one control.Status
	if err := json.Unmarshal([]byte(s.run("status sys --json")), &one); err != nil || one.Percent != 100 || one.State != control.StateComplete {
		t.Errorf("found %+v, %v", one, err)
	}
	if base, _ := os.ReadFile(filepath.Join(s.dir, "base")); !bytes.Equal(base, s.target) {
		t.Error("expected the base to be the target")
	}
	s.run("merge sys --wait")
	s.run("unmap sys")
	s.run("unmap sys")
	s.fails("status sys", 1, "unknown snapshot")
}

// What map has done before it fails is undone.
func TestMapUndone(t *testing.T) {
	s := newSite(t)
	s.carrier.set(errors.New("no more loop devices"), nil)
	s.fails("map sys --base @base --cow @cow", 1, "no more loop devices")
	if out := s.run("status --json"); out != "[]\n" {
		t.Errorf("expected nothing to be left, found %q", out)
	}
	s.carrier.set(nil, nil)
	s.run("map sys --base @base --cow @cow --source @base")
}

func TestUnmapInUse(t *testing.T) {
	s := newSite(t)
	s.run("map sys --base @base --cow @cow")
	s.carrier.set(nil, errors.New("device is in use: mount on /mnt"))
	s.fails("unmap sys", 1, "mount on /mnt")
	s.fails("unmap sys", 1, "unmount it")
	s.carrier.set(nil, nil)
	s.run("unmap sys")
}

func TestMergeFails(t *testing.T) {
	s := newSite(t)
	s.fails("merge sys", 1, "unknown snapshot")
	s.run("map sys --base @base --cow @cow")
	if err := os.Truncate(filepath.Join(s.dir, "cow"), 2<<20+8192); err != nil {
		t.Fatal(err)
	}
	s.fails("merge sys --wait", 1, "merge failed")
	if out := s.run("status sys"); !strings.Contains(out, control.StateFailed) {
		t.Errorf("found %q", out)
	}
}

func TestRefusedPaths(t *testing.T) {
	s := newSite(t)
	s.fails("map sys --base @a,b --cow @cow", 1, "comma")
	s.fails("map a,b --base @base --cow @cow", 1, "comma")
	s.fails("map sys --base @base --cow @"+strings.Repeat("x", 500), 1, "512")
	s.fails("map sys --base @base --cow @nosuch", 1, "no such file")
	s.fails("map sys --base @base --cow @base", 1, "not a COW")
}

func TestRelativePaths(t *testing.T) {
	s := newSite(t)
	t.Chdir(s.dir)
	s.run("map sys --base base --cow cow")
}

func TestUsage(t *testing.T) {
	s := &site{t: t, dir: t.TempDir()}
	for _, line := range []string{
		"bogus", "map", "map sys", "map sys --base x", "map --base x --cow y", "map a b --base x --cow y", "status a b", "status --bogus",
		"merge a b", "update a", "boot a", "cancel a", "merge a --rate fast", "pause a b", "unmap", "unmap a b",
	} {
		s.fails(line, 2, "--help")
	}
}

func TestNoDaemon(t *testing.T) {
	s := &site{t: t, dir: t.TempDir()}
	began := time.Now()
	s.fails("--timeout 100ms status", 1, "is snapuserd running")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("expected about 100 ms, found %v", took)
	}
}

func TestHelpAndCompletion(t *testing.T) {
	s := newSite(t)
	for _, command := range []string{"", "map", "status", "merge", "pause", "resume", "unmap"} {
		if out := s.run(command + " --help"); !strings.Contains(out, "Examples:") {
			t.Errorf("%s: expected examples in %q", command, out)
		}
	}
	s.run("map sys --base @base --cow @cow")
	if _, out, _ := s.try("__complete unmap s"); !strings.Contains(out, "sys") {
		// The socket flag comes before the command, so that completion sees it too.
		t.Errorf("expected the name to be offered, found %q", out)
	}
	s.run("completion bash")
}

func TestDefaultSocket(t *testing.T) {
	if defaultSocket("android") != "/dev/socket/snapuserd" || defaultSocket("linux") != "/run/snapuserd.sock" {
		t.Error("unexpected default socket")
	}
}
