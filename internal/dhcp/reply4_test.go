package dhcp

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/weftnet/weft/internal/frame"
	"github.com/weftnet/weft/internal/vmnet"
	"github.com/weftnet/weft/test/golden"
)

const guestText = "02:aa:00:00:00:01"

var (
	guestMAC  = frame.MAC{2, 0xaa, 0, 0, 0, 1}
	serverMAC = frame.MAC{2, 0, 0, 0, 0, 0}
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// masqueradeLease is what a guest behind NAT is told.
func masqueradeLease() vmnet.Lease4 {
	return vmnet.Lease4{
		Addr: prefix("10.0.2.2/24"), ServerID: addr("10.0.2.1"), Router: addr("10.0.2.1"),
		DNS: []netip.Addr{addr("10.96.0.10")}, Domain: "default.svc.cluster.local",
		Search:   []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"},
		Hostname: "vm-a", MTU: 1450, Lifetime: 24 * time.Hour,
	}
}

// bridgeLease is what a guest on a network of its own is told, every option used.
func bridgeLease() vmnet.Lease4 {
	return vmnet.Lease4{
		MAC: guestText, Addr: prefix("192.0.2.10/25"), ServerID: addr("169.254.75.10"), Router: addr("192.0.2.1"),
		Routes: []vmnet.Route{
			{Dst: prefix("169.254.1.1/32")},
			{Dst: prefix("198.51.100.0/22"), Via: addr("192.0.2.2")},
			{Dst: prefix("0.0.0.0/0"), Via: addr("192.0.2.1")},
		},
		DNS: []netip.Addr{addr("192.0.2.53"), addr("192.0.2.54")}, Domain: "example.org",
		Search: []string{"Example.ORG.", "10.0.0.1", "b.example"}, Hostname: "vm-b", MTU: 9000,
		NTP: []netip.Addr{addr("192.0.2.123")}, TFTP: "192.0.2.69", BootFile: "boot/vm.ipxe",
		Private: []vmnet.PrivateOption{{Code: 240, Value: "second"}, {Code: 224, Value: "first"}},
	}
}

// request builds what a client sends.
func request(t testing.TB, kind dhcpv4.MessageType, more ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	mods := append([]dhcpv4.Modifier{
		dhcpv4.WithTransactionID(dhcpv4.TransactionID{0xde, 0xad, 0xbe, 0xef}),
		dhcpv4.WithHwAddr(net.HardwareAddr(guestMAC[:])),
	}, more...)
	if kind != dhcpv4.MessageTypeNone {
		mods = append(mods, dhcpv4.WithMessageType(kind))
	}
	req, err := dhcpv4.New(mods...)
	if err != nil {
		t.Fatal(err)
	}
	// Through the wire, as a server sees it.
	parsed, err := dhcpv4.FromBytes(req.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func option(code uint8, value ...byte) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(code), value))
}

func ip(s string) net.IP { return net.ParseIP(s).To4() }

func requested(s string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip(s)))
}

func chosen(s string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip(s)))
}

