package lease

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// Users says who uses addresses on this node.
type Users interface {
	// IfUnused calls then, and says so, unless an attachment has an address or is
	// taking it; none begins to meanwhile. UserOf gives the one that has it; nil, if
	// that is not at rest.
	IfUnused(lease ipam.Lease, then func()) bool
	UserOf(lease ipam.Lease) (*record.Sandbox, *record.Attachment)
	// Alive says whether the container runtime has a sandbox. An error: that is not
	// known now.
	Alive(ctx context.Context, sandbox string) (bool, error)
	// Conflict is told, now and then, of an attachment whose address is another's in the
	// cluster. It must not wait.
	Conflict(box *record.Sandbox, a *record.Attachment, holder v1alpha1.AddressLeaseSpec)
	// Sandboxes are those that the container runtime has.
	Sandboxes(ctx context.Context) (map[string]bool, error)
}

// How often things are looked at.
const (
	// sweepEvery is how often leases are compared with their users, in memory, and
	// unusedFor how long nobody must use one that is given back.
	sweepEvery, unusedFor = 10 * time.Second, 10 * time.Second
	// listEvery is how often the API server is asked what this node holds, for what
	// nobody can know of; jitter comes on top, lest all nodes ask at once.
	listEvery = 10 * time.Minute
	// After an answer was lost it is asked doubtEvery for doubtFor: the request may yet
	// take effect, until the API server ends it (--request-timeout, a minute).
	doubtEvery, doubtFor = 30 * time.Second, 2 * time.Minute
	// retryPause is between tries while the API server is away.
	retryPause = time.Second
	// unservedFor is how long a kind that is not served is taken to be so, when an
	// attachment asks, and unservedPause while none does.
	unservedFor, unservedPause = 10 * time.Second, time.Minute
)

// unserved says that the API server has no such kind, as store/kube tells it.
func unserved(err error) bool {
	h, ok := errors.AsType[*hint.Error](err)
	return ok && h.Field == "kind"
}

// Sync reads which leases this node has, and takes those up that it does not know.
func (s *Store) Sync(ctx context.Context) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, takePatience)
	defer cancel()
	if err := s.syncOurs(ctx); err != nil {
		return err
	}
	return s.syncClaimed(ctx)
}

