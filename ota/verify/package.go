package verify

import (
	"slices"
	"strings"

	"cowbird/formats/payload/pb"
)

// checkPackage compares what the zip says that it is for with the device. The client
// leaves this to whoever starts it, and so has few codes for it.
func (p Policy) checkPackage() error {
	if p.Package == nil {
		return nil
	}
	if t := p.Package.GetType(); t != pb.OtaMetadata_AB && t != pb.OtaMetadata_UNKNOWN {
		return refuse(PayloadMismatchedType, "install it in recovery, or get an A/B update", "package: expected one of type AB, found %v", t)
	}
	pre, post := p.Package.GetPrecondition(), p.Package.GetPostcondition()
	if !among(p.Device.Name, pre.GetDevice()) {
		return refuse(GenericError, "get the update for this device", "package: expected one for the device %s, found one for %s",
			p.Device.Name, strings.Join(pre.GetDevice(), ", "))
	}
	if !among(p.Device.Build, pre.GetBuild()) {
		return refuse(DownloadStateInitializationError, "get the update for this build, or a full one",
			"package: expected one for the build %s, found one for %s", p.Device.Build, strings.Join(pre.GetBuild(), ", "))
	}
	if t := post.GetTimestamp(); t != 0 && t < p.Device.BuildTime && !p.AllowDowngrade {
		return refuse(PayloadTimestampError, allowDowngrade, "package: expected a build of %d or later, found %d", p.Device.BuildTime, t)
	}
	return p.checkPatchLevel("package: security patch level", post.GetSecurityPatchLevel())
}

// among tells whether something is one of the names; what is not known, or not asked
// for, fits.
func among(name string, names []string) bool {
	return name == "" || len(names) == 0 || slices.Contains(names, name)
}
