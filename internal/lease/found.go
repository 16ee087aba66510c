package lease

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/ipam"
)

// account sees who has the addresses that an earlier process of this node took ahead.
// Those that records have were taken up with them (Hold).
func (s *Store) account(ctx context.Context, users Users) {
	if s.nameJournal() != nil {
		return
	}
	s.returnSpare()
	s.mu.Lock()
	some := len(s.found) > 0
	s.mu.Unlock()
	if !some {
		return
	}
	if _, err := s.Epochs.enter(ctx); err != nil {
		return // an older copy may tell of them, and others have them by now: clean gives them back
	}
	if others, err := s.judgeFound(ctx); err == nil && others {
		s.outwait(ctx, users)
	}
}

// nameJournal finds out which records tell who has what is taken ahead.
func (s *Store) nameJournal() error {
	s.mu.Lock()
	known := s.Journal == nil || s.journal != ""
	s.mu.Unlock()
	if known {
		return nil
	}
	journal, err := s.Journal()
	if err != nil {
		s.Log.Error("addresses are not taken ahead: nothing would tell who has them", "err", err)
		return fmt.Errorf("name the records of this node: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal = journal
	return nil
}

// judgeFound takes up what is known of addresses that were found, and says whether
// there are others.
func (s *Store) judgeFound(ctx context.Context) (others bool, err error) {
	bindings, err := s.readBindings(ctx)
	if err != nil {
		return false, fmt.Errorf("read which Pods have addresses that were taken ahead: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	boot, _, _ := strings.Cut(s.journal, "/")
	for k, journal := range s.found {
		h := s.leases[k]
		if h == nil || h.owner != s.nodeOwner() || h.release != nil {
			delete(s.found, k)
			continue
		}
		is, bound := bindings[h.uid]
		switch {
		case bound:
			s.bindLocked(k, h, ipam.AttachmentOwner(is.Sandbox, is.Interface)) // if that is gone, Sweep gives it back
		case s.journal != "" && (journal == s.journal || !strings.HasPrefix(journal, boot+"/")):
			// Our records are those of then, and tell of nobody; or all of then is gone.
			delete(s.found, k)
			s.spare[k] = time.Now()
		default:
			others = true
		}
	}
	return others, nil
}

// outwait gives back what was taken ahead under records that are lost, once none of
// the sandboxes is there any more that may have it.
func (s *Store) outwait(ctx context.Context, users Users) {
	there, err := users.Sandboxes(ctx)
	if err != nil {
		return // again, soon
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.strangers == nil {
		s.strangers = maps.Clone(there)
		s.Log.Warn("records of this node are lost; addresses that it took ahead stay held until the sandboxes of now have ended", "count", len(s.found))
	}
	maps.DeleteFunc(s.strangers, func(id string, _ bool) bool { return !there[id] })
	if len(s.strangers) > 0 {
		return
	}
	for k := range s.found {
		s.returnReadyLocked(k.scope, k.addr)
	}
	clear(s.found)
	s.strangers = nil
}

// returnSpare gives back what an earlier process kept ahead of ranges of which nobody
// takes any more.
func (s *Store) returnSpare() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, since := range s.spare {
		if s.Keeper == nil || time.Since(since) > idleFor {
			delete(s.spare, k)
			s.returnReadyLocked(k.scope, k.addr)
		}
	}
}
