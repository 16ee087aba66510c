package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
)

// A claim keeps its addresses for good, so the first Pod that takes one asks whether a
// stranger uses it before the claim is told of it. Until then the lease is untried: who
// dies in between leaves it so for the next Pod, which asks again.

// Untried says whether no Pod has used the address of a claim yet.
func (s *Store) Untried(lease ipam.Lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.leases[keyOf(lease)]
	return h != nil && h.untried
}

// Tried tells that nobody but the claim's Pods has an address.
func (s *Store) Tried(ctx context.Context, lease ipam.Lease) error {
	ctx, cancel := context.WithTimeout(ctx, takePatience)
	defer cancel()
	for {
		err := s.writeTried(ctx, lease)
		if errors.Is(err, store.ErrConflict) {
			continue // another Pod of the claim came
		}
		if err != nil && !errors.Is(err, ipam.ErrTaken) && !errors.Is(err, store.ErrNotFound) {
			if _, refused := errors.AsType[*hint.Error](err); !refused {
				err = unanswered(err)
			}
		}
		if err != nil {
			return fmt.Errorf("tell that nobody else has %s: %w", lease.Addr, err)
		}
		return nil
	}
}

func (s *Store) writeTried(ctx context.Context, lease ipam.Lease) error {
	obj, is, err := s.theirs(ctx, lease)
	if err != nil {
		return err
	}
	if is.Spec.Untried {
		next := obj.DeepCopy()
		spec, _ := next.Object["spec"].(map[string]any)
		delete(spec, "untried")
		if _, err := s.ask(ctx, func(ctx context.Context) (*store.Object, error) { return s.API.Update(ctx, next) }); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.leases[keyOf(lease)]; h != nil && h.owner == lease.Owner {
		h.untried = false
	}
	return nil
}

// untried reads the lease of an address of a claim that no Pod has used, nor one of
// another node is about to.
func (s *Store) untried(ctx context.Context, lease ipam.Lease) (*store.Object, error) {
	obj, is, err := s.theirs(ctx, lease)
	if err != nil {
		return nil, err
	}
	problem := ""
	if !is.Spec.Untried {
		problem = "a Pod of its owner had it before"
	} else if slices.ContainsFunc(is.Spec.Holders, func(h v1alpha1.LeaseHolder) bool { return h.Node != s.Node }) {
		problem = "a Pod of its owner on another node has it, too"
	}
	if problem != "" {
		return nil, &hint.Error{
			Field: "address", Value: lease.Addr.String(), Problem: "is in use by a stranger, and " + problem,
			Remedy: "see which of the two machines is to have the address, and stop the other",
		}
	}
	return obj, nil
}
