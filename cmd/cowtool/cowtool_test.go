package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// box is a folder with a pair of images and what commands made of them.
type box struct {
	t      *testing.T
	dir    string
	target []byte
}

const boxBlocks = 600

func newBox(t *testing.T) box {
	t.Helper()
	b := box{t: t, dir: t.TempDir()}
	rng := rand.New(rand.NewPCG(7, 7))
	base := make([]byte, boxBlocks*4096)
	for i := range base {
		base[i] = byte(rng.Uint32() & 0x1f) // compresses to about 5 bits of 8
	}
	b.target = bytes.Clone(base)
	copy(b.target[100*4096:200*4096], base[101*4096:]) // moved
	clear(b.target[300*4096 : 320*4096])               // zero
	for i := 400 * 4096; i < 450*4096; i++ {           // new
		b.target[i] = byte(rng.Uint32() & 0x0f)
	}
	b.target = append(b.target, base[:8*4096]...) // larger than the base
	b.write("base", base)
	b.write("target", b.target)
	return b
}

func (b box) path(name string) string { return filepath.Join(b.dir, name) }

func (b box) write(name string, data []byte) {
	b.t.Helper()
	if err := os.WriteFile(b.path(name), data, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b box) read(name string) []byte {
	b.t.Helper()
	data, err := os.ReadFile(b.path(name))
	if err != nil {
		b.t.Fatal(err)
	}
	return data
}

// try runs a command line in which @NAME stands for a file in the box.
func (b box) try(line string) (code int, stdout, stderr string) {
	args := strings.Fields(line)
	for i := range args {
		if name, ok := strings.CutPrefix(args[i], "@"); ok {
			args[i] = b.path(name)
		}
	}
	var out, errs bytes.Buffer
	code = run(args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func (b box) run(line string) string {
	b.t.Helper()
	code, out, errs := b.try(line)
	if code != 0 || errs != "" {
		b.t.Fatalf("cowtool %s: exit code %d: %s", line, code, errs)
	}
	return out
}

func (b box) same(name string, want []byte) {
	b.t.Helper()
	if !bytes.Equal(b.read(name), want) {
		b.t.Errorf("%s is not as it must be", name)
	}
}

func TestThereAndBack(t *testing.T) {
	for _, flags := range []string{"", "--compression zstd,5 --unit 128K", "--compression gz --format v2", "--compression brotli,3 --unit 4K", "--compression none", "--no-xor"} {
		t.Run(flags, func(t *testing.T) {
			b := newBox(t)
			b.run("create " + flags + " -o @cow @base @target")
			b.run("check @cow")
			b.run("check --base @base --target @target @cow")
			b.run("cat --base @base -o @out @cow")
			b.same("out", b.target)
			b.same("base", b.read("base"))
			b.run("merge --base @base --idle-io --nice 3 --batch 1M @cow")
			b.same("base", b.target)
			if out := b.run("merge --base @base @cow"); !strings.Contains(out, "nothing to do") {
				t.Errorf("second merge: found %q", out)
			}
			b.run("cat --base @base -o @out @cow")
			b.same("out", b.target)
			b.run("inspect --ops @cow")
			b.run("inspect --ops --order merge @cow")
		})
	}
}

// The output depends on the input only.
func TestWorkersDoNotMatter(t *testing.T) {
	b := newBox(t)
	var first []byte
	for _, workers := range []string{"1", "2", "7", "0"} {
		b.run("create --compression zstd -o @cow --workers " + workers + " @base @target")
		if first == nil {
			first = b.read("cow")
		}
		b.same("cow", first)
		b.run("cat --base @base -o @out --workers " + workers + " @cow")
		b.same("out", b.target)
	}
}

func TestCheckFindsOut(t *testing.T) {
	b := newBox(t)
	b.run("create -o @cow @base @target")
	sum := sha256.Sum256(b.target)
	if out := b.run("check --base @base --sha256 " + hex.EncodeToString(sum[:]) + " @cow"); !strings.Contains(out, "as it must be") {
		t.Errorf("found %q", out)
	}
	if code, _, errs := b.try("check --base @base --sha256 " + strings.Repeat("0", 64) + " @cow"); code != 1 || !strings.HasPrefix(errs, "cowtool: ") {
		t.Errorf("another checksum: expected exit code 1, found %d, %q", code, errs)
	}
	if code, _, _ := b.try("check --base @base --target @base @cow"); code != 1 {
		t.Errorf("another target: expected exit code 1, found %d", code)
	}
	damaged := b.read("cow")
	damaged[len(damaged)-10] ^= 0xff
	b.write("damaged", damaged)
	if code, _, _ := b.try("check --base @base --target @target @damaged"); code != 1 {
		t.Errorf("damaged data: expected exit code 1, found %d", code)
	}
	b.write("short", damaged[:len(damaged)-5000])
	for _, command := range []string{"check @short", "cat --base @base -o @out @short", "merge --base @base @short", "map -o @m.png @short"} {
		if code, _, errs := b.try(command); code != 1 || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: expected exit code 1 and one line, found %d, %q", command, code, errs)
		}
	}
	if _, err := os.Stat(b.path("out")); err == nil {
		t.Error("expected no output of a failed command")
	}
}

func TestUsage(t *testing.T) {
	b := newBox(t)
	b.run("create -o @cow @base @target")
	for _, line := range []string{
		"bogus", "create", "create @base @target", "create -o @x @base", "create -o @x --bogus @base @target",
		"create -o @x --format v4 @base @target", "create -o @x --format v2 --unit 64K @base @target",
		"create -o @x --unit 3K @base @target", "create -o @x --unit 512K @base @target", "create -o @x --unit big @base @target",
		"create -o @x --compression lzma @base @target", "create -o @x --compression zstd,high @base @target",
		"create -o @x --workers -1 @base @target", "create -o @base @base @target",
		"convert @cow", "convert -o @x", "convert -o @x @cow @cow", "convert -o @cow @cow", "convert -o @x --format v1 @cow", "convert -o @x --format v2 --unit 8K @cow",
		"convert -o @x --unit 0 @cow", "convert -o @x --unit 512K @cow", "convert -o @x --compression lzma @cow", "convert -o @x --compression gz,99 @cow", "convert -o @x --workers -1 @cow",
		"convert -o @base --base @base @cow", "convert -o @x --base @base --ignore-progress @cow",
		"estimate", "estimate @base", "estimate --cow @cow @base @target", "estimate --cow @cow --no-xor", "estimate --no-scratch @base @target", "estimate --ignore-progress @base @target",
		"estimate --format v2 --unit 64K @base @target", "estimate --cow @cow --compression zstd,high", "estimate --format= @base @target",
		"inspect", "inspect --order sideways @cow", "inspect --block -1 @cow", "inspect --block 4294967296 @cow",
		"check --target @target @cow", "check --base @base --target @target --sha256 00 @cow", "check --base @base --sha256 12 @cow",
		"cat @cow", "cat --base @base @cow", "cat --base @base -o - --json @cow", "cat --base @base -o @cow @cow",
		"merge @cow", "create --scratch 100K -o @o @base @target", "estimate --scratch 1G @base @target", "estimate --scratch 4M --cow @cow", "merge --base @base --rate fast @cow", "merge --base @base --batch 1000 @cow", "merge --base @base --nice -1 @cow", "map @cow", "map -o @m.gif @cow",
	} {
		code, out, errs := b.try(line)
		if code != 2 || out != "" || !strings.HasPrefix(errs, "cowtool: ") || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "--help") {
			t.Errorf("cowtool %s: expected exit code 2 and one line, found %d, %q, %q", line, code, out, errs)
		}
	}
}

func TestFailures(t *testing.T) {
	b := newBox(t)
	b.run("create -o @cow @base @target")
	b.write("odd", make([]byte, 5000))
	b.write("small", make([]byte, 4096))
	for _, line := range []string{
		"create -o @x @base @nosuch", "create -o @x @nosuch @target", "create -o @x @base @odd", "create -o @nosuch/x @base @target", "create -o @. @base @target",
		"convert -o @x @base", "convert -o @x @nosuch", "convert -o @nosuch/x @cow", "convert -o @x --base @small @cow",
		"estimate @base @odd", "estimate @base @nosuch", "estimate --cow @base", "estimate --cow @nosuch",
		"inspect @nosuch", "inspect @base", "inspect @.", "check @base", "cat --base @small -o @x @cow", "cat --base @base --size 4096 -o @x @cow",
		"merge --base @small @cow", "merge --base @nosuch @cow", "map -o @x.png @base",
	} {
		code, out, errs := b.try(line)
		if code != 1 || out != "" || !strings.HasPrefix(errs, "cowtool: ") || strings.Count(errs, "\n") != 1 {
			t.Errorf("cowtool %s: expected exit code 1 and one line, found %d, %q, %q", line, code, out, errs)
		}
	}
	left, _ := filepath.Glob(b.path(".*"))
	if len(left) > 0 {
		t.Errorf("expected no temporary files, found %q", left)
	}
}

func TestOutputTakesItsPlace(t *testing.T) {
	b := newBox(t)
	b.write("real", []byte("old"))
	if err := os.Symlink("real", b.path("link")); err != nil {
		t.Fatal(err)
	}
	b.run("create -o @link @base @target")
	if st, err := os.Lstat(b.path("link")); err != nil || st.Mode()&os.ModeSymlink == 0 {
		t.Error("expected the link to stay a link")
	}
	b.run("check @real")
}

func TestCatToStandardOutput(t *testing.T) {
	b := newBox(t)
	b.run("create -o @cow @base @target")
	if out := b.run("cat --base @base -o - @cow"); out != string(b.target) {
		t.Error("expected the target")
	}
	if out := b.run("cat --base @base -o - --size 4194304 @cow"); len(out) != 4<<20 {
		t.Errorf("expected 4 MiB, found %d bytes", len(out))
	}
}

func lastLine(t *testing.T, out string) map[string]any {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var v map[string]any
	for _, line := range lines {
		v = nil
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	return v
}

func TestJSON(t *testing.T) {
	b := newBox(t)
	created := lastLine(t, b.run("create --json -o @cow @base @target"))
	if created["event"] != "result" || created["cow_size"] != float64(len(b.read("cow"))) {
		t.Errorf("create: found %v", created)
	}
	if v := lastLine(t, b.run("inspect --json @cow")); v["version"] != "3.0" || v["size"] != created["cow_size"] {
		t.Errorf("inspect: found %v", v)
	}
	if v := lastLine(t, b.run("inspect --json --ops @cow")); v["event"] != "op" {
		t.Errorf("inspect --ops: found %v", v)
	}
	if v := lastLine(t, b.run("inspect --json --block 305 @cow")); v["type"] != "zero" || v["merged"] != false {
		t.Errorf("inspect --block: found %v", v)
	}
	sum := sha256.Sum256(b.target)
	if v := lastLine(t, b.run("check --json --base @base @cow")); v["sha256"] != hex.EncodeToString(sum[:]) {
		t.Errorf("check: found %v", v)
	}
	if v := lastLine(t, b.run("cat --json --base @base -o @out @cow")); v["bytes"] != float64(len(b.target)) {
		t.Errorf("cat: found %v", v)
	}
	if v := lastLine(t, b.run("map --json -o @m.svg @cow")); v["event"] != "result" {
		t.Errorf("map: found %v", v)
	}
	merged := lastLine(t, b.run("merge --json --base @base @cow"))
	if n, ok := merged["blocks_written"].(float64); !ok || n < 100 || merged["syncs"] == nil {
		t.Errorf("merge: found %v", merged)
	}
	if v := lastLine(t, b.run("merge --json --base @base @cow")); v["blocks_written"] != 0.0 {
		t.Errorf("second merge: found %v", v)
	}
}

func TestInspectBlock(t *testing.T) {
	b := newBox(t)
	b.run("create -o @cow @base @target")
	for block, want := range map[string]string{"0": "no op", "150": "copy block 150", "310": "zero block 310", "420": "replace block", "4294967295": "no op"} {
		if out := b.run("inspect --block " + block + " @cow"); !strings.Contains(out, want) {
			t.Errorf("block %s: expected %q, found %q", block, want, out)
		}
	}
	b.run("merge --base @base @cow")
	if out := b.run("inspect --block 150 @cow"); !strings.Contains(out, "merged") {
		t.Errorf("found %q", out)
	}
}

// A version 2 file without its end is told as such, with what can be saved.
func TestInspectCutOff(t *testing.T) {
	b := newBox(t)
	b.run("create --format v2 --compression gz -o @cow @base @target")
	whole := b.read("cow")
	b.write("cut", whole[:len(whole)-100])
	out := b.run("inspect @cut")
	if !strings.Contains(out, "incomplete") || !strings.Contains(out, "labels") {
		t.Errorf("found %q", out)
	}
	if v := lastLine(t, b.run("inspect --json @cut")); v["incomplete"] == nil {
		t.Errorf("found %v", v)
	}
	b.run("inspect --ops @cut")
	if code, _, _ := b.try("inspect --block 1 @cut"); code != 1 {
		t.Errorf("--block: expected exit code 1, found %d", code)
	}
}

func TestMap(t *testing.T) {
	b := newBox(t)
	b.run("create -o @cow @base @target")
	for _, name := range []string{"m.png", "m.svg", "M.PNG"} {
		b.run("map -o @" + name + " @cow")
		first := b.read(name)
		b.run("map --base @base -o @" + name + " @cow")
		b.same(name, first) // the COW covers more than the base
	}
	img, err := png.Decode(bytes.NewReader(b.read("m.png")))
	if err != nil || img.Bounds().Dx() < 500 {
		t.Fatalf("expected a picture, found %v, %v", img, err)
	}
	svg := string(b.read("m.svg"))
	for _, want := range []string{"<svg ", "</svg>", hexColour(kindColours[copied]), "blocks 0 to", "cow"} {
		if !strings.Contains(svg, want) {
			t.Errorf("expected %q in the SVG", want)
		}
	}
	b.run("map --size 1T -o @large.png @cow")
	b.run("map --cost -o @cost.svg @cow")
	if cost := string(b.read("cost.svg")); cost == svg || !strings.Contains(cost, "bytes of the COW") {
		t.Error("expected another picture that tells of bytes")
	}
}

func TestPictureCounts(t *testing.T) {
	for blocks, want := range map[int64][2]int64{1: {1, 1}, 8192: {1, 8192}, 8193: {2, 4097}, 1 << 28: {32768, 8192}} {
		p := &picture{blocks: blocks}
		p.layOut()
		if p.perCell != want[0] || int64(len(p.cells)) != want[1] || p.columns > maxColumns || p.rows() > maxRows {
			t.Errorf("%d blocks: expected %v, found %d to a cell, %d cells, %d by %d", blocks, want, p.perCell, len(p.cells), p.columns, p.rows())
		}
	}
	var p picture
	p.cells = []cell{
		{blocks: [kinds]int64{unchanged: 7, copied: 1}},
		{blocks: [kinds]int64{copied: 2, replaced: 3, xored: 1}, stored: [kinds]int64{replaced: 100, xored: 200}},
		{blocks: [kinds]int64{copied: 6}},
	}
	if c := p.colour(0); c == kindColours[unchanged] || c == kindColours[copied] {
		t.Errorf("a cell with few copies: expected a colour in between, found %v", c)
	}
	if c := p.colour(1); c != kindColours[replaced] {
		t.Errorf("a cell of all kinds: expected that of most blocks, found %v", c)
	}
	p.cost = true
	if c, xor := p.colour(1), kindColours[xored]; c == xor || c != mix(kindColours[unchanged], xor, 30) {
		t.Errorf("what costs little: expected a pale colour of what costs most, found %v", c)
	}
	if c := p.colour(2); c != kindColours[unchanged] {
		t.Errorf("what costs nothing: expected no colour, found %v", c)
	}
	p.cells[1].stored[xored] = 6 * 4096
	if c := p.colour(1); c != kindColours[xored] {
		t.Errorf("what costs all: expected the full colour, found %v", c)
	}
}

// Every character that pictures use of their own accord is on the sheet.
func TestFont(t *testing.T) {
	font := loadFont()
	for _, r := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .,:-+_/()%=#@?" {
		if g, ok := font[r]; !ok || r != ' ' && g == (glyph{}) {
			t.Errorf("%q: expected a glyph, found none", r)
		}
	}
}

func TestHelp(t *testing.T) {
	b := newBox(t)
	for _, command := range []string{"", "create", "convert", "estimate", "inspect", "check", "cat", "merge", "map"} {
		if out := b.run(command + " --help"); !strings.Contains(out, "Examples:") {
			t.Errorf("%s: expected examples in %q", command, out)
		}
	}
	if out := b.run("--help"); !strings.Contains(out, "2 usage") {
		t.Errorf("expected exit codes in %q", out)
	}
	if out := b.run("completion bash"); !strings.Contains(out, "cowtool") {
		t.Error("expected a completion script")
	}
	for _, command := range []string{"create", "convert", "estimate"} {
		for flag, want := range map[string]string{"--unit 6": "64K", "--format v": "v2", "--compression zs": "zstd,19"} {
			if _, out, _ := b.try("__complete " + command + " " + flag); !strings.Contains(out, want) {
				t.Errorf("%s %s: expected %s to be offered, found %q", command, flag, want, out)
			}
		}
	}
}

// A COW that another process serves is not merged.
func TestClaimed(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs flock")
	}
	b := newBox(t)
	b.run("create -o @cow @base @target")
	c, base, err := openForMerge(b.path("cow"), b.path("base"))
	if err != nil {
		t.Fatal(err)
	}
	defer devices{c, base}.close()
	if code, _, errs := b.try("merge --base @base @cow"); code != 1 || !strings.Contains(errs, "in use by another process") {
		t.Errorf("expected exit code 1, found %d, %q", code, errs)
	}
	b.run("inspect @cow")
}
