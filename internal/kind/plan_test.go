package kind_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/test/golden"
)

// facts are those of a machine with one uplink.
func facts(links ...kind.Link) kind.Facts {
	eth := kind.Link{Name: "eth9", Kind: "device", MAC: "52:54:00:00:00:09", MTU: 1500}
	f := kind.Facts{
		Links: map[kind.Query]kind.Link{
			{Side: netstate.Host, Name: "eth9"}: eth,
			{Side: netstate.Host}:               eth,
		},
		Names:         map[netstate.Side][]netstate.IfName{netstate.Host: {"lo", "eth9", "br7"}},
		OptimisticDAD: true,
	}
	for _, l := range links {
		f.Links[kind.Query{Side: netstate.Host, Name: l.Name, Addrs: true}] = l
		l.Addrs = nil // nobody asked
		f.Links[kind.Query{Side: netstate.Host, Name: l.Name}] = l
	}
	return f
}

// plan parses a config, allocates its addresses and plans net1 of sandbox sb1.
func plan(t *testing.T, conf, cniArgs string, f kind.Facts) (kind.Output, []string, error) {
	t.Helper()
	k, ok := kind.Lookup(pluginType(conf))
	if !ok {
		t.Fatalf("no native kind for %s", conf)
	}
	c, err := k.Parse(kind.Input{Config: []byte(conf), CNIArgs: cniArgs})
	if err != nil {
		return kind.Output{}, nil, err
	}
	got, err := ipam.NewAllocator(ipam.NewMemory()).Allocate(context.Background(), c.IPAM(), "sb1/net1")
	if err != nil {
		t.Fatalf("allocate: %v", err)
	}
	out, err := c.Plan(kind.Request{
		Instance: "lab", Machine: "m1", Sandbox: "sb1", IfName: "net1", Group: 7,
		Alias: netstate.Alias("lab", "sb1"), SharedAlias: netstate.Alias("lab", "shared"),
		Addresses: got, Facts: f,
	})
	return out, c.Warnings(), err
}

func pluginType(conf string) string {
	if strings.Contains(conf, `"macvlan"`) {
		return "macvlan"
	}
	return "bridge"
}

// text is the whole outcome of a plan.
func text(out kind.Output, warnings []string) string {
	var b strings.Builder
	b.WriteString(out.Plan.String())
	for _, l := range out.Plan.Host.Links {
		if l.Port != nil && l.Port.VLANs != nil {
			fmt.Fprintf(&b, "vlans of %s: pvid %d untagged %v tagged %v\n", l.Name, l.Port.VLANs.PVID, l.Port.VLANs.Untagged, l.Port.VLANs.Tagged)
		}
	}
	for _, a := range out.Plan.Pod.Addrs {
		if a.Settle {
			fmt.Fprintln(&b, "settle", a.Prefix)
		}
	}
	for _, a := range out.Remove {
		fmt.Fprintln(&b, "remove", a)
	}
	for _, s := range out.Masquerade {
		fmt.Fprintln(&b, "masquerade", s)
	}
	for i, l := range out.Result.Interfaces {
		fmt.Fprintf(&b, "result interface %d %s %s %s\n", i, l.Side, l.Name, l.MAC)
	}
	for _, ip := range out.Result.IPs {
		fmt.Fprintf(&b, "result ip %s gateway %s interface %d\n", ip.Prefix, ip.Gateway, ip.Interface)
	}
	for _, r := range out.Result.Routes {
		fmt.Fprintf(&b, "result route %s via %s mtu %d\n", r.Dst, r.Via, r.MTU)
	}
	if !out.Result.DNS.IsZero() {
		fmt.Fprintf(&b, "result dns %+v\n", out.Result.DNS)
	}
	for _, w := range warnings {
		fmt.Fprintln(&b, "warning", w)
	}
	return b.String()
}

const (
	pool4 = `{"subnet": "10.1.2.0/24"}`
	pool6 = `{"subnet": "fd00:1:2::/64"}`
	ipam4 = `"ipam": {"type": "host-local", "ranges": [[` + pool4 + `]]}`
	ipam2 = `"ipam": {"type": "host-local", "ranges": [[` + pool4 + `], [` + pool6 + `]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.1.2.9", "mtu": 1400}]}`
)

