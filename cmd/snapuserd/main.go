// Command snapuserd serves snapshots as block devices and merges them, on
// behalf of clients on its control socket. It stays in the foreground, for an
// init system to watch, and logs to standard error.
package main

import (
	"context"
	"os"

	"cowbird/ota/resident"
)

func main() {
	os.Exit(daemon{settle: resident.Settle}.run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
