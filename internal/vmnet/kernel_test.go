package vmnet_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/nft"
	"github.com/weftnet/weft/internal/vmnet"
)

// TestTablesInKernel: nft takes the tables of every golden plan.
func TestTablesInKernel(t *testing.T) {
	l := newLab(t)
	l.ns("pod")
	for name, req := range cases() {
		plan, err := vmnet.Build(req)
		if err != nil {
			t.Fatal(err)
		}
		l.must("pod", func() error {
			cmd := exec.Command("nft", "-c", "-f", "-")
			cmd.Stdin = strings.NewReader(nft.Script(plan.State.Tables))
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", name, err, out)
			}
			return nil
		})
	}
}

// plan builds with what is true of this kernel.
func (l *lab) plan(req vmnet.Request) vmnet.Plan {
	l.t.Helper()
	_, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables")
	req.BridgeNetfilter = err == nil
	plan, err := vmnet.Build(req)
	if err != nil {
		l.t.Fatal(err)
	}
	return plan
}

// masqueraded makes a Pod on a wire with a peer, and the guest behind it.
func masqueraded(t *testing.T, ifaces []vmnet.Interface) *lab {
	l := newLab(t)
	l.ns("pod", "peer")
	l.ip("pod", "link add eth0 type veth peer name eth0 netns "+l.prefix+"peer")
	l.ip("pod", "addr add 192.0.2.7/24 dev eth0")
	l.ip("pod", "addr add 2001:db8::7/64 dev eth0 nodad")
	l.ip("peer", "addr add 192.0.2.1/24 dev eth0")
	l.ip("peer", "addr add 2001:db8::1/64 dev eth0 nodad")
	l.ip("pod", "link set eth0 up")
	l.ip("peer", "link set eth0 up")
	link := eth0()
	link.Addrs = pfx("192.0.2.7/24", "2001:db8::7/64")
	plan := l.plan(request(ifaces, link))
	l.apply(plan)
	l.guest("guest", plan.NICs[0])
	for _, port := range []uint16{80, 8080, 49152} {
		l.serve("guest", "guest", port)
	}
	l.serve("pod", "pod", 49152)
	l.serve("peer", "peer", 80)
	return l
}

func TestMasquerade(t *testing.T) {
	l := masqueraded(t, masq())
	// Out: the peer sees the Pod.
	l.want("guest", "192.0.2.1", 80, "peer 192.0.2.7")
	l.want("guest", "2001:db8::1", 80, "peer 2001:db8::7")
	// In: every port, and the guest sees who comes.
	l.want("peer", "192.0.2.7", 8080, "guest 192.0.2.1")
	l.want("peer", "2001:db8::7", 80, "guest 2001:db8::1")
	// Loopback of the Pod is the guest, which sees its gateway.
	l.want("pod", "127.0.0.1", 80, "guest 10.0.2.1")
	l.want("pod", "::1", 80, "guest fd10:0:2::1")
	// The launcher keeps its ports.
	l.want("peer", "192.0.2.7", 49152, "pod 192.0.2.1")
	l.want("peer", "2001:db8::7", 49152, "pod 2001:db8::1")
	l.want("pod", "127.0.0.1", 49152, "pod 127.0.0.1")
	// A neighbour cannot route around the translation.
	l.ip("peer", "route add 10.0.2.0/24 via 192.0.2.7")
	l.never("peer", "10.0.2.2", 80)
	l.echo("peer", "192.0.2.7", "guest")
}

func TestMasqueradePorts(t *testing.T) {
	l := masqueraded(t, masq(func(i *vmnet.Interface) {
		i.Ports = []vmnet.PortRange{{Protocol: "tcp", First: 8000, Last: 8100}}
	}))
	l.want("peer", "192.0.2.7", 8080, "guest 192.0.2.1")
	l.want("peer", "2001:db8::7", 8080, "guest 2001:db8::1")
	l.want("pod", "127.0.0.1", 8080, "guest 10.0.2.1")
	l.want("pod", "::1", 8080, "guest fd10:0:2::1")
	l.never("peer", "192.0.2.7", 80)
	l.never("pod", "127.0.0.1", 80)
	l.echo("peer", "192.0.2.7", "pod")
}

