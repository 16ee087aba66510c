// Package adviser proposes addresses that nobody holds, from memory. What it says
// decides nothing: an address is taken by making its AddressLease. Advice that is
// behind, or two advisers who say the same, cost a node another try.
//
// It knows what it is told, with the time, and asks nobody.
package adviser

import (
	"net/netip"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/ipam"
)

// How long an address is not proposed.
const (
	// Cooldown is after it was given back: neighbours still know who had it.
	Cooldown = 5 * time.Second
	// Pending is after it was proposed: whoever asked makes its lease, or does not.
	Pending = 3 * time.Second
	// Quarantine is after somebody was found to use it without a lease.
	Quarantine = 10 * time.Minute
)

// reason is why an address that is not held is not proposed.
type reason int

const (
	cooling reason = iota
	pending
	quarantined
	reasons // how many there are
)

var lasting = [reasons]time.Duration{cooling: Cooldown, pending: Pending, quarantined: Quarantine}

// View is what is known of all addresses. Several goroutines may use it.
type View struct {
	// mu guards scopes.
	mu     sync.Mutex
	scopes map[string]*scope
}

// scope is what is known of the addresses that are unique together.
type scope struct {
	// busy are all that are not proposed: what is held and what is in waits.
	busy  set
	waits map[netip.Addr]wait
	// queues are the waits of each reason in the order in which they end. Those that
	// ended before their time are passed over.
	queues [reasons][]expiry
	ahead  aheads
}

type wait struct {
	why   reason
	until time.Time
}

type expiry struct {
	addr  netip.Addr
	until time.Time
}

// New gives a view of nothing.
func New() *View { return &View{scopes: map[string]*scope{}} }

// scopeLocked gives a scope as it is now.
func (v *View) scopeLocked(name string, now time.Time) *scope {
	s := v.scopes[name]
	if s == nil {
		s = &scope{waits: map[netip.Addr]wait{}, ahead: aheads{}}
		v.scopes[name] = s
	}
	for why := range s.queues {
		queue := s.queues[why]
		for len(queue) > 0 && !queue[0].until.After(now) {
			if is, ok := s.waits[queue[0].addr]; ok && is == (wait{reason(why), queue[0].until}) {
				delete(s.waits, queue[0].addr)
				s.busy.remove(queue[0].addr)
			}
			queue = queue[1:]
		}
		s.queues[why] = queue
	}
	return s
}

func (s *scope) wait(addr netip.Addr, why reason, now time.Time) {
	until := now.Add(lasting[why])
	s.busy.add(addr)
	s.waits[addr] = wait{why, until}
	s.queues[why] = append(s.queues[why], expiry{addr, until})
}

// Hold says that an address is held.
func (v *View) Hold(now time.Time, scope string, addr netip.Addr) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.scopeLocked(scope, now)
	s.busy.add(addr)
	delete(s.waits, addr)
}

// Release says that an address was given back.
func (v *View) Release(now time.Time, scope string, addr netip.Addr) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.scopeLocked(scope, now)
	if _, waits := s.waits[addr]; s.busy.contains(addr) && !waits {
		s.wait(addr, cooling, now)
	}
}

// Quarantine says that a stranger uses an address.
func (v *View) Quarantine(now time.Time, scope string, addr netip.Addr) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.scopeLocked(scope, now)
	if _, waits := s.waits[addr]; waits || !s.busy.contains(addr) {
		s.wait(addr, quarantined, now)
	}
}

// Candidates proposes up to count addresses of spans: the lowest that nobody
// holds, and if there is none, those that cool, the oldest first.
func (v *View) Candidates(now time.Time, scope string, spans []ipam.Span, count int) []netip.Addr {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.scopeLocked(scope, now)
	var out []netip.Addr
	for _, span := range spans {
		for len(out) < count {
			addr, ok := s.busy.lowest(span)
			if !ok {
				break
			}
			s.wait(addr, pending, now)
			out = append(out, addr)
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, old := range s.queues[cooling] {
		if len(out) == count {
			break
		}
		if s.waits[old.addr] == (wait{cooling, old.until}) && within(spans, old.addr) {
			s.wait(old.addr, pending, now)
			out = append(out, old.addr)
		}
	}
	return out
}

func within(spans []ipam.Span, addr netip.Addr) bool {
	for _, span := range spans {
		if span.Contains(addr) {
			return true
		}
	}
	return false
}

// Usage is how much of a range is in use.
type Usage struct {
	// Size is how many addresses there are, Held how many are held. Conflicts are in
	// quarantine.
	Size            float64
	Held, Conflicts uint64
}

// Usage gives that of spans in a scope.
func (v *View) Usage(now time.Time, scope string, spans []ipam.Span) (u Usage) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.scopeLocked(scope, now)
	for _, span := range spans {
		u.Size += span.Size()
		u.Held += s.busy.count(span)
	}
	for addr, is := range s.waits {
		if !within(spans, addr) {
			continue
		}
		u.Held--
		if is.why == quarantined {
			u.Conflicts++
		}
	}
	return u
}
