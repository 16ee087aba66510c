package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// Some Pods rewire the links they were given. KubeVirt's launcher renames a
// Pod's link, takes its addresses off, puts it into a bridge with a TAP, and
// leaves a link of its own under the old name with the old addresses. So a link
// is known by the index in its record and by our mark, not by its name, and what
// such a Pod made of a link is the Pod's business.

// rewired gives the links of an attachment that the Pod has renamed or put into a
// bridge of its own: by their name in the record, what they are now.
func (l *look) rewired(a *record.Attachment) (map[netstate.IfName]linux.Link, error) {
	var out map[netstate.IfName]linux.Link
	for _, made := range a.Links {
		if made.Side != netstate.Pod {
			continue
		}
		now, there, err := l.recorded(made, markOf(a, made))
		if err != nil {
			return nil, err
		}
		if !there || now.Name == made.Name && (now.Master == 0 || plannedMaster(a, made.Name)) {
			continue
		}
		if out == nil {
			out = map[netstate.IfName]linux.Link{}
		}
		out[made.Name] = now
	}
	return out, nil
}

func plannedMaster(a *record.Attachment, name netstate.IfName) bool {
	return slices.ContainsFunc(a.Plan.Pod.Links, func(l netstate.Link) bool { return l.Name == name && l.Master != "" })
}

// markOf is the alias a recorded link must bear; empty: none of ours.
func markOf(a *record.Attachment, made record.Link) string {
	if a.NativeMain && made.Alias == "" {
		return a.Alias
	}
	return made.Alias
}

// recorded finds a link of the Pod by the index it was made with. One that bears
// another's mark, or is of another kind, is another link.
func (l *look) recorded(made record.Link, mark string) (linux.Link, bool, error) {
	conn, err := l.conn(netstate.Pod)
	if err != nil {
		return linux.Link{}, false, err
	}
	now, err := conn.LinkByIndex(made.Index)
	if errors.Is(err, linux.ErrNoLink) {
		return linux.Link{}, false, nil
	}
	if err != nil {
		return linux.Link{}, false, err
	}
	same := (now.Alias == mark || now.Alias == "") && (made.Kind == "" || made.Kind == now.Kind)
	return now, same, nil
}

// planRewired is what is left to hold of a plan when the Pod has rewired its
// links: that they are there, and the host's part.
func planRewired(plan netstate.Plan, now map[netstate.IfName]linux.Link) netstate.Plan {
	want := netstate.Plan{Alias: plan.Alias, Host: plan.Host}
	want.Host.Links = slices.Clone(plan.Host.Links)
	for i := range want.Host.Links {
		l := &want.Host.Links[i]
		if l.Veth == nil || l.Veth.PeerSide != netstate.Pod {
			continue
		}
		if peer, ok := now[l.Veth.PeerName]; ok {
			l.Veth = &netstate.Veth{PeerSide: netstate.Pod, PeerName: peer.Name}
		}
	}
	for _, l := range plan.Pod.Links {
		name := l.Name
		if renamed, ok := now[name]; ok {
			name = renamed.Name
		}
		want.Pod.Links = append(want.Pod.Links, netstate.Link{Name: name, Presence: netstate.Existing})
	}
	return want
}

// nameBack gives renamed links the name back under which a foreign plugin's DEL
// looks for them, and says whether there was one.
func (u *undoing) nameBack(ctx context.Context, a *record.Attachment) (bool, error) {
	eyes := u.look(u.box.NetNS)
	defer eyes.close()
	rewired, err := eyes.rewired(a)
	if err != nil {
		return false, err
	}
	found := false
	for name, now := range rewired {
		if now.Name == name {
			continue
		}
		found = true
		if err := u.Dataplane.Rename(ctx, u.box.NetNS, now.Index, name); err != nil {
			return found, fmt.Errorf("give link %s its name %s back: %w", now.Name, name, err)
		}
	}
	return found, nil
}
