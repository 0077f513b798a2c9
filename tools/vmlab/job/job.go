// Package job is what the VM lab and a guest say to each other. The host
// writes a [Job] into a folder that both see; the guest leaves each test's
// output and exit there, and says in its kernel log how far it is, so that what
// the kernel has to say stands between the marks of the test that caused it.
package job

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Dir is where the guest mounts the job's folder.
const Dir = "/run/vmlab"

// What the guest finds on its command line.
const (
	// FolderKey names the job's folder on the host; without it the folder is
	// the 9p share with the tag JobTag.
	FolderKey = "vmlab_job="
	JobTag    = "job"
	// RootTag is the 9p share that is the host's root, for a guest that was
	// started from an initramfs.
	RootTag = "host"
	// ModuleDir is where such an initramfs has its kernel modules, in the
	// order in which they are to be loaded.
	ModuleDir = "/modules"
)

// A Job is what one guest does from its boot to its end.
type Job struct {
	Vehicle string
	// Keep lists folders of the host that must stay where they are, also if
	// one of the guest's writable folders comes to lie above them.
	Keep []string
	// Modules to load, by file name in the job's folder.
	Modules []string
	Env     []string
	Tests   []Test
	// Shell asks for an interactive shell instead of tests.
	Shell *Shell
}

// A Shell is where a shell runs: its folder, and its terminal in the guest.
type Shell struct{ Dir, Console string }

// A Test is one test function of a test binary.
type Test struct {
	Name    string
	Binary  string // file name in the job's folder
	Dir     string // working directory
	Timeout time.Duration
}

// Grace is how much longer than its timeout a test may take to end: its own
// timer ends it first, then the guest, then the host ends the guest.
const Grace = 10 * time.Second

// Marks in the kernel log. Each follows Prefix; those of a test are followed
// by its number.
const (
	Prefix = "vmlab: "
	Ready  = "ready"
	Begin  = "begin"
	End    = "end"
	Done   = "done"
	Allow  = "allow" // followed by a regular expression
)

// OutputFile and ExitFile name what the guest leaves of a test.
func OutputFile(test int) string { return fmt.Sprintf("output.%d", test) }
func ExitFile(test int) string   { return fmt.Sprintf("exit.%d", test) }

// ExitOK is what ExitFile holds if the test's process exited with 0.
const ExitOK = "exit status 0"

const file = "job.json"

// Write puts the job into its folder.
func (j *Job) Write(dir string) error {
	b, err := json.MarshalIndent(j, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file), b, 0o644)
}

// Read gets the job from its folder.
func Read(dir string) (*Job, error) {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return nil, err
	}
	j := new(Job)
	if err := json.Unmarshal(b, j); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return j, nil
}

// ParseMark splits a line of the kernel log into the mark's word and the rest;
// ok tells whether it is a mark at all.
func ParseMark(line string) (word, rest string, ok bool) {
	line = Message(line)
	if line, ok = strings.CutPrefix(line, Prefix); !ok {
		return "", "", false
	}
	word, rest, _ = strings.Cut(line, " ")
	return word, rest, true
}

// Message is a line of the kernel log without its time.
func Message(line string) string {
	line = strings.TrimSpace(line)
	if stamp, rest, found := strings.Cut(line, "]"); found && strings.HasPrefix(stamp, "[") && isStamp(stamp[1:]) {
		return strings.TrimPrefix(rest, " ")
	}
	return line
}

// isStamp tells a time ("   12.345678") from other bracketed words.
func isStamp(s string) bool {
	return s != "" && strings.Trim(s, " .0123456789") == ""
}
