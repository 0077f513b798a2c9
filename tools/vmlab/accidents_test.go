//go:build vmhost

package main

import (
	"slices"
	"strings"
	"testing"

	"cowbird/formats/bootctl"
	"cowbird/formats/lpmeta"
)

// The accidents that are not left to chance: each has a device of its own, which must
// be where it should be afterwards.

// TestAccidents lives through them.
func TestAccidents(t *testing.T) {
	w := newWorkshop(t)
	for _, a := range []struct {
		name string
		live func(*accident)
	}{
		{"NoSpace", (*accident).noSpace},
		{"NeverGood", (*accident).neverGood},
		{"BadRoot", (*accident).badRoot},
		{"BadVendor", (*accident).badVendor},
		{"BadCowHeader", func(a *accident) { a.badCow(0) }},
		{"BadCowData", (*accident).badCowData},
		{"BadStateUnverified", (*accident).badState},
		{"BadStateMerging", (*accident).badStateMerging},
		{"WipeInitiated", (*accident).wipeInitiated},
		{"WipeNewSystem", (*accident).wipeNewSystem},
		{"WipeMerging", (*accident).wipeMerging},
		{"RecoveryMerging", (*accident).recoveryMerging},
		{"CancelInitiated", (*accident).cancelInitiated},
		{"CancelUnverified", (*accident).cancelUnverified},
		{"CancelTooLate", (*accident).cancelTooLate},
	} {
		t.Run(a.name, func(t *testing.T) {
			first := w.make(0, 0, 0)
			m := newMachine(t, w, chance(5), first, 24<<20)
			a.live(&accident{m, &offer{from: first, to: w.make(1, 1, 1), version: 3, codec: "lz4"}})
		})
	}
}

type accident struct {
	*machine
	offer *offer
}

// install has the device at the reboot.
func (a *accident) install() {
	a.t.Helper()
	a.went(a.boot(cut{}, append(a.machine.offer(a.offer), "lab.do=install")...))
}

// isOld checks that nothing is left of the update and that the device goes on with what
// it had, and then can be updated all the same.
func (a *accident) isOld() {
	a.t.Helper()
	o := a.boot(cut{}, "lab.do=doctor")
	a.went(o)
	if o.slot != a.from {
		a.fatal("expected the old system")
	}
	if !strings.Contains(o.console, "doctor: false") {
		a.fatal("expected the doctor to find nothing")
	}
	a.isOver(o)
	a.offer = &offer{from: a.old, to: a.make(2, 2, -1), version: 3, codec: "gz"}
	a.install()
	a.isOver(a.boot(cut{}, "lab.do=merge"))
}

// fallsBack boots until the boot loader takes the old system, and says how often it
// tried the new one.
func (a *accident) fallsBack(words string) (tries int) {
	a.t.Helper()
	for tries = 0; a.choose(true) != a.from; tries++ {
		if tries > bootctl.MaxTries {
			a.fatal("expected the boot loader to give the new system up")
		}
		o := a.boot(cut{}, words)
		if o.off {
			a.fatal("expected the power to stay")
		}
		if s := o.states(); len(s) > 0 && s[len(s)-1].Good {
			a.fatal("expected nobody to say that the new system is good")
		}
	}
	a.t.Logf("the new system was tried %d times", tries)
	return tries
}

func (a *accident) noSpace() {
	before := a.super.Contents()
	a.offer.estimate = 200 << 20
	o := a.boot(cut{}, append(a.machine.offer(a.offer), "lab.do=install,refused")...)
	a.went(o)
	if !strings.Contains(o.console, "bytes") || !strings.Contains(o.console, "refused:") {
		a.fatal("expected to hear how many bytes are lacking")
	}
	if at := differ(before, a.super.Contents()); at >= 0 {
		a.fatal("expected super to be as it was, found it changed at byte %d", at)
	}
	a.next = nil
	a.isOld()
}

func (a *accident) neverGood() {
	a.install()
	if a.fallsBack("lab.do=bad") < 2 {
		a.fatal("expected the boot loader to try more than once")
	}
	a.isOld()
}

// badRoot is an update that was built wrong: everything in it is as it says of itself,
// but a block of the root is not what its hash tree has.
func (a *accident) badRoot() {
	for i := range 40 {
		a.offer.to.parts["system"][i*labBlock+1024] ^= 1
	}
	a.install()
	a.fallsBack("lab.do=merge")
	a.isOld()
}

