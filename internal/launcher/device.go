package launcher

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/qemu"
)

const (
	// Device numbers (Documentation/admin-guide/devices.txt).
	miscMajor = 10
	tunMinor  = 200
	kvmMinor  = 232

	netDir  = "/dev/net"
	tunPath = netDir + "/tun"
	kvmPath = "/dev/kvm"
)

// privateDevices gives this thread a mount namespace in which QEMU's user may
// open the TUN device, and /dev/kvm if the machine needs it, whatever their
// modes on the host. The TUN device itself gives no access to anything: a TAP
// is attached only by its owner.
func privateDevices(spec Spec) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	// Nothing mounted here shows outside; what is unmounted outside goes here too,
	// so that a VM does not keep the host's mounts busy.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separate mounts: %w", err)
	}
	if err := os.MkdirAll(netDir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", netDir, err)
	}
	if err := unix.Mount("tmpfs", netDir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=64k"); err != nil {
		return fmt.Errorf("mount private %s: %w", netDir, err)
	}
	if err := device(tunPath, tunMinor, 0o666); err != nil {
		return err
	}
	if spec.Machine.Accel != qemu.KVM {
		return nil
	}
	if _, err := os.Stat(kvmPath); err != nil {
		return &hint.Error{
			Field: "accelerator", Value: string(qemu.KVM), Problem: "this machine has no " + kvmPath, Err: err,
			Remedy: "load the kernel's kvm modules, or use tcg",
		}
	}
	own := netDir + "/kvm"
	if err := device(own, kvmMinor, 0o666); err != nil {
		return err
	}
	if err := unix.Mount(own, kvmPath, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount private %s: %w", kvmPath, err)
	}
	return nil
}

func device(path string, minor uint32, mode uint32) error {
	if err := unix.Mknod(path, unix.S_IFCHR|mode, int(unix.Mkdev(miscMajor, minor))); err != nil {
		return &hint.Error{
			Field: "device", Value: path, Problem: "cannot be made", Err: err,
			Remedy: "run the agent as root with CAP_MKNOD, not in a user namespace",
		}
	}
	// mknod heeds the umask.
	if err := os.Chmod(path, os.FileMode(mode)); err != nil {
		return fmt.Errorf("set mode of %s: %w", path, err)
	}
	return nil
}
