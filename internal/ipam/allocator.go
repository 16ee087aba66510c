package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/internal/hint"
)

// Store is where leases live. Take is the only lock: an address is held by the
// owner whose Take came first.
type Store interface {
	// Candidate proposes the lowest address of r nobody in scope holds, and
	// false if there is none. It holds nothing: Take may still find it taken.
	Candidate(ctx context.Context, scope Scope, r Range) (netip.Addr, bool, error)
	// Take holds an address. Held by the same owner already: success. Held by
	// another: an error that is ErrTaken and a *TakenError.
	Take(ctx context.Context, lease Lease) error
	// Release gives an address back if its owner is lease.Owner; else nothing.
	Release(ctx context.Context, lease Lease) error
	// Held lists what an owner holds, over all scopes.
	Held(ctx context.Context, owner Owner) ([]Lease, error)
}

// maxTries bounds how often a candidate may be taken from under us before we
// give up: a Store that proposes held addresses for ever is broken.
const maxTries = 1000

// Allocator gives addresses of a Config to owners.
type Allocator struct {
	store Store
}

// NewAllocator gives an allocator that keeps its leases in store.
func NewAllocator(store Store) *Allocator { return &Allocator{store: store} }

// Allocate gives owner one address of each set of config and its static
// addresses: all or none. What the owner holds already it keeps, unless it now
// asks for another address or the config no longer has it; such an address is
// given back in the end.
func (a *Allocator) Allocate(ctx context.Context, config Config, owner Owner) (Result, error) {
	held, err := a.store.Held(ctx, owner)
	if err != nil {
		return Result{}, fmt.Errorf("list addresses of %s: %w", owner, err)
	}
	run := allocation{store: a.store, owner: owner, held: held, used: map[Lease]bool{}}
	addresses, err := run.all(ctx, config)
	if err != nil {
		return Result{}, errors.Join(err, run.undo(ctx))
	}
	if err := run.dropStale(ctx, config); err != nil {
		return Result{}, err
	}
	return Result{Addresses: addresses, Routes: config.Routes, DNS: config.DNS}, nil
}

// Release gives back everything owner holds, whatever its config says today.
func (a *Allocator) Release(ctx context.Context, owner Owner) error {
	held, err := a.store.Held(ctx, owner)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", owner, err)
	}
	return releaseAll(ctx, a.store, held)
}

func releaseAll(ctx context.Context, store Store, leases []Lease) error {
	var errs []error
	for _, lease := range leases {
		if err := store.Release(ctx, lease); err != nil {
			errs = append(errs, fmt.Errorf("release %s: %w", lease.Addr, err))
		}
	}
	return errors.Join(errs...)
}

// allocation is one Allocate under way.
type allocation struct {
	store Store
	owner Owner
	held  []Lease        // what the owner had before
	taken []Lease        // what was taken now: given back if anything fails
	used  map[Lease]bool // what the result consists of
}

func (r *allocation) all(ctx context.Context, config Config) ([]Address, error) {
	asked, err := assign(config)
	if err != nil {
		return nil, err
	}
	// Fixed addresses first, lest a set takes one of them as its lowest.
	for _, static := range config.Static {
		addr := static.Prefix.Addr()
		if err := r.take(ctx, config.StaticScope, addr); err != nil {
			return nil, takenHint(static.Field, addr, err)
		}
	}
	for i, q := range asked {
		if err := r.take(ctx, config.Sets[i].Scope, q.Addr); err != nil {
			return nil, takenHint(q.Field, q.Addr, err)
		}
	}
	var out []Address
	for i, set := range config.Sets {
		address, err := r.fromSet(ctx, set, asked[i])
		if err != nil {
			return nil, err
		}
		out = append(out, address)
	}
	for _, static := range config.Static {
		out = append(out, static.Address)
	}
	return out, nil
}

// assign matches requests with sets, each set serving one request at most.
func assign(config Config) (map[int]Request, error) {
	asked := map[int]Request{}
	var errs []error
	for _, q := range config.Requests {
		i, err := setFor(config, q, asked)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		asked[i] = q
	}
	return asked, errors.Join(errs...)
}

func setFor(config Config, q Request, asked map[int]Request) (int, error) {
	full := holds(config.Static, q.Addr)
	for i, set := range config.Sets {
		if _, ok := rangeOf(set, q.Addr); !ok {
			continue
		}
		if _, busy := asked[i]; !busy && !full {
			return i, nil
		}
		full = true
	}
	problem, remedy := whyRefused(config.Sets, q.Addr)
	if full {
		problem, remedy = "the network gives one address per range, and that is settled already", "request one address per range"
	}
	return 0, &hint.Error{Field: q.Field, Value: q.Addr.String(), Problem: problem, Remedy: remedy, Err: ErrRefused}
}

