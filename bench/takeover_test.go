package bench

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/ipam"
	takeover "github.com/weftnet/weft/internal/whereabouts"
)

// takenOver is a cluster that the real Whereabouts gives addresses in.
type takenOver struct {
	*whereaboutsPlugin
	t   *testing.T
	api *kubeAPI
	// networks there are, and the ipam keys of each by its name.
	networks []ipam.Network
	keys     map[string]string
}

// TestTakeover: what the real Whereabouts gave on a real API server is imported,
// every address with its holder; and what is written back as its objects, it goes
// on with: it gives none of them, and frees them when their Pods end.
func TestTakeover(t *testing.T) {
	api := newKubeAPI(t)
	c := &takenOver{whereaboutsPlugin: newWhereaboutsPlugin(t, api), t: t, api: api, keys: map[string]string{}}
	for _, n := range [][2]string{
		{"lan", `"range": "10.0.0.0/24", "exclude": ["10.0.0.2"]`},
		{"wide", `"range": "10.0.0.0/16"`},
		{"blue", `"range": "10.0.0.0/24", "network_name": "blue-1"`},
		{"apart", `"range": "10.5.0.0/28", "enable_overlapping_ranges": false`},
		{"dual", `"range": "10.7.0.10-10.7.0.20/24", "ipRanges": [{"range": "fd00::/64"}]`},
		{"upper", `"range": "caa5::/64", "range_start": "caa5::8000:0:0:1"`},
	} {
		c.network(n[0], n[1])
	}
	var want []string
	pods := map[string]takeover.Pod{}
	for i, network := range []string{"lan", "lan", "wide", "blue", "blue", "apart", "dual", "dual", "upper"} {
		pod := fmt.Sprint("p", i)
		pods[podsNamespace+"/"+pod] = takeover.Pod{UID: "u-" + pod, Node: "n1"}
		for _, a := range c.give(network, pod) {
			want = append(want, fmt.Sprintf("%s %s/%s box-%s net1 u-%s", a.Addr(), podsNamespace, pod, pod, pod))
		}
	}
	in := c.read(pods)
	for _, d := range in.Disagreements {
		t.Error(d)
	}
	slices.Sort(want)
	got := leasesText(in.Leases)
	if !slices.Equal(got, want) {
		t.Fatalf("imported %q\nwant     %q", got, want)
	}

	// Weft gave one more meanwhile; then the cluster is handed back.
	ours := takeover.Lease{
		Scope: ipam.WhereaboutsScope("", netip.Prefix{}), Addr: netip.MustParseAddr("10.0.0.5"), Pool: netip.MustParsePrefix("10.0.0.0/24"),
		PodRef: podsNamespace + "/ours", IfName: "net1", ContainerID: "box-ours", UID: "u-ours", Node: "n1",
	}
	pods[ours.PodRef] = takeover.Pod{UID: ours.UID, Node: ours.Node}
	for _, kind := range []string{"ippools", "overlappingrangeipreservations"} {
		c.api.must(http.MethodDelete, whereaboutsPath+kind, nil)
	}
	mirror := takeover.PlanMirror(append(in.Leases, ours), takeover.MirrorOptions{Namespace: whereaboutsNamespace})
	if len(mirror.Unreadable) != 1 || mirror.Unreadable[0].Addr != netip.MustParseAddr("caa5::8000:0:0:1") {
		t.Errorf("unreadable: %v", mirror.Unreadable)
	}
	for _, obj := range mirror.Changes(nil, nil, false).Create {
		kind := strings.ToLower(obj["kind"].(string)) + "s"
		c.api.must(http.MethodPost, whereaboutsPath+kind, obj)
	}
	for _, step := range []struct{ ends, starts, network, gets string }{
		{"", "new1", "lan", "10.0.0.4/24"},     // .1 to .3 are held, and .5
		{"ours", "new2", "lan", "10.0.0.5/24"}, // what weft gave comes free
		{"p0", "new3", "wide", "10.0.0.1/16"},  // of another range, by the reservation
		{"p3", "new4", "blue", "10.0.0.1/24"},  // a network_name for itself
		{"p5", "new5", "apart", "10.5.0.1/28"}, // without reservations
		{"p6", "new6", "dual", "10.7.0.10/24"}, // both families
	} {
		if step.ends != "" {
			c.takeBack(map[string]string{"ours": "lan", "p0": "lan", "p3": "blue", "p5": "apart", "p6": "dual"}[step.ends], step.ends)
		}
		if got := c.give(step.network, step.starts); got[0].String() != step.gets {
			t.Errorf("%s on %s after %q has ended: %v, want %s", step.starts, step.network, step.ends, got, step.gets)
		}
		pods[podsNamespace+"/"+step.starts] = takeover.Pod{UID: "u-" + step.starts, Node: "n1"}
	}
	again := c.read(pods)
	for _, d := range again.Disagreements {
		t.Errorf("after the way back: %s", d)
	}
	held := map[netip.Addr]bool{}
	for _, l := range again.Leases {
		held[l.Addr] = true
		if slices.Contains([]string{"ours", "p0", "p3", "p5", "p6"}, strings.TrimPrefix(l.PodRef, podsNamespace+"/")) {
			t.Errorf("%s is still held by %s", l.Addr, l.PodRef)
		}
	}
	if len(again.Leases) != len(in.Leases)+2 || !held[netip.MustParseAddr("10.0.0.4")] {
		t.Errorf("held after the way back: %q", leasesText(again.Leases))
	}
}

