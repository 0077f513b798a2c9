package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// generate makes the pair's delta payload, and compares its size with that of patches of
// the whole image.
func (b *bench) generate() error {
	old, next := b.path("v1"), b.path("v2")
	err := errors.Join(os.MkdirAll(old, 0o755), os.MkdirAll(next, 0o755))
	for dir, image := range map[string]string{old: b.base, next: b.target} {
		if err == nil {
			if image, err = filepath.Abs(image); err == nil {
				_ = os.Remove(filepath.Join(dir, "system.img"))
				err = os.Symlink(image, filepath.Join(dir, "system.img"))
			}
		}
	}
	if err != nil {
		return err
	}
	patches := []wholePatch{
		{name: "xdelta3 -9", most: 1, args: []string{"xdelta3", "-q", "-f", "-e", "-9", "-s", b.base, b.target, b.path("xdelta")}},
		{name: "zstd -19 --long=31 --patch-from", most: 1.2,
			args: []string{"zstd", "-q", "-f", "-19", "--long=31", "--patch-from=" + b.base, b.target, "-o", b.path("patch")}},
	}
	for i := range patches {
		p := &patches[i]
		if _, err := exec.LookPath(p.args[0]); err != nil {
			b.table.info("delta payload, "+p.name, "not measured: no "+p.args[0], "", "")
			continue
		}
		if _, err := seconds(p.args[0], p.args[1:]...); err != nil {
			return err
		}
		if p.mb, err = megabytes(p.args[len(p.args)-1]); err != nil {
			return err
		}
	}
	for _, effort := range []string{"fast", "default"} {
		if err := b.payload(old, next, effort, patches); err != nil {
			return err
		}
	}
	return nil
}

// wholePatch is a patch of the whole image by another tool.
type wholePatch struct {
	name string
	args []string // of which the last is the output
	most float64  // what a payload may be, in patches
	mb   float64  // 0: not measured
}

func (b *bench) payload(old, next, effort string, patches []wholePatch) error {
	out := b.path("delta.bin")
	args := twoCores(b.tool("cowtool"), "payload", "create", "-q", "--effort", effort, "--group", "main:1G:system", "--vabc", "zstd", "-o", out, "--old", old, next)
	took, err := seconds(args[0], args[1:]...)
	if err != nil {
		return err
	}
	mb, err := megabytes(out)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("delta payload of the image pair, `--effort %s`", effort)
	b.table.info(what+", time", fmt.Sprintf("%.0f s, %.0f s a GiB of image", took, took/(float64(b.size)/(1<<30))), "", "")
	for _, p := range patches {
		if p.mb > 0 {
			b.table.ratio(what+", against `"+p.name+"` of the whole image", fmt.Sprintf("%.2f MB", mb), fmt.Sprintf("%.2f MB", p.mb), mb/p.mb, atMost(p.most, "×"))
		}
	}
	return nil
}

func megabytes(path string) (float64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return float64(info.Size()) / 1e6, nil
}
