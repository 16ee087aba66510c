package whereabouts

import (
	"errors"
	"fmt"

	"github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
)

// Finalizer keeps a reservation of ours from being deleted by nodes that still
// run whereabouts: those delete by name, whoever's it is, and one that is being
// deleted keeps its address from them all the same.
const Finalizer = "weft.network/address"

// Lock is the reservation weft makes before it uses an address of a range that
// nodes with whereabouts give addresses of, too: they look for it before they
// take one. That it can be created is the lock between the two.
func Lock(namespace string, lease Lease) *whereabouts.Reservation {
	network, _, _ := ipam.ParseWhereaboutsScope(lease.Scope)
	meta := MirrorOptions{Namespace: namespace}.meta(whereabouts.ReservationName(network, lease.Addr))
	meta.Finalizers = []string{Finalizer}
	return &whereabouts.Reservation{Meta: meta, PodRef: lease.PodRef, IfName: lease.IfName}
}

// MixedMode says of which networks weft and whereabouts can give addresses at the
// same time, on different nodes: nil, or why not. Without reservations only the
// pool keeps an address, and whereabouts changes that as a whole.
func MixedMode(networks []ipam.Network) error {
	errs := []error{ipam.OverlappingPools(networks)}
	for _, n := range networks {
		for _, set := range n.Config.Sets {
			if set.Scope == n.Config.StaticScope {
				continue
			}
			errs = append(errs, &hint.Error{
				Field: n.Name + ": ipam.enable_overlapping_ranges", Value: "false",
				Problem: fmt.Sprintf("nodes with Whereabouts make no reservations for %s, so weft on other nodes could give the same address", set.Ranges[0]),
				Remedy:  "turn it on for as long as both give addresses, or move all nodes of this network at once",
			})
		}
	}
	return errors.Join(errs...)
}
