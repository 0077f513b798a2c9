package generate

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/formats/sparse"
	"cowbird/ota/verify"
)

// A package is found, and is where its own lists say.
func TestPackage(t *testing.T) {
	key, trust := newKey(t, "rsa")
	p, err := Create(t.Context(), Options{Partitions: []Partition{{Name: "boot", New: imageOf(bytes.Repeat([]byte("cowbird "), 4096))}}})
	must(t, err)
	defer p.Close()
	var b, z bytes.Buffer
	w, err := p.Write(&b, []Signer{key})
	must(t, err)
	meta := &pb.OtaMetadata{Type: pb.OtaMetadata_AB, Precondition: &pb.DeviceState{Device: []string{"bird"}}, Postcondition: &pb.DeviceState{Timestamp: 7}}
	must(t, WritePackage(&z, bytes.NewReader(b.Bytes()), int64(b.Len()), w, meta))
	in, err := payload.InZip(bytes.NewReader(z.Bytes()), int64(z.Len()), "")
	must(t, err)
	keys, err := verify.ParseKeys(trust)
	must(t, err)
	inside := z.Bytes()[in.Payload.Offset:][:in.Payload.Size]
	_, err = verify.Read(bytes.NewReader(inside), in.Payload.Size, verify.Policy{Keys: keys, Properties: in.Properties, Package: in.Metadata, Device: verify.Device{Name: "bird"}})
	must(t, err)
	files := in.Metadata.GetPropertyFiles()
	if len(files) != 2 {
		t.Errorf("expected two lists, found %v", files)
	}
	begins := map[string]string{"payload.bin": "CrAU", "payload_metadata.bin": "CrAU", "payload_properties.txt": "FILE_HASH=", "metadata": "ota-", "metadata.pb": "\x08\x01"}
	for list, value := range files {
		entries := strings.Split(strings.TrimSpace(value), ",")
		if want := map[string]int{streamingFiles: 4, allFiles: 5}[list]; len(entries) != want {
			t.Errorf("%s: expected %d entries, found %q", list, want, entries)
		}
		for _, e := range entries {
			name, place, _ := strings.Cut(e, ":")
			var at, n int64
			_, err := fmt.Sscanf(place, "%d:%d", &at, &n)
			must(t, err)
			if at+n > int64(z.Len()) || !strings.HasPrefix(string(z.Bytes()[at:at+n]), begins[name]) || begins[name] == "" {
				t.Errorf("%s: %s: expected it to begin with %q", list, e, begins[name])
			}
		}
	}
}

// Images are found in folders and in target files, sparse or not, with what META says.
func TestInput(t *testing.T) {
	raw := bytes.Repeat([]byte("cowbird "), 1024)
	var thin bytes.Buffer
	must(t, sparse.Write(&thin, bytes.NewReader(raw), int64(len(raw)), 4096))
	dir := t.TempDir()
	write := func(name string, b []byte) {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	check := func(path string, names ...string) *Input {
		t.Helper()
		in, err := OpenInput(path, t.TempDir())
		must(t, err)
		t.Cleanup(func() { _ = in.Close() })
		if fmt.Sprint(in.Names) != fmt.Sprint(names) {
			t.Errorf("%s: expected %v, found %v", path, names, in.Names)
		}
		for _, n := range names {
			img, _ := in.Image(n)
			got, err := readRanges(img, []Range{{0, uint64(img.Size) / blockSize}})
			if err != nil || !bytes.Equal(got, raw) {
				t.Errorf("%s: %s: expected the image, found %d bytes, %v", path, n, len(got), err)
			}
		}
		return in
	}
	write("plain/system.img", raw)
	write("plain/vendor.img", thin.Bytes())
	check(filepath.Join(dir, "plain"), "system", "vendor")
	target := map[string][]byte{"IMAGES/system.img": raw, "IMAGES/vendor.img": thin.Bytes(), "IMAGES/userdata.img": raw, "META/ab_partitions.txt": []byte("vendor\nsystem\n"),
		"META/dynamic_partitions_info.txt": []byte("super_partition_groups=main\nsuper_main_group_size=1048576\nsuper_main_partition_list=system vendor\n" +
			"virtual_ab=true\nvirtual_ab_compression=true\nvirtual_ab_compression_method=lz4\nvirtual_ab_cow_version=3\nvirtual_ab_compression_factor=65536\n")}
	for name, b := range target {
		write("target/"+name, b)
	}
	write("target.zip", zipOf(t, target))
	for _, path := range []string{"target", "target.zip"} {
		d := check(filepath.Join(dir, path), "system", "vendor").Dynamic
		g := d.GetGroups()
		if len(g) != 1 || g[0].GetSize() != 1<<20 || len(g[0].GetPartitionNames()) != 2 || d.GetVabcCompressionParam() != "lz4" || d.GetCowVersion() != 3 || d.GetCompressionFactor() != 65536 || !d.GetSnapshotEnabled() {
			t.Errorf("%s: found %v", path, d)
		}
	}
	write("target/META/ab_partitions.txt", []byte("product\n"))
	write("none/readme", nil)
	for _, path := range []string{"target", "none", "absent", "plain/system.img"} {
		if in, err := OpenInput(filepath.Join(dir, path), ""); err == nil {
			t.Errorf("%s: expected an error, found %v", path, in.Names)
		}
	}
}
