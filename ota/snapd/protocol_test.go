package snapd

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/ota/control"

	"cowbird/tools/fixture"
)

// SNU-026, SNU-027, SNU-029: the life of a snapshot in Android's words.
func TestLife(t *testing.T) {
	l := newLab(t, nil)
	w := l.dial()
	w.expect("query", "active")
	w.expect("merge_percent", "0.000000")
	w.expect("getstatus,sys", "snapshot-merge-failed")
	base, cowPath, target := l.images("sys")
	w.expect("init,sys,"+cowPath+","+base+","+base, "success,2048")
	w.expect("init,sys,"+cowPath+","+base+","+base, "fail")
	w.expect("get_device_name,sys", "fail")
	w.expect("initiate_merge,sys", "fail")
	w.expect("getstatus,sys", "snapshot")
	w.expect("start,sys", "success")
	w.expect("start,sys", "fail")
	w.expect("get_device_name,sys", "success,/dev/fake-sys")
	w.expect("merge_percent", "0.000000")

	got := make([]byte, len(target))
	if _, err := l.carrier.device("sys").backend.ReadAt(got, 0); err != nil || !bytes.Equal(got, target) {
		t.Errorf("expected the target on the device, found something else, %v", err)
	}
	w.expect("pause_merge", "success")
	w.expect("initiate_merge,sys", "success")
	w.expect("getstatus,sys", "snapshot-merge")
	w.expect("initiate_merge,sys", "success")
	w.expect("resume_merge", "success")
	w.until("getstatus,sys", "snapshot-merge-complete")
	w.expect("initiate_merge,sys", "success")
	w.expect("merge_percent", "100.000000")
	if merged, _ := os.ReadFile(base); !bytes.Equal(merged, target) {
		t.Error("expected the base to be the target")
	}
	w.expect("delete,sys", "success")
	w.expect("delete,sys", "success")
	w.expect("start,sys", "fail")
	w.expect("getstatus,sys", "snapshot-merge-failed")
}

// SNU-028: what is not understood gets fail, and the connection ends.
func TestNotUnderstood(t *testing.T) {
	l := newLab(t, nil)
	for _, message := range []string{
		"bogus", "init", "init,a", "init,a,b,c", "init,a,b,c,d,e", "start", "start,", "start,a,b", "query,x", "stop,x",
		",", "cowbird", "cowbird,bogus", "cowbird,merge,a", "init,,b,c,d", "\x00", "query\n", strings.Repeat("x", 512), strings.Repeat("x", 513), strings.Repeat("start,", 100),
	} {
		w := l.dial()
		w.expect(message, "fail")
		if got := w.reply(); got != "EOF" {
			t.Errorf("%.40q: expected the connection to end, found %q", message, got)
		}
	}
	w := l.dial()
	for _, message := range []string{
		"supports,ublk", "create,a,8", "update-verify", "start,nosuch", "initiate_merge,nosuch",
		"get_device_name,nosuch", "cowbird,status,nosuch", "cowbird,pause,nosuch", "cowbird,merge,nosuch,0",
	} {
		w.expect(message, "fail")
	}
	w.expect("supports,second_stage_socket_handoff", "success")
	w.expect("getstatus", "snapshot-merge-failed")
	w.expect("getstatus,a,b", "snapshot-merge-failed")
	w.expect("delete,nosuch", "success")
	w.expect("query", "active")
}

// A message of 512 bytes is taken, one of 513 is not.
func TestLongestMessage(t *testing.T) {
	l := newLab(t, nil)
	name := strings.Repeat("x", control.MaxMessage-len("delete,"))
	w := l.dial()
	w.expect("delete,"+name[1:], "success") // 511
	w.expect("delete,"+name, "success")     // 512
	w.expect("delete,"+name+"x", "fail")    // 513
	if got := w.reply(); got != "EOF" {
		t.Errorf("expected the connection to end, found %q", got)
	}
}

// The protocol has no framing: a message in two sends is two messages.
func TestPartialSend(t *testing.T) {
	w := newLab(t, nil).dial()
	w.expect("que", "fail")
	if got := w.reply(); got != "EOF" {
		t.Errorf("expected the connection to end, found %q", got)
	}
}

func TestBadInit(t *testing.T) {
	l := newLab(t, nil)
	w := l.dial()
	base, cowPath, _ := l.images("sys")
	for _, message := range []string{
		"init,a,/nosuch," + base + "," + base,
		"init,a," + cowPath + "," + base + ",/nosuch",
		"init,a," + cowPath + ",/nosuch," + base,
		"init,a," + base + "," + base + "," + base, // no COW
		"init,a b," + cowPath + "," + base + "," + base,
		"init,a/b," + cowPath + "," + base + "," + base,
		"init," + strings.Repeat("n", 128) + "," + cowPath + "," + base + "," + base,
	} {
		w.expect(message, "fail")
		if reason := w.ask("cowbird,reason"); !strings.HasPrefix(reason, "success,") || len(reason) < 20 {
			t.Errorf("%s: expected a reason, found %q", message, reason)
		}
	}
	w.expect("init,a,"+cowPath+","+base+","+base, "success,2048")
	w.expect("init,b,"+cowPath+","+base+","+base, "fail") // one COW, two snapshots
	w.expect("cowbird,list", "success,2\na\n")
}

