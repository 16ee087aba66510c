package dhcp6c

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// reply makes a Reply with one address.
func reply(t *testing.T, addr string, valid time.Duration, mods ...dhcpv6.Modifier) *dhcpv6.Message {
	t.Helper()
	msg, err := dhcpv6.NewMessage(mods...)
	if err != nil {
		t.Fatal(err)
	}
	duid := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	msg.MessageType = dhcpv6.MessageTypeReply
	msg.AddOption(dhcpv6.OptClientID(duid))
	msg.AddOption(dhcpv6.OptServerID(duid))
	ia := &dhcpv6.OptIANA{}
	if addr != "" {
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(addr), PreferredLifetime: valid / 2, ValidLifetime: valid})
	}
	if msg.Options.OneIANA() == nil {
		msg.AddOption(ia)
	}
	return msg
}

func TestParse(t *testing.T) {
	got, err := parse(reply(t, "fd00::5", time.Hour, dhcpv6.WithDNS(net.ParseIP("fd00::53")), dhcpv6.WithDomainSearchList("a.example")))
	if err != nil {
		t.Fatal(err)
	}
	want := &Lease{
		Addr: netip.MustParseAddr("fd00::5"), Preferred: 30 * time.Minute, Valid: time.Hour,
		T1: 15 * time.Minute, T2: 24 * time.Minute, // ours, as the server left them open
		DNS: []netip.Addr{netip.MustParseAddr("fd00::53")}, Search: []string{"a.example"},
	}
	opts := []cmp.Option{cmpopts.EquateComparable(netip.Addr{}), cmpopts.IgnoreUnexported(Lease{})}
	if diff := cmp.Diff(want, got, opts...); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	refusal := &dhcpv6.OptIANA{}
	refusal.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail, StatusMessage: "full"})
	refused := func(m dhcpv6.DHCPv6) { m.AddOption(refusal) }
	for name, msg := range map[string]*dhcpv6.Message{
		"no address":     reply(t, "", 0),
		"lifetime zero":  reply(t, "fd00::5", 0),
		"IPv4":           reply(t, "10.0.0.1", time.Hour),
		"refused":        reply(t, "fd00::5", time.Hour, refused),
		"nothing at all": {},
	} {
		if lease, err := parse(msg); !errors.Is(err, errNoAddress) {
			t.Errorf("%s: got %+v, %v; want errNoAddress", name, lease, err)
		}
	}
}

// FuzzParse: no answer of a server stops the client.
func FuzzParse(f *testing.F) {
	f.Add([]byte{7, 0, 0, 1, 0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		msg, err := dhcpv6.MessageFromBytes(raw)
		if err != nil {
			return
		}
		if lease, err := parse(msg); err == nil && (!lease.Addr.Is6() || lease.Valid <= 0) {
			t.Errorf("got lease %+v", lease)
		}
	})
}
