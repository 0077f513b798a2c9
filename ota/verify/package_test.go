package verify

import (
	"testing"

	"cowbird/formats/payload/pb"
)

// What a zip is for is compared with what is known of the device; what is not known
// is not compared.
func TestPackage(t *testing.T) {
	device := Device{Name: "one", Build: "x/1", BuildTime: 100, SecurityPatch: "2026-01-01"}
	good := func() *pb.OtaMetadata {
		return &pb.OtaMetadata{Type: pb.OtaMetadata_AB,
			Precondition:  &pb.DeviceState{Device: []string{"two", "one"}, Build: []string{"x/1"}},
			Postcondition: &pb.DeviceState{Timestamp: 100, SecurityPatchLevel: "2026-01-01"}}
	}
	for what, c := range map[string]struct {
		change func(*pb.OtaMetadata, *Policy)
		want   Code
	}{
		"right":             {func(*pb.OtaMetadata, *Policy) {}, Success},
		"for recovery":      {func(m *pb.OtaMetadata, _ *Policy) { m.Type = pb.OtaMetadata_BLOCK }, PayloadMismatchedType},
		"another device":    {func(m *pb.OtaMetadata, _ *Policy) { m.Precondition.Device = []string{"two"} }, GenericError},
		"any device":        {func(m *pb.OtaMetadata, _ *Policy) { m.Precondition.Device = nil }, Success},
		"unknown device":    {func(_ *pb.OtaMetadata, p *Policy) { p.Device = Device{} }, Success},
		"another build":     {func(m *pb.OtaMetadata, _ *Policy) { m.Precondition.Build = []string{"x/0"} }, DownloadStateInitializationError},
		"older":             {func(m *pb.OtaMetadata, _ *Policy) { m.Postcondition.Timestamp = 99 }, PayloadTimestampError},
		"older and allowed": {func(m *pb.OtaMetadata, p *Policy) { m.Postcondition.Timestamp, p.AllowDowngrade = 99, true }, Success},
		"older patches":     {func(m *pb.OtaMetadata, _ *Policy) { m.Postcondition.SecurityPatchLevel = "2025-12-01" }, PayloadTimestampError},
		"says it is older":  {func(m *pb.OtaMetadata, _ *Policy) { m.Postcondition.Timestamp, m.Downgrade = 99, true }, PayloadTimestampError},
		"no conditions":     {func(m *pb.OtaMetadata, _ *Policy) { m.Precondition, m.Postcondition = nil, nil }, Success},
	} {
		m, p := good(), Policy{Device: device}
		c.change(m, &p)
		p.Package = m
		expectCode(t, what, p.checkPackage(), c.want)
	}
	expectCode(t, "no zip", (&Policy{Device: device}).checkPackage(), Success)
}
