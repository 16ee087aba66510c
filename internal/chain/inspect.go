package chain

import (
	"context"
	"fmt"
	"slices"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// Finding says how the kernel differs from what an attachment was made as.
type Finding struct {
	Interface netstate.IfName
	Network   string
	// Rewired, if set, is the name that the link has by now in a Pod that rewired
	// it. That is no difference, and neither is what the Pod made of the link.
	Rewired netstate.IfName
	// Lacks are the differences, as what would have to be done.
	Lacks []string
}

// inspect compares one attachment with the kernel and asks no plugin.
func (e *Engine) inspect(ctx context.Context, eyes *look, box *record.Sandbox, a *record.Attachment) (Finding, error) {
	found := Finding{Interface: a.Interface, Network: a.Network}
	rewired, err := eyes.rewired(a)
	if err != nil {
		return found, err
	}
	for _, now := range rewired {
		found.Rewired = now.Name
	}
	if now, ok := rewired[a.Interface]; ok {
		found.Rewired = now.Name
	}
	if replaced, err := eyes.replaced(a); err != nil || len(replaced) > 0 {
		found.Lacks = replaced
		return found, err
	}
	if a.NativeMain {
		found.Lacks, err = e.inspectNative(ctx, box, a, rewired)
	} else if len(rewired) == 0 {
		found.Lacks, err = inspectForeign(eyes, a)
	}
	return found, err
}

// replaced lists the links of the Pod that are gone while a stranger's link has
// their name.
func (l *look) replaced(a *record.Attachment) ([]string, error) {
	var out []string
	for _, made := range a.Links {
		if made.Side != netstate.Pod {
			continue
		}
		_, there, err := l.recorded(made, markOf(a, made))
		if err != nil {
			return nil, err
		}
		if there {
			continue
		}
		now, err := l.podLinks([]netstate.IfName{made.Name})
		if err != nil {
			return nil, err
		}
		if len(now) > 0 {
			out = append(out, fmt.Sprintf("link %s with index %d: another link has that name, with index %d", made.Name, made.Index, now[0].Index))
		}
	}
	return out, nil
}

// inspectNative gives the operations that would make the attachment whole.
func (e *Engine) inspectNative(ctx context.Context, box *record.Sandbox, a *record.Attachment, rewired map[netstate.IfName]linux.Link) ([]string, error) {
	want := a.Plan
	moved := len(a.Moved) > 0
	switch {
	case len(rewired) > 0:
		want = planRewired(want, rewired)
	case moved:
		// A guest has the addresses; with them went the routes. CHECK of those is
		// of whoever moved them.
		want.Pod.Addrs, want.Pod.Routes = nil, nil
	}
	ops, err := e.Dataplane.Check(ctx, box.NetNS, want)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, op := range ops {
		if op.Deletes() && (moved || len(rewired) > 0) {
			continue
		}
		found = append(found, op.String())
	}
	return found, nil
}

// inspectForeign compares the links of a foreign attachment with those observed
// when it was made.
func inspectForeign(eyes *look, a *record.Attachment) ([]string, error) {
	var found []string
	for _, l := range a.Links {
		if l.Side != netstate.Pod {
			continue
		}
		now, err := eyes.podLinks([]netstate.IfName{l.Name})
		if err != nil {
			return nil, err
		}
		switch {
		case len(now) == 0:
			found = append(found, fmt.Sprintf("link %s", l.Name))
		case now[0].MAC != l.MAC && len(a.Moved) == 0:
			found = append(found, fmt.Sprintf("link %s with address %s: it has %s", l.Name, l.MAC, now[0].MAC))
		}
	}
	has, err := eyes.podDefaults(a.Interface)
	if err != nil || len(a.Moved) > 0 {
		return found, err
	}
	for _, r := range a.HasDefaults {
		if !slices.ContainsFunc(has, func(h netstate.Route) bool { return h.Dst == r.Dst && h.Via == r.Via }) {
			found = append(found, "route "+r.String())
		}
	}
	return found, nil
}
