package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"cowbird/formats/lpmeta"
)

// superSize is what the tests' super partitions have; createSuper makes one.
const (
	superSize   = 16 << 20
	createSuper = "super create --size 16M --group main_a:8M --group main_b:8M --partition system_a:main_a=SYSTEM --partition vendor_a:main_a:1M --partition system_b:main_b -o @"
)

func newSuperBox(t *testing.T) box {
	t.Helper()
	b := newBox(t)
	b.run(strings.ReplaceAll(createSuper, "SYSTEM", b.path("target")) + "super.img")
	return b
}

func (b box) superMetadata(name string, slot int) *lpmeta.Metadata {
	b.t.Helper()
	m, err := lpmeta.Read(bytes.NewReader(b.read(name)), slot)
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

func TestSuperThereAndBack(t *testing.T) {
	b := newSuperBox(t)
	if n := len(b.read("super.img")); n != superSize {
		t.Errorf("expected %d bytes, found %d", superSize, n)
	}
	if !b.superMetadata("super.img", 0).Equal(b.superMetadata("super.img", 1)) {
		t.Error("expected the same metadata in both slots")
	}
	b.run("super unpack -o @out @super.img")
	b.same("out/system_a.img", b.target)
	b.same("out/vendor_a.img", make([]byte, 1<<20))
	if left, err := os.ReadDir(b.path("out")); err != nil || len(left) != 2 {
		t.Errorf("expected no image of the empty partition, found %v, %v", left, err)
	}
	b.run("super unpack -o @some --slot 1 --partition sys* @super.img")
	if left, err := os.ReadDir(b.path("some")); err != nil || len(left) != 1 {
		t.Errorf("expected system_a.img alone, found %v, %v", left, err)
	}
	first := b.read("super.img")
	b.run(strings.ReplaceAll(createSuper, "SYSTEM", b.path("target")) + "again.img")
	b.same("again.img", first)
}

// LPI-015: a sparse image has both copies of geometry and metadata, by our reader
// and by Android's.
func TestSuperSparse(t *testing.T) {
	b := newSuperBox(t)
	b.run(strings.ReplaceAll(createSuper, "SYSTEM", b.path("target")) + "super.simg --sparse")
	if n := len(b.read("super.simg")); n >= superSize/2 {
		t.Errorf("expected a smaller file, found %d bytes", n)
	}
	if out := b.run("super check @super.simg"); strings.Count(out, "good") != 3 {
		t.Errorf("expected that geometry and both slots are good, found %s", out)
	}
	b.run("super unpack -o @out @super.simg")
	b.same("out/system_a.img", b.target)
	simg2img, err := exec.LookPath("simg2img")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("expected simg2img, which tools/setup.sh test installs, found none")
	}
	if err != nil {
		t.Skip("simg2img is not installed: tools/setup.sh test does so")
	}
	if out, err := exec.Command(simg2img, b.path("super.simg"), b.path("raw")).CombinedOutput(); err != nil {
		t.Fatalf("simg2img: %v\n%s", err, out)
	}
	b.same("raw", b.read("super.img"))
}

func TestSuperInfo(t *testing.T) {
	b := newSuperBox(t)
	out := b.run("super info @super.img")
	for _, want := range []string{"version 10.0", "2 slots of 65536 bytes", "main_a, at most 8388608 bytes", "system_a, ", "sectors of super from 2048 on", "free"} {
		if !strings.Contains(out, want) {
			t.Errorf("expected %q in\n%s", want, out)
		}
	}
	var f superFacts
	if err := json.Unmarshal([]byte(b.run("super info --slot 1 --json @super.img")), &f); err != nil {
		t.Fatal(err)
	}
	if len(f.Partitions) != 3 || f.Partitions[0].Size != uint64(len(b.target)) || f.Alone || f.Slot != 1 || len(f.Free) == 0 {
		t.Errorf("found %+v", f)
	}
	var image bytes.Buffer
	if err := lpmeta.WriteImage(&image, b.superMetadata("super.img", 0)); err != nil {
		t.Fatal(err)
	}
	b.write("super_empty.img", image.Bytes())
	if out := b.run("super info --json @super_empty.img"); !strings.Contains(out, `"metadata_only":true`) {
		t.Errorf("expected metadata alone, found %s", out)
	}
	b.run("super check @super_empty.img")
	if code, _, errs := b.try("super unpack -o @out @super_empty.img"); code != 1 || !strings.Contains(errs, "metadata alone") {
		t.Errorf("expected that metadata alone are not unpacked, found %d, %s", code, errs)
	}
}

