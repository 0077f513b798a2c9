package cli

import (
	"encoding/json"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Output is how a command talks: to people, or with --json to programs.
type Output struct {
	JSON   bool
	Quiet  bool
	Stdout io.Writer
	Stderr io.Writer
}

// Emit writes v as one line of JSON.
func (o Output) Emit(v any) error {
	return json.NewEncoder(o.Stdout).Encode(v)
}

// reportEvery is the least time between two lines or drawings of progress.
const reportEvery = 200 * time.Millisecond

// Meter shows the progress of a long step, or of several in turn. Its methods are safe for
// concurrent use.
type Meter struct {
	out  Output
	step string
	bar  *progressbar.ProgressBar

	mu   sync.Mutex
	last time.Time
}

type progressLine struct {
	Event string `json:"event"`
	Step  string `json:"step"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
}

// Meter begins a step. Progress goes to a terminal as a bar with rate and time
// left, to programs as lines of JSON, and nowhere otherwise.
func (o Output) Meter(step string) *Meter {
	m := &Meter{out: o, step: step}
	if !o.JSON && !o.Quiet && isTerminal(o.Stderr) {
		m.bar = newBar(o.Stderr, step)
	}
	return m
}

func newBar(w io.Writer, step string) *progressbar.ProgressBar {
	return progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(step),
		progressbar.OptionShowBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionSetElapsedTime(false),
		progressbar.OptionThrottle(reportEvery),
		progressbar.OptionFullWidth(),
		progressbar.OptionClearOnFinish(),
	)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Update shows done of total bytes.
func (m *Meter) Update(done, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bar != nil {
		m.bar.ChangeMax64(max(total, 1))
		_ = m.bar.Set64(min(done, total))
		return
	}
	if now := time.Now(); m.out.JSON && now.Sub(m.last) >= reportEvery {
		m.last = now
		_ = m.out.Emit(progressLine{"progress", m.step, done, total})
	}
}

// Describe changes the words in front of the bar.
func (m *Meter) Describe(step string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bar != nil {
		m.bar.Describe(step)
	}
}

// Step begins another step, with its name.
func (m *Meter) Step(step string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.step == step {
		return
	}
	m.step, m.last = step, time.Time{}
	if m.bar != nil {
		m.bar.Reset()
		m.bar.Describe(step)
	}
}

// End takes the bar off the terminal.
func (m *Meter) End() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bar != nil {
		_ = m.bar.Clear()
		_ = m.bar.Exit()
	}
}
