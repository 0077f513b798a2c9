package main

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"cowbird/ota/dbus"
)

const (
	propertiesInterface = "org.freedesktop.DBus.Properties"
	introspectInterface = "org.freedesktop.DBus.Introspectable"
	peerInterface       = "org.freedesktop.DBus.Peer"
	readOnlyProperty    = "org.freedesktop.DBus.Error.PropertyReadOnly"
	unknownObject       = "org.freedesktop.DBus.Error.UnknownObject"
	unknownProperty     = "org.freedesktop.DBus.Error.UnknownProperty"
)

// method is one that can be called.
type method struct {
	in       string // signature
	change   bool   // not for everybody
	anywhere bool   // on all objects
	stays    bool   // has the service stay
	// do answers the call itself, now or later, or gives an error.
	do func(s *service, ctx context.Context, m *dbus.Message, args []any) error
}

// methods by interface and name. It is a function since its methods lead back to it.
func methods(iface, member string) (method, bool) {
	switch iface + "." + member {
	case propertiesInterface + ".Get":
		return method{in: "ss", do: (*service).getProperty}, true
	case propertiesInterface + ".GetAll":
		return method{in: "s", do: (*service).getProperties}, true
	case propertiesInterface + ".Set":
		return method{in: "ssv", do: (*service).setProperty}, true
	case introspectInterface + ".Introspect":
		return method{anywhere: true, do: (*service).introspect}, true
	case peerInterface + ".Ping":
		return method{anywhere: true, do: (*service).ping}, true
	case busName + ".Follow":
		return method{stays: true, do: (*service).follow}, true
	case busName + ".Unfollow":
		return method{do: (*service).unfollow}, true
	}
	if iface != busName {
		return method{}, false
	}
	return changes(member)
}

// changes are the methods that are not for everybody.
func changes(member string) (method, bool) {
	short := func(name string, do func(busDevice, context.Context) error) (method, bool) {
		return method{change: true, do: func(s *service, ctx context.Context, m *dbus.Message, _ []any) error {
			s.start(ctx, m, name, false, func(ctx context.Context, _ *job) error { return do(s.device, ctx) })
			return nil
		}}, true
	}
	switch member {
	case "Install":
		return method{in: "sa{sv}", change: true, do: (*service).install}, true
	case "Cancel":
		return method{change: true, do: func(s *service, ctx context.Context, m *dbus.Message, _ []any) error {
			s.cancelUpdate(ctx, m)
			return nil
		}}, true
	case "Merge":
		return method{change: true, do: func(s *service, ctx context.Context, m *dbus.Message, _ []any) error {
			s.start(ctx, m, jobMerge, true, func(ctx context.Context, _ *job) error { return s.device.merge(ctx) })
			return nil
		}}, true
	case "Rollback":
		return short(jobRollback, busDevice.rollback)
	case "MarkSuccessful":
		return short(jobMark, busDevice.markSuccessful)
	}
	return method{}, false
}

// take deals with a message from the bus.
func (s *service) take(ctx context.Context, m *dbus.Message) {
	if m.Type == dbus.Signal {
		s.heard(m)
		return
	}
	s.used = time.Now()
	found, ok := methods(m.Interface, m.Member)
	for _, iface := range []string{busName, propertiesInterface, introspectInterface, peerInterface} {
		if m.Interface == "" && !ok {
			found, ok = methods(iface, m.Member)
		}
	}
	switch {
	case !ok:
		s.answer(m, nil, &dbus.Error{Name: dbus.UnknownMethod, Text: fmt.Sprintf("no method %.80q of %.80q", m.Member, m.Interface)})
	case m.Path != busObject && !found.anywhere:
		s.answer(m, nil, &dbus.Error{Name: unknownObject, Text: "expected " + busObject})
	case m.Signature != found.in || m.TooLong:
		s.answer(m, nil, &dbus.Error{Name: dbus.InvalidArgs, Text: fmt.Sprintf("expected arguments of types %q, at most %d bytes; found %.80q", found.in, dbus.MaxBody, m.Signature)})
	case s.leaving && (found.change || found.stays):
		s.answer(m, nil, &dbus.Error{Name: errorBusy, Text: "the service was just ending; call again"})
	case found.change:
		s.ask(ctx, m, found)
	default:
		s.call(ctx, m, found)
	}
}

