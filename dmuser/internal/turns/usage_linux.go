package turns

import "golang.org/x/sys/unix"

// usage is the processor time of the thread, in nanoseconds, and how often it has
// gone to sleep of its own accord.
func usage() (cpu, sleeps int64) {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_THREAD, &u) != nil {
		return unknownUsage()
	}
	return u.Utime.Nano() + u.Stime.Nano(), int64(u.Nvcsw)
}
