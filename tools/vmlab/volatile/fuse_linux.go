package volatile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Requests of the kernel (specs: the kernel's FUSE protocol, version 7.31).
const (
	fuseLookup      = 1
	fuseForget      = 2
	fuseGetattr     = 3
	fuseSetattr     = 4
	fuseOpen        = 14
	fuseRead        = 15
	fuseWrite       = 16
	fuseRelease     = 18
	fuseFsync       = 20
	fuseFlush       = 25
	fuseInit        = 26
	fuseOpendir     = 27
	fuseReaddir     = 28
	fuseReleasedir  = 29
	fuseInterrupt   = 36
	fuseDestroy     = 38
	fuseBatchForget = 42

	fuseMinor    = 31
	fuseMaxWrite = 1 << 20
	fuseMaxPages = fuseMaxWrite / 4096

	wantBigWrites = 1 << 5
	wantMaxPages  = 1 << 22

	openDirect = 1 // no cache of the host's

	headerIn, headerOut = 40, 16
)

var le = binary.LittleEndian

// Server shows disks as files.
type Server struct {
	fd    int
	dir   string
	disks []*Disk
	done  sync.WaitGroup
}

// Serve shows disks in a folder, as files of their names. It needs root.
func Serve(dir string, disks ...*Disk) (*Server, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("volatile", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	s := &Server{fd: fd, dir: dir, disks: disks}
	for range 1 + runtime.NumCPU() {
		s.done.Add(1)
		go s.work()
	}
	if err := s.refusePoll(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// refusePoll has the kernel ask once whether a file can be polled, and be told no for
// ever. Otherwise it asks when somebody opens a file by package os: within epoll_ctl,
// for which the runtime does not give up its processor, so that a process that is its
// own server may wait for itself.
func (s *Server) refusePoll() error {
	if len(s.disks) == 0 {
		return nil
	}
	fd, err := unix.Open(s.Path(s.disks[0]), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return errors.Join(err, unix.Close(fd))
}

// Close takes the files away. Whoever has one open gets errors.
func (s *Server) Close() error {
	err := unix.Unmount(s.dir, unix.MNT_DETACH)
	s.done.Wait()
	return errors.Join(err, unix.Close(s.fd))
}

// work answers requests until the file system is gone.
func (s *Server) work() {
	defer s.done.Done()
	buf := make([]byte, fuseMaxWrite+4096)
	for {
		n, err := unix.Read(s.fd, buf)
		switch {
		case err == unix.EINTR || err == unix.ENOENT || err == unix.EAGAIN:
			continue
		case err != nil || n < headerIn:
			return
		}
		op, unique := le.Uint32(buf[4:]), le.Uint64(buf[8:])
		if op == fuseForget || op == fuseBatchForget || op == fuseInterrupt {
			continue
		}
		reply, errno := s.answer(op, le.Uint64(buf[16:]), buf[headerIn:n])
		if errno != 0 {
			reply = make([]byte, headerOut)
		}
		le.PutUint32(reply, uint32(len(reply)))
		le.PutUint32(reply[4:], uint32(-int32(errno)))
		le.PutUint64(reply[8:], unique)
		_, _ = unix.Write(s.fd, reply)
	}
}

// answer gives a reply with room for its header.
func (s *Server) answer(op uint32, node uint64, in []byte) ([]byte, unix.Errno) {
	switch op {
	case fuseInit:
		return initReply(in), 0
	case fuseLookup:
		return s.lookup(strings.TrimRight(string(in), "\x00"))
	case fuseGetattr, fuseSetattr:
		return s.attributes(node)
	case fuseOpendir:
		return make([]byte, headerOut+16), 0
	case fuseReaddir:
		return s.names(int(le.Uint64(in[8:])), int(le.Uint32(in[16:]))), 0
	case fuseRelease, fuseReleasedir, fuseFlush, fuseDestroy:
		return make([]byte, headerOut), 0
	}
	if node < 2 || node-2 >= uint64(len(s.disks)) {
		return nil, unix.ENOSYS
	}
	d := s.disks[node-2]
	switch op {
	case fuseOpen:
		out := make([]byte, headerOut+16)
		le.PutUint32(out[headerOut+8:], openDirect)
		return out, 0
	case fuseRead:
		return readReply(d, int64(le.Uint64(in[8:])), int(le.Uint32(in[16:])))
	case fuseWrite:
		return writeReply(d, int64(le.Uint64(in[8:])), in[40:][:le.Uint32(in[16:])])
	case fuseFsync:
		if d.Sync() != nil {
			return nil, unix.EIO
		}
		return make([]byte, headerOut), 0
	}
	return nil, unix.ENOSYS
}

func initReply(in []byte) []byte {
	out := make([]byte, headerOut+64)
	b := out[headerOut:]
	le.PutUint32(b, 7)
	le.PutUint32(b[4:], fuseMinor)
	le.PutUint32(b[12:], le.Uint32(in[12:])&(wantBigWrites|wantMaxPages))
	le.PutUint32(b[20:], fuseMaxWrite)
	le.PutUint32(b[24:], 1)
	le.PutUint16(b[28:], fuseMaxPages)
	return out
}

func (s *Server) lookup(name string) ([]byte, unix.Errno) {
	for i, d := range s.disks {
		if d.name == name {
			out := make([]byte, headerOut+40)
			le.PutUint64(out[headerOut:], uint64(i+2))
			return s.putAttributes(out, uint64(i+2)), 0
		}
	}
	return nil, unix.ENOENT
}

// names lists the folder from one of its entries on, in at most that many bytes.
func (s *Server) names(first, room int) []byte {
	out := make([]byte, headerOut)
	for i := first; i < len(s.disks); i++ {
		name := s.disks[i].name
		size := (24 + len(name) + 7) &^ 7
		if len(out)-headerOut+size > room {
			break
		}
		entry := make([]byte, size)
		le.PutUint64(entry, uint64(i+2))
		le.PutUint64(entry[8:], uint64(i+1))
		le.PutUint32(entry[16:], uint32(len(name)))
		le.PutUint32(entry[20:], unix.S_IFREG>>12)
		copy(entry[24:], name)
		out = append(out, entry...)
	}
	return out
}

func (s *Server) attributes(node uint64) ([]byte, unix.Errno) {
	if node == 0 || node-1 > uint64(len(s.disks)) {
		return nil, unix.ENOENT
	}
	return s.putAttributes(make([]byte, headerOut+16), node), 0
}

// putAttributes adds those of a file, or of the folder, which is node 1.
func (s *Server) putAttributes(out []byte, node uint64) []byte {
	b := make([]byte, 88)
	le.PutUint64(b, node)
	mode := uint32(unix.S_IFDIR | 0o755)
	if node > 1 {
		size := uint64(s.disks[node-2].Size())
		le.PutUint64(b[8:], size)
		le.PutUint64(b[16:], size/512)
		mode = unix.S_IFREG | 0o600
	}
	le.PutUint32(b[60:], mode)
	le.PutUint32(b[64:], 1)
	le.PutUint32(b[80:], 4096)
	return append(out, b...)
}

func readReply(d *Disk, off int64, size int) ([]byte, unix.Errno) {
	if size > fuseMaxWrite {
		return nil, unix.EINVAL
	}
	out := make([]byte, headerOut+size)
	n, err := d.ReadAt(out[headerOut:], off)
	if errors.Is(err, ErrOff) {
		return nil, unix.EIO
	}
	return out[:headerOut+n], 0
}

func writeReply(d *Disk, off int64, b []byte) ([]byte, unix.Errno) {
	n, err := d.WriteAt(b, off)
	if err != nil {
		return nil, unix.EIO
	}
	out := make([]byte, headerOut+8)
	le.PutUint32(out[headerOut:], uint32(n))
	return out, 0
}

// Dir is the folder.
func (s *Server) Dir() string { return s.dir }

// Path is where a disk's file is.
func (s *Server) Path(d *Disk) string { return s.dir + string(os.PathSeparator) + d.name }
