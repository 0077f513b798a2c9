package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"cowbird/formats/snapshotpb"
	"cowbird/ota/control"
	"cowbird/ota/dbus"
)

func eventsDoc(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// docs/events.md has every field, property, method, signal and error, and an event that can
// be read.
func TestEventsDocumented(t *testing.T) {
	doc := eventsDoc(t)
	var names []string
	for i := range reflect.TypeFor[event]().NumField() {
		name, _, _ := strings.Cut(reflect.TypeFor[event]().Field(i).Tag.Get("json"), ",")
		names = append(names, name)
	}
	ours, _, _ := strings.Cut(introspection, `<interface name="org.freedesktop`)
	for _, m := range regexp.MustCompile(`<(?:method|signal|property) name="(\w+)"`).FindAllStringSubmatch(ours, -1) {
		names = append(names, m[1])
	}
	for _, e := range []string{errorBusy, errorFailed, errorNoSpace, errorNotPossible, errorRefused} {
		names = append(names, strings.TrimPrefix(e, busName+".Error."))
	}
	names = append(names, noJob, jobInstall, jobCancel, jobMerge, jobRollback, jobMark, polkitAction)
	for _, name := range names {
		if !regexp.MustCompile("`" + regexp.QuoteMeta(name) + "[`(]").MatchString(doc) {
			t.Errorf("docs/events.md: expected `%s`", name)
		}
	}
	_, example, _ := strings.Cut(doc, "\n    {")
	example, _, _ = strings.Cut(example, "\n\n")
	d := json.NewDecoder(strings.NewReader("{" + example))
	d.DisallowUnknownFields()
	var e event
	if err := d.Decode(&e); err != nil || e.Event != "update" || e.SecondsLeft != 9 {
		t.Errorf("docs/events.md: expected an event as example, found %+v, %v", e, err)
	}
}

func TestEventSame(t *testing.T) {
	e := event{Time: "1", State: "Merging", Percent: 5, SecondsLeft: 9, Free: 1}
	later, more := e, e
	later.Time, later.SecondsLeft, later.Free = "2", 8, 2
	more.Percent = 6
	if !e.same(later) || e.same(more) {
		t.Error("expected time, what is left of it and free space to be no news, and progress to be")
	}
}

func TestEventAdd(t *testing.T) {
	var e event
	e.add(nil)
	if e.Percent != 0 || e.Paused {
		t.Errorf("found %+v", e)
	}
	e.add([]control.Status{{BytesWritten: 1, BytesTotal: 4, SecondsLeft: 9, Paused: true}, {BytesWritten: 2, BytesTotal: 4, SecondsLeft: 3}})
	if e.Percent != 37.5 || e.Written != 3 || e.Total != 8 || e.SecondsLeft != 9 || !e.Paused {
		t.Errorf("found %+v", e)
	}
}

func TestPace(t *testing.T) {
	p := &pace{}
	if n := p.now(); n != (report{}) {
		t.Errorf("found %+v", n)
	}
	p.update(1000, 10000)
	if n := p.now(); n != (report{1000, 10000, 0}) {
		t.Errorf("expected the time left not to be known yet, found %+v", n)
	}
	p.began = p.began.Add(-10 * time.Second)
	p.update(2000, 10000) // what was there before does not count
	if n := p.now(); n.SecondsLeft < 79 || n.SecondsLeft > 85 {
		t.Errorf("expected 80 seconds, found %+v", n)
	}
}

// Notes are as new as they say, and what is none is passed over.
func TestNotes(t *testing.T) {
	before := noteFile
	noteFile = filepath.Join(t.TempDir(), "folder", "note")
	t.Cleanup(func() { noteFile = before })
	if n := readNote(); n != (report{}) {
		t.Errorf("found %+v", n)
	}
	n := &notes{}
	n.update(1, 9)
	n.update(2, 9) // too soon
	if got := readNote(); got != (report{1, 9, 0}) {
		t.Errorf("found %+v", got)
	}
	old := time.Now().Add(-2 * noteStale)
	if err := os.Chtimes(noteFile, old, old); err != nil {
		t.Fatal(err)
	}
	if got := readNote(); got != (report{}) {
		t.Errorf("expected it to be too old, found %+v", got)
	}
	if err := os.WriteFile(noteFile, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := readNote(); got != (report{}) {
		t.Errorf("expected nothing, found %+v", got)
	}
	n.end()
}

func TestNeedsReboot(t *testing.T) {
	for _, c := range []struct {
		standing
		want bool
	}{
		{standing{State: "None", Slot: "_a", Next: "_b"}, false}, {standing{State: "Unverified", Slot: "_a", Next: "_b"}, true},
		{standing{State: "Unverified", Slot: "_b", Next: "_b"}, false}, {standing{State: "Merging", Slot: "_b", Next: "_b"}, false}, {standing{State: "MergeNeedsReboot"}, true},
	} {
		if got := c.needsReboot(); got != c.want {
			t.Errorf("%+v: found %v", c.standing, got)
		}
	}
}

// setState replaces the state of the update.
func (s *deviceSite) setState(state snapshotpb.UpdateState) {
	s.t.Helper()
	b, err := snapshotpb.Marshal(&snapshotpb.SnapshotUpdateStatus{State: state})
	s.must(err)
	s.must(os.WriteFile(s.path("new"), b, 0o600))
	s.must(os.Rename(s.path("new"), s.path("state/state")))
}

// A stream that follows tells of each change until it is interrupted, and then ends well.
func TestWatchFollows(t *testing.T) {
	s := newDeviceSite(t)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	root := newRoot()
	root.SetArgs([]string{"watch", "--json", "--follow", "--every", "100ms", "--config", s.path("update.json"), "--socket", s.path("nobody")})
	root.SetOut(w)
	ended := make(chan error, 1)
	go func() { ended <- root.ExecuteContext(ctx); w.Close() }()
	lines := bufio.NewScanner(r)
	next := func() (e event) {
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &e) != nil {
			t.Fatalf("expected an event, found %q", lines.Text())
		}
		return e
	}
	if e := next(); e.Event != "update" || e.State != "None" || !e.Good || e.Free < 6<<20 {
		t.Errorf("found %+v", e)
	}
	s.setState(snapshotpb.UpdateState_Initiated)
	if e := next(); e.State != "Initiated" || e.Total != 0 {
		t.Errorf("expected an update to be begun, found %+v", e)
	}
	n := &notes{}
	n.update(25, 200)
	if e := next(); e.Percent != 12.5 || e.Written != 25 || e.Total != 200 {
		t.Errorf("expected the installation's progress, found %+v", e)
	}
	n.end()
	if e := next(); e.State != "Initiated" || e.Total != 0 {
		t.Errorf("expected no progress any more, found %+v", e)
	}
	s.run("cancel")
	if e := next(); e.State != "None" {
		t.Errorf("expected it to be gone, found %+v", e)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if lines.Scan() {
		t.Errorf("expected no more, found %s", lines.Text())
	}
}

// The service does to a device what the commands do.
func TestBusDevice(t *testing.T) {
	device := newDeviceSite(t)
	address, _ := privateBus(t)
	ended := make(chan string, 1)
	go func() {
		code, out, errs := device.try("dbus --idle 2s --address " + address)
		if code != 0 || out != "" {
			ended <- errs
		}
		close(ended)
	}()
	s := &busSite{t: t, address: address}
	s.client = s.dial()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if got, err := s.client.Ask(t.Context(), "NameHasOwner", busName); err == nil && got[0] == true {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("expected the service to come up")
		}
	}
	if s.get("State") != "None" || s.get("Slot") != "_a" || s.get("Successful") != true || s.get("SpaceFree").(uint64) < 6<<20 {
		t.Errorf("found %v, %v, %v, %v", s.get("State"), s.get("Slot"), s.get("Successful"), s.get("SpaceFree"))
	}
	s.call("MarkSuccessful")
	device.setState(snapshotpb.UpdateState_Initiated)
	time.Sleep(fresh)
	if got := s.get("State"); got != "Initiated" {
		t.Errorf("expected an update to be begun, found %v", got)
	}
	s.call("Cancel")
	if got := s.get("State"); got != "None" {
		t.Errorf("expected it to be gone, found %v", got)
	}
	s.refused(errorNotPossible, "Rollback")
	bad := filepath.Join(t.TempDir(), "payload.bin")
	device.must(os.WriteFile(bad, make([]byte, 1<<20), 0o600))
	s.call("Install", bad, noOptions)
	s.settle()
	if text, _ := s.get("LastError").(string); !strings.Contains(text, bad) {
		t.Errorf("expected what is no payload to be refused, found %q", text)
	}
	var e *dbus.Error
	if _, err := s.try(s.client, busName, "Install", bad, map[string]dbus.Variant{"unsigned": dbus.Of(true)}); !errors.As(err, &e) || e.Name != dbus.InvalidArgs {
		t.Errorf("expected a caller not to choose that, found %v", err)
	}
	if errs := <-ended; errs != "" && !strings.Contains(errs, "level=INFO") {
		t.Error(errs)
	}
	if code, _, errs := device.try("dbus --idle -1s"); code != 2 || !strings.Contains(errs, "--idle") {
		t.Errorf("expected a usage error, found %d, %s", code, errs)
	}
	device.fails("dbus --address unix:path=/nosuch", "message bus")
}
