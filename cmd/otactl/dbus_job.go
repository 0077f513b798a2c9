package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cowbird/ota/dbus"
	"cowbird/ota/install"
	"cowbird/ota/update"
	"cowbird/ota/verify"
)

// Errors of our own on the bus.
const (
	errorFailed      = busName + ".Error.Failed"
	errorBusy        = busName + ".Error.Busy"
	errorNotPossible = busName + ".Error.NotPossible"
	errorNoSpace     = busName + ".Error.NoSpace"
	errorRefused     = busName + ".Error.Refused"
)

// The jobs, as the property Operation names them.
const (
	jobInstall  = "install"
	jobCancel   = "cancel"
	jobMerge    = "merge"
	jobRollback = "rollback"
	jobMark     = "mark-successful"
	noJob       = "idle"
)

// job is one change to the update. There is one at a time.
type job struct {
	name   string
	call   *dbus.Message // to be answered when it has ended; nil: it was already
	cancel context.CancelFunc
	ended  chan error
	after  *dbus.Message // a Cancel to be done when it has ended

	pace pace
}

// end is where a job says that it has ended; a nil one never does.
func (j *job) end() chan error {
	if j == nil {
		return nil
	}
	return j.ended
}

// start begins a job, unless there is one. call is answered at its end, or at once if
// it is long.
func (s *service) start(ctx context.Context, call *dbus.Message, name string, long bool, do func(context.Context, *job) error) {
	if s.job != nil {
		s.answer(call, nil, &dbus.Error{Name: errorBusy, Text: s.job.name + " goes on: cancel it, or wait for its end"})
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	j := &job{name: name, call: call, cancel: cancel, ended: make(chan error, 1)}
	if long {
		s.answer(call, nil, nil)
		j.call = nil
	}
	s.job, s.lastError = j, ""
	s.log.Info("begins", "what", name, "for", call.Sender)
	go func() { j.ended <- do(ctx, j) }()
	s.soon()
}

// finish is for when a job has ended.
func (s *service) finish(ctx context.Context, err error) {
	j := s.job
	j.cancel()
	s.job, s.used = nil, time.Now()
	if err != nil {
		s.lastError = reason(err)
	}
	s.log.Info("ended", "what", j.name, "error", err)
	s.again(ctx)
	s.tell(s.conn.Emit(busObject, busName, "Finished", j.name, s.lastError))
	if j.call != nil {
		s.answer(j.call, nil, err)
	}
	if j.after != nil {
		s.cancelUpdate(ctx, j.after)
	}
}

func (s *service) install(ctx context.Context, m *dbus.Message, args []any) error {
	source, restart, err := installArgs(args)
	if err != nil {
		return err
	}
	s.start(ctx, m, jobInstall, true, func(ctx context.Context, j *job) error {
		if err := checkSource(source); err != nil {
			return err
		}
		return s.device.install(ctx, source, restart, j.pace.update)
	})
	return nil
}

func installArgs(args []any) (source string, restart bool, err error) {
	source = args[0].(string)
	for _, o := range args[1].([]any) {
		name, value := o.(dbus.Entry).Key.(string), o.(dbus.Entry).Value.(dbus.Variant).Value
		b, isBool := value.(bool)
		if name != "restart" || !isBool {
			return "", false, &dbus.Error{Name: dbus.InvalidArgs, Text: fmt.Sprintf("expected the option restart, a boolean; found %.40q, a %T", name, value)}
		}
		restart = b
	}
	if u, err := url.Parse(source); err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" {
		return source, restart, nil
	}
	if !filepath.IsAbs(source) {
		return "", false, &dbus.Error{Name: dbus.InvalidArgs, Text: fmt.Sprintf("expected the full path of a file, or an http(s) URL; found %.80q", source)}
	}
	return source, restart, nil
}

// checkSource refuses what a file may not be: the opening of a pipe waits for ever.
func checkSource(source string) error {
	if !filepath.IsAbs(source) {
		return nil
	}
	st, err := os.Stat(source)
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s: expected a regular file, found %v", source, st.Mode())
	}
	return err
}

// cancelUpdate ends an installation first, if it is this service's.
func (s *service) cancelUpdate(ctx context.Context, m *dbus.Message) {
	if j := s.job; j != nil && j.name == jobInstall && j.after == nil {
		j.after = m
		j.cancel()
		return
	}
	s.start(ctx, m, jobCancel, false, func(ctx context.Context, _ *job) error { return s.device.cancel(ctx) })
}

// reason is an error in one line, with what to do about it.
func reason(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if a := advice(err); a != "" {
		text += ": " + a
	}
	return text
}

// busError gives an error its name.
func busError(err error) *dbus.Error {
	var known *dbus.Error
	var refused *verify.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, update.ErrState), errors.Is(err, update.ErrLive), errors.Is(err, update.ErrNeedsMerge), errors.Is(err, install.ErrPending), errors.Is(err, install.ErrOther):
		return &dbus.Error{Name: errorNotPossible, Text: reason(err)}
	case errors.Is(err, update.ErrNoSpace):
		return &dbus.Error{Name: errorNoSpace, Text: reason(err)}
	case errors.As(err, &refused):
		return &dbus.Error{Name: errorRefused, Text: reason(err)}
	}
	return &dbus.Error{Name: errorFailed, Text: reason(err)}
}
