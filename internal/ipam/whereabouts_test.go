package ipam

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/hint"
)

// get allocates with a store in which "other" holds some addresses in a scope.
func get(t *testing.T, ipam, cniArgs string, memory *Memory) ([]string, error) {
	t.Helper()
	config, err := Parse([]byte(`{"name": "n", "ipam": `+ipam+`}`), cniArgs)
	if err != nil {
		return nil, err
	}
	got, err := NewAllocator(memory).Allocate(t.Context(), config, "sb/net1")
	return addresses(got), err
}

// TestWhereaboutsKeys: every key of whereabouts is read, or passed over by name.
func TestWhereaboutsKeys(t *testing.T) {
	const all = `{"type": "whereabouts", "range": "10.0.0.77/24", "range_start": "10.0.0.10", "range_end": "10.0.0.20",
		"exclude": ["10.0.0.10/31", "10.0.0.13"], "gateway": "10.0.0.12", "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.0.0.1"]},
		"ipRanges": [{"range": "fd00::10-fd00::20/64", "exclude": ["fd00::10/127"]}, {"range": "10.2.0.0/24", "range_start": "10.2.0.5", "range_end": "10.2.0.6"}],
		"addresses": [{"address": "010.001.000.5/24", "gateway": "10.1.0.1"}], "network_name": "blue.net-1", "enable_overlapping_ranges": true,
		"sleep_for_race": 3, "leader_lease_duration": 1500, "leader_renew_deadline": 1000, "leader_retry_period": 500,
		"configuration_path": "/etc/cni/net.d/whereabouts.d", "kubernetes": {"kubeconfig": "/x", "k8s_api_root": "https://x"},
		"log_file": "/var/log/x", "log_level": "debug", "reconciler_cron_expression": "30 4 * * *", "datastore": "kubernetes",
		"etcd_host": "x", "etcd_username": "x", "etcd_password": "x", "etcd_key_file": "x", "etcd_cert_file": "x", "etcd_ca_cert_file": "x"}`
	config := mustParse(t, all)
	if len(config.Warnings) != 0 || !config.ClusterWide {
		t.Errorf("warnings %q, cluster-wide %v", config.Warnings, config.ClusterWide)
	}
	got, err := get(t, all, "", NewMemory())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"10.0.0.14/24 via 10.0.0.12", "fd00::12/64", "10.2.0.5/24", "10.1.0.5/24 via 10.1.0.1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(config.Routes) != 1 || len(config.DNS.Nameservers) != 1 || config.StaticScope != "whereabouts:blue.net-1" {
		t.Errorf("routes %v, dns %v, scope %s", config.Routes, config.DNS, config.StaticScope)
	}
}

