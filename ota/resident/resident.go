package resident

import (
	"errors"
	"fmt"
)

// Options say what the process is for.
type Options struct {
	// ServesRoot: the program may lie on a device that it serves. Its pages are
	// locked in memory, and what cannot be done is an error.
	ServesRoot bool
	// Complain is told what could not be done, if that is not an error.
	Complain func(what string, err error)
}

// ErrUnsupported: not on this system.
var ErrUnsupported = errors.New("needs Linux")

// step is one thing that Settle does.
type step struct {
	what   string
	needed bool // when the root is served
	do     func() error
}

// Settle changes the whole process, for good; call it once, before anything is
// served. An error means that the process may hang when it serves its own root.
func Settle(o Options) error {
	for _, s := range steps(o.ServesRoot) {
		if err := o.run(s); err != nil {
			return err
		}
	}
	return nil
}

func (o Options) run(s step) error {
	err := s.do()
	if err != nil && o.ServesRoot && s.needed {
		return fmt.Errorf("%s: %w", s.what, err)
	}
	if err != nil {
		o.Complain(s.what, err)
	}
	return nil
}