// call calls a method on behalf of one who may.
func (s *service) call(ctx context.Context, m *dbus.Message, found method) {
	args, err := m.Args()
	if err != nil {
		err = &dbus.Error{Name: dbus.InvalidArgs, Text: err.Error()}
	} else {
		err = found.do(s, ctx, m, args)
	}
	if err != nil {
		s.answer(m, nil, err)
	}
}

// answer answers a call, or says why it failed.
func (s *service) answer(m *dbus.Message, values []any, err error) {
	switch {
	case m == nil:
	case err != nil:
		e := busError(err)
		s.tell(s.conn.Fail(m, e.Name, e.Text))
	default:
		s.tell(s.conn.Reply(m, values...))
	}
}

func (s *service) ping(_ context.Context, m *dbus.Message, _ []any) error {
	s.answer(m, nil, nil)
	return nil
}

// introspect tells the way to the object, and what it has.
func (s *service) introspect(_ context.Context, m *dbus.Message, _ []any) error {
	child, ok := map[string]string{"/": "org", "/org": "cowbird", "/org/cowbird": "Update1"}[m.Path]
	switch {
	case m.Path == busObject:
		s.answer(m, []any{introspection}, nil)
	case ok:
		s.answer(m, []any{introspectionHead + "<node>\n  <node name=\"" + child + "\"/>\n</node>\n"}, nil)
	default:
		return &dbus.Error{Name: unknownObject, Text: "expected " + busObject}
	}
	return nil
}

func (s *service) setProperty(_ context.Context, _ *dbus.Message, args []any) error {
	return &dbus.Error{Name: readOnlyProperty, Text: fmt.Sprintf("%.80q cannot be set", args[1])}
}

func (s *service) getProperty(ctx context.Context, m *dbus.Message, args []any) error {
	all, err := s.lookUp(ctx, args[0])
	if err != nil {
		return err
	}
	v, ok := all[args[1].(string)]
	if !ok {
		return &dbus.Error{Name: unknownProperty, Text: fmt.Sprintf("no property %.80q", args[1])}
	}
	s.answer(m, []any{v}, nil)
	return nil
}

func (s *service) getProperties(ctx context.Context, m *dbus.Message, args []any) error {
	all, err := s.lookUp(ctx, args[0])
	if err == nil {
		s.answer(m, []any{all}, nil)
	}
	return err
}

// lookUp gives the properties of an interface as they are.
func (s *service) lookUp(ctx context.Context, iface any) (map[string]dbus.Variant, error) {
	if iface == introspectInterface || iface == peerInterface || iface == propertiesInterface {
		return nil, nil
	}
	if iface != busName && iface != "" {
		return nil, &dbus.Error{Name: dbus.InvalidArgs, Text: fmt.Sprintf("no interface %.80q", iface)}
	}
	s.refresh(ctx)
	switch {
	case s.last.err != nil:
		return nil, s.last.err
	case s.last.standing == nil:
		return nil, &dbus.Error{Name: errorBusy, Text: "another program has the update locked; try again"}
	}
	return s.properties(), nil
}

// properties are those of the last look, and of the job.
func (s *service) properties() map[string]dbus.Variant {
	e, operation, slots := s.last.event, noJob, map[string]string{}
	if s.last.standing != nil {
		slots = s.last.standing.Slots
	}
	if j := s.job; j != nil {
		operation = j.name
		e.show(j.pace.now())
	}
	size := func(n int64) dbus.Variant { return dbus.Of(uint64(max(0, n))) }
	return map[string]dbus.Variant{
		"State": dbus.Of(e.State), "Slot": dbus.Of(e.Slot), "NextSlot": dbus.Of(e.Next), "Slots": dbus.Of(slots),
		"Successful": dbus.Of(e.Good), "RebootNeeded": dbus.Of(e.Reboot), "Operation": dbus.Of(operation),
		"Percent": dbus.Of(e.Percent), "BytesDone": size(e.Written), "BytesTotal": size(e.Total), "SecondsLeft": size(e.SecondsLeft),
		"Paused": dbus.Of(e.Paused), "SpaceUsed": size(e.Used), "SpaceFree": size(e.Free),
		"MergePhase": dbus.Of(e.Phase), "MergeFailure": dbus.Of(e.Failure), "LastError": dbus.Of(s.lastError),
	}
}

func equal(a, b dbus.Variant) bool { return reflect.DeepEqual(a, b) }