func TestReply4Decision(t *testing.T) {
	const (
		none     = dhcpv4.MessageTypeNone
		discover = dhcpv4.MessageTypeDiscover
		ask      = dhcpv4.MessageTypeRequest
		offer    = dhcpv4.MessageTypeOffer
		ack      = dhcpv4.MessageTypeAck
		nak      = dhcpv4.MessageTypeNak
	)
	toAll, toGuest := "255.255.255.255:68", "192.0.2.10:68"
	tests := []struct {
		name   string
		kind   dhcpv4.MessageType
		mods   []dhcpv4.Modifier
		want   dhcpv4.MessageType
		given  string // "": no address in the reply
		dst    string
		reason string
		event  EventKind
	}{
		{name: "discover", kind: discover, want: offer, given: "192.0.2.10", dst: toGuest},
		{name: "discover with another wish", kind: discover, mods: []dhcpv4.Modifier{requested("192.0.2.77")}, want: offer, given: "192.0.2.10", dst: toGuest},
		{name: "discover, broadcast flag", kind: discover, mods: []dhcpv4.Modifier{dhcpv4.WithBroadcast(true)}, want: offer, given: "192.0.2.10", dst: toAll},
		{name: "discover, rapid commit", kind: discover, mods: []dhcpv4.Modifier{option(80)}, want: ack, given: "192.0.2.10", dst: toGuest, reason: "rapid commit", event: Leased},
		{name: "selecting us", kind: ask, mods: []dhcpv4.Modifier{chosen("169.254.75.10"), requested("192.0.2.10")}, want: ack, given: "192.0.2.10", dst: toGuest, event: Leased},
		{name: "selecting us, no address named", kind: ask, mods: []dhcpv4.Modifier{chosen("169.254.75.10")}, want: ack, given: "192.0.2.10", dst: toGuest, event: Leased},
		{name: "selecting us, wrong address", kind: ask, mods: []dhcpv4.Modifier{chosen("169.254.75.10"), requested("192.0.2.11")}, want: nak, dst: toAll, reason: "address is 192.0.2.10, not 192.0.2.11"},
		{name: "selecting another", kind: ask, mods: []dhcpv4.Modifier{chosen("192.0.2.1"), requested("192.0.2.10")}, want: none, reason: "client chose server 192.0.2.1"},
		{name: "init-reboot right", kind: ask, mods: []dhcpv4.Modifier{requested("192.0.2.10")}, want: ack, given: "192.0.2.10", dst: toGuest, event: Leased},
		{name: "init-reboot wrong", kind: ask, mods: []dhcpv4.Modifier{requested("10.9.9.9")}, want: nak, dst: toAll, reason: "address is 192.0.2.10, not 10.9.9.9"},
		{name: "renewing right", kind: ask, mods: []dhcpv4.Modifier{dhcpv4.WithClientIP(ip("192.0.2.10"))}, want: ack, given: "192.0.2.10", dst: toGuest, event: Leased},
		{name: "renewing wrong", kind: ask, mods: []dhcpv4.Modifier{dhcpv4.WithClientIP(ip("192.0.2.11"))}, want: nak, dst: toAll, reason: "address is 192.0.2.10, not 192.0.2.11"},
		{name: "rebinding right, broadcast flag", kind: ask, mods: []dhcpv4.Modifier{dhcpv4.WithClientIP(ip("192.0.2.10")), dhcpv4.WithBroadcast(true)}, want: ack, given: "192.0.2.10", dst: toGuest, event: Leased},
		{name: "request of nothing", kind: ask, want: nak, dst: toAll, reason: "no address requested"},
		{name: "inform", kind: dhcpv4.MessageTypeInform, mods: []dhcpv4.Modifier{dhcpv4.WithClientIP(ip("192.0.2.99"))}, want: ack, dst: "192.0.2.99:68", reason: "inform"},
		{name: "inform without address", kind: dhcpv4.MessageTypeInform, want: ack, dst: toAll, reason: "inform"},
		{name: "decline", kind: dhcpv4.MessageTypeDecline, mods: []dhcpv4.Modifier{requested("192.0.2.10")}, want: none, reason: "client says 192.0.2.10 is in use by somebody else", event: Declined},
		{name: "release", kind: dhcpv4.MessageTypeRelease, mods: []dhcpv4.Modifier{dhcpv4.WithClientIP(ip("192.0.2.10"))}, want: none, reason: "client gives 192.0.2.10 up", event: Released},
		{name: "offer of somebody", kind: offer, want: none, reason: "OFFER is not for a server"},
		{name: "bootp", kind: none, want: none, reason: "BOOTP is not served"},
		{name: "relayed", kind: discover, mods: []dhcpv4.Modifier{dhcpv4.WithGatewayIP(ip("192.0.2.3"))}, want: none, reason: "relayed by 192.0.2.3"},
		{name: "another MAC", kind: discover, mods: []dhcpv4.Modifier{dhcpv4.WithHwAddr(net.HardwareAddr{2, 0, 0, 0, 0, 9})}, want: none, reason: "client is 02:00:00:00:00:09, the NIC's MAC is " + guestText},
		{name: "multicast MAC", kind: discover, mods: []dhcpv4.Modifier{dhcpv4.WithHwAddr(net.HardwareAddr{3, 0, 0, 0, 0, 9})}, want: none, reason: "client has no Ethernet address"},
		{name: "infiniband", kind: discover, mods: []dhcpv4.Modifier{dhcpv4.WithHWType(32)}, want: none, reason: "client has no Ethernet address"},
		{name: "a reply", kind: discover, mods: []dhcpv4.Modifier{func(d *dhcpv4.DHCPv4) { d.OpCode = dhcpv4.OpcodeBootReply }}, want: none, reason: "not a request"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := request(t, tt.kind, tt.mods...)
			got := Reply4(bridgeLease(), req)
			if got.Type != tt.want || got.Reason != tt.reason || got.Event != tt.event {
				t.Fatalf("got %s, reason %q, event %q, want %s, %q, %q", got.Type, got.Reason, got.Event, tt.want, tt.reason, tt.event)
			}
			if tt.want == none {
				if got.Payload != nil {
					t.Error("silence has a payload")
				}
				return
			}
			checkReply4(t, req, got, tt.given, tt.dst)
		})
	}
}

