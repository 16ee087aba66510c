package linux

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctlRoot is where the kernel shows its settings. What is below net belongs
// to the namespace of the thread that looks.
const sysctlRoot = "/proc/sys/"

// Sysctl reads a setting in the calling thread's namespace; use NS.Do. The path
// is slash-separated below /proc/sys.
func Sysctl(path string) (string, error) {
	b, err := os.ReadFile(sysctlRoot + path)
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return strings.Join(strings.Fields(string(b)), " "), nil
}

// SetSysctl writes a setting in the calling thread's namespace; use NS.Do.
func SetSysctl(path, value string) error {
	f, err := os.OpenFile(sysctlRoot+path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	_, werr := f.WriteString(value)
	if err := errors.Join(werr, f.Close()); err != nil {
		return fmt.Errorf("set sysctl %s to %q: %w", path, value, err)
	}
	return nil
}

// BootID is a value the kernel makes anew at each boot: what was recorded under
// another one is gone.
func BootID() (string, error) {
	b, err := os.ReadFile(sysctlRoot + "kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// isGone says whether an error means that the object is no longer there.
func isGone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}