func TestStartFailsAndIsTriedAgain(t *testing.T) {
	l := newLab(t, nil)
	w := l.dial()
	base, cowPath, _ := l.images("sys")
	l.carrier.refuse = errors.New("no more loop devices")
	w.expect("init,sys,"+cowPath+","+base+","+base, "success,2048")
	w.expect("start,sys", "fail")
	if reason := w.ask("cowbird,reason"); !strings.Contains(reason, "no more loop devices") {
		t.Errorf("found %q", reason)
	}
	w.expect("start,sys", "success")
}

// A device in use stays, and so does everything else.
func TestDeleteInUse(t *testing.T) {
	l := newLab(t, nil)
	w := l.dial()
	l.mapped(w, "sys")
	l.carrier.device("sys").hold("mount on /mnt")
	w.expect("cowbird,merge,sys,65536", "success")
	w.expect("delete,sys", "fail")
	if reason := w.ask("cowbird,reason"); !strings.Contains(reason, "mount on /mnt") {
		t.Errorf("expected the holder to be named, found %q", reason)
	}
	w.expect("getstatus,sys", "snapshot-merge")
	l.carrier.device("sys").hold("")
	w.expect("delete,sys", "success")
	w.expect("cowbird,list", "success,0\n")
}

// A deleted snapshot is taken up where its merge was.
func TestDeleteInMerge(t *testing.T) {
	l := newLab(t, nil)
	w := l.dial()
	base, target := l.mapped(w, "sys")
	w.expect("cowbird,merge,sys,262144", "success")
	for l.status(w, "sys").MergedOps == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	w.expect("delete,sys", "success")
	if now, _ := os.ReadFile(base); bytes.Equal(now, target) {
		t.Fatal("expected the merge to be stopped half way")
	}
	w.expect("init,sys,"+filepath.Join(l.dir, "sys.cow")+","+base+","+base, "success,2048")
	if s := l.status(w, "sys"); s.MergedOps == 0 || s.MergedOps == s.TotalOps {
		t.Errorf("expected some ops to be merged, found %d of %d", s.MergedOps, s.TotalOps)
	}
	w.expect("start,sys", "success")
	w.expect("initiate_merge,sys", "success")
	w.until("getstatus,sys", "snapshot-merge-complete")
	if now, _ := os.ReadFile(base); !bytes.Equal(now, target) {
		t.Error("expected the base to be the target")
	}
}

func (l *lab) status(w *wire, name string) control.Status {
	l.t.Helper()
	_, text, _ := strings.Cut(w.ask("cowbird,status,"+name), "\n")
	s, err := control.ParseStatus(text)
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// Two merges run at a time, the third waits until one of them ends.
func TestMergeQueue(t *testing.T) {
	l := newLab(t, nil)
	w := l.dial()
	for _, name := range []string{"a", "bb", "ccc"} {
		l.mapped(w, name)
		w.expect("cowbird,pause,"+name, "success")
		w.expect("initiate_merge,"+name, "success")
	}
	if s := l.status(w, "ccc"); !s.Queued || s.State != control.StateMerging || !s.Paused {
		t.Errorf("expected the third to wait, found %+v", s)
	}
	if s := l.status(w, "bb"); s.Queued {
		t.Errorf("expected the second to run, found %+v", s)
	}
	w.expect("cowbird,resume,bb", "success")
	w.until("getstatus,bb", "snapshot-merge-complete")
	for l.status(w, "ccc").Queued {
		time.Sleep(time.Millisecond)
	}
	w.expect("resume_merge", "success")
	w.until("getstatus,ccc", "snapshot-merge-complete")
	w.until("getstatus,a", "snapshot-merge-complete")
	w.expect("merge_percent", "100.000000")
}

// A queued merge leaves the queue with its snapshot.
func TestDeleteQueued(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Merges = 1 })
	w := l.dial()
	w.expect("pause_merge", "success")
	l.mapped(w, "a")
	l.mapped(w, "bb")
	w.expect("initiate_merge,a", "success")
	w.expect("initiate_merge,bb", "success")
	w.expect("delete,bb", "success")
	w.expect("delete,a", "success")
	w.expect("cowbird,list", "success,0\n")
}

