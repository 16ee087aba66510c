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
	got := Lock("wb", lease("whereabouts:blue", "2001:db8::1", "2001:db8::/64", "d/a")).Object()
	want := map[string]any{
		"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "OverlappingRangeIPReservation",
		"metadata": map[string]any{
			"namespace": "wb", "name": "blue-2001-db8--1", "finalizers": []any{"weft.network/address"}, "labels": map[string]any{"app.kubernetes.io/managed-by": "weft"},
		},
		"spec": map[string]any{"podref": "d/a", "ifname": "net1"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
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
