package nodeagent

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
)

// Of is that of the leases, and measures how long each address takes.
func (l *leases) Of(box *record.Sandbox, a *record.Attachment, config ipam.Config) ipam.Store {
	return measured{l.Store.Of(box, a, config), l.agent.count.AddressTaken}
}

// measured tells how long addresses take, and what came of it.
type measured struct {
	ipam.Store
	tell func(result string, took time.Duration)
}

// TakeFrom is the store's.
func (m measured) TakeFrom(ctx context.Context, scope ipam.Scope, r ipam.Range, owner ipam.Owner) (netip.Addr, error) {
	began := time.Now()
	addr, err := m.Store.TakeFrom(ctx, scope, r, owner)
	m.tell(resultOf(err), time.Since(began))
	return addr, err
}

// Take is the store's.
func (m measured) Take(ctx context.Context, lease ipam.Lease) error {
	began := time.Now()
	err := m.Store.Take(ctx, lease)
	m.tell(resultOf(err), time.Since(began))
	return err
}

// resultOf is how metrics call what came of it.
func resultOf(err error) string {
	switch {
	case err == nil:
		return "given"
	case errors.Is(err, ipam.ErrExhausted):
		return "exhausted"
	case errors.Is(err, ipam.ErrTaken):
		return "taken"
	case errors.Is(err, ipam.ErrUnanswered):
		return "unanswered"
	}
	return "refused"
}
