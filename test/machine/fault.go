package machine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Processes gives the ids of an instance's processes whose program (weftd,
// weft-launcher, qemu-system-x86_64) has that name.
func (m *Machine) Processes(program string) []string {
	m.t.Helper()
	var ids []string
	for _, line := range m.lines("pgrep", "-af", m.Root) {
		fields := strings.Fields(line)
		if len(fields) > 1 && filepath.Base(fields[1]) == program {
			ids = append(ids, fields[0])
		}
	}
	return ids
}

// Kill ends processes of the instance as a crash would, and waits until they
// are gone.
func (m *Machine) Kill(programs ...string) {
	m.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := 0
		for _, program := range programs {
			for _, id := range m.Processes(program) {
				left++
				_ = exec.Command("kill", "-9", id).Run() // it may be gone by now
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("processes that do not end: %v", programs)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Reboot takes away what a power cut would: processes, namespaces, the node's
// links, tables and forwarding, everything in /run. Programs run later see a
// new boot id.
func (m *Machine) Reboot() {
	m.t.Helper()
	m.Kill("weftd", "weft-launcher", "qemu-system-x86_64")
	for _, name := range m.Namespaces() {
		m.must(exec.Command("ip", "netns", "del", name))
	}
	m.must(exec.Command(filepath.Join(Tree(), "examples/lab.sh"), "down", m.Name))
	m.must(exec.Command(filepath.Join(Tree(), "examples/lab.sh"), "up", m.Name))
	if err := os.RemoveAll(filepath.Join(m.Root, "run")); err != nil {
		m.t.Fatal(err)
	}
	m.boots++
	m.bootID = filepath.Join(m.Root, "boot_id")
	id := fmt.Sprintf("%08d-0000-4000-8000-000000000000\n", m.boots)
	if err := os.WriteFile(m.bootID, []byte(id), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// booted wraps a command so that it sees the boot id of the last Reboot, in a
// mount namespace that shares everything else.
func (m *Machine) booted(command []string) []string {
	if m.bootID == "" {
		return command
	}
	const script = `mount --make-private /proc && mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`
	return append([]string{"unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script, m.bootID}, command...)
}
