package dad

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/ndp"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/test/need"
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func addrs(text string) (out []netip.Addr) {
	for _, word := range strings.Fields(text) {
		out = append(out, addr(word))
	}
	return out
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// lan is a bridge in a namespace of its own, with stations on it.
type lan struct {
	t    *testing.T
	name string
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	need.Root(t)
	l := &lan{t: t, name: fmt.Sprintf("weftdad%d%s", os.Getpid(), strings.ToLower(t.Name()[4:]))}
	run(t, "netns", "add", l.name)
	t.Cleanup(func() { run(t, "netns", "del", l.name) })
	run(t, "-n", l.name, "link", "add", "lan0", "type", "bridge")
	run(t, "-n", l.name, "link", "set", "lan0", "up")
	return l
}

// station adds a namespace with link eth0, which has these addresses.
func (l *lan) station(name, mac string, addresses ...string) *linux.NS {
	l.t.Helper()
	space := l.name + name
	run(l.t, "netns", "add", space)
	l.t.Cleanup(func() { run(l.t, "netns", "del", space) })
	run(l.t, "-n", space, "link", "add", "eth0", "address", mac, "type", "veth", "peer", "name", name, "netns", l.name)
	run(l.t, "-n", l.name, "link", "set", name, "master", "lan0", "up")
	run(l.t, "-n", space, "link", "set", "eth0", "up")
	for _, a := range addresses {
		args := []string{"-n", space, "addr", "add", a, "dev", "eth0"}
		if strings.Contains(a, ":") {
			args = append(args, "nodad")
		}
		run(l.t, args...)
	}
	ns, err := linux.OpenNS("/var/run/netns/" + space)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { ns.Close() })
	l.up(ns)
	return ns
}

// up waits until the link has a carrier.
func (l *lan) up(ns *linux.NS) {
	l.t.Helper()
	route, err := ns.Route()
	if err != nil {
		l.t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		link, err := route.LinkByName("eth0")
		if err == nil && link.OperUp {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("eth0 does not come up: %v", err)
		}
	}
}

const (
	holderMAC = "02:00:00:00:00:01"
	ourMAC    = "02:00:00:00:00:02"
)

// patient waits so long for an answer that a busy machine gives it.
var patient = Timing{Probes: 3, Interval: 200 * time.Millisecond, Wait: 5 * time.Second}

// TestConflict: an address that a station's kernel has is found, of either
// family and among others; free ones, and those of neighbours that only ask for
// them, are not.
func TestConflict(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.station("holder", holderMAC, "10.0.0.5/24", "fd00::5/64")
	ours := l.station("ours", ourMAC)
	for _, c := range []struct{ asked, taken string }{
		{"10.0.0.5", "10.0.0.5"}, {"fd00::5", "fd00::5"}, {"10.0.0.6 10.0.0.5 fd00::6", "10.0.0.5"}, {"10.0.0.6 fd00::6 fd00::5", "fd00::5"}, {"::ffff:10.0.0.5", "10.0.0.5"},
	} {
		got, err := Probe(t.Context(), ours, "eth0", addrs(c.asked), patient)
		if err != nil || got == nil || got.Addr != addr(c.taken) || got.MAC != netstate.MAC(holderMAC) {
			t.Errorf("%s: got %v %v, want %s at %s", c.asked, got, err, c.taken, holderMAC)
		}
	}
	for _, free := range []string{"10.0.0.6", "fd00::6", "10.0.0.6 fd00::6 10.0.0.7 fd00::7", ""} {
		if got, err := Probe(t.Context(), ours, "eth0", addrs(free), Quick); got != nil || err != nil {
			t.Errorf("%s: got %v %v", free, got, err)
		}
	}
}

// TestNeighbourAsking: who resolves an address does not have it.
func TestNeighbourAsking(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.station("asking", holderMAC, "10.0.0.5/24", "fd00::5/64")
	ours := l.station("ours", ourMAC)
	if _, err := exec.LookPath("ping"); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var pings sync.WaitGroup
	for _, target := range []string{"10.0.0.6", "fd00::6"} {
		pings.Go(func() { // until stopped; it fails, since nobody answers
			_ = exec.CommandContext(ctx, "ip", "netns", "exec", l.name+"asking", "ping", "-i", "0.05", "-W", "1", target).Run()
		})
	}
	defer pings.Wait()
	defer stop()
	if got, err := Probe(t.Context(), ours, "eth0", addrs("10.0.0.6 fd00::6"), Timing{Probes: 3, Interval: 300 * time.Millisecond, Wait: 300 * time.Millisecond}); got != nil || err != nil {
		t.Errorf("got %v %v", got, err)
	}
}

// TestBothAsking: of two who are about to use one address at least one hears of
// the other.
func TestBothAsking(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	a, b := l.station("left", holderMAC), l.station("right", ourMAC)
	for _, asked := range []string{"10.0.0.5", "fd00::5"} {
		var both sync.WaitGroup
		found := make([]*Conflict, 2)
		errs := make([]error, 2)
		ctx, enough := context.WithCancel(t.Context())
		for i, ns := range []*linux.NS{a, b} {
			both.Go(func() {
				if found[i], errs[i] = Probe(ctx, ns, "eth0", addrs(asked), patient); found[i] != nil {
					enough()
				}
			})
		}
		both.Wait()
		enough()
		if found[0] == nil && found[1] == nil {
			t.Errorf("%s: got %v %v", asked, errs[0], errs[1])
		}
	}
}

