package verify

import (
	"errors"
	"fmt"
	"strings"
)

// Code is why an update was refused or failed, as Android's client numbers it
// (specs/payload.md 15).
type Code int

// The codes that do not belong to asking a server for updates. Those that this
// package does not give are for the packages that install.
const (
	Success                                    Code = 0
	GenericError                               Code = 1
	FilesystemCopierError                      Code = 4
	PostinstallRunnerError                     Code = 5
	PayloadMismatchedType                      Code = 6
	InstallDeviceOpenError                     Code = 7
	DownloadTransferError                      Code = 9
	PayloadHashMismatchError                   Code = 10
	PayloadSizeMismatchError                   Code = 11
	DownloadPayloadVerificationError           Code = 12
	DownloadNewPartitionInfoError              Code = 13
	DownloadWriteError                         Code = 14
	NewRootfsVerificationError                 Code = 15
	SignedDeltaPayloadExpectedError            Code = 17
	DownloadPayloadPubKeyVerificationError     Code = 18
	DownloadStateInitializationError           Code = 20
	DownloadInvalidMetadataMagicString         Code = 21
	DownloadManifestParseError                 Code = 23
	DownloadMetadataSignatureError             Code = 24
	DownloadMetadataSignatureVerificationError Code = 25
	DownloadMetadataSignatureMismatch          Code = 26
	DownloadOperationHashVerificationError     Code = 27
	DownloadOperationExecutionError            Code = 28
	DownloadOperationHashMismatch              Code = 29
	DownloadInvalidMetadataSize                Code = 32
	DownloadOperationHashMissingError          Code = 38
	DownloadMetadataSignatureMissingError      Code = 39
	UnsupportedMajorPayloadVersion             Code = 44
	UnsupportedMinorPayloadVersion             Code = 45
	FilesystemVerifierError                    Code = 47
	UserCanceled                               Code = 48
	PayloadTimestampError                      Code = 51
	UpdatedButNotActive                        Code = 52
	RollbackNotPossible                        Code = 54
	VerityCalculationError                     Code = 56
	NotEnoughSpace                             Code = 60
	DeviceCorrupted                            Code = 61
	PostInstallMountError                      Code = 63
	OverlayfsenabledError                      Code = 64
	UpdateProcessing                           Code = 65
	UpdateAlreadyInstalled                     Code = 66
)

// firstHTTP is added to an HTTP status.
const firstHTTP = 2000

// names are the client's, in the order of their numbers.
var names = strings.Fields(`
	kSuccess kError kOmahaRequestError kOmahaResponseHandlerError kFilesystemCopierError kPostinstallRunnerError
	kPayloadMismatchedType kInstallDeviceOpenError kKernelDeviceOpenError kDownloadTransferError
	kPayloadHashMismatchError kPayloadSizeMismatchError kDownloadPayloadVerificationError
	kDownloadNewPartitionInfoError kDownloadWriteError kNewRootfsVerificationError kNewKernelVerificationError
	kSignedDeltaPayloadExpectedError kDownloadPayloadPubKeyVerificationError kPostinstallBootedFromFirmwareB
	kDownloadStateInitializationError kDownloadInvalidMetadataMagicString kDownloadSignatureMissingInManifest
	kDownloadManifestParseError kDownloadMetadataSignatureError kDownloadMetadataSignatureVerificationError
	kDownloadMetadataSignatureMismatch kDownloadOperationHashVerificationError kDownloadOperationExecutionError
	kDownloadOperationHashMismatch kOmahaRequestEmptyResponseError kOmahaRequestXMLParseError
	kDownloadInvalidMetadataSize kDownloadInvalidMetadataSignature kOmahaResponseInvalid
	kOmahaUpdateIgnoredPerPolicy kOmahaUpdateDeferredPerPolicy kOmahaErrorInHTTPResponse
	kDownloadOperationHashMissingError kDownloadMetadataSignatureMissingError kOmahaUpdateDeferredForBackoff
	kPostinstallPowerwashError kUpdateCanceledByChannelChange kPostinstallFirmwareRONotUpdatable
	kUnsupportedMajorPayloadVersion kUnsupportedMinorPayloadVersion kOmahaRequestXMLHasEntityDecl
	kFilesystemVerifierError kUserCanceled kNonCriticalUpdateInOOBE kOmahaUpdateIgnoredOverCellular
	kPayloadTimestampError kUpdatedButNotActive kNoUpdate kRollbackNotPossible
	kFirstActiveOmahaPingSentPersistenceError kVerityCalculationError kInternalLibCurlError kUnresolvedHostError
	kUnresolvedHostRecovered kNotEnoughSpace kDeviceCorrupted kPackageExcludedFromUpdate kPostInstallMountError
	kOverlayfsenabledError kUpdateProcessing kUpdateAlreadyInstalled`)

// String is the client's name.
func (c Code) String() string {
	switch {
	case c >= 0 && int(c) < len(names):
		return names[c]
	case c >= firstHTTP && c < firstHTTP+1000:
		return fmt.Sprintf("HTTP status %d", c-firstHTTP)
	}
	return fmt.Sprintf("unknown code %d", int(c))
}

// Error is a refusal. Its text has the code's name, what was expected and found,
// and what to do next.
type Error struct {
	Code Code
	Err  error  // what was expected and found
	Next string // what whoever wants the update can do
}

func (e *Error) Error() string { return fmt.Sprintf("%v: %v; %s", e.Code, e.Err, e.Next) }

// Unwrap is what was expected and found, which may wrap an error of formats/payload.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf is the code of any error: Success for nil, GenericError if it has none.
func CodeOf(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return Success
	case errors.As(err, &e):
		return e.Code
	}
	return GenericError
}

// refuse says why (as fmt.Errorf does) and what to do next.
func refuse(code Code, next, format string, args ...any) error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...), Next: next}
}

// What to do next.
const (
	fetchAgain   = "get the payload again from its source"
	askProducer  = "ask the producer of the update for a correct one"
	checkKeys    = "get the update from who signs for this device, or give the key that it is signed with"
	giveKeys     = "give the keys to trust, or allow unsigned updates"
	checkVersion = "update the installer first, or get the update in a version that it knows"
)
