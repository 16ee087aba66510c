package linux

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
)

// MakeTap makes a TAP in the calling thread's namespace (use NS.Do), calls setup
// while the device hangs on our descriptor only, and then makes it persistent: a
// crash before that leaves nothing behind. The owner's uid may attach to it; it
// must ask for multi-queue exactly if MultiQueue says so, and for VNET_HDR as it
// likes.
func MakeTap(name netstate.IfName, tap netstate.Tap, setup func() error) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("add TAP %s: %w", name, tunHint(err))
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(string(name))
	if err != nil {
		return fmt.Errorf("add TAP %s: %w", name, err)
	}
	flags := unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL
	if tap.MultiQueue {
		flags |= unix.IFF_MULTI_QUEUE
	}
	ifr.SetUint16(uint16(flags))
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("add TAP %s: %w", name, rootHint(err))
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(tap.Owner)); err != nil {
		return fmt.Errorf("set owner of TAP %s: %w", name, err)
	}
	if err := setup(); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("make TAP %s persistent: %w", name, err)
	}
	return nil
}

// tunHint explains why /dev/net/tun does not open.
func tunHint(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return &hint.Error{
			Field: "/dev/net/tun", Problem: "the kernel has no TAP devices", Err: err,
			Remedy: "load the module: modprobe tun (CONFIG_TUN); in a container, give it the device",
		}
	}
	return rootHint(err)
}
