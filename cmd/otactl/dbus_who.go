package main

import (
	"context"
	"fmt"
	"time"

	"cowbird/ota/dbus"
	"cowbird/ota/gate"
)

const (
	// maxFollowers bounds who is told of changes, and how many of these are one user's.
	maxFollowers, maxFollowersOfOne = 64, 8
	// maxAsking bounds questions to polkit, likewise: each may wait for a password.
	maxAsking, maxAskingOfOne = 16, 2
	// polkitWait is how long somebody may take to type a password.
	polkitWait = 5 * time.Minute

	polkitName   = "org.freedesktop.PolicyKit1"
	polkitPath   = "/org/freedesktop/PolicyKit1/Authority"
	polkitAction = busName + ".change"
)

// peer is who is calling, by what the bus says.
type peer struct {
	uid    uint32
	groups []uint32
}

// who asks the bus about a connection.
func (s *service) who(ctx context.Context, sender string) (p peer, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	got, err := s.conn.Ask(ctx, "GetConnectionCredentials", sender)
	if err != nil {
		return p, err
	}
	known, all := false, []any{}
	if list, ok := got[0].([]any); ok {
		all = list
	}
	for _, e := range all {
		entry, _ := e.(dbus.Entry)
		v, _ := entry.Value.(dbus.Variant)
		switch entry.Key {
		case "UnixUserID":
			p.uid, known = v.Value.(uint32)
		case "UnixGroupIDs":
			p.groups = numbers(v.Value)
		}
	}
	if !known {
		return p, fmt.Errorf("expected the bus to know the user of %s", sender)
	}
	return p, nil
}

func numbers(v any) (all []uint32) {
	list, _ := v.([]any)
	for _, e := range list {
		if n, ok := e.(uint32); ok {
			all = append(all, n)
		}
	}
	return all
}

// answer is what came of a question whether somebody may change things.
type answer struct {
	call  *dbus.Message
	found method
	uid   uint32
	err   error
}

// ask calls a method that is not for everybody, if the caller may.
func (s *service) ask(ctx context.Context, m *dbus.Message, found method) {
	p, err := s.who(ctx, m.Sender)
	switch {
	case err != nil:
		s.answer(m, nil, &dbus.Error{Name: dbus.AccessDenied, Text: err.Error()})
	case gate.Allows(p.uid, p.groups, s.group):
		s.call(ctx, m, found)
	case !s.polkit:
		s.answer(m, nil, denied(p))
	case s.asking[p.uid] >= maxAskingOfOne || len(s.asking) >= maxAsking:
		s.answer(m, nil, &dbus.Error{Name: dbus.LimitsExceeded, Text: "too many requests wait for polkit"})
	default:
		s.asking[p.uid]++
		s.soon()
		go func() {
			err := s.askPolkit(ctx, m, p)
			select {
			case s.answers <- answer{m, found, p.uid, err}:
			case <-ctx.Done():
			}
		}()
	}
}

func denied(p peer) error {
	return &dbus.Error{Name: dbus.AccessDenied, Text: fmt.Sprintf("user %d may look, but not change anything", p.uid)}
}

func (s *service) answered(ctx context.Context, a answer) {
	if s.asking[a.uid]--; s.asking[a.uid] <= 0 {
		delete(s.asking, a.uid)
	}
	s.used = time.Now()
	if a.err != nil {
		s.answer(a.call, nil, a.err)
		return
	}
	s.call(ctx, a.call, a.found)
}

// askPolkit asks it about the connection that calls, which may have its user type a
// password if the call says so.
func (s *service) askPolkit(ctx context.Context, m *dbus.Message, p peer) error {
	ctx, cancel := context.WithTimeout(ctx, polkitWait)
	defer cancel()
	no := func(err error) error {
		return &dbus.Error{Name: dbus.AccessDenied, Text: fmt.Sprintf("user %d: polkit cannot be asked: %v", p.uid, err)}
	}
	owner, err := s.polkitOwner(ctx)
	if err != nil {
		return no(err)
	}
	subject := dbus.Struct{"system-bus-name", map[string]dbus.Variant{"name": dbus.Of(m.Sender)}}
	interactive := uint32(0)
	if m.Interactive() {
		interactive = 1
	}
	got, err := s.conn.Call(ctx, owner, polkitPath, polkitName+".Authority", "CheckAuthorization", subject, polkitAction, map[string]string{}, interactive, "")
	if err != nil {
		return no(err)
	}
	if len(got) == 1 {
		if result, ok := got[0].([]any); ok && len(result) > 0 && result[0] == true {
			return nil
		}
	}
	return denied(p)
}

// polkitOwner is polkit's unique name, whose answers nobody else can give. It is
// started if it does not run.
func (s *service) polkitOwner(ctx context.Context) (string, error) {
	got, err := s.conn.Ask(ctx, "GetNameOwner", polkitName)
	if err != nil {
		if _, err = s.conn.Ask(ctx, "StartServiceByName", polkitName, uint32(0)); err == nil {
			got, err = s.conn.Ask(ctx, "GetNameOwner", polkitName)
		}
	}
	if err != nil {
		return "", err
	}
	name, _ := got[0].(string)
	return name, nil
}

// follow has the service stay, and look for changes, as long as the caller is there.
func (s *service) follow(ctx context.Context, m *dbus.Message, _ []any) error {
	if _, ok := s.followers[m.Sender]; ok {
		s.answer(m, nil, nil)
		return nil
	}
	p, err := s.who(ctx, m.Sender)
	if err != nil {
		return err
	}
	of := 0
	for _, uid := range s.followers {
		if uid == p.uid {
			of++
		}
	}
	if len(s.followers) >= maxFollowers || of >= maxFollowersOfOne {
		return &dbus.Error{Name: dbus.LimitsExceeded, Text: fmt.Sprintf("expected at most %d connections of one user to follow, %d in all", maxFollowersOfOne, maxFollowers)}
	}
	asking, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	if _, err := s.conn.Ask(asking, "AddMatch", leaving(m.Sender)); err != nil {
		return err
	}
	s.followers[m.Sender] = p.uid
	// It may have gone before the bus was asked to tell.
	if here, err := s.conn.Ask(asking, "NameHasOwner", m.Sender); err != nil || here[0] != true {
		s.forget(asking, m.Sender)
		return err
	}
	s.refresh(ctx)
	s.soon()
	s.answer(m, nil, nil)
	return nil
}

func leaving(sender string) string {
	return "type='signal',sender='" + dbus.Bus + "',interface='" + dbus.Bus + "',member='NameOwnerChanged',arg0='" + sender + "'"
}

func (s *service) unfollow(ctx context.Context, m *dbus.Message, _ []any) error {
	s.forget(ctx, m.Sender)
	s.answer(m, nil, nil)
	return nil
}

func (s *service) forget(ctx context.Context, sender string) {
	if _, ok := s.followers[sender]; !ok {
		return
	}
	delete(s.followers, sender)
	s.used = time.Now()
	asking, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	_, err := s.conn.Ask(asking, "RemoveMatch", leaving(sender))
	s.tell(err)
}

// heard takes a signal of the bus: somebody who follows has gone.
func (s *service) heard(m *dbus.Message) {
	if m.Member != "NameOwnerChanged" || m.Signature != "sss" {
		return
	}
	args, err := m.Args()
	if err == nil && args[2] == "" {
		s.forget(context.Background(), args[0].(string))
	}
}
