// Package pb is the protobuf messages of payloads and OTA zips, generated from
// the .proto files here by protoc 3.21.12 and protoc-gen-go at the version of
// the protobuf module in go.mod.
package pb

//go:generate protoc --go_out=. --go_opt=paths=source_relative update_metadata.proto care_map.proto ota_metadata.proto
