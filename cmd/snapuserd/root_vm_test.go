//go:build vmtest

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	rootEnv = "SNAPUSERD_ROOT" // this program makes that mount its root, and runs program from there
	roleEnv = "SNAPUSERD_ROLE" // which is not the daemon then, but one of these

	hogRole    = "hog"
	readerRole = "reader"
)

// program is this test's own, put into the image that becomes the root.
const program = "/program"

var _ = addRole(play)

// play makes this process what the test that started it wants, for good; of the
// tests' own process it changes nothing.
func play() {
	switch {
	case os.Getenv(rootEnv) != "":
		fmt.Fprintln(os.Stderr, enterRoot(os.Getenv(rootEnv)))
		os.Exit(1)
	case os.Getenv(roleEnv) == hogRole:
		hog()
	case os.Getenv(roleEnv) == readerRole:
		if err := reader(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// enterRoot makes a mount the root of this process, alone, and runs the program
// that lies there. It returns when that fails.
func enterRoot(root string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("chdir %s: %w", root, err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := errors.Join(unix.Unmount(".", unix.MNT_DETACH), unix.Chdir("/")); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	_ = os.Unsetenv(rootEnv)
	return unix.Exec(program, append([]string{program}, os.Args[1:]...), os.Environ())
}

// rooted is this program, run from the root that is served.
func rooted(root string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), rootEnv+"="+root)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	return cmd
}

// rootFiles are what the reader checks.
const rootFiles = 6

func rootContent(i int) io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), 2<<20) }

func fillRoot(t *testing.T) func(dir string) {
	return func(dir string) {
		check := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range mountPoints {
			check(os.Mkdir(filepath.Join(dir, name), 0o755))
		}
		for i := range rootFiles {
			b, err := io.ReadAll(rootContent(i))
			check(err)
			check(os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), b, 0o644))
		}
		self, err := os.ReadFile("/proc/self/exe")
		check(err)
		check(os.WriteFile(filepath.Join(dir, program), self, 0o755))
	}
}

// hog takes all memory that there is, and is killed for it.
func hog() {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	for {
		b, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		for i := 0; err == nil && i < len(b); i += 4096 {
			b[i] = 1
		}
	}
}

// reader reads the root's files again and again, with nothing cached, while a hog
// takes all memory, until that is killed.
func reader() error {
	for range 2 {
		cmd := exec.Command(program)
		cmd.Env = append(cmd.Environ(), roleEnv+"="+hogRole)
		if err := cmd.Start(); err != nil {
			return err
		}
		killed := make(chan error, 1)
		go func() { killed <- cmd.Wait() }()
		for more := true; more; {
			select {
			case <-killed:
				more = false
			default:
			}
			if err := readRoot(); err != nil {
				return err
			}
		}
		if !cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
			return fmt.Errorf("expected the hog to be killed, found %v", cmd.ProcessState)
		}
	}
	return nil
}

func readRoot() error {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return err
	}
	for i := range rootFiles {
		f, err := os.Open(fmt.Sprint("/file", i))
		if err != nil {
			return err
		}
		err = sameContent(f, rootContent(i))
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return nil
}

func sameContent(a, b io.Reader) error {
	got, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(a, got)
		m, _ := io.ReadFull(b, want)
		switch {
		case !bytes.Equal(got[:n], want[:m]):
			return errors.New("it differs")
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// mountPoints are what a root has inside, of the guest's own.
var mountPoints = []string{"proc", "dev", "sys", "tmp"}

// mountRoot mounts the device as a root would be.
func (r *rig) mountRoot(node string) (root string) {
	r.t.Helper()
	root = filepath.Join(r.dir, "root")
	r.must(os.Mkdir(root, 0o755))
	r.must(unix.Mount(node, root, "ext4", unix.MS_RDONLY, "noload"))
	for _, name := range mountPoints {
		r.must(unix.Mount("/"+name, filepath.Join(root, name), "", unix.MS_BIND|unix.MS_REC, ""))
	}
	return root
}

// stress runs the reader in the root, beside a merge, and ends with the root.
func (r *rig) stress(root string) {
	r.t.Helper()
	r.must(r.client.Merge(r.t.Context(), "system", 2<<20))
	cmd := rooted(root)
	cmd.Env = append(cmd.Env, roleEnv+"="+readerRole)
	r.must(cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		r.must(err)
	case <-time.After(4 * time.Minute):
		r.t.Fatal("the root's reader hangs")
	}
	r.merge()
	for _, name := range append(mountPoints, "") {
		r.must(unix.Unmount(filepath.Join(root, name), unix.MNT_DETACH))
	}
	r.checkBase()
}

// lockedOf is how much of a process is locked, in KiB.
func (r *rig) lockedOf(pid int) (kib int) {
	r.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	r.must(err)
	_, rest, _ := strings.Cut(string(status), "VmLck:")
	_, err = fmt.Sscan(rest, &kib)
	r.must(err)
	return kib
}

func (r *rig) launchFromInitramfs() {
	r.t.Helper()
	r.launch(exec.Command("/proc/self/exe", "--socket", r.socket, "--carrier", r.carrier, "--serves-root"))
}

// The daemon, started from elsewhere as from an initramfs, serves the root. All
// memory is taken again and again, and nothing is cached: nothing hangs, and
// nothing is read wrong, while it merges.
//
//vmtest:timeout 8m
func TestRootFuse(t *testing.T) { rootServed(t, "fuse") }

// This one fails when the daemon is an I/O flusher: see package resident.
//
//vmtest:timeout 8m
func TestRootNbd(t *testing.T) { rootServed(t, "nbd") }

//vmtest:timeout 8m
func TestRootDmUser(t *testing.T) { rootServed(t, "dm-user") }

// spareTest has the kernel kill anything rather than the test when memory is out: a
// hog that is dying holds its memory for a while.
func spareTest(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		t.Fatal(err)
	}
}

func rootServed(t *testing.T, carrier string) {
	spareTest(t)
	r := newRig(t, carrier, "48M", fillRoot(t))
	r.launchFromInitramfs()
	r.stress(r.mountRoot(r.mapSnapshot()))
}

// The first daemon's successor lies on the root itself, which it takes over: what
// it needs of its program is in memory then.
//
//vmtest:timeout 8m
func TestRootOfItsOwnNbd(t *testing.T) { rootOfItsOwn(t, "nbd") }

//vmtest:timeout 8m
func TestRootOfItsOwnUblk(t *testing.T) { rootOfItsOwn(t, "ublk") }

func rootOfItsOwn(t *testing.T, carrier string) {
	spareTest(t)
	r := newRig(t, carrier, "48M", fillRoot(t))
	r.launchFromInitramfs()
	node := r.mapSnapshot()
	root := r.mountRoot(node)

	first, firstClient := r.process, r.client
	r.socket += "2"
	r.launch(rooted(root, "--socket", r.socket, "--carrier", carrier, "--serves-root"))
	r.connect()
	if kib := r.lockedOf(r.process.Process.Pid); kib < 1024 {
		t.Errorf("expected the successor's program to be locked, found %d KiB", kib)
	}
	_ = firstClient.Close()
	r.must(first.Process.Kill())
	_ = first.Wait()
	if again := r.mapSnapshot(); again != node {
		t.Fatalf("expected the successor to go on with %s, found %s", node, again)
	}
	r.stress(root)
}