func leasesText(leases []takeover.Lease) []string {
	var out []string
	for _, l := range leases {
		out = append(out, fmt.Sprintf("%s %s %s %s %s", l.Addr, l.PodRef, l.ContainerID, l.IfName, l.UID))
	}
	slices.Sort(out)
	return out
}

func (c *takenOver) network(name, keys string) {
	c.t.Helper()
	config, err := ipam.Parse([]byte(`{"name": "n", "ipam": {"type": "whereabouts", `+keys+`}}`), "")
	if err != nil {
		c.t.Fatal(err)
	}
	c.networks = append(c.networks, ipam.Network{Name: name, Config: config})
	c.keys[name] = keys
}

// read imports the objects there are now.
func (c *takenOver) read(pods map[string]takeover.Pod) takeover.Import {
	c.t.Helper()
	facts := takeover.Facts{Networks: c.networks, Pods: pods}
	for _, obj := range c.list("ippools") {
		pool, err := whereabouts.IPPoolFromObject(obj)
		if err != nil {
			c.t.Fatal(err)
		}
		pool.Labels = nil // those we handed back are Whereabouts' again
		facts.Pools = append(facts.Pools, pool)
	}
	for _, obj := range c.list("overlappingrangeipreservations") {
		r, err := whereabouts.ReservationFromObject(obj)
		if err != nil {
			c.t.Fatal(err)
		}
		r.Labels = nil
		facts.Reservations = append(facts.Reservations, r)
	}
	return takeover.PlanImport(facts)
}

func (c *takenOver) list(kind string) []object {
	c.t.Helper()
	var list struct{ Items []object }
	if err := json.Unmarshal(c.api.must(http.MethodGet, whereaboutsPath+kind, nil), &list); err != nil {
		c.t.Fatal(err)
	}
	return list.Items
}

func (c *takenOver) give(network, pod string) []netip.Prefix {
	c.t.Helper()
	addresses, err := c.add(c.t.Context(), c.keys[network], pod)
	if err != nil {
		c.t.Fatal(err)
	}
	return addresses
}

func (c *takenOver) takeBack(network, pod string) {
	c.t.Helper()
	if _, err := c.call(c.t.Context(), "DEL", c.keys[network], pod); err != nil {
		c.t.Fatal(err)
	}
}