// syncOurs reads the leases that belong to this node.
func (s *Store) syncOurs(ctx context.Context) error {
	s.mu.Lock()
	s.touched = map[key]bool{}
	s.mu.Unlock()
	list, _, err := s.API.List(ctx, v1alpha1.AddressLeaseKind, store.Selector{Labels: map[string]string{v1alpha1.NodeLabel: label(s.Node)}})
	var superseded []ipam.Owner
	defer func() {
		for _, owner := range superseded {
			s.write(owner)
		}
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	touched := s.touched
	s.touched = nil
	if unserved(err) && !s.synced {
		s.askedAt = time.Now()
		return nil
	}
	if err != nil {
		return fmt.Errorf("list address leases of node %s: %w", s.Node, err)
	}
	s.synced = true
	there := map[key]bool{}
	for _, obj := range list {
		found, err := v1alpha1.LeaseFromObject(obj)
		if err != nil {
			s.Log.Error("an address lease cannot be read", "err", err)
			continue
		}
		lease := ipam.Lease{Scope: ipam.Scope(found.Spec.Scope), Addr: found.Spec.IP, Owner: ownerOf(found.Spec)}
		if found.Spec.Node == s.Node && found.Spec.Owner.Kind != v1alpha1.OwnerWhereabouts && !touched[keyOf(lease)] {
			if old := s.supersedeLocked(lease); old != "" {
				superseded = append(superseded, old)
			}
			there[keyOf(lease)] = s.meetLocked(lease, obj, found.Spec.Journal)
			s.sinceLocked(lease, found.Spec.Since)
		}
	}
	for k, h := range s.leases {
		if !there[k] && !touched[k] && h.release == nil && !nodeless(h.owner) {
			h.uid, h.revision = "", "" // Sweep makes it anew
		}
	}
	clear(s.gone)
	return nil
}

// meetLocked takes up a lease that was listed. false: here another has the address.
func (s *Store) meetLocked(lease ipam.Lease, obj *store.Object, journal string) bool {
	h := s.leases[keyOf(lease)]
	ahead := lease.Owner == s.nodeOwner()
	switch {
	case h != nil && (h.owner == lease.Owner || ahead):
		if h.owner != lease.Owner {
			s.boundNowLocked(h)
		}
		if h.release == nil || !h.release.busy {
			h.uid, h.revision = obj.GetUID(), obj.GetResourceVersion()
		}
		return true
	case h != nil:
		s.Log.Error("an address is another's in the cluster than here", "address", lease.Addr, "cluster", lease.Owner, "here", h.owner)
		return false
	}
	if err := s.memory.Hold(lease); err != nil {
		s.Log.Error("an address is another's in the cluster than here", "address", lease.Addr, "cluster", lease.Owner, "err", err)
		return false
	}
	h = &held{owner: lease.Owner, uid: obj.GetUID(), revision: obj.GetResourceVersion()}
	sandbox, _, _ := strings.Cut(string(lease.Owner), "/")
	if s.gone[lease.Owner] || s.gone[ipam.AttachmentOwner(sandbox, "")] {
		h.release = &release{done: make(chan struct{})}
		s.poke()
	}
	s.leases[keyOf(lease)] = h
	if ahead {
		h.unused = time.Now()
		s.found[keyOf(lease)] = journal
		s.wakeKeeper()
	}
	return true
}

// Sweep has leases given back that nobody uses any more, at the second look.
func (s *Store) Sweep(ctx context.Context, users Users) {
	s.mu.Lock()
	var all []ipam.Lease
	for k, h := range s.leases {
		if h.release == nil && h.owner != s.nodeOwner() {
			all = append(all, ipam.Lease{Scope: k.scope, Addr: k.addr, Owner: h.owner})
		}
	}
	s.mu.Unlock()
	answers := true
	for _, lease := range all {
		switch unused := users.IfUnused(lease, func() {}); {
		case !unused:
			s.again(lease)
			answers = answers && s.Epochs.closedNow() == nil && s.assert(ctx, lease, users)
		case s.wanted(ctx, lease, users):
			s.again(lease)
		default:
			users.IfUnused(lease, func() { s.unused(lease) })
		}
	}
}

// again notes that a lease is used.
func (s *Store) again(lease ipam.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.leases[keyOf(lease)]; h != nil {
		h.unused = time.Time{}
	}
}

// unused notes that nobody uses a lease, and has it given back the second time.
func (s *Store) unused(lease ipam.Lease) {
	if nodeless(lease.Owner) {
		s.forget(lease)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.leases[keyOf(lease)]
	switch {
	case h == nil || h.owner != lease.Owner || h.release != nil:
	case h.unused.IsZero():
		h.unused = time.Now()
	case time.Since(h.unused) >= unusedFor:
		h.release = &release{done: make(chan struct{})}
		s.Log.Warn("an address that nobody uses is given back", "address", lease.Addr, "owner", lease.Owner)
		s.poke()
	}
}

// assert makes the object of a lease anew that an attachment has, and the cluster
// does not: somebody deleted it, or the cluster's store is an older copy. false: the
// API server is away.
func (s *Store) assert(ctx context.Context, lease ipam.Lease, users Users) bool {
	s.mu.Lock()
	h := s.leases[keyOf(lease)]
	lost := s.synced && h != nil && h.release == nil && h.uid == ""
	s.mu.Unlock()
	if !lost {
		return true
	}
	box, a := users.UserOf(lease)
	if a == nil {
		return true
	}
	pool := ""
	for _, addr := range a.Plan.Pod.Addrs {
		if addr.Prefix.Addr() == lease.Addr {
			pool = addr.Prefix.Masked().String()
		}
	}
	taker := s.taker(box, a)
	taker.asserts = true
	err := taker.create(ctx, lease, pool, true)
	if errors.Is(err, ipam.ErrTaken) && taker.succeed(ctx, lease, pool, users) {
		err = nil
	}
	if errors.Is(err, ipam.ErrTaken) {
		s.conflict(ctx, lease, users, err)
		return true
	}
	if err != nil {
		s.Log.Warn("an address that a Pod here has could not be taken anew in the cluster", "address", lease.Addr, "err", err)
		return !errors.Is(err, ipam.ErrUnanswered)
	}
	s.Log.Warn("an address that a Pod here has was not held in the cluster; it is again", "address", lease.Addr, "pod", box.Pod.String(), "interface", a.Interface)
	return true
}

// wanted says whether the owner of an address that no attachment has may be there.
func (s *Store) wanted(ctx context.Context, lease ipam.Lease, users Users) bool {
	if nodeless(lease.Owner) {
		return false
	}
	if _, ok := ipam.ParseQuarantineOwner(lease.Owner); ok {
		return s.quarantined(lease)
	}
	sandbox, _, _ := strings.Cut(string(lease.Owner), "/")
	is, err := users.Alive(ctx, sandbox)
	return is || err != nil
}

// Run keeps the node's leases until ctx ends.
func (s *Store) Run(ctx context.Context, users Users) error {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { s.keepAhead(ctx, users) })
	group.Go(func() { s.publish(ctx, users) })
	if s.Epochs != nil {
		group.Go(func() { s.Epochs.Follow(ctx) })
		group.Go(func() { s.Settle(ctx, users) })
	}
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	retry := time.NewTicker(retryPause)
	defer retry.Stop()
	listed := time.Now()
	pending, told := true, ""
	for {
		if s.listingDue(listed) {
			err := s.Sync(ctx)
			listed = time.Now()
			switch {
			case err == nil:
				told = ""
			case ctx.Err() == nil && err.Error() != told:
				told = err.Error()
				s.Log.Warn("which addresses this node holds is not known yet", "err", err)
			}
		}
		if pending {
			left := s.drainLeaving(ctx)
			pending = !s.drain(ctx) || !left
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			pending = true
		case <-retry.C:
		case <-sweep.C:
			s.Sweep(ctx, users)
		}
	}
}

// listingDue says whether this node's leases are to be listed again, the last time
// having been at listed.
func (s *Store) listingDue(listed time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	since := time.Since(listed)
	switch {
	case !s.synced && !s.askedAt.IsZero():
		return time.Since(s.askedAt) > unservedPause
	case !s.synced:
		return true
	case !s.lostAt.IsZero() && time.Since(s.lostAt) < doubtFor:
		return since > doubtEvery
	}
	return since > listEvery+s.jitter
}

// States counts the leases of this node: those that are held, that are kept ahead of
// Pods, that are returning to the cluster, that are conflicting with another's there,
// and that are in quarantine.
func (s *Store) States() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	count := map[string]int{"held": 0, "ahead": 0, "returning": 0, "conflicting": 0, "quarantined": 0}
	for _, h := range s.leases {
		switch {
		case !h.since.IsZero() && h.release == nil:
			count["quarantined"]++
		case h.release != nil:
			count["returning"]++
		case !h.told.IsZero():
			count["conflicting"]++
		case h.owner == s.nodeOwner():
			count["ahead"]++
		default:
			count["held"]++
		}
	}
	return count
}
