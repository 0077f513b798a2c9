package dmuser

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/internal/turns"
	"cowbird/dmuser/internal/uring"
)

// fromFile serves a read that lies in a file as it is, and reports whether it does.
func (q *ublkQueue) fromFile(j *ublkJob) bool {
	d := q.d
	if d.file == nil || d.mode != ublkZeroCopy && j.n >= turns.Large {
		return false
	}
	fd, at, ok := d.file.HoldFile(j.off, int(j.n))
	if !ok {
		return false
	}
	if d.mode == ublkZeroCopy {
		q.readFixed(j, fd, at)
		return true
	}
	defer d.file.ReleaseFile()
	return q.readNow(j, fd, at)
}

// readFixed has the kernel read the file into the request.
func (q *ublkQueue) readFixed(j *ublkJob, fd int, at int64) {
	e := q.next()
	e.Op, e.FD, e.Off, e.Len = uring.OpReadFixed, int32(fd), uint64(at), uint32(j.n)
	e.BufIndex = j.tag // and Addr, 0, is where in that buffer
	e.UserData = userData(aboutRead, j.tag)
	j.q = nil // not a worker's
}

// fileRead ends what readFixed began. What was not read in full a worker tries.
func (q *ublkQueue) fileRead(tag uint16, res int32) {
	q.d.file.ReleaseFile()
	j := &q.tags[tag].job
	j.q = q
	if res == j.n {
		q.commit(tag, res)
		return
	}
	if q.d.aborting.Load() {
		return // giveUp follows
	}
	q.d.work.add(*j)
}

// readNow reads what the page cache has, and reports whether it was all. It does
// not wait for storage.
func (q *ublkQueue) readNow(j *ublkJob, fd int, at int64) bool {
	d := q.d
	if d.mode == ublkCopy {
		if !preadNow(fd, q.buffer(j.tag)[:j.n], at) {
			return false
		}
		q.commit(j.tag, j.n)
		return true
	}
	buf, err := d.carrier.buffers.getNow(int(j.n), d.spare)
	if err != nil {
		return false
	}
	defer d.carrier.buffers.put(buf)
	data := buf.data()[:j.n]
	if !preadNow(fd, data, at) || d.deliver(j, data) != 0 {
		return false
	}
	q.commit(j.tag, j.n)
	return true
}

func preadNow(fd int, p []byte, at int64) bool {
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1,
		uintptr(at), uintptr(uint64(at)>>32), unix.RWF_NOWAIT)
	return errno == 0 && int(n) == len(p)
}
