package dhcp

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/weftnet/weft/internal/frame"
	"github.com/weftnet/weft/internal/vmnet"
	"github.com/weftnet/weft/test/golden"
)

func lease6() vmnet.Lease6 {
	return vmnet.Lease6{
		MAC: guestText, Addr: addr("fd10:0:2::2"), DNS: []netip.Addr{addr("fd00::53")},
		Search: []string{"Example.org", "192.0.2.1", "b.example"}, Lifetime: time.Hour,
	}
}

func duid(mac frame.MAC) dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr(mac[:])}
}

func ia(id byte, addrs ...string) dhcpv6.Option {
	ia := &dhcpv6.OptIANA{IaId: [4]byte{0, 0, 0, id}}
	for _, a := range addrs {
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a), PreferredLifetime: time.Minute, ValidLifetime: time.Minute})
	}
	return ia
}

var (
	fromClient  = dhcpv6.OptClientID(duid(guestMAC))
	toUs        = dhcpv6.OptServerID(duid(serverMAC))
	toAnother   = dhcpv6.OptServerID(duid(guestMAC))
	rapidCommit = &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit}
)

func request6(t testing.TB, kind dhcpv6.MessageType, options ...dhcpv6.Option) *dhcpv6.Message {
	t.Helper()
	req := &dhcpv6.Message{
		MessageType: kind, TransactionID: dhcpv6.TransactionID{0xab, 0xcd, 0xef},
		Options: dhcpv6.MessageOptions{Options: options},
	}
	parsed, err := dhcpv6.MessageFromBytes(req.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// describe6 gives a reply as text: type, then one option per line.
func describe6(t *testing.T, payload []byte) string {
	t.Helper()
	m, err := dhcpv6.MessageFromBytes(payload)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %x\n", m.MessageType, m.TransactionID[:])
	for _, o := range m.Options.Options {
		fmt.Fprintf(&b, "%s\n", o)
	}
	return b.String()
}

func TestReply6(t *testing.T) {
	const (
		solicit = dhcpv6.MessageTypeSolicit
		ask     = dhcpv6.MessageTypeRequest
		renew   = dhcpv6.MessageTypeRenew
		rebind  = dhcpv6.MessageTypeRebind
		confirm = dhcpv6.MessageTypeConfirm
		release = dhcpv6.MessageTypeRelease
		decline = dhcpv6.MessageTypeDecline
		inform  = dhcpv6.MessageTypeInformationRequest
	)
	pd := &dhcpv6.OptIAPD{IaId: [4]byte{0, 0, 0, 7}}
	ta := &dhcpv6.OptIATA{IaId: [4]byte{0, 0, 0, 8}}
	tests := []struct {
		name    string
		kind    dhcpv6.MessageType
		options []dhcpv6.Option
	}{
		{"solicit", solicit, []dhcpv6.Option{fromClient, ia(1)}},
		{"solicit-wish", solicit, []dhcpv6.Option{fromClient, ia(1, "fd10:0:2::99")}},
		{"solicit-rapid", solicit, []dhcpv6.Option{fromClient, rapidCommit, ia(1)}},
		{"solicit-many", solicit, []dhcpv6.Option{fromClient, ia(1), ia(2), pd, ta}},
		{"solicit-no-client", solicit, []dhcpv6.Option{ia(1)}},
		{"solicit-server", solicit, []dhcpv6.Option{fromClient, toUs, ia(1)}},
		{"request", ask, []dhcpv6.Option{fromClient, toUs, ia(1, "fd10:0:2::2")}},
		{"request-neighbour", ask, []dhcpv6.Option{fromClient, toUs, ia(1, "fd10:0:2::9")}},
		{"request-other-link", ask, []dhcpv6.Option{fromClient, toUs, ia(1, "2001:db8::9")}},
		{"request-other-server", ask, []dhcpv6.Option{fromClient, toAnother, ia(1, "fd10:0:2::2")}},
		{"request-no-server", ask, []dhcpv6.Option{fromClient, ia(1, "fd10:0:2::2")}},
		{"renew", renew, []dhcpv6.Option{fromClient, toUs, ia(1, "fd10:0:2::2")}},
		{"renew-wrong", renew, []dhcpv6.Option{fromClient, toUs, ia(1, "2001:db8::9", "fd10:0:2::2")}},
		{"rebind", rebind, []dhcpv6.Option{fromClient, ia(1, "fd10:0:2::2")}},
		{"rebind-server", rebind, []dhcpv6.Option{fromClient, toUs, ia(1, "fd10:0:2::2")}},
		{"confirm", confirm, []dhcpv6.Option{fromClient, ia(1, "fd10:0:2::2")}},
		{"confirm-wrong", confirm, []dhcpv6.Option{fromClient, ia(1, "fd10:0:2::3")}},
		{"confirm-nothing", confirm, []dhcpv6.Option{fromClient, ia(1)}},
		{"release", release, []dhcpv6.Option{fromClient, toUs, ia(1, "fd10:0:2::2")}},
		{"release-wrong", release, []dhcpv6.Option{fromClient, toUs, ia(1, "fd10:0:2::3")}},
		{"decline", decline, []dhcpv6.Option{fromClient, toUs, ia(1, "fd10:0:2::2")}},
		{"inform", inform, nil},
		{"inform-ia", inform, []dhcpv6.Option{ia(1)}},
		{"reconfigure", dhcpv6.MessageTypeReconfigure, []dhcpv6.Option{fromClient}},
	}
	var text strings.Builder
	for _, tt := range tests {
		got := Reply6(lease6(), serverMAC, Client6{guestMAC}, request6(t, tt.kind, tt.options...))
		fmt.Fprintf(&text, "== %s: requested %s, given %s, event %q, reason %q\n", tt.name, got.Requested, got.Given, got.Event, got.Reason)
		if (got.Payload == nil) != (got.Type == 0) {
			t.Errorf("%s: type %s with %d bytes", tt.name, got.Type, len(got.Payload))
		}
		if got.Payload != nil {
			text.WriteString(describe6(t, got.Payload))
		}
	}
	golden.Check(t, "reply6.txt", text.String())
	request := request6(t, ask, fromClient, toUs, ia(1, "fd10:0:2::2"))
	golden.Check(t, "reply6-request.hex", hex.Dump(Reply6(lease6(), serverMAC, Client6{guestMAC}, request).Payload))
}

func TestReply6OtherMAC(t *testing.T) {
	req := request6(t, dhcpv6.MessageTypeSolicit, fromClient, ia(1))
	got := Reply6(lease6(), serverMAC, Client6{serverMAC}, req)
	if got.Payload != nil || got.Reason != "client is 02:00:00:00:00:00, the NIC's MAC is "+guestText {
		t.Errorf("got %+v", got)
	}
	lease := lease6()
	lease.MAC = ""
	if got := Reply6(lease, serverMAC, Client6{serverMAC}, req); got.Type != dhcpv6.MessageTypeAdvertise {
		t.Errorf("got %+v", got)
	}
}

func TestConfig6Bounds(t *testing.T) {
	lease := lease6()
	lease.DNS = []netip.Addr{addr("192.0.2.1")}
	lease.Search = nil
	for i := range 40 {
		lease.DNS = append(lease.DNS, addr(fmt.Sprintf("fd00::%x", i+1)))
		lease.Search = append(lease.Search, fmt.Sprintf("%s%d.example", strings.Repeat("x", 50), i))
	}
	servers, domains, odd := config6(lease)
	if len(servers) != 16*maxServers6 || len(domains) != 16 || len(odd) != 3 {
		t.Errorf("got %d bytes of servers, %d domains, %v", len(servers), len(domains), odd)
	}
	got := Reply6(lease, serverMAC, Client6{guestMAC}, request6(t, dhcpv6.MessageTypeSolicit, fromClient, ia(1)))
	if len(got.Payload) > 1452 {
		t.Errorf("%d bytes do not fit into a frame", len(got.Payload))
	}
}

func TestTimes6(t *testing.T) {
	tests := []struct{ lifetime, valid, t1, t2 time.Duration }{
		{time.Hour, time.Hour, 30 * time.Minute, 48 * time.Minute},
		{0, 0xffffffff * time.Second, 0xffffffff * time.Second, 0xffffffff * time.Second},
		{1 << 62, 0xffffffff * time.Second, 0xffffffff * time.Second, 0xffffffff * time.Second},
	}
	for _, tt := range tests {
		valid := lifetime6(tt.lifetime)
		if t1, t2 := times6(valid); valid != tt.valid || t1 != tt.t1 || t2 != tt.t2 {
			t.Errorf("%s: got %s, %s, %s", tt.lifetime, valid, t1, t2)
		}
	}
}

func TestParse6(t *testing.T) {
	wire := request6(t, dhcpv6.MessageTypeSolicit, fromClient, ia(1)).ToBytes()
	// An FQDN (39) that is not one, as is no business of ours.
	odd := append(slices.Clone(wire), 0, 39, 0, 3, 0, 62, 'x')
	if _, err := dhcpv6.MessageFromBytes(odd); err == nil {
		t.Error("the library reads it: parse6 can go")
	}
	req, err := parse6(odd)
	if err != nil {
		t.Fatal(err)
	}
	if got := Reply6(lease6(), serverMAC, Client6{guestMAC}, req); got.Given != lease6().Addr {
		t.Errorf("got %+v", got)
	}
	for cut := range wire {
		if _, err := parse6(wire[:cut]); err == nil && cut != 4 && cut != 4+14 {
			t.Errorf("a message cut to %d of %d bytes is taken", cut, len(wire))
		}
	}
}

func TestPace(t *testing.T) {
	now := time.Unix(0, 0)
	// Cheap requests, as fast as can be: the burst, then 100 a second.
	var p pace
	taken := 0
	for elapsed := time.Duration(0); elapsed < 10*time.Second; taken++ {
		elapsed += p.take(now.Add(elapsed), 0)
	}
	if taken < 1100 || taken > 1300 {
		t.Errorf("%d requests in 10 s, want about 1200", taken)
	}
	// Dear ones: a tenth of the time.
	p = pace{}
	var worked time.Duration
	for elapsed := time.Duration(0); elapsed < 100*time.Second; {
		const work = 15 * time.Millisecond
		elapsed, worked = elapsed+work, worked+work
		elapsed += p.take(now.Add(elapsed), work)
	}
	if worked > 12*time.Second {
		t.Errorf("%s of work in 100 s, want about 10 s", worked)
	}
}

func Fuzz6(f *testing.F) {
	f.Add(request6(f, dhcpv6.MessageTypeSolicit, fromClient, rapidCommit, ia(1)).ToBytes())
	f.Add(request6(f, dhcpv6.MessageTypeRenew, fromClient, toUs, ia(1, "fd10:0:2::2"), ia(2)).ToBytes())
	f.Add(request6(f, dhcpv6.MessageTypeConfirm, fromClient, ia(1, "2001:db8::1")).ToBytes())
	f.Add([]byte{1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := parse6(b)
		if err != nil {
			return
		}
		got := Reply6(lease6(), serverMAC, Client6{guestMAC}, req)
		if got.Payload == nil {
			return
		}
		if reply, err := dhcpv6.MessageFromBytes(got.Payload); err != nil || reply.TransactionID != req.TransactionID {
			t.Errorf("reply cannot be read: %v", err)
		}
	})
}

func BenchmarkReply6(b *testing.B) {
	wire := request6(b, dhcpv6.MessageTypeRequest, fromClient, toUs, ia(1, "fd10:0:2::2")).ToBytes()
	lease := lease6()
	b.ReportAllocs()
	for b.Loop() {
		req, err := parse6(wire)
		if err != nil {
			b.Fatal(err)
		}
		if Reply6(lease, serverMAC, Client6{guestMAC}, req).Payload == nil {
			b.Fatal("no reply")
		}
	}
}
