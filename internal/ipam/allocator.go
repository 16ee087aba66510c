package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/weftnet/weft/internal/hint"
)

// Store is where leases live. Take is the only lock: an address is held by the
// owner whose Take came first.
type Store interface {
	// TakeFrom holds an address of r that nobody in scope holds. If there is none,
	// the error is ErrExhausted.
	TakeFrom(ctx context.Context, scope Scope, r Range, owner Owner) (netip.Addr, error)
	// Take holds an address. Held by the same owner already: success. Held by
	// another: an error that is ErrTaken and a *TakenError.
	Take(ctx context.Context, lease Lease) error
	// Release gives an address back if its owner is lease.Owner; else nothing.
	Release(ctx context.Context, lease Lease) error
	// Held lists what an owner holds, over all scopes.
	Held(ctx context.Context, owner Owner) ([]Lease, error)
}

// Allocator gives addresses of a Config to owners.
type Allocator struct {
	store      Store
	concurrent bool
}

// NewAllocator gives an allocator that keeps its leases in store.
func NewAllocator(store Store) *Allocator { return &Allocator{store: store} }

// NewConcurrentAllocator gives one for a store that is far away: what one
// attachment needs is asked for at the same time.
func NewConcurrentAllocator(store Store) *Allocator {
	return &Allocator{store: store, concurrent: true}
}

// Allocate gives owner one address of each set of config and its static
// addresses: all or none. What the owner holds already it keeps, unless it now
// asks for another address or the config no longer has it; such an address is
// given back in the end.
func (a *Allocator) Allocate(ctx context.Context, config Config, owner Owner) (Result, error) {
	held, err := a.store.Held(ctx, owner)
	if err != nil {
		return Result{}, fmt.Errorf("list addresses of %s: %w", owner, err)
	}
	run := allocation{Allocator: a, owner: owner, held: held, used: map[Lease]bool{}}
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
	return a.releaseAll(ctx, held)
}

func (a *Allocator) releaseAll(ctx context.Context, leases []Lease) error {
	return a.each(len(leases), func(i int) error {
		if err := a.store.Release(ctx, leases[i]); err != nil {
			return fmt.Errorf("release %s: %w", leases[i].Addr, err)
		}
		return nil
	})
}

// each calls f with 0 to n-1, and goes on after an error.
func (a *Allocator) each(n int, f func(i int) error) error {
	var errs []error
	if !a.concurrent || n < 2 {
		for i := range n {
			if err := f(i); err != nil {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	}
	errs = make([]error, n)
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() { errs[i] = f(i) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// allocation is one Allocate under way.
type allocation struct {
	*Allocator
	owner Owner
	held  []Lease // what the owner had before

	// mu guards taken, what was taken now and is given back if anything fails, and
	// used, what the result consists of.
	mu    sync.Mutex
	taken []Lease
	used  map[Lease]bool
}

func (r *allocation) all(ctx context.Context, config Config) ([]Address, error) {
	asked, err := assign(config)
	if err != nil {
		return nil, err
	}
	// Fixed addresses first, lest a set takes one of them as its lowest.
	var fixed []fixedAddress
	for _, static := range config.Static {
		fixed = append(fixed, fixedAddress{config.staticScope(static), static.Prefix.Addr(), static.Field})
	}
	for i := range config.Sets {
		if q, ok := asked[i]; ok {
			fixed = append(fixed, fixedAddress{config.Sets[i].Scope, q.Addr, q.Field})
		}
	}
	err = r.each(len(fixed), func(i int) error {
		return takenHint(fixed[i].field, fixed[i].addr, r.take(ctx, fixed[i].scope, fixed[i].addr))
	})
	if err != nil {
		return nil, err
	}
	out := make([]Address, len(config.Sets))
	var empty []int
	for i, set := range config.Sets {
		if address, ok := r.kept(set, asked[i]); ok {
			out[i] = address
		} else {
			empty = append(empty, i)
		}
	}
	err = r.each(len(empty), func(i int) (err error) {
		out[empty[i]], err = r.fromSet(ctx, config.Sets[empty[i]])
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, static := range config.Static {
		out = append(out, static.Address)
	}
	return out, nil
}

// fixedAddress is one that is taken whichever others are free.
type fixedAddress struct {
	scope Scope
	addr  netip.Addr
	field string // where it was asked for
}

// kept gives the address of a set that needs no choice: the one asked for, which
// is taken by now, or the one the owner has.
func (r *allocation) kept(set Set, asked Request) (Address, bool) {
	if asked.Addr.IsValid() {
		from, _ := rangeOf(set, asked.Addr)
		return address(from, asked.Addr), true
	}
	for _, lease := range r.held {
		from, ok := rangeOf(set, lease.Addr)
		if ok && lease.Scope == set.Scope && !r.used[lease] {
			r.used[lease] = true
			return address(from, lease.Addr), true
		}
	}
	return Address{}, false
}

func (r *allocation) fromSet(ctx context.Context, set Set) (Address, error) {
	who := &ExhaustedError{}
	for _, from := range set.Ranges {
		addr, err := r.store.TakeFrom(ctx, set.Scope, from, r.owner)
		if told, ok := errors.AsType[*ExhaustedError](err); ok {
			who.add(told)
		}
		if errors.Is(err, ErrExhausted) {
			continue
		}
		if err != nil {
			return Address{}, fmt.Errorf("take address of %s: %w", from, err)
		}
		r.note(Lease{Scope: set.Scope, Addr: addr, Owner: r.owner})
		return address(from, addr), nil
	}
	return Address{}, exhaustedHint(set, who)
}

func address(from Range, addr netip.Addr) Address {
	return Address{Prefix: netip.PrefixFrom(addr, from.Subnet.Bits()), Gateway: from.Gateway}
}

// take holds one address, and remembers whether that is new.
func (r *allocation) take(ctx context.Context, scope Scope, addr netip.Addr) error {
	lease := Lease{Scope: scope, Addr: addr, Owner: r.owner}
	if err := r.store.Take(ctx, lease); err != nil {
		return fmt.Errorf("take %s: %w", addr, err)
	}
	r.note(lease)
	return nil
}

func (r *allocation) note(lease Lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used[lease] = true
	if !slices.Contains(r.held, lease) {
		r.taken = append(r.taken, lease)
	}
}

func (r *allocation) undo(ctx context.Context) error {
	return r.releaseAll(context.WithoutCancel(ctx), r.taken)
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
	return r.releaseAll(ctx, stale)
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

func exhaustedHint(set Set, who *ExhaustedError) error {
	var names []string
	for _, r := range set.Ranges {
		if size := r.Size(); size.IsInt64() && size.Int64() == 1 {
			names = append(names, fmt.Sprintf("the one address of %s", r))
		} else {
			names = append(names, fmt.Sprintf("all %s addresses of %s", size, r))
		}
	}
	are := " are held"
	if len(names) == 1 && strings.HasPrefix(names[0], "the one") {
		are = " is held"
	}
	remedy := ""
	if len(who.Silent) > 0 {
		remedy = "see that weft's agents of those nodes run, which give back what they keep, or delete the Nodes if they are gone; else "
	}
	return &hint.Error{
		Field: set.Ranges[0].Field, Value: set.Ranges[0].String(), Problem: strings.Join(names, " and ") + are, Err: who,
		Remedy: remedy + "widen the range, or delete what holds addresses of it (weft ip ls --pool " + set.Ranges[0].Subnet.String() + " lists them)",
	}
}