func TestSuperCheck(t *testing.T) {
	b := newSuperBox(t)
	good := b.read("super.img")
	g := b.superMetadata("super.img", 0).Geometry
	for name, c := range map[string]struct {
		at   []int64
		text string
	}{
		"primary geometry": {[]int64{4100}, "geometry: the primary copy is damaged"},
		"backup geometry":  {[]int64{8200}, "geometry: the backup copy is damaged"},
		"primary of slot":  {[]int64{g.Offset(1, false) + 130}, "slot 1: the primary copy is damaged"},
		"both of slot":     {[]int64{g.Offset(1, false) + 130, g.Offset(1, true) + 130}, "nothing but flashing"},
	} {
		bad := bytes.Clone(good)
		for _, at := range c.at {
			bad[at] ^= 1
		}
		b.write("bad.img", bad)
		code, out, errs := b.try("super check @bad.img")
		if code != 1 || !strings.Contains(out, c.text) || !strings.Contains(out, "repaired by") || !strings.Contains(errs, "damaged") {
			t.Errorf("%s: expected 1 and %q, found %d, %s, %s", name, c.text, code, out, errs)
		}
		if code, out, _ := b.try("super check --json @bad.img"); code != 1 || !strings.Contains(out, `"good":false`) {
			t.Errorf("%s: expected that JSON tells, found %d, %s", name, code, out)
		}
	}
	if out := b.run("super check @super.img"); strings.Count(out, "good") != 3 {
		t.Errorf("expected that all is good, found %s", out)
	}
}

func TestSuperRefused(t *testing.T) {
	b := newSuperBox(t)
	for line, c := range map[string]struct {
		code int
		text string
	}{
		"super info @base":                                                            {1, "give a super partition"},
		"super info --slot 2 @super.img":                                              {1, "no such slot"},
		"super info @none":                                                            {1, "no such file"},
		"super check @base":                                                           {1, "damaged"},
		"super unpack @super.img":                                                     {2, "required flag"},
		"super unpack -o @out --partition x @super.img":                               {1, "found none"},
		"super unpack -o @out --partition [ @super.img":                               {2, "syntax error"},
		"super create -o @x":                                                          {2, "required flag"},
		"super create -o @x --size 1000":                                              {1, "multiple of 4096"},
		"super create -o @x --size 8M --metadata-size 4G":                             {2, "less than 4G"},
		"super create -o @x --size 8M --group main":                                   {2, "NAME:MAX"},
		"super create -o @x --size 8M --group default:0":                              {1, "unusable name"},
		"super create -o @x --size 8M --partition a":                                  {2, "NAME:GROUP"},
		"super create -o @x --size 8M --partition a:default:x":                        {2, "number of bytes"},
		"super create -o @x --size 8M --partition a:none":                             {1, "group"},
		"super create -o @x --size 8M --partition a:default:9M":                       {1, "no space left"},
		"super create -o @x --size 8M --group g:1M --partition a:g:2M":                {1, "no space left"},
		"super create -o @x --size 8M --partition a:default=" + b.path("none"):        {1, "no such file"},
		"super create -o @target --size 8M --partition a:default=" + b.path("target"): {2, "give another -o"},
	} {
		code, _, errs := b.try(line)
		if code != c.code || !strings.Contains(errs, c.text) {
			t.Errorf("%s: expected %d, %q; found %d, %s", line, c.code, c.text, code, errs)
		}
	}
	if _, err := os.Stat(b.path("x")); err == nil {
		t.Error("expected that nothing is left of what was refused")
	}
}
