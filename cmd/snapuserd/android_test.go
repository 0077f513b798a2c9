package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/cow"
	"cowbird/formats/cowfile"
	"cowbird/ota/control"
	"cowbird/ota/snapd"
)

// childEnv makes this program the daemon itself.
const childEnv = "SNAPUSERD_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(daemon{}.run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// The platform's own command lines are understood (snapuserd.md 2), in its spelling.
func TestAndroidFlags(t *testing.T) {
	spec := snapd.Snapshot{Name: "system_a", Cow: "/dev/c", Source: "/dev/s", Base: "/dev/b"}
	for line, want := range map[string]androidOptions{
		"-socket snapuserd":                              {},
		"-socket=snapuserd -user_snapshot":               {first: true},
		"-user_snapshot -io_uring -o_direct":             {first: true},
		"-no_socket system_a,/dev/c,/dev/s,/dev/b":       {noSocket: true, snapshots: []snapd.Snapshot{spec}},
		"--no-socket system_a,/dev/c,/dev/s,/dev/b":      {noSocket: true, snapshots: []snapd.Snapshot{spec}},
		"-socket_handoff -user_snapshot":                 {handOff: true, first: true},
		"-socket-handoff":                                {handOff: true},
		"-skip_verification -verify_block_size=1048576":  {},
		"-num_verify_threads 3 -noublk -ublk=false":      {},
		"-fd_num 7 -worker_count 4 -cow_op_merge_size=0": {},
		"-no_socket -user_snapshot system_a,/dev/c,/dev/s,/dev/b -io_uring -cow_op_merge_size=32 -worker_count=4": {
			noSocket: true, first: true, snapshots: []snapd.Snapshot{spec},
		},
	} {
		o, err := parse(strings.Fields(line), io.Discard)
		got := o.android
		if err != nil || got.noSocket != want.noSocket || got.first != want.first || got.handOff != want.handOff || !slices.Equal(got.snapshots, want.snapshots) {
			t.Errorf("%s: expected %+v, found %+v, %v", line, want, got, err)
		}
		if (want.noSocket || want.first || want.handOff) != (got.properties == propertySocket) || (want.noSocket || want.first) != (o.group == systemGroup) {
			t.Errorf("%s: expected what is usual on Android only there, found %q and group %d", line, got.properties, o.group)
		}
		if strings.HasPrefix(line, "-socket") && !strings.Contains(line, "hand") && o.socket != "snapuserd" {
			t.Errorf("%s: expected the socket snapuserd, found %s", line, o.socket)
		}
	}
	for _, line := range []string{
		"-no_socket", "-no_socket a,b,c", "-no_socket a,b,c,d,e", "-no_socket a,,c,d", "-no_socket -socket_handoff a,b,c,d",
		"-ublk", "-ublk=true -no_socket a,b,c,d", "a,b,c,d", "-no_sockets",
	} {
		if o, err := parse(strings.Fields(line), io.Discard); err == nil {
			t.Errorf("%s: expected an error, found %+v", line, o.android)
		}
	}
}

// Flags that do nothing are not in the help, those that do are.
func TestAndroidHelp(t *testing.T) {
	var l log
	if _, err := parse([]string{"--help"}, &l); err == nil {
		t.Fatal("expected the help")
	}
	for _, name := range slices.Concat(ignoredSwitches[:], ignoredValues[:]) {
		if strings.Contains(l.String(), "-"+name) {
			t.Errorf("expected no word of %s", name)
		}
	}
	for _, name := range []string{"-no-socket", "-proxy-socket path", "-alive-file", "-serves-root"} {
		if !strings.Contains(l.String(), "\n  "+name) {
			t.Errorf("expected %s in the help, found\n%s", name, l.String())
		}
	}
}

// handset is what init does around the daemon, in a folder.
type handset struct {
	t              *testing.T
	dir            string
	socket, proxy  string
	alive          string
	target         []byte
	kernel         *os.File // the other end of the node
	server, packet *os.File // init's sockets
	properties     chan string
	out            log
}