// echo pings addr from ns and checks who of pod and guest answered by taking
// the guest's cable away.
func (l *lab) echo(ns, addr, who string) {
	l.t.Helper()
	ping := func() error {
		return l.in(ns, func() error { return exec.Command("ping", "-c1", "-W1", addr).Run() })
	}
	if err := ping(); err != nil {
		l.t.Errorf("ping %s: %v", addr, err)
	}
	l.ip("guest", "link set eth0 down")
	if err := ping(); (err == nil) != (who == "pod") {
		l.t.Errorf("ping %s without the guest: %v, but the %s answers pings", addr, err, who)
	}
}

// TestServedStays: what a masqueraded guest says to our servers does not reach
// the Pod's own stack, which would answer "port unreachable" to a renewal.
func TestServedStays(t *testing.T) {
	l := masqueraded(t, masq())
	heard, stop := l.listenUDP("pod", ":67", ":547", ":6767")
	defer stop()
	l.sendUDP("guest", ":68", "10.0.2.1:67", "10.0.2.1:6767")
	wantHeard(t, heard, ":6767")
	l.sendUDP("guest", ":546", "[fd10:0:2::1]:547", "[fd10:0:2::1]:6767")
	wantHeard(t, heard, ":6767")
}

// TestBridge: the guest takes the Pod link's MAC and addresses, on every kind
// of link.
func TestBridge(t *testing.T) {
	for _, kind := range []string{"veth", "macvlan bridge", "macvlan passthru", "macvlan private", "macvlan vepa"} {
		t.Run(kind, func(t *testing.T) { testBridge(t, kind) })
	}
}

func testBridge(t *testing.T, kind string) {
	l := newLab(t)
	l.ns("pod", "peer", "fabric")
	name := string(vmnet.PodIfName("lan"))
	const mac = "0a:58:c0:a8:01:05"
	// eth0 is another network of the same Pod; its address must not answer on this one.
	l.ip("pod", "link add eth0 type veth peer name other0 netns "+l.prefix+"fabric")
	l.ip("pod", "addr add 192.0.2.7/24 dev eth0")
	l.ip("pod", "link set eth0 up")
	if mode, ok := strings.CutPrefix(kind, "macvlan "); ok {
		l.ip("fabric", "link add up0 type veth peer name eth0 netns "+l.prefix+"peer")
		l.ip("fabric", "link set up0 up")
		l.ip("fabric", fmt.Sprintf("link add mv0 link up0 address %s type macvlan mode %s", mac, mode))
		l.ip("fabric", fmt.Sprintf("link set mv0 netns %s name %s", l.prefix+"pod", name))
	} else {
		l.ip("pod", fmt.Sprintf("link add %s address %s type veth peer name eth0 netns %s", name, mac, l.prefix+"peer"))
	}
	l.ip("pod", "addr add 192.168.1.5/24 dev "+name)
	l.ip("pod", "addr add 2001:db8:1::5/64 nodad dev "+name)
	l.ip("pod", "link set up dev "+name)
	l.ip("peer", "addr add 192.168.1.1/24 dev eth0")
	l.ip("peer", "addr add 2001:db8:1::1/64 dev eth0 nodad")
	l.ip("peer", "link set eth0 up")

	link := secondary("lan", netstate.Kind(strings.Fields(kind)[0]), "192.168.1.5/24", "2001:db8:1::5/64")
	link.MAC = mac
	plan := l.plan(request(bridged("lan"), link))
	l.apply(plan)
	l.guest("guest", plan.NICs[0])
	l.serve("guest", "guest", 80)
	l.serve("peer", "peer", 80)
	l.serve("pod", "pod", 81)

	l.want("peer", "192.168.1.5", 80, "guest 192.168.1.1")
	l.want("peer", "2001:db8:1::5", 80, "guest 2001:db8:1::1")
	l.want("guest", "192.168.1.1", 80, "peer 192.168.1.5")
	l.want("guest", "2001:db8:1::1", 80, "peer 2001:db8:1::5")

	// The Pod's own stack is not on this network, neither for the peer nor for
	// the guest, not even with addresses it has on other links.
	l.ip("peer", "route add 192.0.2.0/24 dev eth0")
	l.ip("guest", "route add 192.0.2.0/24 dev eth0")
	l.never("peer", "192.0.2.7", 81)
	l.never("guest", "192.0.2.7", 81)
	l.never("peer", "192.168.1.5", 81)

	l.crossTalk()
}

