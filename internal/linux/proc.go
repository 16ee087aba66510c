package linux

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
)

// sysctlRoot is where the kernel shows its settings. What is below net belongs
// to the namespace of the thread that looks.
const sysctlRoot = "/proc/sys/"

// Sysctl reads a setting in the calling thread's namespace; use NS.Do. The path
// is slash-separated below /proc/sys.
func Sysctl(path string) (string, error) {
	f, err := openFile(sysctlRoot+path, unix.O_RDONLY)
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	defer f.Close() // only read
	b, err := io.ReadAll(f)
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return strings.Join(strings.Fields(string(b)), " "), nil
}

// SetSysctl writes a setting in the calling thread's namespace; use NS.Do.
func SetSysctl(path, value string) error {
	f, err := openFile(sysctlRoot+path, unix.O_WRONLY)
	if err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	_, werr := f.WriteString(value)
	if err := errors.Join(werr, f.Close()); err != nil {
		return fmt.Errorf("set sysctl %s to %q: %w", path, value, err)
	}
	return nil
}

// UnlockSysctls lets this process change settings in a container, where the
// runtime has mounted them read-only over themselves.
func UnlockSysctls() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(sysctlRoot, &fs); err != nil {
		return fmt.Errorf("look at %s: %w", sysctlRoot, err)
	}
	if fs.Flags&unix.ST_RDONLY == 0 {
		return nil
	}
	if err := unix.Mount("", sysctlRoot, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
		return &hint.Error{
			Value: sysctlRoot, Problem: "is read-only, and cannot be made writable", Err: err,
			Remedy: "run this container with CAP_SYS_ADMIN and without an AppArmor profile",
		}
	}
	return nil
}

// openFile is os.OpenFile for files nobody waits for: without the runtime's
// poller, whose thread every opened setting would wake.
func openFile(path string, mode int) (*os.File, error) {
	for {
		fd, err := unix.Open(path, mode|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case !errors.Is(err, unix.EINTR):
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// isGone says whether an error means that the object is no longer there.
func isGone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}
