package payload

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload/pb"
)

const (
	// MetadataName and MetadataTextName are the entries of an OTA zip with what it
	// is for, as a message and, older, as text. CareMapName is the one with what is
	// to be read after the first boot.
	MetadataName     = "META-INF/com/android/metadata.pb"
	MetadataTextName = "META-INF/com/android/metadata"
	CareMapName      = "care_map.pb"
)

// ParseMetadataText reads the text form of an OtaMetadata (specs/payload.md 5.2):
// lines of key=value, of which those that are not known are passed over. The error is
// ErrPackage.
func ParseMetadataText(text []byte) (*pb.OtaMetadata, error) {
	m := &pb.OtaMetadata{Precondition: &pb.DeviceState{}, Postcondition: &pb.DeviceState{}}
	pre, post := m.Precondition, m.Postcondition
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		key, value, found := strings.Cut(strings.TrimSpace(line), "=")
		if !found {
			return nil, fmt.Errorf("%w: line %d: expected key=value, found %.80q", ErrPackage, i+1, line)
		}
		var err error
		switch key {
		case "ota-type":
			m.Type = pb.OtaMetadata_OtaType(pb.OtaMetadata_OtaType_value[value])
		case "ota-wipe":
			m.Wipe = value == "yes"
		case "ota-downgrade":
			m.Downgrade = value == "yes"
		case "spl-downgrade":
			m.SplDowngrade = value == "yes"
		case "ota-required-cache":
			m.RequiredCache, err = strconv.ParseInt(value, 10, 64)
		case "pre-device":
			pre.Device = strings.Split(value, "|")
		case "pre-build":
			pre.Build = strings.Split(value, "|")
		case "pre-build-incremental":
			pre.BuildIncremental = value
		case "post-build":
			post.Build = strings.Split(value, "|")
		case "post-build-incremental":
			post.BuildIncremental = value
		case "post-sdk-level":
			post.SdkLevel = value
		case "post-security-patch-level":
			post.SecurityPatchLevel = value
		case "post-timestamp":
			post.Timestamp, err = strconv.ParseInt(value, 10, 64)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s: expected a number, found %.40q", ErrPackage, key, value)
		}
	}
	return m, nil
}

// AppendMetadataText appends the text form, with its keys sorted. Property files are
// keys of their own there.
func AppendMetadataText(b []byte, m *pb.OtaMetadata) []byte {
	yes := map[bool]string{true: "yes"}
	pre, post := m.GetPrecondition(), m.GetPostcondition()
	values := map[string]string{
		"ota-type": m.GetType().String(), "ota-wipe": yes[m.GetWipe()], "ota-downgrade": yes[m.GetDowngrade()],
		"spl-downgrade": yes[m.GetSplDowngrade()], "ota-required-cache": strconv.FormatInt(m.GetRequiredCache(), 10),
		"pre-device": strings.Join(pre.GetDevice(), "|"), "pre-build": strings.Join(pre.GetBuild(), "|"), "pre-build-incremental": pre.GetBuildIncremental(),
		"post-build": strings.Join(post.GetBuild(), "|"), "post-build-incremental": post.GetBuildIncremental(), "post-sdk-level": post.GetSdkLevel(),
		"post-security-patch-level": post.GetSecurityPatchLevel(),
	}
	if t := post.GetTimestamp(); t != 0 {
		values["post-timestamp"] = strconv.FormatInt(t, 10)
	}
	for key, value := range m.GetPropertyFiles() {
		values[key] = value
	}
	var lines []string
	for key, value := range values {
		if value != "" {
			lines = append(lines, key+"="+value+"\n")
		}
	}
	slices.Sort(lines)
	return append(b, strings.Join(lines, "")...)
}

func parseMetadata(b []byte) (*pb.OtaMetadata, error) {
	m := &pb.OtaMetadata{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPackage, err)
	}
	return m, nil
}
