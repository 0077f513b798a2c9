//go:build vmtest

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/dm"
	"cowbird/ota/control"
	"cowbird/tools/vmlab/vmtest"
)

// androidInit is what Android's init does with tables (snapuserd.md 9).
type androidInit struct {
	*rig
	mapper *dm.Control
	info   dm.Info
	dir    string
}

func newAndroidInit(t *testing.T) *androidInit {
	r := newRig(t, "dm-user", "16M", oneFile)
	r.onLoop()
	mapper, err := dm.Open()
	r.must(err)
	i := &androidInit{rig: r, mapper: mapper, dir: t.TempDir()}
	i.socket = filepath.Join(i.dir, "snapuserd")
	i.info, err = mapper.Create("system_a", "android-system_a")
	r.must(err)
	return i
}

// table gives the device a table whose node has that name, and waits for the node.
func (i *androidInit) table(misc string) {
	i.t.Helper()
	sectors := uint64(len(i.target) / 512)
	_, err := i.mapper.Load("system_a", []dm.Target{{Sectors: sectors, Type: "user", Args: fmt.Sprintf("0 %d %s", sectors, misc)}}, dm.ReadOnly)
	i.must(err)
	_, err = i.mapper.Resume("system_a") // drains what the old table was asked
	i.must(err)
	vmtest.Eventually(i.t, "node", func() bool { _, err := os.Stat("/dev/dm-user/" + misc); return err == nil })
}

// bound is a socket with a path, and nothing more.
func (i *androidInit) bound(path string, kind int) *os.File {
	i.t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	i.must(errors.Join(err, unix.Bind(fd, &unix.SockaddrUnix{Name: path})))
	return os.NewFile(uintptr(fd), path)
}

// service runs the daemon's program with sockets in its environment.
func (i *androidInit) service(sockets []*os.File, args ...string) *exec.Cmd {
	i.t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env, cmd.ExtraFiles = os.Environ(), sockets
	for n, s := range sockets {
		cmd.Env = append(cmd.Env, fmt.Sprintf("ANDROID_SOCKET_%s=%d", filepath.Base(s.Name()), 3+n))
	}
	i.launch(cmd)
	for _, s := range sockets {
		i.must(s.Close())
	}
	return cmd
}

// firstStage maps the snapshot for a daemon of the ramdisk, and detaches that.
func (i *androidInit) firstStage() *exec.Cmd {
	i.t.Helper()
	i.table("system_a-init")
	first := i.service([]*os.File{i.bound(i.socket, unix.SOCK_STREAM)}, "-socket", "snapuserd", "-user_snapshot")
	i.connect()
	i.must(i.client.Do(i.t.Context(), control.Supports, control.SocketHandOff))
	_, err := i.client.Init(i.t.Context(), "system_a-init", i.cow, i.base, i.base)
	i.must(err)
	i.must(i.client.Do(i.t.Context(), control.Start, "system_a-init"))
	i.must(i.client.Tell(i.t.Context(), control.Detach))
	i.must(i.client.Close())
	i.must(os.Remove(i.socket))
	return first
}

// The boot of an Android device, with tables of dm-user's: a daemon of the ramdisk
// serves the root, another takes over while it is read, and is given its socket much
// later. Nobody who reads notices; the merge ends in the second daemon.
//
//vmtest:timeout 5m
func TestAndroidBootDmUser(t *testing.T) {
	i := newAndroidInit(t)
	first := i.firstStage()
	point := t.TempDir()
	i.must(unix.Mount(i.info.Node(), point, "ext4", unix.MS_RDONLY, "noload"))
	stop, rounds := i.reading(i.info.Node())
	vmtest.Eventually(t, "reads", func() bool { return rounds.Load() > 20 })

	i.table("system_a")
	i.must(first.Wait()) // its table has gone
	alive, proxy := filepath.Join(i.dir, "alive"), filepath.Join(i.dir, "snapuserd_proxy")
	second := i.service(nil, "-no_socket", "-user_snapshot", "-alive_file", alive, "-proxy_socket", proxy,
		strings.Join([]string{"system_a", i.cow, i.base, i.base}, ","))
	vmtest.Eventually(t, "alive", func() bool { _, err := os.Stat(alive); return err == nil })
	rounds.Store(0)
	vmtest.Eventually(t, "reads", func() bool { return rounds.Load() > 20 })

	sockets := []*os.File{i.bound(i.socket, unix.SOCK_STREAM), i.bound(proxy, unix.SOCK_SEQPACKET)}
	i.must(i.service(sockets, "-socket-handoff").Wait())
	i.connect()
	i.must(i.client.Merge(t.Context(), "system_a", 0))
	vmtest.Eventually(t, "merged", func() bool {
		s, err := i.client.Status(t.Context(), "system_a")
		return err == nil && s.State == control.StateComplete
	})
	i.must(stop())
	i.checkMount(point)
	i.must(i.mapper.Remove("system_a"))
	i.must(i.client.Do(t.Context(), control.Delete, "system_a"))
	i.must(second.Process.Signal(unix.SIGTERM))
	i.must(second.Wait())
	i.checkBase()
}
