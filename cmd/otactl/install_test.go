package main

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cowbird/formats/payload"
	"cowbird/tools/fixture"
)

// A full payload is installed from a file and from standard input, once.
func TestInstall(t *testing.T) {
	from, dir := filepath.Join(fixture.Dir(t), "payload"), t.TempDir()
	file := filepath.Join(from, "full_vabc2_lz4_rsa2048.payload.bin")
	config := filepath.Join(dir, "config.json")
	partitions := map[string]any{}
	var side struct{ Partitions []struct{ Name string } }
	b, err := os.ReadFile(strings.TrimSuffix(file, ".payload.bin") + ".json")
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
		"no config":     {good, file, 1, "name it with --config"},
		"no partition":  {map[string]any{"state": "s", "partitions": map[string]any{"x": map[string]string{"cow": "x"}}}, "--unsigned --config " + config + " " + file, 1, "expected an entry for partition"},
		"no key":        {map[string]any{"state": "s", "partitions": partitions}, "--config " + config + " " + file, 1, "expected keys to trust"},
		"another key":   {map[string]any{"state": "s", "keys": filepath.Join(from, "keys", "ec256.pub.pem"), "partitions": partitions}, "--config " + config + " " + file, 1, "kDownloadMetadataSignatureMismatch"},
		"older":         {map[string]any{"state": "s", "keys": key, "partitions": partitions, "device": map[string]any{"timestamp": int64(1) << 40}}, "--config " + config + " " + file, 1, "kPayloadTimestampError"},
		"no payload":    {good, "--config " + config + " " + key, 1, "give the payload.bin itself"},
		"wrong workers": {good, "--workers -1 --config " + config + " " + file, 2, "--workers"},
	} {
		write(c.config)
		code, _, errs := try(nil, append([]string{"install"}, strings.Fields(c.args)...)...)
		if code != c.code || !strings.Contains(errs, c.text) {
			t.Errorf("%s: expected %d, %q; found %d, %s", name, c.code, c.text, code, errs)
		}
	}
	write(good)
	whole, err := os.ReadFile(file)
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
	if code, out, errs := try(nil, "install", "--json", "--config", config, file); code != 0 || !strings.Contains(out, `"done":true`) {
		t.Errorf("again: expected nothing to do, found %d, %s, %s", code, out, errs)
	}
}

// A payload comes from a server, alone or in a zip, over a line that is cut.
func TestInstallURL(t *testing.T) {
	from := filepath.Join(fixture.Dir(t), "payload")
	whole, err := os.ReadFile(filepath.Join(from, "full_unsigned.payload.bin"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := payload.Read(bytes.NewReader(whole), int64(len(whole)), payload.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	partitions := map[string]any{}
	for _, p := range m.Manifest.GetPartitions() {
		partitions[p.GetPartitionName()] = map[string]string{"new": p.GetPartitionName() + ".img"}
	}
	config, err := json.Marshal(map[string]any{"state": "state", "partitions": partitions})
	if err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	z := zip.NewWriter(&zipped)
	w, err := z.CreateHeader(&zip.FileHeader{Name: payload.EntryName, Method: zip.Store})
	if err == nil {
		_, err = w.Write(whole)
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string][]byte{"payload.bin": whole, "ota.zip": zipped.Bytes()} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(file))
				requests.Add(1)
			}))
			defer server.Close()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
				t.Fatal(err)
			}
			var out, errs bytes.Buffer
			code := run([]string{"install", "--unsigned", "--config", filepath.Join(dir, "config.json"), server.URL + "/" + name}, nil, &out, &errs)
			if code != 0 || requests.Load() > 12 {
				t.Fatalf("expected it to be installed by few requests, found %d after %d, %s", code, requests.Load(), errs.String())
			}
			for _, p := range m.Manifest.GetPartitions() {
				got, err := os.ReadFile(filepath.Join(dir, p.GetPartitionName()+".img"))
				if sum := sha256.Sum256(got); err != nil || !bytes.Equal(sum[:], p.GetNewPartitionInfo().GetHash()) {
					t.Errorf("%s: expected the new partition, found %d bytes, %v", p.GetPartitionName(), len(got), err)
				}
			}
		})
	}
}
