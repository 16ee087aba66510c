package qemu

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"

	"github.com/weftnet/weft/internal/hint"
)

// Binary is the QEMU that is run unless told otherwise.
const Binary = "qemu-system-x86_64"

// Version of a QEMU.
type Version struct{ Major, Minor, Micro int }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

var versionRE = regexp.MustCompile(`version (\d{1,4})\.(\d{1,4})\.(\d{1,4})`)

// ParseVersion reads the output of `qemu-system-x86_64 --version`.
func ParseVersion(text string) (Version, error) {
	match := versionRE.FindStringSubmatch(text)
	if match == nil {
		return Version{}, fmt.Errorf("parse QEMU version: none in %.80q", text)
	}
	var parts [3]int
	for i := range parts {
		number, err := strconv.Atoi(match[i+1])
		if err != nil {
			return Version{}, fmt.Errorf("parse QEMU version: %w", err)
		}
		parts[i] = number
	}
	return Version{parts[0], parts[1], parts[2]}, nil
}

// DetectVersion asks a QEMU binary for its version.
func DetectVersion(ctx context.Context, binary string) (Version, error) {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return Version{}, &hint.Error{
			Field: "QEMU", Value: binary, Problem: "cannot be run", Err: err,
			Remedy: "install it (Debian: apt-get install qemu-system-x86)",
		}
	}
	return ParseVersion(string(out))
}
