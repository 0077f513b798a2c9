package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dialEvery is the pause between two attempts to reach a daemon that is not
// there yet.
const dialEvery = 20 * time.Millisecond

// maxFrame bounds a framed reply, against a daemon that is none.
const maxFrame = 1 << 20

// Client is a connection to the daemon. It is not safe for concurrent use.
type Client struct {
	conn *os.File
}

// Dial connects to the socket at path and makes sure that the daemon behind it
// is active. While nobody listens there it tries again until ctx ends.
func Dial(ctx context.Context, path string) (*Client, error) {
	return DialWithin(ctx, path, math.MaxInt64)
}

// DialWithin is Dial for a daemon that may well not run: nobody may listen for so long
// only. One that does may take until ctx ends to answer.
func DialWithin(ctx context.Context, path string, patience time.Duration) (*Client, error) {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		conn, err := connect(path)
		if err == nil {
			return greet(ctx, conn)
		}
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return nil, fmt.Errorf("connect to %s: %w", path, err)
		}
		select {
		case <-waiting.Done():
			return nil, fmt.Errorf("connect to %s: %w: is snapuserd running, with that socket?", path, err)
		case <-time.After(dialEvery):
		}
	}
}

func connect(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func greet(ctx context.Context, conn *os.File) (*Client, error) {
	c := &Client{conn: conn}
	active, err := c.Active(ctx)
	if err == nil && !active {
		err = ErrPassive
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("connect to %s: %w", conn.Name(), err)
	}
	return c, nil
}

// Close hangs up.
func (c *Client) Close() error { return c.conn.Close() }

// Active asks whether the daemon takes requests, or is about to leave.
func (c *Client) Active(ctx context.Context) (bool, error) {
	reply, err := c.ask(ctx, Query)
	if err != nil {
		return false, err
	}
	if reply != Active && reply != Passive {
		return false, unexpected(Query, Active+" or "+Passive, reply)
	}
	return reply == Active, nil
}

// Init opens a snapshot and returns its size in 512-byte sectors.
func (c *Client) Init(ctx context.Context, name, cow, source, base string) (sectors int64, err error) {
	value, err := c.value(ctx, Init, name, cow, source, base)
	if err != nil {
		return 0, err
	}
	if sectors, err = strconv.ParseInt(value, 10, 64); err != nil {
		return 0, unexpected(Init, "a number of sectors", value)
	}
	return sectors, nil
}

// Device is the path of a started snapshot's block device.
func (c *Client) Device(ctx context.Context, name string) (string, error) {
	return c.value(ctx, DeviceName, name)
}

// Do sends a command whose reply is success without more.
func (c *Client) Do(ctx context.Context, command string, args ...string) error {
	reply, err := c.ask(ctx, command, args...)
	if err == nil && reply != Success {
		err = unexpected(command, Success, reply)
	}
	return err
}

// Tell sends a command that has no reply: Detach or Stop.
func (c *Client) Tell(ctx context.Context, command string) error {
	defer c.obey(ctx)()
	return withCause(ctx, c.send(command))
}

// Merge asks for a merge at rate bytes a second; 0 means no limit.
func (c *Client) Merge(ctx context.Context, name string, rate int64) error {
	return c.Do(ctx, MergeAt, name, strconv.FormatInt(rate, 10))
}

// Names lists the snapshots, sorted.
func (c *Client) Names(ctx context.Context) ([]string, error) {
	text, err := c.framed(ctx, List)
	return strings.Fields(text), err
}

// Status tells all about one snapshot.
func (c *Client) Status(ctx context.Context, name string) (Status, error) {
	text, err := c.framed(ctx, DetailsOf, name)
	if err != nil {
		return Status{}, err
	}
	return ParseStatus(text)
}

func (c *Client) value(ctx context.Context, command string, args ...string) (string, error) {
	reply, err := c.ask(ctx, command, args...)
	if err != nil {
		return "", err
	}
	value, ok := strings.CutPrefix(reply, Success+",")
	if !ok {
		return "", unexpected(command, Success+",…", reply)
	}
	return value, nil
}

// ask sends a command with a plain reply. For fail it asks why.
func (c *Client) ask(ctx context.Context, command string, args ...string) (string, error) {
	defer c.obey(ctx)()
	if err := c.send(command, args...); err != nil {
		return "", withCause(ctx, err)
	}
	reply := make([]byte, MaxMessage)
	n, err := c.conn.Read(reply)
	if err != nil {
		return "", withCause(ctx, fmt.Errorf("%s: reply of snapuserd: %w", command, err))
	}
	if string(reply[:n]) == Fail {
		return "", c.refused(command)
	}
	return string(reply[:n]), nil
}

func (c *Client) framed(ctx context.Context, command string, args ...string) (string, error) {
	defer c.obey(ctx)()
	if err := c.send(command, args...); err != nil {
		return "", withCause(ctx, err)
	}
	text, err := c.readFrame(command)
	if errors.Is(err, ErrRefused) {
		return "", c.refused(command)
	}
	return text, withCause(ctx, err)
}

// readFrame reads a framed reply, or a fail.
func (c *Client) readFrame(command string) (string, error) {
	var got []byte
	chunk := make([]byte, 4096)
	for want := -1; want < 0 || len(got) < want; {
		n, err := c.conn.Read(chunk)
		if err != nil {
			return "", fmt.Errorf("%s: reply of snapuserd: %w", command, err)
		}
		got = append(got, chunk[:n]...)
		if string(got) == Fail {
			return "", ErrRefused
		}
		if head, rest, ok := bytes.Cut(got, []byte("\n")); want < 0 && ok {
			if want, err = frameLength(command, string(head)); err != nil {
				return "", err
			}
			got = rest
		}
		if len(got) > maxFrame {
			return "", unexpected(command, fmt.Sprintf("at most %d bytes", maxFrame), "more")
		}
	}
	return string(got), nil
}

func frameLength(command, head string) (int, error) {
	length, _ := strings.CutPrefix(head, Success+",")
	n, err := strconv.ParseUint(length, 10, 20)
	if err != nil {
		return 0, unexpected(command, Success+" and a length up to 1048575", head)
	}
	return int(n), nil
}

func (c *Client) send(command string, args ...string) error {
	message, err := Format(command, args...)
	if err != nil {
		return err
	}
	if _, err = c.conn.WriteString(message); err != nil {
		return fmt.Errorf("%s: send to snapuserd: %w", command, err)
	}
	return nil
}

// refused makes an error of a fail, with the reason if the daemon gives one:
// Android's does not know the question, and hangs up.
func (c *Client) refused(command string) error {
	if command != Reason && c.send(Reason) == nil {
		if why, err := c.readFrame(Reason); err == nil && why != "" {
			return fmt.Errorf("%w: %s", ErrRefused, why)
		}
	}
	return fmt.Errorf("%w: %s", ErrRefused, command)
}

// obey lets the end of ctx interrupt reads and writes until the function that
// it returns is called. After that the connection is of no use, for a reply may
// still be under way.
func (c *Client) obey(ctx context.Context) (done func()) {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

func withCause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
	}
	return err
}

func unexpected(command, expected, found string) error {
	return fmt.Errorf("%w: %s: expected %s, found %q", ErrReply, command, expected, found)
}
