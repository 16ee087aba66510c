package chain

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
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

// String tells the differences.
func (f Finding) String() string {
	return fmt.Sprintf("interface %s (network %s) lacks: %s", f.Interface, f.Network, strings.Join(f.Lacks, "; "))
}

// Inspect compares the attachments of a sandbox with the kernel. It gives the
// record too, of which nothing may be changed. Unlike Check it runs no plugin, so it
// may be called often, and of a primary network that another's plugin made it looks
// only whether the link is there, up, and has its addresses: its vendor looks after
// the rest, in ways we do not know.
func (e *Engine) Inspect(ctx context.Context, id string) (*record.Sandbox, []Finding, error) {
	box, unlock, err := e.locked(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if err := refuseGone(box); err != nil {
		return nil, nil, err
	}
	eyes := e.look(box.NetNS)
	eyes.often = true
	defer eyes.close()
	found, err := e.inspectWhole(ctx, eyes, box)
	return box, found, err
}

// inspectWhole compares the attachments and what the host has for them together.
func (e *Engine) inspectWhole(ctx context.Context, eyes *look, box *record.Sandbox) ([]Finding, error) {
	all, err := e.inspectAll(ctx, eyes, box)
	if err != nil || !slices.ContainsFunc(box.Attachments, masqueraded) {
		return all, err
	}
	lacks, err := e.masqueradeLacks(ctx)
	for i, a := range box.Attachments {
		if masqueraded(a) && lacks != "" {
			all[i].Lacks = append(all[i].Lacks, lacks)
		}
	}
	return all, err
}

// remake is the remedy for what cannot be put right in place.
const remake = "delete the sandbox and let it be made again"

// refuseGone refuses a sandbox whose namespace is gone.
func refuseGone(box *record.Sandbox) error {
	if !namespaceGone(box.NetNS) {
		return nil
	}
	return &hint.Error{Field: "network namespace", Value: box.NetNS, Problem: "is gone", Remedy: remake, Err: ErrChanged}
}

func (e *Engine) inspectAll(ctx context.Context, eyes *look, box *record.Sandbox) ([]Finding, error) {
	var all []Finding
	native := map[int]netstate.Plan{} // by place in all
	var plans []netstate.Plan
	for i, a := range box.Attachments {
		found, want, err := inspect(eyes, a)
		if err != nil {
			return nil, fmt.Errorf("inspect %s: %w", a.Interface, err)
		}
		if want != nil {
			native[i], plans = *want, append(plans, *want)
		}
		all = append(all, found)
	}
	if len(native) > 1 { // one look at them all mostly suffices
		ops, err := e.Dataplane.Check(ctx, box.NetNS, mergePlans(plans...))
		if err != nil || len(ops) == 0 {
			return all, err
		}
	}
	for i, want := range native {
		a := box.Attachments[i]
		var err error
		if all[i].Lacks, err = e.inspectNative(ctx, box, a, want, all[i].Rewired != ""); err != nil {
			return nil, fmt.Errorf("inspect %s: %w", a.Interface, err)
		}
	}
	return all, nil
}

// inspect compares one attachment, but for the plan that a native one must
// have: that is returned.
func inspect(eyes *look, a *record.Attachment) (Finding, *netstate.Plan, error) {
	found := Finding{Interface: a.Interface, Network: a.Network}
	if a.Stage != record.Attached {
		found.Lacks = []string{fmt.Sprintf("it is %s, not attached: %s", a.Stage, a.Reason)}
		return found, nil, nil
	}
	rewired, err := eyes.rewired(a)
	if err != nil {
		return found, nil, err
	}
	for _, now := range rewired {
		found.Rewired = now.Name
	}
	if now, ok := rewired[a.Interface]; ok {
		found.Rewired = now.Name
	}
	if found.Lacks, err = eyes.gone(a); err != nil || len(found.Lacks) > 0 {
		return found, nil, err
	}
	switch {
	case a.NativeMain && len(rewired) > 0:
		want := planRewired(a.Plan, rewired)
		return found, &want, nil
	case a.NativeMain:
		want := planMade(a)
		return found, &want, nil
	case len(rewired) == 0:
		found.Lacks, err = inspectForeign(eyes, a)
	}
	return found, nil, err
}

// gone lists the links of the Pod that are gone, though another one may have
// their name.
func (l *look) gone(a *record.Attachment) ([]string, error) {
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
		told := fmt.Sprintf("link %s, which is gone", made.Name)
		if len(now) > 0 {
			told = fmt.Sprintf("link %s with index %d: another link has that name, with index %d", made.Name, made.Index, now[0].Index)
		}
		out = append(out, told)
	}
	return out, nil
}

