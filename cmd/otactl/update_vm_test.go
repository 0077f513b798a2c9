//go:build vmtest

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cowbird/cow"
	"cowbird/dmuser"
	"cowbird/formats/bootctl"
	"cowbird/formats/lpmeta"
	"cowbird/ota/snapd"
	"cowbird/tools/fixture"
	"cowbird/tools/vmlab/vmtest"
)

// daemonEnv makes this program a snapuserd on the socket that it names.
const daemonEnv = "OTACTL_VMTEST_DAEMON"

func init() {
	socket := os.Getenv(daemonEnv)
	if socket == "" {
		return
	}
	fmt.Fprintln(os.Stderr, serve(socket))
	os.Exit(1)
}

func serve(socket string) error {
	c, err := dmuser.Select(dmuser.Auto)
	if err != nil {
		return err
	}
	s, err := snapd.Listen(snapd.Config{Socket: socket, Group: snapd.NoGroup, Carrier: anyCarrier{c}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	s.Serve(context.Background())
	return nil
}

// anyCarrier is a carrier for the daemon.
type anyCarrier struct{ dmuser.Carrier }

func (c anyCarrier) Attach(ctx context.Context, name string, b snapd.Backend) (snapd.Device, error) {
	return c.Carrier.Attach(ctx, name, b)
}

// phone is a device in a guest: super on a loop device, and files for the rest.
type phone struct {
	t      *testing.T
	dir    string
	super  string // /dev/loopN
	slot   int
	daemon *exec.Cmd
}

const (
	phonePayload = "delta_partial_multi"
	phoneSuper   = 24 << 20 // too small for the COWs
)

// phoneSidecar is what the fixture tells of its payload.
type phoneSidecar struct {
	PublicKey  string `json:"public_key"`
	Partitions []struct {
		Name string `json:"name"`
		Old  *struct {
			File string `json:"file"`
		} `json:"old"`
		New struct {
			SHA256 string `json:"sha256"`
			Size   int64  `json:"size"`
		} `json:"new"`
	} `json:"partitions"`
}

func (p *phone) check(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *phone) path(name string) string { return filepath.Join(p.dir, name) }

func newPhone(t *testing.T, side phoneSidecar, fixtures string) *phone {
	p := &phone{t: t, dir: t.TempDir()}
	image := func(name string) []byte {
		f, err := os.Open(filepath.Join(fixtures, name))
		p.check(err)
		defer f.Close()
		z, err := gzip.NewReader(f)
		p.check(err)
		b, err := io.ReadAll(z)
		p.check(err)
		return b
	}
	super, err := os.Create(p.path("super"))
	p.check(err)
	defer super.Close()
	p.check(super.Truncate(phoneSuper))
	b, err := lpmeta.NewBuilder([]lpmeta.DeviceInfo{{Name: "super", Size: phoneSuper, Alignment: 1 << 20, LogicalBlockSize: 4096}}, 65536, 2)
	p.check(err)
	none, err := b.Export()
	p.check(err)
	contents := map[string][]byte{}
	for _, group := range []string{"ga_a", "gb_a"} {
		p.check(b.AddGroup(group, 64<<20))
	}
	for _, part := range side.Partitions {
		var old []byte
		if part.Old != nil {
			old = image(part.Old.File)
		}
		group := map[string]string{"system": "ga_a", "vendor": "gb_a"}[part.Name]
		if group == "" {
			p.check(os.WriteFile(p.path(part.Name+"_a"), old, 0o600))
			p.check(os.WriteFile(p.path(part.Name+"_b"), make([]byte, part.New.Size), 0o600))
			continue
		}
		p.check(b.AddPartition(part.Name+"_a", group, lpmeta.ReadOnly))
		p.check(b.Resize(part.Name+"_a", uint64(len(old)), nil))
		contents[part.Name+"_a"] = old
	}
	meta, err := b.Export()
	p.check(err)
	device, err := cow.NewFileDevice(super)
	p.check(err)
	p.check(lpmeta.Flash(device, phoneSuper, []*lpmeta.Metadata{meta, none}))
	for name, content := range contents {
		for _, l := range meta.Table(meta.Partition(name)) {
			_, err := super.WriteAt(content[l.Start*512:][:l.Length*512], int64(l.Data)*512)
			p.check(err)
		}
	}
	p.check(os.WriteFile(p.path("misc"), make([]byte, 64<<10), 0o600))
	out, err := exec.Command("losetup", "-f", "--show", p.path("super")).Output()
	p.check(err)
	p.super = strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", p.super).Run() })
	p.configure(filepath.Join(fixtures, side.PublicKey))
	return p
}

func (p *phone) configure(key string) {
	config, err := json.Marshal(map[string]any{
		"state": p.path("metadata"), "images": p.path("cows"), "super": p.super, "static": p.path("*"), "keys": key,
		"slots": map[string]any{"current": lpmeta.SuffixOf(p.slot), "misc": map[string]string{"path": p.path("misc")}},
	})
	p.check(err)
	p.check(os.WriteFile(p.path("update.json"), config, 0o600))
}

func (p *phone) socket() string { return p.path("socket") }

// otactl runs the command and gives its output.
func (p *phone) otactl(args ...string) string {
	p.t.Helper()
	defer func(start time.Time) {
		p.t.Logf("otactl %s took %d ms; the daemon holds %s", args[0], time.Since(start).Milliseconds(), p.rss())
	}(time.Now())
	code, out, errs := p.try(args...)
	if code != 0 {
		p.t.Fatalf("otactl %s: %d, %s", strings.Join(args, " "), code, errs)
	}
	return out
}

func (p *phone) try(args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = run(append(args, "--config", p.path("update.json"), "--socket", p.socket()), nil, &o, &e)
	return code, o.String(), e.String()
}

// rss is what the daemon has in memory, if it runs.
func (p *phone) rss() string {
	if p.daemon == nil {
		return "nothing"
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.daemon.Process.Pid))
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strings.TrimSpace(value)
		}
	}
	return "nothing"
}

