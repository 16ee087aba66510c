package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/store"
	takeover "github.com/weftnet/weft/internal/whereabouts"
)

const (
	// mirrorEvery is how often Whereabouts' objects follow, at most.
	mirrorEvery = time.Second
	// restShare is how many times as long as a round took there is none: a change to a
	// pool of thousands of addresses costs the API server a second.
	restShare = 9
	// mirrorsAtOnce bounds the requests of a round.
	mirrorsAtOnce = 8
	// changesAtMost is after how many changes all is compared instead.
	changesAtMost = 10_000
)

// mirror shows weft's leases in Whereabouts' objects, while weft gives addresses.
// Nobody decides anything by them.
type mirror struct {
	*controller
	*state
	writer store.Store
	wake   chan struct{} // one: there is something to show

	// mu guards what follows. It is taken under that of the book.
	mu sync.Mutex
	// dirty are addresses whose leases changed, and pools the ranges of those; all: it
	// is not known which.
	dirty map[shown]bool
	pools map[inScope]bool
	all   bool
}

// shown is an address in its scope, and inScope a pool.
type (
	shown struct {
		scope string
		addr  netip.Addr
	}
	inScope struct{ scope, pool string }
)

func newMirror(c *controller, s *state, writer store.Store) *mirror {
	m := &mirror{controller: c, state: s, writer: writer, wake: make(chan struct{}, 1), all: true}
	m.reset()
	s.book.changed = m.changed
	return m
}

// String names the task.
func (*mirror) String() string { return "mirror of leases in Whereabouts' objects" }

func (m *mirror) reset() { m.dirty, m.pools = map[shown]bool{}, map[inScope]bool{} }

// changed takes note of a lease that came, changed or went.
func (m *mirror) changed(is *held) {
	if _, _, ok := ipam.ParseWhereaboutsScope(ipam.Scope(is.scope)); !ok {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all {
		return
	}
	m.dirty[shown{is.scope, is.addr}] = true
	m.pools[inScope{is.scope, is.where.Value().pool}] = true
	if len(m.dirty) > changesAtMost {
		m.all = true
		m.reset()
	}
	m.poke()
}

func (m *mirror) poke() {
	select {
	case m.wake <- struct{}{}:
	default: // it is awake
	}
}

// Run follows until ctx ends.
func (m *mirror) Run(ctx context.Context) error {
	told, compared := "", time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case <-time.After(mirrorEvery): // whoever gives addresses may have changed
		}
		giving := m.gives.Load()
		if giving == nil || giving.By != takeover.ByWeft || !m.book.Synced() {
			m.again(true)
			continue
		}
		if time.Since(compared) > m.Compare {
			m.again(true)
			compared = time.Now()
		}
		began := time.Now()
		err := m.round(ctx)
		if unserved(err) {
			err = nil // there is nothing to show it in
		}
		if err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			m.Log.Warn("Whereabouts' objects do not show what is leased; it is tried again", "err", err)
		}
		if err == nil {
			told = ""
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(mirrorEvery, min(restShare*time.Since(began), m.Compare))):
		}
	}
}

// again has all compared.
func (m *mirror) again(all bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = m.all || all
	if m.all {
		m.reset()
	}
}

// round shows what changed. What fails is compared again.
func (m *mirror) round(ctx context.Context) error {
	m.mu.Lock()
	dirty, pools, all := m.dirty, m.pools, m.all
	m.all = false
	m.reset()
	m.mu.Unlock()
	if len(dirty) == 0 && !all {
		return nil
	}
	var err error
	if all {
		err = m.compare(ctx)
	} else {
		err = m.follow(ctx, dirty, pools)
	}
	if err != nil && !unserved(err) {
		m.again(true)
	}
	return err
}

// options are how leases are shown.
func (c *controller) mirrorOptions() takeover.MirrorOptions {
	return takeover.MirrorOptions{Namespace: c.WhereaboutsNamespace, Limit: takeover.DefaultLimit}
}

