package netstate

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/nft"
)

// Defaults the kernel fills in.
const (
	tableMain    = 254  // RT_TABLE_MAIN, include/uapi/linux/rtnetlink.h
	metricIPv6   = 1024 // IP6_RT_PRIO_USER, include/uapi/linux/ipv6_route.h
	scopeUnivers = 0    // RT_SCOPE_UNIVERSE
)

// Normalize gives a copy of p in canonical form; see State.Normalize. Marks left
// out are filled in from the plan's.
func (p Plan) Normalize() Plan {
	return Plan{Alias: p.Alias, Host: p.Host.normalize(p.Alias), Pod: p.Pod.normalize(p.Alias)}
}

// Normalize gives a copy of s with slices sorted, duplicates dropped and values
// the kernel would fill in (route table, protocol, IPv6 metric) spelled out, so
// that equal states are equal values with equal text.
func (s State) Normalize() State { return s.normalize("") }

func (s State) normalize(alias string) State {
	n := State{
		Links:   slices.Clone(s.Links),
		Addrs:   slices.Clone(s.Addrs),
		Routes:  slices.Clone(s.Routes),
		Rules:   slices.Clone(s.Rules),
		FDB:     slices.Clone(s.FDB),
		Sysctls: slices.Clone(s.Sysctls),
		Tables:  slices.Clone(s.Tables),
	}
	for i := range n.Links {
		n.Links[i] = n.Links[i].normalize(alias)
	}
	for i, r := range n.Routes {
		n.Routes[i] = r.normalize()
	}
	for i, r := range n.Rules {
		r.From, r.To = wholeIsZero(r.From), wholeIsZero(r.To)
		n.Rules[i] = r
	}
	for i, c := range n.Sysctls {
		n.Sysctls[i] = Sysctl{Path: strings.Trim(c.Path, "/"), Value: strings.Join(strings.Fields(c.Value), " ")}
	}
	for i := range n.Tables {
		if n.Tables[i].Alias == "" {
			n.Tables[i].Alias = alias
		}
	}
	n.Links = sorted(n.Links, func(l Link) string { return string(l.Name) })
	n.Addrs = sorted(n.Addrs, func(a Addr) string { return string(a.Link) + " " + a.key() })
	n.Routes = sorted(n.Routes, Route.String)
	n.Rules = sorted(n.Rules, Rule.String)
	n.FDB = sorted(n.FDB, FDBEntry.String)
	n.Sysctls = sorted(n.Sysctls, func(c Sysctl) string { return c.Path })
	n.Tables = sorted(n.Tables, func(t nft.Table) string { return string(t.Family) + " " + t.Name })
	return n
}

