package dbus

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
)

// ErrAddress: no address of a bus that can be used here.
var ErrAddress = errors.New("malformed D-Bus address")

// SystemBus is the address of the system bus.
func SystemBus() string {
	if a := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); a != "" {
		return a
	}
	return "unix:path=/run/dbus/system_bus_socket"
}

// sockets are the paths that an address names; an abstract one begins with @.
func sockets(address string) (paths []string, err error) {
	for one := range strings.SplitSeq(address, ";") {
		args, ok := strings.CutPrefix(one, "unix:")
		if !ok {
			continue
		}
		for arg := range strings.SplitSeq(args, ",") {
			key, value, _ := strings.Cut(arg, "=")
			value, err := url.PathUnescape(value)
			switch {
			case err != nil:
				return nil, fmt.Errorf("%w: %q: %w", ErrAddress, address, err)
			case key == "path":
				paths = append(paths, value)
			case key == "abstract":
				paths = append(paths, "@"+value)
			}
		}
	}
	if paths == nil {
		return nil, fmt.Errorf("%w: expected unix:path=… or unix:abstract=…, found %q", ErrAddress, address)
	}
	return paths, nil
}

// connect reaches the first socket of an address on which somebody answers.
func connect(ctx context.Context, address string) (net.Conn, error) {
	paths, err := sockets(address)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range paths {
		c, err := new(net.Dialer).DialContext(ctx, "unix", p)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// authenticate says who we are; the bus looks at the socket's credentials.
func authenticate(c net.Conn, r *bufio.Reader) error {
	id := hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))
	if _, err := fmt.Fprintf(c, "\x00AUTH EXTERNAL %s\r\n", id); err != nil {
		return err
	}
	line, err := r.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("answer of the bus: %w", err)
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return fmt.Errorf("%w: expected OK from the bus, found %.80q", ErrFormat, line)
	}
	_, err = c.Write([]byte("BEGIN\r\n"))
	return err
}
