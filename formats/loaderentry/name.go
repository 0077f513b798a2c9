package loaderentry

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrName: not the name of an entry.
var ErrName = errors.New("not a boot loader entry's name")

// MaxTries is the highest counter.
const MaxTries = 1<<31 - 1

// Name is the name of an entry's file, without its folder.
type Name struct {
	ID        string // what is left without counters and extension
	Extension string // ".conf" or ".efi"
	Counted   bool
	Left      int // boots that may yet fail; of those that are Counted
	Done      int // boots that have begun
}

// Parse takes a name apart. What stands behind a plus sign but is no counter belongs to the
// ID. The error is ErrName.
func Parse(file string) (Name, error) {
	n := Name{}
	for _, x := range []string{".conf", ".efi"} {
		if id, found := strings.CutSuffix(file, x); found {
			n.ID, n.Extension = id, x
		}
	}
	if n.Extension == "" {
		return Name{}, fmt.Errorf("%w: expected .conf or .efi at the end, found %.80q", ErrName, file)
	}
	if i := strings.LastIndexByte(n.ID, '+'); i >= 0 && n.count(n.ID[i+1:]) {
		n.ID = n.ID[:i]
	}
	if n.ID == "" || strings.ContainsAny(n.ID, "/\x00") {
		return Name{}, fmt.Errorf("%w: expected an ID without slash, found %.80q", ErrName, file)
	}
	return n, nil
}

func (n *Name) count(s string) bool {
	left, done, both := strings.Cut(s, "-")
	l, ok := number(left)
	d, ok2 := 0, true
	if both {
		d, ok2 = number(done)
	}
	if !ok || !ok2 {
		return false
	}
	n.Counted, n.Left, n.Done = true, l, d
	return true
}

func number(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err == nil
}

// String is the name of the file. A Done of 0 is left out.
func (n Name) String() string {
	switch {
	case !n.Counted:
		return n.ID + n.Extension
	case n.Done == 0:
		return fmt.Sprintf("%s+%d%s", n.ID, n.Left, n.Extension)
	}
	return fmt.Sprintf("%s+%d-%d%s", n.ID, n.Left, n.Done, n.Extension)
}

// Bad says whether no boots are left.
func (n Name) Bad() bool { return n.Counted && n.Left == 0 }

// Booted is the name that the boot loader gives before it boots the entry.
func (n Name) Booted() Name {
	if n.Counted && n.Left > 0 {
		n.Left--
		n.Done = min(n.Done, MaxTries-1) + 1
	}
	return n
}

// Good is the name of an entry that has booted well.
func (n Name) Good() Name {
	n.Counted, n.Left, n.Done = false, 0, 0
	return n
}

// WithTries is the name of an entry that is yet to prove itself; with 0 it is bad.
func (n Name) WithTries(left int) Name {
	n.Counted, n.Left, n.Done = true, left, 0
	return n
}
