package lease

import (
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weftnet/weft/internal/ipam"
)

// TestName: the names are those of Whereabouts' reservations, where it has any.
func TestName(t *testing.T) {
	pool := netip.MustParsePrefix("10.0.0.0/24")
	for _, tt := range []struct {
		scope      ipam.Scope
		addr, want string
	}{
		{"whereabouts:", "10.0.0.5", "10.0.0.5"},
		{"whereabouts:", "2001::1", "2001--1"},
		{"whereabouts:", "2001:db9::", "2001-db9--0"},
		{"whereabouts:blue", "10.30.0.1", "blue-10.30.0.1"},
		{"whereabouts:", "::5", "0--5"},
		{"whereabouts:", "::", "0--0"},
		{ipam.WhereaboutsScope("", pool), "10.0.0.5", "10.0.0.0-24.10.0.0.5"},
		{ipam.WhereaboutsScope("blue", pool), "10.0.0.5", "blue-10.0.0.0-24.10.0.0.5"},
		{ipam.WhereaboutsScope("", netip.MustParsePrefix("::/126")), "::1", "0---126.0--1"},
		{"net:lan", "10.0.0.5", "net.lan-10.0.0.5"},
	} {
		if got := Name(tt.scope, netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("%s in %q is %s, want %s", tt.addr, tt.scope, got, tt.want)
		}
	}
	odd := map[string]bool{}
	for _, scope := range []ipam.Scope{"net:A b", "net:a b", "net:" + ipam.Scope(strings.Repeat("x", 300))} {
		name := Name(scope, netip.MustParseAddr("10.0.0.5"))
		if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 || odd[name] {
			t.Errorf("%q gives %q: %v", scope, name, problems)
		}
		odd[name] = true
	}
}

// TestPlaces: the n-th address of a range and how many it has, whatever its width.
func TestPlaces(t *testing.T) {
	span := func(first, last string) ipam.Span {
		return ipam.Span{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
	}
	for _, tt := range []struct {
		spans []ipam.Span
		size  uint64
		at    map[uint64]string
	}{
		{[]ipam.Span{span("10.0.0.1", "10.0.0.1")}, 1, map[uint64]string{0: "10.0.0.1"}},
		{[]ipam.Span{span("10.0.0.254", "10.0.1.1"), span("10.0.9.0", "10.0.9.1")}, 6, map[uint64]string{1: "10.0.0.255", 2: "10.0.1.0", 4: "10.0.9.0", 5: "10.0.9.1"}},
		{[]ipam.Span{span("0.0.0.0", "255.255.255.255")}, window, map[uint64]string{window - 1: "255.255.255.255"}},
		{[]ipam.Span{span("fd00::1", "fd00::ffff:ffff:ffff:ffff")}, window, map[uint64]string{0: "fd00::1", 1 << 31: "fd00::8000:1"}},
		{[]ipam.Span{span("fd00::ffff:ffff:ffff:fff0", "fd00::1:0:0:0:f")}, 32, map[uint64]string{15: "fd00::ffff:ffff:ffff:ffff", 16: "fd00:0:0:1::"}},
		{[]ipam.Span{span("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")}, window, map[uint64]string{0: "::"}},
		{nil, 0, nil},
	} {
		if got := sizeOf(tt.spans); got != tt.size {
			t.Errorf("%v has %d addresses, want %d", tt.spans, got, tt.size)
		}
		for offset, want := range tt.at {
			if got := nth(tt.spans, offset); got.String() != want {
				t.Errorf("address %d of %v is %s, want %s", offset, tt.spans, got, want)
			}
		}
	}
}
