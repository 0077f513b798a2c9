package dmuser

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/internal/ublkctl"
)

// The driver keeps 64 bits for the server of a device. Ours are a mark, and a hash
// of the device's name: whoever has the same name and size, and is the same user,
// may go on with the device. It needs no file that could be lost or lie.
const (
	ublkMark     = uint64(0xc0b1) << 48
	ublkMarkMask = uint64(0xffff) << 48
)

func ublkIdentity(name string) uint64 {
	const start, prime = 0xcbf29ce484222325, 0x100000001b3 // FNV-1a
	hash := uint64(start)
	for i := range len(name) {
		hash = (hash ^ uint64(name[i])) * prime
	}
	return ublkMark | hash&^ublkMarkMask
}

// putUblkName keeps a name in sections of the parameters that the driver stores,
// hands out again, and does not look at. It is for people: what does not fit, or
// does not come back, is missing from a message and no more.
func putUblkName(p *ublkctl.Params, name string) {
	n := copy(p.Zoned[:], name)
	copy(p.Discard[:], name[n:])
}

func ublkNameOf(info ublkctl.Info, p ublkctl.Params) string {
	kept := append(append([]byte(nil), p.Zoned[:]...), p.Discard[:]...)
	kept, _, _ = bytes.Cut(kept, []byte{0})
	if name := string(kept); ublkIdentity(name) == info.Private {
		return name
	}
	return ublkName(info.ID)
}

// ublkLeft is a device of ours whose server is dead.
type ublkLeft struct {
	info   ublkctl.Info
	params ublkctl.Params
}

// leftUblks lists them. It is called with the lock held.
func leftUblks(ctl *ublkctl.Control) (left []ublkLeft) {
	for _, id := range ublkIDs() {
		info, err := deadUblk(ctl, id)
		if err != nil {
			continue
		}
		if params, err := ctl.Params(id); err == nil {
			left = append(left, ublkLeft{info, params})
		}
	}
	return left
}

// ublkIDs lists the numbers of the driver's devices.
func ublkIDs() (ids []uint32) {
	paths, _ := filepath.Glob("/sys/class/ublk-char/ublkc*")
	if len(paths) == 0 {
		paths, _ = filepath.Glob("/dev/ublkc*")
	}
	for _, path := range paths {
		if id, err := strconv.ParseUint(strings.TrimPrefix(filepath.Base(path), "ublkc"), 10, 32); err == nil {
			ids = append(ids, uint32(id))
		}
	}
	return ids
}

var errServed = errors.New("not ours, or served")

// ublkPatience is how long the driver gets to notice that a server is dead.
const ublkPatience = 3 * time.Second

// deadUblk gives a device of ours if its server is dead. All users' are root's, who alone
// can remove one whose node its user never got.
func deadUblk(ctl *ublkctl.Control, id uint32) (ublkctl.Info, error) {
	for end := time.Now().Add(ublkPatience); ; time.Sleep(closeBackoff) {
		info, err := ctl.Info(id)
		if err != nil {
			return info, err
		}
		if euid := uint32(os.Geteuid()); info.Private&ublkMarkMask != ublkMark || info.UID != euid && euid != 0 {
			return info, errServed
		}
		if info.State != ublkctl.Live {
			return info, nil
		}
		if isRunning(int(info.PID)) || time.Now().After(end) {
			return info, errServed
		}
	}
}

// isRunning is true when in doubt. The driver may give -1 for a process that is
// gone; a number may be another process's by now, which passes.
func isRunning(pid int) bool {
	if pid <= 0 || unix.Kill(pid, 0) == unix.ESRCH {
		return false
	}
	stat, err := processStat(pid)
	return err != nil || stat[0] != "Z" && stat[0] != "X"
}

// adopt goes on with a device that a process which is dead has left, or one that
// has left it on purpose, so that whoever has it open notices a delay at most. It
// must have the same name, size and block size.
func (d *ublkDev) adopt(ctl *ublkctl.Control, blockSize uint32) bool {
	want := ublkParams(d.name, d.size, blockSize).Basic
	for _, l := range leftUblks(ctl) {
		if l.info.State != ublkctl.Quiesced || l.info.Private != ublkIdentity(d.name) || l.params.Basic != want {
			continue
		}
		d.info = l.info
		if recoverUblk(ctl, l.info.ID) == nil && d.openChar(ctl) == nil {
			return true
		}
	}
	return false
}

// recoverUblk begins to take a device over. For a moment after its server was gone,
// or was looked for by a sweep, the driver takes it for one that is served.
func recoverUblk(ctl *ublkctl.Control, id uint32) (err error) {
	for end := time.Now().Add(ublkPatience); ; time.Sleep(closeBackoff) {
		if err = ctl.StartRecovery(id); !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}

// Sweep leaves alone what somebody has open: Attach goes on with it.
func (c *ublkCarrier) Sweep() ([]string, error) {
	ctl, err := c.open()
	if errors.Is(err, ErrUnsupported) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	if err := ctl.Lock(); err != nil {
		return nil, fmt.Errorf("lock %s: %w", ublkctl.Path, err)
	}
	removed, err := sweepUblks(ctl, leftUblks(ctl))
	if isAdmin() {
		r, e := sweepUsers()
		removed, err = append(removed, r...), errors.Join(err, e)
	}
	return removed, err
}

// sweepUsers removes the devices of users who are no administrators. It is called with
// the lock held.
func sweepUsers() ([]string, error) {
	ctl, err := ublkctl.Open(ublkctl.Path, ublkCharPath)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	left := slices.DeleteFunc(leftUblks(ctl), func(l ublkLeft) bool { return l.info.Flags&ublkctl.Unprivileged == 0 })
	return sweepUblks(ctl, left)
}

func sweepUblks(ctl *ublkctl.Control, left []ublkLeft) (removed []string, err error) {
	var failures []error
	for _, l := range left {
		name := ublkNameOf(l.info, l.params)
		switch err := sweepUblk(ctl, l); {
		case err == nil:
			removed = append(removed, name)
		case !errors.Is(err, errServed):
			failures = append(failures, fmt.Errorf("sweep %s: %w", name, err))
		}
	}
	return removed, errors.Join(failures...)
}

// sweepUblk removes a device unless somebody uses it. One that is being set up or
// taken over has its character file open; the lock keeps others from beginning.
func sweepUblk(ctl *ublkctl.Control, l ublkLeft) error {
	id, p := l.info.ID, l.params
	if number := unix.Mkdev(p.Devices[2], p.Devices[3]); number != 0 {
		if hasOpen("/proc/self", number) || len(holdersOf(ublkName(id), number)) > 0 {
			return busyError(ublkName(id), "/dev/"+ublkName(id), number)
		}
	}
	path, err := findCharNode(ublkCharName(id), unix.Mkdev(p.Devices[0], p.Devices[1]))
	if err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == unix.EBUSY {
		return errServed
	}
	if err == nil {
		_ = unix.Close(fd)
	}
	return ctl.Delete(id)
}