// TestFind: who has an address is found; who asks for it itself is not, however
// often.
func TestFind(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.station("holder", holderMAC, "10.0.0.5/24", "fd00::5/64")
	ours, other := l.station("ours", ourMAC), l.station("other", "02:00:00:00:00:03")
	ctx, stop := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	defer asking.Wait()
	defer stop()
	asking.Go(func() {
		for ctx.Err() == nil {
			_, _ = Probe(ctx, other, "eth0", addrs("10.0.0.6 fd00::6"), Quick) // until stopped
		}
	})
	for asked, want := range map[string]string{"10.0.0.5": holderMAC, "fd00::5": holderMAC, "10.0.0.6": "", "fd00::6": ""} {
		timing := patient
		if want == "" {
			timing = Patient
		}
		got, err := Find(t.Context(), ours, "eth0", addr(asked), timing)
		if err != nil || (got == nil) != (want == "") || got != nil && string(got.MAC) != want {
			t.Errorf("%s: got %v %v, want %q", asked, got, err, want)
		}
	}
}

// TestNobodyToAsk: without a link that works there is no answer, and no
// all-clear either.
func TestNobodyToAsk(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	ours := l.station("ours", ourMAC)
	run(t, "-n", l.name+"ours", "link", "set", "eth0", "down")
	if got, err := Probe(t.Context(), ours, "eth0", addrs("10.0.0.5"), Quick); got != nil || !errors.Is(err, ErrDown) {
		t.Errorf("down: got %v %v", got, err)
	}
	if _, err := Probe(t.Context(), ours, "eth7", addrs("10.0.0.5"), Quick); !errors.Is(err, linux.ErrNoLink) {
		t.Errorf("no link: %v", err)
	}
	if got, err := Probe(t.Context(), ours, "lo", addrs("10.0.0.5"), Quick); got != nil || err != nil && !errors.Is(err, ErrDown) {
		t.Errorf("loopback: got %v %v", got, err)
	}
	run(t, "-n", l.name+"ours", "link", "set", "eth0", "up")
	l.up(ours)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := Probe(ctx, ours, "eth0", addrs("10.0.0.5"), patient); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	gone := make(chan error, 1)
	go func() {
		_, err := Probe(t.Context(), ours, "eth0", addrs("10.0.0.5 fd00::5"), patient)
		gone <- err
	}()
	run(t, "-n", l.name+"ours", "link", "del", "eth0")
	if err := <-gone; !errors.Is(err, ErrDown) && !errors.Is(err, linux.ErrNoLink) {
		t.Errorf("deleted meanwhile: %v", err)
	}
}

// TestSolicitation: others' code reads what we send.
func TestSolicitation(t *testing.T) {
	nonce := [6]byte{1, 2, 3, 4, 5, 6}
	frame := solicitation(mac{2, 0, 0, 0, 0, 2}, addr("fd00::12:3456"), nonce)
	group := addr("ff02::1:ff12:3456")
	if got := netip.AddrFrom16([16]byte(frame[etherLen+24 : etherLen+40])); got != group {
		t.Errorf("to %s, want %s", got, group)
	}
	if !bytes.Equal(frame[:6], []byte{0x33, 0x33, 0xff, 0x12, 0x34, 0x56}) {
		t.Errorf("to %x", frame[:6])
	}
	m, err := ndp.ParseMessage(frame[etherLen+ip6Len:])
	if err != nil {
		t.Fatal(err)
	}
	ns, ok := m.(*ndp.NeighborSolicitation)
	if !ok || ns.TargetAddress != addr("fd00::12:3456") || len(ns.Options) != 1 {
		t.Fatalf("got %+v", m)
	}
	if n, ok := ns.Options[0].(*ndp.Nonce); !ok || !n.Equal(ndp.NewNonce()) && n.Code() != optionNonce {
		t.Errorf("got %+v", ns.Options[0])
	}
	if got := checksum(frame[etherLen+ip6Len:], netip.IPv6Unspecified(), group); got != 0 {
		t.Errorf("checksum is off by %#x", got)
	}
	if _, _, ok := neighbourSays(frame, nonce); ok {
		t.Error("our own probe, sent back, is taken for another's")
	}
	if sender, target, ok := neighbourSays(frame, [6]byte{}); !ok || sender != (mac{2, 0, 0, 0, 0, 2}) || target != addr("fd00::12:3456") {
		t.Errorf("another's probe: %s %s %v", sender, target, ok)
	}
}

// FuzzSays: no frame brings a reader down, and what is cut says nothing.
func FuzzSays(f *testing.F) {
	f.Add(arpProbe(mac{2}, addr("10.0.0.5")))
	f.Add(solicitation(mac{2}, addr("fd00::5"), [6]byte{1}))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if _, a, ok := arpSays(frame); ok && (!a.Is4() || len(frame) < etherLen+arpLen) {
			t.Fatalf("%x says %s", frame, a)
		}
		if _, a, ok := neighbourSays(frame, [6]byte{1}); ok && (!a.Is6() || len(frame) < etherLen+ip6Len+ndLen) {
			t.Fatalf("%x says %s", frame, a)
		}
	})
}
