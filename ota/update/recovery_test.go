package update

import (
	"testing"
	"time"
)

func init() { mergePoll = time.Millisecond }

// large has COWs for which there is not enough room in super.
func large() map[string]part {
	system, vendor := noise(21, 800), noise(22, 40)
	return map[string]part{"system": {system, changed(23, system, 800)}, "vendor": {vendor, changed(24, vendor, 12)}}
}

// SNM-029, SNM-030: a recovery system finishes a merge that has begun, leaves nothing
// mapped, and what lies in the user's data to the device's own system.
func TestFinishInRecovery(t *testing.T) {
	w, u := tried(t, large())
	if len(w.images.files) == 0 {
		t.Fatal("expected a COW in a file, found none")
	}
	w.wantError(w.m.FinishInRecovery(ctx), ErrState) // not begun: that is for the system to decide
	must(t, w.m.InitiateMerge(ctx))
	w.cycle()
	w.m.Recovery, w.daemon.eager = true, true
	must(t, w.m.FinishInRecovery(ctx))
	w.wantState(completed)
	if len(w.mapper.tables) > 0 {
		t.Errorf("expected nothing to be mapped, found %v", w.mapper.tables)
	}
	if len(w.images.files) == 0 {
		t.Error("expected the file of the COW to be left, found none")
	}
	must(t, w.m.FinishInRecovery(ctx)) // again

	w.cycle()
	_, err := w.m.Boot(ctx)
	must(t, err)
	w.isSystemOf(u, true)
	w.process(none)
	w.isSystemOf(u, true)
	if len(w.images.files) > 0 {
		t.Errorf("expected no file of a COW, found %v", w.images.files)
	}
}

// What is mapped already is left so: it is the running system.
func TestFinishInRecoveryMapped(t *testing.T) {
	w, u := tried(t, plain())
	w.m.Recovery, w.daemon.eager = true, true
	must(t, w.m.InitiateMerge(ctx))
	must(t, w.m.FinishInRecovery(ctx))
	w.wantState(completed)
	w.isSystemOf(u, true)
}

// The power goes at every step of a merge in a recovery system, which is tried again, or
// in its place the device's own system boots.
func TestFinishInRecoveryCut(t *testing.T) {
	parts := large()
	u := newUpdate(t, parts)
	stride := 1
	if raceDetector {
		stride = 7
	}
	for cut, ended := 1, false; !ended; cut += stride {
		w := u.installed(t, parts)
		w.cycle()
		_, err := w.m.Boot(ctx)
		must(t, err)
		ended = finishedDespite(t, w, u, cut, cut%2 == 0)
	}
}

// finishedDespite reports whether all was done before the power went.
func finishedDespite(t *testing.T, w *world, u *update, cut int, again bool) (ended bool) {
	must(t, w.m.InitiateMerge(ctx))
	w.cycle()
	w.m.Recovery, w.daemon.eager = true, true
	w.cutAt = w.steps + cut
	ended = w.m.FinishInRecovery(ctx) == nil
	w.cutAt = 0
	w.cycle()
	if again {
		w.m.Recovery, w.daemon.eager = true, true
		must(t, w.m.FinishInRecovery(ctx))
		w.cycle()
	}
	w.daemon.eager = true
	_, err := w.m.Boot(ctx)
	must(t, err)
	w.isSystemOf(u, true)
	s, err := w.m.Wait(ctx, time.Millisecond)
	must(t, err)
	if s != none || len(w.images.files) > 0 {
		t.Errorf("cut at %d: expected no update and no file of a COW, found %v and %v", cut, s, w.images.files)
	}
	w.isSystemOf(u, true)
	return ended
}

// SNM-034: an update that a recovery system cancels is gone; the file of its COW is left
// for the device's own system.
func TestCancelInRecovery(t *testing.T) {
	w, u := installed(t, large())
	w.cycle()
	w.slot = 0 // the boot loader is told to take the old system, and its recovery
	w.start(0)
	w.m.Recovery = true
	must(t, w.m.Cancel(ctx))
	w.wantState(none)
	if len(w.images.files) == 0 {
		t.Error("expected the file of the COW to be left, found none")
	}
	w.cycle()
	_, err := w.m.Boot(ctx)
	must(t, err)
	w.isSystemOf(u, false)
	w.process(none)
	if len(w.images.files) > 0 {
		t.Errorf("expected no file of a COW, found %v", w.images.files)
	}
}
