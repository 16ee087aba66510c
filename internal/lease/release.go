package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// End gives back all that owners hold; one with no interface is all of its sandbox.
// Their attachments are no more, so it succeeds also if the API server does not
// answer: what it could not be told is written down.
func (s *Store) End(ctx context.Context, owners ...ipam.Owner) error {
	var all []ipam.Lease
	for _, owner := range s.ofSandboxes(owners) {
		held, err := s.Held(ctx, owner)
		if err != nil {
			return err
		}
		all = append(all, held...)
		s.mu.Lock()
		if !s.synced {
			s.gone[owner] = true
		}
		s.mu.Unlock()
	}
	var group sync.WaitGroup
	errs := make([]error, len(all))
	for i, lease := range all {
		group.Go(func() { errs[i] = s.Release(ctx, lease) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// ofSandboxes adds the owners of each interface to those of all of a sandbox.
func (s *Store) ofSandboxes(owners []ipam.Owner) []ipam.Owner {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Clone(owners)
	for _, owner := range owners {
		if !strings.HasSuffix(string(owner), "/") {
			continue
		}
		for _, h := range s.leases {
			if strings.HasPrefix(string(h.owner), string(owner)) && !slices.Contains(all, h.owner) {
				all = append(all, h.owner)
			}
		}
	}
	return all
}

// Release gives an address back if its owner has it. That of a claim is only
// forgotten here.
func (s *Store) Release(ctx context.Context, lease ipam.Lease) error {
	if nodeless(lease.Owner) {
		s.forget(lease)
		return nil
	}
	s.mu.Lock()
	h, now := s.leases[keyOf(lease)], time.Now()
	switch {
	case s.memory.Holder(lease.Scope, lease.Addr) != lease.Owner, h != nil && h.release != nil:
		s.mu.Unlock()
		return nil
	case h == nil:
		s.mu.Unlock()
		return s.memory.Release(ctx, lease)
	}
	h.release = &release{done: make(chan struct{}), busy: now.After(s.away)}
	try := h.release.busy
	s.mu.Unlock()
	if try {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releasePatience)
		defer cancel()
		if s.giveBack(ctx, lease, h) == nil {
			return nil
		}
	}
	s.write(lease.Owner)
	s.poke()
	return nil
}

// giveBack deletes the object of a lease that is being released by this caller
// (busy), and then forgets the lease. After an error it is busy no more.
func (s *Store) giveBack(ctx context.Context, lease ipam.Lease, h *held) error {
	err := s.deleteObject(ctx, lease, h)
	if err == nil {
		err = s.unlock(ctx, lease)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		h.release.busy = false
		if _, refused := errors.AsType[*hint.Error](err); !refused {
			s.away = time.Now().Add(awayFor)
		}
		return err
	}
	s.away = time.Time{}
	delete(s.leases, keyOf(lease))
	s.touchLocked(keyOf(lease))
	close(h.release.done)
	return s.memory.Release(ctx, lease)
}

// deleteObject deletes the object of a lease, if it is ours.
func (s *Store) deleteObject(ctx context.Context, lease ipam.Lease, h *held) error {
	s.mu.Lock()
	pre := store.Precondition{UID: h.uid, Revision: h.revision}
	s.mu.Unlock()
	for {
		if pre.UID == "" {
			obj, err := s.ours(ctx, lease)
			if errors.Is(err, store.ErrNotFound) || errors.Is(err, ipam.ErrTaken) || unserved(err) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("read lease of %s: %w", lease.Addr, err)
			}
			pre = store.Precondition{UID: obj.GetUID(), Revision: obj.GetResourceVersion()}
			s.mu.Lock()
			h.uid, h.revision = pre.UID, pre.Revision
			s.mu.Unlock()
		}
		asking, cancel := context.WithTimeout(ctx, askPatience)
		err := s.API.Delete(asking, v1alpha1.AddressLeaseKind, store.Key{Name: Name(lease.Scope, lease.Addr)}, pre)
		cancel()
		switch {
		case err == nil, errors.Is(err, store.ErrNotFound): // gone already
			return nil
		case !errors.Is(err, store.ErrConflict):
			return fmt.Errorf("delete lease of %s: %w", lease.Addr, err)
		}
		pre = store.Precondition{} // it was changed, or is another's: look
	}
}

// write writes down what of an owner's is on its way back, so that a new process
// knows. Without its file it is still found by its sandbox.
func (s *Store) write(owner ipam.Owner) {
	s.files.Lock()
	defer s.files.Unlock()
	all, err := s.memory.Held(context.Background(), owner)
	var list []record.Lease
	s.mu.Lock()
	for _, lease := range all {
		if h := s.leases[keyOf(lease)]; h != nil && h.release != nil {
			list = append(list, record.Lease{Scope: string(lease.Scope), Addr: lease.Addr, Owner: string(lease.Owner)})
		}
	}
	s.mu.Unlock()
	if err == nil && len(list) == 0 {
		err = s.kept.Remove(string(owner))
	} else if err == nil {
		err = s.kept.Save(string(owner), list)
	}
	if err != nil {
		s.Log.Error("addresses to be given back could not be written down", "owner", owner, "err", err)
	}
}

// poke wakes Run up.
func (s *Store) poke() {
	select {
	case s.wake <- struct{}{}:
	default: // it is awake
	}
}

// releasesAtOnce bounds the requests for what was left.
const releasesAtOnce = 16

// drain gives back what is on its way, and says whether all of it is.
func (s *Store) drain(ctx context.Context) (done bool) {
	type one struct {
		lease ipam.Lease
		h     *held
	}
	var all []one
	s.mu.Lock()
	for k, h := range s.leases {
		if h.release != nil && !h.release.busy {
			h.release.busy = true
			all = append(all, one{ipam.Lease{Scope: k.scope, Addr: k.addr, Owner: h.owner}, h})
		}
	}
	s.mu.Unlock()
	var (
		group sync.WaitGroup
		mu    sync.Mutex // guards why
		why   error
	)
	places := make(chan struct{}, releasesAtOnce)
	for _, o := range all {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			ctx, cancel := context.WithTimeout(ctx, releasePatience)
			defer cancel()
			err := s.giveBack(ctx, o.lease, o.h)
			if err == nil {
				s.write(o.lease.Owner)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			why = err
		})
	}
	group.Wait()
	if _, refused := errors.AsType[*hint.Error](why); refused {
		s.Log.Error("the API server refuses that an address is given back", "err", why)
	}
	return why == nil
}