// compare makes all objects what they should be.
func (m *mirror) compare(ctx context.Context) error {
	facts, err := m.objects(ctx, m.WhereaboutsNamespace)
	if err != nil {
		return err
	}
	leases := pick(m.book, func(is *held) (takeover.Lease, bool) { return is.shown(), true })
	plan := takeover.PlanMirror(leases, m.mirrorOptions())
	return change(ctx, m.writer, plan.Changes(facts.Pools, facts.Reservations, true))
}

// follow makes the objects of some leases what they should be.
func (m *mirror) follow(ctx context.Context, dirty map[shown]bool, pools map[inScope]bool) error {
	type both struct {
		lease takeover.Lease
		dirty bool
	}
	found := pick(m.book, func(is *held) (both, bool) {
		touched := dirty[shown{is.scope, is.addr}]
		if !touched && !pools[inScope{is.scope, is.where.Value().pool}] {
			return both{}, false
		}
		return both{is.shown(), touched}, true
	})
	var ofPools, ofDirty []takeover.Lease
	for _, is := range found {
		ofPools = append(ofPools, is.lease)
		if is.dirty {
			ofDirty = append(ofDirty, is.lease)
		}
	}
	plan := takeover.Mirror{
		Pools:        takeover.PlanMirror(ofPools, m.mirrorOptions()).Pools,
		Reservations: takeover.PlanMirror(ofDirty, m.mirrorOptions()).Reservations,
	}
	havePools, err := got(ctx, m.api, named{ipPoolKind, m.WhereaboutsNamespace, poolNames(pools)}, whereabouts.IPPoolFromObject)
	if err != nil {
		return err
	}
	haveReservations, err := got(ctx, m.api, named{reservationKind, m.WhereaboutsNamespace, reservationNames(dirty)}, whereabouts.ReservationFromObject)
	if err != nil {
		return err
	}
	return change(ctx, m.writer, plan.Changes(havePools, haveReservations, true))
}

// poolNames are those of the objects that list pools.
func poolNames(pools map[inScope]bool) map[string]bool {
	names := map[string]bool{}
	for at := range pools {
		network, own, _ := ipam.ParseWhereaboutsScope(ipam.Scope(at.scope))
		if pool, err := netip.ParsePrefix(at.pool); err == nil {
			own = pool
		}
		if own.IsValid() {
			names[whereabouts.PoolName(network, "", own.Masked())] = true
		}
	}
	return names
}

// reservationNames are those of the objects that reserve addresses.
func reservationNames(dirty map[shown]bool) map[string]bool {
	names := map[string]bool{}
	for at := range dirty {
		if network, own, _ := ipam.ParseWhereaboutsScope(ipam.Scope(at.scope)); !own.IsValid() {
			names[whereabouts.ReservationName(network, at.addr)] = true
		}
	}
	return names
}

// shown gives a lease as Whereabouts' objects show it.
func (is *held) shown() takeover.Lease {
	at := is.where.Value()
	pool, _ := netip.ParsePrefix(at.pool) // none is known
	return takeover.Lease{
		Scope: ipam.Scope(is.scope), Addr: is.addr, Pool: pool, IfName: at.ifName, ContainerID: is.sandbox, PodRef: podRef(is.owner.LeaseOwner),
	}
}

// podRef is how Whereabouts' objects name an owner: they know of Pods only.
func podRef(o v1alpha1.LeaseOwner) string { return cmp.Or(o.Namespace, o.Kind) + "/" + o.Name }

// change makes the changes to Whereabouts' objects. A conflict is somebody's who was
// faster: what is there now is compared again.
func change(ctx context.Context, writer store.Store, c takeover.Changes) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(mirrorsAtOnce)
	do := func(what string, f func(ctx context.Context) error) {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, askPatience)
			defer cancel()
			if err := f(ctx); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
	}
	for _, obj := range c.Create {
		do("create", func(ctx context.Context) error {
			_, err := writer.Create(ctx, &store.Object{Object: obj})
			return err
		})
	}
	for _, obj := range c.Update {
		do("update", func(ctx context.Context) error {
			_, err := writer.Update(ctx, &store.Object{Object: obj})
			return err
		})
	}
	for _, p := range c.DeletePools {
		do("delete", func(ctx context.Context) error {
			err := writer.Delete(ctx, ipPoolKind, store.Key{Namespace: p.Namespace, Name: p.Name}, store.Precondition{UID: types.UID(p.UID), Revision: p.Revision})
			if errors.Is(err, store.ErrNotFound) { // gone already
				return nil
			}
			return err
		})
	}
	for _, r := range c.DeleteReservations {
		do("delete", func(ctx context.Context) error { return lease.Unreserve(ctx, writer, r) })
	}
	return group.Wait()
}

