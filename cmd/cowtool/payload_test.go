package main

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowbird/tools/fixture"
)

const payloadSample = "delta_partial_multi"

// newPayloadBox has a payload of the fixtures, its zip and its old partitions.
func newPayloadBox(t *testing.T) (b box, sums map[string]string) {
	t.Helper()
	dir := filepath.Join(fixture.Dir(t), "payload")
	b = box{t: t, dir: t.TempDir()}
	data, err := os.ReadFile(filepath.Join(dir, payloadSample+".payload.bin"))
	if err != nil {
		t.Fatal(err)
	}
	b.write("payload.bin", data)
	b.write("ota.zip", zipOf(t, data))
	side, err := os.ReadFile(filepath.Join(dir, payloadSample+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var facts struct {
		Partitions []struct {
			Name string
			Old  *struct{ File string }
			New  struct{ Sha256 string }
		}
	}
	if err := json.Unmarshal(side, &facts); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(b.path("old"), 0o700); err != nil {
		t.Fatal(err)
	}
	sums = map[string]string{}
	for _, p := range facts.Partitions {
		sums[p.Name] = p.New.Sha256
		if p.Old != nil {
			b.write("old/"+p.Name, fixture.Gunzip(t, filepath.Join(dir, p.Old.File)))
		}
	}
	return b, sums
}

func zipOf(t *testing.T, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	w, err := z.CreateHeader(&zip.FileHeader{Name: "payload.bin", Method: zip.Store})
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestPayloadApply(t *testing.T) {
	b, sums := newPayloadBox(t)
	out := b.run("payload apply --old @old -o @new @ota.zip")
	for name, want := range sums {
		if got := fmt.Sprintf("%x", sha256.Sum256(b.read("new/"+name+".img"))); got != want {
			t.Errorf("%s: expected SHA-256 %s, found %s", name, want, got)
		}
		if !strings.Contains(out, name+".img") {
			t.Errorf("expected %s in the output, found %s", name, out)
		}
	}
	b.run("payload apply --old @old -o @some --partition b*,vendor --json @payload.bin")
	left, err := filepath.Glob(b.path("some/*"))
	if err != nil || len(left) != 2 {
		t.Errorf("expected boot.img and vendor.img, found %v, %v", left, err)
	}
}

func TestPayloadRefused(t *testing.T) {
	b, _ := newPayloadBox(t)
	damaged := b.read("payload.bin")
	damaged[len(damaged)/2] ^= 1
	b.write("damaged", damaged)
	b.write("short", damaged[:20000])
	for line, c := range map[string]struct {
		code int
		text string
	}{
		"payload extract -o @new @payload.bin":                             {1, "since this is a delta"},
		"payload apply --old @old -o @new @damaged":                        {1, "damaged payload data"},
		"payload apply --old @old -o @new @short":                          {1, "get it again"},
		"payload apply --old @old -o @old @payload.bin":                    {2, "give another -o"},
		"payload apply --old @old -o @new --partition x @payload.bin":      {1, "found none"},
		"payload apply --old @old -o @new --partition [ @payload.bin":      {2, "syntax error"},
		"payload apply --old @old -o @new --workers -1 @payload.bin":       {2, "--workers"},
		"payload apply -o @new @payload.bin":                               {2, "required flag"},
		"payload info @old/boot":                                           {1, "give a payload.bin"},
		"payload info --secondary @ota.zip":                                {1, "secondary/payload.bin"},
		"payload info @none":                                               {1, "no such file"},
		"payload apply --old @old -o @new --partition system,boot @ota.no": {1, "no such file"},
	} {
		code, _, errs := b.try(line)
		if code != c.code || !strings.Contains(errs, c.text) {
			t.Errorf("%s: expected %d, %q; found %d, %s", line, c.code, c.text, code, errs)
		}
	}
	if left, _ := filepath.Glob(b.path("new/*.part")); len(left) > 0 {
		t.Errorf("expected no images that are not complete, found %v", left)
	}
}

func TestPayloadFacts(t *testing.T) {
	b, sums := newPayloadBox(t)
	var f payloadFacts
	if err := json.Unmarshal([]byte(b.run("payload info --json @ota.zip")), &f); err != nil {
		t.Fatal(err)
	}
	if !f.Delta || !f.Partial || f.Minor != 9 || len(f.Partitions) != len(sums) || len(f.Signatures) != 1 || f.CowVersion != 3 {
		t.Errorf("expected what the fixture has, found %+v", f)
	}
	for _, p := range f.Partitions {
		if p.NewSHA256 != sums[p.Name] {
			t.Errorf("%s: expected SHA-256 %s, found %s", p.Name, sums[p.Name], p.NewSHA256)
		}
	}
	text := b.run("payload info @payload.bin")
	for _, want := range []string{"partial delta", "group", "ga", "201 PUFFDIFF", "after installation"} {
		if !strings.Contains(text, want) {
			t.Errorf("expected %q in\n%s", want, text)
		}
	}
	lines := strings.Split(strings.TrimSpace(b.run("payload list --json --partition vendor @payload.bin")), "\n")
	if len(lines) != 17 {
		t.Errorf("expected 17 operations, found %d", len(lines))
	}
	if text := b.run("payload list --partition vendor @payload.bin"); strings.Count(text, "\n") != 17 || !strings.Contains(text, "LZ4DIFF_PUFFDIFF") {
		t.Errorf("expected 17 operations, found\n%s", text)
	}
	stats := b.run("payload diff-stats --partition system @payload.bin")
	if strings.Count(stats, "\n") != 5 || !strings.Contains(stats, "BROTLI_BSDIFF") {
		t.Errorf("expected 4 types, found\n%s", stats)
	}
	if text := b.run("payload diff-stats --json --partition system @payload.bin"); strings.Count(text, "\n") != 4 {
		t.Errorf("expected 4 types, found\n%s", text)
	}
}

// The picture is the same each time, and shows each partition and type.
func TestPayloadMap(t *testing.T) {
	b, sums := newPayloadBox(t)
	b.run("payload map -o @one.svg @payload.bin")
	b.run("payload map -o @two.svg @payload.bin")
	one := b.read("one.svg")
	if !bytes.Equal(one, b.read("two.svg")) {
		t.Error("expected the same picture twice")
	}
	if err := xml.Unmarshal(one, new(struct{})); err != nil {
		t.Errorf("expected XML, found %v", err)
	}
	for name := range sums {
		if !bytes.Contains(one, []byte(">"+name+"<")) {
			t.Errorf("expected partition %s in the picture", name)
		}
	}
	for _, want := range []string{"PUFFDIFF: 195800 bytes in 201 operations", ">ZERO<", ">LZ4DIFF_PUFFDIFF<"} {
		if !bytes.Contains(one, []byte(want)) {
			t.Errorf("expected %q in the picture", want)
		}
	}
	if code, _, errs := b.try("payload map -o @x.png @payload.bin"); code != 2 {
		t.Errorf("a PNG: expected to be refused, found %d, %s", code, errs)
	}
}

func TestPayloadVerify(t *testing.T) {
	b, _ := newPayloadBox(t)
	keys := filepath.Join(fixture.Dir(t), "payload", "keys")
	good, other := filepath.Join(keys, "rsa4096.pub.pem"), filepath.Join(keys, "rsa2048.pub.pem")
	if out := b.run("payload verify --key " + good + " @ota.zip"); !strings.Contains(out, "signed by one of 1 keys") {
		t.Errorf("expected it to be good, found %s", out)
	}
	b.run("payload verify --json --unsigned @payload.bin")
	whole := b.read("payload.bin")
	sum, size := sha256.Sum256(whole), len(whole)
	b.write("properties", fmt.Appendf(nil, "FILE_HASH=%s\nFILE_SIZE=%d\n", base64.StdEncoding.EncodeToString(sum[:]), size))
	b.run("payload verify --properties @properties --key " + good + " --key " + other + " @payload.bin")
	b.write("wrong", []byte("FILE_SIZE=5\n"))
	damaged := bytes.Clone(whole)
	damaged[len(damaged)/2] ^= 1
	b.write("damaged", damaged)
	damaged = bytes.Clone(whole)
	damaged[2000] ^= 1
	b.write("forged", damaged)
	for line, c := range map[string]struct {
		code int
		text string
	}{
		"payload verify @payload.bin":                                       {2, "expected --key"},
		"payload verify --key @none @payload.bin":                           {1, "no such file"},
		"payload verify --key @properties @payload.bin":                     {1, "public key"},
		"payload verify --key " + other + " @payload.bin":                   {1, "kDownloadMetadataSignatureMismatch"},
		"payload verify --key " + good + " @forged":                         {1, "kDownload"},
		"payload verify --key " + good + " @damaged":                        {1, "kDownloadPayloadPubKeyVerificationError"},
		"payload verify --key " + good + " --zip-signature @ota.zip":        {1, "not signed"},
		"payload verify --key " + good + " --zip-signature @payload.bin":    {1, "give an OTA zip"},
		"payload verify --unsigned --zip-signature @ota.zip":                {2, "--key"},
		"payload verify --unsigned @damaged":                                {1, "damaged payload data"},
		"payload verify --unsigned --properties @wrong @payload.bin":        {1, "kPayloadSizeMismatchError"},
		"payload verify --unsigned --properties @damaged @payload.bin":      {1, "properties"},
		"payload verify --unsigned --security-patch-level 2030 @ota.zip":    {1, "kPayloadTimestampError"},
		"payload verify --unsigned @old/boot":                               {1, "kDownloadInvalidMetadataMagicString"},
		"payload verify --unsigned --partition nothing @payload.bin":        {1, "found none"},
		"payload verify --unsigned --secondary @ota.zip --key " + good + "": {1, "secondary/payload.bin"},
	} {
		code, _, errs := b.try(line)
		if code != c.code || !strings.Contains(errs, c.text) {
			t.Errorf("%s: expected %d, %q; found %d, %s", line, c.code, c.text, code, errs)
		}
	}
}
