package whereabouts

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/ipam"
)

// taken is one entry of a pool: "OFFSET CONTAINER PODREF IFNAME".
func pool(name, r string, taken ...string) *whereabouts.IPPool {
	p := &whereabouts.IPPool{Meta: whereabouts.Meta{Name: name}, Range: r, Allocations: map[string]whereabouts.Allocation{}}
	for _, text := range taken {
		var offset string
		var a whereabouts.Allocation
		if _, err := fmt.Sscan(text, &offset, &a.ContainerID, &a.PodRef, &a.IfName); err != nil {
			panic(err)
		}
		p.Allocations[offset] = a
	}
	return p
}

func reserved(name, podRef string) *whereabouts.Reservation {
	return &whereabouts.Reservation{Meta: whereabouts.Meta{Name: name}, PodRef: podRef, IfName: "net1"}
}

func network(t *testing.T, name, keys string) ipam.Network {
	t.Helper()
	config, err := ipam.Parse([]byte(`{"name": "n", "ipam": {"type": "whereabouts", `+keys+`}}`), "")
	if err != nil {
		t.Fatal(err)
	}
	return ipam.Network{Name: name, Config: config}
}

// lines gives an import as text.
func lines(plan Import) (leases, told []string) {
	for _, l := range plan.Leases {
		leases = append(leases, fmt.Sprintf("%s %s %s of %s at %s on %s", l.Scope, l.Addr, l.PodRef, l.Pool, l.IfName+"/"+l.ContainerID, l.Node+"/"+l.UID))
	}
	for _, d := range plan.Disagreements {
		text := d.String()
		if d.Duplicate {
			text = "DUPLICATE " + text
		}
		told = append(told, text)
	}
	return leases, told
}

