package dmuser

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// owner names one process for good: process ids come round again, but not with
// the same start time.
type owner struct {
	pid   int
	start uint64 // clock ticks after boot; 0 if /proc was not there to ask
}

var self = sync.OnceValue(func() owner {
	pid := os.Getpid()
	start, _ := startTime(pid)
	return owner{pid: pid, start: start}
})

func (o owner) String() string { return fmt.Sprintf("%d.%d", o.pid, o.start) }

func parseOwner(s string) (owner, bool) {
	pid, start, ok := strings.Cut(s, ".")
	if !ok {
		return owner{}, false
	}
	p, err := strconv.ParseUint(pid, 10, 31)
	if err != nil || p == 0 {
		return owner{}, false
	}
	t, err := strconv.ParseUint(start, 10, 64)
	return owner{pid: int(p), start: t}, err == nil
}

// alive is true when in doubt. A process that has exited is not alive even if
// it, or a thread of it, is still to be waited for.
func (o owner) alive() bool {
	if unix.Kill(o.pid, 0) == unix.ESRCH {
		return false
	}
	stat, err := processStat(o.pid)
	if err != nil || o.start == 0 {
		return true
	}
	start, err := stat.start()
	return err != nil || start == o.start && stat[0] != "Z" && stat[0] != "X"
}

// statFields are the fields of /proc/PID/stat from the third on, the state. The
// second, a name in parentheses, may hold anything.
type statFields []string

func processStat(pid int) (statFields, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat: expected 22 fields or more, found %d", pid, len(fields)+2)
	}
	return fields, nil
}

func (f statFields) start() (uint64, error) { return strconv.ParseUint(f[19], 10, 64) }

func startTime(pid int) (uint64, error) {
	stat, err := processStat(pid)
	if err != nil {
		return 0, err
	}
	return stat.start()
}

// labelPrefix begins the file name by which the loop driver knows a device of
// ours: cowbird:NAME:PID.START.
const labelPrefix = "cowbird:"

// label fits name and owner into the loop driver's file name, cutting name if
// need be.
func label(name string, o owner) string {
	tail := ":" + o.String()
	room := unix.LO_NAME_SIZE - 1 - len(labelPrefix) - len(tail)
	clean := strings.Map(printable, name)
	return labelPrefix + clean[:min(len(clean), room)] + tail
}

func printable(r rune) rune {
	if r <= ' ' || r >= 0x7f {
		return '_'
	}
	return r
}

func parseLabel(s string) (name string, o owner, ok bool) {
	rest, ok := strings.CutPrefix(s, labelPrefix)
	at := strings.LastIndexByte(rest, ':')
	if !ok || at < 0 {
		return "", owner{}, false
	}
	o, ok = parseOwner(rest[at+1:])
	return rest[:at], o, ok
}

// isAdmin tells whether this process may do what drivers reserve for administrators.
func isAdmin() bool {
	var data [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}
