package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowbird/cow"
	"cowbird/formats/lpmeta"
	"cowbird/ota/update"
)

// noMapper is a device-mapper with nothing mapped, that maps nothing.
type noMapper struct{}

var errNoMapper = errors.New("no device-mapper here")

func (noMapper) Map(context.Context, string, []update.Line, bool) (string, error) {
	return "", errNoMapper
}
func (noMapper) MapTarget(context.Context, string, string, uint64, string) (string, error) {
	return "", errNoMapper
}
func (noMapper) Swap(context.Context, string, []update.Line, bool) error { return errNoMapper }
func (noMapper) Unmap(context.Context, string) error                     { return nil }
func (noMapper) Path(string) (string, bool, error)                       { return "", false, nil }
func (noMapper) Compare(string, []update.Line) (update.Mapping, error)   { return update.NotMapped, nil }

// deviceSite is a device of files, whose slot a runs.
type deviceSite struct {
	t   *testing.T
	dir string
}

func newDeviceSite(t *testing.T) *deviceSite {
	s := &deviceSite{t, t.TempDir()}
	before, beforeNote := openMapper, noteFile
	openMapper = func() (update.Mapper, func(), error) { return noMapper{}, func() {}, nil }
	noteFile = s.path("note")
	t.Cleanup(func() { openMapper, noteFile = before, beforeNote })
	s.must(os.WriteFile(s.path("super"), make([]byte, 8<<20), 0o600))
	s.must(os.WriteFile(s.path("misc"), make([]byte, 64<<10), 0o600))
	b, err := lpmeta.NewBuilder([]lpmeta.DeviceInfo{{Name: "super", Size: 8 << 20, Alignment: 4096, LogicalBlockSize: 4096}}, 8192, 2)
	s.must(err)
	s.must(b.AddGroup("main_a", 0))
	s.must(b.AddPartition("system_a", "main_a", lpmeta.ReadOnly))
	s.must(b.Resize("system_a", 1<<20, nil))
	m, err := b.Export()
	s.must(err)
	d, err := cow.OpenDevice(s.path("super"), true)
	s.must(err)
	s.must(lpmeta.Flash(d, 8<<20, []*lpmeta.Metadata{m, m}))
	s.must(d.Close())
	s.must(os.WriteFile(s.path("update.json"), []byte(`{"state": "state", "super": "super",
		"slots": {"current": "_a", "misc": {"path": "misc"}}}`), 0o600))
	return s
}

func (s *deviceSite) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *deviceSite) path(name string) string { return filepath.Join(s.dir, name) }

func (s *deviceSite) try(line string) (code int, out, errs string) {
	var o, e bytes.Buffer
	args := append(strings.Fields(line), "--config", s.path("update.json"), "--socket", s.path("nobody"), "--timeout", "10ms")
	code = run(args, nil, &o, &e)
	return code, o.String(), e.String()
}

func (s *deviceSite) run(line string, want ...string) string {
	s.t.Helper()
	code, out, errs := s.try(line)
	if code != 0 {
		s.t.Fatalf("otactl %s: %d, %s", line, code, errs)
	}
	for _, text := range want {
		if !strings.Contains(out, text) {
			s.t.Errorf("otactl %s: expected %q, found %s", line, text, out)
		}
	}
	return out
}

func (s *deviceSite) fails(line string, want string) {
	s.t.Helper()
	code, out, errs := s.try(line)
	if code != 1 || !strings.Contains(errs, want) || strings.Count(errs, "\n") != 1 {
		s.t.Errorf("otactl %s: expected exit code 1 and one line with %q, found %d, %q, %q", line, want, code, out, errs)
	}
}

// What the commands about the whole device say when there is no update.
func TestDeviceCommands(t *testing.T) {
	s := newDeviceSite(t)
	s.run("mark-successful")
	s.run("slots", "_a  successful, running, next boot\n", "_b  ")
	s.run("update", "state      None\n", "running    _a, successful\n", "next boot  _a\n")
	s.run("update --process")
	s.run("doctor", "nothing is wrong\n")
	s.run("cancel")
	s.run("merge --wait --if-any")
	s.run("merge --auto")

	var standing struct {
		State     string `json:"state"`
		Slot      string `json:"slot"`
		Snapshots []any  `json:"snapshots"`
	}
	if err := json.Unmarshal([]byte(s.run("update --json")), &standing); err != nil || standing.State != "None" || standing.Slot != "_a" || standing.Snapshots == nil {
		t.Errorf("expected the state None of slot _a and an array, found %+v, %v", standing, err)
	}
	var e event
	if err := json.Unmarshal([]byte(s.run("watch --json")), &e); err != nil || e.State != "None" || e.Time == "" {
		t.Errorf("expected one event, found %+v, %v", e, err)
	}

	s.run("before-wipe")
	s.run("cancel --recovery")
	s.fails("merge --recovery", "expected [Merging MergeFailed MergeNeedsReboot MergeCompleted], found None")
	s.fails("rollback", "expected a new system")
	s.fails("boot", errNoMapper.Error())
	s.fails("verify", "verified_boot")
	if code, _, errs := s.try("watch --every 1ms"); code != 2 || !strings.Contains(errs, "--every") {
		t.Errorf("expected a usage error, found %d, %s", code, errs)
	}
}

func TestDeviceDoctor(t *testing.T) {
	s := newDeviceSite(t)
	s.must(os.MkdirAll(s.path("state/snapshots"), 0o700))
	s.must(os.WriteFile(s.path("state/snapshots/system_b"), []byte("\xff"), 0o600))
	s.must(os.WriteFile(s.path("state/snapshot-boot"), []byte("_a"), 0o600))
	code, out, errs := s.try("doctor")
	if code != 1 || !strings.Contains(out, "snapshot system_b") || !strings.Contains(out, "otactl cancel") || !strings.Contains(errs, "not all is as it should be") {
		t.Errorf("expected what is wrong and what to do, found %d, %s, %s", code, out, errs)
	}
	if _, out, _ := s.try("doctor --json"); !json.Valid([]byte(strings.SplitN(out, "\n", 2)[0])) {
		t.Errorf("expected JSON, found %s", out)
	}
	s.run("mark-successful")
	s.run("doctor --fix", "there is no update", "fixed")
	s.run("doctor --fix", "nothing is wrong")
	s.run("doctor", "nothing is wrong")
}
