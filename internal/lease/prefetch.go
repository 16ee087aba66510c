package lease

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/ipam"
)

// While Pods come quickly, a node keeps a few addresses of their range ahead: leases
// that are its own, of which an attachment takes one in memory, without a request.
// Each serves one attachment, and is deleted after it; so a lease that is known to be
// a Pod's is that Pod's for good. Who has which stands in the record before the
// attachment is answered, and soon in the node's NodeAddresses (bindings.go).
//
// How many a node may keep is the adviser's to say, who sees when a range gets tight.
// What it said counts for a few seconds only: a node that hears nothing hands out
// none and gives all back, so the controller knows when nobody does any more.

// Keeper is the adviser as it speaks of what is kept ahead.
type Keeper interface {
	// Keep tells which addresses of spans this node keeps ahead, and learns how many
	// it may. false: nobody says so.
	Keep(ctx context.Context, scope string, spans []ipam.Span, keeps []netip.Addr) (adviser.Ahead, bool)
}

const (
	// perAhead is how many addresses must have been taken of a range within about
	// demandFor for each that is kept ahead: what is kept for nothing costs a create
	// and a delete.
	perAhead, demandFor = 16, time.Minute
	// keepEvery is how often the adviser is told, and keepFresh for how long its answer
	// counts. The controller waits longer than that before it frees what a node that is
	// gone keeps.
	keepEvery, keepFresh = 2 * time.Second, 10 * time.Second
	// idleFor is how long nothing is taken of a range, of which nothing is kept then.
	idleFor = 2 * time.Minute
	// settled is how old a lease is that the adviser must know from the API server.
	settled = 3 * time.Second
	// keptPause is between looks whether others gave back what they keep of a range
	// that is full.
	keptPause = 250 * time.Millisecond
)

// stock is what is kept ahead of one range.
type stock struct {
	scope ipam.Scope
	r     ipam.Range
	spans []ipam.Span
	ready []netip.Addr // the oldest first
	// demand is about how many were taken within demandFor, as of last.
	demand float64
	last   time.Time
	// most is how many the adviser allows, as it was asked at fresh.
	most  int
	fresh time.Time
}

// demandAt fades: what was taken demandFor ago counts for a third.
func (st *stock) demandAt(now time.Time) float64 {
	return st.demand * max(0, 1-float64(now.Sub(st.last))/float64(demandFor))
}

// stale says whether the adviser was not heard for long, by both clocks: that which
// does not jump stands still while a machine sleeps.
func (st *stock) stale(now time.Time) bool {
	return now.Sub(st.fresh) > keepFresh || now.Round(0).Sub(st.fresh.Round(0)) > keepFresh
}

func (s *Store) nodeOwner() ipam.Owner { return ipam.NodeOwner(s.Node) }

// wakeKeeper has keepAhead look.
func (s *Store) wakeKeeper() {
	select {
	case s.taken <- struct{}{}:
	default: // it looks soon
	}
}

// keepsAhead says whether addresses are kept ahead at all for an owner.
func (s *Store) keepsAhead(owner ipam.Owner) bool {
	return s.Keeper != nil && s.Adviser != nil && !nodeless(owner)
}

