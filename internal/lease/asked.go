package lease

import (
	"context"
	"net/netip"
	"sync"

	"github.com/weftnet/weft/internal/ipam"
)

// questions joins what attachments ask the adviser of the same range at the same time,
// such as all interfaces of a Pod: while it is asked, others wait together for the next
// question, which is one for all of them.
type questions struct {
	// mu guards what follows.
	mu sync.Mutex
	// next is the question that follows the one that is under way.
	next map[walkKey]*question
}

// mostAsked bounds how many share a question.
const mostAsked = 64

// question is one that several may share.
type question struct {
	count    int             // who share it
	previous <-chan struct{} // closed when the one before is answered
	answered chan struct{}
	addrs    []netip.Addr // the answer
}

// candidate asks the adviser for one address of a range; none: it knows none.
func (s *Store) candidate(ctx context.Context, scope ipam.Scope, r ipam.Range, spans []ipam.Span) []netip.Addr {
	k := walkKey{scope, r.Key()}
	s.questions.mu.Lock()
	q, busy := s.questions.next[k]
	if !busy {
		q = &question{answered: make(chan struct{})}
		s.followLocked(k, q)
	}
	place := q.count
	if place == mostAsked {
		s.questions.mu.Unlock()
		return s.Adviser.Candidates(ctx, string(scope), spans, 1)
	}
	q.count++
	s.questions.mu.Unlock()
	if place == 0 {
		s.put(context.WithoutCancel(ctx), k, q, busy, spans) // others wait for it
	}
	select {
	case <-q.answered:
	case <-ctx.Done():
		return nil
	}
	if place >= len(q.addrs) {
		return nil
	}
	return q.addrs[place : place+1]
}

// followLocked begins the question that follows another.
func (s *Store) followLocked(k walkKey, q *question) {
	s.questions.next[k] = &question{previous: q.answered, answered: make(chan struct{})}
}

// put asks a question, after the one before if there is one.
func (s *Store) put(ctx context.Context, k walkKey, q *question, wait bool, spans []ipam.Span) {
	if wait {
		<-q.previous
		s.questions.mu.Lock()
		s.followLocked(k, q) // nobody joins q any more
		s.questions.mu.Unlock()
	}
	q.addrs = s.Adviser.Candidates(ctx, string(k.scope), spans, q.count)
	s.questions.mu.Lock()
	defer s.questions.mu.Unlock()
	if s.questions.next[k].count == 0 {
		delete(s.questions.next, k)
	}
	close(q.answered)
}
