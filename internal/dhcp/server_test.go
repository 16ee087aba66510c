package dhcp

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/mdlayher/ndp"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/frame"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/vmnet"
)

func listenAll(device string, index int) (*packet.Conn, error) {
	return packet.Listen(&net.Interface{Index: index, Name: device}, packet.Raw, unix.ETH_P_ALL, nil)
}

var guestLL = addr("fe80::aa:ff:fe00:1")

func ap(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// frame4 is a request as a client without address broadcasts it.
func frame4(req *dhcpv4.DHCPv4) []byte {
	return frame.BuildUDP(frame.Ether{Src: guestMAC, Dst: frame.Broadcast},
		ap(netip.IPv4Unspecified(), clientPort4), ap(broadcast4, serverPort4), req.ToBytes())
}

func frame6(req *dhcpv6.Message) []byte {
	group := addr("ff02::1:2")
	return frame.BuildUDP(frame.Ether{Src: guestMAC, Dst: frame.MulticastMAC(group)},
		ap(guestLL, clientPort6), ap(group, serverPort6), req.ToBytes())
}

func frameRS(src netip.Addr) []byte {
	group := addr("ff02::2")
	return frame.BuildICMPv6(frame.Ether{Src: guestMAC, Dst: frame.MulticastMAC(group)}, src, group, []byte{133, 0, 0, 0, 0, 0, 0, 0})
}

func isReply4(p frame.Packet) bool { return p.Kind == frame.UDP && p.Dst.Port() == clientPort4 }
func isReply6(p frame.Packet) bool { return p.Kind == frame.UDP && p.Dst.Port() == clientPort6 }
func isRA(p frame.Packet) bool {
	return p.Kind == frame.ICMPv6 && len(p.Payload) > 0 && p.Payload[0] == 134
}

// exchange4 sends a request and reads the reply.
func exchange4(t testing.TB, g *guest, b []byte) *dhcpv4.DHCPv4 {
	t.Helper()
	g.send(t, b)
	p := g.receive(t, patience, isReply4)
	if p == nil {
		t.Fatal("no DHCPv4 reply")
	}
	reply, err := dhcpv4.FromBytes(p.Payload)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func TestServerOnTAP(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	events := make(chan Event, 10)
	s, _ := start(t, Config{Netns: w.pod.path, Serve: serveAll(), OnEvent: func(e Event) { events <- e }})
	waitReady(t, s)

	if got := exchange4(t, w.guest, frame4(request(t, dhcpv4.MessageTypeDiscover))); got.MessageType() != dhcpv4.MessageTypeOffer {
		t.Errorf("DISCOVER: got %s", got.MessageType())
	}
	got := exchange4(t, w.guest, frame4(request(t, dhcpv4.MessageTypeRequest, chosen("10.0.2.1"), requested("10.0.2.2"))))
	if got.MessageType() != dhcpv4.MessageTypeAck || got.YourIPAddr.String() != "10.0.2.2" {
		t.Errorf("REQUEST: got %s", got.Summary())
	}
	if diff := cmp.Diff(Event{Leased, DHCPv4, guestText, addr("10.0.2.2")}, <-events, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	// A renewal, unicast to addresses and a MAC that are nobody's here, with a
	// checksum that is only the pseudo header's, as an offloading guest sends it.
	renewal := frame.BuildUDP(frame.Ether{Src: guestMAC, Dst: frame.MAC{2, 0, 0, 0, 7, 7}},
		ap(addr("10.0.2.2"), clientPort4), ap(addr("192.0.2.200"), serverPort4),
		request(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(ip("10.0.2.2"))).ToBytes())
	renewal[14+20+6], renewal[14+20+7] = 0x12, 0x34
	if got := exchange4(t, w.guest, renewal); got.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("renewal: got %s", got.MessageType())
	}
	if got := exchange4(t, w.guest, frame4(request(t, dhcpv4.MessageTypeRequest, requested("10.0.2.99")))); got.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("init-reboot with another address: got %s", got.MessageType())
	}
	exchange6(t, w.guest)
	exchangeRA(t, w.guest)

	// The guest's own frames reach the LAN here (the filter that holds them back
	// is not the server's), which proves that the capture works; ours do not.
	discovers := func(b []byte) bool {
		p, ok := frame.Parse(b)
		return ok && p.Kind == frame.UDP && p.Dst.Port() == serverPort4
	}
	eventually(t, "the guest's broadcasts are captured", func() bool { return w.capture.count(discovers) >= 3 })
	if n := w.capture.count(fromServer); n != 0 {
		t.Errorf("%d frames of ours reached the LAN", n)
	}
	checkHistory(t, s)
}

func exchange6(t *testing.T, g *guest) {
	t.Helper()
	g.send(t, frame6(request6(t, dhcpv6.MessageTypeSolicit, fromClient, ia(1))))
	p := g.receive(t, patience, isReply6)
	if p == nil {
		t.Fatal("no DHCPv6 reply")
	}
	if p.Src.Addr() != addr("fe80::ff:fe00:0") || p.Dst.Addr() != guestLL || p.DstMAC != guestMAC || p.SrcMAC != serverMAC {
		t.Errorf("reply goes from %s %s to %s %s", p.SrcMAC, p.Src, p.DstMAC, p.Dst)
	}
	reply, err := dhcpv6.MessageFromBytes(p.Payload)
	if err != nil || reply.MessageType != dhcpv6.MessageTypeAdvertise {
		t.Errorf("got %v, %v", reply, err)
	}
}

func exchangeRA(t *testing.T, g *guest) {
	t.Helper()
	g.send(t, frameRS(guestLL))
	p := g.receive(t, patience, func(p frame.Packet) bool { return isRA(p) && p.Dst.Addr() == guestLL })
	if p == nil {
		t.Fatal("no unicast router advertisement")
	}
	if p.HopLimit != 255 || p.DstMAC != guestMAC {
		t.Errorf("hop limit %d, to %s", p.HopLimit, p.DstMAC)
	}
	if m, err := ndp.ParseMessage(p.Payload); err != nil || m.(*ndp.RouterAdvertisement).RouterLifetime != 65535*time.Second {
		t.Errorf("got %+v, %v", m, err)
	}
	// From the unspecified address: by multicast, no sooner than 3 s after the last.
	g.send(t, frameRS(netip.IPv6Unspecified()))
	if g.receive(t, patience, func(p frame.Packet) bool { return isRA(p) && p.Dst.Addr() == addr("ff02::1") }) == nil {
		t.Fatal("no multicast router advertisement")
	}
}

func checkHistory(t *testing.T, s *Server) {
	t.Helper()
	var got []Exchange
	for _, transaction := range s.Transactions() {
		if transaction.Client != guestText || transaction.Time.IsZero() {
			t.Errorf("got %+v", transaction)
		}
		got = append(got, transaction.Exchange)
	}
	want := []Exchange{
		{DHCPv4, "DISCOVER", "OFFER"},
		{DHCPv4, "REQUEST", "ACK"},
		{DHCPv4, "REQUEST", "ACK"},
		{DHCPv4, "REQUEST", "NAK"},
		{DHCPv6, "SOLICIT", "ADVERTISE"},
		{RA, "SOLICITATION", "unicast"},
		{RA, "SOLICITATION", "multicast"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	stats := s.Stats()
	if stats.Exchanges[want[1]] != 2 || stats.Exchanges[Exchange{RA, "", "multicast"}] < 1 || stats.Malformed != 0 || stats.SendErrors != 0 || stats.Opened != 1 {
		t.Errorf("got %+v", stats)
	}
}

func TestServerIsDeafToTheLAN(t *testing.T) {
	w := newWire(t)
	s, _ := start(t, Config{Netns: w.pod.path, Serve: serveAll()})
	waitReady(t, s)
	// A stranger's DISCOVER leaves by the TAP towards the guest; it is not ours.
	var conn *packet.Conn
	w.lan.do(t, func() (err error) {
		index, err := frame.Index("lan1")
		if err != nil {
			return err
		}
		conn, err = listenAll("lan1", index)
		return err
	})
	defer conn.Close()
	stranger := frame4(request(t, dhcpv4.MessageTypeDiscover))
	if _, err := conn.WriteTo(stranger, &packet.Addr{HardwareAddr: net.HardwareAddr(frame.Broadcast[:])}); err != nil {
		t.Fatal(err)
	}
	if w.guest.receive(t, patience, func(p frame.Packet) bool { return p.Kind == frame.UDP && p.Dst.Port() == serverPort4 }) == nil {
		t.Fatal("the stranger's DISCOVER did not come through")
	}
	exchange4(t, w.guest, frame4(request(t, dhcpv4.MessageTypeDiscover)))
	if got := s.Transactions(); len(got) != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestServerAnswersARP(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	serve := serveAll()
	lease := bridgeLease()
	serve.Lease4, serve.Lease6, serve.RA = &lease, nil, nil
	s, _ := start(t, Config{Netns: w.pod.path, Serve: serve})
	waitReady(t, s)
	ask := func(target string) []byte {
		b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, guestMAC[:]...)
		b = append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
		b = append(append(b, guestMAC[:]...), 192, 0, 2, 10, 0, 0, 0, 0, 0, 0)
		return append(b, ip(target)...)
	}
	w.guest.send(t, ask("192.0.2.1")) // the router's business
	w.guest.send(t, ask("169.254.75.10"))
	b := make([]byte, 2000)
	if err := w.guest.file.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := w.guest.file.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if n >= 42 && b[12] == 8 && b[13] == 6 && b[21] == 2 {
			if net.IP(b[28:32]).String() != "169.254.75.10" || frame.MAC(b[22:28]) != serverMAC || frame.MAC(b[0:6]) != guestMAC {
				t.Errorf("got %x", b[:n])
			}
			return
		}
	}
}

func TestServerDeviceMadeAnew(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	s, _ := start(t, Config{Netns: w.pod.path, Serve: serveAll()})
	waitReady(t, s)
	discover := frame4(request(t, dhcpv4.MessageTypeDiscover))
	exchange4(t, w.guest, discover)
	for round := uint64(2); round < 5; round++ {
		w.guest.file.Close()
		w.pod.ip(t, "link", "del", "tap0")
		if round == 3 {
			// Without a device we hold no socket; else it would pin the namespace.
			eventually(t, "the socket is closed", func() bool { return w.pod.packetSockets(t) == 0 })
		}
		w.addTAP(t)
		eventually(t, "the socket is opened again", func() bool { return s.Stats().Opened == round })
		exchange4(t, w.guest, discover)
	}
	// Down and up again is the same device: no new socket, service goes on.
	opened := s.Stats().Opened
	w.pod.ip(t, "link", "set", "tap0", "down")
	w.pod.ip(t, "link", "set", "tap0", "up")
	exchange4(t, w.guest, discover)
	if got := s.Stats().Opened; got != opened {
		t.Errorf("opened %d times, want %d", got, opened)
	}
	// Renamed away and another one in its place.
	w.pod.ip(t, "link", "set", "tap0", "name", "old0")
	w.addTAP(t)
	eventually(t, "the socket is moved", func() bool { return s.Stats().Opened == opened+1 })
	exchange4(t, w.guest, discover)
}

func TestServerUpdate(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	serve := serveAll()
	s, _ := start(t, Config{Netns: w.pod.path, Serve: serve})
	waitReady(t, s)
	if w.guest.receive(t, patience, isRA) == nil {
		t.Fatal("no router advertisement at the start")
	}
	lease := *serve.Lease4
	lease.Addr = prefix("10.0.2.50/24")
	serve.Lease4 = &lease
	serve.RA = nil
	if err := s.Update(serve); err != nil {
		t.Fatal(err)
	}
	last := w.guest.receive(t, patience, isRA)
	if last == nil {
		t.Fatal("the default route is not taken back")
	}
	if m, err := ndp.ParseMessage(last.Payload); err != nil || m.(*ndp.RouterAdvertisement).RouterLifetime != 0 {
		t.Errorf("got %+v, %v", m, err)
	}
	if got := exchange4(t, w.guest, frame4(request(t, dhcpv4.MessageTypeDiscover))); got.YourIPAddr.String() != "10.0.2.50" {
		t.Errorf("got %s", got.YourIPAddr)
	}
	bad := serve
	bad.ServerMAC = "nonsense"
	if err := s.Update(bad); err == nil {
		t.Error("a server without MAC is taken")
	}
	if err := s.Update(serve); err != nil {
		t.Error(err)
	}
}

func TestServerClose(t *testing.T) {
	w := newWire(t)
	before := runtime.NumGoroutine()
	s, ended := start(t, Config{Netns: w.pod.path, Serve: serveAll()})
	waitReady(t, s)
	if n := w.pod.packetSockets(t); n != 1 {
		t.Errorf("%d sockets, want 1", n)
	}
	started := time.Now()
	s.Close()
	took := time.Since(started)
	if n := w.pod.packetSockets(t); n != 0 {
		t.Errorf("%d sockets after Close", n)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if took > 500*time.Millisecond {
		t.Errorf("Close took %s", took)
	}
	// The guest was told nothing: no advertisement with lifetime 0.
	for {
		p := w.guest.receive(t, 50*time.Millisecond, isRA)
		if p == nil {
			break
		}
		if m, err := ndp.ParseMessage(p.Payload); err != nil || m.(*ndp.RouterAdvertisement).RouterLifetime == 0 {
			t.Errorf("got %+v, %v", m, err)
		}
	}
	s.Close() // again
	if err := s.Run(t.Context()); err != nil {
		t.Errorf("a closed server runs: %v", err)
	}
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}

func TestServerNamespaceGone(t *testing.T) {
	t.Parallel()
	pod, host := newNS(t, "pod"), newNS(t, "host")
	pod.ip(t, "link", "add", "tap0", "type", "veth", "peer", "name", "peer0", "netns", host.name)
	pod.ip(t, "link", "set", "tap0", "up")
	s, ended := start(t, Config{Netns: pod.path, Serve: serveAll()})
	waitReady(t, s)
	pod.delete(t)
	select {
	case err := <-ended:
		if !errors.Is(err, ErrNamespaceGone) {
			t.Errorf("got %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the server outlives its namespace")
	}
	eventually(t, "the namespace's links go", func() bool {
		out, err := host.exec(t.Context(), "ip", "link", "show", "peer0").CombinedOutput()
		return err != nil && len(out) > 0
	})
}

func TestServerNamespaceReplaced(t *testing.T) {
	pod := newNS(t, "pod")
	s, ended := start(t, Config{Netns: pod.path, Serve: serveAll()}) // there is no tap0
	eventually(t, "the server waits for its device", func() bool { return s.String() != "" && pod.packetSockets(t) == 0 })
	pod.delete(t)
	run(t, "ip", "netns", "add", pod.name)
	select {
	case err := <-ended:
		if !errors.Is(err, ErrNamespaceGone) {
			t.Errorf("got %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the server serves another sandbox of that name")
	}
}

func TestServerWaitsForDevice(t *testing.T) {
	t.Parallel()
	pod := newNS(t, "pod")
	s, _ := start(t, Config{Netns: pod.path, Serve: serveAll()})
	pod.ip(t, "tuntap", "add", "dev", "tap0", "mode", "tap")
	waitReady(t, s) // on a device that is down, even
	pod.ip(t, "link", "set", "tap0", "up")
	g := attach(t, pod, "tap0")
	// Until the kernel has noticed the carrier it drops what is sent.
	eventually(t, "tap0 is up", func() bool { return strings.Contains(pod.ip(t, "link", "show", "tap0"), "state UP") })
	exchange4(t, g, frame4(request(t, dhcpv4.MessageTypeDiscover)))
}

func TestServerFlood(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	s, _ := start(t, Config{Netns: w.pod.path, Serve: serveAll()})
	waitReady(t, s)
	discover := frame4(request(t, dhcpv4.MessageTypeDiscover))
	for range 5000 {
		w.guest.send(t, discover)
	}
	// Far from all are answered, and service goes on after.
	eventually(t, "the flood is over", func() bool { return w.guest.receive(t, 200*time.Millisecond, isReply4) == nil })
	var answered uint64
	for _, n := range s.Stats().Exchanges {
		answered += n
	}
	if answered > 1500 {
		t.Errorf("%d of 5000 requests answered at once", answered)
	}
	exchange4(t, w.guest, discover)
	if got := len(s.Transactions()); got != historyLen {
		t.Errorf("history holds %d", got)
	}
}

func TestHistoryOrder(t *testing.T) {
	var h history
	for i := range uint32(historyLen + 5) {
		h.add(Transaction{XID: i})
	}
	got := h.transactions()
	for i, transaction := range got {
		if transaction.XID != uint32(i+5) {
			t.Fatalf("place %d: got %d", i, transaction.XID)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	tests := []struct {
		name   string
		mutate func(*vmnet.Serve)
		field  string
	}{
		{"no MAC", func(s *vmnet.Serve) { s.ServerMAC = "" }, "serverMAC"},
		{"group MAC", func(s *vmnet.Serve) { s.ServerMAC = "01:00:00:00:00:00" }, "serverMAC"},
		{"no TAP", func(s *vmnet.Serve) { s.TAP = "" }, "tap"},
		{"no link-local", func(s *vmnet.Serve) { s.ServerLL = addr("fd00::1") }, "serverLL"},
		{"zero link-local", func(s *vmnet.Serve) { s.ServerLL = netip.Addr{} }, "serverLL"},
		{"lease of 6 in 4", func(s *vmnet.Serve) { s.Lease4.Addr = prefix("fd00::1/64") }, "lease4.addr"},
		{"no server id", func(s *vmnet.Serve) { s.Lease4.ServerID = netip.Addr{} }, "lease4.serverID"},
		{"lease of 4 in 6", func(s *vmnet.Serve) { s.Lease6.Addr = addr("192.0.2.1") }, "lease6.addr"},
	}
	for _, tt := range tests {
		serve := serveAll()
		tt.mutate(&serve)
		_, err := New(Config{Serve: serve})
		if h, ok := errors.AsType[*hint.Error](err); !ok || h.Field != tt.field {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
	odd := serveAll()
	odd.Lease4.Search, odd.Lease6.DNS, odd.RA.Search = []string{"1.2.3.4"}, []netip.Addr{addr("1.2.3.4")}, []string{".."}
	got := Problems(odd)
	want := `lease4.search[0] "1.2.3.4": is an address, not a domain name; write a domain name such as example.org
lease6.dns[0] "1.2.3.4": not an IPv6 address; tell IPv4 name servers by DHCPv4
ra.search[0] "..": has an empty label; write a domain name such as example.org`
	if got == nil || got.Error() != want {
		t.Errorf("got %v", got)
	}
	if err := Problems(serveAll()); err != nil {
		t.Error(err)
	}
}
