package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
	"cowbird/tools/fixture"
)

// A conversion is what create makes with the same flags, and means the same.
func TestConvert(t *testing.T) {
	b := newBox(t)
	b.run("create --compression zstd -o @cow @base @target")
	for _, flags := range []string{
		"", "--compression lz4 --unit 4K", "--format v2 --compression gz", "--format v2 --compression none", "--compression zstd,9 --unit 256K", "--compression brotli,2",
	} {
		b.run("create --compression zstd " + flags + " -o @want @base @target")
		out := b.run("convert --base @base " + flags + " -o @out @cow")
		b.same("out", b.read("want"))
		if !strings.Contains(out, "copy") {
			t.Errorf("%s: found %q", flags, out)
		}
		b.run("check --base @base --target @target @out")
		b.run("convert --compression zstd,3 --format v3 --unit 64K --workers 3 -o @back @out")
		b.same("back", b.read("cow"))
	}
}

func TestConvertJSON(t *testing.T) {
	b := newBox(t)
	b.run("create -o @cow @base @target")
	v := lastLine(t, b.run("convert --json --compression gz --unit 16K -o @out @cow"))
	if v["event"] != "result" || v["cow_size"] != float64(len(b.read("out"))) || v["compression"] != "gz" || v["unit"] != 16384.0 || v["version"] != 3.0 {
		t.Errorf("convert: found %v", v)
	}
	want := v["cow_size"]
	if v := lastLine(t, b.run("estimate --json --cow @cow --compression gz --unit 16K")); v["cow_size"] != want || v["ops"] != v["table_capacity"] {
		t.Errorf("estimate: expected %v bytes, found %v", want, v)
	}
}

// An estimate is the size of the file that the same flags give.
func TestEstimate(t *testing.T) {
	b := newBox(t)
	for _, flags := range []string{"", "--format v2 --compression gz", "--compression zstd,5 --unit 128K --no-xor", "--compression none --workers 2"} {
		b.run("create " + flags + " -o @cow @base @target")
		out := b.run("estimate " + flags + " @base @target")
		if want := fmt.Sprintf("%d bytes ", len(b.read("cow"))); !strings.HasPrefix(out, want) || strings.Count(out, "\n") != 5 {
			t.Errorf("%s: expected %s, found %q", flags, want, out)
		}
	}
	b.run("convert --format v2 --no-scratch -o @out @cow")
	if out := b.run("estimate --format v2 --no-scratch --cow @cow"); !strings.HasPrefix(out, fmt.Sprintf("%d bytes ", len(b.read("out")))) {
		t.Errorf("expected %d bytes, found %q", len(b.read("out")), out)
	}
}

// A COW whose merge has begun is refused with a way out; a merged one stays so.
func TestConvertMerged(t *testing.T) {
	b := newBox(t)
	b.run("create -o @cow @base @target")
	begun := b.read("cow")
	begun[26] = 7
	b.write("begun", begun)
	code, _, errs := b.try("convert -o @out @begun")
	if code != 1 || !strings.Contains(errs, "cowtool merge") || !strings.Contains(errs, "--ignore-progress") {
		t.Errorf("expected exit code 1 and what to do, found %d, %q", code, errs)
	}
	if _, err := os.Stat(b.path("out")); err == nil {
		t.Error("expected no output of a failed command")
	}
	b.run("convert --ignore-progress -o @out @begun")
	b.same("out", b.read("cow"))
	b.run("merge --base @base @cow")
	if out := b.run("convert --format v2 --base @base -o @out @cow"); !strings.Contains(out, "completely merged") {
		t.Errorf("found %q", out)
	}
	if out := b.run("merge --base @base @out"); !strings.Contains(out, "nothing to do") {
		t.Errorf("found %q", out)
	}
}

