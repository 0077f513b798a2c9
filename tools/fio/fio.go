// Package fio runs the I/O tester fio on a block device and reads its report.
package fio

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Report is what one job has found.
type Report struct {
	Bytes          float64       // read
	BytesPerSecond float64       //
	IOPS           float64       // requests a second
	P50, P99       time.Duration // from submission to completion
}

// Read reads the device for so long, with direct I/O, whatever else args say.
func Read(device string, length time.Duration, args ...string) (Report, error) {
	args = append([]string{"--name=x", "--filename=" + device, "--readonly", "--direct=1", "--ioengine=libaio",
		"--time_based", fmt.Sprintf("--runtime=%d", max(1, int(length.Seconds()))), "--norandommap", "--randrepeat=1",
		"--group_reporting", "--output-format=json"}, args...)
	var out, errs bytes.Buffer
	cmd := exec.Command("fio", args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return Report{}, fmt.Errorf("fio: %w: %s", err, bytes.TrimSpace(errs.Bytes()))
	}
	return parse(out.Bytes())
}

// Random and Sequential are the arguments of usual jobs.
func Random(depth int) []string {
	return []string{"--rw=randread", "--bs=4k", fmt.Sprintf("--iodepth=%d", depth)}
}

func Sequential(depth int) []string {
	return []string{"--rw=read", "--bs=1M", fmt.Sprintf("--iodepth=%d", depth)}
}

var errNoReport = errors.New("fio: expected a report of one job without errors")

func parse(out []byte) (Report, error) {
	var report struct {
		Jobs []struct {
			Error int
			Read  struct {
				Bytes   float64 `json:"io_bytes"`
				Rate    float64 `json:"bw_bytes"`
				Iops    float64 `json:"iops"`
				Latency struct {
					Percentile map[string]float64 // ns
				} `json:"clat_ns"`
			}
		}
	}
	start := bytes.IndexByte(out, '{') // fio may print notes before
	if start < 0 {
		return Report{}, fmt.Errorf("%w, found %q", errNoReport, strings.TrimSpace(string(out)))
	}
	if err := json.Unmarshal(out[start:], &report); err != nil {
		return Report{}, fmt.Errorf("%w: %w", errNoReport, err)
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 || report.Jobs[0].Read.Iops == 0 {
		return Report{}, fmt.Errorf("%w, found %+v", errNoReport, report.Jobs)
	}
	r := report.Jobs[0].Read
	latency := func(percentile string) time.Duration { return time.Duration(r.Latency.Percentile[percentile]) }
	return Report{Bytes: r.Bytes, BytesPerSecond: r.Rate, IOPS: r.Iops, P50: latency("50.000000"), P99: latency("99.000000")}, nil
}