// handBack makes Whereabouts' objects of all leases, as it would have made them.
func (b *beside) handBack(ctx context.Context) error {
	objs, _, err := b.api.List(ctx, leaseKind, store.Selector{})
	if err != nil {
		return fmt.Errorf("read leases: %w", err)
	}
	bound, err := b.bindings(ctx)
	if err != nil {
		return fmt.Errorf("read addresses of nodes: %w", err)
	}
	var leases []takeover.Lease
	for _, obj := range objs {
		is, err := v1alpha1.LeaseFromObject(obj)
		if err != nil {
			return err
		}
		is.Bind(bound[is.UID])
		pool, _ := netip.ParsePrefix(is.Spec.Pool) // none is known
		leases = append(leases, takeover.Lease{
			Scope: ipam.Scope(is.Spec.Scope), Addr: is.Spec.IP, Pool: pool, IfName: is.Spec.Interface, ContainerID: is.Spec.Sandbox, PodRef: podRef(is.Spec.Owner),
		})
	}
	options := b.mirrorOptions()
	options.Limit = 0
	plan := takeover.PlanMirror(leases, options)
	for {
		facts, err := b.objects(ctx, b.WhereaboutsNamespace)
		if err != nil {
			return err
		}
		changes := plan.Back(facts.Pools, facts.Reservations)
		if changes.None() {
			break
		}
		if err := change(ctx, b.writer, changes); err != nil {
			return fmt.Errorf("make Whereabouts' objects: %w", err)
		}
	}
	var lost []takeover.Disagreement
	for _, l := range plan.Unreadable {
		lost = append(lost, takeover.Disagreement{
			Object: "AddressLease " + lease.Name(l.Scope, l.Addr), Addr: l.Addr,
			Problem: "of " + l.PodRef + " is one that Whereabouts drops: its offset in the range has more than 63 bits",
		})
	}
	b.Log.Info("Whereabouts holds what was leased", "count", len(leases), "disagreements", len(lost))
	return b.report(ctx, lost)
}

// bindings reads which Pods have what nodes took ahead of them, by the leases' UIDs.
func (b *beside) bindings(ctx context.Context) (map[types.UID]v1alpha1.Binding, error) {
	objs, _, err := b.api.List(ctx, v1alpha1.NodeAddressesKind, store.Selector{})
	if err != nil && !unserved(err) {
		return nil, err
	}
	all := map[types.UID]v1alpha1.Binding{}
	for _, obj := range objs {
		told, err := v1alpha1.NodeAddressesFromObject(obj)
		if err != nil {
			return nil, err
		}
		for _, binding := range told.Spec.Bindings {
			all[binding.UID] = binding
		}
	}
	return all, nil
}

// named are objects to be read.
type named struct {
	kind      schema.GroupVersionKind
	namespace string
	names     map[string]bool
}

// got reads those of the named objects that are there.
func got[T any](ctx context.Context, api store.Store, which named, read func(map[string]any) (*T, error)) ([]*T, error) {
	names := slices.Collect(maps.Keys(which.names))
	all := make([]*T, len(names))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(mirrorsAtOnce)
	for i, name := range names {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, askPatience)
			defer cancel()
			obj, err := api.Get(ctx, which.kind, store.Key{Namespace: which.namespace, Name: name})
			if errors.Is(err, store.ErrNotFound) { // to be made
				return nil
			}
			if err != nil {
				return err
			}
			all[i], err = read(obj.Object)
			return err
		})
	}
	err := group.Wait()
	return slices.DeleteFunc(all, func(one *T) bool { return one == nil }), err
}
