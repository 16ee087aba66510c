package lease

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/whereabouts"
)

// Without advice nodes do not know each other's addresses. Each walks a range upward
// from a place of its own, so that they seldom meet; where another was faster it goes
// on at a random place, and after lookAfter of those in a row it reads which addresses of
// the range are held. Only such a reading, of after the question, proves that a range
// is exhausted. Beside Whereabouts all that is upside down: see mixed.go.
const (
	lookAfter = 6
	// learnedFor is how long what another node holds is believed to be held; from
	// forgetFrom addresses on it is seen to that older ones are forgotten.
	learnedFor, forgetFrom = 10 * time.Second, 256
	// window bounds how much of a wide range is used: more than a cluster holds, and
	// so much that two random places in it never meet.
	window = 1 << 32
	// scanLimit bounds one walk over addresses that are known to be held.
	scanLimit = 1 << 17
)

// walkKey is a range in its scope.
type walkKey struct {
	scope ipam.Scope
	key   string // ipam.Range.Key, or its subnet for looks
}

// learned is that another node holds an address.
type learned struct {
	when time.Time
	// pool is where that was read; empty: the node was faster.
	pool string
}

var errNoneKnown = errors.New("no address is known to be free")

// TakeFrom holds an address of a range for the attachment, in the cluster.
func (t *taker) TakeFrom(ctx context.Context, scope ipam.Scope, r ipam.Range, owner ipam.Owner) (netip.Addr, error) {
	if err := t.Epochs.closedNow(); err != nil {
		return netip.Addr{}, err
	}
	giving, err := t.permitted(ctx, scope)
	if err != nil {
		return netip.Addr{}, err
	}
	far := giving.By == whereabouts.Mixed
	if !far {
		if addr, ok := t.fromStock(scope, r, owner); ok {
			return addr, nil
		}
		if addr, err := t.advised(ctx, scope, r, owner); err != nil || addr.IsValid() {
			return addr, err
		}
	}
	first, conflicts := time.Now(), 0
	began := first
	for {
		lease, err := t.next(scope, r, owner, far)
		if errors.Is(err, errNoneKnown) {
			again, err := t.seek(ctx, scope, r, began)
			if err != nil {
				return netip.Addr{}, err
			}
			if again {
				continue
			}
			if far {
				return netip.Addr{}, t.exhausted(scope, r)
			}
			addr, waited, err := t.awaitKept(ctx, scope, r, owner, first)
			if err != nil || addr.IsValid() {
				return addr, err
			}
			if !waited {
				return netip.Addr{}, t.exhausted(scope, r)
			}
			began = time.Now() // what was read is old
			continue
		}
		if err != nil {
			return netip.Addr{}, err
		}
		err = t.create(ctx, lease, r.Subnet.String(), false)
		if err == nil {
			return lease.Addr, nil
		}
		taken := errors.Is(err, ipam.ErrTaken)
		if taken {
			t.lost(lease, r, far)
		}
		if err := t.settle(ctx, lease, err); !taken {
			return netip.Addr{}, err
		}
		if conflicts++; conflicts%lookAfter == 0 {
			if err := t.look(ctx, scope, r); err != nil {
				return netip.Addr{}, err
			}
		}
	}
}

