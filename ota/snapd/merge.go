package snapd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cowbird/cow"
	"cowbird/ota/control"
)

// phase is where a snapshot is in the merge queue.
type phase uint8

const (
	idle phase = iota
	queued
	merging
)

// enqueue has n merged when its turn comes. It is a success if that is under
// way or done already. rate is in bytes a second; 0 means no limit.
func (s *Server) enqueue(n *snap, rate int64) error {
	status := n.snapshot.Progress().Status // may wait for a read, so not under mu
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.leaving:
		return ErrLeaving
	case n.removed:
		return fmt.Errorf("%w: %q", ErrUnknown, n.name)
	case n.device == nil:
		return fmt.Errorf("merge %s: %w: map it first", n.name, ErrNotStarted)
	case n.files.readOnly != nil:
		return fmt.Errorf("merge %s: cannot be written to: %w", n.name, n.files.readOnly)
	case n.phase != idle || status == cow.StatusComplete:
		return nil
	}
	n.phase, n.rate = queued, rate
	s.queue = append(s.queue, n)
	s.nextMerge()
	return nil
}

// nextMerge begins merges while there is room. It is called with mu held.
func (s *Server) nextMerge() {
	for s.merging < s.cfg.Merges && len(s.queue) > 0 {
		n := s.queue[0]
		s.queue = slices.Delete(s.queue, 0, 1)
		var ctx context.Context
		ctx, n.cancel = context.WithCancel(s.ctx)
		n.phase, n.ended = merging, make(chan struct{})
		s.merging++
		s.work.Go(func() { s.merge(ctx, n) })
	}
}

func (s *Server) merge(ctx context.Context, n *snap) {
	s.log.Info("merge begins", "name", n.name, "ops", n.snapshot.Progress().TotalOps, "merged", n.snapshot.Progress().MergedOps)
	began := time.Now()
	s.quiet.begin()
	s.procs.widen() // a merge reads and writes at a time
	stats, err := n.snapshot.Merge(ctx, cow.MergeOptions{Rate: n.rate, Priority: s.cfg.Priority})
	s.quiet.end()
	took := time.Since(began).Round(time.Millisecond)
	switch {
	case err == nil:
		s.log.Info("merge complete", "name", n.name, "blocks", stats.BlocksWritten, "syncs", stats.Syncs, "took", took)
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		s.log.Info("merge stopped; what is merged is committed", "name", n.name, "merged", n.snapshot.Progress().MergedOps, "took", took)
	default:
		s.log.Error("merge failed; the snapshot is still served", "name", n.name, "err", err, "took", took)
	}
	s.mergeEnded(n)
}

func (s *Server) mergeEnded(n *snap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.cancel()
	n.phase = idle
	close(n.ended)
	s.merging--
	s.nextMerge()
}

// dequeue takes n out of the queue or stops its merge. It is called with mu held.
func (s *Server) dequeue(n *snap) {
	switch n.phase {
	case queued:
		n.phase = idle
		s.queue = slices.DeleteFunc(s.queue, func(q *snap) bool { return q == n })
	case merging:
		n.cancel()
	}
}

// endMerge stops n's merge. The channel is closed when that has happened.
func (s *Server) endMerge(n *snap) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dequeue(n)
	if n.phase == merging {
		return n.ended
	}
	none := make(chan struct{})
	close(none)
	return none
}

// pauseAll pauses or resumes the merges of all snapshots, those to come as well.
func (s *Server) pauseAll(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = on
	for _, n := range s.snaps {
		n.pause(on)
	}
}

func (s *Server) pause(n *snap, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.pause(on)
}

// pause is called with Server.mu held.
func (n *snap) pause(on bool) {
	n.paused = on
	if on {
		n.snapshot.Pause()
	} else {
		n.snapshot.Resume()
	}
}

// status tells all about n.
func (s *Server) status(n *snap) control.Status {
	p := n.snapshot.Progress() // may wait for a read, so not under mu
	s.mu.Lock()
	defer s.mu.Unlock()
	t := control.Status{
		Name: n.name, State: string(p.Status), Carrier: s.cfg.Carrier.Name(),
		Base: n.paths.base, Cow: n.paths.cow, Source: n.paths.source,
		Size: n.snapshot.Size(), Percent: control.Percent(p.MergedOps, p.TotalOps),
		MergedOps: int64(p.MergedOps), TotalOps: int64(p.TotalOps), OrderedOps: int64(p.OrderedOps),
		BytesWritten: p.BytesWritten, BytesTotal: p.BytesTotal, ReadErrors: n.backend.failed.Load(),
		SecondsLeft: int64(p.Left.Round(time.Second) / time.Second), Rate: n.rate, Queued: n.phase == queued, Paused: n.paused,
	}
	if n.phase != idle && p.Status != cow.StatusComplete {
		t.State = control.StateMerging
	}
	if n.device != nil {
		t.Device = n.device.Path()
	}
	t.Error = reasonText(errors.Join(p.Err, n.lost))
	return t
}
