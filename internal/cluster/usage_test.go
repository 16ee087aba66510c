package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
)

// told gives what AddressPools tell.
func (c *cluster) told() map[string]v1alpha1.AddressPoolStatus {
	c.t.Helper()
	list, _, err := c.List(context.Background(), poolKind, store.Selector{})
	if err != nil {
		c.t.Fatal(err)
	}
	out := map[string]v1alpha1.AddressPoolStatus{}
	for _, obj := range list {
		pool, err := v1alpha1.PoolFromObject(obj)
		if err != nil {
			c.t.Fatal(err)
		}
		out[pool.Name] = pool.Status
	}
	return out
}

// tells waits until AddressPools tell this, but for times and overlaps' texts.
func (c *cluster) tells(want map[string]v1alpha1.AddressPoolStatus) map[string]v1alpha1.AddressPoolStatus {
	c.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got := c.told()
		diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.IgnoreFields(v1alpha1.EndedAddress{}, "Since", "NodeGone", "Until"),
			cmpopts.IgnoreFields(v1alpha1.AddressPoolStatus{}, "Overlaps"))
		if diff == "" {
			return got
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("(-want +got):\n%s", diff)
		}
	}
}

func (c *cluster) network(namespace, name, ipam string) {
	c.t.Helper()
	c.make(networks.DefinitionKind, namespace, name, func(obj *store.Object) {
		obj.Object["spec"] = map[string]any{"config": `{"type":"bridge","bridge":"b","ipam":{` + ipam + `}}`}
	})
}

// TestAddressPools: how full ranges are stands in objects, which follow what is held
// and which networks there are, and are written only when something changed.
func TestAddressPools(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	const blue = `"type":"whereabouts","network_name":"blue","range":"10.0.0.0/29"`
	c.network("a", "lan", blue+`,"gateway":"10.0.0.1"`)
	c.network("b", "lan", blue+`,"gateway":"10.0.0.1"`)
	c.network("a", "wide", `"type":"whereabouts","range":"fd00::/64"`)
	c.network("a", "local", `"type":"host-local","subnet":"10.0.0.0/29"`)
	pod := c.pod("x", "n1")
	owner := v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: "x", UID: pod.GetUID()}
	c.leaseIn("whereabouts:blue", "10.0.0.2", "n1", owner)
	c.leaseIn("whereabouts:blue", "10.0.0.3", "n1", v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Namespace: "a", Name: "claim"})
	c.make(networks.ClaimKind, "a", "claim", nil)
	// One of an earlier time, of a network that is no more.
	c.make(poolKind, "", "192.0.2.0-24", nil)
	stop := c.control(c)
	lan := v1alpha1.AddressPoolStatus{
		Scope: "whereabouts:blue", Range: "10.0.0.0/29", Networks: []string{"a/lan", "b/lan"}, Size: 5, Used: 1, Reserved: 1, Free: 3, Full: 40,
	}
	wide := v1alpha1.AddressPoolStatus{
		Scope: "whereabouts:", Range: "fd00::/64", Networks: []string{"a/wide"}, Size: v1alpha1.MostCounted, Free: v1alpha1.MostCounted,
	}
	c.tells(map[string]v1alpha1.AddressPoolStatus{"blue-10.0.0.2-10.0.0.6": lan, "fd00---64": wide})
	revision := func() string {
		_, revision, err := c.List(t.Context(), poolKind, store.Selector{})
		if err != nil {
			t.Fatal(err)
		}
		return revision
	}
	since := revision()
	changes, err := c.Watch(t.Context(), poolKind, store.Selector{}, since)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * grace) // nothing happens meanwhile
	select {
	case event := <-changes:
		t.Errorf("nothing changed, and there was %s of %v", event.Type, event.Object.Object)
	default:
	}
	// A Pod ends on a node that is silent: that is told as well.
	c.pause.Store("n1", true)
	c.remove(podKind, "a", "x")
	c.remove(networks.DefinitionKind, "a", "wide")
	c.remove(networks.DefinitionKind, "b", "lan")
	lan.Networks = []string{"a/lan"}
	lan.Ended = []v1alpha1.EndedAddress{{IP: netip.MustParseAddr("10.0.0.2"), Owner: "Pod a/x", Node: "n1", Reason: "node-silent"}}
	got := c.tells(map[string]v1alpha1.AddressPoolStatus{"blue-10.0.0.2-10.0.0.6": lan})
	if is := got["blue-10.0.0.2-10.0.0.6"].Ended[0]; is.Since == nil || is.NodeGone != nil || is.Until != nil {
		t.Errorf("the times are %+v", is)
	}
	// Another leader goes on, and the node comes back.
	stop()
	c.control(c)
	c.pause.Delete("n1")
	lan.Used, lan.Free, lan.Full, lan.Ended = 0, 4, 20, nil
	c.tells(map[string]v1alpha1.AddressPoolStatus{"blue-10.0.0.2-10.0.0.6": lan})
	// Somebody deletes it.
	c.remove(poolKind, "", "blue-10.0.0.2-10.0.0.6")
	c.tells(map[string]v1alpha1.AddressPoolStatus{"blue-10.0.0.2-10.0.0.6": lan})
}

// TestOverlappingPoolsAreTold of both networks, once.
func TestOverlappingPoolsAreTold(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	c.network("a", "one", `"type":"whereabouts","range":"10.0.0.0/24"`)
	c.network("a", "two", `"type":"whereabouts","range":"10.0.0.0/16","enable_overlapping_ranges":false`)
	c.network("a", "apart", `"type":"whereabouts","range":"10.1.0.0/16"`)
	stop := c.control(c)
	want := map[string]v1alpha1.AddressPoolStatus{
		"10.0.0.0-24":             {Scope: "whereabouts:", Range: "10.0.0.0/24", Networks: []string{"a/one"}, Size: 254, Free: 254},
		"10.0.0.0-16.10.0.0.0-16": {Scope: "whereabouts:|10.0.0.0/16", Range: "10.0.0.0/16", Networks: []string{"a/two"}, Size: 65534, Free: 65534},
		"10.1.0.0-16":             {Scope: "whereabouts:", Range: "10.1.0.0/16", Networks: []string{"a/apart"}, Size: 65534, Free: 65534},
	}
	got := c.tells(want)
	for name, overlaps := range map[string]int{"10.0.0.0-24": 1, "10.0.0.0-16.10.0.0.0-16": 1, "10.1.0.0-16": 0} {
		if list := got[name].Overlaps; len(list) != overlaps || overlaps > 0 && !strings.Contains(list[0], `a/two: ipam "10.0.0.0/16": overlaps 10.0.0.0/24 of network a/one`) {
			t.Errorf("%s overlaps %q", name, list)
		}
	}
	stop()
	c.control(c) // another leader
	c.tells(want)
	var about []string
	for deadline := time.Now().Add(30 * time.Second); len(about) < 2 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		about = nil
		events, _, err := c.List(t.Context(), eventKind, store.Selector{})
		if err != nil {
			t.Fatal(err)
		}
		for _, event := range events {
			object, _ := event.Object["involvedObject"].(map[string]any)
			about = append(about, fmt.Sprint(object["kind"], " ", object["namespace"], "/", object["name"], " ", event.Object["reason"]))
			if object["uid"] == "" {
				t.Errorf("the event names no UID: %v", object)
			}
		}
	}
	slices.Sort(about)
	if wanted := []string{"NetworkAttachmentDefinition a/one OverlappingRanges", "NetworkAttachmentDefinition a/two OverlappingRanges"}; !slices.Equal(about, wanted) {
		t.Errorf("events: %q, want %q", about, wanted)
	}
}
