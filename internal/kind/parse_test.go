package kind_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/netstate"
)

func TestRefused(t *testing.T) {
	notBridge := kind.Link{Name: "br7", Kind: netstate.KindVeth}
	numbered := kind.Link{
		Name: "br7", Kind: netstate.KindBridge,
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.1.2.7/24"), netip.MustParsePrefix("fd00:1:2::7/56")},
	}
	for _, c := range []struct {
		name, conf, args, want string
		links                  []kind.Link
		change                 func(*kind.Facts)
	}{
		{name: "no JSON", conf: `{"type": "bridge"`, want: "is not valid JSON"},
		{name: "wrong JSON type", conf: `{"type": "bridge", "mtu": "1500"}`, want: `mtu "string": has the wrong JSON type; write a whole number`},
		{name: "bridge name too long", conf: `{"type": "bridge", "bridge": "abcdefghijklmnop"}`, want: `bridge "abcdefghijklmnop": is no link name`},
		{name: "bridge name with slash", conf: `{"type": "bridge", "bridge": "a/b"}`, want: `bridge "a/b": is no link name`},
		{name: "negative mtu", conf: `{"type": "bridge", "mtu": -1}`, want: `mtu "-1": is no MTU`},
		{name: "hairpin and promisc", conf: `{"type": "bridge", "hairpinMode": true, "promiscMode": true}`, want: `promiscMode "true": hairpinMode is set too`},
		{name: "disabled with ipam", conf: `{"type": "bridge", "disableContainerInterface": true, ` + ipam4 + `}`, want: `disableContainerInterface "true": a disabled interface can have no addresses`},
		{name: "vlan", conf: `{"type": "bridge", "vlan": 4095}`, want: `vlan "4095": is no VLAN id; use 0 to 4094`},
		{name: "trunk min alone", conf: `{"type": "bridge", "vlanTrunk": [{"minID": 5}]}`, want: `vlanTrunk[0]: has only one of minID and maxID`},
		{name: "trunk backwards", conf: `{"type": "bridge", "vlanTrunk": [{"id": 3}, {"minID": 5, "maxID": 4}]}`, want: `vlanTrunk[1].maxID "4": is less than minID 5`},
		{name: "trunk id", conf: `{"type": "bridge", "vlanTrunk": [{"id": 0}]}`, want: `vlanTrunk[0].id "0": is no VLAN id; use 1 to 4094`},
		{name: "masquerade backend", conf: `{"type": "bridge", "ipMasqBackend": "pf"}`, want: `ipMasqBackend "pf": is no backend`},
		{name: "mac", conf: `{"type": "bridge", "runtimeConfig": {"mac": "02:00"}}`, want: `runtimeConfig.mac "02:00": is no 48-bit MAC address`},
		{name: "eight-byte mac", conf: `{"type": "bridge"}`, args: "MAC=02:00:00:00:00:00:00:01", want: `CNI_ARGS.MAC "02:00:00:00:00:00:00:01": is no 48-bit MAC address`},
		{name: "group mac", conf: `{"type": "macvlan", "mac": "01:00:5e:00:00:01"}`, want: `mac "01:00:5e:00:00:01": is a group or null address`},
		{name: "null mac", conf: `{"type": "bridge", "args": {"cni": {"mac": "00:00:00:00:00:00"}}}`, want: `args.cni.mac "00:00:00:00:00:00": is a group or null address`},
		{name: "ipam error keeps its path", conf: `{"type": "bridge", "ipam": {"type": "host-local", "subnet": "x"}}`, want: `ipam.subnet "x": is not in CIDR notation`},
		{name: "not a bridge", conf: `{"type": "bridge", "bridge": "br7"}`, links: []kind.Link{notBridge}, want: `bridge "br7": is a link of kind veth, no bridge`},
		{name: "bridge has another address", conf: `{"type": "bridge", "bridge": "br7", "isGateway": true, ` + ipam4 + `}`, links: []kind.Link{numbered}, want: `bridge "br7": has the address 10.1.2.7/24 already, and isGateway wants 10.1.2.1/24`},
		{name: "bridge has another IPv6 subnet", conf: `{"type": "bridge", "bridge": "br7", "isGateway": true, "ipam": {"type": "host-local", "subnet": "fd00:1:2::/64"}}`, links: []kind.Link{numbered}, want: `has the address fd00:1:2::7/56 already`},
		{name: "address is the gateway's", conf: `{"type": "bridge", "isGateway": true, "ipam": {"type": "static", "addresses": [{"address": "10.1.2.1/24"}]}}`, want: `ipam "10.1.2.1/24": is the address the bridge gets`},
		{name: "IPv6 on a small MTU", conf: `{"type": "bridge", "mtu": 1279, "ipam": {"type": "host-local", "subnet": "fd00::/64"}}`, want: `mtu "1279": is too small for the IPv6 address`},
		{name: "IPv6 without IPv6", conf: `{"type": "bridge", "ipam": {"type": "host-local", "subnet": "fd00::/64"}}`, change: func(f *kind.Facts) { f.NoIPv6 = true }, want: `this kernel has no IPv6`},
		{name: "macvlan mode", conf: `{"type": "macvlan", "mode": "vlan"}`, want: `mode "vlan": is no macvlan mode; use one of bridge, private, vepa, passthru`},
		{name: "macvlan bcqueuelen", conf: `{"type": "macvlan", "bcqueuelen": -1}`, want: `bcqueuelen "number -1": has the wrong JSON type`},
		{name: "unknown master", conf: `{"type": "macvlan", "master": "eth5"}`, want: `master "eth5": there is no such link on this machine; set "master" to a link that exists; there are br7, eth9`},
		{name: "master in the Pod", conf: `{"type": "macvlan", "master": "eth9", "linkInContainer": true}`, want: `there is no such link on the Pod (linkInContainer is set)`},
		{name: "no default route", conf: `{"type": "macvlan"}`, change: func(f *kind.Facts) { delete(f.Links, kind.Query{Side: netstate.Host}) }, want: `master: is not set, and this machine has no default route`},
		{name: "mtu above the master's", conf: `{"type": "macvlan", "master": "eth9", "mtu": 9000}`, want: `mtu "9000": is more than the 1500 of master eth9; use at most 1500`},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := facts(c.links...)
			if c.change != nil {
				c.change(&f)
			}
			_, _, err := plan(t, c.conf, c.args, f)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if h, ok := errors.AsType[*hint.Error](err); !ok || h.Remedy == "" {
				t.Errorf("no hint with a remedy: %#v", err)
			}
		})
	}
}