// sorted sorts by key and keeps the last of equal keys, so that a later wish
// overrides an earlier one.
func sorted[T any](in []T, key func(T) string) []T {
	if len(in) == 0 {
		return nil
	}
	slices.SortStableFunc(in, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
	out := in[:0]
	for i, v := range in {
		if i+1 < len(in) && key(in[i+1]) == key(v) {
			continue
		}
		out = append(out, v)
	}
	return out
}

func (l Link) normalize(alias string) Link {
	if l.Presence == "" {
		l.Presence = Owned
	}
	if l.Presence == Owned && l.Alias == "" {
		l.Alias = alias
	}
	if l.Presence == Shared && l.Alias == "" {
		// It outlives the attachment that made it, and so does not carry its mark.
		if instance, _, ok := ParseAlias(alias); ok {
			l.Alias = SharedAlias(instance, l.Name)
		}
	}
	if l.Presence != Existing && l.Group == 0 && l.Alias != "" {
		l.Group = GroupOf(l.Alias)
	}
	return l
}

func (r Route) normalize() Route {
	if r.Table == 0 {
		r.Table = tableMain
	}
	if r.Protocol == 0 {
		r.Protocol = RouteProtocol
	}
	if r.Dst.Addr().Is6() {
		if r.Metric == 0 {
			r.Metric = metricIPv6
		}
		r.Scope = scopeUnivers // IPv6 has no scopes
	}
	r.Dst = r.Dst.Masked()
	return r
}

// wholeIsZero makes "from all" the zero prefix.
func wholeIsZero(p netip.Prefix) netip.Prefix {
	if !p.IsValid() || p.Bits() == 0 {
		return netip.Prefix{}
	}
	return p.Masked()
}

// key is what makes an address one of its link's: the kernel keeps one entry
// per address and prefix length (and peer).
func (a Addr) key() string {
	if a.Peer.IsValid() {
		return a.Prefix.String() + " peer " + a.Peer.String()
	}
	return a.Prefix.String()
}

// Merge gives the state both plans want together: what b says of a link goes on
// top of what a says, and where either says NoAddrs, the addresses of that link
// and the routes over it are the guest's and drop out.
func Merge(a, b Plan) Plan {
	alias := a.Alias
	an, bn := a.Normalize(), b.Normalize()
	if alias == "" {
		alias = b.Alias
	}
	return Plan{Alias: alias, Host: merge(an.Host, bn.Host), Pod: merge(an.Pod, bn.Pod)}.Normalize()
}

func merge(a, b State) State {
	m := State{
		Addrs:   slices.Concat(a.Addrs, b.Addrs),
		Routes:  slices.Concat(a.Routes, b.Routes),
		Rules:   slices.Concat(a.Rules, b.Rules),
		FDB:     slices.Concat(a.FDB, b.FDB),
		Sysctls: slices.Concat(a.Sysctls, b.Sysctls),
		Tables:  slices.Concat(a.Tables, b.Tables),
		Links:   slices.Clone(a.Links),
	}
	for _, l := range b.Links {
		i := slices.IndexFunc(m.Links, func(o Link) bool { return o.Name == l.Name })
		if i < 0 {
			m.Links = append(m.Links, l)
			continue
		}
		m.Links[i] = mergeLink(m.Links[i], l)
	}
	bare := func(name IfName) bool {
		return slices.ContainsFunc(m.Links, func(l Link) bool { return l.Name == name && l.NoAddrs })
	}
	m.Addrs = slices.DeleteFunc(m.Addrs, func(x Addr) bool { return bare(x.Link) })
	m.Routes = slices.DeleteFunc(m.Routes, func(x Route) bool { return bare(x.Link) })
	return m
}

// mergeLink lays b over a. Presence and mark go to the one that makes the link.
func mergeLink(a, b Link) Link {
	rank := map[Presence]int{Existing: 0, Shared: 1, Owned: 2}
	m := a
	if rank[b.Presence] > rank[a.Presence] {
		m.Presence, m.Alias, m.Group = b.Presence, b.Alias, b.Group
	}
	m.Kind = cmp.Or(b.Kind, a.Kind)
	m.MAC = cmp.Or(b.MAC, a.MAC)
	m.MTU = cmp.Or(b.MTU, a.MTU)
	m.TxQueueLen = cmp.Or(b.TxQueueLen, a.TxQueueLen)
	m.Up = a.Up || b.Up
	m.Promisc = cmp.Or(b.Promisc, a.Promisc)
	m.AllMulticast = cmp.Or(b.AllMulticast, a.AllMulticast)
	m.Master = cmp.Or(b.Master, a.Master)
	m.Port = cmp.Or(b.Port, a.Port)
	m.NoAddrs = a.NoAddrs || b.NoAddrs
	m.NoIPv6LinkLocal = a.NoIPv6LinkLocal || b.NoIPv6LinkLocal
	m.Veth = cmp.Or(b.Veth, a.Veth)
	m.Bridge = cmp.Or(b.Bridge, a.Bridge)
	m.Macvlan = cmp.Or(b.Macvlan, a.Macvlan)
	m.Tap = cmp.Or(b.Tap, a.Tap)
	return m
}