// fromStock gives an attachment an address that is kept ahead, and takes note that
// there is demand.
func (s *Store) fromStock(scope ipam.Scope, r ipam.Range, owner ipam.Owner) (netip.Addr, bool) {
	if !s.keepsAhead(owner) {
		return netip.Addr{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	st := s.stockLocked(scope, r)
	st.demand, st.last = st.demandAt(now)+1, now
	s.wakeKeeper()
	if st.stale(now) {
		return netip.Addr{}, false
	}
	for len(st.ready) > 0 {
		addr := st.ready[0]
		st.ready = st.ready[1:]
		k := key{scope, addr}
		h := s.leases[k]
		if h == nil || h.owner != s.nodeOwner() || h.release != nil {
			continue
		}
		if h.uid == "" { // somebody deleted it
			s.returnLocked(h)
			continue
		}
		s.bindLocked(k, h, owner)
		return addr, true
	}
	return netip.Addr{}, false
}

// bindLocked makes a lease that the node keeps ahead an attachment's.
func (s *Store) bindLocked(k key, h *held, owner ipam.Owner) {
	s.memory.Pass(ipam.Lease{Scope: k.scope, Addr: k.addr, Owner: h.owner}, owner) // it was held for h.owner
	h.owner, h.unused = owner, time.Time{}
	delete(s.found, k)
	s.boundNowLocked(h)
}

// boundNowLocked notes that a lease that is the node's in the cluster is an
// attachment's, which is to be told there.
func (s *Store) boundNowLocked(h *held) {
	if h.bound {
		return
	}
	h.bound = true
	if s.unpublished++; s.unpublished == 1 {
		s.unpublishedSince = time.Now()
	}
}

// stockLocked gives the stock of a range, with what an earlier process kept of it.
func (s *Store) stockLocked(scope ipam.Scope, r ipam.Range) *stock {
	walk := walkKey{scope, r.Key()}
	st := s.stocks[walk]
	if st == nil {
		st = &stock{scope: scope, r: r, spans: r.Usable()}
		s.stocks[walk] = st
		for k := range s.spare {
			if k.scope == scope && within(st.spans, k.addr) {
				st.ready = append(st.ready, k.addr)
				delete(s.spare, k)
			}
		}
		slices.SortFunc(st.ready, netip.Addr.Compare)
	}
	return st
}

// returnLocked has a lease given back that is kept ahead.
func (s *Store) returnLocked(h *held) {
	if h.release == nil {
		h.release = &release{done: make(chan struct{})}
		s.poke()
	}
}

// keepAhead looks after what is kept ahead until ctx ends; what is kept then is found
// by the next process.
func (s *Store) keepAhead(ctx context.Context, users Users) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		s.account(ctx, users)
		s.mu.Lock()
		stocks := make([]*stock, 0, len(s.stocks))
		for walk, st := range s.stocks {
			if time.Since(st.last) > idleFor && len(st.ready) == 0 {
				delete(s.stocks, walk)
				continue
			}
			stocks = append(stocks, st)
		}
		s.mu.Unlock()
		var group sync.WaitGroup
		for _, st := range stocks {
			group.Go(func() { s.restock(ctx, st) })
		}
		group.Wait()
		select {
		case <-ctx.Done():
			return
		case <-s.taken:
		case <-tick.C:
		}
	}
}

// restock asks how many addresses may be kept ahead of a range, and sees to it.
func (s *Store) restock(ctx context.Context, st *stock) {
	asked := time.Now()
	s.mu.Lock()
	wanted := int(st.demandAt(asked)) / perAhead
	ask := asked.Sub(st.fresh) >= keepEvery && (wanted > 0 || len(st.ready) > 0)
	keeps := s.keepsLocked(st.scope, st.spans)
	s.mu.Unlock()
	var ahead adviser.Ahead
	answered := false
	if ask {
		ahead, answered = s.Keeper.Keep(ctx, string(st.scope), st.spans, keeps)
	}
	s.mu.Lock()
	if answered {
		st.most, st.fresh = ahead.Most, asked
		st.ready = slices.DeleteFunc(st.ready, func(addr netip.Addr) bool {
			h := s.leases[key{st.scope, addr}]
			if !slices.Contains(ahead.Back, addr) || h != nil && asked.Sub(h.unused) < settled {
				return false
			}
			s.returnReadyLocked(st.scope, addr)
			return true
		})
	}
	stale, idle := st.stale(asked), asked.Sub(st.last) > idleFor
	for len(st.ready) > 0 && (stale || idle || st.most == 0 || len(st.ready) > st.most+1) {
		last := len(st.ready) - 1
		s.returnReadyLocked(st.scope, st.ready[last])
		st.ready = st.ready[:last]
	}
	missing := min(st.most, wanted) - len(st.ready)
	if stale || asked.Before(s.away) || s.journal == "" || s.crowded {
		missing = 0
	}
	s.mu.Unlock()
	if missing > 0 && s.Epochs.closedNow() == nil {
		s.fill(ctx, st, missing)
	}
}

func (s *Store) returnReadyLocked(scope ipam.Scope, addr netip.Addr) {
	if h := s.leases[key{scope, addr}]; h != nil && h.owner == s.nodeOwner() {
		s.returnLocked(h)
	}
}

