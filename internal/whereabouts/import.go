package whereabouts

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/ipam"
)

// Facts are what is known of a cluster when weft takes it over.
type Facts struct {
	Pools        []*whereabouts.IPPool
	Reservations []*whereabouts.Reservation
	SlicePools   []*whereabouts.NodeSlicePool
	// Networks are today's definitions with ipam of type whereabouts.
	Networks []ipam.Network
	// Pods by namespace/name.
	Pods map[string]Pod
}

// Pod is what an address's holder is known by.
type Pod struct {
	UID, Node string
	// Finished: all its containers have ended for good.
	Finished bool
}

// Import is what taking over comes to.
type Import struct {
	// Leases to create, by scope and address.
	Leases []Lease
	// Disagreements are for a person. Nothing is freed because of one.
	Disagreements []Disagreement
}

// Disagreement is one thing in whereabouts' objects that does not fit together.
type Disagreement struct {
	// Object is the kind and name of where it stands.
	Object string
	// Addr is what it is about; zero if no address could be read.
	Addr    netip.Addr
	Problem string
	// Duplicate: two Pods hold the address. Only the first has a lease.
	Duplicate bool
}

// String gives it as one line.
func (d Disagreement) String() string {
	if d.Addr.IsValid() {
		return fmt.Sprintf("%s: %s %s", d.Object, d.Addr, d.Problem)
	}
	return d.Object + ": " + d.Problem
}

// place is an address where it is held once.
type place struct {
	scope ipam.Scope
	addr  netip.Addr
}

// holding is one object's word that an address is taken.
type holding struct {
	Lease
	object string
	pool   bool // else a reservation
}

// importing is one PlanImport under way.
type importing struct {
	Facts
	found map[place][]holding
	out   Import
}

// PlanImport reads whereabouts' objects: every address that any of them says
// is taken becomes a lease of the Pod they name. An address whose network the
// names leave open is held in each it may be of.
func PlanImport(facts Facts) Import {
	i := importing{Facts: facts, found: map[place][]holding{}}
	for _, p := range facts.Pools {
		if !Ours(p.Meta) { // else it is our mirror, and the leases are there
			i.readPool(p)
		}
	}
	for _, r := range facts.Reservations {
		if !Ours(r.Meta) {
			i.readReservation(r)
		}
	}
	for _, at := range slices.SortedFunc(maps.Keys(i.found), func(a, b place) int {
		return compareLeases(Lease{Scope: a.scope, Addr: a.addr}, Lease{Scope: b.scope, Addr: b.addr})
	}) {
		i.settle(at)
	}
	i.findTwice()
	slices.SortStableFunc(i.out.Disagreements, func(a, b Disagreement) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), a.Addr.Compare(b.Addr), strings.Compare(a.Problem, b.Problem))
	})
	i.out.Disagreements = slices.Compact(i.out.Disagreements)
	return i.out
}

func (i *importing) disagree(object string, addr netip.Addr, format string, args ...any) {
	i.out.Disagreements = append(i.out.Disagreements, Disagreement{Object: object, Addr: addr, Problem: fmt.Sprintf(format, args...)})
}

func (i *importing) readPool(p *whereabouts.IPPool) {
	object := whereabouts.IPPoolKind + " " + p.Name
	r, err := netip.ParsePrefix(p.Range)
	if err != nil {
		i.disagree(object, netip.Addr{}, "has the range %q, which is none: its %d addresses are not known", p.Range, len(p.Allocations))
		return
	}
	networks := i.networksOf(object, p.Name, r)
	for _, offset := range slices.Sorted(maps.Keys(p.Allocations)) {
		entry := p.Allocations[offset]
		addr, exact, err := whereabouts.AddrAt(r, offset)
		if err != nil {
			i.disagree(object, netip.Addr{}, "has an entry of %s that is no address: %v", entry.PodRef, err)
			continue
		}
		if !exact {
			addr = i.exactly(object, r, addr, networks, entry)
		}
		for _, network := range networks {
			scope, pool := i.scopeOf(network, r)
			i.note(holding{
				Lease:  Lease{Scope: scope, Addr: addr, Pool: pool, PodRef: entry.PodRef, IfName: entry.IfName, ContainerID: entry.ContainerID},
				object: object, pool: true,
			})
		}
	}
}

