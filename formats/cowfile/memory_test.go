//go:build !race

package cowfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"golang.org/x/sys/unix"

	"cowbird/formats/compress"
	"cowbird/tools/fixture"
)

// memoryRoom is what hostile input gets over a process that has done nothing:
// bytes of writable private memory, of which Go's heap takes 4 MiB at a time.
const memoryRoom = 16 << 20

// A process that may have little memory reads files whose fields ask for all of
// it, and units that decode to far more than they should.
func TestMemoryLimit(t *testing.T) {
	const child = "COWBIRD_TEST_MEMORY_LIMIT"
	dir := os.Getenv(child)
	if dir == "" {
		dir = t.TempDir()
		for c := GZ; c <= Zstd; c++ {
			if err := os.WriteFile(filepath.Join(dir, c.String()), bomb(t, c), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		// Small stacks: those of the threads count.
		cmd := exec.Command("sh", "-c", `ulimit -s 512; exec "$0" -test.run=^TestMemoryLimit$ -test.v`, os.Args[0])
		// Collected by hand: on a busy machine a collection that runs beside
		// the test can come too late.
		cmd.Env = append(os.Environ(), child+"="+dir, "GOMAXPROCS=2", "GOGC=off")
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("kept the limit")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	small := map[int][]byte{
		2: smallFile(t, WriterOptions{Version: 2, ClusterOps: 3, NoScratch: true, Compression: GZ}, true),
		3: smallFile(t, WriterOptions{Version: 3, MaxUnit: 16384, NoScratch: true, Compression: GZ, OpCountMax: 12}, true),
	}
	bombs := map[Compression][]byte{}
	for c := GZ; c <= Zstd; c++ {
		var err error
		if bombs[c], err = os.ReadFile(filepath.Join(dir, c.String())); err != nil {
			t.Fatal(err)
		}
	}
	limitMemory(t)
	for _, b := range small {
		for at := range len(b) - 8 {
			if at%8 == 0 {
				runtime.GC()
			}
			for _, v := range [][]byte{bytes.Repeat([]byte{255}, 8), {255, 255, 255, 127}, {0, 0, 0, 64}, {0, 0, 0, 0, 1}} {
				open(t, append(append(append([]byte{}, b[:at]...), v...), b[at+len(v):]...))
			}
		}
	}
	unit := make([]byte, MaxUnit)
	for range 50 {
		runtime.GC()
		for c, stored := range bombs {
			if err := Decode(c, unit, stored); err == nil {
				t.Fatalf("%v: expected an error", c)
			}
		}
	}
	t.Log("kept the limit")
}

// A decoder does not grow with what hostile units hold behind their end.
func TestDecodersStaySmall(t *testing.T) {
	const rounds = 16
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would empty the pools
	unit := make([]byte, BlockSize)
	for c := GZ; c <= Zstd; c++ {
		stored := bomb(t, c)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range rounds {
			if err := Decode(c, unit, stored); err == nil {
				t.Fatalf("%v: expected an error", c)
			}
		}
		runtime.ReadMemStats(&after)
		if n := (after.TotalAlloc - before.TotalAlloc) / rounds; n > 512<<10 {
			t.Errorf("%v: expected at most 512 KiB for a unit, found %d", c, n>>10)
		}
	}
}

// bomb is a unit that decodes to 32 MiB, with the largest window of brotli.
func bomb(t *testing.T, c Compression) []byte {
	t.Helper()
	const size = 32 << 20
	if c == Brotli {
		var b bytes.Buffer
		w := brotli.NewWriterOptions(&b, brotli.WriterOptions{Quality: 5, LGWin: 24})
		_, err := w.Write(make([]byte, size))
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	f, err := compress.New(c.String(), 1, size)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := f(nil, make([]byte, size))
	if err != nil {
		t.Fatal(err)
	}
	return stored
}

// limitMemory gives the process memoryRoom bytes more than it has mapped.
func limitMemory(t *testing.T) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		fixture.Missing(t, "memory cannot be limited: %v", err)
	}
	_, after, _ := strings.Cut(string(status), "VmData:")
	var kib uint64
	if _, err := fmt.Sscanf(after, "%d kB", &kib); err != nil {
		t.Fatal(err)
	}
	limit := kib<<10 + memoryRoom
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		t.Fatal(err)
	}
}
