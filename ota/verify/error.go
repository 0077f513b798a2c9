package verify

import "fmt"

// Code is how Android's client numbers a refusal (specs/payload.md 15).
type Code int

// The codes that this package gives.
const (
	PayloadMismatchedType     Code = 6  // a full payload with a delta's version, or the other way round
	PayloadHashMismatch       Code = 10 // the file is another one than the properties are of
	PayloadSizeMismatch       Code = 11
	PubKeyVerification        Code = 18 // the payload signature is nobody's
	InvalidMagic              Code = 21
	SignatureMissing          Code = 22 // there is no payload signature
	ManifestParse             Code = 23
	MetadataSignatureMismatch Code = 26 // the metadata signature is nobody's
	InvalidMetadataSize       Code = 32
	InvalidMetadataHash       Code = 33
	OperationHashMissing      Code = 38
	MetadataSignatureMissing  Code = 39
	UnsupportedMajorVersion   Code = 44
	UnsupportedMinorVersion   Code = 45
	PayloadTimestamp          Code = 51 // older than what runs
	noCode                    Code = 1
)

var codeNames = map[Code]string{
	PayloadMismatchedType:     "kPayloadMismatchedType",
	PayloadHashMismatch:       "kPayloadHashMismatchError",
	PayloadSizeMismatch:       "kPayloadSizeMismatchError",
	PubKeyVerification:        "kDownloadPayloadPubKeyVerificationError",
	InvalidMagic:              "kDownloadInvalidMetadataMagicString",
	SignatureMissing:          "kDownloadSignatureMissingInManifest",
	ManifestParse:             "kDownloadManifestParseError",
	MetadataSignatureMismatch: "kDownloadMetadataSignatureMismatch",
	InvalidMetadataSize:       "kDownloadInvalidMetadataSize",
	InvalidMetadataHash:       "kDownloadInvalidMetadataSignature",
	OperationHashMissing:      "kDownloadOperationHashMissingError",
	MetadataSignatureMissing:  "kDownloadMetadataSignatureMissingError",
	UnsupportedMajorVersion:   "kUnsupportedMajorPayloadVersion",
	UnsupportedMinorVersion:   "kUnsupportedMinorPayloadVersion",
	PayloadTimestamp:          "kPayloadTimestampError",
	noCode:                    "kError",
}

func (c Code) String() string { return fmt.Sprintf("%s (%d)", codeNames[c], int(c)) }

// Error is a refusal. What was expected and found, and what to do, is in its text.
type Error struct {
	Code Code
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("%v: %v", e.Code, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

func refuse(c Code, format string, args ...any) error { return &Error{c, fmt.Errorf(format, args...)} }
