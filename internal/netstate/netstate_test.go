package netstate

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/nft"
)

func ptr[T any](v T) *T { return &v }

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// full has one of everything.
func full() Plan {
	return Plan{
		Alias: Alias("main", "pod/net1"),
		Host: State{
			Links: []Link{
				{Name: "br0", Kind: KindBridge, Presence: Shared, Up: true, Bridge: &Bridge{STP: ptr(false), VLANFiltering: ptr(true), MulticastSnooping: ptr(true), AgeingTime: 300}},
				{Name: "veth1", Kind: KindVeth, MTU: 1500, Master: "br0", Port: &Port{Hairpin: ptr(true), Isolated: ptr(true), Learning: ptr(false)}, Up: true, Veth: &Veth{Pod, "net1"}},
			},
			Addrs:  []Addr{{Link: "br0", Prefix: pfx("10.1.0.1/16"), Shared: true}},
			Routes: []Route{{Dst: pfx("10.9.0.9/32"), Link: "br0", Scope: 253, Protocol: 3, MTU: 1400, AdvMSS: 1360}},
		},
		Pod: State{
			Links: []Link{
				{Name: "net1", Kind: KindVeth, MAC: "02:00:00:00:00:01", TxQueueLen: 500, Up: true, Promisc: ptr(true), AllMulticast: ptr(false), NoAddrs: true, NoIPv6LinkLocal: true, Veth: &Veth{Host, "veth1"}},
				{Name: "net2", Kind: KindMacvlan, Macvlan: &Macvlan{Host, "eth0", "private", 2000}},
				{Name: "tap0", Kind: KindTap, Tap: &Tap{Owner: 107, MultiQueue: true}},
				{Name: "eth0", Presence: Existing},
			},
			Addrs: []Addr{
				{Link: "net2", Prefix: pfx("fd00::5/64"), NoDAD: true},
				{Link: "net2", Prefix: pfx("10.2.0.5/32"), Peer: addr("10.2.0.1")},
			},
			Routes: []Route{
				{Dst: pfx("0.0.0.0/0"), Link: "net2", Via: addr("10.2.0.1"), Src: addr("10.2.0.5"), Table: 101, Metric: 50, OnLink: true},
				{Dst: pfx("::/0"), Link: "net2", Via: addr("fd00::1")},
			},
			Rules: []Rule{
				{Family: 4, Priority: 500, From: pfx("10.2.0.5/32"), Table: 101},
				{Family: 6, Priority: 501, To: pfx("fd00::/64"), IIF: "net2", Mark: 16, Table: 102},
			},
			FDB:     []FDBEntry{{MAC: "02:00:00:00:00:01", Port: "tap0"}},
			Sysctls: []Sysctl{{Path: "/net/ipv4/ip_local_port_range", Value: "1024\t65535\n"}},
			Tables: []nft.Table{{Family: nft.IP, Name: "weft", Chains: []nft.Chain{
				{Name: "pre", Type: "nat", Hook: "prerouting", Priority: -100, Rules: []nft.Rule{"dnat to 10.0.2.2"}},
			}}},
		},
	}
}

const fullText = `host  link br0 type bridge vlan_filtering on stp_state off mcast_snooping on ageing_time 300 group 1272714982 alias "weft:main:shared/br0" up shared
host  link veth1 type veth peer pod:net1 mtu 1500 master br0 hairpin on isolated on learning off group 1647508218 alias "weft:main:pod/net1" up
host  addr 10.1.0.1/16 dev br0 shared
host  route 10.9.0.9 dev br0 mtu 1400 advmss 1360 scope 253 proto 3
pod   link eth0 existing
pod   link net1 type veth peer host:veth1 address 02:00:00:00:00:01 txqueuelen 500 promisc on allmulticast off addrgenmode none noaddrs group 1647508218 alias "weft:main:pod/net1" up
pod   link net2 type macvlan link host:eth0 mode private bcqueuelen 2000 group 1647508218 alias "weft:main:pod/net1"
pod   link tap0 type tun mode tap user 107 multi_queue group 1647508218 alias "weft:main:pod/net1"
pod   addr 10.2.0.5 peer 10.2.0.1/32 dev net2
pod   addr fd00::5/64 dev net2 nodad
pod   route ::/0 via fd00::1 dev net2
pod   route default via 10.2.0.1 dev net2 src 10.2.0.5 table 101 metric 50 onlink
pod   rule ipv4 priority 500 from 10.2.0.5 lookup 101
pod   rule ipv6 priority 501 from all to fd00::/64 iif net2 fwmark 0x10 lookup 102
pod   fdb 02:00:00:00:00:01 dev tap0 master static
pod   sysctl net/ipv4/ip_local_port_range = 1024 65535
pod   table ip weft {
pod   	chain pre {
pod   		type nat hook prerouting priority -100; policy accept;
pod   		dnat to 10.0.2.2
pod   	}
pod   }
`

