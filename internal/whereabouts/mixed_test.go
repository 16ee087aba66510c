package whereabouts

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
)

// TestB13Lock: our reservation has whereabouts' name for the address, and stays
// when those who know no owners delete it.
func TestB13Lock(t *testing.T) {
	its := lease("whereabouts:blue", "2001:db8::1", "2001:db8::/64", "d/a")
	its.Node = "n1"
	made := Lock(LockFor{Namespace: "wb", Lease: its, Name: "blue-2001-db8--1", Owner: "box/net1"})
	got := made.Object()
	want := map[string]any{
		"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "OverlappingRangeIPReservation",
		"metadata": map[string]any{
			"namespace": "wb", "name": "blue-2001-db8--1", "finalizers": []any{"weft.network/address"}, "labels": map[string]any{"app.kubernetes.io/managed-by": "weft"},
			"annotations": map[string]any{"weft.network/node": "n1", "weft.network/lease": "blue-2001-db8--1", "weft.network/owner": "box/net1"},
		},
		"spec": map[string]any{"podref": "d/a@n1", "ifname": "net1", "containerid": "c-d/a"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !LocksFor(made, "box/net1") || LocksFor(made, "other/net1") || Unleased(made) || LockedLease(made) != "blue-2001-db8--1" {
		t.Errorf("it is read as another: %+v", made)
	}
	marked := MarkUnleased(made, true)
	if !Unleased(marked) || Unleased(made) || Unleased(MarkUnleased(marked, false)) || !LocksFor(marked, "box/net1") {
		t.Errorf("marked: %+v", marked)
	}
	if Locks(Unlocked(made)) || !Locks(made) {
		t.Error("unlocked is not")
	}
}

func TestMixedMode(t *testing.T) {
	on := network(t, "default/on", `"range": "10.0.0.0/24", "ipRanges": [{"range": "fd00::/64"}]`)
	sliced := network(t, "default/sliced", `"range": "10.1.0.0/16", "node_slice_size": "/24"`)
	off := network(t, "default/off", `"range": "10.5.0.0/24", "enable_overlapping_ranges": false`)
	both := network(t, "default/both", `"range": "10.0.0.0/16", "enable_overlapping_ranges": false`)
	for _, c := range []struct {
		name     string
		networks []ipam.Network
		want     []string
	}{
		{"with reservations", []ipam.Network{on, sliced}, nil},
		{"without", []ipam.Network{on, off}, []string{`default/off: ipam.enable_overlapping_ranges "false": nodes with Whereabouts make no reservations for 10.5.0.0/24`}},
		{"one of two that overlap", []ipam.Network{on, both}, []string{`default/both: ipam "10.0.0.0/16": overlaps 10.0.0.0/24 of network default/on`, "default/both: ipam.enable_overlapping_ranges"}},
	} {
		err := MixedMode(c.networks)
		if (err == nil) != (len(c.want) == 0) {
			t.Errorf("%s: %v", c.name, err)
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %s", c.name, err, want)
			}
		}
		if h, ok := errors.AsType[*hint.Error](err); err != nil && (!ok || h.Remedy == "") {
			t.Errorf("%s: no remedy: %v", c.name, err)
		}
	}
}