// next holds the next address of a range in memory that is not known to be held. far: it
// walks down from the highest.
func (s *Store) next(scope ipam.Scope, r ipam.Range, owner ipam.Owner, far bool) (ipam.Lease, error) {
	spans := r.Usable()
	size := sizeOf(spans)
	if size == 0 {
		return ipam.Lease{}, ipam.ErrExhausted
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	walk := walkKey{scope, r.Key()}
	at, begun := s.walks[walk]
	if !begun && !far {
		hash := fnv.New64a()
		_, _ = hash.Write([]byte(s.Node + " " + string(scope) + " " + r.Key())) // never fails (hash.Hash)
		at = hash.Sum64() % size
	}
	others, now := s.others[scope], time.Now()
	for i := range min(size, scanLimit) {
		offset := (at + i) % size
		addr := nth(spans, offset)
		if far {
			addr = nth(spans, size-1-offset)
		}
		if s.memory.Holder(scope, addr) != "" { // its own owner neither, see holdFree
			continue
		}
		if other, known := others[addr]; known && now.Sub(other.when) < learnedFor {
			continue
		}
		lease := ipam.Lease{Scope: scope, Addr: addr, Owner: owner}
		if err := s.memory.Hold(lease); err != nil {
			continue // another goroutine was faster
		}
		s.walks[walk] = (offset + 1) % walked(size, far)
		return lease, nil
	}
	return ipam.Lease{}, errNoneKnown
}

// walked is how many addresses of a range are walked over and over, as long as one of
// them is free: the far half is left to weft as long as it can.
func walked(size uint64, far bool) uint64 {
	if far {
		return (size + 1) / 2
	}
	return size
}

// lost learns that another node was faster, and goes on somewhere else.
func (s *Store) lost(lease ipam.Lease, r ipam.Range, far bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	others, now := s.othersLocked(lease.Scope), time.Now()
	if len(others) >= forgetFrom {
		maps.DeleteFunc(others, func(_ netip.Addr, other learned) bool { return now.Sub(other.when) > learnedFor })
	}
	if other := others[lease.Addr]; other.pool == "" || now.Sub(other.when) > learnedFor {
		others[lease.Addr] = learned{when: now}
	}
	s.walks[walkKey{lease.Scope, r.Key()}] = rand.Uint64N(walked(sizeOf(r.Usable()), far)) //nolint:gosec // a place to look at, no secret
}

// othersLocked gives what is believed of other nodes in a scope.
func (s *Store) othersLocked(scope ipam.Scope) map[netip.Addr]learned {
	if s.others[scope] == nil {
		s.others[scope] = map[netip.Addr]learned{}
	}
	return s.others[scope]
}

// seek finds out whether a range is exhausted: false if it is.
func (s *Store) seek(ctx context.Context, scope ipam.Scope, r ipam.Range, began time.Time) (again bool, err error) {
	s.mu.Lock()
	if !s.looks[walkKey{scope, r.Subnet.String()}].After(began) {
		s.mu.Unlock()
		return true, s.look(ctx, scope, r)
	}
	// What an overlapping range has is not read, but tried, once in each search.
	for addr, other := range s.others[scope] {
		if other.pool == "" && other.when.Before(began) && r.Contains(addr) {
			delete(s.others[scope], addr)
			again = true
		}
	}
	s.returnOwnLocked(scope, r)
	var returning chan struct{}
	for k, h := range s.leases {
		if k.scope == scope && h.release != nil && r.Contains(k.addr) {
			returning = h.release.done
			break
		}
	}
	away := time.Now().Before(s.away)
	s.mu.Unlock()
	if again || returning == nil || away {
		return again, nil
	}
	waiting, cancel := context.WithTimeout(ctx, releasePatience)
	defer cancel()
	select {
	case <-returning:
		return true, nil
	case <-waiting.Done():
		return false, nil
	}
}

// look reads which addresses of a range's subnet are held.
func (s *Store) look(ctx context.Context, scope ipam.Scope, r ipam.Range) error {
	began, pool := time.Now(), r.Subnet.String()
	ctx, cancel := context.WithTimeout(ctx, takePatience)
	defer cancel()
	list, _, err := s.API.List(ctx, v1alpha1.AddressLeaseKind, store.Selector{Labels: map[string]string{v1alpha1.PoolLabel: label(text(pool))}})
	if err != nil {
		return unanswered(err)
	}
	reserved, err := s.reserved(ctx, scope, r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looks[walkKey{scope, pool}] = time.Now()
	s.countLocked(scope, r, list)
	others := s.othersLocked(scope)
	for addr, other := range others {
		if other.pool == pool || began.Sub(other.when) > learnedFor {
			delete(others, addr)
		}
	}
	for _, obj := range list {
		lease, err := v1alpha1.LeaseFromObject(obj)
		if err == nil && lease.Spec.Scope == string(scope) && lease.Spec.Node != s.Node {
			others[lease.Spec.IP] = learned{when: began, pool: pool}
		}
	}
	for addr := range reserved {
		if s.memory.Holder(scope, addr) != "" {
			continue
		}
		if others[addr].pool != pool && r.Contains(addr) {
			s.counts[walkKey{scope, r.Key()}]["Whereabouts"]++
		}
		others[addr] = learned{when: began, pool: pool}
	}
	return nil
}

// sizeOf gives how many addresses of spans are used, window at most.
func sizeOf(spans []ipam.Span) uint64 {
	var sum uint64
	for _, span := range spans {
		sum = min(sum+sizeOfOne(span), window)
	}
	return sum
}

func sizeOfOne(span ipam.Span) uint64 {
	first, last := span.First.As16(), span.Last.As16()
	high := binary.BigEndian.Uint64(last[:8]) - binary.BigEndian.Uint64(first[:8])
	low, least := binary.BigEndian.Uint64(last[8:]), binary.BigEndian.Uint64(first[8:])
	if low < least {
		high--
	}
	if high > 0 || low-least >= window-1 {
		return window
	}
	return low - least + 1
}

// nth gives the address at an offset below sizeOf(spans).
func nth(spans []ipam.Span, offset uint64) netip.Addr {
	for _, span := range spans {
		size := sizeOfOne(span)
		if offset < size {
			return plus(span.First, offset)
		}
		offset -= size
	}
	return netip.Addr{}
}

func plus(addr netip.Addr, n uint64) netip.Addr {
	raw := addr.As16()
	low := binary.BigEndian.Uint64(raw[8:])
	if low+n < low {
		binary.BigEndian.PutUint64(raw[:8], binary.BigEndian.Uint64(raw[:8])+1)
	}
	binary.BigEndian.PutUint64(raw[8:], low+n)
	if sum := netip.AddrFrom16(raw); !addr.Is4() {
		return sum
	}
	return netip.AddrFrom16(raw).Unmap()
}
