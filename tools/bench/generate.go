package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"cowbird/cow/filemap"
	"cowbird/formats/payload"
)

// generate makes the pair's delta payload, and compares its size with that of patches of
// the whole image, and a full one.
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
	return errors.Join(b.changedAlone(), b.fullPayload(next))
}

// changedAlone makes the payload of a pair that has nothing but the files that the last
// payload changes, with their old versions: what remains per GiB of changed files is not
// there for the rest of the images.
func (b *bench) changedAlone() error {
	what := "payload generation, `--effort default`, images of the changed files alone"
	for _, tool := range []string{"mkfs.ext4", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.table.info(what, "not measured: no "+tool, "", "")
			return nil
		}
	}
	changed, err := changedFiles(b.path("delta.bin"), b.target)
	if err != nil {
		return err
	}
	old, next := b.path("alone1"), b.path("alone2")
	for dir, image := range map[string]string{old: b.base, next: b.target} {
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			err = changed.image(image, dir)
		}
		if err != nil {
			return err
		}
	}
	out := b.path("alone.bin")
	var wall, cpu []float64
	for range b.repeats {
		made, err := b.makePayload("--group", "main:1G:system", "--vabc", "zstd", "-o", out, "--old", old, next)
		if err != nil {
			return err
		}
		wall, cpu = append(wall, made.wall), append(cpu, made.cpu)
	}
	if changed, err = changedFiles(out, filepath.Join(next, "system.img")); err != nil {
		return err
	}
	gib := float64(changed.bytes) / (1 << 30)
	what += fmt.Sprintf(" (%d files of %.1f MB), seconds a GiB", len(changed.paths), float64(changed.bytes)/1e6)
	b.table.value(what, median(wall)/gib, "", atMost(60, "s"))
	b.table.value(what+", if two cores were busy with nothing else", median(cpu)/2/gib, "", atMost(60, "s"))
	return nil
}

// image makes system.img in dir with the files that have changed, as an image has them.
func (c *changes) image(from, dir string) error {
	all, tree := filepath.Join(dir, "all"), filepath.Join(dir, "tree")
	err := errors.Join(os.MkdirAll(all, 0o755), os.MkdirAll(tree, 0o755))
	if err == nil {
		_, err = seconds("debugfs", "-R", "rdump / "+all, from)
	}
	if err != nil {
		return err
	}
	defer os.RemoveAll(all)
	defer os.RemoveAll(tree)
	for _, path := range c.paths {
		to := filepath.Join(tree, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(all, path), to); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err // one that is new is not in the old image
		}
	}
	size := fmt.Sprintf("%dM", 16+c.bytes*5/4>>20)
	_, err = seconds("env", "E2FSPROGS_FAKE_TIME=1", "mkfs.ext4", "-q", "-F", "-b", "4096", "-U", "6b8f2f0e-5d1c-4a7e-9d0f-0c0b1d000001",
		"-E", "hash_seed=6b8f2f0e-5d1c-4a7e-9d0f-0c0b1d000001", "-d", tree, filepath.Join(dir, "system.img"), size)
	return err
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
	made, err := b.makePayload("--effort", effort, "--group", "main:1G:system", "--vabc", "zstd", "-o", out, "--old", old, next)
	if err != nil {
		return err
	}
	mb, err := megabytes(out)
	if err != nil {
		return err
	}
	changed, err := changedFiles(out, b.target)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("delta payload of the image pair, `--effort %s`", effort)
	gib := float64(changed.bytes) / (1 << 30)
	b.table.info(what+", time", fmt.Sprintf("%.1f s; %.1f s of processor", made.wall, made.cpu), "", "")
	perGiB := fmt.Sprintf("payload generation, `--effort %s`, seconds a GiB of changed files (%d files of %.1f MB)", effort, len(changed.paths), float64(changed.bytes)/1e6)
	if effort == "default" {
		b.table.value(perGiB, made.wall/gib, "", atMost(60, "s"))
		b.table.value(perGiB+", if two cores were busy with nothing else", made.cpu/2/gib, "", atMost(60, "s"))
		b.table.value("payload generation, longest silence of its progress", made.silence, "", atMost(2, "s"))
	} else {
		b.table.info(perGiB, fmt.Sprintf("%.0f s", made.wall/gib), "", "")
	}
	for _, p := range patches {
		if p.mb > 0 {
			b.table.ratio(what+", against `"+p.name+"` of the whole image", fmt.Sprintf("%.2f MB", mb), fmt.Sprintf("%.2f MB", p.mb), mb/p.mb, atMost(p.most, "×"))
		}
	}
	return nil
}

