package lpmeta

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// With this library in front of device-mapper's and of blkid's, the program says
// which tables it would load.
const tellTables = `
#include <stdint.h>
#include <stdio.h>
#include <string.h>
static int task;
void *dm_task_create(int type) { return &task; }
int dm_task_set_name(void *t, const char *name) { printf("%s\n", name); return 1; }
int dm_task_add_target(void *t, uint64_t start, uint64_t size, const char *type, const char *params) {
	printf("%llu %llu %s %s\n", (unsigned long long)start, (unsigned long long)size, type, params);
	return 1;
}
int dm_task_run(void *t) { return 1; }
void dm_task_destroy(void *t) {}
char *blkid_evaluate_tag(const char *tag, const char *value, void *cache) { return strdup(value); }
char *blkid_evaluate_spec(const char *spec, void *cache) { return strdup(spec); }
`

func needTool(t *testing.T, name, hint string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("expected %s, which tools/setup.sh test installs, found none", name)
	}
	if err != nil {
		t.Skipf("%s is not installed (Debian: %s): tools/setup.sh test does so", name, hint)
	}
	return path
}

// tellsTables gives a function that runs make-dynpart-mappings, an independent
// program, on a disk.
func tellsTables(t *testing.T) func(disk []byte) (string, error) {
	tool := needTool(t, "make-dynpart-mappings", "make-dynpart-mappings")
	gcc := needTool(t, "gcc", "gcc")
	dir := t.TempDir()
	source, library, super := filepath.Join(dir, "tell.c"), filepath.Join(dir, "tell.so"), filepath.Join(dir, "super")
	must(t, os.WriteFile(source, []byte(tellTables), 0o600))
	if out, err := exec.Command(gcc, "-shared", "-fPIC", "-o", library, source).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return func(disk []byte) (string, error) {
		must(t, os.WriteFile(super, disk, 0o600))
		cmd := exec.Command(tool, super, "0")
		cmd.Env = append(os.Environ(), "LD_PRELOAD="+library)
		out, err := cmd.Output()
		return string(bytes.ReplaceAll(out, []byte(super), []byte("super"))), err
	}
}

// tables are the same by our reckoning.
func tables(m *Metadata) string {
	var out bytes.Buffer
	for i := range m.Partitions {
		p := &m.Partitions[i]
		fmt.Fprintln(&out, p.Name)
		for _, l := range m.Table(p) {
			if l.Zero {
				fmt.Fprintf(&out, "%d %d zero \n", l.Start, l.Length)
			} else {
				fmt.Fprintf(&out, "%d %d linear %s %d\n", l.Start, l.Length, m.BlockDevices[l.Device].Name, l.Data)
			}
		}
	}
	return out.String()
}

// Another program finds in what is flashed and updated here the tables that we
// find, and takes the backups where we do. It looks for the backup right behind the
// primary copy, where it is on a device with one slot.
func TestAgainstDynpartMappings(t *testing.T) {
	tell := tellsTables(t)
	expect := func(what string, disk []byte, m *Metadata) {
		t.Helper()
		expectEqual(t, what, mustRead(t, after(disk), 0), m)
		if got, err := tell(disk); err != nil || got != tables(m) {
			t.Errorf("%s: expected\n%s\nfound %v\n%s", what, tables(m), err, got)
		}
	}
	a := sample()
	a.Partitions = a.Partitions[:3] // it cannot do with names of 36 bytes
	expect("two slots", flashed(t, a, a).now, a)
	a.Geometry.SlotCount = 1
	b := a.Clone()
	b.Partitions, b.Minor, b.Flags = b.Partitions[1:], 0, 0
	d := flashed(t, a)
	expect("version 10.2", d.now, a)
	must(t, Update(d, 0, b))
	for name, at := range map[string]int{"nothing": 0, "primary geometry": 4100, "primary header": 12288 + 20, "primary tables": 12288 + 140} {
		disk := after(d.now).now
		disk[at] ^= 1
		expect(name+" damaged", disk, b)
	}
	built := newDisk(64 * mib)
	must(t, Flash(built, 64*mib, []*Metadata{virtualAB(t), virtualAB(t)}))
	expect("built", built.now, virtualAB(t))
	d.now[12288+20] ^= 1
	d.now[12288+1024+20] ^= 1
	if got, err := tell(d.now); got != "" {
		t.Errorf("both copies damaged: expected that it refuses, found %v\n%s", err, got)
	}
}
