package main

import (
	"fmt"
	"io"
)

// A cpio writer makes the archive that a kernel unpacks as its first root
// ("newc", see the kernel's buffer-format.rst). The first error sticks.
type cpio struct {
	w   io.Writer
	n   int64
	ino int
	err error
}

const (
	cpioDir  = 0o040755
	cpioFile = 0o100755
)

func (c *cpio) add(name string, mode int, body []byte) {
	c.ino++
	c.printf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.ino, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name)+1, 0, name)
	c.pad()
	c.write(body)
	c.pad()
}

// close ends the archive.
func (c *cpio) close() error {
	c.add("TRAILER!!!", 0, nil)
	return c.err
}

func (c *cpio) pad() { c.write(make([]byte, -c.n&3)) }

func (c *cpio) printf(format string, args ...any) { c.write(fmt.Appendf(nil, format, args...)) }

func (c *cpio) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.n += int64(n)
	c.err = err
}
