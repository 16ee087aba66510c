package vmnet_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/vmnet"
)

// lab is a set of namespaces: a Pod wired by a plan, a peer on its network, and
// a guest that is a namespace behind the plan's real TAP.
type lab struct {
	t      *testing.T
	prefix string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	skip := t.Skipf
	if os.Getenv("CI") != "" {
		skip = t.Fatalf
	}
	if os.Geteuid() != 0 {
		skip("needs root to make network namespaces")
	}
	for _, tool := range []string{"ip", "bridge", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			skip("needs %s: %v", tool, err)
		}
	}
	return &lab{t: t, prefix: fmt.Sprintf("weft-vmnet-%d-", os.Getpid())}
}

// ns makes a namespace that goes with the test.
func (l *lab) ns(names ...string) {
	l.t.Helper()
	for _, name := range names {
		run(l.t, "ip", "netns", "add", l.prefix+name)
		l.t.Cleanup(func() { run(l.t, "ip", "netns", "del", l.prefix+name) })
		l.ip(name, "link set lo up")
		l.must(name, func() error { // addresses are usable at once
			return os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644)
		})
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// ip runs one ip command in a namespace, words split at blanks.
func (l *lab) ip(ns, command string) {
	l.t.Helper()
	run(l.t, "ip", append([]string{"-n", l.prefix + ns}, strings.Fields(command)...)...)
}

// in runs f on a thread inside the namespace. Sockets made by f stay in it.
func (l *lab) in(ns string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with f
		file, err := os.Open("/run/netns/" + l.prefix + ns)
		if err != nil {
			done <- err
			return
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (l *lab) must(ns string, f func() error) {
	l.t.Helper()
	if err := l.in(ns, f); err != nil {
		l.t.Fatalf("in %s: %v", ns, err)
	}
}

// apply makes the plan's state in the namespace pod with the real dataplane, and
// wants it to be there: a second time there is nothing to do.
func (l *lab) apply(plan vmnet.Plan) {
	l.t.Helper()
	plane, err := dataplane.New(dataplane.Config{Instance: "test"})
	if err != nil {
		l.t.Fatal(err)
	}
	defer plane.Close()
	want := netstate.Plan{Alias: alias, Pod: plan.State}
	netns := "/run/netns/" + l.prefix + "pod"
	if _, err := plane.Apply(l.t.Context(), netns, want); err != nil {
		l.t.Fatal(err)
	}
	ops, err := plane.Check(l.t.Context(), netns, want)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, op := range ops {
		l.t.Errorf("not as planned: %v", op)
	}
}

// guest plugs a namespace into the NIC's TAP, as QEMU would, and configures it
// with what our servers would tell it.
func (l *lab) guest(name string, nic vmnet.NICPlan) {
	l.t.Helper()
	l.ns(name)
	mine := l.openTAP("pod", string(nic.NIC.TAP), nic.NIC.Queues > 1)
	theirs := l.openTAP(name, "eth0", false)
	l.pump(mine, theirs)
	l.ip(name, fmt.Sprintf("link set eth0 address %s mtu %d up", nic.NIC.MAC, 1450))
	serve := nic.Serve
	if serve != nil && serve.Lease4 != nil {
		l.ip(name, fmt.Sprintf("addr add %s dev eth0", serve.Lease4.Addr))
		for _, r := range serve.Lease4.Routes {
			if r.Dst.Bits() > 0 && !r.Via.IsValid() {
				l.ip(name, fmt.Sprintf("route add %s dev eth0", r.Dst))
			}
		}
		if serve.Lease4.Router.IsValid() {
			l.ip(name, fmt.Sprintf("route add default via %s", serve.Lease4.Router))
		}
	}
	if serve != nil && serve.Lease6 != nil {
		l.ip(name, fmt.Sprintf("addr add %s/128 dev eth0 nodad", serve.Lease6.Addr))
		for _, p := range serve.RA.Prefixes {
			l.ip(name, fmt.Sprintf("route add %s dev eth0", p))
		}
		if serve.RA.RouterLifetime > 0 {
			l.ip(name, fmt.Sprintf("route add default via %s dev eth0", serve.ServerLL))
		}
	}
}

// openTAP attaches to a TAP (made if it is not there) as QEMU does.
func (l *lab) openTAP(ns, name string, multiQueue bool) *os.File {
	l.t.Helper()
	var file *os.File
	l.must(ns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if multiQueue {
			flags |= unix.IFF_MULTI_QUEUE
		}
		request.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		file = os.NewFile(uintptr(fd), name)
		return nil
	})
	return file
}

// pump carries frames between two TAPs until the test ends.
func (l *lab) pump(a, b *os.File) {
	var wg sync.WaitGroup
	copyFrames := func(to, from *os.File) {
		frame := make([]byte, 65536)
		for {
			n, err := from.Read(frame)
			if err != nil {
				return // closed at the end of the test
			}
			// A TAP that is down refuses frames, as a cable does.
			_, _ = to.Write(frame[:n])
		}
	}
	wg.Go(func() { copyFrames(a, b) })
	wg.Go(func() { copyFrames(b, a) })
	l.t.Cleanup(func() {
		a.Close()
		b.Close()
		wg.Wait()
	})
}

// serve answers every TCP connection to addr in ns with name and the address
// the connection came from.
func (l *lab) serve(ns, name string, port uint16) {
	l.t.Helper()
	var listener net.Listener
	l.must(ns, func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			fmt.Fprintf(conn, "%s %s", name, host)
			conn.Close()
		}
	}()
	l.t.Cleanup(func() { listener.Close(); <-done })
}

const patience = 5 * time.Second

// ask connects from ns and gives what the server says, or "" if there is none.
func (l *lab) ask(ns, addr string, port uint16, wait time.Duration) string {
	l.t.Helper()
	var answer string
	err := l.in(ns, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(netip.MustParseAddr(addr), port).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		buf := make([]byte, 200)
		n, err := conn.Read(buf)
		answer = string(buf[:n])
		return err
	})
	if err != nil {
		l.t.Logf("%s to %s port %d: %v", ns, addr, port, err)
		return ""
	}
	return answer
}

// want asks and compares; it retries, because IPv6 addresses become usable a
// moment after they are set.
func (l *lab) want(ns, addr string, port uint16, want string) {
	l.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		got := l.ask(ns, addr, port, time.Second)
		if got == want {
			return
		}
		if got != "" || time.Now().After(deadline) {
			l.t.Errorf("%s to %s port %d: got %q, want %q", ns, addr, port, got, want)
			return
		}
	}
}

// never asks once and wants nobody to answer.
func (l *lab) never(ns, addr string, port uint16) {
	l.t.Helper()
	if got := l.ask(ns, addr, port, 300*time.Millisecond); got != "" {
		l.t.Errorf("%s to %s port %d: got %q, want no answer", ns, addr, port, got)
	}
}
