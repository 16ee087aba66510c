package dhcp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/frame"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/vmnet"
	"github.com/weftnet/weft/test/need"
)

// patience is how long a test waits for what should come at once.
const patience = 30 * time.Second

// skip leaves the test for want of something; in CI that is a failure.
func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func needProgram(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		for _, dir := range []string{"/sbin/", "/usr/sbin/", "/lib/systemd/"} {
			if _, err := os.Stat(dir + name); err == nil {
				return dir + name
			}
		}
		skip(t, "needs the program "+name)
	}
	return path
}

var nsCount atomic.Int32

// ns is a network namespace of a test.
type ns struct{ name, path string }

func newNS(t testing.TB, role string) ns {
	t.Helper()
	need.Root(t)
	name := fmt.Sprintf("weft-dhcp-%d-%d-%s", os.Getpid(), nsCount.Add(1), role)
	n := ns{name, "/run/netns/" + name}
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { n.delete(t) })
	n.ip(t, "link", "set", "lo", "up")
	return n
}

// delete is done once; a test may do it itself.
func (n ns) delete(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(n.path); errors.Is(err, fs.ErrNotExist) {
		return
	}
	run(t, "ip", "netns", "del", n.name)
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (n ns) ip(t testing.TB, args ...string) string {
	t.Helper()
	return run(t, "ip", append([]string{"-n", n.name}, args...)...)
}

// exec prepares a program inside the namespace.
func (n ns) exec(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.name, name}, args...)...)
}

func (n ns) do(t testing.TB, f func() error) {
	t.Helper()
	if err := linux.InNS(n.path, f); err != nil {
		t.Fatal(err)
	}
}

// packetSockets counts the packet sockets of the namespace.
func (n ns) packetSockets(t testing.TB) int {
	t.Helper()
	count := 0
	n.do(t, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/packet")
		count = strings.Count(string(b), "\n") - 1 // the header
		return err
	})
	return count
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// start runs a server until the test ends and gives what Run returns.
func start(t testing.TB, config Config) (*Server, <-chan error) {
	t.Helper()
	if config.Log == nil {
		config.Log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	config.NIC = "test/vm/net"
	s, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	t.Cleanup(s.Close)
	return s, ended
}

func waitReady(t testing.TB, s *Server) {
	t.Helper()
	select {
	case <-s.Ready():
	case <-time.After(patience):
		t.Fatal("server is not ready")
	}
}

// testWriter puts logs into the test's output.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// serveAll is a NIC with every protocol, behind NAT.
func serveAll() vmnet.Serve {
	lease4, lease6 := masqueradeLease(), lease6()
	lease6.MAC, lease6.Search = "", []string{"example.org"}
	return vmnet.Serve{
		TAP: "tap0", ServerMAC: "02:00:00:00:00:00", ServerLL: addr("fe80::ff:fe00:0"),
		Lease4: &lease4, Lease6: &lease6,
		RA: &vmnet.RA{
			RouterLifetime: 65535 * time.Second, Managed: true, OtherConfig: true, MTU: 1450,
			Prefixes: []netip.Prefix{prefix("fd10:0:2::/120")}, DNS: []netip.Addr{addr("fd00::53")},
			Search: []string{"example.org"}, Lifetime: 24 * time.Hour,
		},
	}
}

// guest is the far side of a TAP, as a virtual machine holds it.
type guest struct{ file *os.File }

// attach opens the TAP name inside n.
func attach(t testing.TB, n ns, name string) *guest {
	t.Helper()
	var fd int
	n.do(t, func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	})
	g := &guest{os.NewFile(uintptr(fd), name)}
	t.Cleanup(func() { g.file.Close() })
	return g
}

func (g *guest) send(t testing.TB, b []byte) {
	t.Helper()
	if _, err := g.file.Write(b); err != nil {
		t.Fatal(err)
	}
}

// receive gives the next packet that is wanted, nil if none comes within wait.
func (g *guest) receive(t testing.TB, wait time.Duration, wanted func(frame.Packet) bool) *frame.Packet {
	t.Helper()
	if err := g.file.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	for {
		n, err := g.file.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := frame.Parse(b[:n]); ok && wanted(p) {
			return &p
		}
	}
}

// wire is a namespace with a TAP and a LAN on one bridge, as a Pod with the
// bridge binding has them, and a capture of all that reaches the LAN.
type wire struct {
	pod, lan ns
	guest    *guest
	capture  *capture
}

func newWire(t testing.TB) *wire {
	t.Helper()
	w := &wire{pod: newNS(t, "pod"), lan: newNS(t, "lan")}
	w.pod.ip(t, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
	w.pod.ip(t, "link", "set", "br0", "up")
	w.pod.ip(t, "link", "add", "lan0", "type", "veth", "peer", "name", "lan1", "netns", w.lan.name)
	w.pod.ip(t, "link", "set", "lan0", "master", "br0", "up")
	w.lan.ip(t, "link", "set", "lan1", "up")
	w.addTAP(t)
	w.capture = newCapture(t, w.lan, "lan1")
	return w
}

func (w *wire) addTAP(t testing.TB) {
	t.Helper()
	w.pod.ip(t, "tuntap", "add", "dev", "tap0", "mode", "tap")
	w.pod.ip(t, "link", "set", "tap0", "master", "br0", "up")
	w.guest = attach(t, w.pod, "tap0")
	eventually(t, "tap0 forwards", func() bool {
		return strings.Contains(w.pod.ip(t, "-d", "link", "show", "tap0"), "state forwarding")
	})
}

// capture keeps every frame a device receives.
type capture struct {
	conn *packet.Conn
	mu   sync.Mutex // guards frames
	// frames as they came.
	frames [][]byte
}

func newCapture(t testing.TB, n ns, device string) *capture {
	t.Helper()
	c := &capture{}
	n.do(t, func() (err error) {
		index, err := frame.Index(device)
		if err != nil {
			return err
		}
		c.conn, err = listenAll(device, index)
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 4096)
		for {
			n, _, err := c.conn.ReadFrom(b)
			if err != nil {
				return
			}
			c.mu.Lock()
			c.frames = append(c.frames, append([]byte(nil), b[:n]...))
			c.mu.Unlock()
		}
	}()
	t.Cleanup(func() { c.conn.Close(); <-done })
	return c
}

// count gives how many captured frames match.
func (c *capture) count(match func(b []byte) bool) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, b := range c.frames {
		if match(b) {
			n++
		}
	}
	return n
}

// fromServer matches every frame our servers could have sent.
func fromServer(b []byte) bool {
	if frame.MAC(b[6:12]) == serverMAC {
		return true
	}
	p, ok := frame.Parse(b)
	switch {
	case !ok:
		return false
	case p.Kind == frame.UDP:
		return p.Src.Port() == serverPort4 || p.Src.Port() == serverPort6
	}
	return p.Kind == frame.ICMPv6 && len(p.Payload) > 0 && p.Payload[0] == 134
}
