package resident

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func steps(servesRoot bool) []step {
	all := []step{
		{"be killed last when memory runs out", false, survive},
	}
	if servesRoot {
		all = append(all, step{"lock the program in memory", true, lockProgram})
	}
	return append(all,
		step{"give up capabilities", false, dropCapabilities},
		step{"give up system calls", false, refuseCalls},
	)
}

// survive keeps the kernel from choosing this process when memory runs out:
// whoever reads its devices would hang.
func survive() error { return os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) }

func onAllThreads(call, a, b, c uintptr) error {
	if _, _, e := syscall.AllThreadsSyscall(call, a, b, c); e != 0 {
		return e
	}
	return nil
}

// lockProgram reads the pages of the program's file and keeps them.
func lockProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	found, err := mappingsOf(f, exe)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("expected mappings of %s, found none", exe)
	}
	for _, m := range found {
		err = errors.Join(err, m.lock())
	}
	return err
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// mappingsOf finds in a list of mappings, as /proc has it, those of one file.
func mappingsOf(list io.Reader, path string) (found []mapping, err error) {
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		var m mapping
		line := lines.Text()
		if i := strings.IndexByte(line, '/'); i < 0 || line[i:] != path {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x ", &m.start, &m.end); err != nil {
			return nil, fmt.Errorf("expected a range of addresses, found %q", line)
		}
		found = append(found, m)
	}
	return found, lines.Err()
}

// lock reads the pages before they are locked for good: to lock them right away
// would copy those that may be written, but never were.
func (m mapping) lock() error {
	const onFault = 1 // MLOCK_ONFAULT
	length := m.end - m.start
	if _, _, e := unix.Syscall(unix.SYS_MLOCK2, m.start, length, onFault); e != 0 {
		return fmt.Errorf("lock %d bytes: %w", length, e)
	}
	_, _, e := unix.Syscall(unix.SYS_MADVISE, m.start, length, unix.MADV_POPULATE_READ)
	if e == unix.EINVAL { // before Linux 5.14
		_, _, e = unix.Syscall(unix.SYS_MLOCK, m.start, length, 0)
	}
	if e != 0 {
		return fmt.Errorf("read %d bytes of the program: %w", length, e)
	}
	return nil
}
