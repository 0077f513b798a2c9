package dmuser

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// forever is how many seconds the kernel may trust an answer: the
	// device's attributes never change.
	forever = 1 << 31
	// maxBackground is the number of reads the kernel may have waiting here.
	maxBackground = 64
	// fileMode is what the served file looks like.
	fileMode = unix.S_IFREG | 0o400
)

func isEOF(err error) bool { return errors.Is(err, io.EOF) }

// serveOther answers everything but a read; none of it takes time.
func (s *fuseServer) serveOther(req *request) {
	if !req.wantsReply() {
		return
	}
	switch req.op {
	case opInit:
		s.serveInit(req)
	case opGetattr:
		reply(s, req, s.attributes())
	case opOpen:
		reply(s, req, openOut{OpenFlags: openDirectIO | openKeepCache})
	case opStatfs:
		reply(s, req, statfsOut{Blocks: s.size / 4096, Bsize: 4096, Frsize: 4096, Files: 1, Namelen: 255})
	case opAccess, opFlush, opRelease, opDestroy:
		s.replyError(req.unique, 0)
	case opWrite, opSetattr, opFallocate, opCreate, opMknod, opMkdir, opUnlink, opRmdir,
		opRename, opRename2, opLink, opSymlink, opSetxattr, opRemovexattr:
		s.replyError(req.unique, unix.EROFS)
	default:
		// For most of these the kernel then stops asking. That holds for
		// INTERRUPT too, which may be ignored as no read here can be stopped.
		s.replyError(req.unique, unix.ENOSYS)
	}
}

func (s *fuseServer) serveInit(req *request) {
	if req.init.Major < fuseMajor {
		s.replyError(req.unique, unix.EPROTO)
		return
	}
	flags := req.init.Flags & (initAsyncRead | initAsyncDIO | initMaxPages)
	reply(s, req, initOut{
		Major: fuseMajor, Minor: fuseMinor,
		MaxReadahead: maxRead, Flags: flags,
		MaxBackground: maxBackground, CongestionThreshold: maxBackground * 3 / 4,
		MaxWrite: 4096, TimeGran: 1, MaxPages: uint16(maxRead / os.Getpagesize()),
	})
}

func (s *fuseServer) attributes() attrOut {
	return attrOut{
		Valid: forever, Ino: rootNode, Size: s.size, Blocks: s.size / 512,
		Mode: fileMode, Nlink: 1, Blksize: 4096,
	}
}

// reply sends body, a struct of plain integers that is not empty.
func reply[T any](s *fuseServer, req *request, body T) {
	var out struct {
		outHeader
		body T
	}
	out.outHeader = outHeader{Len: uint32(len(bytesOf(&out))), Unique: req.unique}
	out.body = body
	s.write(bytesOf(&out))
}

// replyError sends an answer without a body: success if errno is 0.
func (s *fuseServer) replyError(unique uint64, errno unix.Errno) {
	out := outHeader{Len: uint32(outHeaderSize), Error: -int32(errno), Unique: unique}
	s.write(bytesOf(&out))
}

// write sends one whole reply. It fails when the kernel has given up the
// request or the connection; there is nobody left to tell then.
func (s *fuseServer) write(out []byte) {
	for {
		_, err := unix.Write(s.fd, out)
		if err != unix.EINTR {
			return
		}
	}
}