// What --base compares is the contents, not the ops.
func TestConvertCompares(t *testing.T) {
	b := newBox(t)
	b.run("create -o @cow @base @target")
	b.run("create -o @other @target @base")
	d, err := openAll(b.path("cow"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	c := convert{base: b.path("base")}
	if err := c.compare(t.Context(), cli.Output{Stderr: &bytes.Buffer{}}, d[0], b.path("cow")); err != nil {
		t.Error(err)
	}
	b.write("base", b.target) // of which the other COW makes the old base
	if err := c.compare(t.Context(), cli.Output{Stderr: &bytes.Buffer{}}, d[0], b.path("other")); !errors.Is(err, cow.ErrMismatch) {
		t.Errorf("expected ErrMismatch, found %v", err)
	}
}

const sector = 512

// loopDevice makes a block device of whole sectors, full of old bytes.
func (b box) loopDevice(size int64) string {
	b.t.Helper()
	file, err := os.CreateTemp(b.dir, "disk")
	if err != nil {
		b.t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Write(bytes.Repeat([]byte{0xa5}, int(size))); err != nil {
		b.t.Fatal(err)
	}
	losetup, err := exec.LookPath("losetup")
	if err != nil {
		losetup = "/usr/sbin/losetup"
	}
	out, err := exec.Command(losetup, "--find", "--show", file.Name()).CombinedOutput()
	if err != nil {
		fixture.Missing(b.t, "no loop device (root and a driver are needed): %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	b.t.Cleanup(func() {
		if out, err := exec.Command(losetup, "--detach", device).CombinedOutput(); err != nil {
			b.t.Errorf("detach %s: %v: %s", device, err, out)
		}
	})
	return device
}

// A block device is written in place if the COW fits, to the sector; if not, it
// is no COW afterwards, and the error says how many bytes there should be.
func TestToBlockDevice(t *testing.T) {
	for _, flags := range []string{"--compression zstd", "--format v2 --compression gz"} {
		b := newBox(t)
		b.run("create -o @start @base @target")
		b.run("create " + flags + " -o @cow @base @target")
		want := b.read("cow")
		size := (int64(len(want)) + sector - 1) / sector * sector
		for _, command := range []string{"create " + flags + " -o %s @base @target", "convert --base @base " + flags + " -o %s @start"} {
			enough := b.loopDevice(size)
			b.run(fmt.Sprintf(command, enough))
			b.run("check --base @base --target @target " + enough)
			device := readDevice(t, enough)
			if !bytes.Equal(device[:len(want)], want) || !allAre(device[len(want):], 0xa5) {
				t.Errorf("%s: expected the COW, and what was there behind it", command)
			}
			short := b.loopDevice(size - sector)
			code, _, errs := b.try(fmt.Sprintf(command, short))
			if code != 1 || !strings.Contains(errs, fmt.Sprintf("%d bytes", len(want))) || !strings.Contains(errs, fmt.Sprint(size-sector)) {
				t.Errorf("%s: expected exit code 1 and both sizes, found %d, %q", command, code, errs)
			}
			if code, _, errs := b.try("inspect " + short); code != 1 || !strings.Contains(errs, "not a COW") {
				t.Errorf("%s: expected no COW on the device, found %d, %q", command, code, errs)
			}
		}
	}
}

func readDevice(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func allAre(b []byte, c byte) bool { return bytes.Count(b, []byte{c}) == len(b) }

// A device that is mounted stays as it is.
func TestToMountedDevice(t *testing.T) {
	b := newBox(t)
	b.run("create -o @cow @base @target")
	device := b.loopDevice(16 << 20)
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		mkfs = "/usr/sbin/mkfs.ext4"
	}
	dir := t.TempDir()
	for _, command := range [][]string{{mkfs, "-q", "-F", device}, {"mount", device, dir}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			fixture.Missing(t, "%v: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	for _, command := range []string{"create -o " + device + " @base @target", "convert -o " + device + " @cow", "cat --base @base -o " + device + " @cow"} {
		if code, _, errs := b.try(command); code != 1 || !strings.Contains(errs, "mounted") {
			t.Errorf("%s: expected exit code 1, found %d, %q", command, code, errs)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("still there"), 0o600); err != nil {
		t.Error(err)
	}
}