func TestPlanImport(t *testing.T) {
	lan := network(t, "default/lan", `"range": "10.0.0.0/24"`)
	blue := network(t, "default/blue", `"range": "10.0.0.0/24", "network_name": "blue"`)
	apart := network(t, "default/apart", `"range": "10.5.0.0/24", "enable_overlapping_ranges": false`)
	six := network(t, "default/six", `"range": "fd00::/48"`)
	upper := network(t, "default/upper", `"range": "caa5::/64"`)
	for _, c := range []struct {
		name   string
		facts  Facts
		leases []string
		told   []string
	}{
		{name: "nothing"},
		{
			name: "pool and reservation agree",
			facts: Facts{
				Networks: []ipam.Network{lan}, Pools: []*whereabouts.IPPool{pool("10.0.0.0-24", "10.0.0.0/24", "1 c1 default/a net1", "7 c2 default/b net2")},
				Reservations: []*whereabouts.Reservation{reserved("10.0.0.1", "default/a"), reserved("10.0.0.7", "default/b")},
			},
			leases: []string{"whereabouts: 10.0.0.1 default/a of 10.0.0.0/24 at net1/c1 on n1/ua", "whereabouts: 10.0.0.7 default/b of 10.0.0.0/24 at net1/c2 on n2/ub"},
		},
		{
			name: "one of the two is missing (B1, B13)",
			facts: Facts{
				Networks: []ipam.Network{lan}, Pools: []*whereabouts.IPPool{pool("10.0.0.0-24", "10.0.0.0/24", "1 c1 default/a net1")},
				Reservations: []*whereabouts.Reservation{reserved("10.0.0.2", "default/b")},
			},
			leases: []string{"whereabouts: 10.0.0.1 default/a of 10.0.0.0/24 at net1/c1 on n1/ua", "whereabouts: 10.0.0.2 default/b of 10.0.0.0/24 at net1/ on n2/ub"},
			told:   []string{"IPPool 10.0.0.0-24: 10.0.0.1 of default/a has no OverlappingRangeIPReservation", "OverlappingRangeIPReservation 10.0.0.2: 10.0.0.2 of default/b stands in no IPPool"},
		},
		{
			name: "two Pods have one address: the reservation's keeps it",
			facts: Facts{
				Networks: []ipam.Network{lan}, Pools: []*whereabouts.IPPool{pool("10.0.0.0-24", "10.0.0.0/24", "1 c1 default/a net1"), pool("10.0.0.0-16", "10.0.0.0/16", "1 c2 default/b net1")},
				Reservations: []*whereabouts.Reservation{reserved("10.0.0.1", "default/b")},
			},
			leases: []string{"whereabouts: 10.0.0.1 default/b of 10.0.0.0/16 at net1/c2 on n2/ub"},
			told:   []string{"DUPLICATE IPPool 10.0.0.0-24: 10.0.0.1 is held by default/a here and by default/b in OverlappingRangeIPReservation 10.0.0.1, which keeps it"},
		},
		{
			name: "of two, the one that is there keeps it",
			facts: Facts{
				Pools:        []*whereabouts.IPPool{pool("10.0.0.0-24", "10.0.0.0/24", "1 c1 default/a net1")},
				Reservations: []*whereabouts.Reservation{reserved("10.0.0.1", "default/gone")},
			},
			leases: []string{"whereabouts: 10.0.0.1 default/a of 10.0.0.0/24 at net1/c1 on n1/ua"},
			told:   []string{"DUPLICATE OverlappingRangeIPReservation 10.0.0.1: 10.0.0.1 is held by default/gone here and by default/a in IPPool 10.0.0.0-24, which keeps it"},
		},
		{
			name: "nobody is freed: gone, finished (B12), nameless",
			facts: Facts{
				Networks: []ipam.Network{apart}, Pools: []*whereabouts.IPPool{pool("10.5.0.0-24", "10.5.0.0/24", "1 c1 default/gone net1", "2 c2 default/done net1", "3 c3 nobody net1")},
			},
			leases: []string{
				"whereabouts:|10.5.0.0/24 10.5.0.1 default/gone of 10.5.0.0/24 at net1/c1 on /", "whereabouts:|10.5.0.0/24 10.5.0.2 default/done of 10.5.0.0/24 at net1/c2 on n1/ud",
				"whereabouts:|10.5.0.0/24 10.5.0.3 nobody of 10.5.0.0/24 at net1/c3 on /",
			},
			told: []string{
				"IPPool 10.5.0.0-24: 10.5.0.1 is held by default/gone, and there is no such Pod", "IPPool 10.5.0.0-24: 10.5.0.2 is held by default/done, which has finished",
				`IPPool 10.5.0.0-24: 10.5.0.3 is held by "nobody", which names no Pod`,
			},
		},
		{
			name: "network names (B6)",
			facts: Facts{
				Networks: []ipam.Network{lan, blue}, Pools: []*whereabouts.IPPool{pool("blue-10.0.0.0-24", "10.0.0.0/24", "1 c1 default/a net1")},
				Reservations: []*whereabouts.Reservation{reserved("blue-10.0.0.1", "default/a")},
			},
			leases: []string{"whereabouts:blue 10.0.0.1 default/a of 10.0.0.0/24 at net1/c1 on n1/ua"},
		},
		{
			name: "upper half of a /64 (B3), and a negative offset of old versions",
			facts: Facts{
				Networks: []ipam.Network{upper}, Pools: []*whereabouts.IPPool{pool("caa5---64", "caa5::/64", "9223372036854775809 c1 default/a net1", "-9223372036854775806 c2 default/b net1")},
				Reservations: []*whereabouts.Reservation{reserved("caa5--8000-0-0-1", "default/a"), reserved("caa5--8000-0-0-2", "default/b")},
			},
			leases: []string{"whereabouts: caa5::8000:0:0:1 default/a of caa5::/64 at net1/c1 on n1/ua", "whereabouts: caa5::8000:0:0:2 default/b of caa5::/64 at net1/c2 on n2/ub"},
		},
		{
			name: "an alias of a wide range (B4): the reservation tells, else it is told",
			facts: Facts{
				Networks: []ipam.Network{six}, Pools: []*whereabouts.IPPool{pool("fd00---48", "fd00::/48", "1 c1 default/a net1", "2 c2 default/b net1")},
				Reservations: []*whereabouts.Reservation{reserved("fd00-0-0-1--1", "default/a")},
			},
			leases: []string{"whereabouts: fd00::2 default/b of fd00::/48 at net1/c2 on n2/ub", "whereabouts: fd00:0:0:1::1 default/a of fd00::/48 at net1/c1 on n1/ua"},
			told: []string{
				"IPPool fd00---48: fd00::2 of default/b has no OverlappingRangeIPReservation",
				"IPPool fd00---48: fd00::2 of default/b may be another address of fd00::/48: whereabouts kept 64 bits of it, and no reservation tells the rest",
			},
		},
		{
			name: "slices of nodes are of the whole range",
			facts: Facts{
				Networks: []ipam.Network{lan}, SlicePools: []*whereabouts.NodeSlicePool{{Range: "10.0.0.0/24", Slices: []whereabouts.Slice{{Node: "n1", Range: "10.0.0.0/26"}, {Node: "", Range: "10.0.0.64/26"}}}},
				Pools:        []*whereabouts.IPPool{pool("n1-10.0.0.0-26", "10.0.0.0/26", "1 c1 default/a net1"), pool("gone-10.0.0.64-26", "10.0.0.64/26", "1 c2 default/b net1")},
				Reservations: []*whereabouts.Reservation{reserved("10.0.0.1", "default/a"), reserved("10.0.0.65", "default/b")},
			},
			leases: []string{
				"whereabouts: 10.0.0.1 default/a of 10.0.0.0/24 at net1/c1 on n1/ua", "whereabouts: 10.0.0.65 default/b of 10.0.0.0/24 at net1/c2 on n2/ub",
				"whereabouts:gone 10.0.0.65 default/b of 10.0.0.64/26 at net1/c2 on n2/ub",
			},
			told: []string{
				`IPPool gone-10.0.0.64-26: is of network or node "gone", and neither is known: its addresses are held with and without that network_name`,
				"IPPool gone-10.0.0.64-26: 10.0.0.65 of default/b has no OverlappingRangeIPReservation",
			},
		},
		{
			name: "slices of a named network",
			facts: Facts{
				Networks: []ipam.Network{blue}, SlicePools: []*whereabouts.NodeSlicePool{{Range: "10.0.0.0/24", Slices: []whereabouts.Slice{{Node: "n-1", Range: "10.0.0.0/26"}}}},
				Pools:        []*whereabouts.IPPool{pool("blue-n-1-10.0.0.0-26", "10.0.0.0/26", "1 c1 default/a net1")},
				Reservations: []*whereabouts.Reservation{reserved("blue-10.0.0.1", "default/a")},
			},
			leases: []string{"whereabouts:blue 10.0.0.1 default/a of 10.0.0.0/24 at net1/c1 on n1/ua"},
		},
		{
			name: "a reservation whose name means two addresses",
			facts: Facts{
				Networks:     []ipam.Network{network(t, "a", `"range": "1::/64", "network_name": "fd00"`)},
				Reservations: []*whereabouts.Reservation{reserved("fd00-1--1", "default/a")},
			},
			leases: []string{"whereabouts: fd00:1::1 default/a of invalid Prefix at net1/ on n1/ua", "whereabouts:fd00 1::1 default/a of 1::/64 at net1/ on n1/ua"},
			told: []string{
				"OverlappingRangeIPReservation fd00-1--1: of default/a may be any of [fd00:1::1 1::1 of network fd00]: each is held",
				"OverlappingRangeIPReservation fd00-1--1: 1::1 of default/a stands in no IPPool", "OverlappingRangeIPReservation fd00-1--1: fd00:1::1 of default/a stands in no IPPool",
			},
		},
		{
			name: "a pool tells which of the two it is",
			facts: Facts{
				Networks: []ipam.Network{network(t, "a", `"range": "1::/64", "network_name": "fd00"`)},
				Pools:    []*whereabouts.IPPool{pool("fd00-1---64", "1::/64", "1 c1 default/a net1")}, Reservations: []*whereabouts.Reservation{reserved("fd00-1--1", "default/a")},
			},
			leases: []string{"whereabouts:fd00 1::1 default/a of 1::/64 at net1/c1 on n1/ua"},
		},
		{
			name: "an interface with two addresses",
			facts: Facts{
				Networks: []ipam.Network{lan}, Pools: []*whereabouts.IPPool{pool("10.0.0.0-24", "10.0.0.0/24", "1 c1 default/a net1", "2 c2 default/a net1")},
				Reservations: []*whereabouts.Reservation{reserved("10.0.0.1", "default/a"), reserved("10.0.0.2", "default/a")},
			},
			leases: []string{"whereabouts: 10.0.0.1 default/a of 10.0.0.0/24 at net1/c1 on n1/ua", "whereabouts: 10.0.0.2 default/a of 10.0.0.0/24 at net1/c2 on n1/ua"},
			told:   []string{"Pod default/a: 10.0.0.2 and 10.0.0.1 of range 10.0.0.0/24 are both held for net1"},
		},
		{
			name: "what cannot be read is told",
			facts: Facts{
				Pools:        []*whereabouts.IPPool{pool("a", "10.0.0.0", "1 c1 default/a net1"), pool("b", "10.1.0.0/24", "300 c1 default/a net1", "1 c2 default/b net1"), pool("10.2.0.0-24", "10.2.0.0/24", "x c1 default/a net1")},
				Reservations: []*whereabouts.Reservation{reserved("zz", "default/a")},
			},
			leases: []string{"whereabouts: 10.1.0.1 default/b of 10.1.0.0/24 at net1/c2 on n2/ub"},
			told: []string{
				`IPPool 10.2.0.0-24: has an entry of default/a that is no address: offset "x" of 10.2.0.0/24 is no number`,
				`IPPool a: has the range "10.0.0.0", which is none: its 1 addresses are not known`,
				"IPPool b: has an entry of default/a that is no address: offset 300 is outside of 10.1.0.0/24",
				"IPPool b: is not named after its range 10.1.0.0/24, and taken as one of no network_name",
				"IPPool b: 10.1.0.1 of default/b has no OverlappingRangeIPReservation",
				"OverlappingRangeIPReservation zz: of default/a is not named after an address",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.facts.Pods = map[string]Pod{"default/a": {UID: "ua", Node: "n1"}, "default/b": {UID: "ub", Node: "n2"}, "default/done": {UID: "ud", Node: "n1", Finished: true}}
			leases, told := lines(PlanImport(c.facts))
			if diff := cmp.Diff(c.leases, leases); diff != "" {
				t.Errorf("leases (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.told, told); diff != "" {
				t.Errorf("told (-want +got):\n%s", diff)
			}
		})
	}
}

// TestB8Spelling: addresses are compared as what they are, however spelt.
func TestB8Spelling(t *testing.T) {
	plan := PlanImport(Facts{
		Networks:     []ipam.Network{network(t, "lan", `"range": "fd00:33:0:0::/64"`)},
		Pools:        []*whereabouts.IPPool{pool("fd00-33---64", "fd00:33:0:0:0:0:0:0/64", "1 c1 default/a net1")},
		Reservations: []*whereabouts.Reservation{reserved("fd00-33--1", "default/a")},
		Pods:         map[string]Pod{"default/a": {UID: "ua", Node: "n1"}},
	})
	want := Lease{
		Scope: "whereabouts:", Addr: netip.MustParseAddr("fd00:33::1"), Pool: netip.MustParsePrefix("fd00:33::/64"),
		PodRef: "default/a", IfName: "net1", ContainerID: "c1", UID: "ua", Node: "n1",
	}
	if len(plan.Leases) != 1 || plan.Leases[0] != want || len(plan.Disagreements) != 0 {
		t.Errorf("got %+v", plan)
	}
}
