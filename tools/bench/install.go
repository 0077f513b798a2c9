package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"cowbird/formats/payload"
	"cowbird/ota/apply"
	"cowbird/tools/fixture"
)

// installPayload is a delta of a partition of 12 MiB, without zucchini, into lz4.
const installPayload = "delta_ext4_m9_nozucchini_vabc3_lz4_xor"

// install compares the installation of a delta with building a COW from images, and
// tells what it holds.
func (b *bench) install() error {
	folder := filepath.Join(fixture.Path(), "payload")
	path := filepath.Join(folder, installPayload+".payload.bin")
	if _, err := os.Stat(path); err != nil {
		b.table.note("No fixtures: the installation of a payload is not measured.")
		return nil
	}
	old, next := b.path("old"), b.path("new")
	if err := errors.Join(os.MkdirAll(old, 0o755), os.MkdirAll(next, 0o755)); err != nil {
		return err
	}
	if _, err := output("bash", "-c", fmt.Sprintf("gzip -dc %s/src/system_A.img.gz > %s/system.img", folder, old)); err != nil {
		return err
	}
	if _, err := output(b.tool("cowtool"), "payload", "apply", "--old", old, "-o", next, path); err != nil {
		return err
	}
	cow, config := b.path("installed.cow"), b.path("install.json")
	text, err := json.Marshal(map[string]any{"state": b.path("install.state"), "partitions": map[string]any{
		"system": map[string]string{"old": filepath.Join(old, "system.img"), "cow": cow},
	}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return err
	}
	peak := int64(0)
	got, err := alternate(b.repeats,
		func() (float64, error) {
			_ = os.Remove(cow)
			_ = os.Remove(b.path("install.state"))
			took, most, err := measured(twoCores(b.tool("otactl"), "install", "--unsigned", "--quiet", "--config", config, path)...)
			peak = max(peak, most)
			return took, err
		},
		func() (float64, error) { return b.createFor(old, next, "default") },
		func() (float64, error) { return b.createFor(old, next, "fast") })
	if err != nil {
		return err
	}
	b.table.ratio("`otactl install` of a delta of 12 MiB into a COW, lz4, against `cowtool create` of it from the images",
		spread(got[0], "%.2f")+" s", spread(got[1], "%.2f")+" s", median(got[0])/median(got[1]), atMost(1.5, "×"))
	b.table.info("the same, against `cowtool create --effort fast`, whose COW is larger by a quarter", spread(got[0], "%.2f")+" s", spread(got[2], "%.2f")+" s", fmt.Sprintf("%.2f", median(got[0])/median(got[2])))
	need, err := largestNeed(path)
	if err != nil {
		return err
	}
	b.table.value(fmt.Sprintf("the same, peak RSS less the largest operation's %.1f MB", float64(need)/1e6), float64(peak-need)/1e6, "", atMost(48*1.048576, "MB"))
	return nil
}

// createFor makes a COW of the same images with some effort.
func (b *bench) createFor(old, next, effort string) (float64, error) {
	out := b.path("built.cow")
	_ = os.Remove(out)
	args := twoCores(b.tool("cowtool"), "create", "-q", "--effort", effort, "--compression", "lz4", "-o", out, filepath.Join(old, "system.img"), filepath.Join(next, "system.img"))
	return seconds(args[0], args[1:]...)
}

// largestNeed is how many bytes the largest operation of a payload holds.
func largestNeed(path string) (need int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	m, err := payload.Read(f, st.Size(), payload.Limits{})
	if err != nil {
		return 0, err
	}
	for _, p := range m.Manifest.GetPartitions() {
		for _, op := range p.GetOperations() {
			need = max(need, apply.Need(op, blockSize))
		}
	}
	return need, nil
}

// measured runs a command, and tells its wall time and the most memory that it held.
func measured(args ...string) (took float64, peak int64, err error) {
	var errs bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = &errs
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			if err != nil {
				err = fmt.Errorf("%v: %w: %s", args, err, lastLine(errs.String()))
			}
			return time.Since(start).Seconds(), peak, err
		case <-time.After(2 * time.Millisecond):
			// Until the program is loaded this tells of ours; the last look counts.
			if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid)); err == nil {
				if most := fields(status)["VmHWM"] << 10; most > 0 {
					peak = most
				}
			}
		}
	}
}
