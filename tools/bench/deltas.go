package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Promised sizes of the fixture pair's COW by effort and compression, in MB.
var promisedDeltas = []struct {
	effort, compression string
	mb                  float64
}{{"default", "zstd", 13}, {"default", "lz4", 17}, {"max", "zstd", 12}, {"max", "lz4", 0}}

// deltas are the sizes that more effort reaches, and what it costs.
func (b *bench) deltas() error {
	for _, p := range promisedDeltas {
		mb, _, err := b.deltaSize(b.base, b.target, "--effort", p.effort, "--compression", p.compression)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("COW size, %s, `--effort %s`", p.compression, p.effort)
		if b.fixture && p.mb > 0 {
			b.table.value(what, mb, "", atMost(p.mb, "MB"))
		} else {
			b.table.info(what, fmt.Sprintf("%.2f MB", mb), "", "")
		}
	}
	return errors.Join(b.deltaTime(), b.shiftedPrograms(), b.erofsPair())
}

// deltaSize makes a COW, and returns its size and the command's peak RSS in MB.
func (b *bench) deltaSize(base, target string, flags ...string) (mb, rss float64, err error) {
	out := b.path("delta.cow")
	_ = os.Remove(out)
	args := append(append([]string{"create", "-q", "-o", out}, flags...), base, target)
	progress("  cowtool %s", strings.Join(args, " "))
	cmd := exec.Command(b.tool("cowtool"), args...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return 0, 0, fmt.Errorf("cowtool create: %w\n%s", err, text)
	}
	usage, err := rusage(cmd)
	if err != nil {
		return 0, 0, err
	}
	info, err := os.Stat(out)
	if err != nil {
		return 0, 0, err
	}
	return float64(info.Size()) / 1e6, usage / 1e6, nil
}

// deltaTime compares the time at default effort with hashing, and has the memory.
func (b *bench) deltaTime() error {
	got, err := alternate(b.repeats,
		func() (float64, error) { return b.createEffort("zstd", "default") },
		func() (float64, error) { return b.hashOnce() })
	if err != nil {
		return err
	}
	b.table.ratio("`cowtool create`, zstd, `--effort default`, against `sha256sum` of both images",
		spread(got[0], "%.2f")+" s", spread(got[1], "%.2f")+" s", median(got[0])/median(got[1]), atMost(4, "×"))
	_, rss, err := b.deltaSize(b.base, b.target, "--compression", "zstd")
	if err != nil {
		return err
	}
	most := float64(64<<20+64*(b.size/4096)) / 1e6
	b.table.value("the same, peak RSS (64 MiB and 64 bytes a block)", rss, "", atMost(most, "MB"))
	return nil
}

// shiftedPrograms is a pair of ext4 images with two builds of our own programs, of
// which the second has a little more in one package.
func (b *bench) shiftedPrograms() error {
	for _, tool := range []string{"go", "mkfs.ext4", "zstd"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.table.info("COW size, two builds of the same programs", "not measured: no "+tool, "", "")
			return nil
		}
	}
	overlay, err := b.overlay()
	if err != nil {
		return err
	}
	old, next := b.path("old.ext4"), b.path("next.ext4")
	if err := errors.Join(b.programs(old), b.programs(next, "-overlay", overlay)); err != nil {
		return err
	}
	whole, _, err := b.deltaSize(old, next, "--compression", "zstd", "--effort", "fast", "--scratch", "64K")
	if err != nil {
		return err
	}
	mb, _, err := b.deltaSize(old, next, "--compression", "zstd", "--scratch", "64K")
	if err != nil {
		return err
	}
	patch := b.path("patch.zst")
	if _, err := seconds("zstd", "-q", "-f", "-19", "--long=27", "--patch-from="+old, next, "-o", patch); err != nil {
		return err
	}
	info, err := os.Stat(patch)
	if err != nil {
		return err
	}
	reference := float64(info.Size()) / 1e6
	b.table.ratio(fmt.Sprintf("COW size, two builds of the same programs, zstd, 64K of scratch area (whole blocks: %.2f MB), against `zstd -19 --patch-from`", whole),
		fmt.Sprintf("%.2f MB", mb), fmt.Sprintf("%.2f MB", reference), mb/reference, atMost(6, "×"))
	return nil
}

// overlay replaces a source file by one with a function more.
func (b *bench) overlay() (string, error) {
	const file = "formats/cowfile/errors.go"
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	more := "\nfunc init() {\n\tm := map[string]int{}\n\tfor i := range 10 {\n\t\tm[string(rune('a'+i))] = i\n\t}\n\tif len(m) > 10 {\n\t\tpanic(m)\n\t}\n}\n"
	abs, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	changed, list := b.path("errors.go"), b.path("overlay.json")
	if err := os.WriteFile(changed, append(text, more...), 0o644); err != nil {
		return "", err
	}
	data, err := json.Marshal(map[string]map[string]string{"Replace": {abs: changed}})
	if err != nil {
		return "", err
	}
	return list, os.WriteFile(list, data, 0o644)
}

// programs makes an image with our programs, without debug information, which is
// compressed.
func (b *bench) programs(img string, flags ...string) error {
	tree := img + ".tree"
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	build := append(append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w"}, flags...), "-o", tree+"/", "./cmd/cowtool", "./cmd/otactl", "./cmd/snapuserd")
	if _, err := seconds("go", build...); err != nil {
		return err
	}
	_, err := seconds("env", "E2FSPROGS_FAKE_TIME=1", "mkfs.ext4", "-q", "-F", "-b", "4096", "-U", "6b8f2f0e-5d1c-4a7e-9d0f-0c0b1d000001",
		"-E", "hash_seed=6b8f2f0e-5d1c-4a7e-9d0f-0c0b1d000001", "-d", tree, img, "96M")
	return err
}

// erofsPair is about the image pair's trees as compressed erofs images.
func (b *bench) erofsPair() error {
	const what = "COW size, the image pair as erofs (lz4hc), zstd, against whole blocks, as Android's builder has them"
	for _, tool := range []string{"mkfs.erofs", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.table.info(what, "not measured: no "+tool, "", "")
			return nil
		}
	}
	var images []string
	for _, from := range []string{b.base, b.target} {
		tree, img := b.path(filepath.Base(from)+".tree"), b.path(filepath.Base(from)+".erofs")
		if err := os.MkdirAll(tree, 0o755); err != nil {
			return err
		}
		if _, err := seconds("debugfs", "-R", "rdump / "+tree, from); err != nil {
			return err
		}
		if _, err := seconds("mkfs.erofs", "-zlz4hc,9", "-T1700000000", "-U11111111-2222-3333-4444-555555555555", img, tree); err != nil {
			return err
		}
		images = append(images, img)
	}
	whole, _, err := b.deltaSize(images[0], images[1], "--compression", "zstd", "--effort", "fast", "--no-xor")
	if err != nil {
		return err
	}
	mb, _, err := b.deltaSize(images[0], images[1], "--compression", "zstd")
	if err != nil {
		return err
	}
	b.table.ratio(what, fmt.Sprintf("%.2f MB", mb), fmt.Sprintf("%.2f MB", whole), mb/whole, atMost(0.8, "×"))
	return nil
}

// rusage is the peak RSS of a command that has ended, in bytes.
func rusage(cmd *exec.Cmd) (float64, error) {
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0, errors.New("expected the usage of a process that has ended, found none")
	}
	return float64(usage.Maxrss) * 1024, nil
}
