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

	"google.golang.org/protobuf/proto"
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
	_, err = WritePackage(&z, bytes.NewReader(b.Bytes()), w, Package{Metadata: meta})
	must(t, err)
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

// apexes is a file with modules, each with its name and version.
func apexes(t *testing.T, all ...any) []byte {
	m := &pb.ApexMetadata{}
	for i := 0; i < len(all); i += 2 {
		m.ApexInfo = append(m.ApexInfo, &pb.ApexInfo{PackageName: proto.String(all[i].(string)), Version: proto.Int64(int64(all[i+1].(int)))})
	}
	b, err := proto.Marshal(m)
	must(t, err)
	return b
}

// Modules are in the manifest, and with their old versions in the zip; so is the care map,
// and the lists of property files know both.
func TestExtras(t *testing.T) {
	parse := func(b []byte) []*pb.ApexInfo {
		m := &pb.ApexMetadata{}
		must(t, proto.Unmarshal(b, m))
		return m.ApexInfo
	}
	care, err := proto.Marshal(&pb.CareMap{Partitions: []*pb.CareMap_PartitionInfo{{Name: "boot", Ranges: "2,0,8"}}})
	must(t, err)
	newer := &Input{Apexes: parse(apexes(t, "com.bird", 7, "com.new", 1)), CareMap: care}
	older := &Input{Apexes: parse(apexes(t, "com.bird", 5, "com.gone", 9))}
	for _, from := range []*Input{nil, older} {
		extras, err := Extras(newer, from)
		must(t, err)
		p, err := Create(t.Context(), Options{Apexes: newer.Apexes, Partitions: []Partition{{Name: "boot", New: imageOf(bytes.Repeat([]byte("cowbird "), 4096))}}})
		must(t, err)
		defer p.Close()
		var b, z bytes.Buffer
		w, err := p.Write(&b, nil)
		must(t, err)
		m, err := payload.Read(bytes.NewReader(b.Bytes()), int64(b.Len()), payload.Limits{})
		must(t, err)
		if a := m.Manifest.GetApexInfo(); len(a) != 2 || !proto.Equal(a[0], newer.Apexes[0]) {
			t.Errorf("expected the modules in the manifest, found %v", a)
		}
		_, err = WritePackage(&z, bytes.NewReader(b.Bytes()), w, Package{Metadata: &pb.OtaMetadata{Type: pb.OtaMetadata_AB}, Extras: extras})
		must(t, err)
		in, err := payload.InZip(bytes.NewReader(z.Bytes()), int64(z.Len()), "")
		must(t, err)
		found := map[string]string{}
		for _, e := range strings.Split(strings.TrimSpace(in.Metadata.GetPropertyFiles()[streamingFiles]), ",") {
			name, place, _ := strings.Cut(e, ":")
			var at, n int64
			_, err := fmt.Sscanf(place, "%d:%d", &at, &n)
			must(t, err)
			found[name] = string(z.Bytes()[at : at+n])
		}
		if found["care_map.pb"] != string(care) {
			t.Errorf("expected the care map, found %q", found["care_map.pb"])
		}
		got := parse([]byte(found["apex_info.pb"]))
		want := ""
		if from != nil {
			want = "\x28\x05" // field 5, a number: the old version
		}
		if len(got) != 2 || string(got[0].ProtoReflect().GetUnknown()) != want || len(got[1].ProtoReflect().GetUnknown()) > 0 {
			t.Errorf("expected the old version %q of the first module, found %v", want, got)
		}
	}
	if extras, err := Extras(&Input{}, older); len(extras) > 0 || err != nil {
		t.Errorf("expected nothing, found %v, %v", extras, err)
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
			"virtual_ab=true\nvirtual_ab_compression=true\nvirtual_ab_compression_method=lz4\nvirtual_ab_cow_version=3\nvirtual_ab_compression_factor=65536\n"),
		"META/postinstall_config.txt": []byte("RUN_POSTINSTALL_system=true\nPOSTINSTALL_PATH_system=bin/after\nFILESYSTEM_TYPE_system=erofs\nPOSTINSTALL_OPTIONAL_system=true\n" +
			"RUN_POSTINSTALL_vendor=false\nPOSTINSTALL_PATH_vendor=bin/never\n"),
		"META/apex_info.pb": apexes(t, "com.bird", 7, "com.new", 1), "META/care_map.pb": {}}
	for name, b := range target {
		write("target/"+name, b)
	}
	write("target.zip", zipOf(t, target))
	for _, path := range []string{"target", "target.zip"} {
		in := check(filepath.Join(dir, path), "system", "vendor")
		if p := in.Postinstalls; len(p) != 1 || *p["system"] != (Postinstall{"bin/after", "erofs", true}) {
			t.Errorf("%s: expected a program of system, found %+v", path, p)
		}
		if len(in.Apexes) != 2 || in.Apexes[0].GetPackageName() != "com.bird" || in.CareMap == nil {
			t.Errorf("%s: expected two modules and a care map, found %v, %q", path, in.Apexes, in.CareMap)
		}
		d := in.Dynamic
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