// networksOf says of which networks a pool may be. Its name has a prefix that is
// a network, a node with a slice, or both.
func (i *importing) networksOf(object, name string, r netip.Prefix) []string {
	prefix, ok := whereabouts.PoolPrefix(name, r.Masked())
	if !ok {
		i.disagree(object, netip.Addr{}, "is not named after its range %s, and taken as one of no network_name", r)
		return []string{""}
	}
	if prefix == "" {
		return []string{""}
	}
	var out []string
	sliced := false
	if i.isNetwork(prefix) {
		out = append(out, prefix)
	}
	for _, s := range i.SlicePools {
		whole, err := netip.ParsePrefix(s.Range)
		if err != nil || !whole.Contains(r.Addr()) {
			continue
		}
		sliced = true
		for _, slice := range s.Slices {
			network, ok := strings.CutSuffix("-"+prefix, "-"+slice.Node)
			network = strings.TrimPrefix(network, "-")
			if ok && slice.Node != "" && (network == "" || i.isNetwork(network)) && !slices.Contains(out, network) {
				out = append(out, network)
			}
		}
	}
	switch {
	case len(out) == 0 && sliced: // the slice of a node that is gone, or a network that is
		out = []string{"", prefix}
		i.disagree(object, netip.Addr{}, "is of network or node %q, and neither is known: its addresses are held with and without that network_name", prefix)
	case len(out) == 0:
		out = []string{prefix}
	case len(out) > 1:
		i.disagree(object, netip.Addr{}, "may be of the networks %q: its addresses are held in each", out)
	}
	return out
}

// isNetwork says whether a definition has that network_name today.
func (i *importing) isNetwork(name string) bool {
	return slices.ContainsFunc(i.Networks, func(n ipam.Network) bool {
		return n.Config.StaticScope == ipam.WhereaboutsScope(name, netip.Prefix{})
	})
}

// scopeOf says where today's networks hold what whereabouts has in a pool of
// range r, and of which range it is there: that of a slice is the whole one.
func (i *importing) scopeOf(network string, r netip.Prefix) (ipam.Scope, netip.Prefix) {
	scope, pool := ipam.WhereaboutsScope(network, netip.Prefix{}), r.Masked()
	best := -1
	for _, n := range i.Networks {
		if n.Config.StaticScope != ipam.WhereaboutsScope(network, netip.Prefix{}) {
			continue
		}
		for _, set := range n.Config.Sets {
			subnet := set.Ranges[0].Subnet
			if subnet.Overlaps(r) && subnet.Bits() <= r.Bits() && subnet.Bits() > best {
				scope, pool, best = set.Scope, subnet, subnet.Bits()
			}
		}
	}
	return scope, pool
}

// exactly finds the address that an offset of a range wider than 64 bits means:
// a reservation of the same holder tells.
func (i *importing) exactly(object string, r netip.Prefix, addr netip.Addr, networks []string, entry whereabouts.Allocation) netip.Addr {
	for _, reservation := range i.Reservations {
		if reservation.PodRef != entry.PodRef || entry.IfName != "" && reservation.IfName != "" && entry.IfName != reservation.IfName {
			continue
		}
		for _, named := range whereabouts.ParseReservationName(reservation.Name) {
			if slices.Contains(networks, named.Network) && r.Contains(named.Addr) && whereabouts.SameOffset(named.Addr, addr) {
				return named.Addr
			}
		}
	}
	i.disagree(object, addr, "of %s may be another address of %s: whereabouts kept 64 bits of it, and no reservation tells the rest", entry.PodRef, r)
	return addr
}

func (i *importing) readReservation(r *whereabouts.Reservation) {
	object := whereabouts.ReservationKind + " " + r.Name
	all := whereabouts.ParseReservationName(r.Name)
	if len(all) == 0 {
		i.disagree(object, netip.Addr{}, "of %s is not named after an address", r.PodRef)
		return
	}
	match := func(fits func(whereabouts.Named) bool) {
		if kept := slices.DeleteFunc(slices.Clone(all), func(n whereabouts.Named) bool { return !fits(n) }); len(kept) > 0 {
			all = kept
		}
	}
	match(func(n whereabouts.Named) bool { // a pool says the same
		return slices.ContainsFunc(i.found[place{ipam.WhereaboutsScope(n.Network, netip.Prefix{}), n.Addr}], func(h holding) bool {
			return h.pool && h.PodRef == r.PodRef
		})
	})
	match(func(n whereabouts.Named) bool { return n.Network == "" || i.isNetwork(n.Network) })
	if len(all) > 1 {
		i.disagree(object, netip.Addr{}, "of %s may be any of %v: each is held", r.PodRef, all)
	}
	for _, n := range all {
		i.note(holding{
			Lease:  Lease{Scope: ipam.WhereaboutsScope(n.Network, netip.Prefix{}), Addr: n.Addr, PodRef: r.PodRef, IfName: r.IfName, ContainerID: r.ContainerID},
			object: object,
		})
	}
}

func (i *importing) note(h holding) {
	at := place{h.Scope, h.Addr}
	i.found[at] = append(i.found[at], h)
}
