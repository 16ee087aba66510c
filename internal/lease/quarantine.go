package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
)

// An address that a stranger was found to use is in quarantine: its lease stays, with
// an owner that stands for nobody, so that no node gives it to anyone. The node that
// found the stranger gives it back later; if that node is gone, the controller does.
const (
	// QuarantineFor is how long it is. Who is given the address next asks again.
	QuarantineFor = 10 * time.Minute
	// mostOfOne is how many addresses one stranger can bring into quarantine on a node.
	// Beyond that it is no stranger with an address, but one that answers for all.
	mostOfOne = 8
)

// Quarantine takes an address from an attachment of this node, because the station
// with this MAC uses it, and sees to it that nobody is given it for a while.
func (s *Store) Quarantine(ctx context.Context, lease ipam.Lease, mac string) error {
	owner := ipam.QuarantineOwner(mac)
	s.mu.Lock()
	h, count := s.leases[keyOf(lease)], 0
	for _, other := range s.leases {
		if other.owner == owner && other.release == nil {
			count++
		}
	}
	s.mu.Unlock()
	if h == nil || h.owner != lease.Owner {
		return nil // given back meanwhile
	}
	if count >= mostOfOne {
		return &hint.Error{
			Field: "address", Value: lease.Addr.String(), Problem: fmt.Sprintf("is in use by %s, as are %d others of this network that this node tried", mac, count),
			Remedy: `find out who that is: a router with proxy ARP answers for all addresses; if that is meant, set "addressProbe": false in the network's ipam`,
		}
	}
	ctx, cancel := context.WithTimeout(ctx, takePatience)
	defer cancel()
	for {
		changed, err := s.putInQuarantine(ctx, lease, mac)
		switch {
		case err == nil:
			s.exchange(ctx, lease, owner, changed)
			return nil
		case errors.Is(err, store.ErrConflict):
			continue // somebody labelled it; ours reads it anew
		case errors.Is(err, store.ErrNotFound), errors.Is(err, ipam.ErrTaken): // somebody deleted it
			s.exchange(ctx, lease, "", nil)
			return nil
		}
		if _, refused := errors.AsType[*hint.Error](err); refused {
			return fmt.Errorf("put %s in quarantine: %w", lease.Addr, err)
		}
		return unanswered(err)
	}
}

// Shared says whether another Pod has an address as well, as in a migration.
func (s *Store) Shared(lease ipam.Lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.leases[keyOf(lease)]
	return h != nil && h.shared
}

func severalHold(obj *store.Object) bool {
	spec, _ := obj.Object["spec"].(map[string]any)
	holders, _ := spec["holders"].([]any)
	return len(holders) > 1
}

// putInQuarantine changes the object of a lease.
func (s *Store) putInQuarantine(ctx context.Context, lease ipam.Lease, mac string) (*store.Object, error) {
	read := s.ours
	if nodeless(lease.Owner) {
		read = s.untried
	}
	obj, err := read(ctx, lease)
	if err != nil {
		return nil, err
	}
	is, err := v1alpha1.LeaseFromObject(obj)
	if err != nil {
		return nil, err
	}
	is.Spec = v1alpha1.AddressLeaseSpec{
		IP: is.Spec.IP, Scope: is.Spec.Scope, Pool: is.Spec.Pool, Network: is.Spec.Network, Node: s.Node, Since: time.Now(),
		Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerQuarantine, Name: mac},
	}
	reserved := is.Labels[v1alpha1.ReservedLabel]
	is.Labels = labels(is.Spec)
	if reserved != "" {
		is.Labels[v1alpha1.ReservedLabel] = reserved
	}
	want := is.Object()
	want.SetUID(obj.GetUID())
	want.SetResourceVersion(obj.GetResourceVersion())
	return s.ask(ctx, func(ctx context.Context) (*store.Object, error) { return s.API.Update(ctx, want) })
}

// exchange has an address change its owner in memory; no new one: nobody has it.
func (s *Store) exchange(ctx context.Context, lease ipam.Lease, owner ipam.Owner, obj *store.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.leases, keyOf(lease))
	s.touchLocked(keyOf(lease))
	_ = s.memory.Release(ctx, lease) // of a map
	if obj == nil {
		return
	}
	lease.Owner = owner
	if s.memory.Hold(lease) == nil { // else somebody here tries to take it, and finds the object
		s.leases[keyOf(lease)] = &held{owner: owner, uid: obj.GetUID(), revision: obj.GetResourceVersion(), since: time.Now()}
	}
}

// sinceLocked notes when a lease that was listed came into quarantine; a clock that
// was wrong then keeps no address for longer.
func (s *Store) sinceLocked(lease ipam.Lease, since time.Time) {
	if h := s.leases[keyOf(lease)]; h != nil && h.owner == lease.Owner && !since.IsZero() {
		now := time.Now()
		since = now.Add(-max(0, now.Round(0).Sub(since))) // by the clock that does not jump from here on
		if h.since.IsZero() {
			h.since = since
		}
	}
}

// quarantined says whether an address must stay in quarantine.
func (s *Store) quarantined(lease ipam.Lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.leases[keyOf(lease)]
	return h != nil && time.Since(h.since) < QuarantineFor
}

// conflict tells of an address that an attachment here has, and another in the cluster:
// its lease was lost, and is somebody else's by now. It is tried at every sweep to take
// it, should that one end, and told now and then.
func (s *Store) conflict(ctx context.Context, lease ipam.Lease, users Users, cause error) {
	s.mu.Lock()
	again := false
	if h := s.leases[keyOf(lease)]; h != nil {
		if again = !h.told.IsZero() && time.Since(h.told) < listEvery; !again {
			h.told = time.Now()
		}
	}
	s.mu.Unlock()
	if again {
		return
	}
	box, a := users.UserOf(lease)
	if a == nil {
		return // it ended just now
	}
	s.Log.Error("an address that a Pod here has is another's in the cluster: delete one of the two", "address", lease.Addr, "pod", box.Pod.String(), "interface", a.Interface, "err", cause)
	obj, err := s.ask(ctx, func(ctx context.Context) (*store.Object, error) {
		return s.API.Get(ctx, v1alpha1.AddressLeaseKind, store.Key{Name: Name(lease.Scope, lease.Addr)})
	})
	if err != nil {
		return // the next look tells
	}
	if holder, err := v1alpha1.LeaseFromObject(obj); err == nil {
		users.Conflict(box, a, holder.Spec)
	}
}