// keepsLocked are the addresses of spans that are kept ahead, those that are just
// taken or given back among them.
func (s *Store) keepsLocked(scope ipam.Scope, spans []ipam.Span) []netip.Addr {
	held, _ := s.memory.Held(context.Background(), s.nodeOwner()) // never fails
	var keeps []netip.Addr
	for _, lease := range held {
		if lease.Scope == scope && within(spans, lease.Addr) {
			keeps = append(keeps, lease.Addr)
		}
	}
	return keeps
}

// fill takes addresses ahead. The adviser is told before, so that at no time an
// address is kept that it knows nothing of.
func (s *Store) fill(ctx context.Context, st *stock, count int) {
	ctx, cancel := context.WithTimeout(ctx, releasePatience)
	defer cancel()
	var leases []ipam.Lease
	for _, addr := range s.Adviser.Candidates(ctx, string(st.scope), st.spans, count) {
		lease := ipam.Lease{Scope: st.scope, Addr: addr, Owner: s.nodeOwner()}
		if within(st.spans, addr) && s.holdFree(lease) {
			leases = append(leases, lease)
		}
	}
	if len(leases) == 0 {
		return
	}
	s.mu.Lock()
	keeps := s.keepsLocked(st.scope, st.spans)
	s.mu.Unlock()
	ahead, ok := s.Keeper.Keep(ctx, string(st.scope), st.spans, keeps)
	var group sync.WaitGroup
	for _, lease := range leases {
		group.Go(func() {
			if !ok || ahead.Most == 0 {
				_ = s.memory.Release(ctx, lease) // never fails
				return
			}
			t := &taker{Store: s}
			err := t.settle(context.WithoutCancel(ctx), lease, t.create(ctx, lease, st.r.Subnet.String(), false))
			if err != nil {
				return // who wants an address sees whether there is one
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if h := s.leases[keyOf(lease)]; h != nil {
				h.unused = time.Now()
				st.ready = append(st.ready, lease.Addr)
			}
		})
	}
	group.Wait()
}

// makeRoom has an address given back that this node keeps ahead and an attachment asks
// for by name.
func (t *taker) makeRoom(ctx context.Context, lease ipam.Lease) error {
	for returning := t.returnAhead(lease); returning != nil; returning = t.returnAhead(lease) {
		select {
		case <-returning:
		case <-ctx.Done():
			return unanswered(ctx.Err())
		}
	}
	return nil
}

// returnAhead has an address given back that this node keeps ahead, and tells when it
// is back; nil: the node does not keep it ahead.
func (s *Store) returnAhead(lease ipam.Lease) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.leases[keyOf(lease)]
	if _, unclear := s.found[keyOf(lease)]; h == nil || h.owner != s.nodeOwner() || unclear {
		return nil
	}
	s.returnLocked(h)
	return h.release.done
}

// returnOwnLocked has what this node keeps ahead of a range given back, since the
// range is full.
func (s *Store) returnOwnLocked(scope ipam.Scope, r ipam.Range) {
	for k, h := range s.leases {
		_, unclear := s.found[k]
		if k.scope == scope && h.owner == s.nodeOwner() && h.release == nil && !unclear && r.Contains(k.addr) {
			s.returnLocked(h)
		}
	}
}

// awaitKept holds an address of a range that seems to be full as soon as a node gives
// back one that it keeps ahead. The zero address: none does; waited: not any more.
func (t *taker) awaitKept(
	ctx context.Context, scope ipam.Scope, r ipam.Range, owner ipam.Owner, began time.Time,
) (addr netip.Addr, waited bool, err error) {
	if t.Keeper == nil {
		return netip.Addr{}, false, nil
	}
	spans := r.Usable()
	for {
		t.mu.Lock()
		keeps := t.keepsLocked(scope, spans)
		t.mu.Unlock()
		ahead, ok := t.Keeper.Keep(ctx, string(scope), spans, keeps)
		if !ok {
			return netip.Addr{}, false, nil
		}
		t.mu.Lock()
		t.silent[walkKey{scope, r.Key()}] = ahead.Silent
		t.mu.Unlock()
		if addr, err := t.advised(ctx, scope, r, owner); err != nil || addr.IsValid() {
			return addr, false, err
		}
		if time.Since(began) > takePatience {
			return netip.Addr{}, false, nil
		}
		if ahead.Kept == 0 {
			return netip.Addr{}, waited, nil
		}
		waited = true
		select {
		case <-time.After(keptPause):
		case <-ctx.Done():
			return netip.Addr{}, false, unanswered(ctx.Err())
		}
	}
}