// fullPayload makes the payload of the target alone, beside xz of pieces as long as its
// operations.
func (b *bench) fullPayload(next string) error {
	out, packed := b.path("full.bin"), b.path("full.xz")
	made, err := b.makePayload("-o", out, next)
	if err != nil {
		return err
	}
	args := twoCores("sh", "-c", "xz -6 -T2 --block-size=2MiB -c \"$1\" > \"$2\"", "sh", b.target, packed)
	took, err := seconds(args[0], args[1:]...)
	if err != nil {
		return err
	}
	ours, err := megabytes(out)
	if err != nil {
		return err
	}
	theirs, err := megabytes(packed)
	if err != nil {
		return err
	}
	b.table.info("full payload of the target, against `xz -6 -T2 --block-size=2MiB`, size", fmt.Sprintf("%.2f MB", ours), fmt.Sprintf("%.2f MB", theirs), fmt.Sprintf("%.2f", ours/theirs))
	b.table.info("full payload of the target, against the same, time", fmt.Sprintf("%.1f s", made.wall), fmt.Sprintf("%.1f s", took), fmt.Sprintf("%.2f", made.wall/took))
	return nil
}

// making is what the making of a payload has taken, in seconds.
type making struct{ wall, cpu, silence float64 }

// makePayload makes a payload and watches its progress.
func (b *bench) makePayload(args ...string) (m making, err error) {
	args = append(twoCores(b.tool("cowtool"), "payload", "create", "--json"), args...)
	cmd := exec.Command(args[0], args[1:]...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	lines, err := cmd.StdoutPipe()
	if err != nil {
		return m, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return m, err
	}
	last := start
	heard := func() {
		m.silence = max(m.silence, time.Since(last).Seconds())
		last = time.Now()
	}
	for s := bufio.NewScanner(lines); s.Scan(); {
		heard()
	}
	heard()
	err = cmd.Wait()
	if m.wall = time.Since(start).Seconds(); err != nil {
		return m, fmt.Errorf("cowtool payload create: %w: %s", err, lastLine(errs.String()))
	}
	m.cpu = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	return m, nil
}

// changes are files of which at least one block is not in the old image.
type changes struct {
	paths []string
	bytes int64 // of all their blocks
}

// changedFiles finds the files of an image for which a payload has data.
func changedFiles(delta, image string) (c changes, err error) {
	f, err := os.Open(delta)
	if err != nil {
		return c, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return c, err
	}
	m, err := payload.Read(f, info.Size(), payload.Limits{})
	if err != nil {
		return c, err
	}
	sent := map[int64]bool{}
	for _, op := range m.Manifest.GetPartitions()[0].GetOperations() {
		if !payload.HasBlob(op.GetType()) {
			continue
		}
		for _, e := range op.GetDstExtents() {
			for k := range e.GetNumBlocks() {
				sent[int64(e.GetStartBlock()+k)] = true
			}
		}
	}
	img, err := os.Open(image)
	if err != nil {
		return c, err
	}
	defer img.Close()
	if info, err = img.Stat(); err != nil {
		return c, err
	}
	listing, err := filemap.Files(img, info.Size())
	if err != nil {
		return c, err
	}
	for _, file := range listing.Files {
		c.add(file, sent)
	}
	return c, nil
}

func (c *changes) add(file filemap.File, sent map[int64]bool) {
	const block = 4096
	blocks, changed := int64(0), false
	for _, e := range file.Extents {
		n := (e.Stored + block - 1) / block
		blocks += n
		for k := range n {
			changed = changed || sent[e.Physical/block+k]
		}
	}
	if changed {
		c.paths = append(c.paths, file.Path)
		c.bytes += blocks * block
	}
}

func megabytes(path string) (float64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return float64(info.Size()) / 1e6, nil
}
