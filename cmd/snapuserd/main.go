// Command snapuserd serves snapshots as block devices and merges them, on
// behalf of clients on its control socket. It stays in the foreground, for an
// init system to watch, and logs to standard error.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(daemon{}.run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
