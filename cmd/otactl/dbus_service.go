package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"cowbird/formats/snapshotpb"
	"cowbird/ota/dbus"
)

const (
	// fresh is how long a look at the device is good for.
	fresh = 200 * time.Millisecond
	// lookWait is how long a call waits for one; somebody may have the device locked.
	lookWait = time.Second
	// The times between two looks for those who follow: while something goes on, and
	// while nothing does.
	busyEvery, quietEvery = time.Second, 5 * time.Second
	// stopWait is how long a job may take to end when the service does.
	stopWait = 10 * time.Second
)

// service is the update on the bus. All of it is one goroutine's, but for jobs, looks
// and questions to polkit, which come back by channels.
type service struct {
	*whole
	conn   *dbus.Conn
	device busDevice
	group  int
	polkit bool
	idle   time.Duration
	log    *slog.Logger

	followers map[string]uint32 // users by connection
	asking    map[uint32]int    // questions to polkit by user
	answers   chan answer
	job       *job
	lastError string

	looking chan outlook
	last    outlook
	seen    time.Time // of last; zero: never
	shown   map[string]dbus.Variant

	leaving bool      // nothing is begun any more
	used    time.Time // when somebody last wanted something
	next    time.Time // when to look for those who follow
}

// outlook is what a look at the device has found.
type outlook struct {
	event
	standing *standing
	err      error
}

func (s *service) run(ctx context.Context) error {
	s.followers, s.asking, s.answers = map[string]uint32{}, map[uint32]int{}, make(chan answer)
	s.used = time.Now()
	for {
		timer := time.NewTimer(s.wait())
		select {
		case <-ctx.Done():
			return s.stop()
		case m, ok := <-s.conn.Incoming():
			if !ok {
				return fmt.Errorf("%w: %w", errBusGone, s.conn.Err())
			}
			s.take(ctx, m)
		case a := <-s.answers:
			s.answered(ctx, a)
		case err := <-s.job.end():
			s.finish(ctx, err)
		case <-timer.C:
			if !s.busy() {
				if left, err := s.leave(ctx); left || err != nil {
					return err
				}
				continue
			}
			s.refresh(ctx)
			s.next = time.Now().Add(s.every())
		}
		timer.Stop()
	}
}

// busy tells whether somebody follows, or something is being done.
func (s *service) busy() bool { return len(s.followers) > 0 || s.job != nil || len(s.asking) > 0 }

func (s *service) every() time.Duration {
	if s.job != nil || s.last.State == snapshotpb.UpdateState_Merging.String() {
		return busyEvery
	}
	return quietEvery
}

// wait is how long there is nothing to do, if nobody wants anything.
func (s *service) wait() time.Duration {
	switch {
	case s.busy():
		return time.Until(s.next)
	case s.idle == 0:
		return time.Hour
	}
	return time.Until(s.used.Add(s.idle))
}

// soon has the next look be one at once.
func (s *service) soon() { s.next = time.Now() }

// leave gives the name back, so that the bus starts the service anew for whoever calls
// next, and answers those that have called before. systemd has to know first: to start
// a service that still runs would do nothing.
func (s *service) leave(ctx context.Context) (left bool, err error) {
	if s.idle == 0 || time.Since(s.used) < s.idle {
		return false, nil
	}
	s.leaving = true
	if err := notify("STOPPING=1"); err != nil {
		s.log.Warn("service manager", "error", err)
	}
	asking, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	if err := s.conn.Disown(asking, busName); err != nil {
		return false, err
	}
	for s.conn.Pending() > 0 {
		select {
		case m, ok := <-s.conn.Incoming():
			if !ok {
				return true, nil
			}
			s.take(ctx, m)
		case <-time.After(time.Millisecond): // it has just been taken
		}
	}
	return true, nil
}

// notify tells the service manager something, if there is one.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.Dial("unixgram", path)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}

// stop ends what is being done, in a way that it can be gone on with.
func (s *service) stop() error {
	if s.job == nil {
		return nil
	}
	s.job.cancel()
	select {
	case err := <-s.job.end():
		s.answer(s.job.call, nil, err)
		return nil
	case <-time.After(stopWait):
		return fmt.Errorf("%s: it does not end", s.job.name)
	}
}

// refresh looks at the device, unless that was done just now, and tells all who listen
// what has changed. A look that takes long goes on by itself.
func (s *service) refresh(ctx context.Context) {
	if !s.seen.IsZero() && time.Since(s.seen) < fresh {
		return
	}
	wait := time.Duration(0)
	if s.looking == nil {
		s.looking, wait = make(chan outlook, 1), lookWait
		go func(to chan outlook) {
			e, st, err := s.device.look(ctx)
			to <- outlook{e, st, err}
		}(s.looking)
	}
	select {
	case s.last = <-s.looking:
		s.looking, s.seen = nil, time.Now()
	case <-time.After(wait):
	}
	s.publish()
}

// again looks at the device as it is from now on.
func (s *service) again(ctx context.Context) {
	if s.looking != nil {
		select {
		case <-s.looking:
			s.looking = nil
		case <-time.After(lookWait):
		}
	}
	s.seen = time.Time{}
	s.refresh(ctx)
}

// publish tells of properties that are not what was told last.
func (s *service) publish() {
	if s.last.standing == nil {
		return
	}
	now, changed := s.properties(), map[string]dbus.Variant{}
	for name, v := range now {
		if !equal(v, s.shown[name]) {
			changed[name] = v
		}
	}
	if s.shown != nil && len(changed) > 0 {
		s.tell(s.conn.Emit(busObject, propertiesInterface, "PropertiesChanged", busName, changed, []string{}))
	}
	s.shown = now
}

// tell logs what could not be sent: the connection's end is seen elsewhere.
func (s *service) tell(err error) {
	if err != nil {
		s.log.Warn("message bus", "error", err)
	}
}
