package whereabouts

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/ipam"
)

const (
	// managedByLabel marks what weft writes; objects without it are others'.
	managedByLabel = "app.kubernetes.io/managed-by"
	managedBy      = "weft"
	// OmittedAnnotation is, on an IPPool of the mirror, the number of addresses
	// that are held and not listed.
	OmittedAnnotation = "weft.network/omitted"
)

// DefaultLimit is how many addresses a mirrored pool lists. At 12,000 an IPPool
// grows beyond what etcd takes in one request (1.5 MiB), and a change to one of
// 5,000 takes the API server a second already.
const DefaultLimit = 5000

// MirrorOptions say how leases are shown.
type MirrorOptions struct {
	Namespace string
	// Limit of addresses that a pool lists, the lowest; 0: none, for handing a
	// cluster back to whereabouts.
	Limit int
}

// Mirror is the objects that show weft's leases to who looks for whereabouts'.
// Nobody decides anything by them.
type Mirror struct {
	Pools        []*whereabouts.IPPool
	Reservations []*whereabouts.Reservation
	// Unreadable are leases of the pools that whereabouts itself would drop:
	// their offset in the range has more than 63 bits.
	Unreadable []Lease
}

// PlanMirror gives the objects whereabouts would have for these leases. Those of
// other ipam types are left out.
func PlanMirror(leases []Lease, opt MirrorOptions) Mirror {
	leases = slices.SortedFunc(slices.Values(leases), compareLeases)
	var out Mirror
	pools := map[string]*whereabouts.IPPool{}
	omitted := map[string]int{}
	for _, lease := range leases {
		network, own, ok := ipam.ParseWhereaboutsScope(lease.Scope)
		if !ok {
			continue
		}
		if pool := lease.poolIn(own); pool.IsValid() {
			name := whereabouts.PoolName(network, "", pool)
			if pools[name] == nil {
				pools[name] = &whereabouts.IPPool{Meta: opt.meta(name), Range: pool.String(), Allocations: map[string]whereabouts.Allocation{}}
			}
			if opt.Limit > 0 && len(pools[name].Allocations) >= opt.Limit {
				omitted[name]++
				continue
			}
			offset, err := whereabouts.Offset(pool, lease.Addr)
			if err != nil {
				continue // unreachable: poolIn contains the address
			}
			if !whereabouts.Readable(offset) {
				out.Unreadable = append(out.Unreadable, lease)
			}
			pools[name].Allocations[offset] = whereabouts.Allocation{ContainerID: lease.ContainerID, PodRef: lease.PodRef, IfName: lease.IfName}
		}
		if !own.IsValid() {
			out.Reservations = append(out.Reservations, &whereabouts.Reservation{
				Meta: opt.meta(whereabouts.ReservationName(network, lease.Addr)), PodRef: lease.PodRef, IfName: lease.IfName,
			})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(pools)) {
		if n := omitted[name]; n > 0 {
			pools[name].Annotations = map[string]string{OmittedAnnotation: strconv.Itoa(n)}
		}
		out.Pools = append(out.Pools, pools[name])
	}
	slices.SortFunc(out.Reservations, func(a, b *whereabouts.Reservation) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// poolIn is the pool that lists a lease; zero: none does.
func (l Lease) poolIn(own netip.Prefix) netip.Prefix {
	pool := l.Pool
	if !pool.IsValid() {
		pool = own
	}
	if !pool.Contains(l.Addr) {
		return netip.Prefix{} // a fixed address outside every range
	}
	return pool.Masked()
}

func (o MirrorOptions) meta(name string) whereabouts.Meta {
	return whereabouts.Meta{Namespace: o.Namespace, Name: name, Labels: Mine()}
}

// Changes lead from the objects there are to a mirror. Updates carry UID and
// revision of what was read.
type Changes struct {
	Create, Update []map[string]any
	// DeletePools and DeleteReservations are ours, and wanted no more.
	DeletePools        []*whereabouts.IPPool
	DeleteReservations []*whereabouts.Reservation
	// Foreign names objects that somebody else made and that stay as they are.
	Foreign []string
}

// Changes compares a mirror with what there is. adopt takes over objects that
// somebody else made, if the mirror has one of that name: right when everything
// of whereabouts is imported and it runs no more. Others are never deleted.
func (m Mirror) Changes(pools []*whereabouts.IPPool, reservations []*whereabouts.Reservation, adopt bool) Changes {
	var c Changes
	havePools := byName(pools, func(p *whereabouts.IPPool) string { return p.Name })
	for _, want := range m.Pools {
		have, ok := havePools[want.Name]
		delete(havePools, want.Name)
		switch {
		case !ok:
			c.Create = append(c.Create, want.Object())
		case !Ours(have.Meta) && !adopt:
			c.Foreign = append(c.Foreign, whereabouts.IPPoolKind+" "+have.Name)
		case !Ours(have.Meta) || have.Range != want.Range || !maps.Equal(have.Allocations, want.Allocations) ||
			have.Annotations[OmittedAnnotation] != want.Annotations[OmittedAnnotation]:
			changed := *have
			changed.Range, changed.Allocations, changed.Meta = want.Range, want.Allocations, marked(have.Meta, want.Meta)
			c.Update = append(c.Update, changed.Object())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(havePools)) {
		if p := havePools[name]; Ours(p.Meta) {
			c.DeletePools = append(c.DeletePools, p)
		} else {
			c.Foreign = append(c.Foreign, whereabouts.IPPoolKind+" "+name)
		}
	}
	m.changeReservations(&c, reservations, adopt)
	return c
}

func (m Mirror) changeReservations(c *Changes, reservations []*whereabouts.Reservation, adopt bool) {
	present := byName(reservations, func(r *whereabouts.Reservation) string { return r.Name })
	for _, want := range m.Reservations {
		have, ok := present[want.Name]
		delete(present, want.Name)
		switch {
		case !ok:
			c.Create = append(c.Create, want.Object())
		case !Ours(have.Meta) && !adopt:
			c.Foreign = append(c.Foreign, whereabouts.ReservationKind+" "+have.Name)
		case !Ours(have.Meta) || Locks(have) || have.PodRef != want.PodRef || have.IfName != want.IfName:
			changed := *Unlocked(have)
			changed.PodRef, changed.IfName, changed.Meta = want.PodRef, want.IfName, marked(changed.Meta, want.Meta)
			c.Update = append(c.Update, changed.Object())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(present)) {
		if r := present[name]; Ours(r.Meta) {
			c.DeleteReservations = append(c.DeleteReservations, r)
		} else {
			c.Foreign = append(c.Foreign, whereabouts.ReservationKind+" "+name)
		}
	}
}

func byName[T any](list []T, name func(T) string) map[string]T {
	out := make(map[string]T, len(list))
	for _, item := range list {
		out[name(item)] = item
	}
	return out
}

// Mine are the labels of what weft writes.
func Mine() map[string]string { return map[string]string{managedByLabel: managedBy} }

// Ours says whether weft made an object.
func Ours(m whereabouts.Meta) bool { return m.Labels[managedByLabel] == managedBy }

// marked gives what was read with the mirror's mark and count.
func marked(have, want whereabouts.Meta) whereabouts.Meta {
	have.Labels, have.Annotations = maps.Clone(have.Labels), maps.Clone(have.Annotations)
	if have.Labels == nil {
		have.Labels = map[string]string{}
	}
	have.Labels[managedByLabel] = managedBy
	delete(have.Annotations, OmittedAnnotation)
	if omitted := want.Annotations[OmittedAnnotation]; omitted != "" {
		if have.Annotations == nil {
			have.Annotations = map[string]string{}
		}
		have.Annotations[OmittedAnnotation] = omitted
	}
	return have
}
