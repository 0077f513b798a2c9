package dmuser

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"cowbird/dmuser/internal/ublkctl"
)

// GiveNode gives a node in /dev, ublkbN or ublkcN, to the user whose device it is, as the
// driver says. A rule of udev has root call it for each new one; without it users have no
// devices of their own. Nodes of root's devices stay as they are.
func GiveNode(name string) error {
	number, ok := strings.CutPrefix(name, "ublkc")
	if !ok {
		number, ok = strings.CutPrefix(name, "ublkb")
	}
	id, err := strconv.ParseUint(number, 10, 31)
	if !ok || err != nil {
		return fmt.Errorf("expected a node called ublkc or ublkb and a number, found %q", name)
	}
	ctl, err := ublkctl.Open(ublkctl.Path, ublkCharPath)
	if err != nil {
		return unavailable(ublkctl.Path, "ublk_drv", err)
	}
	defer ctl.Close()
	info, err := ctl.Info(uint32(id))
	if err != nil {
		return err
	}
	if info.Flags&ublkctl.Unprivileged == 0 {
		return nil
	}
	return os.Lchown("/dev/"+name, int(info.UID), int(info.GID))
}
