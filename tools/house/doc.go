// Package house holds the rules of the house as tests: which room may know
// which, what the daemon may be linked with, that Android.bp tells the truth,
// that every package is documented, formatted and on the map.
//
//	cmd ──► ota ──► cow ──► formats/*        cmd ──► dmuser
//	 └───────────────┴─────────┘
//
// dmuser and every format import nothing of ours. cow does not import dmuser
// either: it satisfies dmuser.Backend by having the methods. tools may import
// anything but is imported by tests only.
//
// The package has no code outside its tests.
package house
