package dataplane

import (
	"errors"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/nft"
)

// keeps says whether a link stays: what hangs on one that goes need not be read.
func (o *observer) keeps(l netstate.Link) bool {
	_, wanted := find(o.want.Links, l.Name)
	return wanted || l.Presence != netstate.Owned
}

func (o *observer) addrs() error {
	var asked []int
	for index, l := range o.present {
		w, _ := find(o.want.Links, l.Name)
		listed := func(a netstate.Addr) bool { return a.Link == l.Name }
		if o.keeps(l) && (l.Presence == netstate.Owned || w.NoAddrs ||
			slices.ContainsFunc(o.want.Addrs, listed) || slices.ContainsFunc(o.last.Addrs, listed)) {
			asked = append(asked, index)
		}
	}
	if len(asked) > 1 && o.view.side == netstate.Pod {
		asked = []int{0} // one dump of a small namespace beats several filtered ones
	}
	for _, index := range asked {
		addrs, err := o.view.conn.Addrs(index)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if l, ok := o.present[a.Index]; ok && o.keeps(l) {
				o.addr(a, l)
			}
		}
	}
	return nil
}

// addr takes an address over if it is wanted, was wanted, is ours, or must go.
func (o *observer) addr(a linux.Addr, l netstate.Link) {
	addr := netstate.Addr{Link: l.Name, Prefix: a.Prefix, Peer: a.Peer, NoDAD: a.Flags&unix.IFA_F_NODAD != 0}
	same := func(w netstate.Addr) bool {
		return w.Link == addr.Link && w.Prefix == addr.Prefix && w.Peer == addr.Peer
	}
	w, _ := find(o.want.Links, l.Name)
	linkLocal := a.Prefix.Addr().Is6() && a.Prefix.Addr().IsLinkLocalUnicast()
	i := slices.IndexFunc(o.want.Addrs, same)
	j := slices.IndexFunc(o.last.Addrs, same)
	switch {
	case i >= 0:
		addr.Shared = o.want.Addrs[i].Shared
	case w.NoAddrs:
		if linkLocal && !w.NoIPv6LinkLocal {
			return
		}
	case j >= 0:
		addr.Shared = o.last.Addrs[j].Shared
	case l.Presence == netstate.Owned && a.Protocol == netstate.RouteProtocol:
	default:
		return
	}
	o.have.Addrs = append(o.have.Addrs, addr)
}

