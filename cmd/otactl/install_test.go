package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowbird/tools/fixture"
)

// A full payload is installed from a file and from standard input, once.
func TestInstall(t *testing.T) {
	from, dir := filepath.Join(fixture.Dir(t), "payload"), t.TempDir()
	payload := filepath.Join(from, "full_vabc2_lz4_rsa2048.payload.bin")
	config := filepath.Join(dir, "config.json")
	partitions := map[string]any{}
	var side struct{ Partitions []struct{ Name string } }
	b, err := os.ReadFile(strings.TrimSuffix(payload, ".payload.bin") + ".json")
	if err == nil {
		err = json.Unmarshal(b, &side)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range side.Partitions {
		partitions[p.Name] = map[string]string{"cow": p.Name + ".cow"}
	}
	write := func(values map[string]any) {
		t.Helper()
		b, err := json.Marshal(values)
		if err == nil {
			err = os.WriteFile(config, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	key := filepath.Join(from, "keys", "rsa2048.pub.pem")
	good := map[string]any{"state": "state", "keys": key, "partitions": partitions}
	try := func(stdin []byte, args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		code := run(args, bytes.NewReader(stdin), &out, &errs)
		return code, out.String(), errs.String()
	}
	for name, c := range map[string]struct {
		config map[string]any
		args   string
		code   int
		text   string
	}{
		"no config":     {good, payload, 2, "required flag"},
		"no partition":  {map[string]any{"state": "s", "partitions": map[string]any{"x": map[string]string{"cow": "x"}}}, "--unsigned --config " + config + " " + payload, 1, "expected an entry for partition"},
		"no key":        {map[string]any{"state": "s", "partitions": partitions}, "--config " + config + " " + payload, 1, "expected keys to trust"},
		"another key":   {map[string]any{"state": "s", "keys": filepath.Join(from, "keys", "ec256.pub.pem"), "partitions": partitions}, "--config " + config + " " + payload, 1, "kDownloadMetadataSignatureMismatch"},
		"older":         {map[string]any{"state": "s", "keys": key, "partitions": partitions, "device": map[string]any{"timestamp": 1 << 40}}, "--config " + config + " " + payload, 1, "kPayloadTimestampError"},
		"no payload":    {good, "--config " + config + " " + key, 1, "give the payload.bin itself"},
		"wrong workers": {good, "--workers -1 --config " + config + " " + payload, 2, "--workers"},
	} {
		write(c.config)
		code, _, errs := try(nil, append([]string{"install"}, strings.Fields(c.args)...)...)
		if code != c.code || !strings.Contains(errs, c.text) {
			t.Errorf("%s: expected %d, %q; found %d, %s", name, c.code, c.text, code, errs)
		}
	}
	write(good)
	whole, err := os.ReadFile(payload)
	if err != nil {
		t.Fatal(err)
	}
	code, _, errs := try(whole[:len(whole)/2], "install", "--config", config, "-")
	if code != 1 || !strings.Contains(errs, "get it again") {
		t.Errorf("half of it: expected to be told to get it again, found %d, %s", code, errs)
	}
	other := filepath.Join(from, "full_unsigned.payload.bin")
	if code, _, errs := try(nil, "install", "--unsigned", "--config", config, other); code != 1 {
		t.Errorf("another payload: expected a refusal, found %d, %s", code, errs)
	}
	if code, out, errs := try(whole, "install", "--config", config, "-"); code != 0 || !strings.Contains(out, "installed and verified") {
		t.Errorf("expected it to be installed, found %d, %s, %s", code, out, errs)
	}
	if code, out, errs := try(nil, "install", "--json", "--config", config, payload); code != 0 || !strings.Contains(out, `"done":true`) {
		t.Errorf("again: expected nothing to do, found %d, %s, %s", code, out, errs)
	}
}
