// Command labdevice is process 1 of a device that a test of the lab boots with disks
// of its own, first in the place of an initramfs, and then as the init of the system
// that it has mounted there:
//
//	initramfs: the host's root          system: erofs on dm-verity
//	otactl boot ─► system_X-verity ───► hashes of all partitions, the state
//	                                    otactl update --process, mark-successful
//	                                    old: otactl install URL
//	                                    new: otactl merge --wait
//
// The test says on the kernel's command line what is to be done, as words
// lab.KEY=VALUE; see plan. What the device has to say goes to the kernel log, in lines
// that begin with "device: ".
//
// The disks are files of the host, which the kernel reaches by hostfs, with loop devices
// over them. User-mode Linux has a driver for disks, ubd, but it forgets flushes.
//
// It is of no use anywhere else.
package main

import (
	"fmt"
	"net/http"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	labDir  = "/run/lab" // the test's folder
	address = "127.0.0.1:80"
	// rootName is the partition that the device runs from.
	rootName = "system"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "http" {
		say("http: %v", http.ListenAndServe(address, http.FileServer(http.Dir("."))))
		os.Exit(1)
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "labdevice: expected to be process 1 of a guest")
		os.Exit(2)
	}
	stage := initramfs
	if len(os.Args) > 1 && os.Args[1] == "system" {
		stage = system
	}
	if err := stage(); err != nil {
		say("failed: %v", err)
	}
	turnOff()
}

// turnOff is an orderly end.
func turnOff() {
	for _, dir := range []string{metadataDir, dataDir} {
		if err := unix.Unmount(dir, 0); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			say("umount %s: %v", dir, err)
		}
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// plan is what the test wants of this boot.
type plan struct {
	folder  string // the test's, on the host
	disks   string // the files of disks, on the host
	slot    string // androidboot.slot_suffix
	from    string // the slot of the system that is to be left
	payload string // a path on the HTTP server
	config  string // a file in the folder, instead of the system's own
	flags   []string
	// do are words: install and merge are what they say; others change how.
	do map[string]bool
}

func readPlan() (*plan, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	words := map[string]string{}
	for _, w := range strings.Fields(string(line)) {
		key, value, _ := strings.Cut(w, "=")
		words[key] = value
	}
	p := &plan{folder: words["lab.folder"], disks: words["lab.disks"], slot: words["androidboot.slot_suffix"], from: words["lab.from"], payload: words["lab.payload"], config: words["lab.config"], do: map[string]bool{}}
	if f := words["lab.flags"]; f != "" {
		p.flags = strings.Split(f, ",")
	}
	for _, w := range strings.Split(words["lab.do"], ",") {
		p.do[w] = true
	}
	return p, nil
}

// say writes a line, or some, to the kernel log.
func say(format string, args ...any) {
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		fmt.Fprintf(os.Stderr, "device: "+format+"\n", args...)
		return
	}
	defer kmsg.Close()
	for line := range strings.SplitSeq(strings.TrimSpace(fmt.Sprintf(format, args...)), "\n") {
		_, _ = kmsg.WriteString("<6>device: " + line[:min(len(line), 900)] + "\n")
	}
}