func TestSeveralErrorsAreAllTold(t *testing.T) {
	_, _, err := plan(t, `{"type": "macvlan", "mode": "x", "mtu": -5, "mac": "y", "ipam": {"type": "z"}}`, "", facts())
	for _, field := range []string{"mode", "mtu", "mac", "ipam.type"} {
		if err == nil || !strings.Contains(err.Error(), field+" ") {
			t.Errorf("%s is not in: %v", field, err)
		}
	}
}

func TestNeeds(t *testing.T) {
	for conf, want := range map[string]kind.Query{
		`{"type": "bridge"}`:  {Side: netstate.Host, Name: "cni0"},
		`{"type": "macvlan"}`: {Side: netstate.Host},
		`{"type": "macvlan", "master": "eth0", "linkInContainer": true}`: {Side: netstate.Pod, Name: "eth0"},
	} {
		k, _ := kind.Lookup(pluginType(conf))
		c, err := k.Parse(kind.Input{Config: []byte(conf)})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]kind.Query{want}, c.Needs()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", conf, diff)
		}
	}
}

func TestLookup(t *testing.T) {
	for _, k := range kind.Kinds() {
		if got, ok := kind.Lookup(k.Type); !ok || got.Type != k.Type {
			t.Errorf("Lookup(%s) = %v %v", k.Type, got.Type, ok)
		}
	}
	if _, ok := kind.Lookup("ptp"); ok {
		t.Error("ptp is native")
	}
}

// TestNamesDiffer: whatever makes two attachments two gives them other names
// and MACs, and only that.
func TestNamesDiffer(t *testing.T) {
	k, _ := kind.Lookup("bridge")
	c, err := k.Parse(kind.Input{Config: []byte(`{"type": "bridge"}`)})
	if err != nil {
		t.Fatal(err)
	}
	base := kind.Request{Instance: "a", Machine: "m", Sandbox: "s", IfName: "net1"}
	of := func(r kind.Request) (name netstate.IfName, pod, bridge netstate.MAC) {
		out, err := c.Plan(r)
		if err != nil {
			t.Fatal(err)
		}
		links := out.Plan.Host.Links
		return links[1].Name, out.Plan.Pod.Links[0].MAC, links[0].MAC
	}
	name, mac, bridge := of(base)
	if len(name) != 15 || mac.HardwareAddr() == nil || mac.HardwareAddr()[0]&3 != 2 {
		t.Errorf("link %s with MAC %s", name, mac)
	}
	for what, change := range map[string]func(*kind.Request){
		"instance": func(r *kind.Request) { r.Instance = "b" },
		"sandbox":  func(r *kind.Request) { r.Sandbox = "t" },
		"ifname":   func(r *kind.Request) { r.IfName = "net2" },
		"machine":  func(r *kind.Request) { r.Machine = "n" },
	} {
		r := base
		change(&r)
		otherName, otherMAC, otherBridge := of(r)
		if (otherName == name) != (what == "machine") || otherMAC == mac {
			t.Errorf("another %s: link %s, MAC %s", what, otherName, otherMAC)
		}
		if (otherBridge == bridge) != (what == "sandbox" || what == "ifname") {
			t.Errorf("another %s: bridge MAC %s, was %s", what, otherBridge, bridge)
		}
	}
}

