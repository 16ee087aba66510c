package cniserver

import (
	"context"
	"time"
)

// collectEvery is how often sandboxes that ended without a DEL are looked for:
// containerd never calls GC.
const collectEvery = 30 * time.Second

// collectAfter is for how long the runtime must not know a sandbox. Runtimes tell
// of one when it is set up, and take four minutes for that at most.
const collectAfter = 6 * time.Minute

// collect takes back what sandboxes have that ended without a DEL.
func (s *Server) collect(ctx context.Context) error {
	gone, err := s.cfg.Engine.Collect(ctx, s.strays(ctx))
	if len(gone) > 0 {
		s.cfg.Log.Info("took back what sandboxes had that ended without a DEL", "sandboxes", gone)
	}
	return err
}

// strays are the Pods' sandboxes that have a network namespace and that the
// runtime has not known for a while, at each look. A runtime that knows none of
// ours is not the one that made them.
func (s *Server) strays(ctx context.Context) map[string]bool {
	if s.cfg.Live == nil {
		return nil
	}
	s.collecting.Lock()
	defer s.collecting.Unlock()
	live, err := s.cfg.Live(ctx)
	if err != nil {
		if err.Error() != s.silence && ctx.Err() == nil {
			s.cfg.Log.Warn("which sandboxes are alive is told by their network namespaces alone", "err", err)
		}
		s.missing, s.silence = nil, err.Error()
		return nil
	}
	s.silence = ""
	ours, known := s.cfg.Engine.PodSandboxes(), false
	for _, id := range ours {
		known = known || live[id]
	}
	missing, strays := map[string]time.Time{}, map[string]bool{}
	for _, id := range ours {
		if live[id] || !known {
			continue
		}
		since, ok := s.missing[id]
		if !ok {
			since = time.Now()
		}
		missing[id] = since
		strays[id] = time.Since(since) >= s.cfg.CollectAfter
	}
	s.missing = missing
	return strays
}
