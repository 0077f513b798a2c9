package install

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	killEvery = flag.Bool("kill-every", false, "kill at the end of every operation, not at a sample")
	killSeed  = flag.Uint64("kill-seed", 1, "what the sample and the random moments come from")
)

// Environment of a process that is an installation: the configuration, and after how
// many operations it kills itself; 0 is never.
const (
	killConfig = "INSTALL_TEST_CONFIG"
	killAfter  = "INSTALL_TEST_KILL"
	killSource = "INSTALL_TEST_PAYLOAD"
)

func init() {
	if os.Getenv(killConfig) == "" {
		return
	}
	if err := installOrDie(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// installOrDie labels every operation, and prints how many there were.
func installOrDie() error {
	after, err := strconv.ParseInt(os.Getenv(killAfter), 10, 64)
	if err != nil {
		return err
	}
	c, err := ReadConfig(os.Getenv(killConfig))
	if err != nil {
		return err
	}
	policy, err := c.Policy()
	if err != nil {
		return err
	}
	f, err := OpenFile(os.Getenv(killSource), "")
	if err != nil {
		return err
	}
	defer f.Close()
	var count atomic.Int64
	err = Run(context.Background(), Options{Config: c, Source: f, Policy: *policy, LabelEvery: -1, OnProgress: func(int64, int64) {
		if count.Add(1) == after {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}})
	fmt.Println(count.Load())
	return err
}

// killable starts the installation as a process of its own.
func (d *device) killable(after int) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), killConfig+"="+d.path("config.json"), killSource+"="+d.path("payload.bin"), killAfter+"="+strconv.Itoa(after))
	cmd.Stderr = os.Stderr
	return cmd
}

// sumOld is the hash of all old partitions.
func (d *device) sumOld() string {
	h := sha256.New()
	for _, name := range []string{"system.img", "vendor.img", "boot.img"} {
		h.Write(mustRead(d.t, d.path(name)))
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func wasKilled(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && !exit.Exited()
}

// TestKilled kills an installation of several partitions at the ends of operations and
// at random moments, and again while it goes on. The next process finishes it, and
// the partitions are the same.
func TestKilled(t *testing.T) {
	d := newDevice(t)
	d.write("payload.bin", d.payload)
	old := d.sumOld()
	out, err := d.killable(0).Output()
	if err != nil {
		t.Fatal(err)
	}
	var ops int
	if _, err := fmt.Sscan(string(out), &ops); err != nil || ops < 100 {
		t.Fatalf("expected some hundred operations, found %q", out)
	}
	d.check()
	r := rand.New(rand.NewPCG(*killSeed, 0))
	step := ops / 3
	if *killEvery {
		step = 1
	}
	for at := 1 + r.IntN(step); at <= ops; at += step {
		d.begin()
		if err := d.killable(at).Run(); !wasKilled(err) {
			t.Fatalf("operation %d of %d: expected the process to be killed, found %v", at, ops, err)
		}
		d.finish(fmt.Sprintf("killed after operation %d of %d", at, ops))
	}
	for range 2 {
		d.begin()
		for range 3 {
			cmd := d.killable(0)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(r.IntN(150)) * time.Millisecond)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		d.finish(fmt.Sprintf("killed at random, -kill-seed %d", *killSeed))
	}
	if d.sumOld() != old {
		t.Error("an old partition has changed")
	}
}

// begin forgets what was installed.
func (d *device) begin() {
	for _, name := range []string{"state", "system.cow", "vendor.cow", "vbmeta.cow", "boot.new"} {
		if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			d.t.Fatal(err)
		}
	}
}

func (d *device) finish(what string) {
	d.t.Helper()
	if out, err := d.killable(0).Output(); err != nil {
		d.t.Fatalf("%s: %v: %s", what, err, out)
	}
	d.check()
}