func (p *phone) startDaemon() {
	p.daemon = exec.Command("/proc/self/exe")
	p.daemon.Env = append(os.Environ(), daemonEnv+"="+p.socket())
	p.daemon.Stderr = os.Stderr
	p.check(p.daemon.Start())
}

// reboot ends everything that the running system has, and has the boot loader choose.
func (p *phone) reboot(fixtures string, key string) {
	p.t.Helper()
	_ = exec.Command("sync").Run()
	vmtest.Eventually(p.t, "all mapped devices gone", func() bool {
		out, _ := exec.Command("dmsetup", "ls").Output()
		for line := range strings.Lines(string(out)) {
			if name, _, ok := strings.Cut(line, "\t"); ok {
				_ = exec.Command("dmsetup", "remove", name).Run()
			}
		}
		out, _ = exec.Command("dmsetup", "ls").Output()
		return strings.Contains(string(out), "No devices")
	})
	if p.daemon != nil {
		var out, errs bytes.Buffer
		for _, name := range []string{"system_b", "vendor_b"} {
			run([]string{"unmap", name, "--socket", p.socket()}, nil, &out, &errs)
		}
		p.check(p.daemon.Process.Kill())
		_ = p.daemon.Wait()
		p.daemon = nil
	}
	b, err := os.ReadFile(p.path("misc"))
	p.check(err)
	control, err := bootctl.ParseControl(b[bootctl.ControlOffset:])
	p.check(err)
	slot, control, err := control.Choose()
	p.check(err)
	block, err := control.Marshal()
	p.check(err)
	copy(b[bootctl.ControlOffset:], block)
	p.check(os.WriteFile(p.path("misc"), b, 0o600))
	p.slot = slot
	p.configure(filepath.Join(fixtures, key))
}

