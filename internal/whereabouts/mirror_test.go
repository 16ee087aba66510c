package whereabouts

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/ipam"
)

func lease(scope, addr, pool, podRef string) Lease {
	l := Lease{Scope: ipam.Scope(scope), Addr: netip.MustParseAddr(addr), PodRef: podRef, IfName: "net1", ContainerID: "c-" + podRef}
	if pool != "" {
		l.Pool = netip.MustParsePrefix(pool)
	}
	return l
}

// shown gives a mirror as text.
func shown(m Mirror) []string {
	var out []string
	for _, p := range m.Pools {
		var taken []string
		for offset, a := range p.Allocations {
			taken = append(taken, fmt.Sprintf("%s=%s/%s/%s", offset, a.PodRef, a.IfName, a.ContainerID))
		}
		slices.Sort(taken)
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s/%s %s %s %s", p.Namespace, p.Name, p.Range, strings.Join(taken, " "), p.Annotations[OmittedAnnotation])))
	}
	for _, r := range m.Reservations {
		out = append(out, fmt.Sprintf("%s/%s %s/%s", r.Namespace, r.Name, r.PodRef, r.IfName))
	}
	for _, l := range m.Unreadable {
		out = append(out, "unreadable "+l.Addr.String())
	}
	return out
}

func TestPlanMirror(t *testing.T) {
	for _, c := range []struct {
		name   string
		limit  int
		leases []Lease
		want   []string
	}{
		{name: "nothing"},
		{
			name: "pools and reservations",
			leases: []Lease{
				lease("whereabouts:", "10.0.0.7", "10.0.0.0/24", "default/b"), lease("whereabouts:", "10.0.0.1", "10.0.0.0/24", "default/a"),
				lease("whereabouts:blue", "10.0.0.1", "10.0.0.0/24", "default/c"), lease("whereabouts:", "::5", "::/126", "default/out"),
			},
			want: []string{
				"wb/10.0.0.0-24 10.0.0.0/24 1=default/a/net1/c-default/a 7=default/b/net1/c-default/b", "wb/blue-10.0.0.0-24 10.0.0.0/24 1=default/c/net1/c-default/c",
				"wb/0--5 default/out/net1", "wb/10.0.0.1 default/a/net1", "wb/10.0.0.7 default/b/net1", "wb/blue-10.0.0.1 default/c/net1",
			},
		},
		{
			name:   "with enable_overlapping_ranges off there are no reservations",
			leases: []Lease{lease("whereabouts:|10.0.0.0/24", "10.0.0.1", "", "default/a")},
			want:   []string{"wb/10.0.0.0-24 10.0.0.0/24 1=default/a/net1/c-default/a"},
		},
		{
			name: "others are not shown", leases: []Lease{lease("net:lan", "10.0.0.1", "10.0.0.0/24", "default/a")},
		},
		{
			name: "the lowest, up to the limit", limit: 2,
			leases: []Lease{
				lease("whereabouts:", "10.0.0.9", "10.0.0.0/24", "d/9"), lease("whereabouts:", "10.0.0.2", "10.0.0.0/24", "d/2"),
				lease("whereabouts:", "10.0.0.10", "10.0.0.0/24", "d/10"), lease("whereabouts:", "10.9.0.1", "10.9.0.0/24", "d/1"),
			},
			want: []string{
				"wb/10.0.0.0-24 10.0.0.0/24 2=d/2/net1/c-d/2 9=d/9/net1/c-d/9 1", "wb/10.9.0.0-24 10.9.0.0/24 1=d/1/net1/c-d/1",
				"wb/10.0.0.2 d/2/net1", "wb/10.0.0.9 d/9/net1", "wb/10.9.0.1 d/1/net1",
			},
		},
		{
			name: "what whereabouts cannot read is told (B3, B4)",
			leases: []Lease{
				lease("whereabouts:", "caa5::8000:0:0:1", "caa5::/64", "d/a"), lease("whereabouts:", "fd00:0:0:1::1", "fd00::/48", "d/b"),
			},
			want: []string{
				"wb/caa5---64 caa5::/64 9223372036854775809=d/a/net1/c-d/a", "wb/fd00---48 fd00::/48 18446744073709551617=d/b/net1/c-d/b",
				"wb/caa5--8000-0-0-1 d/a/net1", "wb/fd00-0-0-1--1 d/b/net1", "unreadable caa5::8000:0:0:1", "unreadable fd00:0:0:1::1",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := shown(PlanMirror(c.leases, MirrorOptions{Namespace: "wb", Limit: c.limit}))
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestOutAndInAgain: what is handed back to whereabouts, imported again, is what
// it was, for any addresses: migration loses nothing either way.
func TestOutAndInAgain(t *testing.T) {
	networks := []ipam.Network{
		network(t, "a", `"range": "10.0.0.0/24", "ipRanges": [{"range": "fd00::/48"}]`), network(t, "b", `"range": "10.0.0.0/16", "network_name": "blue"`),
		network(t, "c", `"range": "10.0.0.0/24", "network_name": "a-b", "enable_overlapping_ranges": false`), network(t, "d", `"range": "caa5::/64", "network_name": "fd00"`),
	}
	rapid.Check(t, func(t *rapid.T) {
		var leases []Lease
		pods := map[string]Pod{}
		seen := map[place]bool{}
		for i := range rapid.IntRange(0, 30).Draw(t, "leases") {
			n := rapid.SampledFrom(networks).Draw(t, "network")
			set := rapid.SampledFrom(n.Config.Sets).Draw(t, "set")
			subnet := set.Ranges[0].Subnet
			raw := subnet.Addr().AsSlice()
			for bit := subnet.Bits(); bit < len(raw)*8; bit++ {
				if rapid.Bool().Draw(t, "bit") {
					raw[bit/8] |= 1 << (7 - bit%8)
				}
			}
			addr, _ := netip.AddrFromSlice(raw)
			if seen[place{set.Scope, addr}] {
				continue
			}
			seen[place{set.Scope, addr}] = true
			l := Lease{Scope: set.Scope, Addr: addr, Pool: subnet, PodRef: fmt.Sprintf("d/p%d", i), IfName: "net1", ContainerID: fmt.Sprint("c", i), UID: fmt.Sprint("u", i), Node: "n"}
			pods[l.PodRef] = Pod{UID: l.UID, Node: l.Node}
			leases = append(leases, l)
		}
		slices.SortFunc(leases, compareLeases)
		mirror := PlanMirror(leases, MirrorOptions{Namespace: "wb"})
		facts := Facts{Networks: networks, Pods: pods}
		for _, p := range mirror.Pools {
			read, err := whereabouts.IPPoolFromObject(p.Object())
			if err != nil {
				t.Fatal(err)
			}
			read.Labels = nil // as whereabouts would have made it
			facts.Pools = append(facts.Pools, read)
		}
		for _, r := range mirror.Reservations {
			read, err := whereabouts.ReservationFromObject(r.Object())
			if err != nil {
				t.Fatal(err)
			}
			read.Labels = nil
			facts.Reservations = append(facts.Reservations, read)
		}
		plan := PlanImport(facts)
		for _, d := range plan.Disagreements {
			if !strings.Contains(d.Problem, "kept 64 bits") {
				t.Fatal(d)
			}
		}
		if diff := cmp.Diff(leases, plan.Leases, cmp.Comparer(func(a, b Lease) bool { return a == b })); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		if again := mirror.Changes(mirror.Pools, mirror.Reservations, false); !cmp.Equal(again, Changes{}) {
			t.Fatalf("a mirror that is there already changes: %+v", again)
		}
	})
}

// TestMirrorChanges: ours follow, others' stay, and are taken over on demand.
func TestMirrorChanges(t *testing.T) {
	mirror := PlanMirror([]Lease{
		lease("whereabouts:", "10.0.0.1", "10.0.0.0/24", "d/a"), lease("whereabouts:", "10.1.0.1", "10.1.0.0/24", "d/b"), lease("whereabouts:", "10.2.0.1", "10.2.0.0/24", "d/c"),
	}, MirrorOptions{Namespace: "wb"})
	mine := map[string]string{managedByLabel: managedBy}
	present := func() ([]*whereabouts.IPPool, []*whereabouts.Reservation) {
		stale, old, theirs := pool("10.1.0.0-24", "10.1.0.0/24", "9 c d/x net1"), pool("10.7.0.0-24", "10.7.0.0/24"), pool("10.2.0.0-24", "10.2.0.0/24", "3 c d/y net1")
		stale.Labels, stale.UID, stale.Revision, old.Labels = mine, "u7", "12", mine
		gone, changed, other := reserved("10.7.0.1", "d/x"), reserved("10.1.0.1", "d/x"), reserved("10.2.0.1", "d/y")
		gone.Labels, changed.Labels = mine, mine
		return []*whereabouts.IPPool{stale, old, theirs, pool("10.8.0.0-24", "10.8.0.0/24")}, []*whereabouts.Reservation{gone, changed, other, reserved("10.8.0.1", "d/z")}
	}
	text := func(c Changes) []string {
		var out []string
		name := func(verb string, objects []map[string]any) {
			for _, obj := range objects {
				m := obj["metadata"].(map[string]any)
				out = append(out, fmt.Sprintf("%s %s %s %v %v", verb, obj["kind"], m["name"], m["uid"], m["labels"].(map[string]any)[managedByLabel]))
			}
		}
		name("create", c.Create)
		name("update", c.Update)
		for _, p := range c.DeletePools {
			out = append(out, "delete IPPool "+p.Name)
		}
		for _, r := range c.DeleteReservations {
			out = append(out, "delete reservation "+r.Name)
		}
		for _, f := range c.Foreign {
			out = append(out, "foreign "+f)
		}
		return out
	}
	pools, reservations := present()
	want := []string{
		"create IPPool 10.0.0.0-24 <nil> weft", "create OverlappingRangeIPReservation 10.0.0.1 <nil> weft",
		"update IPPool 10.1.0.0-24 u7 weft", "update OverlappingRangeIPReservation 10.1.0.1 <nil> weft",
		"delete IPPool 10.7.0.0-24", "delete reservation 10.7.0.1",
		"foreign IPPool 10.2.0.0-24", "foreign IPPool 10.8.0.0-24", "foreign OverlappingRangeIPReservation 10.2.0.1", "foreign OverlappingRangeIPReservation 10.8.0.1",
	}
	if diff := cmp.Diff(want, text(mirror.Changes(pools, reservations, false))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	want = []string{
		"create IPPool 10.0.0.0-24 <nil> weft", "create OverlappingRangeIPReservation 10.0.0.1 <nil> weft",
		"update IPPool 10.1.0.0-24 u7 weft", "update IPPool 10.2.0.0-24 <nil> weft", "update OverlappingRangeIPReservation 10.1.0.1 <nil> weft", "update OverlappingRangeIPReservation 10.2.0.1 <nil> weft",
		"delete IPPool 10.7.0.0-24", "delete reservation 10.7.0.1", "foreign IPPool 10.8.0.0-24", "foreign OverlappingRangeIPReservation 10.8.0.1",
	}
	if diff := cmp.Diff(want, text(mirror.Changes(pools, reservations, true))); diff != "" {
		t.Errorf("adopting (-want +got):\n%s", diff)
	}
	again, _ := present()
	if diff := cmp.Diff(again[2].Labels, pools[2].Labels); diff != "" {
		t.Errorf("what was read has changed (-want +got):\n%s", diff)
	}
	for _, p := range pools {
		p.Labels = mine
	}
	if got := PlanImport(Facts{Pools: pools}); len(got.Leases) != 0 {
		t.Errorf("our own mirror was imported: %+v", got)
	}
}