// badVendor has the wrong block where the boot does not read, so that only verify
// finds it.
func (a *accident) badVendor() {
	a.offer.to.parts["vendor"][200*labBlock+5] ^= 1
	a.install()
	a.fallsBack("lab.do=merge,verify")
	a.isOld()
}

// cowOf finds what is in super of a COW.
func (a *accident) cowOf(name string) []lpmeta.Line {
	a.t.Helper()
	meta, err := lpmeta.Read(memoryDisk(a.super.Contents()), 1-a.from)
	a.check(err)
	p := meta.Partition(name)
	if p == nil {
		a.fatal("expected partition %s in super", name)
	}
	return meta.Table(p)
}

// badCow damages a block of the root's COW.
func (a *accident) badCow(at int64) {
	a.install()
	a.damageCow(at, labBlock)
	a.fallsBack("lab.do=merge")
	a.isOld()
}

func (a *accident) damageCow(at, n int64) {
	first := a.cowOf("system_b-cow")[0]
	a.super.Put(slices.Repeat([]byte{0xa5}, int(n)), int64(first.Data)*512+at)
}

// badCowData damages the data of the root's COW, with all that is new in it.
func (a *accident) badCowData() {
	a.install()
	a.damageCow(1<<20, 2<<20)
	a.fallsBack("lab.do=merge,verify")
	a.isOld()
}

func (a *accident) badState() {
	a.install()
	a.isOver(a.boot(cut{}, "lab.do=merge,damage-state"))
}

func (a *accident) badStateMerging() {
	a.install()
	a.boot(cut{said: "merge begins"}, "lab.do=merge")
	a.isOver(a.boot(cut{}, "lab.do=merge,damage-state"))
}

// installPart has the power go in the middle of an installation.
func (a *accident) installPart() {
	a.t.Helper()
	o := a.boot(cut{step: 1000}, append(a.machine.offer(a.offer), "lab.do=install")...)
	if !o.off {
		a.fatal("expected the power to go")
	}
}

func (a *accident) wipeInitiated() {
	a.installPart()
	a.went(a.boot(cut{}, "lab.do=wipe"))
	a.next = nil
	a.isOld()
}

func (a *accident) wipeNewSystem() {
	a.install()
	a.went(a.boot(cut{}, "lab.do=wipe"))
	a.isOld()
}

func (a *accident) wipeMerging() {
	a.install()
	a.boot(cut{said: "merge begins"}, "lab.do=merge")
	a.went(a.boot(cut{}, "lab.do=wipe"))
	o := a.boot(cut{}, "lab.do=nothing")
	if o.slot == a.from {
		a.fatal("expected the new system")
	}
	a.isOver(o)
}

// recoveryMerging has a recovery system finish the merge, through a power cut.
func (a *accident) recoveryMerging() {
	a.install()
	a.boot(cut{said: "merge begins"}, "lab.do=merge")
	a.boot(cut{flush: 20}, "lab.do=recover")
	a.went(a.boot(cut{}, "lab.do=recover"))
	if states := lines(a.console, "recovered"); len(states) != 1 || states[0] != "MergeCompleted" {
		a.fatal("expected MergeCompleted, found %q", states)
	}
	o := a.boot(cut{}, "lab.do=merge")
	if o.slot == a.from {
		a.fatal("expected the new system")
	}
	a.isOver(o)
}

func (a *accident) cancelInitiated() {
	a.installPart()
	o := a.boot(cut{}, "lab.do=cancel-first")
	a.isOver(o)
	a.isOld()
}

func (a *accident) cancelUnverified() {
	a.went(a.boot(cut{}, append(a.machine.offer(a.offer), "lab.do=install,cancel")...))
	a.isOld()
}

// cancelTooLate is refused by the new system, before the merge and in it.
func (a *accident) cancelTooLate() {
	a.install()
	a.boot(cut{said: "merge begins"}, "lab.do=merge,try-cancel")
	if !strings.Contains(a.console, "cancel: true") {
		a.fatal("expected cancel to fail in the new system")
	}
	o := a.boot(cut{}, "lab.do=merge,try-cancel")
	if !strings.Contains(a.console, "cancel: true") {
		a.fatal("expected cancel to fail while merging")
	}
	a.isOver(o)
}
