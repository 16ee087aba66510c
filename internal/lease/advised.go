package lease

import (
	"context"
	"errors"
	"net/netip"

	"github.com/weftnet/weft/internal/ipam"
)

// Adviser knows what the whole cluster holds, and may be wrong: what it proposes is
// tried.
type Adviser interface {
	// Candidates gives up to count addresses of spans that seem to be free, the best
	// first, soon; or none.
	Candidates(ctx context.Context, scope string, spans []ipam.Span, count int) []netip.Addr
}

// How many addresses the adviser is asked for: each time that others were faster,
// advisedMore times as many, up to advisedMost. Then this node goes on alone.
const (
	advisedMore = 4
	advisedMost = 16
)

// advised holds an address of a range that the adviser proposes. The zero address:
// there is no advice, or none that holds.
func (t *taker) advised(ctx context.Context, scope ipam.Scope, r ipam.Range, owner ipam.Owner) (netip.Addr, error) {
	if t.Adviser == nil {
		return netip.Addr{}, nil
	}
	spans := r.Usable()
	for count := 1; count <= advisedMost; count *= advisedMore {
		var candidates []netip.Addr
		if count == 1 {
			candidates = t.candidate(ctx, scope, r, spans)
		} else {
			candidates = t.Adviser.Candidates(ctx, string(scope), spans, count)
		}
		for _, addr := range candidates {
			lease := ipam.Lease{Scope: scope, Addr: addr, Owner: owner}
			if !within(spans, addr) || !t.holdFree(lease) {
				continue
			}
			err := t.create(ctx, lease, r.Subnet.String(), false)
			if err == nil {
				return addr, nil
			}
			taken := errors.Is(err, ipam.ErrTaken)
			if taken {
				t.lost(lease, r, false)
			}
			if err := t.settle(ctx, lease, err); !taken {
				return netip.Addr{}, err
			}
		}
		if len(candidates) < count {
			break // it knows no more
		}
	}
	return netip.Addr{}, nil
}

// holdFree holds an address in memory that nobody here has, its own owner neither:
// an attachment may want several of one range at the same time.
func (s *Store) holdFree(lease ipam.Lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memory.Holder(lease.Scope, lease.Addr) == "" && s.memory.Hold(lease) == nil
}

func within(spans []ipam.Span, addr netip.Addr) bool {
	for _, span := range spans {
		if span.Contains(addr) {
			return true
		}
	}
	return false
}
