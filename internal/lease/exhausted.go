package lease

import (
	"maps"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
)

// countLocked notes who holds the addresses of a range, of a reading of its subnet's
// leases: for the error of one who gets none.
func (s *Store) countLocked(scope ipam.Scope, r ipam.Range, list []*store.Object) {
	by := map[string]int{}
	for _, obj := range list {
		lease, err := v1alpha1.LeaseFromObject(obj)
		if err == nil && lease.Spec.Scope == string(scope) && r.Contains(lease.Spec.IP) {
			by[groupOf(lease.Spec.Owner)]++
		}
	}
	s.counts[walkKey{scope, r.Key()}] = by
}

// groupOf is what people call the likes of an owner.
func groupOf(o v1alpha1.LeaseOwner) string {
	switch o.Kind {
	case v1alpha1.OwnerQuarantine:
		return "strangers"
	case v1alpha1.OwnerNIC:
		return ipam.Group("VM NIC", o.Namespace)
	case v1alpha1.OwnerNode:
		return "nodes for their Pods"
	}
	return ipam.Group(o.Kind, o.Namespace)
}

// exhausted says who holds the addresses of a range that has none left.
func (s *Store) exhausted(scope ipam.Scope, r ipam.Range) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	walk := walkKey{scope, r.Key()}
	err := &ipam.ExhaustedError{By: maps.Clone(s.counts[walk])}
	for _, is := range s.silent[walk] {
		err.Silent = append(err.Silent, ipam.Silent{Node: is.Node, Count: is.Count})
	}
	return err
}
