package whereabouts

import (
	"maps"
	"slices"

	"github.com/weftnet/weft/api/whereabouts"
)

// Back compares a mirror with what there is, as Changes does, to make Whereabouts'
// own objects of it: nothing tells any more that weft made them, and nothing of
// weft's keeps them. It is done when there are no changes; a reservation that
// somebody has deleted meanwhile takes two turns.
func (m Mirror) Back(pools []*whereabouts.IPPool, reservations []*whereabouts.Reservation) Changes {
	var c Changes
	havePools := byName(pools, func(p *whereabouts.IPPool) string { return p.Name })
	for _, want := range m.Pools {
		have := havePools[want.Name]
		delete(havePools, want.Name)
		next := *want
		if have != nil {
			next.Meta = have.Meta
		}
		next.Meta = unmarked(next.Meta)
		switch {
		case have == nil:
			c.Create = append(c.Create, next.Object())
		case Ours(have.Meta) || have.Range != want.Range || !maps.Equal(have.Allocations, want.Allocations):
			c.Update = append(c.Update, next.Object())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(havePools)) {
		if Ours(havePools[name].Meta) {
			c.DeletePools = append(c.DeletePools, havePools[name])
		}
	}
	present := byName(reservations, func(r *whereabouts.Reservation) string { return r.Name })
	for _, want := range m.Reservations {
		have := present[want.Name]
		delete(present, want.Name)
		next := *want
		if have != nil {
			next.Meta = have.Meta
		}
		next.Meta = unmarked(next.Meta)
		switch {
		case have == nil:
			c.Create = append(c.Create, next.Object())
		case Ours(have.Meta) || slices.Contains(have.Finalizers, Finalizer) || have.PodRef != want.PodRef || have.IfName != want.IfName:
			c.Update = append(c.Update, next.Object())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(present)) {
		if Ours(present[name].Meta) {
			c.DeleteReservations = append(c.DeleteReservations, present[name])
		}
	}
	return c
}

// None says whether there is nothing to be changed.
func (c Changes) None() bool {
	return len(c.Create)+len(c.Update)+len(c.DeletePools)+len(c.DeleteReservations) == 0
}

// unmarked gives what was read without what weft put there.
func unmarked(m whereabouts.Meta) whereabouts.Meta {
	m.Labels, m.Annotations = maps.Clone(m.Labels), maps.Clone(m.Annotations)
	delete(m.Labels, managedByLabel)
	for _, name := range []string{OmittedAnnotation, NodeAnnotation, leaseAnnotation, ownerAnnotation, unleasedAnnotation} {
		delete(m.Annotations, name)
	}
	m.Finalizers = slices.DeleteFunc(slices.Clone(m.Finalizers), func(name string) bool { return name == Finalizer })
	return m
}