// checkReply4 reads the reply as a client does.
func checkReply4(t *testing.T, req *dhcpv4.DHCPv4, got Answer4, given, dst string) {
	t.Helper()
	if got.Dst.String() != dst {
		t.Errorf("sent to %s, want %s", got.Dst, dst)
	}
	wantMAC := guestMAC
	if dst == "255.255.255.255:68" {
		wantMAC = frame.Broadcast
	}
	if got.DstMAC != wantMAC {
		t.Errorf("sent to %s, want %s", got.DstMAC, wantMAC)
	}
	if len(got.Payload) < minPayload {
		t.Errorf("%d bytes, want at least %d", len(got.Payload), minPayload)
	}
	reply, err := dhcpv4.FromBytes(got.Payload)
	if err != nil {
		t.Fatal(err)
	}
	if reply.TransactionID != req.TransactionID || reply.OpCode != dhcpv4.OpcodeBootReply || reply.Flags != req.Flags {
		t.Errorf("header does not match the request: %s", reply.Summary())
	}
	if reply.MessageType() != got.Type || !reply.ServerIdentifier().Equal(ip("169.254.75.10")) {
		t.Errorf("got type %s, server %s", reply.MessageType(), reply.ServerIdentifier())
	}
	if given == "" {
		given = "0.0.0.0"
	}
	if reply.YourIPAddr.String() != given {
		t.Errorf("got address %s, want %s", reply.YourIPAddr, given)
	}
	if lease := reply.Options.Has(dhcpv4.OptionIPAddressLeaseTime); lease != (given != "0.0.0.0") {
		t.Errorf("lease time present: %v, address %s", lease, given)
	}
	if got.Type == dhcpv4.MessageTypeNak {
		for code := range reply.Options {
			if code != opt4MessageType && code != opt4ServerID && code != opt4Message && code != opt4ClientID {
				t.Errorf("NAK has option %d (RFC 2131 table 3)", code)
			}
		}
	} else if len(reply.DNS()) != 2 {
		t.Errorf("got DNS %v", reply.DNS())
	}
}

// describe4 gives the options of a payload in the order they stand there.
func describe4(t *testing.T, payload []byte) string {
	t.Helper()
	var b strings.Builder
	rest := payload[headerLen4+4:]
	for len(rest) > 0 && rest[0] != opt4End {
		length := int(rest[1])
		fmt.Fprintf(&b, "%d %x\n", rest[0], rest[2:2+length])
		rest = rest[2+length:]
	}
	fmt.Fprintf(&b, "padding %d\n", len(rest)-1)
	return b.String()
}

