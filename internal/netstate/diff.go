package netstate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/weftnet/weft/internal/nft"
)

// Diff gives the operations that lead from have to want, in the order in which
// they must run. Indexes in them refer to have.Normalize() and want.Normalize().
//
// What is in have and not in want goes away, if it is ours: have must therefore
// hold nothing a stranger made but the links that want names. Links that are
// not Owned in have are never deleted, shared addresses neither. An empty want
// is the way to say "absent".
func Diff(have, want Plan) []Op {
	d := differ{have: have.Normalize(), want: want.Normalize(), remade: map[end]bool{}}
	for _, side := range []Side{Host, Pod} {
		d.links(side)
	}
	for _, side := range []Side{Host, Pod} {
		d.rest(side)
	}
	slices.SortStableFunc(d.ops, compareOps)
	return d.ops
}

func compareOps(a, b Op) int {
	if a.Verb != b.Verb {
		return int(a.Verb) - int(b.Verb)
	}
	return 0
}

// end names a link of a plan.
type end struct {
	side Side
	name IfName
}

type differ struct {
	have, want Plan
	// remade are the links of have that go away, to come back or not; all that
	// hangs on them goes along.
	remade map[end]bool
	ops    []Op
}

func (d *differ) add(side Side, verb Verb, index int, text ...string) {
	d.ops = append(d.ops, Op{Side: side, Verb: verb, Index: index, Text: strings.Join(text, " ")})
}

// lookup finds a link by name in a normalized state.
func (s *State) lookup(name IfName) (int, *Link) {
	for i := range s.Links {
		if s.Links[i].Name == name {
			return i, &s.Links[i]
		}
	}
	return -1, nil
}

// kept gives the observed link of that name unless it is about to go.
func (d *differ) kept(side Side, name IfName) *Link {
	if d.remade[end{side, name}] {
		return nil
	}
	_, l := d.have.At(side).lookup(name)
	return l
}

func (d *differ) rest(side Side) {
	have, want := d.have.At(side), d.want.At(side)
	compare(d, side, "addr", have.Addrs, want.Addrs, Addr.kernel, DelAddr, AddAddr)
	compare(d, side, "route", have.Routes, want.Routes, Route.String, DelRoute, AddRoute)
	compare(d, side, "rule", have.Rules, want.Rules, Rule.String, DelRule, AddRule)
	compare(d, side, "fdb", have.FDB, want.FDB, FDBEntry.String, DelFDB, AddFDB)
	d.sysctls(side, have.Sysctls, want.Sysctls)
	d.tables(side, have.Tables, want.Tables)
}

// compare finds what of one kind of object goes and comes.
func compare[T any](d *differ, side Side, what string, have, want []T, key func(T) string, del, add Verb) {
	there := map[string]bool{}
	wanted := map[string]bool{}
	for _, v := range want {
		wanted[key(v)] = true
	}
	for i, v := range have {
		if d.remade[end{side, device(v)}] {
			continue // it goes with its link
		}
		there[key(v)] = true
		if !wanted[key(v)] && !shared(v) {
			d.add(side, del, i, phrase(what, "del", key(v)))
		}
	}
	for i, v := range want {
		if !there[key(v)] {
			d.add(side, add, i, phrase(what, "add", fmt.Sprint(v)))
		}
	}
}

func phrase(what, verb, object string) string {
	switch {
	case what == "fdb" && verb == "add":
		return "bridge fdb replace " + object
	case what == "fdb":
		return "bridge fdb del " + object
	case what == "rule":
		family, rest, _ := strings.Cut(object, " ")
		return "ip -" + strings.TrimPrefix(family, "ipv") + " rule " + verb + " " + rest
	default:
		return "ip " + what + " " + verb + " " + object
	}
}

// device is the link an object hangs on.
func device(v any) IfName {
	switch v := v.(type) {
	case Addr:
		return v.Link
	case Route:
		return v.Link
	case FDBEntry:
		return v.Port
	}
	return ""
}

func shared(v any) bool {
	a, ok := v.(Addr)
	return ok && a.Shared
}

// kernel is the part of an address the kernel knows it by.
func (a Addr) kernel() string {
	return Addr{Link: a.Link, Prefix: a.Prefix, Peer: a.Peer}.String()
}

func (d *differ) sysctls(side Side, have, want []Sysctl) {
	for i, c := range want {
		link, perLink := SysctlLink(c.Path)
		same := slices.Contains(have, c)
		if !same || perLink && d.remade[end{side, link}] {
			d.add(side, SetSysctl, i, "sysctl -w", c.String())
		}
	}
}

// SysctlLink gives the link a path is about: net/{ipv4,ipv6}/{conf,neigh}/LINK/KEY
// and net/mpls/conf/LINK/KEY.
func SysctlLink(path string) (IfName, bool) {
	parts := strings.Split(path, "/")
	if len(parts) != 5 || parts[0] != "net" || parts[2] != "conf" && parts[2] != "neigh" {
		return "", false
	}
	if parts[3] == "all" || parts[3] == "default" {
		return "", false
	}
	return IfName(parts[3]), true
}

func (d *differ) tables(side Side, have, want []nft.Table) {
	for i, t := range have {
		if !slices.ContainsFunc(want, func(w nft.Table) bool { return w.ID() == t.ID() }) {
			d.add(side, DelTable, i, "nft delete table", string(t.Family), t.Name)
		}
	}
	for i, t := range want {
		same := func(h nft.Table) bool {
			return h.ID() == t.ID() && h.Alias == t.Alias && h.String() == t.String()
		}
		if !slices.ContainsFunc(have, same) {
			d.add(side, SetTable, i, "nft replace table", string(t.Family), t.Name, "with", strconv.Itoa(len(t.Chains)), "chains")
		}
	}
}