func (o *observer) routes() error {
	if len(o.present) == 0 || len(o.want.Routes)+len(o.last.Routes) == 0 && !o.ownsKept() {
		return nil
	}
	indexes := []int{0}
	if o.view.side == netstate.Host && !slices.ContainsFunc(o.want.Routes, func(r netstate.Route) bool { return r.IfAbsent }) {
		indexes = nil // the host may have very many
		for index, l := range o.present {
			if o.keeps(l) {
				indexes = append(indexes, index)
			}
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		for _, index := range indexes {
			routes, err := o.view.conn.Routes(family, index)
			if err != nil {
				return err
			}
			for _, r := range routes {
				o.route(r)
			}
		}
	}
	return nil
}

// ownsKept says whether a link of ours is there and stays.
func (o *observer) ownsKept() bool {
	for _, l := range o.present {
		if l.Presence == netstate.Owned && o.keeps(l) {
			return true
		}
	}
	return false
}

// route takes a route over if it is wanted, was wanted or is ours.
func (o *observer) route(r linux.Route) {
	for _, w := range o.want.Routes {
		if w.IfAbsent && w.Dst == r.Dst && w.Table == r.Table && w.Metric == r.Metric {
			o.have.Routes = append(o.have.Routes, w) // whatever it is, it will do
			return
		}
	}
	l, ok := o.present[r.Index]
	if !ok || !o.keeps(l) {
		return
	}
	route := r.Route
	route.Link = l.Name
	same := func(w netstate.Route) bool { return w.String() == route.String() }
	ours := l.Presence == netstate.Owned && r.Protocol == netstate.RouteProtocol
	if ours || slices.ContainsFunc(o.want.Routes, same) || slices.ContainsFunc(o.last.Routes, same) {
		o.have.Routes = append(o.have.Routes, route)
	}
}

func (o *observer) rules() error {
	for _, family := range []int{4, 6} {
		listed := func(r netstate.Rule) bool { return r.Family == family }
		if !slices.ContainsFunc(o.want.Rules, listed) && !slices.ContainsFunc(o.last.Rules, listed) {
			continue
		}
		rules, err := o.view.conn.Rules(addressFamily(family))
		if err != nil {
			return err
		}
		for _, r := range rules {
			if slices.Contains(o.want.Rules, r.Rule) || slices.Contains(o.last.Rules, r.Rule) && r.Protocol == netstate.RouteProtocol {
				o.have.Rules = append(o.have.Rules, r.Rule)
			}
		}
	}
	return nil
}

func addressFamily(version int) int {
	if version == 6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func (o *observer) fdb() error {
	for _, l := range o.bridgesWithPorts() {
		bridge, err := o.view.link(l)
		if errors.Is(err, linux.ErrNoLink) {
			continue
		}
		if err != nil {
			return err
		}
		entries, err := o.view.conn.FDB(bridge.Index)
		if err != nil {
			return err
		}
		for _, e := range entries {
			o.fdbEntry(e)
		}
	}
	return nil
}

// bridgesWithPorts gives the masters of links that have, had or should have
// static entries, or are ours.
func (o *observer) bridgesWithPorts() []netstate.IfName {
	var masters []netstate.IfName
	for _, l := range o.present {
		listed := func(e netstate.FDBEntry) bool { return e.Port == l.Name }
		ours := l.Presence == netstate.Owned && l.Kind == netstate.KindTap
		if l.Master != "" && o.keeps(l) &&
			(ours || slices.ContainsFunc(o.want.FDB, listed) || slices.ContainsFunc(o.last.FDB, listed)) {
			masters = append(masters, l.Master)
		}
	}
	slices.Sort(masters)
	return slices.Compact(masters)
}

func (o *observer) fdbEntry(e linux.FDBEntry) {
	l, ok := o.present[e.Index]
	if !ok || !e.Static() {
		return
	}
	entry := netstate.FDBEntry{MAC: e.MAC, Port: l.Name}
	ours := l.Presence == netstate.Owned && l.Kind == netstate.KindTap
	if ours || slices.Contains(o.want.FDB, entry) || slices.Contains(o.last.FDB, entry) {
		o.have.FDB = append(o.have.FDB, entry)
	}
}

func (o *observer) sysctls() error {
	var paths []string
	for _, c := range o.want.Sysctls {
		if name, perLink := netstate.SysctlLink(c.Path); perLink {
			l, err := o.view.link(name)
			if err != nil {
				continue // what belongs to a link that is not there cannot be read
			}
			if value, told := l.Sysctl(c.Path); told {
				o.have.Sysctls = append(o.have.Sysctls, netstate.Sysctl{Path: c.Path, Value: value})
				continue
			}
		}
		paths = append(paths, c.Path)
	}
	if len(paths) == 0 {
		return nil
	}
	return o.view.ns.Do(func() error {
		for _, path := range paths {
			value, err := linux.Sysctl(path)
			if errors.Is(err, os.ErrNotExist) {
				continue // setting it will say so
			}
			if err != nil {
				return err
			}
			o.have.Sysctls = append(o.have.Sysctls, netstate.Sysctl{Path: path, Value: value})
		}
		return nil
	})
}

// tables reads nftables tables where one is or was wanted. In a Pod that has
// links of ours it always looks, because a table may be left there from a plan
// that nobody remembers; in a Pod without any there is none, since tables are
// made last and removed first.
func (o *observer) tables() error {
	look := len(o.want.Tables)+len(o.last.Tables) > 0 || o.searchHost ||
		o.view.side == netstate.Pod && o.hasOwned()
	if !look {
		return nil
	}
	tables, err := readTables(o.view.ns)
	if err != nil {
		return err
	}
	for _, t := range tables {
		alias, _, ok := nft.ParseComment(t.Comment)
		if !ok {
			if err := o.strangersTable(t); err != nil {
				return err
			}
			continue
		}
		have := nft.Table{Family: t.Family, Name: t.Name, Alias: alias}
		same := func(w nft.Table) bool { return w.ID() == t.ID && w.Comment() == t.Comment }
		if i := slices.IndexFunc(o.want.Tables, same); i >= 0 {
			have = o.want.Tables[i]
		}
		if o.scope[alias] || slices.ContainsFunc(o.want.Tables, func(w nft.Table) bool { return w.ID() == t.ID }) {
			o.have.Tables = append(o.have.Tables, have)
		}
	}
	return nil
}

func (o *observer) hasOwned() bool {
	for _, l := range o.present {
		if l.Presence == netstate.Owned || strings.HasPrefix(l.Alias, "weft:") {
			return true
		}
	}
	return false
}
