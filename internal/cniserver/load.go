package cniserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/device"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
)

// Load is what a server is busy with.
type Load struct {
	// Working are calls being worked on, Waiting those for whom there was no room.
	Working, Waiting int
	// Kept are the DELs that weft-cni left and that are not done yet.
	Kept int
}

// Load gives the present load.
func (s *Server) Load() Load {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Load{Working: len(s.began), Waiting: s.waiting, Kept: s.kept}
}

// stuckAfter is how long a call may take: all that it waits for ends by callLimit.
const stuckAfter = callLimit + time.Minute

// Stuck says that a call does not end, which no plugin and no API server that is
// away can bring about.
func (s *Server) Stuck(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for call, began := range s.began {
		if took := now.Sub(began); took > stuckAfter {
			return fmt.Errorf("a CNI %s has been worked on for %s, and none should take more than %s", call.verb, took.Round(time.Second), callLimit)
		}
	}
	return nil
}

// turn is one call's.
type turn struct{ verb string }

// enter waits for room. The function it gives makes room. STATUS needs none:
// calls that take long must not make the node NotReady.
func (s *Server) enter(verb string) (leave func()) {
	if verb == "STATUS" {
		return s.measure(verb, "total")
	}
	call := &turn{verb: knownVerb(verb)}
	s.mu.Lock()
	s.waiting++
	s.mu.Unlock()
	queued := s.measure(call.verb, "queue")
	s.slots <- struct{}{}
	queued()
	total := s.measure(call.verb, "total")
	s.mu.Lock()
	s.waiting--
	s.began[call] = time.Now()
	s.mu.Unlock()
	return func() {
		<-s.slots
		s.mu.Lock()
		delete(s.began, call)
		s.mu.Unlock()
		total()
	}
}

func (s *Server) measure(verb, phase string) (end func()) {
	if s.cfg.Observe == nil {
		return func() {}
	}
	began := time.Now()
	return func() { s.cfg.Observe(chain.Phase{Verb: verb, Name: phase, Took: time.Since(began)}) }
}

// knownVerb keeps what somebody else writes out of names.
func knownVerb(verb string) string {
	if slices.Contains([]string{"ADD", "DEL", "CHECK", "STATUS", "GC"}, verb) {
		return verb
	}
	return "unknown"
}

// Cause sorts errors of calls into few kinds.
func Cause(err error) string {
	is := func(kinds ...error) bool {
		return slices.ContainsFunc(kinds, func(kind error) bool { return errors.Is(err, kind) })
	}
	_, config := errors.AsType[*hint.Error](err)
	switch {
	case is(chain.ErrUnknownNetwork):
		return "unknown-network"
	case is(chain.ErrPluginHung):
		return "plugin-hung"
	case is(chain.ErrNoPlugin):
		return "plugin-missing"
	case is(chain.ErrPluginFailed, chain.ErrPluginGarbage):
		return "plugin-failed"
	case is(ipam.ErrExhausted, ipam.ErrTaken, ipam.ErrRefused):
		return "address"
	case is(syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS):
		return "disk"
	case is(chain.ErrChanged):
		return "changed"
	case is(ErrTryAgain, device.ErrNotYet, ipam.ErrUnanswered, chain.ErrNoClaim):
		return "not-ready"
	case is(context.DeadlineExceeded, context.Canceled):
		return "timeout"
	case config:
		return "configuration"
	}
	return "internal"
}