func hashOf(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// checkNew compares all partitions with what the payload is to make of them.
func (p *phone) checkNew(side phoneSidecar, paths map[string]string) {
	p.t.Helper()
	for _, part := range side.Partitions {
		path := paths[part.Name+"_b"]
		if path == "" {
			path = p.path(part.Name + "_b")
		}
		if got := hashOf(p.t, path); got != part.New.SHA256 {
			p.t.Errorf("%s: expected SHA-256 %s, found %s", part.Name, part.New.SHA256, got)
		}
	}
}

func pathsOf(listing string) map[string]string {
	paths := map[string]string{}
	for line := range strings.Lines(listing) {
		if name, path, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			paths[name] = path
		}
	}
	return paths
}

// TestUpdateWholeDevice is an update with real parts, but for the reboots: payload,
// super partition, device-mapper, daemon, and the boot loader's bytes (SNM-002,
// SNM-013, SNM-014).
//
//vmtest:timeout 5m
func TestUpdateWholeDevice(t *testing.T) {
	fixtures := filepath.Join(fixture.Dir(t), "payload")
	b, err := os.ReadFile(filepath.Join(fixtures, phonePayload+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var side phoneSidecar
	if err := json.Unmarshal(b, &side); err != nil {
		t.Fatal(err)
	}
	p := newPhone(t, side, fixtures)
	p.otactl("mark-successful")
	old := hashOf(t, pathsOf(p.otactl("boot"))["system_a"])

	p.otactl("merge", "--wait", "--if-any") // there is none
	p.otactl("install", "--quiet", filepath.Join(fixtures, phonePayload+".payload.bin"))
	if out := p.otactl("update"); !strings.Contains(out, "Unverified") {
		t.Fatalf("expected the state Unverified, found %s", out)
	}
	images := func() []string {
		names, err := filepath.Glob(p.path("cows/*"))
		p.check(err)
		return names
	}
	if len(images()) == 0 {
		t.Error("expected a COW that is partly in a file")
	}
	if got := hashOf(t, "/dev/mapper/system_a"); got != old {
		t.Error("the running system has changed")
	}

	p.reboot(fixtures, side.PublicKey)
	if p.slot != 1 {
		t.Fatal("expected the boot loader to try slot b")
	}
	p.startDaemon()
	paths := pathsOf(p.otactl("boot", "--timeout", "30s"))
	p.checkNew(side, paths)
	again := pathsOf(p.otactl("boot"))
	if fmt.Sprint(again) != fmt.Sprint(paths) {
		t.Errorf("expected the same devices when booted twice, found %v, then %v", paths, again)
	}

	// Somebody has the root open all the time.
	root, err := os.Open(paths["system_b"])
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	p.otactl("mark-successful")
	if out := p.otactl("slots"); !strings.Contains(out, "_b  successful, running, next boot") {
		t.Errorf("expected slot b to be good, found %s", out)
	}
	if out := p.otactl("doctor"); !strings.Contains(out, "nothing is wrong") {
		t.Errorf("expected nothing to be wrong, found %s", out)
	}
	p.otactl("merge", "--wait", "--if-any")
	if out := p.otactl("watch", "--json"); !strings.Contains(out, `"state":"None"`) {
		t.Errorf("expected one event and the end, found %s", out)
	}
	if out := p.otactl("update", "--process", "--json"); !strings.Contains(out, `"state":"None"`) {
		t.Errorf("expected the state None, found %s", out)
	}
	p.checkNew(side, paths)
	if left := images(); len(left) > 0 {
		t.Errorf("expected no files of COWs to be left, found %q", left)
	}
	out, err := exec.Command("dmsetup", "ls").Output()
	p.check(err)
	if bytes.Contains(out, []byte("-")) {
		t.Errorf("expected nothing but partitions to be mapped, found %s", out)
	}
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}

	p.reboot(fixtures, side.PublicKey)
	if p.slot != 1 {
		t.Fatal("expected slot b to stay")
	}
	p.checkNew(side, pathsOf(p.otactl("boot")))
	p.reboot(fixtures, side.PublicKey)
}