func TestReply4Golden(t *testing.T) {
	id := option(opt4ClientID, 1, 2, 0xaa, 0, 0, 0, 1)
	tests := []struct {
		name  string
		lease vmnet.Lease4
		req   *dhcpv4.DHCPv4
	}{
		{"masquerade-offer", masqueradeLease(), request(t, dhcpv4.MessageTypeDiscover)},
		{"masquerade-ack", masqueradeLease(), request(t, dhcpv4.MessageTypeRequest, requested("10.0.2.2"), chosen("10.0.2.1"), id)},
		{"bridge-ack", bridgeLease(), request(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(ip("192.0.2.10")), id, option(opt4MaxSize, 5, 220))},
		{"bridge-nak", bridgeLease(), request(t, dhcpv4.MessageTypeRequest, requested("192.0.2.11"), id)},
		{"bridge-inform", bridgeLease(), request(t, dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(ip("192.0.2.10")))},
		{"bridge-rapid", bridgeLease(), request(t, dhcpv4.MessageTypeDiscover, option(opt4RapidCommit), dhcpv4.WithBroadcast(true))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Reply4(tt.lease, tt.req)
			for range 5 {
				if again := Reply4(tt.lease, tt.req); string(again.Payload) != string(got.Payload) {
					t.Fatal("the same request is answered differently")
				}
			}
			text := fmt.Sprintf("%s to %s at %s\n%s\n%s", got.Type, got.Dst, got.DstMAC, describe4(t, got.Payload), hex.Dump(got.Payload))
			golden.Check(t, tt.name+".txt", text)
		})
	}
}

func TestReply4Room(t *testing.T) {
	lease := bridgeLease()
	for i := range 12 {
		lease.Private = append(lease.Private, vmnet.PrivateOption{Code: uint8(241 + i), Value: strings.Repeat("x", 40)})
	}
	// No option 57: 548 bytes. The private options go first, from the end, except
	// the one asked for.
	got := Reply4(lease, request(t, dhcpv4.MessageTypeDiscover, option(opt4Parameters, 1, 3, 252)))
	if len(got.Payload) > minMaxSize-ipUDPLen {
		t.Errorf("%d bytes, the client takes %d", len(got.Payload), minMaxSize-ipUDPLen)
	}
	reply, err := dhcpv4.FromBytes(got.Payload)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Dropped) == 0 || got.Dropped[0] != 251 || len(reply.Options[252]) != 40 || len(reply.Options[opt4Routes]) == 0 {
		t.Errorf("dropped %v, have %v", got.Dropped, reply.Options)
	}
	// With it, all of them fit.
	got = Reply4(lease, request(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(1500))))
	if len(got.Dropped) != 0 || len(got.Payload) > 1500-ipUDPLen {
		t.Errorf("dropped %v, %d bytes", got.Dropped, len(got.Payload))
	}
	// What nobody can leave out stays, however little room there is.
	lease.MTU = 600
	got = Reply4(lease, request(t, dhcpv4.MessageTypeDiscover, option(opt4MaxSize, 0xff, 0xff)))
	if len(got.Payload) > 600-ipUDPLen {
		t.Errorf("%d bytes do not fit the MTU", len(got.Payload))
	}
}

func TestReply4LongOptions(t *testing.T) {
	lease := masqueradeLease()
	lease.Search = nil
	for i := range 20 {
		lease.Search = append(lease.Search, fmt.Sprintf("%s%d.example.org", strings.Repeat("s", 20), i))
	}
	got := Reply4(lease, request(t, dhcpv4.MessageTypeDiscover, option(opt4MaxSize, 5, 220)))
	reply, err := dhcpv4.FromBytes(got.Payload)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(lease.Search, reply.DomainSearch().Labels); diff != "" {
		t.Errorf("a search list of several options (RFC 3396) is not read back:\n%s", diff)
	}
	if n := strings.Count("\n"+describe4(t, got.Payload), "\n119 "); n != 3 {
		t.Errorf("119 stands there %d times, want 3", n)
	}
}

