// Package e2e tests the commands as a device uses them: real processes, the real
// FUSE + loop device, killed and restarted daemons. The tests need root and the
// fuse and loop drivers; without them they skip, except under CI=true.
package e2e