// TestWhereaboutsBounds: which addresses a range gives, by its notation.
func TestWhereaboutsBounds(t *testing.T) {
	for _, c := range []struct{ name, keys, want string }{
		{"network address of a CIDR", `"range": "10.0.0.0/24", "range_start": "10.0.0.0"`, "[10.0.0.1-10.0.0.254]"},
		{"broadcast address as the end", `"range": "10.0.0.0/24", "range_end": "10.0.0.255"`, "[10.0.0.1-10.0.0.254]"},
		{"both ends are given", `"range": "10.0.0.0/24", "range_start": "10.0.0.5", "range_end": "10.0.0.5"`, "[10.0.0.5]"},
		{".0 and .255 in the middle", `"range": "10.8.0.0/23", "range_start": "10.8.0.255", "range_end": "10.8.1.0"`, "[10.8.0.255-10.8.1.0]"},
		{"exclude with host bits", `"range": "192.168.2.225/28", "exclude": ["192.168.2.229/30", "192.168.2.236/32"]`, "[192.168.2.225-192.168.2.227 192.168.2.232-192.168.2.235 192.168.2.237-192.168.2.238]"},
		{"exclude of the other family", `"range": "10.0.0.0/30", "exclude": ["fd00::/8"]`, "[10.0.0.1-10.0.0.2]"},
		{"exclude wider than the range", `"range": "10.0.0.0/24", "range_start": "10.0.0.200", "exclude": ["9.0.0.0-10.0.0.253"]`, "[10.0.0.254]"},
		{"top of IPv4", `"range": "255.255.255.252/30"`, "[255.255.255.253-255.255.255.254]"},
		{"top of IPv6", `"range": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124"`, "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]"},
		{"bottom of IPv6", `"range": "::/127"`, "[::-::1]"},
		{"last address of IPv6", `"range": "2001:db8::/126"`, "[2001:db8::1-2001:db8::3]"},
		{"one address of IPv6", `"range": "2001:db8::7/128"`, "[2001:db8::7]"},
		{"IPv4 written as IPv6", `"range": "::ffff:10.0.0.0/126", "exclude": ["::ffff:10.0.0.1"]`, "[10.0.0.2]"},
		{"all of IPv6 but what stands for IPv4", `"range": "::/1"`, "[::1-::fffe:ffff:ffff ::1:0:0:0-7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]"},
		{"all of IPv4", `"range": "0.0.0.0/0"`, "[0.0.0.1-255.255.255.254]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := mustParse(t, `{"type": "whereabouts", `+c.keys+`}`).Sets[0].Ranges[0].Key(); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// TestWhereaboutsRefuses: what is wrong is named with field, value and remedy.
func TestWhereaboutsRefuses(t *testing.T) {
	for _, c := range []struct{ name, keys, want string }{
		{"no range in an entry", `"ipRanges": [{"range_start": "10.0.0.5"}]`, `ipam.ipRanges[0].range: is neither CIDR`},
		{"start of another subnet", `"range": "10.0.0.0/24", "range_start": "10.0.1.5"`, `ipam.range_start "10.0.1.5": is not in 10.0.0.0/24; choose an address from 10.0.0.1-10.0.0.254`},
		{"start that is no address", `"range": "10.0.0.0/24", "range_start": "5"`, `ipam.range_start "5": is not an IP address`},
		{"end of the other family", `"range": "10.0.0.0/24", "range_end": "fd00::1"`, `ipam.range_end "fd00::1": is not in 10.0.0.0/24`},
		{"end before start", `"range": "10.0.0.0/24", "range_start": "10.0.0.9", "range_end": "10.0.0.5"`, `ipam.range_end "10.0.0.5": comes before the start of the range, 10.0.0.9`},
		{"dash with a start elsewhere", `"range": "10.0.1.5-10.0.0.9/24"`, `ipam.range "10.0.1.5": is not in 10.0.0.0/24`},
		{"dash backwards", `"range": "10.0.0.9-10.0.0.5/24"`, `ipam.range "10.0.0.5": comes before the start`},
		{"dash without length", `"range": "10.0.0.5-10.0.0.9"`, `ipam.range "10.0.0.5-10.0.0.9": is neither CIDR nor FIRST-LAST/LENGTH`},
		{"length too long", `"range": "10.0.0.0/33"`, `ipam.range "10.0.0.0/33"`},
		{"zone", `"range": "fe80::%eth0/64"`, `ipam.range "fe80::%eth0/64"`},
		{"exclude with zone", `"range": "fe80::/64", "exclude": ["fe80::1%eth0"]`, `ipam.exclude[0] "fe80::1%eth0"`},
		{"exclude too long", `"range": "10.12.0.0/24", "exclude": ["10.12.0.1/123"]`, `ipam.exclude[0] "10.12.0.1/123"`},
		{"gateway elsewhere", `"range": "10.0.0.0/24", "gateway": "10.0.1.1"`, `ipam.gateway "10.0.1.1": is not in 10.0.0.0/24; name a router of the range's subnet, or leave it out`},
		{"gateway in no range", `"range": "10.0.0.0/24", "ipRanges": [{"range": "10.2.0.0/24"}], "gateway": "10.0.1.1"`, `ipam.gateway "10.0.1.1": is not in 10.0.0.0/24 or 10.2.0.0/24`},
		{"only the gateway is left", `"range": "10.0.0.1/32", "gateway": "10.0.0.1"`, `no address is left to give`},
		{"network_name", `"range": "10.0.0.0/24", "network_name": "a_B"`, `ipam.network_name "a_B": cannot be part of an object's name`},
		{"ranges that do not see each other", `"range": "10.0.0.0/24", "ipRanges": [{"range": "10.0.0.0/16"}], "enable_overlapping_ranges": false`, `ipam.ipRanges[0] "10.0.0.0/16": overlaps ipam 10.0.0.0/24`},
		{"enable_overlapping_ranges", `"range": "10.0.0.0/24", "enable_overlapping_ranges": "false"`, `ipam.enable_overlapping_ranges "string": has the wrong JSON type; write true or false`},
		{"two at once", `"range": "10.0.0.0/24", "range_start": "x", "range_end": "y"`, `ipam.range_end "y"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(`{"name": "n", "ipam": {"type": "whereabouts", `+c.keys+`}}`), "")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if h, ok := errors.AsType[*hint.Error](err); !ok || h.Remedy == "" {
				t.Errorf("no hint with a remedy: %#v", err)
			}
		})
	}
}

// TestWhereaboutsGateway: a gateway goes with the addresses of its subnet only,
// and is given to nobody.
func TestWhereaboutsGateway(t *testing.T) {
	for _, c := range []struct {
		name, keys string
		want       []string
	}{
		{"own family", `"range": "fd00::/64", "ipRanges": [{"range": "10.0.0.0/24"}], "gateway": "10.0.0.1"`, []string{"fd00::1/64", "10.0.0.2/24 via 10.0.0.1"}},
		{"own subnet", `"range": "10.0.0.0/24", "ipRanges": [{"range": "10.2.0.0/24"}], "gateway": "10.2.0.1"`, []string{"10.0.0.1/24", "10.2.0.2/24 via 10.2.0.1"}},
		{"every range of its subnet", `"range": "10.0.0.0/24", "ipRanges": [{"range": "10.0.0.0/24"}], "gateway": "10.0.0.2"`, []string{"10.0.0.1/24 via 10.0.0.2", "10.0.0.3/24 via 10.0.0.2"}},
		{"outside the bounds", `"range": "10.0.0.20-10.0.0.30/24", "gateway": "10.0.0.1"`, []string{"10.0.0.20/24 via 10.0.0.1"}},
		{"link-local", `"range": "fd00::/64", "gateway": "fe80::1"`, []string{"fd00::1/64 via fe80::1"}},
		{"leading zeros", `"range": "10.0.0.0/24", "gateway": "010.000.000.001"`, []string{"10.0.0.2/24 via 10.0.0.1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := get(t, `{"type": "whereabouts", `+c.keys+`}`, "", NewMemory())
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// TestRequestedOrRefused: an address that is asked for is given, or refused by
// name, whichever way it is asked and whatever type gives it.
func TestRequestedOrRefused(t *testing.T) {
	const (
		whereabouts = `{"type": "whereabouts", "range": "10.0.0.0/24", "exclude": ["10.0.0.200"], "gateway": "10.0.0.1", "ipRanges": [{"range": "fd00::/64"}]}`
		hostLocal   = `{"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]}`
		static      = `{"type": "static", "addresses": [{"address": "10.0.0.9/24"}]}`
	)
	for _, way := range []struct{ name, field, conf, args string }{
		{"capability", "runtimeConfig.ips[0]", `, "runtimeConfig": {"ips": ["%s"]}`, ""},
		{"args", "args.cni.ips[0]", `, "args": {"cni": {"ips": ["%s"]}}`, ""},
		{"CNI_ARGS", "CNI_ARGS.IP[0]", "", "IP=%s"},
	} {
		for _, c := range []struct {
			name, ipam, ip string
			want           string // the addresses, or what the error says
		}{
			{"whereabouts", whereabouts, "10.0.0.77/24", "10.0.0.77/24 via 10.0.0.1 fd00::1/64"},
			{"whereabouts bare", whereabouts, "fd00::77", "10.0.0.2/24 via 10.0.0.1 fd00::77/64"},
			{"whereabouts excluded", whereabouts, "10.0.0.200", `FIELD "10.0.0.200": is excluded by ipam.exclude (10.0.0.200)`},
			{"whereabouts gateway", whereabouts, "10.0.0.1", `FIELD "10.0.0.1": is the gateway of 10.0.0.0/24`},
			{"whereabouts network", whereabouts, "10.0.0.0", `FIELD "10.0.0.0": is the network address`},
			{"whereabouts outside", whereabouts, "10.9.0.5/24", `FIELD "10.9.0.5": is out of range`},
			{"whereabouts held", whereabouts, "10.0.0.50", `FIELD "10.0.0.50": is in use: 10.0.0.50 is held by other`},
			{"host-local", hostLocal, "10.0.0.77/24", "10.0.0.77/24 via 10.0.0.1 fd00::2/64 via fd00::1"},
			{"host-local outside", hostLocal, "10.9.0.5", `FIELD "10.9.0.5": is out of range`},
			{"host-local held", hostLocal, "10.0.0.50", `FIELD "10.0.0.50": is in use: 10.0.0.50 is held by other`},
			{"static held", static, "10.0.0.50/24", `FIELD "10.0.0.50": is in use: 10.0.0.50 is held by other`},
			{"a zone", whereabouts, "fe80::1%eth0", `FIELD "fe80::1%eth0": is not an IP address`},
		} {
			t.Run(way.name+" "+c.name, func(t *testing.T) {
				memory := NewMemory()
				for _, scope := range []Scope{"whereabouts:", "net:n"} {
					if err := memory.Hold(Lease{scope, addr("10.0.0.50"), "other"}); err != nil {
						t.Fatal(err)
					}
				}
				fill := func(form string) string { return strings.ReplaceAll(form, "%s", c.ip) }
				config, err := Parse([]byte(`{"name": "n", "ipam": `+c.ipam+fill(way.conf)+`}`), fill(way.args))
				var got Result
				if err == nil {
					got, err = NewAllocator(memory).Allocate(t.Context(), config, "sb/net1")
				}
				text := strings.Join(addresses(got), " ")
				if err != nil {
					text = err.Error()
				}
				if want := strings.ReplaceAll(c.want, "FIELD", way.field); !strings.HasPrefix(text, want) {
					t.Errorf("got  %s\nwant %s", text, want)
				}
				if err != nil && len(memory.Leases()) != 2 {
					t.Errorf("held after a refusal: %v", held(memory))
				}
			})
		}
	}
}

// TestOverlappingPools: networks that could give the same address are named.
func TestOverlappingPools(t *testing.T) {
	network := func(name, keys string) Network {
		return Network{name, mustParse(t, `{"type": "whereabouts", `+keys+`}`)}
	}
	const off = `, "enable_overlapping_ranges": false`
	for _, c := range []struct{ name, a, b, want string }{
		{"off both", `"range": "10.0.0.0/24"` + off, `"range": "10.0.0.0/16"` + off, `b: ipam "10.0.0.0/16": overlaps 10.0.0.0/24 of network a`},
		{"off one", `"range": "10.0.0.0/24"`, `"ipRanges": [{"range": "10.0.0.0/16"}]` + off, `b: ipam.ipRanges[0] "10.0.0.0/16": overlaps 10.0.0.0/24 of network a`},
		{"on", `"range": "10.0.0.0/24"`, `"range": "10.0.0.0/16"`, ""},
		{"the same pool", `"range": "10.0.0.0/24"` + off, `"range": "10.0.0.0/24", "exclude": ["10.0.0.1"]` + off, ""},
		{"other networks", `"range": "10.0.0.0/24"` + off, `"range": "10.0.0.0/16", "network_name": "blue"` + off, ""},
		{"bounds apart", `"range": "10.0.0.0/24"` + off, `"range": "10.0.0.0/16", "range_start": "10.0.1.0"` + off, ""},
		{"families apart", `"range": "10.0.0.0/24"` + off, `"range": "fd00::/64"` + off, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := OverlappingPools([]Network{network("a", c.a), network("b", c.b)})
			if (c.want == "") != (err == nil) || err != nil && !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestFixedAddressSeesItsPool: with enable_overlapping_ranges off, too, an entry
// of addresses and the range it is in are held in one place.
func TestFixedAddressSeesItsPool(t *testing.T) {
	memory := NewMemory()
	const keys = `{"type": "whereabouts", "range": "10.0.0.0/30", "addresses": [{"address": "10.0.0.1/30"}], "enable_overlapping_ranges": false}`
	got, err := get(t, keys, "", memory)
	if err != nil || !slices.Equal(got, []string{"10.0.0.2/30", "10.0.0.1/30"}) {
		t.Fatalf("got %v %v", got, err)
	}
	config := mustParse(t, keys)
	if _, err := NewAllocator(memory).Allocate(t.Context(), config, "sb2/net1"); !errors.Is(err, ErrTaken) {
		t.Errorf("a second one: %v", err)
	}
}

func TestWhereaboutsWarnings(t *testing.T) {
	config := mustParse(t, `{"type": "whereabouts", "range_start": "10.0.0.5", "ipRanges": [{"range": "10.0.0.5-10.0.0.9/24", "range_end": "10.0.0.7"}]}`)
	want := []string{
		"ipam.ipRanges[0]: range_start and range_end have no effect beside a range of the form FIRST-LAST/LENGTH",
		"ipam: range_start, range_end and exclude have no effect without range; ipRanges have their own",
	}
	if diff := cmp.Diff(want, config.Warnings); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What follows are the cases of whereabouts' own defects (B1 to B13 in our
// notes) that are about ranges and the choice of an address.

func whereabouts(t *testing.T, keys string) Config {
	t.Helper()
	return mustParse(t, `{"type": "whereabouts", `+keys+`}`)
}

func allocate(t *testing.T, m *Memory, c Config, owner Owner) []string {
	t.Helper()
	got, err := NewAllocator(m).Allocate(context.Background(), c, owner)
	if err != nil {
		t.Fatal(err)
	}
	return addresses(got)
}

// TestB1PartlyFailedAdd: an ADD of two ranges that fails at the second holds
// nothing; done again it gives addresses that an overlapping range does not.
func TestB1PartlyFailedAdd(t *testing.T) {
	memory := NewMemory()
	both := whereabouts(t, `"ipRanges": [{"range": "10.20.0.0/24"}, {"range": "10.21.0.5/32"}]`)
	wide := whereabouts(t, `"range": "10.21.0.4/31"`)
	allocate(t, memory, whereabouts(t, `"range": "10.21.0.5/32"`), "first/net1")
	if _, err := NewAllocator(memory).Allocate(t.Context(), both, "sb/net1"); !errors.Is(err, ErrExhausted) {
		t.Fatalf("got %v, want %v", err, ErrExhausted)
	}
	if diff := cmp.Diff([]string{"10.21.0.5 first/net1"}, held(memory)); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	if err := NewAllocator(memory).Release(t.Context(), "first/net1"); err != nil {
		t.Fatal(err)
	}
	if got := allocate(t, memory, both, "sb/net1"); !slices.Equal(got, []string{"10.20.0.1/24", "10.21.0.5/32"}) {
		t.Errorf("again: %v", got)
	}
	if got := allocate(t, memory, wide, "third/net1"); !slices.Equal(got, []string{"10.21.0.4/31"}) {
		t.Errorf("overlapping range: %v", got)
	}
	if _, err := NewAllocator(memory).Allocate(t.Context(), wide, "fourth/net1"); !errors.Is(err, ErrExhausted) {
		t.Errorf("full: %v", err)
	}
}

// TestB2RangesEdited: what an owner holds goes by what it holds, not by what
// the network's config says today.
func TestB2RangesEdited(t *testing.T) {
	memory := NewMemory()
	allocate(t, memory, whereabouts(t, `"range": "10.0.0.0/24"`), "sb/net1")
	edited := whereabouts(t, `"range": "10.9.0.0/24", "ipRanges": [{"range": "10.0.0.0/24"}]`)
	allocate(t, memory, edited, "other/net1")
	if err := NewAllocator(memory).Release(t.Context(), "sb/net1"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"10.0.0.2 other/net1", "10.9.0.1 other/net1"}, held(memory)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestB3UpperHalf: the upper half of a /64 is as good as the lower one.
func TestB3UpperHalf(t *testing.T) {
	for _, overlap := range []string{"true", "false"} {
		memory := NewMemory()
		config := whereabouts(t, `"range": "caa5::/64", "range_start": "caa5::8000:0:0:1", "enable_overlapping_ranges": `+overlap)
		for i := 1; i <= 3; i++ {
			want := []string{fmt.Sprintf("caa5::8000:0:0:%d/64", i)}
			if got := allocate(t, memory, config, Owner(fmt.Sprintf("p%d/net1", i))); !slices.Equal(got, want) {
				t.Errorf("overlap %s: got %v, want %v", overlap, got, want)
			}
		}
		if err := NewAllocator(memory).Release(t.Context(), "p2/net1"); err != nil {
			t.Fatal(err)
		}
		if got := allocate(t, memory, config, "p4/net1"); !slices.Equal(got, []string{"caa5::8000:0:0:2/64"}) {
			t.Errorf("overlap %s: the one that came free: %v", overlap, got)
		}
	}
}

// TestB4WidePrefix: addresses of a /48 that differ above 64 bits are not one.
func TestB4WidePrefix(t *testing.T) {
	memory := NewMemory()
	first := allocate(t, memory, whereabouts(t, `"range": "fd00::/48", "range_start": "fd00:0:0:1::1"`), "a/net1")
	second := allocate(t, memory, whereabouts(t, `"range": "fd00::/48"`), "b/net1")
	if !slices.Equal(first, []string{"fd00:0:0:1::1/48"}) || !slices.Equal(second, []string{"fd00::1/48"}) {
		t.Errorf("got %v and %v", first, second)
	}
}

// TestB5NodeSliceSize: addresses come from the whole range; no other object is
// needed, whatever the size says.
func TestB5NodeSliceSize(t *testing.T) {
	for _, size := range []string{`"/26"`, `"26"`, `26`, `"/8"`, `"x"`} {
		config := whereabouts(t, `"range": "10.0.0.0/24", "exclude": ["10.0.0.1"], "ipRanges": [{"range": "fd00::/64"}], "node_slice_size": `+size)
		if got := allocate(t, NewMemory(), config, "sb/net1"); !slices.Equal(got, []string{"10.0.0.2/24", "fd00::1/64"}) {
			t.Errorf("%s: %v", size, got)
		}
		if len(config.Warnings) != 1 || !strings.HasPrefix(config.Warnings[0], "ipam.node_slice_size") {
			t.Errorf("%s: warnings %q", size, config.Warnings)
		}
	}
}

// TestB9SameRangeTwice: two entries of one range are two addresses.
func TestB9SameRangeTwice(t *testing.T) {
	for _, overlap := range []string{"true", "false"} {
		config := whereabouts(t, `"ipRanges": [{"range": "10.0.0.0/29"}, {"range": "10.0.0.0/29"}], "enable_overlapping_ranges": `+overlap)
		memory := NewMemory()
		for _, want := range [][]string{{"10.0.0.1/29", "10.0.0.2/29"}, {"10.0.0.3/29", "10.0.0.4/29"}, {"10.0.0.5/29", "10.0.0.6/29"}} {
			if got := allocate(t, memory, config, Owner(want[0]+"/net1")); !slices.Equal(got, want) {
				t.Errorf("overlap %s: got %v, want %v", overlap, got, want)
			}
		}
		if _, err := NewAllocator(memory).Allocate(t.Context(), config, "late/net1"); !errors.Is(err, ErrExhausted) || len(memory.Leases()) != 6 {
			t.Errorf("overlap %s: %v, held %v", overlap, err, held(memory))
		}
	}
}

// TestB11NoRange: no range is an error, not success without an address.
func TestB11NoRange(t *testing.T) {
	for _, keys := range []string{`{"type": "whereabouts"}`, `{"type": "whereabouts", "ipRanges": []}`, `{"type": "whereabouts", "range": ""}`} {
		_, err := get(t, keys, "", NewMemory())
		if err == nil || err.Error() != `ipam.range: no range is given; add "range": "10.1.2.0/24"` {
			t.Errorf("%s: %v", keys, err)
		}
	}
}
