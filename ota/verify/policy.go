package verify

import (
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// Policy is what an update has to be. The zero Policy refuses all, as no key is
// trusted. It is not changed here and may be used concurrently.
type Policy struct {
	// Keys are those of which one must have signed.
	Keys Keys
	// Properties are what is known of the payload beforehand; nil: nothing. What
	// they do not tell is not checked. Their other keys are not looked at, not even
	// SPL_DOWNGRADE: what they allow is for whoever starts the installation to say.
	Properties *payload.Properties
	// Package is what the zip around the payload says that it is for; nil: nothing.
	// As Properties, it refuses and allows nothing.
	Package *pb.OtaMetadata
	// Device is what the update comes to.
	Device Device
	// Kind is what the update must be.
	Kind Kind
	// Limits bound what Read holds in memory.
	Limits payload.Limits

	// AllowUnsigned takes payloads without signatures and, if there are no Keys,
	// any. A signature that none of the Keys has made is refused all the same.
	AllowUnsigned bool
	// AllowUnhashed takes operations whose blobs the manifest has no hash of: only
	// the payload's signature covers these, and it comes last.
	AllowUnhashed bool
	// AllowDowngrade takes builds and partitions older than the device's.
	AllowDowngrade bool
	// AllowSPLDowngrade takes older security patch levels, without a wipe.
	AllowSPLDowngrade bool
}

// Kind is whether an update needs the old partitions.
type Kind int

const (
	AnyKind Kind = iota
	Full
	Delta
)

func (k Kind) String() string { return [...]string{"any", "full", "delta"}[k] }

// Device is what is known of a device. Facts that are not known are zero values,
// and nothing is checked against them.
type Device struct {
	// Name is the product's, which packages name as the device that they are for.
	Name string
	// Build is the fingerprint of the running system.
	Build string
	// BuildTime is when the running system was built, in seconds since 1970.
	BuildTime int64
	// Versions are the partitions' own, decimal and in seconds since 1970 too.
	Versions map[string]string
	// PreventBootDowngrade is whether the rule of versions counts for boot as well.
	PreventBootDowngrade bool
	// SecurityPatch is the security patch level, as 2024-11-01.
	SecurityPatch string
	// Unlocked is whether the boot chain lets any system start. An unlocked device
	// may go back to an older security patch level, but its data has to be wiped.
	Unlocked bool
}
