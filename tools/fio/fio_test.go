package fio

import (
	"errors"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	const report = "fio: a note\n" + `{"jobs":[{"error":0,"read":{"io_bytes":5000000,"bw_bytes":2500000,"iops":610.5,
		"clat_ns":{"percentile":{"50.000000":1500,"99.000000":90000}}}}]}`
	want := Report{5e6, 2.5e6, 610.5, 1500 * time.Nanosecond, 90 * time.Microsecond}
	if got, err := parse([]byte(report)); err != nil || got != want {
		t.Errorf("expected %+v, found %+v, %v", want, got, err)
	}
	for _, bad := range []string{"", "nothing", "{", `{"jobs":[]}`, `{"jobs":[{"error":5,"read":{"iops":1}}]}`, `{"jobs":[{"read":{"iops":0}}]}`} {
		if _, err := parse([]byte(bad)); !errors.Is(err, errNoReport) {
			t.Errorf("%q: expected an error, found %v", bad, err)
		}
	}
}