func TestRequestGoesBeforeConfig(t *testing.T) {
	for _, conf := range []string{
		`{"type": "bridge", "mtu": 1400, "runtimeConfig": {"mac": "02:00:00:00:00:01"}}`,
		`{"type": "macvlan", "master": "eth9", "mtu": 1400, "runtimeConfig": {"mac": "02:00:00:00:00:01"}}`,
		`{"type": "macvlan", "master": "eth9", "mode": "passthru"}`,
	} {
		k, _ := kind.Lookup(pluginType(conf))
		c, err := k.Parse(kind.Input{Config: []byte(conf)})
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.Plan(kind.Request{IfName: "net1", MAC: "02:00:00:00:00:99", MTU: 1300, Facts: facts()})
		if err != nil {
			t.Fatal(err)
		}
		if l := out.Plan.Pod.Links[0]; l.MAC != "02:00:00:00:00:99" || l.MTU != 1300 {
			t.Errorf("%s: MAC %s, MTU %d", conf, l.MAC, l.MTU)
		}
	}
}

func TestMasqueradeTable(t *testing.T) {
	p := netip.MustParsePrefix
	got := kind.MasqueradeTable("weft-masquerade", "weft:lab:shared",
		[]netip.Prefix{p("fd00::/64"), p("10.2.0.0/24"), p("10.1.0.0/24"), p("10.2.0.0/24")})
	want := `table inet weft-masquerade {
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		ip daddr 224.0.0.0/4 return
		ip6 daddr ff00::/8 return
		ip saddr 10.1.0.0/24 ip daddr != 10.1.0.0/24 masquerade
		ip saddr 10.2.0.0/24 ip daddr != 10.2.0.0/24 masquerade
		ip6 saddr fd00::/64 ip6 daddr != fd00::/64 masquerade
	}
}
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if none := kind.MasqueradeTable("t", "", nil); len(none.Chains) != 0 {
		t.Errorf("no subnets: %s", none)
	}
}

// FuzzParse: any config gives a plan or a hint, never a panic.
func FuzzParse(f *testing.F) {
	f.Add("bridge", `{"type": "bridge", "isDefaultGateway": true, "vlan": 5, "vlanTrunk": [{"minID": 1, "maxID": 9}], `+ipam2+`}`, "MAC=02:00:00:00:00:01;IP=10.1.2.9")
	f.Add("macvlan", `{"type": "macvlan", "mode": "passthru", "linkInContainer": false, `+ipam4+`}`, "")
	f.Fuzz(func(t *testing.T, pluginType, conf, cniArgs string) {
		k, ok := kind.Lookup(pluginType)
		if !ok {
			return
		}
		c, err := k.Parse(kind.Input{Config: []byte(conf), CNIArgs: cniArgs})
		if err != nil {
			if _, ok := errors.AsType[*hint.Error](err); !ok {
				t.Fatalf("no hint: %v", err)
			}
			return
		}
		got, err := ipam.NewAllocator(ipam.NewMemory()).Allocate(t.Context(), c.IPAM(), "sb/net1")
		if err != nil {
			return
		}
		out, err := c.Plan(kind.Request{Sandbox: "sb", IfName: "net1", Addresses: got, Facts: facts()})
		if err != nil {
			if _, ok := errors.AsType[*hint.Error](err); !ok {
				t.Fatalf("no hint: %v", err)
			}
			return
		}
		for _, ip := range out.Result.IPs {
			if out.Result.Interfaces[ip.Interface].Side != netstate.Pod {
				t.Fatalf("address %s is on %+v", ip.Prefix, out.Result.Interfaces[ip.Interface])
			}
		}
	})
}
