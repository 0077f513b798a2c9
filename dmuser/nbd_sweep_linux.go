package dmuser

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/nbd"
)

// errNothingToAdopt: no earlier process has left a device of that name.
var errNothingToAdopt = errors.New("no device to go on with")

// nbdLeft is a device of ours whose server is dead.
type nbdLeft struct {
	index      int
	identifier string
}

// leftNbds lists them. Kernels before 5.14 do not tell identifiers, so that
// nothing is found.
func leftNbds() []nbdLeft {
	var left []nbdLeft
	paths, _ := filepath.Glob("/sys/block/nbd*/backend")
	for _, path := range paths {
		index, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(path)), "nbd"))
		if err != nil {
			continue
		}
		identifier, _ := readIdentifier(index)
		if strings.HasPrefix(identifier, nbdPrefix) && !isServed(index) {
			left = append(left, nbdLeft{index, identifier})
		}
	}
	return left
}

// readIdentifier is what a device was connected with, if it is connected and the
// kernel tells.
func readIdentifier(index int) (string, bool) {
	text, err := os.ReadFile("/sys/block/" + nbdName(index) + "/backend")
	return strings.TrimSuffix(string(text), "\n"), err == nil
}

// nbdMark is the name of the server's end of a connection, an abstract one. It is
// there as long as the server.
func nbdMark(index int) string { return "@cowbird-nbd:" + strconv.Itoa(index) }

// isServed is true when in doubt.
func isServed(index int) bool {
	table, err := os.ReadFile("/proc/net/unix")
	return err != nil || hasSocket(string(table), nbdMark(index))
}

// hasSocket looks for a name in the text of /proc/net/unix.
func hasSocket(table, name string) bool {
	for line := range strings.Lines(table) {
		if strings.HasSuffix(strings.TrimRight(line, "\n"), " "+name) {
			return true
		}
	}
	return false
}

// adopt goes on with a device that a process which is dead has left, so that
// whoever has it open notices nothing. It must have the same name and size.
func (d *nbdDev) adopt(ctl *nbdControl) error {
	for _, l := range leftNbds() {
		if l.identifier != d.identifier || nbdSize(l.index) != d.backend.Size() {
			continue
		}
		fd, err := takeNbd(ctl, l.index, d.identifier)
		if err != nil {
			continue // somebody else was first
		}
		d.index = l.index
		d.serve(fd)
		return nil
	}
	return errNothingToAdopt
}

// nbdSize is in bytes; -1 if it cannot be found out.
func nbdSize(index int) int64 {
	text, _ := os.ReadFile("/sys/block/" + nbdName(index) + "/size")
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return -1
	}
	return sectors * 512
}

// Sweep leaves alone what somebody has open: Attach goes on with it.
func (c *nbdCarrier) Sweep() ([]string, error) {
	left := leftNbds()
	if len(left) == 0 {
		return nil, nil
	}
	ctl, err := openNbdControl()
	if err != nil {
		return nil, err
	}
	defer ctl.close()
	var removed []string
	var failures []error
	for _, l := range left {
		err := c.sweep(ctl, l)
		switch {
		case err == nil:
			removed = append(removed, strings.TrimPrefix(l.identifier, nbdPrefix))
		case !errors.Is(err, errDropped):
			failures = append(failures, fmt.Errorf("sweep %s: %w", strings.TrimPrefix(l.identifier, nbdPrefix), err))
		}
	}
	return removed, errors.Join(failures...)
}

// sweep takes the server's place for as long as it takes to remove the device.
func (c *nbdCarrier) sweep(ctl *nbdControl, l nbdLeft) error {
	number := nbdNumber(l.index)
	path, err := findNode(nbdName(l.index), number)
	if err != nil {
		return err
	}
	if hasOpen("/proc/self", number) || len(holdersOf(nbdName(l.index), number)) > 0 {
		return busyError(nbdName(l.index), path, number)
	}
	fd, err := takeNbd(ctl, l.index, l.identifier)
	if err != nil {
		return err
	}
	p := newPlaceholder()
	s := nbd.Start(newDriverConn(fd), p, newReplyBuffers(c.buffers, nil), nbd.Options{Trusted: true})
	err = releaseNbd(ctl, l.index, path, l.identifier, 0)
	s.Close()
	close(p.left)
	return err
}

// placeholder is a backend of which nothing can be read. If it turns out that
// somebody holds the device whom holdersOf did not find, the next server is to
// answer him, so that requests are not failed at once.
type placeholder struct{ left chan struct{} }

// placeholderWait is longer than releaseNbd takes unless it has to wait for a
// request itself.
const placeholderWait = time.Second

func newPlaceholder() placeholder { return placeholder{make(chan struct{})} }

func (placeholder) Size() int64 { return 1 << 62 }

func (p placeholder) ReadAt([]byte, int64) (int, error) {
	select {
	case <-p.left:
	case <-time.After(placeholderWait):
	}
	return 0, unix.EIO
}