func rangeOf(set Set, addr netip.Addr) (Range, bool) {
	for _, r := range set.Ranges {
		if r.Contains(addr) {
			return r, true
		}
	}
	return Range{}, false
}

// whyRefused says why no range gives an address, the nearest miss first.
func whyRefused(sets []Set, addr netip.Addr) (problem, remedy string) {
	var all []string
	for _, set := range sets {
		for _, r := range set.Ranges {
			all = append(all, r.String())
			if !r.Subnet.Contains(addr) {
				continue
			}
			remedy = fmt.Sprintf("choose another address of %s", r)
			switch {
			case addr == r.Gateway:
				return "is the gateway of " + r.Subnet.String(), remedy
			case !usable(r.Subnet).Contains(addr) && addr == r.Subnet.Addr():
				return "is the network address of " + r.Subnet.String(), remedy
			case !usable(r.Subnet).Contains(addr):
				return "is the broadcast address of " + r.Subnet.String(), remedy
			}
			for _, hole := range r.Exclude {
				if hole.Contains(addr) {
					return fmt.Sprintf("is excluded by %s.exclude (%s)", r.Field, hole), remedy
				}
			}
		}
	}
	if len(all) == 0 {
		return "the network has no range to take it from", "add a range that contains it"
	}
	return "is out of range", "choose an address of " + strings.Join(all, " or ")
}

func (r *allocation) fromSet(ctx context.Context, set Set, asked Request) (Address, error) {
	if asked.Addr.IsValid() {
		from, _ := rangeOf(set, asked.Addr)
		return address(from, asked.Addr), nil
	}
	for _, lease := range r.held {
		from, ok := rangeOf(set, lease.Addr)
		if ok && lease.Scope == set.Scope && !r.used[lease] {
			r.used[lease] = true
			return address(from, lease.Addr), nil
		}
	}
	for _, from := range set.Ranges {
		addr, err := r.lowest(ctx, set.Scope, from)
		if errors.Is(err, ErrExhausted) {
			continue
		}
		if err != nil {
			return Address{}, err
		}
		return address(from, addr), nil
	}
	return Address{}, exhaustedHint(set)
}

func address(from Range, addr netip.Addr) Address {
	return Address{Prefix: netip.PrefixFrom(addr, from.Subnet.Bits()), Gateway: from.Gateway}
}

// lowest takes the lowest free address, again if somebody else was faster.
func (r *allocation) lowest(ctx context.Context, scope Scope, from Range) (netip.Addr, error) {
	for range maxTries {
		addr, ok, err := r.store.Candidate(ctx, scope, from)
		if err != nil {
			return addr, fmt.Errorf("choose address of %s: %w", from, err)
		}
		if !ok {
			return addr, ErrExhausted
		}
		err = r.take(ctx, scope, addr)
		if !errors.Is(err, ErrTaken) {
			return addr, err
		}
	}
	return netip.Addr{}, fmt.Errorf("choose address of %s: %d candidates in a row were taken", from, maxTries)
}

// take holds one address, and remembers whether that is new.
func (r *allocation) take(ctx context.Context, scope Scope, addr netip.Addr) error {
	lease := Lease{Scope: scope, Addr: addr, Owner: r.owner}
	if err := r.store.Take(ctx, lease); err != nil {
		return fmt.Errorf("take %s: %w", addr, err)
	}
	r.used[lease] = true
	for _, had := range r.held {
		if had == lease {
			return nil
		}
	}
	r.taken = append(r.taken, lease)
	return nil
}

func (r *allocation) undo(ctx context.Context) error {
	return releaseAll(context.WithoutCancel(ctx), r.store, r.taken)
}

// dropStale gives back what the owner held in the scopes of config and the
// result no longer has.
func (r *allocation) dropStale(ctx context.Context, config Config) error {
	scopes := map[Scope]bool{config.StaticScope: true}
	for _, set := range config.Sets {
		scopes[set.Scope] = true
	}
	var stale []Lease
	for _, lease := range r.held {
		if scopes[lease.Scope] && !r.used[lease] {
			stale = append(stale, lease)
		}
	}
	return releaseAll(ctx, r.store, stale)
}

func takenHint(field string, addr netip.Addr, err error) error {
	taken, ok := errors.AsType[*TakenError](err)
	if !ok {
		return err
	}
	return &hint.Error{
		Field: field, Value: addr.String(), Problem: "is in use",
		Remedy: "choose another address, or delete its holder", Err: taken,
	}
}

func exhaustedHint(set Set) error {
	var names []string
	for _, r := range set.Ranges {
		names = append(names, fmt.Sprintf("all %s addresses of %s", r.Size(), r))
	}
	return &hint.Error{
		Field: set.Ranges[0].Field, Value: set.Ranges[0].String(), Problem: strings.Join(names, " and ") + " are held",
		Remedy: "widen the range, or delete what holds addresses of it", Err: ErrExhausted,
	}
}
