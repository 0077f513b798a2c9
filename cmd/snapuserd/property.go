package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// setPropertyCommand begins a message to Android's property service, in the
	// second version of its protocol: a name and a value follow, each with its
	// length before it, and a number comes back.
	setPropertyCommand = 0x00020001
	propertyPatience   = 5 * time.Second
)

// setProperty has the property service at path set a property.
func setProperty(path, name, value string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("connect to %s: %w", path, err)
	}
	conn := os.NewFile(uintptr(fd), path)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(propertyPatience))
	message := binary.NativeEndian.AppendUint32(nil, setPropertyCommand)
	for _, s := range []string{name, value} {
		message = append(binary.NativeEndian.AppendUint32(message, uint32(len(s))), s...)
	}
	if _, err := conn.Write(message); err != nil {
		return err
	}
	var reply [4]byte
	if _, err := io.ReadFull(conn, reply[:]); err != nil {
		return fmt.Errorf("reply of the property service: %w", err)
	}
	if code := binary.NativeEndian.Uint32(reply[:]); code != 0 {
		return fmt.Errorf("refused by the property service with code %#x", code)
	}
	return nil
}