// planMade is the plan of a native attachment with what was not asked for and is
// known since it was made.
func planMade(a *record.Attachment) netstate.Plan {
	want := a.Plan
	if len(a.Moved) > 0 {
		// A guest has the addresses; with them went the routes. They are the concern
		// of whoever moved them.
		want.Pod.Addrs, want.Pod.Routes = nil, nil
		return want
	}
	want.Pod.Links = slices.Clone(want.Pod.Links)
	for i := range want.Pod.Links {
		l := &want.Pod.Links[i]
		if made := linkOf(a, string(l.Name)); l.MTU == 0 && l.Presence == netstate.Owned && made != nil {
			l.MTU = made.MTU
		}
	}
	return want
}

// inspectNative gives the operations that would make the attachment whole, but
// for those that undo what plugins after ours did.
func (e *Engine) inspectNative(ctx context.Context, box *record.Sandbox, a *record.Attachment, want netstate.Plan, rewired bool) ([]string, error) {
	ops, err := e.Dataplane.Check(ctx, box.NetNS, want)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, op := range ops {
		if op.Deletes() && (len(a.Moved) > 0 || rewired) || slices.Contains(a.ByPlugins, op.String()) {
			continue
		}
		found = append(found, op.String())
	}
	return found, nil
}

// settled notes what the plugins of a list made of the link that is ours.
func (t *attaching) settled(ctx context.Context) error {
	for _, w := range t.work {
		if w.Native == nil || len(w.Conf.Plugins) < 2 {
			continue
		}
		var err error
		if w.rec.ByPlugins, err = t.inspectNative(ctx, t.box, w.rec, planMade(w.rec), false); err != nil {
			return fmt.Errorf("look at interface %s: %w", w.Interface, err)
		}
	}
	return nil
}

// inspectForeign compares the links of a foreign attachment with those observed
// when it was made.
func inspectForeign(eyes *look, a *record.Attachment) ([]string, error) {
	var found []string
	for _, made := range a.Links {
		if made.Side != netstate.Pod {
			continue
		}
		lacks, err := inspectLink(eyes, a, made)
		if err != nil {
			return nil, err
		}
		found = append(found, lacks...)
	}
	if len(a.Moved) > 0 || eyes.leaves(a) {
		return found, nil
	}
	has, err := eyes.podDefaults(a.Interface)
	if err != nil {
		return found, err
	}
	for _, r := range a.HasDefaults {
		if !slices.ContainsFunc(has, func(h netstate.Route) bool { return h.Dst == r.Dst && h.Via == r.Via }) {
			found = append(found, "ip route add "+r.String())
		}
	}
	return found, nil
}

func inspectLink(eyes *look, a *record.Attachment, made record.Link) ([]string, error) {
	links, err := eyes.podLinks([]netstate.IfName{made.Name})
	if err != nil {
		return nil, err
	}
	if len(links) == 0 || len(a.Moved) > 0 {
		return nil, nil // it went this moment, or a guest has what it had
	}
	var found []string
	set := func(differs bool, format string, value any) {
		if differs {
			found = append(found, fmt.Sprintf("ip link set %s "+format, made.Name, value))
		}
	}
	now := links[0]
	if !eyes.leaves(a) {
		set(now.MAC != made.MAC, "address %s", made.MAC)
		set(made.MTU != 0 && now.MTU != made.MTU, "mtu %d", made.MTU)
	}
	set(made.Up && !now.Up, "%s", "up")
	for _, p := range made.Addrs {
		if !slices.Contains(now.Addrs, p) {
			found = append(found, fmt.Sprintf("ip addr add %s dev %s", p, made.Name))
		}
	}
	return found, nil
}

// lasting lists the addresses of a link that stay until somebody takes them off.
func lasting(conn *linux.Conn, link linux.Link) ([]netip.Prefix, error) {
	addrs, err := conn.Addrs(link.Index)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_PERMANENT != 0 && !a.Prefix.Addr().IsLinkLocalUnicast() {
			out = append(out, a.Prefix)
		}
	}
	return out, nil
}
