// Package vmlab boots virtual machines for tests: it finds or builds the small
// guest once a machine, starts QEMU in a network namespace, follows the
// console and speaks to QEMU and to the guest agent.
//
// It is the test's own way to a guest and shares no code with internal/qemu,
// so that neither hides a mistake of the other. Namespaces and TAPs are the
// caller's.
package vmlab

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// Patience bounds each wait for a guest. Under TCG on a loaded machine a boot
// takes half a minute; when nothing is wrong nobody waits for it.
const Patience = 3 * time.Minute

// Require skips the test unless VM tests are asked for and can run; where CI
// asks for them, one that cannot run fails.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv("WEFT_VM") == "" {
		t.Skip("set WEFT_VM=1 to run tests that boot virtual machines")
	}
	missing := ""
	if os.Geteuid() != 0 {
		missing = "root"
	}
	for _, tool := range []string{"qemu-system-x86_64", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = tool
		}
	}
	if missing == "" {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("VM tests need %s", missing)
	}
	t.Skipf("VM tests need %s", missing)
}

// Guest is the small guest as files.
type Guest struct {
	// Archive is the OCI archive `weft image load` takes, with the image
	// localhost/weft/guest:latest.
	Archive string
	// Kernel and Initrd are what the image holds.
	Kernel, Initrd string
}

// SmallGuest builds the small guest, or finds it built.
func SmallGuest(t testing.TB) Guest {
	t.Helper()
	guest, err := build()
	if err != nil {
		t.Fatalf("build the small guest: %v", err)
	}
	return guest
}

// build runs guest/build.sh once per process; the script itself does nothing
// if nothing changed.
var build = sync.OnceValues(func() (Guest, error) {
	_, here, _, _ := runtime.Caller(0)
	script := filepath.Join(filepath.Dir(here), "..", "..", "guest", "build.sh")
	cmd := exec.Command(script)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		return Guest{}, &buildError{err, string(out) + problems.String()}
	}
	lines := strings.Fields(string(out))
	archive := lines[len(lines)-1]
	dir := filepath.Dir(archive)
	return Guest{Archive: archive, Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd")}, nil
})

// buildError carries what the script printed.
type buildError struct {
	err    error
	output string
}

// Error implements error.
func (e *buildError) Error() string { return e.err.Error() + "\n" + e.output }

// Unwrap gives the cause.
func (e *buildError) Unwrap() error { return e.err }

// KernelArgs is a kernel command line for a quick boot under TCG with the
// console on the serial port, and what extra adds: the words guest/README.md
// lists, such as weft.serve=8080.
func KernelArgs(extra ...string) string {
	return strings.Join(append([]string{
		"console=ttyS0 panic=-1 quiet mitigations=off nokaslr apparmor=0 audit=0",
		"tsc=reliable no_timer_check rcupdate.rcu_expedited=1",
	}, extra...), " ")
}

// Seed makes a NoCloud volume from files such as meta-data and user-data.
func Seed(t testing.TB, files map[string]string) string {
	t.Helper()
	dir, volume := t.TempDir(), filepath.Join(t.TempDir(), "seed.iso")
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("genisoimage", "-quiet", "-o", volume, "-V", "cidata", "-J", "-r", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("genisoimage: %v: %s", err, out)
	}
	return volume
}
