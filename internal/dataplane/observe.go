package dataplane

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// observe reads both sides. The result holds the links either plan names and
// those in scope, and of what hangs on them what is wanted or ours.
func (s *session) observe() (netstate.Plan, error) {
	have := netstate.Plan{Alias: s.want.Alias}
	for _, v := range s.views() {
		if v.side == netstate.Pod || s.searchHost {
			if err := v.readAll(); err != nil {
				return netstate.Plan{}, fmt.Errorf("observe %s: %w", v.side, err)
			}
		}
	}
	for _, v := range s.views() {
		o := observer{session: s, view: v, want: s.want.At(v.side), last: s.last.At(v.side), have: have.At(v.side)}
		if err := o.all(); err != nil {
			return netstate.Plan{}, fmt.Errorf("observe %s: %w", v.side, err)
		}
	}
	return have, nil
}

// observer reads one side.
type observer struct {
	*session
	view       *view
	want, last *netstate.State
	have       *netstate.State
	// present are the links read into have, by index.
	present map[int]netstate.Link
}

func (o *observer) all() error {
	if err := o.links(); err != nil {
		return err
	}
	for _, read := range []func() error{o.addrs, o.routes, o.rules, o.fdb, o.sysctls, o.tables} {
		if err := read(); err != nil {
			return err
		}
	}
	return nil
}

