package payload

import "errors"

var (
	// ErrMagic: not a payload.
	ErrMagic = errors.New("not an A/B payload")
	// ErrVersion: a container of another major version.
	ErrVersion = errors.New("unsupported payload version")
	// ErrTooLarge: a length above the limits given.
	ErrTooLarge = errors.New("payload part too large")
	// ErrTruncated: the payload ends before its own lengths say so.
	ErrTruncated = errors.New("truncated payload")
	// ErrManifest: the manifest is not one, or contradicts itself.
	ErrManifest = errors.New("malformed manifest")
	// ErrSignatures: a signatures message is not one.
	ErrSignatures = errors.New("malformed signatures")
	// ErrProperties: a properties file is not one.
	ErrProperties = errors.New("malformed payload properties")
	// ErrCareMap: a care map is not one.
	ErrCareMap = errors.New("malformed care map")
	// ErrPackage: what a package says of itself is malformed.
	ErrPackage = errors.New("malformed package metadata")
	// ErrZip: a zip file that is no OTA package, or not one to be streamed.
	ErrZip = errors.New("not an OTA package")
)