func newHandset(t *testing.T) *handset {
	dir := t.TempDir()
	h := &handset{t: t, dir: dir, socket: filepath.Join(dir, "snapuserd"), proxy: filepath.Join(dir, "late", "snapuserd_proxy"), alive: filepath.Join(dir, "alive")}
	h.must(os.Mkdir(filepath.Join(dir, "nodes"), 0o755))
	h.images()
	h.node("system_a")
	h.serveProperties()
	return h
}

func (h *handset) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("%v\n%s", err, h.out.String())
	}
}

func (h *handset) images() {
	h.t.Helper()
	old := make([]byte, 64*4096)
	h.target = make([]byte, len(old))
	for i := range old {
		old[i], h.target[i] = byte(i/4096+i%251), byte(i/4096+i%241)
	}
	copy(h.target, old[8*4096:16*4096])
	h.must(os.WriteFile(filepath.Join(h.dir, "base"), old, 0o600))
	out, err := os.Create(filepath.Join(h.dir, "cow"))
	h.must(err)
	defer out.Close()
	image := func(b []byte) cow.Image { return cow.Image{R: bytes.NewReader(b), Size: int64(len(b))} }
	_, err = cow.Build(h.t.Context(), out, cow.BuildOptions{
		Base: image(old), Target: image(h.target), Version: 3, Compression: cowfile.None, MaxUnit: 4096, Workers: 1,
	})
	h.must(err)
}

// node makes what looks like the node of a loaded table: a terminal, which is a
// character device with somebody at the other end.
func (h *handset) node(name string) {
	h.t.Helper()
	var err error
	h.kernel, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		h.t.Skip("no terminals here: ", err)
	}
	h.t.Cleanup(func() { _ = h.kernel.Close() })
	fd := int(h.kernel.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	h.must(err)
	h.must(unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	h.must(err)
	mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0
	mode.Cflag = unix.CS8 | unix.CREAD
	mode.Cc[unix.VMIN], mode.Cc[unix.VTIME] = 1, 0
	h.must(unix.IoctlSetTermios(fd, unix.TCSETS, mode))
	h.must(os.Symlink(fmt.Sprintf("/dev/pts/%d", number), filepath.Join(h.dir, "nodes", name)))
}

// read asks as the kernel does, all of the device.
func (h *handset) read() []byte {
	h.t.Helper()
	request := binary.NativeEndian.AppendUint64(nil, 5)
	for _, v := range []uint64{0, 0, 0, uint64(len(h.target))} {
		request = binary.NativeEndian.AppendUint64(request, v)
	}
	_, err := h.kernel.Write(request)
	h.must(err)
	reply := make([]byte, len(request)+len(h.target))
	_, err = io.ReadFull(h.kernel, reply)
	h.must(err)
	if result := binary.NativeEndian.Uint64(reply[8:]); result != 0 {
		h.t.Fatalf("expected success, found %d", result)
	}
	return reply[len(request):]
}

// serveProperties is a property service that notes what is set.
func (h *handset) serveProperties() {
	h.t.Helper()
	h.properties = make(chan string, 8)
	l := listenAt(h.t, filepath.Join(h.dir, "property_service"))
	go func() {
		for {
			fd, _, err := unix.Accept(l)
			if err != nil {
				return
			}
			b := make([]byte, 256)
			n, _ := unix.Read(fd, b)
			h.properties <- propertyIn(b[:n])
			_, _ = unix.Write(fd, make([]byte, 4))
			_ = unix.Close(fd)
		}
	}()
}

func listenAt(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err := errors.Join(err, unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 4)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Shutdown(fd, unix.SHUT_RDWR); _ = unix.Close(fd) })
	return fd
}

