package snapd

import (
	"fmt"
	"strconv"
	"strings"

	"cowbird/ota/control"
)

// execute does what a well-formed request asks and returns the reply. An error
// is answered with fail.
func (s *Server) execute(r control.Request) (reply string, err error) {
	switch r.Command {
	case control.Query:
		return s.query(), nil
	case control.Stop:
		s.log.Info("a client says stop")
		s.cancel()
		return "", nil
	case control.Detach:
		s.detach()
		return "", nil
	case control.MergePercent:
		return control.FormatPercent(s.percent()), nil
	case control.PauseMerge, control.ResumeMerge:
		s.pauseAll(r.Command == control.PauseMerge)
		return control.Success, nil
	case control.List:
		return framed(s.names()), nil
	case control.Init:
		return s.init(r.Args[0], paths{cow: r.Args[1], source: r.Args[2], base: r.Args[3]})
	case control.Supports:
		return supports(r.Args[0])
	case control.Create, control.UpdateVerify:
		return "", fmt.Errorf("%w: %s", ErrNotHere, strings.Join(append([]string{r.Command}, r.Args...), ","))
	}
	return s.executeFor(r)
}

// executeFor does the requests that name one snapshot.
func (s *Server) executeFor(r control.Request) (reply string, err error) {
	n, err := s.find(r.Args[0])
	if err != nil {
		switch r.Command {
		case control.GetStatus:
			return control.StateFailed, nil
		case control.Delete:
			return control.Success, nil
		}
		return "", err
	}
	reply = control.Success
	switch r.Command {
	case control.GetStatus:
		reply = s.status(n).State
	case control.DetailsOf:
		reply = framed(s.status(n).Text())
	case control.DeviceName:
		return s.deviceName(n)
	case control.Start:
		err = s.start(n)
	case control.InitiateMerge:
		err = s.enqueue(n, 0)
	case control.MergeAt:
		err = s.mergeAt(n, r.Args[1])
	case control.Pause, control.Resume:
		s.pause(n, r.Command == control.Pause)
	case control.Delete:
		err = s.remove(n)
	}
	return reply, err
}

// supports knows one feature: a later daemon waits for the socket (Config.Later).
func supports(feature string) (reply string, err error) {
	if feature == control.SocketHandOff {
		return control.Success, nil
	}
	return "", fmt.Errorf("%w: %s,%s", ErrNotHere, control.Supports, feature)
}

func framed(text string) string {
	return control.Success + "," + strconv.Itoa(len(text)) + "\n" + text
}

func (s *Server) query() string {
	if s.isLeaving() {
		return control.Passive
	}
	return control.Active
}

func (s *Server) find(name string) (*snap, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.snaps[name]; n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrUnknown, name)
}

// percent is the mean over all snapshots.
func (s *Server) percent() float64 {
	all := s.all()
	sum := 0.0
	for _, n := range all {
		p := n.snapshot.Progress()
		sum += control.Percent(p.MergedOps, p.TotalOps)
	}
	return sum / float64(max(len(all), 1))
}

// names lists the snapshots, a line each.
func (s *Server) names() string {
	var b strings.Builder
	for _, n := range s.all() {
		b.WriteString(n.name + "\n")
	}
	return b.String()
}

func (s *Server) deviceName(n *snap) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.device == nil {
		return "", fmt.Errorf("%w: %s", ErrNotStarted, n.name)
	}
	return control.Success + "," + n.device.Path(), nil
}

func (s *Server) mergeAt(n *snap, rate string) error {
	r, err := strconv.ParseInt(rate, 10, 64)
	if err != nil || r < 0 {
		return fmt.Errorf("%w: rate: expected bytes a second, 0 or more, found %q", control.ErrMessage, rate)
	}
	return s.enqueue(n, r)
}