func TestText(t *testing.T) {
	if diff := cmp.Diff(fullText, full().String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	shuffled := full()
	for _, s := range []*State{&shuffled.Host, &shuffled.Pod} {
		slices.Reverse(s.Links)
		slices.Reverse(s.Addrs)
		slices.Reverse(s.Routes)
		slices.Reverse(s.Rules)
	}
	if got := shuffled.String(); got != fullText {
		t.Error("the order of the slices shows in the text")
	}
	if got := full().Normalize(); !reflect.DeepEqual(got, got.Normalize()) {
		t.Error("normalizing twice changes something")
	}
}

// opsText gives operations one a line.
func opsText(ops []Op) string {
	var b strings.Builder
	for _, op := range ops {
		b.WriteString(op.String() + "\n")
	}
	return b.String()
}

func TestDiffOfAll(t *testing.T) {
	if ops := Diff(full(), full()); len(ops) > 0 {
		t.Errorf("a plan differs from itself:\n%s", opsText(ops))
	}
	want := `host: ip link add br0 type bridge vlan_filtering on stp_state off mcast_snooping on ageing_time 300 group 1272714982 alias "weft:main:shared/br0" up
host: ip link add veth1 type veth peer pod:net1 mtu 1500 master br0 hairpin on isolated on learning off group 1647508218 alias "weft:main:pod/net1" up
pod: ip link add tap0 type tun mode tap user 107 multi_queue group 1647508218 alias "weft:main:pod/net1"
pod: ip link add net2 type macvlan link host:eth0 mode private bcqueuelen 2000 group 1647508218 alias "weft:main:pod/net1"
pod: ip link set eth0 existing, which is not there
pod: sysctl -w net/ipv4/ip_local_port_range = 1024 65535
host: ip addr add 10.1.0.1/16 dev br0 shared
pod: ip addr add 10.2.0.5 peer 10.2.0.1/32 dev net2
pod: ip addr add fd00::5/64 dev net2 nodad
pod: ip link set net1 up
host: ip route add 10.9.0.9 dev br0 mtu 1400 advmss 1360 scope 253 proto 3
pod: ip route add ::/0 via fd00::1 dev net2
pod: ip route add default via 10.2.0.1 dev net2 src 10.2.0.5 table 101 metric 50 onlink
pod: ip -4 rule add priority 500 from 10.2.0.5 lookup 101
pod: ip -6 rule add priority 501 from all to fd00::/64 iif net2 fwmark 0x10 lookup 102
pod: bridge fdb replace 02:00:00:00:00:01 dev tap0 master static
pod: nft replace table ip weft with 1 chains
`
	if diff := cmp.Diff(want, opsText(Diff(Plan{}, full()))); diff != "" {
		t.Errorf("from nothing: -want +got:\n%s", diff)
	}
	want = `pod: nft delete table ip weft
pod: ip -4 rule del priority 500 from 10.2.0.5 lookup 101
pod: ip -6 rule del priority 501 from all to fd00::/64 iif net2 fwmark 0x10 lookup 102
host: ip route del 10.9.0.9 dev br0 mtu 1400 advmss 1360 scope 253 proto 3
host: ip link del veth1
pod: ip link del net2
pod: ip link del tap0
`
	if diff := cmp.Diff(want, opsText(Diff(full(), Plan{}))); diff != "" {
		t.Errorf("to nothing: -want +got:\n%s", diff)
	}
}

func TestDiff(t *testing.T) {
	edit := func(f func(*Plan)) Plan {
		p := full()
		f(&p)
		return p
	}
	tests := []struct {
		name       string
		have, want Plan
		ops        string
	}{
		{"attributes", full(), edit(func(p *Plan) {
			p.Host.Links[1].MTU, p.Pod.Links[0].MAC, p.Pod.Links[0].Promisc = 1400, "02:00:00:00:00:02", ptr(false)
		}), `host: ip link set veth1 mtu 1400
pod: ip link set net1 address 02:00:00:00:00:02 promisc off
`},
		{"shared links keep MAC and MTU", full(), edit(func(p *Plan) {
			p.Host.Links[0].MAC, p.Host.Links[0].MTU = "02:00:00:00:00:09", 1400
		}), ""},
		{"a stranger's shared link", edit(func(p *Plan) {
			p.Host.Links[0].Presence, p.Host.Links[0].Alias, p.Host.Links[0].Bridge, p.Host.Links[0].Up = Existing, "", &Bridge{}, false
		}), full(), "host: ip link set br0 up\n"},
		{"out of its bridge, down", full(), edit(func(p *Plan) {
			p.Host.Links[1].Master, p.Host.Links[1].Port, p.Host.Links[1].Up = "", nil, false
		}), `host: ip link set veth1 down
host: bridge link set veth1 nomaster
`},
		{
			"port", full(), edit(func(p *Plan) { p.Host.Links[1].Port = &Port{Learning: ptr(true)} }),
			"host: bridge link set veth1 learning on\n",
		},
		{
			"a TAP is made anew, with its entry", full(), edit(func(p *Plan) { p.Pod.Links[2].Tap = &Tap{Owner: 107} }),
			`pod: ip link del tap0
pod: ip link add tap0 type tun mode tap user 107 group 1647508218 alias "weft:main:pod/net1"
pod: bridge fdb replace 02:00:00:00:00:01 dev tap0 master static
`,
		},
		{
			"a route to another gateway", full(), edit(func(p *Plan) { p.Pod.Routes[1].Via = addr("fd00::2") }),
			`pod: ip route del ::/0 via fd00::1 dev net2
pod: ip route add ::/0 via fd00::2 dev net2
`,
		},
		{
			"an address", full(), edit(func(p *Plan) { p.Pod.Addrs[0].Prefix = pfx("fd00::6/64") }),
			`pod: ip addr del fd00::5/64 dev net2
pod: ip addr add fd00::6/64 dev net2 nodad
`,
		},
		{"shared addresses stay", full(), edit(func(p *Plan) { p.Host.Addrs = nil }), ""},
		{"nodad is how, not what", full(), edit(func(p *Plan) { p.Pod.Addrs[0].NoDAD = false }), ""},
		{"a table", full(), edit(func(p *Plan) {
			p.Pod.Tables = slices.Clone(p.Pod.Tables)
			p.Pod.Tables[0].Chains = nil
		}), "pod: nft replace table ip weft with 0 chains\n"},
		{"a sysctl of a link made anew", edit(func(p *Plan) {
			p.Pod.Sysctls = []Sysctl{{Path: "net/ipv6/conf/tap0/accept_ra", Value: "0"}}
			p.Pod.FDB = nil
		}), edit(func(p *Plan) {
			p.Pod.Sysctls = []Sysctl{{Path: "net/ipv6/conf/tap0/accept_ra", Value: "0"}}
			p.Pod.Links[2].Tap, p.Pod.Links[2].Up, p.Pod.FDB = &Tap{Owner: 108}, true, nil
		}), `pod: ip link del tap0
pod: ip link add tap0 type tun mode tap user 108 group 1647508218 alias "weft:main:pod/net1"
pod: sysctl -w net/ipv6/conf/tap0/accept_ra = 0
pod: ip link set tap0 up
`},
		{"half of a pair", edit(func(p *Plan) { p.Pod.Links = p.Pod.Links[1:] }), edit(func(p *Plan) {
			p.Pod.Links[0].NoIPv6LinkLocal = false
			p.Host.Links[1].Veth.PeerName = "net9"
			p.Pod.Links[0].Name = "net9"
		}), `host: ip link del veth1
host: ip link add veth1 type veth peer pod:net9 mtu 1500 master br0 hairpin on isolated on learning off group 1647508218 alias "weft:main:pod/net1" up
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.ops, opsText(Diff(tt.have, tt.want))); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestOpsAreComparable(t *testing.T) {
	a, b := Diff(Plan{}, full()), Diff(Plan{}, full())
	for i := range a {
		if a[i] != b[i] {
			t.Errorf("%v is not equal to itself", a[i])
		}
	}
}

func TestMerge(t *testing.T) {
	nic := Plan{
		Alias: "weft:main:a",
		Pod: State{
			Links:  []Link{{Name: "net1", Kind: KindVeth, MTU: 1400, Up: true}},
			Addrs:  []Addr{{Link: "net1", Prefix: pfx("10.1.0.5/24")}, {Link: "net2", Prefix: pfx("10.2.0.5/24")}},
			Routes: []Route{{Dst: pfx("0.0.0.0/0"), Link: "net1", Via: addr("10.1.0.1")}},
		},
	}
	vm := Plan{
		Alias: "weft:main:b",
		Pod: State{
			Links: []Link{
				{Name: "net1", Presence: Existing, NoAddrs: true, Master: "k6t"},
				{Name: "k6t", Kind: KindBridge},
			},
			Sysctls: []Sysctl{{Path: "net/ipv4/ip_forward", Value: "1"}},
		},
	}
	want := `pod   link k6t type bridge group 1406923886 alias "weft:main:b"
pod   link net1 type veth mtu 1400 master k6t noaddrs group 1390146267 alias "weft:main:a" up
pod   addr 10.2.0.5/24 dev net2
pod   sysctl net/ipv4/ip_forward = 1
`
	for name, got := range map[string]Plan{"ab": Merge(nic, vm), "ba": Merge(vm, nic)} {
		if diff := cmp.Diff(want, got.String()); diff != "" {
			t.Errorf("%s: -want +got:\n%s", name, diff)
		}
	}
}

func TestAlias(t *testing.T) {
	for _, owner := range []string{"a", "0123/net1", "x:y"} {
		instance, got, ok := ParseAlias(Alias("main", owner))
		if !ok || instance != "main" || got != owner {
			t.Errorf("got %q, %q, %v from %q", instance, got, ok, owner)
		}
	}
	for _, foreign := range []string{"", "weft", "weft:", "weft:x", "weft:x:", "uplink to rack 4"} {
		if _, _, ok := ParseAlias(foreign); ok {
			t.Errorf("%q passes as ours", foreign)
		}
	}
	if g := GroupOf(Alias("main", "a")); g == 0 || g == GroupOf(Alias("main", "b")) {
		t.Errorf("group %d", g)
	}
	if _, owner, _ := ParseAlias(SharedAlias("main", "br0")); owner != "shared/br0" {
		t.Errorf("the owner of a shared mark is %q", owner)
	}
}

func TestSysctlLink(t *testing.T) {
	tests := map[string]IfName{
		"net/ipv4/conf/eth0.5/arp_ignore": "eth0.5", "net/ipv6/neigh/net1/gc_stale_time": "net1",
		"net/ipv4/conf/all/forwarding": "", "net/ipv6/conf/default/accept_ra": "", "net/ipv4/ip_forward": "",
	}
	for path, want := range tests {
		if got, ok := SysctlLink(path); got != want || ok != (want != "") {
			t.Errorf("%s: got %q, %v", path, got, ok)
		}
	}
}

func TestParseMAC(t *testing.T) {
	if m, err := ParseMAC("02-00-00-AA-00-01"); err != nil || m != "02:00:00:aa:00:01" {
		t.Errorf("got %q, %v", m, err)
	}
	for _, bad := range []string{"", "x", "02:00:00:00:00:00:00:01"} {
		if m, err := ParseMAC(bad); err == nil {
			t.Errorf("%q: got %q", bad, m)
		}
	}
}
