package dataplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// Facts is what the links of an applied plan have.
type Facts struct {
	Links []LinkFact
	// Ops counts the operations it took; 0: everything was there.
	Ops int
	// Sysctls are the values that were overwritten, by which a later plan can
	// put them back.
	Sysctls []SysctlFact
}

// LinkFact is one link.
type LinkFact struct {
	Side  netstate.Side
	Name  netstate.IfName
	Index int
	MAC   netstate.MAC
	MTU   int
}

// SysctlFact is the value a setting had before.
type SysctlFact struct {
	Side netstate.Side
	netstate.Sysctl
}

// Link finds one link.
func (f Facts) Link(side netstate.Side, name netstate.IfName) (LinkFact, bool) {
	for _, l := range f.Links {
		if l.Side == side && l.Name == name {
			return l, true
		}
	}
	return LinkFact{}, false
}

// finish waits for the addresses that ask for it and gathers the facts.
func (s *session) finish(ctx context.Context, facts Facts) (Facts, error) {
	for _, v := range s.views() {
		if err := s.settle(ctx, v); err != nil {
			return Facts{}, err
		}
		for _, w := range s.want.At(v.side).Links {
			l, err := v.link(w.Name)
			if err != nil {
				return Facts{}, fmt.Errorf("read link %s back: %w", w.Name, err)
			}
			facts.Links = append(facts.Links, LinkFact{Side: v.side, Name: l.Name, Index: l.Index, MAC: l.MAC, MTU: l.MTU})
		}
	}
	facts.Sysctls = s.oldSysctls
	return facts, nil
}

// Duplicate address detection takes about a second and a half (one probe,
// RetransTimer 1 s and up to half a second of delay; RFC 4862 sections 5.1, 5.4.2).
const (
	settleTimeout = 10 * time.Second // as long as the reference plugins wait
	settlePoll    = 10 * time.Millisecond
)

// settle waits until the addresses with Settle have passed duplicate address
// detection.
func (s *session) settle(ctx context.Context, v *view) error {
	for _, a := range s.want.At(v.side).Addrs {
		if !a.Settle || a.NoDAD || !a.Prefix.Addr().Is6() {
			continue
		}
		if err := settleOne(ctx, v, a); err != nil {
			return err
		}
	}
	return nil
}

func settleOne(ctx context.Context, v *view, a netstate.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	l, err := v.link(a.Link)
	if err != nil {
		return fmt.Errorf("wait for address %s: %w", a.Prefix, err)
	}
	for {
		addrs, err := v.conn.Addrs(l.Index)
		if err != nil {
			return fmt.Errorf("wait for address %s: %w", a.Prefix, err)
		}
		switch dadState(addrs, a) {
		case dadPassed:
			return nil
		case dadFailed:
			return &hint.Error{
				Field: "address", Value: a.Prefix.String(), Problem: "another machine on the network has it already",
				Remedy: "give one of the two another address",
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until address %s on %s is usable: %w", a.Prefix, a.Link, context.Cause(ctx))
		case <-time.After(settlePoll):
		}
	}
}

type dad int

const (
	dadRuns dad = iota
	dadPassed
	dadFailed
)

func dadState(addrs []linux.Addr, want netstate.Addr) dad {
	for _, a := range addrs {
		switch {
		case a.Prefix != want.Prefix:
		case a.DADFailed():
			return dadFailed
		case a.Tentative():
			return dadRuns
		default:
			return dadPassed
		}
	}
	return dadRuns
}

// errGone says whether err means that the object is not there any more.
func errGone(err error, also ...error) bool {
	for _, gone := range also {
		if errors.Is(err, gone) {
			return true
		}
	}
	return errors.Is(err, linux.ErrNoLink)
}