// SNU-034: a read error fails that request, and nothing else.
func TestReadError(t *testing.T) {
	l := newLab(t, nil)
	w := l.dial()
	base, cowPath, target := l.images("sys")
	w.expect("init,sys,"+cowPath+","+base+","+base, "success,2048")
	w.expect("start,sys", "success")
	if err := os.Truncate(base, 4096); err != nil { // a disk with a hole in it
		t.Fatal(err)
	}
	b := l.carrier.device("sys").backend
	p := make([]byte, 4096)
	if _, err := b.ReadAt(p, 8*4096); err == nil {
		t.Error("expected an error for a block whose source is gone, found none")
	}
	last := int64(testBlocks-1) * 4096
	if _, err := b.ReadAt(p, last); err != nil || !bytes.Equal(p, target[last:]) {
		t.Errorf("expected the last block as before, found %v", err)
	}
	if s := l.status(w, "sys"); s.ReadErrors != 1 {
		t.Errorf("expected 1 read error, found %d", s.ReadErrors)
	}
	w.expect("initiate_merge,sys", "success")
	w.until("getstatus,sys", "snapshot-merge-failed")
	if s := l.status(w, "sys"); s.Error == "" {
		t.Error("expected the error of the merge, found none")
	}
	if _, err := b.ReadAt(p, last); err != nil {
		t.Errorf("expected the device to be served after a failed merge, found %v", err)
	}
}

func TestDeviceLost(t *testing.T) {
	l := newLab(t, nil)
	w := l.dial()
	l.mapped(w, "sys")
	_ = l.carrier.device("sys").Abort()
	w.until("get_device_name,sys", "fail")
	if s := l.status(w, "sys"); !strings.Contains(s.Error, "went away") {
		t.Errorf("found %+v", s)
	}
	w.expect("start,sys", "success")
	w.expect("delete,sys", "success")
}

// Another daemon has taken the device, which is no loss.
func TestDeviceReplaced(t *testing.T) {
	l := newLab(t, nil)
	w := l.dial()
	l.mapped(w, "sys")
	d := l.carrier.device("sys")
	d.mu.Lock()
	d.replaced = true
	d.mu.Unlock()
	_ = d.Abort()
	w.until("get_device_name,sys", "fail")
	if s := l.status(w, "sys"); !strings.Contains(s.Error, "another daemon") {
		t.Errorf("found %+v", s)
	}
	w.expect("delete,sys", "success")
}

func TestSilentClients(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Clients = 4 })
	first := l.dial()
	first.expect("query", "active")
	for range 10 {
		l.dial() // says nothing
	}
	w := l.dial()
	w.expect("query", "active")
	if got := first.reply(); got != "EOF" {
		t.Errorf("expected the client that was silent for longest to be hung up on, found %q", got)
	}
	w.expect("query", "active")
}

// A client that never reads its replies keeps nobody else.
func TestDeafClient(t *testing.T) {
	l := newLab(t, nil)
	deaf, w := l.dial(), l.dial()
	_ = deaf.conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for {
		if _, err := deaf.conn.WriteString("bogus"); err != nil {
			break
		}
	}
	w.expect("query", "active")
}

// TestStranger runs again as another user, who is turned away.
func TestStranger(t *testing.T) {
	if path := os.Getenv("SNAPD_TEST_SOCKET"); path != "" {
		os.Stdout.WriteString(askAsStranger(path))
		return
	}
	if os.Geteuid() != 0 {
		fixture.Missing(t, "needs root, to become somebody else")
	}
	l := newLab(t, func(c *Config) { c.Group = 4242 })
	if err := errors.Join(unix.Chmod(l.cfg.Socket, 0o666), openWay(l.dir)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		who  syscall.Credential
		want string
	}{
		{syscall.Credential{Uid: 1234, Gid: 1234}, "EOF"},
		{syscall.Credential{Uid: 1234, Gid: 4242}, "active"},
		{syscall.Credential{Uid: 1234, Gid: 1234, Groups: []uint32{7, 4242}}, "active"},
		{syscall.Credential{Uid: 1234, Gid: 1234, Groups: manyGroups(60)}, "active"},
		{syscall.Credential{Uid: 0, Gid: 1234}, "active"},
	} {
		if got := runAs(t, c.who, l.cfg.Socket); got != c.want {
			t.Errorf("user %d, group %d, %d more groups: expected %q, found %q", c.who.Uid, c.who.Gid, len(c.who.Groups), c.want, got)
		}
	}
}

// manyGroups ends with the group that counts.
func manyGroups(n int) (groups []uint32) {
	for i := range n {
		groups = append(groups, uint32(5000+i))
	}
	return append(groups, 4242)
}

// openWay lets everybody pass through the folders above dir.
func openWay(dir string) error {
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func runAs(t *testing.T, who syscall.Credential, socket string) string {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe") // the test binary's folder may be closed to others
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(filepath.Dir(socket), "stranger")
	if err := os.WriteFile(exe, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestStranger$")
	cmd.Env = append(os.Environ(), "SNAPD_TEST_SOCKET="+socket)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &who}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	answer, _, _ := strings.Cut(string(out), "PASS")
	return strings.TrimSpace(answer)
}

func askAsStranger(path string) string {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err.Error()
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err.Error()
	}
	_, _ = unix.Write(fd, []byte("query"))
	b := make([]byte, 64)
	n, err := unix.Read(fd, b)
	if n <= 0 || err != nil {
		return "EOF"
	}
	return string(b[:n])
}
