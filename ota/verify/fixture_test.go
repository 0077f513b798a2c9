package verify

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowbird/formats/payload"
	"cowbird/tools/fixture"
)

type sidecar struct {
	Name, File string
	PublicKey  string   `json:"public_key"`
	Properties []string `json:"payload_properties"`
	SPL        string   `json:"security_patch_level"`
	dir        string
}

func fixtures(t testing.TB) (all []sidecar) {
	t.Helper()
	dir := filepath.Join(fixture.Dir(t), "payload")
	files, _ := filepath.Glob(filepath.Join(dir, "*.payload.bin"))
	if len(files) == 0 {
		t.Fatalf("expected payloads in %s, found none", dir)
	}
	for _, f := range files {
		s := sidecar{dir: dir}
		if err := json.Unmarshal(read(t, strings.TrimSuffix(f, ".payload.bin")+".json"), &s); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		all = append(all, s)
	}
	return all
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s sidecar) keys(t testing.TB, name string) Keys {
	t.Helper()
	keys, err := ParseKeys(read(t, filepath.Join(s.dir, name)))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func (s sidecar) policy(t testing.TB) Policy {
	t.Helper()
	q, err := payload.ParseProperties([]byte(strings.Join(s.Properties, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return Policy{Properties: q}
}

// Each payload passes with its own key and with no other, if it has one.
func TestFixtures(t *testing.T) {
	signed := 0
	for _, s := range fixtures(t) {
		t.Run(s.Name, func(t *testing.T) {
			b, p := read(t, filepath.Join(s.dir, s.File)), s.policy(t)
			if s.PublicKey == "" {
				checkUnsigned(t, b, p)
				return
			}
			signed++
			expectCode(t, "without keys", install(t, b, p, 1<<20), DownloadMetadataSignatureVerificationError)
			p.Keys = keysOf(t, "other")
			expectCode(t, "another key", install(t, b, p, 1<<20), DownloadMetadataSignatureMismatch)
			p.AllowUnsigned = true
			expectCode(t, "another key, unsigned allowed", install(t, b, p, 1<<20), DownloadMetadataSignatureMismatch)
			p.AllowUnsigned, p.Keys = false, s.keys(t, s.PublicKey)
			expectCode(t, "its own key", install(t, b, p, 100_000), Success)
		})
	}
	if signed < 5 {
		t.Errorf("expected some signed fixtures, found %d", signed)
	}
}

func checkUnsigned(t *testing.T, b []byte, p Policy) {
	t.Helper()
	p.Keys = keysOf(t, "other")
	expectCode(t, "unsigned", install(t, b, p, 1<<20), DownloadMetadataSignatureMissingError)
	p.AllowUnsigned = true
	expectCode(t, "unsigned and allowed", install(t, b, p, 100_000), Success)
}

// One payload has four signatures: one by nobody and three by two
// keys. Each of the keys is enough.
func TestFixtureMultiSig(t *testing.T) {
	for _, s := range fixtures(t) {
		if s.Name != "hand_multi_sig" {
			continue
		}
		b := read(t, filepath.Join(s.dir, s.File))
		for name, want := range map[string]Code{"rsa2048": Success, "ec256": Success, "rsa4096": DownloadMetadataSignatureMismatch} {
			p := s.policy(t)
			p.Keys = append(keysOf(t, "other"), s.keys(t, "keys/"+name+".pub.pem")...)
			expectCode(t, name, install(t, b, p, 10_000), want)
		}
		return
	}
	t.Error("expected hand_multi_sig, found none")
}
