package ipam

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/hint"
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func TestParseRanges(t *testing.T) {
	for _, c := range []struct{ name, ipam, want string }{
		{"host-local", `{"type": "host-local", "subnet": "10.0.0.0/24", "dataDir": "/run/x"}`, "[10.0.0.2-10.0.0.254]"},
		{"host-local bounds", `{"type": "host-local", "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.0", "rangeEnd": "10.0.0.99", "gateway": "10.0.0.50"}`, "[10.0.0.1-10.0.0.49 10.0.0.51-10.0.0.99]"},
		{"host-local IPv6", `{"type": "host-local", "subnet": "fd00::/120"}`, "[fd00::2-fd00::ff]"},
		{"host-local keys in any case", `{"Type": "host-local", "Subnet": "10.0.0.0/24", "RANGEEND": "10.0.0.4"}`, "[10.0.0.2-10.0.0.4]"},
		{"host-local /31", `{"type": "host-local", "subnet": "10.0.0.0/31"}`, "[10.0.0.0]"},
		{"host-local /32", `{"type": "host-local", "subnet": "10.0.0.3/32"}`, "[10.0.0.3]"},
		{"CIDR with host bits", `{"type": "whereabouts", "range": "192.168.3.230/24"}`, "[192.168.3.1-192.168.3.254]"},
		{"dash", `{"type": "whereabouts", "range": "192.168.3.20-192.168.3.30/24"}`, "[192.168.3.20-192.168.3.30]"},
		{"dash with blanks wins over bounds", `{"type": "whereabouts", "range": "192.168.3.20 - 192.168.3.30/24", "range_end": "192.168.3.22"}`, "[192.168.3.20-192.168.3.30]"},
		{"excludes", `{"type": "whereabouts", "range": "192.168.3.0/24", "exclude": ["192.168.3.0/25", "192.168.3.200", "192.168.3.210-192.168.3.220"]}`, "[192.168.3.128-192.168.3.199 192.168.3.201-192.168.3.209 192.168.3.221-192.168.3.254]"},
		{"leading zeros", `{"type": "whereabouts", "range": "192.168.001.0/24", "range_start": "00192.00168.1.44"}`, "[192.168.1.44-192.168.1.254]"},
		{"/32", `{"type": "whereabouts", "range": "10.0.0.3/32"}`, "[10.0.0.3]"},
		{"/127", `{"type": "whereabouts", "range": "fd00::/127"}`, "[fd00::-fd00::1]"},
		{"from ::", `{"type": "whereabouts", "range": "::/126"}`, "[::1-::3]"},
		{"ignored keys", `{"type": "whereabouts", "range": "10.0.0.0/30", "log_level": "debug", "kubernetes": {"kubeconfig": "/x"}, "leader_retry_period": 5, "etcd_host": "x"}`, "[10.0.0.1-10.0.0.2]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := mustParse(t, c.ipam)
			var got []string
			for _, set := range config.Sets {
				got = append(got, set.Ranges[0].Key())
			}
			if diff := cmp.Diff([]string{c.want}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRoutesAndDNS(t *testing.T) {
	config := mustParse(t, `{"type": "static", "addresses": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}],
		"routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.7/16", "gw": "10.0.0.9", "mtu": 1400, "advmss": 1360, "priority": 50, "table": 100, "scope": 253}],
		"dns": {"nameservers": ["10.0.0.1"], "domain": "a.example", "search": ["a.example"], "options": ["ndots:2"]}}`)
	table, scope := 100, 253
	want := []Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0")},
		{Dst: netip.MustParsePrefix("10.9.0.0/16"), Via: addr("10.0.0.9"), MTU: 1400, AdvMSS: 1360, Priority: 50, Table: &table, Scope: &scope},
	}
	same := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	samePrefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if diff := cmp.Diff(want, config.Routes, same, samePrefix); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	wantDNS := DNS{Nameservers: []string{"10.0.0.1"}, Domain: "a.example", Search: []string{"a.example"}, Options: []string{"ndots:2"}}
	if diff := cmp.Diff(wantDNS, config.DNS); diff != "" {
		t.Errorf("dns (-want +got):\n%s", diff)
	}
	resolv := ParseResolvConf([]byte("# x\nnameserver 10.0.0.1\nnameserver fd00::1\nsearch a b\noptions ndots:2 edns0\nsearch c d\ndomain e\nnameserver\n"))
	wantDNS = DNS{Nameservers: []string{"10.0.0.1", "fd00::1"}, Domain: "e", Search: []string{"c", "d"}, Options: []string{"ndots:2", "edns0"}}
	if diff := cmp.Diff(wantDNS, resolv); diff != "" {
		t.Errorf("resolv.conf (-want +got):\n%s", diff)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ name, conf, want string }{
		{"no JSON", `{`, `is not valid JSON`},
		{"no type", `{"ipam": {"subnet": "10.0.0.0/24"}}`, `ipam.type: is missing; set it to one of host-local, static, whereabouts`},
		{"other type", `{"ipam": {"type": "dhcp"}}`, `ipam.type "dhcp": weft does not do this type itself`},
		{"wrong JSON type", `{"ipam": {"type": "host-local", "ranges": {"subnet": "10.0.0.0/24"}}}`, `ipam.ranges "object": has the wrong JSON type`},
		{"ipam is a list", `{"ipam": []}`, `ipam "array": has the wrong JSON type`},
		{"no range", `{"ipam": {"type": "host-local"}}`, `ipam.ranges: no range is given`},
		{"empty set", `{"ipam": {"type": "host-local", "ranges": [[]]}}`, `ipam.ranges[0]: is an empty list of ranges`},
		{"host bits", `{"ipam": {"type": "host-local", "subnet": "10.0.0.7/24"}}`, `ipam.subnet "10.0.0.7/24": has host bits set; write 10.0.0.0/24`},
		{"no CIDR", `{"ipam": {"type": "host-local", "subnet": "10.0.0.7"}}`, `ipam.subnet "10.0.0.7": is not in CIDR notation`},
		{"start outside", `{"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}]]}}`, `ipam.ranges[0][0].rangeStart "10.0.1.1": is not in 10.0.0.0/24; choose an address from 10.0.0.1-10.0.0.254`},
		{"end before start", `{"ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}}`, `ipam.rangeEnd "10.0.0.8": comes before the start`},
		{"mixed families", `{"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}}`, `ipam.ranges[0][1] "fd00::/64": is of another family`},
		{"overlap in a set", `{"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/16"}]]}}`, `ipam.ranges[0][1] "10.0.0.0/16": overlaps ipam.ranges[0][0] 10.0.0.0/24`},
		{"overlap of sets", `{"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/16"}]]}}`, `ipam.ranges[1][0] "10.0.0.0/16": overlaps ipam.ranges[0][0] 10.0.0.0/24`},
		{"nothing left", `{"ipam": {"type": "whereabouts", "range": "10.0.0.0/30", "exclude": ["10.0.0.0/29"]}}`, `no address is left to give`},
		{"only the gateway", `{"ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.1", "rangeEnd": "10.0.0.1"}}`, `no address is left to give`},
		{"bad range", `{"ipam": {"type": "whereabouts", "range": "10.0.0.0"}}`, `ipam.range "10.0.0.0": is neither CIDR nor FIRST-LAST/LENGTH`},
		{"bad range_start", `{"ipam": {"type": "whereabouts", "range": "192.168.2.16/28", "range_start": "192.168.1.5"}}`, `ipam.range_start "192.168.1.5": is not in 192.168.2.16/28`},
		{"bad exclude", `{"ipam": {"type": "whereabouts", "ipRanges": [{"range": "10.0.0.0/24", "exclude": ["10.0.0.1", "x"]}]}}`, `ipam.ipRanges[0].exclude[1] "x": is neither a CIDR`},
		{"exclude backwards", `{"ipam": {"type": "whereabouts", "range": "10.0.0.0/24", "exclude": ["10.0.0.9-10.0.0.8"]}}`, `ipam.exclude[0]`},
		{"bad gateway", `{"ipam": {"type": "whereabouts", "range": "10.0.0.0/24", "gateway": "nope"}}`, `ipam.gateway "nope": is not an IP address`},
		{"gateway of the other family", `{"ipam": {"type": "static", "addresses": [{"address": "10.0.0.2/24"}], "routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]}}`, `ipam.routes[0].gw "fd00::1": is of another family`},
		{"route numbers", `{"ipam": {"type": "static", "addresses": [{"address": "10.0.0.2/24"}], "routes": [{"dst": "0.0.0.0/0", "mtu": -1, "scope": 300}]}}`, `ipam.routes[0].scope "300": is out of bounds`},
		{"static without address", `{"ipam": {"type": "static"}}`, `ipam.addresses: no address is given`},
		{"static twice", `{"ipam": {"type": "static", "addresses": [{"address": "10.0.0.2/24"}, {"address": "10.0.0.2/16"}]}}`, `ipam.addresses[1].address "10.0.0.2/16": is there twice`},
		{"ips without length", `{"ipam": {"type": "static", "addresses": [{"address": "10.0.0.2/24"}]}, "runtimeConfig": {"ips": ["10.1.0.2"]}}`, `runtimeConfig.ips[0] "10.1.0.2": has no prefix length`},
		{"ips malformed", `{"ipam": {"type": "static"}, "args": {"cni": {"ips": ["x"]}}}`, `args.cni.ips[0] "x": is not an IP address`},
		{"ips without ipam", `{"runtimeConfig": {"ips": ["10.0.0.2"]}}`, `runtimeConfig.ips[0] "10.0.0.2": this network has no ipam`},
		{"zone", `{"ipam": {"type": "whereabouts", "range": "fe80::/64", "gateway": "fe80::1%eth0"}}`, `ipam.gateway "fe80::1%eth0": is not an IP address`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(c.conf), "")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if h, ok := errors.AsType[*hint.Error](err); !ok || h.Remedy == "" {
				t.Errorf("no hint with a remedy: %#v", err)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	for _, c := range []struct {
		ipam string
		want []string
	}{
		{`{"type": "whereabouts", "range": "10.0.0.0/24", "gateway": "fd00::1", "node_slice_size": "/26"}`, []string{
			"ipam.node_slice_size: has no effect; addresses come from the whole range",
			"ipam.gateway: fd00::1 is of another family than every range and has no effect",
		}},
		{`{"type": "whereabouts", "range": "10.0.0.0/24", "rangeStart": "10.0.0.9"}`, []string{"ipam.rangeStart: is no key of ipam type whereabouts and has no effect"}},
		{`{"type": "host-local", "SUBNET": "10.0.0.0/24", "range_start": "x", "zz": {}}`, []string{
			"ipam.range_start: is no key of ipam type host-local and has no effect", "ipam.zz: is no key of ipam type host-local and has no effect",
		}},
		{`{"type": "static", "addresses": [{"address": "10.0.0.2/24"}], "subnet": 1}`, []string{"ipam.subnet: is no key of ipam type static and has no effect"}},
		{`{"type": "host-local", "subnet": "10.0.0.0/24", "dataDir": "/x"}`, nil},
	} {
		if diff := cmp.Diff(c.want, mustParse(t, c.ipam).Warnings); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.ipam, diff)
		}
	}
}

func TestNoIPAM(t *testing.T) {
	for _, conf := range []string{`{}`, `{"ipam": {}}`, `{"ipam": null}`, `{"ipam": {"type": ""}}`} {
		config, err := Parse([]byte(conf), "")
		if err != nil || config.Type != "" {
			t.Errorf("Parse(%s) = %q %v", conf, config.Type, err)
		}
	}
}

func TestImplyGateways(t *testing.T) {
	config := mustParse(t, `{"type": "whereabouts", "range": "10.0.0.0/24", "ipRanges": [{"range": "fd00::/64"}], "addresses": [{"address": "10.5.0.9/24"}]}`)
	implied := config.ImplyGateways()
	if got := implied.Sets[0].Ranges[0]; got.Gateway != addr("10.0.0.1") || got.Contains(addr("10.0.0.1")) {
		t.Errorf("range %s has gateway %s", got.Key(), got.Gateway)
	}
	if got := implied.Sets[1].Ranges[0].Gateway; got != addr("fd00::1") {
		t.Errorf("gateway %s, want fd00::1", got)
	}
	if got := implied.Static[0].Gateway; got != addr("10.5.0.1") {
		t.Errorf("gateway %s, want 10.5.0.1", got)
	}
	if config.Sets[0].Ranges[0].Gateway.IsValid() || config.Static[0].Gateway.IsValid() {
		t.Error("the config it was called on has changed")
	}
}

// FuzzParse: any input gives a config that can be allocated from, or a hint.
func FuzzParse(f *testing.F) {
	f.Add(`{"name": "n", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24"}]]}, "runtimeConfig": {"ips": ["10.0.0.5"]}}`, "IP=10.0.0.5")
	f.Add(`{"ipam": {"type": "whereabouts", "range": "10.0.0.1-10.0.0.9/24", "exclude": ["10.0.0.1-10.0.0.2", "::/1"]}}`, "")
	f.Add(`{"ipam": {"type": "whereabouts", "range": "::ffff:10.0.0.0/120", "gateway": "::ffff:10.0.0.1"}}`, "")
	f.Add(`{"ipam": {"type": "static", "addresses": [{"address": "fd00::1/64"}]}}`, "IP=fd00::2;GATEWAY=fd00::9")
	f.Fuzz(func(t *testing.T, conf, cniArgs string) {
		config, err := Parse([]byte(conf), cniArgs)
		if err != nil {
			if _, ok := errors.AsType[*hint.Error](err); !ok {
				t.Fatalf("no hint: %v", err)
			}
			return
		}
		allocator, memory := newAllocator()
		got, err := allocator.Allocate(t.Context(), config.ImplyGateways(), "sb/net1")
		if err != nil {
			if _, ok := errors.AsType[*hint.Error](err); !ok {
				t.Fatalf("no hint: %v", err)
			}
			if len(memory.Leases()) != 0 {
				t.Fatalf("still held: %v", held(memory))
			}
			return
		}
		for _, a := range got.Addresses {
			if !a.Prefix.IsValid() || config.Type != TypeStatic && len(config.Static) == 0 && a.Prefix.Addr() == a.Gateway {
				t.Fatalf("gave %s with gateway %s", a.Prefix, a.Gateway)
			}
		}
	})
}