func TestPlans(t *testing.T) {
	ours := kind.Link{Name: "br7", Kind: netstate.KindBridge, MAC: "02:00:00:00:00:07", MTU: 1500, Alias: "weft:lab:shared"}
	strangers := kind.Link{
		Name: "br7", Kind: netstate.KindBridge, MAC: "02:00:00:00:00:08", MTU: 1500,
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.9.9/24"), netip.MustParsePrefix("fe80::1/64")},
	}
	for _, c := range []struct {
		name, conf, args string
		links            []kind.Link
		change           func(*kind.Facts)
	}{
		{name: "bridge-l2", conf: `{"type": "bridge"}`},
		{name: "bridge-gateway-masq", conf: `{"type": "bridge", "bridge": "br7", "isGateway": true, "ipMasq": true, ` + ipam4 + `}`},
		{name: "bridge-default-gateway-dual", conf: `{"type": "bridge", "bridge": "br7", "isDefaultGateway": true, "mtu": 1400, "hairpinMode": true, "dns": {"nameservers": ["10.1.2.1"]}, "x-tool": 1, ` + ipam2 + `}`},
		{name: "bridge-ours", conf: `{"type": "bridge", "bridge": "br7", "mtu": 1400, ` + ipam4 + `}`, links: []kind.Link{ours}},
		{name: "bridge-strangers", conf: `{"type": "bridge", "bridge": "br7", "promiscMode": true, ` + ipam4 + `}`, links: []kind.Link{strangers}},
		{name: "bridge-force-address", conf: `{"type": "bridge", "bridge": "br7", "isGateway": true, "forceAddress": true, ` + ipam4 + `}`, links: []kind.Link{strangers}},
		{name: "bridge-vlan-gateway", conf: `{"type": "bridge", "bridge": "br7", "vlan": 100, "vlanTrunk": [{"minID": 200, "maxID": 202}, {"id": 5}, {"id": 100}], "preserveDefaultVlan": true, "isGateway": true, ` + ipam4 + `}`},
		{name: "bridge-trunk-only", conf: `{"type": "bridge", "bridge": "br7", "vlanTrunk": [{"id": 5}]}`},
		{name: "bridge-spoofcheck-mac", conf: `{"type": "bridge", "bridge": "br7", "macspoofchk": true, "portIsolation": true, "enabledad": true, "args": {"cni": {"mac": "02:00:00:00:00:11"}}, ` + ipam2 + `}`, args: "IgnoreUnknown=1;MAC=02:00:00:00:00:22"},
		{name: "bridge-disabled-interface", conf: `{"type": "bridge", "bridge": "br7", "disableContainerInterface": true}`},
		{name: "bridge-no-ipv6", conf: `{"type": "bridge", "bridge": "br7", "isGateway": true, ` + ipam4 + `}`, change: func(f *kind.Facts) { f.NoIPv6 = true }},
		{name: "macvlan-default", conf: `{"type": "macvlan", ` + ipam2 + `}`},
		{name: "macvlan-private-mac", conf: `{"type": "macvlan", "master": "eth9", "mode": "private", "mtu": 1400, "bcqueuelen": 500, "mac": "02:00:00:00:00:01", "runtimeConfig": {"mac": "02:00:00:00:00:02"}, ` + ipam4 + `}`},
		{name: "macvlan-passthru-l2", conf: `{"type": "macvlan", "master": "eth9", "mode": "passthru"}`},
		{name: "macvlan-in-container", conf: `{"type": "macvlan", "master": "eth0", "mode": "vepa", "linkInContainer": true, ` + ipam2 + `}`, change: func(f *kind.Facts) {
			f.OptimisticDAD = false
			f.Links[kind.Query{Side: netstate.Pod, Name: "eth0"}] = kind.Link{Name: "eth0", Kind: netstate.KindVeth, MTU: 1450}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := facts(c.links...)
			if c.change != nil {
				c.change(&f)
			}
			out, warnings, err := plan(t, c.conf, c.args, f)
			if err != nil {
				t.Fatal(err)
			}
			got := c.conf + "\n\n" + text(out, warnings)
			golden.Check(t, c.name+".txt", got)
			again, _, err := plan(t, c.conf, c.args, f)
			if err != nil || text(again, warnings) != text(out, warnings) {
				t.Errorf("the second plan differs from the first: %v", err)
			}
		})
	}
}
