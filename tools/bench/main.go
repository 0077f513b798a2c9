// Command bench measures what Cowbird promises, each figure beside a reference
// that is measured in the same run, and prints one markdown table.
//
//	bench -bin bin [-quick] [-images DIR] [-only PART,...] [-o FILE]
//
// Ours and the reference take turns, several times, and the median counts: on
// a shared machine both meet the same neighbours. Images and COW files are in
// the page cache for every measurement; nothing is tuned on one side only.
// It needs root, fio and the QEMU tools (tools/setup.sh bench installs them),
// works in one temporary folder and leaves nothing behind.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// bench is the state of one run.
type bench struct {
	bin     string // folder of the commands under test
	dir     string // scratch folder
	quick   bool
	repeats int
	fixture bool // the images are the pair that the promised sizes are for
	base    string
	target  string
	size    int64
	table   table

	mu      sync.Mutex // guards cleanup
	cleanup []func()
}

// part is one measurement.
type part struct {
	name string
	run  func(*bench) error
}

// parts are in the order of the table.
var parts = []part{
	{"create", (*bench).create},
	{"size", (*bench).sizes},
	{"deltas", (*bench).deltas},
	{"generate", (*bench).generate},
	{"read", (*bench).reads},
	{"fuse", (*bench).fuseTable},
	{"merge", (*bench).merge},
	{"latency", (*bench).mergeLatency},
	{"idle", (*bench).idle},
	{"phone", (*bench).phoneIdle},
	{"first", (*bench).firstRead},
	{"view", (*bench).view},
	{"index", (*bench).index},
	{"copies", (*bench).mergeCopies},
	{"peak", (*bench).peak},
	{"extract", (*bench).extract},
	{"diff", (*bench).diffs},
	{"install", (*bench).install},
	{"binary", (*bench).binary},
}

func main() {
	b := &bench{}
	flag.StringVar(&b.bin, "bin", "bin", "folder with cowtool, otactl and snapuserd")
	flag.BoolVar(&b.quick, "quick", false, "fewer repeats and shorter runs")
	images := flag.String("images", "", "folder with base.img and target.img (default: tools/images.sh makes a pair)")
	only := flag.String("only", "", "comma-separated parts to run, of "+partNames()+" (default: all)")
	out := flag.String("o", "", "also write the table to this file")
	flag.Parse()
	if flag.NArg() > 0 || !known(*only) {
		flag.Usage()
		os.Exit(2)
	}
	if err := b.run(*images, *only, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func partNames() string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

func known(only string) bool {
	for _, name := range strings.Split(only, ",") {
		if name != "" && !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return false
		}
	}
	return true
}

func (b *bench) run(images, only, out string) (err error) {
	if os.Getuid() != 0 {
		return errors.New("needs root (loop devices, FUSE): try sudo make bench")
	}
	b.undoOnSignal()
	defer b.undo(0)
	if err := b.setUp(images); err != nil {
		return err
	}

	for _, p := range parts {
		if only != "" && !slices.Contains(strings.Split(only, ","), p.name) {
			continue
		}
		progress("%s", p.name)
		if err := p.run(b); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if err := b.table.print(os.Stdout, b.heading()); err != nil || out == "" {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	return errors.Join(b.table.print(f, b.heading()), f.Close())
}

func (b *bench) setUp(images string) (err error) {
	b.repeats = 7
	if b.quick {
		b.repeats = 3
	}
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "cowbird-bench."); err != nil {
		return err
	}
	b.later(func() { os.RemoveAll(b.dir) })
	return b.findImages(images)
}

func (b *bench) findImages(images string) error {
	if images == "" {
		progress("images")
		kind, err := output("tools/images.sh", b.dir)
		if err != nil {
			return err
		}
		b.fixture = lastLine(kind) == "fixture"
		images = b.dir
	}
	b.base, b.target = filepath.Join(images, "base.img"), filepath.Join(images, "target.img")
	info, err := os.Stat(b.target)
	if err != nil {
		return err
	}
	b.size = info.Size()
	return errors.Join(warm(b.base), warm(b.target))
}

// later registers how to undo something.
func (b *bench) later(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cleanup = append(b.cleanup, f)
}

// mark is a point to go back to with undo.
func (b *bench) mark() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.cleanup)
}

// undo undoes what was registered after mark, last first. It may be called
// again.
func (b *bench) undo(mark int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.cleanup) > mark {
		last := len(b.cleanup) - 1
		f := b.cleanup[last]
		b.cleanup = b.cleanup[:last]
		f()
	}
}

func (b *bench) undoOnSignal() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt, unix.SIGTERM)
	go func() {
		<-c
		b.undo(0)
		os.Exit(130)
	}()
}

func (b *bench) heading() string {
	kind := "a pair built from this machine's trees (the promised sizes are for another pair)"
	if b.fixture {
		kind = "the fixture pair"
	}
	mode := fmt.Sprintf("median of %d alternating repeats", b.repeats)
	if b.quick {
		mode += ", quick run"
	}
	return fmt.Sprintf("%s, %s of %d MiB; %d cores, %s, kernel %s; %s.",
		time.Now().UTC().Format("2006-01-02"), kind, b.size>>20, runtime.NumCPU(), cpuModel(), kernel(), mode)
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }
func (b *bench) tool(name string) string { return filepath.Join(b.bin, name) }

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}

// warm reads a file once so that it is in the page cache.
func warm(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, struct{ io.Reader }{f})
	return err
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