// propertyIn reads a message as the property service does.
func propertyIn(b []byte) string {
	if len(b) < 8 || binary.NativeEndian.Uint32(b) != 0x00020001 {
		return fmt.Sprintf("malformed: %x", b)
	}
	n := int(binary.NativeEndian.Uint32(b[4:]))
	if len(b) < 12+n {
		return fmt.Sprintf("short: %x", b)
	}
	return string(b[8:8+n]) + "=" + string(b[12+n:])
}

func (h *handset) expectProperty(want string) {
	h.t.Helper()
	select {
	case got := <-h.properties:
		if got != want {
			h.t.Errorf("expected the property %s, found %s", want, got)
		}
	case <-time.After(10 * time.Second):
		h.t.Fatalf("expected the property %s, found none\n%s", want, h.out.String())
	}
}

// sockets are those that init makes for a service: bound, and no more.
func (h *handset) sockets() {
	h.t.Helper()
	h.must(os.MkdirAll(filepath.Dir(h.proxy), 0o755))
	one := func(path string, kind int) *os.File {
		fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		h.must(errors.Join(err, unix.Bind(fd, &unix.SockaddrUnix{Name: path})))
		return os.NewFile(uintptr(fd), path)
	}
	h.server, h.packet = one(h.socket, unix.SOCK_STREAM), one(h.proxy, unix.SOCK_SEQPACKET)
}

// process runs the daemon's program. The files become descriptors 3, 4, ….
func (h *handset) process(env []string, files []*os.File, args ...string) *exec.Cmd {
	h.t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"-property_socket", filepath.Join(h.dir, "property_service")}, args...)...)
	cmd.Env = append(append(os.Environ(), childEnv+"=1"), env...)
	cmd.ExtraFiles, cmd.Stderr = files, &h.out
	h.must(cmd.Start())
	h.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

func (h *handset) wait(cmd *exec.Cmd) {
	h.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		h.must(err)
	case <-time.After(10 * time.Second):
		h.t.Fatalf("%q does not end\n%s", cmd.Args, h.out.String())
	}
}

func (h *handset) second() *exec.Cmd {
	at := func(name string) string { return filepath.Join(h.dir, name) }
	return h.process(nil, nil, "-no_socket", "-user_snapshot", "-proxy_socket", h.proxy, "-alive_file", h.alive, "-node_dir", at("nodes"),
		strings.Join([]string{"system_a", at("cow"), at("base"), at("base")}, ","), "-worker_count=4")
}

func (h *handset) dial() *control.Client {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 10*time.Second)
	defer cancel()
	c, err := control.Dial(ctx, h.socket)
	h.must(err)
	h.t.Cleanup(func() { _ = c.Close() })
	return c
}

// The second half of Android's boot (snapuserd.md 9, steps 4h to 6), with the daemon
// and the proxy as processes of their own: snapshots are served before there is a
// socket, then one is handed over, and clients use it.
func TestHandOverBetweenProcesses(t *testing.T) {
	h := newHandset(t)
	server := h.second()
	waitFor(t, func() bool { _, err := os.Stat(h.alive); return err == nil })
	if !bytes.Equal(h.read(), h.target) {
		t.Error("without a socket: expected the target")
	}
	h.sockets()
	proxy := h.process([]string{"ANDROID_SOCKET_snapuserd=3", "ANDROID_SOCKET_snapuserd_proxy=4"}, []*os.File{h.server, h.packet}, "-socket-handoff")
	h.must(errors.Join(h.server.Close(), h.packet.Close()))
	h.expectProperty("snapuserd.proxy_ready=true")
	h.wait(proxy)
	h.expectProperty("snapuserd.ready=true")

	client := h.dial()
	if names, err := client.Names(t.Context()); err != nil || !slices.Equal(names, []string{"system_a"}) {
		t.Errorf("expected system_a, found %q, %v", names, err)
	}
	h.must(client.Do(t.Context(), control.InitiateMerge, "system_a"))
	waitFor(t, func() bool {
		s, err := client.Status(t.Context(), "system_a")
		return err == nil && s.State == control.StateComplete
	})
	if !bytes.Equal(h.read(), h.target) {
		t.Error("merged: expected the target")
	}
	h.must(h.kernel.Close()) // the table is replaced by a linear one
	h.must(client.Do(t.Context(), control.Delete, "system_a"))
	h.must(server.Process.Signal(unix.SIGTERM))
	h.wait(server)
	if merged, err := os.ReadFile(filepath.Join(h.dir, "base")); err != nil || !bytes.Equal(merged, h.target) {
		t.Errorf("expected the base to be the target, %v", err)
	}
	if _, err := os.Lstat(h.socket); err != nil {
		t.Errorf("expected init's socket to stay: %v", err)
	}
}

