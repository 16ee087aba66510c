package whereabouts

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/ipam"
)

// settle makes one lease of all that speaks of one address.
func (i *importing) settle(at place) {
	all := i.found[at]
	// The first one gets the lease: of a Pod that is there rather than of none,
	// and of what the reservation says, since that is whereabouts' lock.
	slices.SortStableFunc(all, func(a, b holding) int {
		return cmp.Or(
			-compareBools(i.lives(a), i.lives(b)), compareBools(a.pool, b.pool),
			strings.Compare(a.PodRef, b.PodRef), strings.Compare(a.object, b.object))
	})
	first := all[0]
	lease := first.Lease
	inPool, reserved := false, false
	for _, h := range all {
		inPool, reserved = inPool || h.pool, reserved || !h.pool
		if h.PodRef != first.PodRef {
			i.out.Disagreements = append(i.out.Disagreements, Disagreement{
				Object: h.object, Addr: at.addr, Duplicate: true,
				Problem: fmt.Sprintf("is held by %s here and by %s in %s, which keeps it", nobody(h.PodRef), nobody(first.PodRef), first.object),
			})
			continue
		}
		lease.IfName, lease.ContainerID = cmp.Or(lease.IfName, h.IfName), cmp.Or(lease.ContainerID, h.ContainerID)
		if !lease.Pool.IsValid() {
			lease.Pool = h.Pool
		}
	}
	switch _, pool, _ := ipam.ParseWhereaboutsScope(at.scope); {
	case !inPool:
		i.disagree(first.object, at.addr, "of %s stands in no IPPool", nobody(first.PodRef))
	case !reserved && !pool.IsValid():
		i.disagree(first.object, at.addr, "of %s has no OverlappingRangeIPReservation", nobody(first.PodRef))
	}
	if !lease.Pool.IsValid() {
		network, _, _ := ipam.ParseWhereaboutsScope(at.scope)
		lease.Pool = i.poolOf(network, lease)
	}
	pod, known := i.Pods[lease.PodRef]
	switch namespace, name, ok := strings.Cut(lease.PodRef, "/"); {
	case !ok || namespace == "" || name == "" || strings.Contains(name, "/"):
		i.disagree(first.object, at.addr, "is held by %q, which names no Pod", lease.PodRef)
	case !known:
		i.disagree(first.object, at.addr, "is held by %s, and there is no such Pod", lease.PodRef)
	case pod.Finished:
		i.disagree(first.object, at.addr, "is held by %s, which has finished", lease.PodRef)
	}
	lease.UID, lease.Node = pod.UID, pod.Node
	i.out.Leases = append(i.out.Leases, lease)
}

// poolOf finds the range of today's networks an address is in.
func (i *importing) poolOf(network string, lease Lease) (pool netip.Prefix) {
	for _, n := range i.Networks {
		if n.Config.StaticScope != ipam.WhereaboutsScope(network, netip.Prefix{}) {
			continue
		}
		for _, set := range n.Config.Sets {
			subnet := set.Ranges[0].Subnet
			if subnet.Contains(lease.Addr) && (!pool.IsValid() || subnet.Bits() > pool.Bits()) {
				pool = subnet
			}
		}
	}
	return pool
}

// findTwice tells of interfaces that hold two addresses of one range: one of
// them is mostly left from an earlier sandbox of a Pod of that name.
func (i *importing) findTwice() {
	type nic struct{ scope, pool, pod, ifName string }
	first := map[nic]Lease{}
	for _, lease := range i.out.Leases {
		key := nic{string(lease.Scope), lease.Pool.String(), lease.PodRef, lease.IfName}
		if lease.IfName == "" || !lease.Pool.IsValid() {
			continue
		}
		if other, twice := first[key]; twice {
			i.disagree("Pod "+lease.PodRef, lease.Addr, "and %s of range %s are both held for %s", other.Addr, lease.Pool, lease.IfName)
			continue
		}
		first[key] = lease
	}
}

func (i *importing) lives(h holding) bool {
	pod, ok := i.Pods[h.PodRef]
	return ok && !pod.Finished
}

func nobody(podRef string) string { return cmp.Or(podRef, "nobody") }

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