// names are the links either plan names or hangs something on.
func (o *observer) names() []netstate.IfName {
	var names []netstate.IfName
	for _, st := range []*netstate.State{o.want, o.last} {
		for _, l := range st.Links {
			names = append(names, l.Name)
		}
		for _, a := range st.Addrs {
			names = append(names, a.Link)
		}
		for _, r := range st.Routes {
			names = append(names, r.Link)
		}
		for _, e := range st.FDB {
			names = append(names, e.Port)
		}
	}
	for name, l := range o.view.links {
		if l.Alias != "" && o.scope[l.Alias] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (o *observer) links() error {
	o.present = map[int]netstate.Link{}
	var errs []error
	for _, name := range o.names() {
		l, err := o.view.link(name)
		if errors.Is(err, linux.ErrNoLink) {
			continue
		}
		if err != nil {
			return err
		}
		presence, err := o.presence(l)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if presence == "" {
			continue
		}
		link, err := o.convert(l, presence)
		if err != nil {
			return err
		}
		o.have.Links = append(o.have.Links, link)
		o.present[l.Index] = link
	}
	return errors.Join(errs...)
}

// presence says how far a link that is there is ours; empty: not at all, and
// nobody asked for it.
func (o *observer) presence(l linux.Link) (netstate.Presence, error) {
	w, ok := find(o.want.Links, l.Name)
	if !ok {
		w, ok = find(o.last.Links, l.Name)
		if ok && w.Presence == netstate.Owned && !o.scope[l.Alias] && !halfMade(l, w) {
			return "", nil // a stranger's by now
		}
	}
	switch {
	case !ok && l.Alias != "" && o.scope[l.Alias]:
		return netstate.Owned, nil
	case !ok:
		return netstate.Existing, nil
	case w.Presence == netstate.Existing:
		return netstate.Existing, nil
	case w.Presence == netstate.Shared:
		return o.sharedPresence(l, w)
	case o.scope[l.Alias] || halfMade(l, w):
		return netstate.Owned, nil
	}
	return "", strangersLink(l, w)
}

// sharedPresence tells a shared link we made from one a stranger made.
func (o *observer) sharedPresence(l linux.Link, w netstate.Link) (netstate.Presence, error) {
	if w.Kind != "" && l.Kind != w.Kind {
		return "", &hint.Error{
			Field: "link", Value: string(l.Name), Problem: fmt.Sprintf("is of type %q, want %q", l.Kind, w.Kind),
			Remedy: "choose another name, or delete that link if nothing needs it",
		}
	}
	instance, _, marked := netstate.ParseAlias(l.Alias)
	if marked && instance == o.d.instance || halfMade(l, w) {
		return netstate.Shared, nil
	}
	return netstate.Existing, nil
}

// halfMade says whether a link is one we made and died before marking: the
// group is the mark the kernel takes in the message that creates a link.
func halfMade(l linux.Link, w netstate.Link) bool {
	return l.Alias == "" && w.Group != 0 && l.Group == w.Group && (w.Kind == "" || l.Kind == w.Kind)
}

func strangersLink(l linux.Link, w netstate.Link) error {
	problem := "exists and is not ours"
	if _, owner, ok := netstate.ParseAlias(l.Alias); ok {
		problem = fmt.Sprintf("exists and belongs to %s", owner)
	}
	return &hint.Error{
		Field: "link", Value: string(l.Name), Problem: problem,
		Remedy: fmt.Sprintf("choose another name, or delete that link (%s) if nothing needs it: ip link del %s", cmpKind(l.Kind), w.Name),
	}
}

func cmpKind(k netstate.Kind) string {
	if k == "" {
		return "a device"
	}
	return "type " + string(k)
}

func find(links []netstate.Link, name netstate.IfName) (netstate.Link, bool) {
	for _, l := range links {
		if l.Name == name {
			return l, true
		}
	}
	return netstate.Link{}, false
}

// convert gives a link in the plan's own type.
func (o *observer) convert(l linux.Link, presence netstate.Presence) (netstate.Link, error) {
	promisc, allMulti := l.Flags&unix.IFF_PROMISC != 0, l.Flags&unix.IFF_ALLMULTI != 0
	link := netstate.Link{
		Name: l.Name, Kind: l.Kind, Presence: presence, Alias: l.Alias, Group: l.Group,
		MAC: l.MAC, MTU: l.MTU, TxQueueLen: l.TxQueueLen, Up: l.Flags&unix.IFF_UP != 0,
		Promisc: &promisc, AllMulticast: &allMulti, Port: l.Port,
		NoIPv6LinkLocal: l.AddrGenModeNone, Bridge: l.Bridge, Tap: ourTap(l),
	}
	if l.Master != 0 {
		master, err := o.view.byIndex(l.Master)
		if err != nil && !errors.Is(err, linux.ErrNoLink) {
			return netstate.Link{}, err
		}
		link.Master = master.Name
	}
	switch l.Kind {
	case netstate.KindVeth:
		side, peer, err := o.parent(l)
		if err != nil {
			return netstate.Link{}, err
		}
		if peer.Parent == l.Index {
			link.Veth = &netstate.Veth{PeerSide: side, PeerName: peer.Name}
		}
	case netstate.KindMacvlan:
		side, parent, err := o.parent(l)
		if err != nil {
			return netstate.Link{}, err
		}
		m := netstate.Macvlan{ParentSide: side, Parent: parent.Name}
		if l.Macvlan != nil {
			m.Mode, m.BCQueueLen = l.Macvlan.Mode, l.Macvlan.BCQueueLen
		}
		link.Macvlan = &m
	}
	return link, nil
}

// ourTap leaves out a TAP that is not persistent or has no owner: it is none
// that we finished, and is made anew.
func ourTap(l linux.Link) *netstate.Tap {
	if !l.TapPersists || !l.TapOwned {
		return nil
	}
	return l.Tap
}

// parent finds the link that IFLA_LINK names: in this namespace, or, as far as
// we look, in the other one. A zero Link means that it is neither.
func (o *observer) parent(l linux.Link) (netstate.Side, linux.Link, error) {
	v := o.view
	if l.ParentNS >= 0 {
		v = o.other()
	}
	if v == nil || l.Parent == 0 {
		return "", linux.Link{}, nil
	}
	parent, err := v.byIndex(l.Parent)
	if errors.Is(err, linux.ErrNoLink) {
		return v.side, linux.Link{}, nil
	}
	return v.side, parent, err
}

func (o *observer) other() *view {
	if o.view.side == netstate.Host {
		return o.pod
	}
	return o.host
}
