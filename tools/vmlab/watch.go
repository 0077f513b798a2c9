package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"cowbird/tools/vmlab/job"
)

// Patience with a guest that is not running a test. An emulated machine on a
// busy host is slow.
const (
	bootPatience = 90 * time.Second
	markPatience = 30 * time.Second
)

// A watch follows a guest by its kernel log, line by line. It knows which test
// a line belongs to, and until when the guest must have said something more.
type watch struct {
	tests   []watched
	current int // the test that lines belong to
	running bool
	ready   bool
	done    bool
	panic   bool
	failed  string // what process 1 could not do

	waitsFor string
	deadline time.Time
}

// watched is what is known of one test.
type watched struct {
	job.Test
	kernel       []string
	begun, ended time.Time
}

func newWatch(tests []job.Test, now time.Time) *watch {
	w := &watch{}
	for _, t := range tests {
		w.tests = append(w.tests, watched{Test: t})
	}
	w.expect("the guest to boot", bootPatience, now)
	return w
}

func (w *watch) expect(what string, within time.Duration, now time.Time) {
	w.waitsFor, w.deadline = what, now.Add(within)
}

// line takes in one line of the console.
func (w *watch) line(s string, now time.Time) {
	s = strings.TrimRight(s, "\r\n")
	word, rest, isMark := job.ParseMark(s)
	if isMark && word == job.Begin {
		w.begin(rest, now)
	}
	if w.current < len(w.tests) {
		t := &w.tests[w.current]
		t.kernel = append(t.kernel, s)
	}
	switch {
	case !isMark:
		if strings.HasPrefix(job.Message(s), "Kernel panic") && !w.panic {
			w.panic = true
			w.expect("the end after a panic", markPatience, now)
		}
	case word == job.Ready:
		w.ready = true
		w.expect("the first test to begin", markPatience, now)
	case word == job.End && w.running:
		w.running = false
		w.tests[w.current].ended = now
		w.expect("the next test to begin", markPatience, now)
	case word == job.Done:
		w.done = true
		w.expect("the guest to turn itself off", markPatience, now)
	case word == "failed:":
		w.failed = rest
	}
}

func (w *watch) begin(rest string, now time.Time) {
	number, _, _ := strings.Cut(rest, " ")
	i, err := strconv.Atoi(number)
	if err != nil || i < 0 || i >= len(w.tests) {
		w.failed = fmt.Sprintf("began a test %q that it was not given", rest)
		return
	}
	w.current, w.running = i, true
	w.tests[i].begun = now
	w.expect("the end of "+w.tests[i].Name, w.tests[i].Timeout+job.Grace, now)
}

// end says in words how the guest came to its end, given whether it had to be
// killed at the deadline and how its process ended; "" if all went well.
func (w *watch) end(killed bool, process string) string {
	switch {
	case w.panic:
		return "the kernel panicked"
	case killed:
		return "the guest hangs: waited in vain for " + w.waitsFor
	case w.failed != "":
		return "the guest failed: " + w.failed
	case !w.ready:
		return "the guest ended before it was ready (" + process + ")"
	case !w.done:
		return "the guest ended too early (" + process + ")"
	}
	return ""
}
