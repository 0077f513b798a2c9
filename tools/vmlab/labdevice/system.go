package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// config is what the system knows of its device.
var config = "/etc/cowbird/update.json"

func system() error {
	if err := killOthers(); err != nil {
		return err
	}
	p, err := readPlan()
	if err != nil {
		return err
	}
	version, err := os.ReadFile("/etc/version")
	if err != nil {
		return err
	}
	if p.config != "" {
		config = filepath.Join(labDir, p.config)
	}
	if p.do["extents"] {
		if err := mount("/dev/mapper/userdata", dataDir, "ext4", 0, ""); err != nil {
			return err
		}
	}
	say("version %s in %s at %s s", version, p.slot, uptime())
	if err := look(p); err != nil {
		return err
	}
	if err := work(p); err != nil {
		return err
	}
	say("afterwards")
	if err := look(p); err != nil {
		return err
	}
	say("well at %s s", uptime())
	return nil
}

// killOthers does what systemd does at the switch of the root: it ends every process
// that is not marked.
func killOthers() error {
	all, err := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		line, _ := os.ReadFile(dir + "/cmdline")
		if pid > 1 && len(line) > 0 && line[0] != '@' {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	return err
}

// uptime is in seconds.
func uptime() string {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return fmt.Sprintf("%.3f", float64(t.Nano())/1e9)
}

// work is what the plan says for the system that runs.
func work(p *plan) error {
	if p.do["nothing"] {
		return nil
	}
	if p.slot != p.from {
		return onNew(p)
	}
	if p.do["cancel-first"] {
		if _, err := otactl("cancel"); err != nil {
			return err
		}
	}
	if _, err := otactl("update", "--process"); err != nil {
		return err
	}
	if _, err := otactl("mark-successful"); err != nil {
		return err
	}
	if p.do["doctor"] {
		out, err := otactl("doctor")
		say("doctor: %v: %s", err != nil, out)
	}
	if !p.do["install"] {
		return nil
	}
	args := append([]string{"install", "--quiet", "--unsigned"}, p.flags...)
	out, err := otactl(append(args, "http://"+address+"/"+p.payload)...)
	if p.do["refused"] {
		if err == nil {
			return errors.New("expected the installation to be refused, found that it was not")
		}
		say("refused: %s", out)
		return nil
	}
	if err == nil && p.do["cancel"] {
		_, err = otactl("cancel")
	}
	return err
}

func onNew(p *plan) error {
	if p.do["try-cancel"] {
		out, err := otactl("cancel")
		say("cancel: %v: %s", err != nil, out)
	}
	if p.do["bad"] { // whatever it is for, this system never says that it is good
		return nil
	}
	if _, err := otactl("update", "--process"); err != nil {
		return err
	}
	if p.do["rollback"] {
		_, err := otactl("rollback")
		if err == nil || !p.do["too-late"] {
			return err
		}
	}
	mark := []string{"mark-successful"}
	if p.do["verify"] {
		mark = append(mark, "--verify")
	}
	if out, err := otactl(mark...); err != nil {
		if p.do["verify"] {
			say("does not verify: %s", out)
			return nil
		}
		return err
	}
	if !p.do["merge"] {
		return nil
	}
	if p.do["wait"] {
		_, err := otactl("merge", "--wait", "--if-any")
		return err
	}
	return mergeQuickly()
}

// mergeQuickly is what otactl merge --wait does, but it asks more often.
func mergeQuickly() error {
	if _, err := otactl("merge", "--if-any"); err != nil {
		return err
	}
	var most memory
	defer func() { tell("merging", most) }()
	for {
		most.atLeast(daemonMemory())
		out, err := otactl("update", "--process", "--json")
		if err != nil || !strings.Contains(out, `"Merging"`) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// otactl runs the system's own, and tells of what went wrong.
func otactl(args ...string) (string, error) {
	say("otactl %s", strings.Join(args, " "))
	cmd := otactlOf("/usr/sbin", append(args, "--config", config)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("otactl %s: %w: %s", args[0], err, out)
	}
	if use, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		tell("peak-of-"+args[0], use.Maxrss)
	}
	return string(out), nil
}

// look tells what there is.
func look(p *plan) error {
	sums, err := sumsOf(p)
	if err != nil {
		return err
	}
	state, err := exec.Command("/usr/sbin/otactl", "update", "--json", "--config", config).CombinedOutput()
	if err != nil {
		return fmt.Errorf("otactl update: %w: %s", err, state)
	}
	say("update %s", bytes.TrimSpace(state))
	tell("sums", sums)
	tell("files", filesIn(metadataDir+"/ota"))
	tell("images", filesIn(dataDir+"/cowbird"))
	tell("devices", mappedDevices())
	tell("daemon", daemonMemory())
	return nil
}

func tell(what string, v any) {
	b, _ := json.Marshal(v)
	say("%s %s", what, b)
}

// sumsOf hashes the partitions of the slot, as the storage has them now.
func sumsOf(p *plan) (map[string]string, error) {
	list, err := os.ReadFile(mappedList)
	if err != nil {
		return nil, err
	}
	paths := []string{blockDir + "/vbmeta" + p.slot}
	for line := range strings.Lines(string(list)) {
		name, _, _ := strings.Cut(line, " ")
		paths = append(paths, "/dev/mapper/"+name)
	}
	sums := map[string]string{}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), p.slot)
		if sums[name], err = sumOf(path); err != nil {
			return nil, err
		}
	}
	return sums, nil
}

// sumOf reads past the cache.
func sumOf(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Munmap(buf) }()
	h := sha256.New()
	for {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
		}
		if err != nil {
			return "", err
		}
	}
}

// filesIn lists the files below a folder.
func filesIn(dir string) []string {
	names := []string{}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			names = append(names, rel)
		}
		return nil
	})
	return names
}

func mappedDevices() []string {
	names := []string{}
	all, _ := filepath.Glob("/sys/block/dm-*/dm/name")
	for _, f := range all {
		b, _ := os.ReadFile(f)
		names = append(names, strings.TrimSpace(string(b)))
	}
	slices.Sort(names)
	return names
}

// memory is what the daemon has, in KiB.
type memory struct {
	RSS  int `json:"rss"`
	Anon int `json:"anonymous"`
}

func (m *memory) atLeast(n memory) {
	m.RSS, m.Anon = max(m.RSS, n.RSS), max(m.Anon, n.Anon)
}

// daemonMemory is zero if there is no daemon.
func daemonMemory() (m memory) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range all {
		line, _ := os.ReadFile(f)
		if !bytes.HasPrefix(line, []byte("@snapuserd")) {
			continue
		}
		status, _ := os.ReadFile(filepath.Dir(f) + "/status")
		for s := range strings.Lines(string(status)) {
			key, value, _ := strings.Cut(s, ":")
			n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			switch key {
			case "VmRSS":
				m.RSS = n
			case "RssAnon":
				m.Anon = n
			}
		}
	}
	return m
}