func TestConfig4Odd(t *testing.T) {
	lease := masqueradeLease()
	lease.DNS = append(lease.DNS, addr("2001:db8::53"))
	lease.Domain = "bad domain"
	lease.Search = []string{"DHCP", "10.0.0.1", strings.Repeat("a", 300)}
	lease.Hostname = "vm_1."
	lease.MTU = 9
	lease.TFTP = "a\nb"
	lease.BootFile = strings.Repeat("b", 256)
	lease.Routes = []vmnet.Route{{Dst: prefix("2001:db8::/64")}, {}}
	lease.Private = []vmnet.PrivateOption{{Code: 1, Value: "x"}, {Code: 224}, {Code: 225, Value: "x"}, {Code: 225, Value: "y"}}
	options, odd := config4(lease)
	var text strings.Builder
	for _, o := range options {
		fmt.Fprintf(&text, "%d %q\n", o.code, o.value)
	}
	text.WriteByte('\n')
	for _, err := range odd {
		fmt.Fprintln(&text, err)
	}
	golden.Check(t, "odd-lease.txt", text.String())
	got := Reply4(lease, request(t, dhcpv4.MessageTypeDiscover))
	if got.Type != dhcpv4.MessageTypeOffer {
		t.Errorf("an odd lease is answered by %s", got.Type)
	}
}

func TestTimes4(t *testing.T) {
	tests := []struct {
		lifetime time.Duration
		want     string
	}{
		{0, "51 ffffffff 58 ffffffff 59 ffffffff"},
		{-time.Second, "51 ffffffff 58 ffffffff 59 ffffffff"},
		{999 * 24 * time.Hour, "51 05250a80 58 02928540 59 04806930"},
		{time.Hour, "51 00000e10 58 00000708 59 00000c4e"},
		{1 << 62, "51 ffffffff 58 ffffffff 59 ffffffff"},
	}
	for _, tt := range tests {
		var got []string
		for _, o := range times4(tt.lifetime) {
			got = append(got, fmt.Sprintf("%d %x", o.code, o.value))
		}
		if text := strings.Join(got, " "); text != tt.want {
			t.Errorf("%s: got %s, want %s", tt.lifetime, text, tt.want)
		}
	}
}

func Fuzz4(f *testing.F) {
	f.Add(request(f, dhcpv4.MessageTypeDiscover).ToBytes())
	f.Add(request(f, dhcpv4.MessageTypeRequest, requested("192.0.2.10"), option(opt4ClientID, 1)).ToBytes())
	f.Add(request(f, dhcpv4.MessageTypeInform, option(opt4MaxSize, 0, 1), option(opt4Parameters, 119, 121)).ToBytes())
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		got := Reply4(bridgeLease(), req)
		if got.Payload == nil {
			return
		}
		if len(got.Payload) < minPayload || len(got.Payload) > maxMaxSize {
			t.Errorf("reply of %d bytes", len(got.Payload))
		}
		reply, err := dhcpv4.FromBytes(got.Payload)
		if err != nil || reply.MessageType() != got.Type || reply.TransactionID != req.TransactionID {
			t.Errorf("reply cannot be read: %v", err)
		}
	})
}

func BenchmarkReply4(b *testing.B) {
	lease := bridgeLease()
	wire := request(b, dhcpv4.MessageTypeRequest, requested("192.0.2.10"), option(opt4Parameters, 1, 3, 6, 15, 26, 119, 121)).ToBytes()
	b.ReportAllocs()
	for b.Loop() {
		req, err := dhcpv4.FromBytes(wire)
		if err != nil {
			b.Fatal(err)
		}
		if Reply4(lease, req).Payload == nil {
			b.Fatal("no reply")
		}
	}
}
