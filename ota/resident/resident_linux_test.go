package resident

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// childEnv makes this program a process that settles, tries what it must not be
// able to do, and says what became of it.
const childEnv = "RESIDENT_CHILD"

func TestMain(m *testing.M) {
	if how := os.Getenv(childEnv); how != "" {
		os.Exit(child(how))
	}
	os.Exit(m.Run())
}

func child(how string) int {
	end := make(chan struct{})
	defer close(end)
	started := make(chan struct{})
	for range 4 { // threads that are there beforehand
		go func() { runtime.LockOSThread(); started <- struct{}{}; <-end }()
		<-started
	}
	if how == "lock" {
		printThreads()
		fmt.Println("locked:", lockProgram())
		printThreads()
		return 0
	}
	err := Settle(Options{ServesRoot: how == "root", Complain: func(what string, err error) { fmt.Println("complaint:", what+":", err) }})
	fmt.Println("settled:", err)
	fmt.Println("exec:", exec.Command("/bin/true").Run())
	score, _ := os.ReadFile("/proc/self/oom_score_adj")
	fmt.Println("oom:", strings.TrimSpace(string(score)))
	printThreads()
	return 0
}

func printThreads() {
	threads, _ := os.ReadDir("/proc/self/task")
	for _, thread := range threads {
		status, _ := os.ReadFile("/proc/self/task/" + thread.Name() + "/status")
		for line := range strings.Lines(string(status)) {
			if name, _, _ := strings.Cut(line, ":"); slices.Contains([]string{"VmLck", "RssAnon", "RssFile", "NoNewPrivs", "Seccomp", "CapEff", "CapPrm"}, name) {
				fmt.Println(strings.Join(strings.Fields(line), " "))
			}
		}
	}
}

func settle(t *testing.T, how string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+how)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Log(string(out))
	return string(out)
}

func TestMappingsOf(t *testing.T) {
	const list = `00400000-005a1000 r-xp 00000000 fe:00 12345 /usr/bin/snapuserd
005a1000-00700000 r--p 001a1000 fe:00 12345 /usr/bin/snapuserd
00700000-00720000 rw-p 00300000 fe:00 12345 /usr/bin/snapuserd
00720000-00750000 rw-p 00000000 00:00 0 
7f0000000000-7f0000100000 r--s 00000000 fe:00 99 /data/system.cow
7f0000200000-7f0000300000 r-xp 00000000 fe:00 77 /usr/bin/snapuserd.old
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]
`
	got, err := mappingsOf(strings.NewReader(list), "/usr/bin/snapuserd")
	want := []mapping{{0x400000, 0x5a1000}, {0x5a1000, 0x700000}, {0x700000, 0x720000}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("expected %x, found %x, %v", want, got, err)
	}
	if got, err := mappingsOf(strings.NewReader("x-y r-xp 0 0 0 /a\n"), "/a"); err == nil {
		t.Errorf("expected an error, found %v", got)
	}
}

// The filter, run by hand, on numbers around those that it knows.
func TestFilter(t *testing.T) {
	const arch = 0xc000003e
	calls := []uint32{59, 101, 322}
	code := filter(arch, calls)
	for _, tc := range []struct {
		arch, nr uint32
		refused  bool
	}{
		{arch, 0, false}, {arch, 59, true}, {arch, 58, false}, {arch, 101, true}, {arch, 322, true}, {arch, 323, false},
		{arch, x32 | 1, true}, {arch ^ 1, 0, true},
	} {
		if got := interpret(t, code, tc.arch, tc.nr); (got != unix.SECCOMP_RET_ALLOW) != tc.refused {
			t.Errorf("architecture %#x, call %#x: expected refused %v, found %#x", tc.arch, tc.nr, tc.refused, got)
		}
	}
}

// interpret runs a filter.
func interpret(t *testing.T, code []unix.SockFilter, arch, nr uint32) uint32 {
	t.Helper()
	a := uint32(0)
	for pc := 0; pc < len(code); pc++ {
		i := code[pc]
		jump := func(yes bool) {
			if yes {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		}
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = map[uint32]uint32{dataNumber: nr, dataArch: arch}[i.K]
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == i.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(a >= i.K)
		case unix.BPF_RET | unix.BPF_K:
			return i.K
		default:
			t.Fatalf("instruction %d: unknown code %#x", pc, i.Code)
		}
	}
	t.Fatal("expected the filter to return, found its end")
	return 0
}

func TestNeeded(t *testing.T) {
	failed := errors.New("failed")
	complaints := 0
	o := Options{Complain: func(string, error) { complaints++ }}
	for _, tc := range []struct{ serves, needed, fails bool }{{true, true, true}, {true, false, false}, {false, true, false}, {false, false, false}} {
		o.ServesRoot = tc.serves
		if err := o.run(step{"x", tc.needed, func() error { return failed }}); (err != nil) != tc.fails || err != nil && !errors.Is(err, failed) {
			t.Errorf("%+v: found %v", tc, err)
		}
	}
	if complaints != 3 {
		t.Errorf("expected 3 complaints, found %d", complaints)
	}
}
