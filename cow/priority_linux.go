package cow

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Priority says how far a merge stands back behind other work. The zero value
// changes nothing.
type Priority struct {
	// IdleIO asks the kernel's I/O scheduler to serve the merge when nobody
	// else wants the storage (ioprio class idle; schedulers that know no
	// classes pass over it).
	IdleIO bool
	// Nice is added to the process's nice value, 0 to 19.
	Nice int
}

const (
	ioprioWhoProcess = 1       // a thread
	ioprioIdle       = 3 << 13 // class idle
)

// run calls f at this priority. Priorities belong to threads: f gets one of its
// own, which ends with it.
func (p Priority) run(f func() error) error {
	if p == (Priority{}) {
		return f()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := p.set()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// Check refuses a nice value that there is not.
func (p Priority) Check() error {
	if p.Nice < 0 || p.Nice > 19 {
		return fmt.Errorf("priority: expected nice from 0 to 19, found %d", p.Nice)
	}
	return nil
}

// set changes the calling thread.
func (p Priority) set() error {
	if err := p.Check(); err != nil {
		return err
	}
	if p.Nice > 0 {
		old, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // 20 − nice, as the kernel has it
		if err == nil {
			err = unix.Setpriority(unix.PRIO_PROCESS, 0, min(19, 20-old+p.Nice))
		}
		if err != nil {
			return fmt.Errorf("priority: nice %d: %w", p.Nice, err)
		}
	}
	if p.IdleIO {
		if _, _, err := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, 0, ioprioIdle); err != 0 {
			return fmt.Errorf("priority: I/O class idle: %w", err)
		}
	}
	return nil
}
