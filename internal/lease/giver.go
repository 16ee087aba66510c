package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	api "github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/whereabouts"
)

var (
	// poolKind is what Whereabouts keeps its addresses in.
	poolKind      = schema.FromAPIVersionAndKind(api.APIVersion, api.IPPoolKind)
	configMapKind = schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}
)

// Serves says whether addresses come from leases: if the API server has the kind, and
// Whereabouts does not give them. plugin: Whereabouts is installed on this node, so
// that it can. Where nothing was decided it does as long as it holds addresses.
func (s *Store) Serves(ctx context.Context, plugin bool) (bool, error) {
	s.mu.Lock()
	asked := s.synced || !s.askedAt.IsZero() && time.Since(s.askedAt) < unservedFor
	s.mu.Unlock()
	if !asked {
		if err := s.Sync(ctx); err != nil {
			return false, unanswered(err)
		}
	}
	s.mu.Lock()
	served, chosen := s.synced, s.chosen
	deferred := time.Since(s.deferredAt) < unservedFor
	s.mu.Unlock()
	if !served || chosen || !plugin {
		return served, nil
	}
	if deferred {
		return false, nil
	}
	giving, err := s.whoGives(ctx)
	if err != nil {
		return false, err
	}
	switch giving.By {
	case whereabouts.ByNobody:
		return false, passing(giving)
	case whereabouts.ByWhereabouts:
		s.postpone()
		return false, nil
	case "":
		count, err := s.heldByWhereabouts(ctx)
		if err != nil || count > 0 {
			if s.postpone() {
				s.Log.Warn("Whereabouts holds addresses, which are not imported, so its plugin goes on to give them", "count", count)
			}
			return false, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chosen = true
	return true, nil
}

// postpone leaves addresses to Whereabouts for a while, and says whether that is new.
func (s *Store) postpone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	is := s.deferredAt.IsZero()
	s.deferredAt = time.Now()
	return is
}

// heldByWhereabouts counts the addresses in its pools.
func (s *Store) heldByWhereabouts(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, takePatience)
	defer cancel()
	pools, _, err := s.API.List(ctx, poolKind, store.Selector{})
	if unserved(err) {
		return 0, nil
	}
	if err != nil {
		return 0, unanswered(err)
	}
	count := 0
	for _, obj := range pools {
		pool, err := api.IPPoolFromObject(obj.Object)
		if err != nil {
			return 0, &hint.Error{Field: "IPPool", Value: obj.GetName(), Problem: "cannot be read", Err: err, Remedy: "delete it if Whereabouts is not in use"}
		}
		if !whereabouts.Ours(pool.Meta) {
			count += len(pool.Allocations)
		}
	}
	return count, nil
}

// whoGives reads who gives addresses of Whereabouts' networks. What weft may give of
// is remembered until the API server refuses something.
func (s *Store) whoGives(ctx context.Context) (whereabouts.Giving, error) {
	s.mu.Lock()
	giving := s.giving
	s.mu.Unlock()
	if giving != nil || s.Giving == (store.Key{}) {
		if giving == nil {
			giving = &whereabouts.Giving{}
		}
		return *giving, nil
	}
	obj, err := s.ask(ctx, func(ctx context.Context) (*store.Object, error) { return s.API.Get(ctx, configMapKind, s.Giving) })
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return whereabouts.Giving{}, unanswered(fmt.Errorf("read who gives addresses: %w", err))
	}
	giving = &whereabouts.Giving{}
	if err == nil {
		data, _ := obj.Object["data"].(map[string]any)
		*giving = whereabouts.ParseGiving(data)
	}
	if giving.By != whereabouts.ByNobody && giving.By != whereabouts.ByWhereabouts {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.giving = giving
	}
	return *giving, nil
}

// forgetGiving has it read anew who gives addresses.
func (s *Store) forgetGiving() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giving, s.chosen = nil, false
}

// permitted says whether weft may give an address of a scope now.
func (s *Store) permitted(ctx context.Context, scope ipam.Scope) (whereabouts.Giving, error) {
	if _, _, is := ipam.ParseWhereaboutsScope(scope); !is {
		return whereabouts.Giving{}, nil
	}
	giving, err := s.whoGives(ctx)
	if err != nil {
		return giving, err
	}
	switch giving.By {
	case whereabouts.ByNobody:
		return giving, passing(giving)
	case whereabouts.ByWhereabouts:
		return giving, &hint.Error{
			Field: "ipam.type", Value: ipam.TypeWhereabouts, Problem: "Whereabouts gives the addresses of the cluster, and its plugin is not on this node",
			Remedy: "install its plugin here, or have weft take its addresses over (docs/whereabouts-migration.md)",
		}
	}
	return giving, nil
}

// passing says that addresses are on their way from one to the other.
func passing(giving whereabouts.Giving) error {
	return &hint.Error{
		Field: "ipam.type", Value: ipam.TypeWhereabouts, Problem: "the addresses of the cluster pass to " + string(giving.To) + " just now", Err: ipam.ErrUnanswered,
		Remedy: "wait a minute; if it lasts, the log of weft-controller says why. The runtime tries again",
	}
}
