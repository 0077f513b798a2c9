package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A lab knows its folders: the checkout, and the cache in which kernels lie.
type lab struct {
	root  string // the module's folder
	cache string
	jobs  int // how many compilers, or guests, at a time
	log   logger
}

// logger tells what takes its time, on standard error.
type logger struct{ w io.Writer }

func (l logger) printf(format string, args ...any) {
	fmt.Fprintf(l.w, "vmlab: "+format+"\n", args...)
}

func newLab(ctx context.Context, jobs int, stderr io.Writer) (*lab, error) {
	mod, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, fmt.Errorf("go list -m: %w", err)
	}
	cache, err := cacheDir(os.Getenv)
	if err != nil {
		return nil, err
	}
	return &lab{strings.TrimSpace(string(mod)), cache, jobs, logger{stderr}}, os.MkdirAll(cache, 0o755)
}

// cacheDir follows the XDG rules.
func cacheDir(getenv func(string) string) (string, error) {
	if dir := getenv("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "cowbird", "vmlab"), nil
	}
	home := getenv("HOME")
	if home == "" {
		return "", errors.New("neither XDG_CACHE_HOME nor HOME is set: no place for the cache")
	}
	return filepath.Join(home, ".cache", "cowbird", "vmlab"), nil
}

// hash names the contents of what a thing was made from.
func hash(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d\n", len(p))
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// stamp is the file that says that a folder of the cache is complete.
const stamp = "complete"

// newest finds the folder of the cache that was completed last among those
// that match; "" if there is none.
func (l *lab) newest(pattern string) string {
	var best string
	var when time.Time
	stamps, _ := filepath.Glob(filepath.Join(l.cache, pattern, stamp))
	for _, s := range stamps {
		if info, err := os.Stat(s); err == nil && info.ModTime().After(when) {
			best, when = filepath.Dir(s), info.ModTime()
		}
	}
	return best
}

// fill makes a folder of the cache unless it is complete, and keeps others
// from making it at the same time.
func (l *lab) fill(name string, build func(dir string) error) (string, error) {
	dir := filepath.Join(l.cache, name)
	unlock, err := l.lock(name)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(dir, stamp)); err == nil {
		return dir, nil
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return "", err
	}
	start := time.Now()
	if err := build(dir); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	l.log.printf("made %s in %v", name, time.Since(start).Round(time.Second))
	return dir, os.WriteFile(filepath.Join(dir, stamp), nil, 0o644)
}

func (l *lab) lock(name string) (unlock func(), err error) {
	f, err := os.Create(filepath.Join(l.cache, name+".lock"))
	if err != nil {
		return nil, err
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		l.log.printf("waiting for another vmlab to make %s", name)
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			return nil, err
		}
	}
	return func() { f.Close() }, nil
}

// run runs a command with its output in a file, whose end becomes part of the
// error.
func (l *lab) run(ctx context.Context, logFile, dir, name string, args ...string) error {
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	fmt.Fprintf(out, "+ %s\n", strings.Join(cmd.Args, " "))
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w; the end of its output:\n%s", name, err, tail(logFile, 30))
	}
	return nil
}

// tail is the last lines of a file.
func tail(file string, lines int) string {
	f, err := os.Open(file)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	var last []string
	for s := bufio.NewScanner(f); s.Scan(); {
		last = append(last, s.Text())
		last = last[max(0, len(last)-lines):]
	}
	return strings.Join(last, "\n")
}

// unpackSource unpacks a tar archive that is a member of a package.
func (l *lab) unpackSource(ctx context.Context, logFile, deb, member, dir string) error {
	const script = `set -o pipefail; dpkg-deb --fsys-tarfile "$0" | tar xO "$1" | tar xJ --strip-components=1 -C "$2"`
	return l.run(ctx, logFile, "", "bash", "-c", script, deb, member, dir)
}

// sourceHash names the contents of a folder's files, those of its folders not
// among them.
func sourceHash(dir string) (string, []string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", nil, err
	}
	var parts [][]byte
	var names []string
	for _, e := range entries {
		if !isModuleSource(e) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return "", nil, err
		}
		names = append(names, e.Name())
		parts = append(parts, []byte(e.Name()), b)
	}
	if len(names) == 0 {
		return "", nil, fmt.Errorf("%s: expected the sources of a kernel module, found none", dir)
	}
	return hash(parts...), names, nil
}

// isModuleSource tells what a kernel module is built from.
func isModuleSource(e fs.DirEntry) bool {
	return e.Type().IsRegular() && (slices.Contains([]string{"Kbuild", "Makefile"}, e.Name()) ||
		slices.Contains([]string{".c", ".h"}, filepath.Ext(e.Name())) && !strings.HasSuffix(e.Name(), ".mod.c"))
}
