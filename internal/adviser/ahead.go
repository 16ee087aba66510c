package adviser

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/ipam"
)

const (
	// mostAhead bounds how many addresses of a range a node keeps ahead. All nodes
	// together keep one of shareAhead of those that are free.
	mostAhead, shareAhead = 8, 4
	// Told is for how long what a node said of its addresses is believed, and counting
	// for how long it is one of those that share a range.
	Told, counting = 10 * time.Second, 2 * time.Minute
	// leavingFor is for how long an address that a node keeps no more may be on its way
	// back; else a Pod has it. What was given back is heard of a little later.
	leavingFor = 2 * time.Second
)

// Ahead is what a node is told of addresses that it keeps ahead of its Pods.
type Ahead struct {
	// Most is how many of the range it may keep; if it is full, none.
	Most int
	// Kept is how many all nodes keep of a range that is full. They give them back
	// within seconds.
	Kept int
	// Back are those that are not the node's, as far as is known: nobody may have them.
	Back []netip.Addr
	// Silent are the nodes that keep some of a range that is full and were not heard from
	// for Told: what they keep is not awaited.
	Silent []Keeps
}

// Keeps is how many addresses a node keeps ahead.
type Keeps struct {
	Node  string
	Count int
}

// aheads are what nodes keep of the ranges of a scope, by the ranges' spans.
type aheads map[string]map[string]ahead

// ahead is what one node said.
type ahead struct {
	at    time.Time
	keeps []netip.Addr
	left  []expiry // what it kept before
}

// after gives what is known of a node that says what it keeps now.
func (a ahead) after(now time.Time, keeps []netip.Addr) ahead {
	next := ahead{at: now, keeps: keeps}
	for _, is := range a.left {
		if is.until.After(now) && !slices.Contains(keeps, is.addr) {
			next.left = append(next.left, is)
		}
	}
	for _, addr := range a.keeps {
		if !slices.Contains(keeps, addr) {
			next.left = append(next.left, expiry{addr, now.Add(leavingFor)})
		}
	}
	return next
}

// Keep takes note of what a node keeps ahead of spans, and says how many it may.
func (v *View) Keep(now time.Time, node, scope string, spans []ipam.Span, keeps []netip.Addr) (out Ahead) {
	usage := v.Usage(now, scope, spans)
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.scopeLocked(scope, now)
	nodes := s.ahead.of(spans, now)
	nodes[node] = nodes[node].after(now, keeps)
	free := max(0, usage.Size-float64(usage.Held)-float64(usage.Conflicts))
	if out.Most = int(min(mostAhead, free/float64(shareAhead*len(nodes)))); out.Most > 0 {
		return out
	}
	for _, nodes := range s.ahead {
		for _, is := range nodes {
			if now.Sub(is.at) > Told {
				continue
			}
			for _, addr := range is.keeps {
				if within(spans, addr) {
					out.Kept++
				}
			}
			for _, left := range is.left {
				if _, waits := s.waits[left.addr]; left.until.After(now) && !waits && s.busy.contains(left.addr) && within(spans, left.addr) {
					out.Kept++
				}
			}
		}
	}
	return out
}

// Heard says whether a node told lately what it keeps ahead in a scope.
func (v *View) Heard(now time.Time, node, scope string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, nodes := range v.scopeLocked(scope, now).ahead {
		if is, ok := nodes[node]; ok && now.Sub(is.at) <= Told {
			return true
		}
	}
	return false
}

// of gives what nodes keep of spans, without those that were not heard of for long.
func (a aheads) of(spans []ipam.Span, now time.Time) map[string]ahead {
	texts := make([]string, 0, len(spans))
	for _, span := range spans {
		texts = append(texts, span.String())
	}
	key := strings.Join(texts, ",")
	for other, nodes := range a {
		for node, is := range nodes {
			if now.Sub(is.at) > counting {
				delete(nodes, node)
			}
		}
		if len(nodes) == 0 && other != key {
			delete(a, other)
		}
	}
	if a[key] == nil {
		a[key] = map[string]ahead{}
	}
	return a[key]
}
