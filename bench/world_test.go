package bench

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/test/need"
)

// world is a host of its own: one namespace that stands for the host's and
// Pods beside it. Nothing of it has a name outside this process.
type world struct {
	host, outside *linux.NS
}

// newWorld makes a host with a loopback link and an uplink eth0 with a default
// route, whose other end is in a namespace of its own.
func newWorld(tb testing.TB) *world {
	tb.Helper()
	need.Root(tb)
	w := &world{host: newNS(tb), outside: newNS(tb)}
	run(tb, w.host, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "out0", "netns", w.outside.Path())
	run(tb, w.outside, "ip", "link", "set", "out0", "up")
	run(tb, w.host, "ip", "link", "set", "lo", "up")
	run(tb, w.host, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:e0", "up")
	run(tb, w.host, "ip", "addr", "add", "192.0.2.10/24", "dev", "eth0")
	run(tb, w.host, "ip", "route", "add", "default", "via", "192.0.2.1")
	return w
}

// pod makes a Pod's namespace.
func (w *world) pod(tb testing.TB) *linux.NS {
	tb.Helper()
	ns := newNS(tb)
	run(tb, ns, "ip", "link", "set", "lo", "up")
	return ns
}

// newNS makes a namespace that lives as long as this process holds it open,
// with a path every process of the machine can open.
func newNS(tb testing.TB) *linux.NS {
	tb.Helper()
	type made struct {
		file *os.File
		err  error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{err: fmt.Errorf("unshare: %w", err)}
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		done <- made{file, err}
	}()
	m := <-done
	if m.err != nil {
		tb.Fatal(m.err)
	}
	ns, err := linux.OpenNS(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), m.file.Fd()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := ns.Close(); err != nil {
			tb.Error(err)
		}
		if err := m.file.Close(); err != nil {
			tb.Error(err)
		}
	})
	return ns
}

// run runs a program in a namespace and gives what it prints.
func run(tb testing.TB, ns *linux.NS, name string, args ...string) string {
	tb.Helper()
	var out []byte
	err := ns.Do(func() error {
		var err error
		out, err = exec.Command(name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
