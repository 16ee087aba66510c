package lease

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	api "github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/whereabouts"
)

// In mixed mode nodes with Whereabouts give addresses of the same ranges. What both
// sides look at before they use one is its OverlappingRangeIPReservation, so that is
// made first, with a finalizer of ours, and only then the lease:
//
//	reserve ─▶ is it in the IPPool? ─▶ lease ─▶ is the reservation still ours?
//
// A process that dies in between leaves a reservation without a lease. Of those
// weft-controller takes care, which cannot see that a process is only slow. So it
// marks a reservation before it looks for the lease the last time, and a process that
// has its lease and finds the mark takes it off by the revision, or is too late.
//
// On the way back the lease goes first: in between the address is nobody's, not twice
// somebody's. Addresses are taken from the far end of a range, for Whereabouts takes
// the lowest. No adviser is asked, who knows of leases only, and none are kept ahead.

var reservationKind = schema.FromAPIVersionAndKind(api.APIVersion, api.ReservationKind)

// locked is the reservation of an address; nil: none is needed.
type locked struct {
	key store.Key
	uid types.UID
	// others: another node may have made it, for the same claim.
	others bool
}

// besides gives where Whereabouts keeps its objects, if it gives addresses of a scope
// at the same time.
func (s *Store) besides(ctx context.Context, scope ipam.Scope) (namespace string, is bool, err error) {
	if _, _, theirs := ipam.ParseWhereaboutsScope(scope); !theirs || s.Giving == (store.Key{}) {
		return "", false, nil
	}
	giving, err := s.whoGives(ctx)
	return giving.Namespace, giving.By == whereabouts.Mixed, err
}

// lock reserves an address before its lease is made, if Whereabouts gives addresses of
// its range, too. The error is a TakenError if somebody has it.
func (t *taker) lock(ctx context.Context, lease ipam.Lease, pool string) (*locked, error) {
	namespace, mixed, err := t.besides(ctx, lease.Scope)
	if err != nil || !mixed {
		return nil, err
	}
	network, own, _ := ipam.ParseWhereaboutsScope(lease.Scope)
	if own.IsValid() {
		return nil, whereabouts.Unreserved(t.network, own.String())
	}
	if lease.Owner == t.nodeOwner() {
		return nil, &ipam.TakenError{Addr: lease.Addr} // a lease of before this mode
	}
	spec := t.spec(lease, pool)
	want := whereabouts.Lock(whereabouts.LockFor{
		Namespace: namespace, Name: Name(lease.Scope, lease.Addr), Owner: lease.Owner,
		Lease: whereabouts.Lease{
			Scope: lease.Scope, Addr: lease.Addr, IfName: spec.Interface, ContainerID: spec.Sandbox, Node: t.Node, PodRef: spec.Owner.Namespace + "/" + spec.Owner.Name,
		},
	})
	got, err := t.reserve(ctx, lease, want)
	if err != nil {
		return nil, err
	}
	have, err := t.inPool(ctx, namespace, network, pool)
	if err != nil {
		return got, err
	}
	if holder, is := have[lease.Addr]; is && holder.ContainerID != t.sandbox {
		t.learn(lease.Scope, pool, have)
		return got, &ipam.TakenError{Addr: lease.Addr, HolderName: "Whereabouts' IPPool for Pod " + holder.PodRef}
	}
	return got, nil
}

// reserve makes a reservation, or finds the one that was made when an answer was lost.
func (t *taker) reserve(ctx context.Context, lease ipam.Lease, want *api.Reservation) (*locked, error) {
	key := store.Key{Namespace: want.Namespace, Name: want.Name}
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		made, err := t.ask(ctx, func(ctx context.Context) (*store.Object, error) {
			return t.API.Create(ctx, &store.Object{Object: want.Object()})
		})
		if err == nil {
			return &locked{key: key, uid: made.GetUID()}, nil
		}
		if errors.Is(err, store.ErrExists) {
			var is *api.Reservation
			is, err = t.reservation(ctx, key)
			switch {
			case err == nil && whereabouts.LocksFor(is, lease.Owner):
				return &locked{key, types.UID(is.UID), nodeless(lease.Owner)}, nil
			case err == nil:
				return nil, &ipam.TakenError{Addr: lease.Addr, HolderName: "Whereabouts' reservation of Pod " + is.PodRef}
			case errors.Is(err, store.ErrNotFound):
				continue // it has just come free
			}
		}
		if _, refused := errors.AsType[*hint.Error](err); refused {
			t.forgetGiving() // it may be another by now
			return nil, fmt.Errorf("reserve %s beside Whereabouts: %w", lease.Addr, err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, unanswered(err)
		}
	}
}

// confirm sees to it that the reservation is still there when the lease is: as long as
// the lease is, weft-controller leaves it.
func (t *taker) confirm(ctx context.Context, lease ipam.Lease, l *locked) error {
	if l == nil {
		return nil
	}
	for {
		is, err := t.reservation(ctx, l.key)
		if errors.Is(err, store.ErrNotFound) || err == nil && (types.UID(is.UID) != l.uid || !whereabouts.LocksFor(is, lease.Owner)) {
			return unanswered(fmt.Errorf("the reservation of %s ended before there was a lease", lease.Addr))
		}
		if err == nil && whereabouts.Unleased(is) {
			_, err = t.ask(ctx, func(ctx context.Context) (*store.Object, error) {
				return t.API.Update(ctx, &store.Object{Object: whereabouts.MarkUnleased(is, false).Object()})
			})
		}
		if err == nil {
			return nil
		}
		if waitMore(ctx, err) != nil {
			return unanswered(err)
		}
	}
}

