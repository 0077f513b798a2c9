// Package snapshotpb is what Android's snapshot manager remembers of an update: small
// files under /metadata/ota, each of which is one protobuf message.
//
//	state                      SnapshotUpdateStatus   how far the update is, and with which flags
//	merge_state                SnapshotMergeReport    statistics of the merge
//	snapshots/system_b, …      SnapshotStatus         one partition: sizes, state, how its cow is made
//
//	None ─▶ Initiated ─▶ Unverified ─▶ Merging ─▶ None, MergeCompleted or MergeNeedsReboot
//	           │             │            ▲  │
//	           └────┬────────┘            └──┴─▶ MergeFailed
//	                ▼
//	         None (cancelled)
//
// The messages are generated from snapshot.proto, which we wrote from the field tables,
// by protoc 3.21.12 and protoc-gen-go at the version of the protobuf module in go.mod.
// Fields that are not known here survive being read and written again, so an older
// program may rewrite a file of a newer one.
//
// Two things are not as in other protobuf files. An empty file is a message, None. And
// the first systems wrote the state's name as text instead: ParseUpdate takes both, and
// must look for text first, because the nine letters of "initiated" also happen to be a
// valid message that says None.
//
// Whoever writes such a file does so beside it and renames; that is not this package's
// business, which is pure. Source: specs/snapshot-manager.md 2 to 4.
package snapshotpb

//go:generate protoc --go_out=. --go_opt=paths=source_relative snapshot.proto
