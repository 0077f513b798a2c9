package update

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"cowbird/ota/control"
)

// Without a daemon there is nothing to delete; one that takes its time is waited for.
func TestDeleteSlowly(t *testing.T) {
	d := Snapuserd{Socket: filepath.Join(t.TempDir(), "socket"), Timeout: 30 * time.Second}
	must(t, d.Delete(ctx, "system_b"))

	l, err := net.Listen("unix", d.Socket)
	must(t, err)
	answered := make(chan error, 1)
	go func() { answered <- answerSlowly(l) }()
	must(t, d.Delete(ctx, "system_b"))
	must(t, <-answered)

	must(t, l.Close()) // and its socket
	must(t, d.Delete(ctx, "system_b"))
}

// answerSlowly is a daemon on a busy machine.
func answerSlowly(l net.Listener) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	time.Sleep(500 * time.Millisecond)
	b := make([]byte, control.MaxMessage)
	for _, reply := range []string{control.Active, control.Success} {
		if _, err := c.Read(b); err != nil {
			return errors.Join(errors.New("expected a request"), err)
		}
		if _, err := c.Write([]byte(reply)); err != nil {
			return err
		}
	}
	return nil
}
