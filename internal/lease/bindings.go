package lease

import (
	"context"
	"errors"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
)

const (
	// publishEvery is how often NodeAddresses is written at most; fewer bindings than
	// publishMany wait up to publishLater for others to share the request.
	publishEvery, publishMany, publishLater = time.Second, 16, 30 * time.Second
	// publishAgain is after it could not be written.
	publishAgain = 5 * time.Second
	// pruneAfter is how long bindings of leases that are gone may stand there.
	pruneAfter = 10 * time.Minute
	// maxBindings bounds the object. Beyond it nothing is kept ahead.
	maxBindings = 1000
)

// publish tells in NodeAddresses who has addresses that were taken ahead, until ctx
// ends. Nothing waits for it: the records know.
func (s *Store) publish(ctx context.Context, users Users) {
	tick := time.NewTicker(publishEvery)
	defer tick.Stop()
	wrote, failed, told := time.Now(), time.Time{}, ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		waits, since := s.unpublished, s.unpublishedSince
		prune := time.Since(wrote) > pruneAfter && s.published != nil && len(s.published.Spec.Bindings) != s.boundLocked()
		s.mu.Unlock()
		if waits < publishMany && (waits == 0 || time.Since(since) < publishLater) && !prune || time.Since(failed) < publishAgain {
			continue
		}
		wrote = time.Now()
		err := s.tell(ctx, users)
		if err != nil {
			failed = time.Now()
		}
		if err != nil && ctx.Err() == nil && err.Error() != told && !errors.Is(err, store.ErrConflict) {
			s.Log.Warn("which Pods have addresses that this node took ahead could not be told", "err", err)
			told = err.Error()
		}
	}
}

// boundLocked counts the leases that are the node's in the cluster and an
// attachment's here.
func (s *Store) boundLocked() (n int) {
	for _, h := range s.leases {
		if h.bound && h.release == nil && h.uid != "" {
			n++
		}
	}
	return n
}

// tell writes NodeAddresses.
func (s *Store) tell(ctx context.Context, users Users) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	known, err := s.readBindings(ctx)
	if err != nil {
		return err
	}
	next, waiting := v1alpha1.NodeAddresses{ObjectMeta: s.published.ObjectMeta}, 0
	next.Name, next.Spec.Bindings = s.Node, []v1alpha1.Binding{}
	for lease, uid := range s.bound() {
		binding, ok := known[uid]
		if !ok {
			binding, ok = bindingOf(lease, uid, users)
		}
		if ok {
			next.Spec.Bindings = append(next.Spec.Bindings, binding)
		} else {
			waiting++ // its attachment is just being made
		}
	}
	obj, err := next.Object()
	if err != nil {
		return err
	}
	var is *store.Object
	if next.ResourceVersion == "" {
		is, err = s.API.Create(ctx, obj)
	} else {
		is, err = s.API.Update(ctx, obj)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.published = nil         // read it again
		s.crowded = unserved(err) // nothing is taken ahead of which nobody could be told
		return err
	}
	next.UID, next.ResourceVersion = is.GetUID(), is.GetResourceVersion()
	s.published, s.crowded = &next, len(next.Spec.Bindings) >= maxBindings
	s.countUnpublishedLocked()
	if waiting > 0 {
		s.unpublishedSince = time.Now()
	}
	return nil
}

// countUnpublishedLocked counts what NodeAddresses does not tell.
func (s *Store) countUnpublishedLocked() {
	there := map[types.UID]bool{}
	for _, b := range s.published.Spec.Bindings {
		there[b.UID] = true
	}
	s.unpublished = 0
	for _, h := range s.leases {
		if h.bound && h.release == nil && h.uid != "" && !there[h.uid] {
			s.unpublished++
		}
	}
}

// bound are the leases that are the node's in the cluster and an attachment's here.
func (s *Store) bound() map[ipam.Lease]types.UID {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[ipam.Lease]types.UID{}
	for k, h := range s.leases {
		if h.bound && h.release == nil && h.uid != "" {
			out[ipam.Lease{Scope: k.scope, Addr: k.addr, Owner: h.owner}] = h.uid
		}
	}
	return out
}

// bindingOf tells of the attachment that has an address; false: it is not at rest.
func bindingOf(lease ipam.Lease, uid types.UID, users Users) (v1alpha1.Binding, bool) {
	box, a := users.UserOf(lease)
	if a == nil {
		return v1alpha1.Binding{}, false
	}
	return v1alpha1.Binding{
		Lease: Name(lease.Scope, lease.Addr), UID: uid, Network: a.Network, Interface: string(a.Interface), Sandbox: box.ID,
		Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: box.Pod.Namespace, Name: box.Pod.Name, UID: types.UID(box.Pod.UID)},
	}, true
}

// readBindings gives what NodeAddresses of this node tells, by the leases' UIDs.
func (s *Store) readBindings(ctx context.Context) (map[types.UID]v1alpha1.Binding, error) {
	s.mu.Lock()
	published := s.published
	s.mu.Unlock()
	if published == nil {
		obj, err := s.ask(ctx, func(ctx context.Context) (*store.Object, error) {
			return s.API.Get(ctx, v1alpha1.NodeAddressesKind, store.Key{Name: s.Node})
		})
		switch {
		case errors.Is(err, store.ErrNotFound), unserved(err):
			published = &v1alpha1.NodeAddresses{}
		case err != nil:
			return nil, err
		default:
			if published, err = v1alpha1.NodeAddressesFromObject(obj); err != nil {
				return nil, err
			}
		}
		s.mu.Lock()
		s.published = published
		s.countUnpublishedLocked()
		s.mu.Unlock()
	}
	out := map[types.UID]v1alpha1.Binding{}
	for _, b := range published.Spec.Bindings {
		out[b.UID] = b
	}
	return out, nil
}