// crossTalk: DHCP and RA cross the wire in neither direction; other traffic on
// the same path, sent later, does.
func (l *lab) crossTalk() {
	t := l.t
	guest, stop := l.listenUDP("guest", ":68", ":546", ":6868")
	l.sendUDP("peer", ":67", "192.168.1.255:68", "192.168.1.5:68", "192.168.1.5:6868")
	wantHeard(t, guest, ":6868")
	l.sendUDP("peer", ":547", "[2001:db8:1::5]:546", "[2001:db8:1::5]:6868")
	wantHeard(t, guest, ":6868")
	stop()

	peer, stop := l.listenUDP("peer", ":67", ":547", ":6767")
	defer stop()
	l.sendUDP("guest", ":68", "192.168.1.255:67", "192.168.1.1:67", "192.168.1.1:6767")
	wantHeard(t, peer, ":6767")
	l.sendUDP("guest", ":546", "[2001:db8:1::1]:547", "[2001:db8:1::1]:6767")
	wantHeard(t, peer, ":6767")

	// 134 advertisement, 133 solicitation (RFC 4861 section 4); 128 echo request.
	const advert, solicit, echo = 134, 133, 128
	l.wantICMP6("peer", "2001:db8:1::1", "guest", "2001:db8:1::5", advert, echo)
	l.wantICMP6("guest", "2001:db8:1::5", "peer", "2001:db8:1::1", solicit, echo)
}

// listenUDP gives the ports datagrams arrive on, in order.
func (l *lab) listenUDP(ns string, addrs ...string) (heardPorts <-chan string, closeAll func()) {
	l.t.Helper()
	heard := make(chan string, 64) // more than any test sends
	var stop []func()
	for _, addr := range addrs {
		var conn net.PacketConn
		l.must(ns, func() (err error) {
			conn, err = net.ListenPacket("udp", addr)
			return err
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 100)
			for {
				if _, _, err := conn.ReadFrom(buf); err != nil {
					return
				}
				heard <- addr
			}
		}()
		stop = append(stop, func() { conn.Close(); <-done })
	}
	return heard, func() {
		for _, f := range stop {
			f()
		}
	}
}

func (l *lab) sendUDP(ns, from string, to ...string) {
	l.t.Helper()
	l.must(ns, func() error {
		conn, err := net.ListenPacket("udp", from)
		if err != nil {
			return err
		}
		defer conn.Close()
		for _, addr := range to {
			target := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr))
			if _, err := conn.WriteTo([]byte("x"), target); err != nil {
				return fmt.Errorf("send to %s: %w", addr, err)
			}
		}
		return nil
	})
}

// wantHeard: the first datagram heard is the one on port want; those sent
// before it did not come.
func wantHeard(t *testing.T, heard <-chan string, want string) {
	t.Helper()
	select {
	case got := <-heard:
		if got != want {
			t.Errorf("heard a datagram on %s", got)
		}
	case <-time.After(patience):
		t.Errorf("heard nothing on %s", want)
	}
}

// wantICMP6 sends two ICMPv6 messages and wants only the second to arrive.
func (l *lab) wantICMP6(from, source, to, target string, lost, kept byte) {
	l.t.Helper()
	var in, out *net.IPConn
	l.must(to, func() (err error) {
		in, err = net.ListenIP("ip6:ipv6-icmp", &net.IPAddr{IP: net.ParseIP(target)})
		return err
	})
	defer in.Close()
	l.must(from, func() (err error) {
		out, err = net.ListenIP("ip6:ipv6-icmp", &net.IPAddr{IP: net.ParseIP(source)})
		return err
	})
	defer out.Close()
	for _, kind := range []byte{lost, kept} {
		message := make([]byte, 16) // long enough for either; the kernel fills in the checksum
		message[0] = kind
		if _, err := out.WriteToIP(message, &net.IPAddr{IP: net.ParseIP(target)}); err != nil {
			l.t.Fatalf("send ICMPv6 type %d: %v", kind, err)
		}
	}
	if err := in.SetReadDeadline(time.Now().Add(patience)); err != nil {
		l.t.Fatal(err)
	}
	buf := make([]byte, 100)
	for {
		n, _, err := in.ReadFromIP(buf)
		if err != nil {
			l.t.Errorf("ICMPv6 type %d did not arrive: %v", kept, err)
			return
		}
		switch {
		case n > 0 && buf[0] == lost:
			l.t.Errorf("ICMPv6 type %d arrived", lost)
		case n > 0 && buf[0] == kept:
			return
		}
	}
}
