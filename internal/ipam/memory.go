package ipam

import (
	"container/heap"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Memory is the Store of one machine. It forgets everything with the process:
// whoever starts it tells it what is held (Hold) before the first Allocate.
//
// The lowest free address costs amortised O(log n): each range keeps a cursor
// below which every address has been held once, and a heap of those that came
// free again.
type Memory struct {
	// mu guards what follows.
	mu     sync.Mutex
	scopes map[Scope]*scopeState
	owners map[Owner][]Lease // few for each
}

var _ Store = (*Memory)(nil)

type scopeState struct {
	holders map[netip.Addr]Owner
	ranges  map[string]*rangeState
}

// rangeState finds the lowest free address of one range.
type rangeState struct {
	spans []Span
	// span and next are the cursor: nothing at or above it has been looked at.
	// span == len(spans): the end was reached.
	span int
	next netip.Addr
	// freed are addresses below the cursor that were released; some may be held
	// again, which is found out when they reach the top.
	freed   addrHeap
	inFreed map[netip.Addr]bool
}

// NewMemory gives a store in which nothing is held.
func NewMemory() *Memory {
	return &Memory{scopes: map[Scope]*scopeState{}, owners: map[Owner][]Lease{}}
}

// Hold notes that a lease stands since before this process started.
func (m *Memory) Hold(lease Lease) error {
	if !lease.Addr.IsValid() || lease.Owner == "" {
		return fmt.Errorf("hold %s for %q: a lease needs an address and an owner", lease.Addr, lease.Owner)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.takeLocked(lease)
}

// Take holds an address for its owner.
func (m *Memory) Take(_ context.Context, lease Lease) error { return m.Hold(lease) }

func (m *Memory) takeLocked(lease Lease) error {
	scope := m.scopeLocked(lease.Scope)
	if holder, held := scope.holders[lease.Addr]; held {
		if holder == lease.Owner {
			return nil
		}
		return &TakenError{Addr: lease.Addr, Holder: holder}
	}
	scope.holders[lease.Addr] = lease.Owner
	m.owners[lease.Owner] = append(m.owners[lease.Owner], lease)
	return nil
}

func (m *Memory) scopeLocked(name Scope) *scopeState {
	scope := m.scopes[name]
	if scope == nil {
		scope = &scopeState{holders: map[netip.Addr]Owner{}, ranges: map[string]*rangeState{}}
		m.scopes[name] = scope
	}
	return scope
}

// Release gives an address back if lease.Owner holds it.
func (m *Memory) Release(_ context.Context, lease Lease) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	scope := m.scopes[lease.Scope]
	if scope == nil || scope.holders[lease.Addr] != lease.Owner {
		return nil
	}
	delete(scope.holders, lease.Addr)
	m.disownLocked(lease)
	if len(scope.holders) == 0 {
		delete(m.scopes, lease.Scope) // cursors of ranges that were edited away go with it
		return nil
	}
	for _, r := range scope.ranges {
		r.release(lease.Addr)
	}
	return nil
}

// Pass makes an address another owner's, if lease.Owner has it.
func (m *Memory) Pass(lease Lease, to Owner) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	scope := m.scopes[lease.Scope]
	if scope == nil || scope.holders[lease.Addr] != lease.Owner {
		return false
	}
	m.disownLocked(lease)
	scope.holders[lease.Addr] = to
	lease.Owner = to
	m.owners[to] = append(m.owners[to], lease)
	return true
}

func (m *Memory) disownLocked(lease Lease) {
	left := slices.DeleteFunc(m.owners[lease.Owner], func(l Lease) bool { return l == lease })
	if m.owners[lease.Owner] = left; len(left) == 0 {
		delete(m.owners, lease.Owner)
	}
}

// TakeFrom holds the lowest address of r that nobody in scope holds.
func (m *Memory) TakeFrom(_ context.Context, scope Scope, r Range, owner Owner) (netip.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	state := m.scopeLocked(scope)
	walk := state.ranges[r.Key()]
	if walk == nil {
		walk = newRangeState(r.Usable())
		state.ranges[r.Key()] = walk
	}
	addr, ok := walk.lowest(state.holders)
	if !ok {
		return netip.Addr{}, exhaustedBy(r, state.holders)
	}
	return addr, m.takeLocked(Lease{Scope: scope, Addr: addr, Owner: owner})
}

// Holder gives who holds an address; empty: nobody.
func (m *Memory) Holder(scope Scope, addr netip.Addr) Owner {
	m.mu.Lock()
	defer m.mu.Unlock()
	if state := m.scopes[scope]; state != nil {
		return state.holders[addr]
	}
	return ""
}

// Held lists what an owner holds, sorted by scope and address.
func (m *Memory) Held(_ context.Context, owner Owner) ([]Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	leases := slices.Clone(m.owners[owner])
	sortLeases(leases)
	return leases, nil
}

// Leases lists everything held, sorted by scope and address.
func (m *Memory) Leases() []Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	var leases []Lease
	for _, held := range m.owners {
		leases = append(leases, held...)
	}
	sortLeases(leases)
	return leases
}

func sortLeases(leases []Lease) {
	slices.SortFunc(leases, func(a, b Lease) int {
		if c := strings.Compare(string(a.Scope), string(b.Scope)); c != 0 {
			return c
		}
		return a.Addr.Compare(b.Addr)
	})
}

func newRangeState(spans []Span) *rangeState {
	r := &rangeState{spans: spans, inFreed: map[netip.Addr]bool{}}
	if len(spans) > 0 {
		r.next = spans[0].First
	}
	return r
}

func (r *rangeState) lowest(holders map[netip.Addr]Owner) (netip.Addr, bool) {
	for len(r.freed) > 0 {
		if _, held := holders[r.freed[0]]; !held {
			return r.freed[0], true
		}
		delete(r.inFreed, r.freed[0])
		heap.Pop(&r.freed)
	}
	for r.span < len(r.spans) {
		if _, held := holders[r.next]; !held {
			return r.next, true
		}
		r.advance()
	}
	return netip.Addr{}, false
}

func (r *rangeState) advance() {
	if r.next != r.spans[r.span].Last {
		r.next = r.next.Next()
		return
	}
	r.span++
	if r.span < len(r.spans) {
		r.next = r.spans[r.span].First
	}
}

// release notes that an address came free, if the cursor has passed it.
func (r *rangeState) release(addr netip.Addr) {
	i := spanIndex(r.spans, addr)
	passed := i >= 0 && (i < r.span || i == r.span && addr.Less(r.next))
	if passed && !r.inFreed[addr] {
		r.inFreed[addr] = true
		heap.Push(&r.freed, addr)
	}
}

// addrHeap is a heap of addresses, the lowest on top.
type addrHeap []netip.Addr

// Len, Less, Swap, Push and Pop make it a heap.Interface.
func (h addrHeap) Len() int           { return len(h) }
func (h addrHeap) Less(i, j int) bool { return h[i].Less(h[j]) }
func (h addrHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push adds an address at the end.
func (h *addrHeap) Push(x any) { *h = append(*h, x.(netip.Addr)) }

// Pop takes the last address off.
func (h *addrHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