// waitMore waits until it is time to ask again. The error: it is of no use.
func waitMore(ctx context.Context, err error) error {
	if _, refused := errors.AsType[*hint.Error](err); refused {
		return err
	}
	select {
	case <-time.After(askAgain):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unlock gives the reservation of an address back whose lease is gone. Where Whereabouts
// does not give addresses any more, the controller does, with its mirror.
func (s *Store) unlock(ctx context.Context, lease ipam.Lease) error {
	namespace, mixed, err := s.besides(ctx, lease.Scope)
	network, own, _ := ipam.ParseWhereaboutsScope(lease.Scope)
	if err != nil || !mixed || own.IsValid() {
		return err
	}
	for {
		is, err := s.reservation(ctx, store.Key{Namespace: namespace, Name: api.ReservationName(network, lease.Addr)})
		if errors.Is(err, store.ErrNotFound) || err == nil && !whereabouts.LocksFor(is, lease.Owner) {
			return nil
		}
		if err == nil {
			err = Unreserve(ctx, s.API, is)
		}
		if _, refused := errors.AsType[*hint.Error](err); refused {
			s.Log.Error("the API server refuses that a reservation is given back; weft-controller does it later", "address", lease.Addr, "err", err)
			return nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

// Unreserve deletes a reservation as it was read, with our finalizer if it has that. One
// that is gone is success. The finalizer goes last: who dies before leaves a lock, which
// is looked after, and not a reservation that is nobody's.
func Unreserve(ctx context.Context, objects store.Store, r *api.Reservation) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	key := store.Key{Namespace: r.Namespace, Name: r.Name}
	if !r.Deleting {
		err := objects.Delete(ctx, reservationKind, key, store.Precondition{UID: types.UID(r.UID), Revision: r.Revision})
		if errors.Is(err, store.ErrNotFound) { // gone already
			return nil
		}
		if err != nil {
			return fmt.Errorf("delete reservation %s: %w", r.Name, err)
		}
	}
	if !whereabouts.Locks(r) {
		return nil
	}
	last := r
	if !r.Deleting {
		obj, err := objects.Get(ctx, reservationKind, key)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err == nil {
			last, err = api.ReservationFromObject(obj.Object)
		}
		if err == nil && (last.UID != r.UID || !maps.Equal(last.Annotations, r.Annotations)) { // it has its lease now
			err = store.ErrConflict
		}
		if err != nil {
			return fmt.Errorf("read reservation %s, which is to go: %w", r.Name, err)
		}
	}
	_, err := objects.Update(ctx, &store.Object{Object: whereabouts.Unlocked(last).Object()})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("unlock reservation %s: %w", r.Name, err)
	}
	return nil
}

func (s *Store) reservation(ctx context.Context, key store.Key) (*api.Reservation, error) {
	obj, err := s.ask(ctx, func(ctx context.Context) (*store.Object, error) { return s.API.Get(ctx, reservationKind, key) })
	if err != nil {
		return nil, err
	}
	return api.ReservationFromObject(obj.Object)
}

// inPool reads what Whereabouts' pool of a range holds. It is not always reserved, too.
func (s *Store) inPool(ctx context.Context, namespace, network, pool string) (map[netip.Addr]api.Allocation, error) {
	r, err := netip.ParsePrefix(pool)
	if err != nil {
		return nil, nil // a fixed address of none
	}
	key := store.Key{Namespace: namespace, Name: api.PoolName(network, "", r.Masked())}
	var obj *store.Object
	for {
		obj, err = s.ask(ctx, func(ctx context.Context) (*store.Object, error) { return s.API.Get(ctx, poolKind, key) })
		if errors.Is(err, store.ErrNotFound) {
			return nil, nil
		}
		if err == nil {
			break
		}
		if waitMore(ctx, err) != nil {
			return nil, unanswered(fmt.Errorf("read Whereabouts' pool of %s: %w", r, err))
		}
	}
	is, err := api.IPPoolFromObject(obj.Object)
	if err != nil {
		return nil, err
	}
	have := map[netip.Addr]api.Allocation{}
	for offset, holder := range is.Allocations {
		addr, _, err := api.AddrAt(r.Masked(), offset)
		if err == nil {
			have[addr] = holder
		}
	}
	return have, nil
}

// learn believes for a while that others hold addresses of a pool.
func (s *Store) learn(scope ipam.Scope, pool string, have map[netip.Addr]api.Allocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	others, now := s.othersLocked(scope), time.Now()
	for addr := range have {
		others[addr] = learned{when: now, pool: pool}
	}
}

// reserved reads which addresses of a range Whereabouts' objects hold; none, unless it
// gives addresses at the same time.
func (s *Store) reserved(ctx context.Context, scope ipam.Scope, r ipam.Range) (map[netip.Addr]api.Allocation, error) {
	namespace, mixed, err := s.besides(ctx, scope)
	if err != nil || !mixed {
		return nil, err
	}
	network, _, _ := ipam.ParseWhereaboutsScope(scope)
	have, err := s.inPool(ctx, namespace, network, r.Subnet.String())
	if err != nil {
		return nil, err
	}
	list, _, err := s.API.List(ctx, reservationKind, store.Selector{Namespace: namespace})
	if err != nil {
		return nil, unanswered(fmt.Errorf("read Whereabouts' reservations: %w", err))
	}
	if have == nil {
		have = map[netip.Addr]api.Allocation{}
	}
	for _, obj := range list {
		for _, named := range api.ParseReservationName(obj.GetName()) {
			if named.Network == network && r.Subnet.Contains(named.Addr) {
				have[named.Addr] = api.Allocation{}
			}
		}
	}
	return have, nil
}