// The first half (steps 1 to 4): the daemon of the ramdisk has its socket from init,
// maps what a client names, is detached, and leaves when its table has gone, while
// what it served until then was served.
func TestFirstStage(t *testing.T) {
	h := newHandset(t)
	h.sockets()
	h.must(os.Rename(filepath.Join(h.dir, "nodes", "system_a"), filepath.Join(h.dir, "nodes", "system_a-init")))
	first := h.process([]string{"ANDROID_SOCKET_snapuserd=3"}, []*os.File{h.server}, "-socket", "snapuserd", "-user_snapshot", "-node_dir", filepath.Join(h.dir, "nodes"))
	h.must(errors.Join(h.server.Close(), h.packet.Close()))
	client := h.dial()
	h.must(client.Do(t.Context(), control.Supports, control.SocketHandOff))
	base := filepath.Join(h.dir, "base")
	if sectors, err := client.Init(t.Context(), "system_a-init", filepath.Join(h.dir, "cow"), base, base); err != nil || sectors != int64(len(h.target)/512) {
		t.Fatalf("expected %d sectors, found %d, %v", len(h.target)/512, sectors, err)
	}
	h.must(client.Do(t.Context(), control.Start, "system_a-init"))
	h.must(client.Tell(t.Context(), control.Detach))
	h.must(os.Remove(h.socket))
	if !bytes.Equal(h.read(), h.target) {
		t.Error("detached: expected the target")
	}
	h.must(h.kernel.Close())
	h.wait(first)
}

// What cannot be served is not claimed to be: the daemon ends, there is no file, and
// the node is closed.
func TestNoSocketFails(t *testing.T) {
	h := newHandset(t)
	h.must(os.Truncate(filepath.Join(h.dir, "cow"), 100))
	cmd := h.second()
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != exitFailed {
		t.Errorf("expected exit code %d, found %v\n%s", exitFailed, err, h.out.String())
	}
	if _, err := os.Stat(h.alive); err == nil {
		t.Error("expected no sign of life")
	}
	if !strings.Contains(h.out.String(), "system_a") {
		t.Errorf("expected the snapshot to be named, found %s", h.out.String())
	}
}

// A daemon whose node is not there says so; a proxy without init's sockets, too.
func TestAndroidRefuses(t *testing.T) {
	for _, args := range [][]string{{"-socket-handoff"}, {"-no_socket", "-node_dir", t.TempDir(), "a,b,c,d"}} {
		var l log
		if code := with(&fakeCarrier{}).run(t.Context(), args, &l, &l); code != exitFailed || !strings.Contains(l.String(), "level=ERROR") {
			t.Errorf("%q: expected exit code 1, found %d, %s", args, code, l.String())
		}
	}
}

func TestSetPropertyRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "property_service")
	l := listenAt(t, path)
	go func() {
		fd, _, err := unix.Accept(l)
		if err == nil {
			_, _ = unix.Read(fd, make([]byte, 256))
			_, _ = unix.Write(fd, binary.NativeEndian.AppendUint32(nil, 0x18))
			_ = unix.Close(fd)
		}
	}()
	if err := setProperty(path, "a.b", "true"); err == nil || !strings.Contains(err.Error(), "0x18") {
		t.Errorf("expected code 0x18, found %v", err)
	}
	if err := setProperty(path+"no", "a.b", "true"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("expected no socket, found %v", err)
	}
}
