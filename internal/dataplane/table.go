package dataplane

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/nft"
)

// readTables lists the nftables tables of a namespace without running nft.
func readTables(ns *linux.NS) ([]linux.Table, error) {
	conn, err := linux.Dial(ns, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil // no netfilter, no tables
	}
	if err != nil {
		return nil, err
	}
	tables, err := conn.Tables()
	return tables, errors.Join(err, conn.Close())
}

// strangersTable refuses to replace a table that is not ours.
func (o *observer) strangersTable(t linux.Table) error {
	if !slices.ContainsFunc(o.want.Tables, func(w nft.Table) bool { return w.ID() == t.ID }) {
		return nil
	}
	return &hint.Error{
		Field: "table", Value: string(t.Family) + " " + t.Name, Problem: "exists and is not ours",
		Remedy: fmt.Sprintf("rename it, or delete it if nothing needs it: nft delete table %s %s", t.Family, t.Name),
	}
}

func (s *session) delTables(v *view, have *netstate.State, ops []netstate.Op) error {
	var ids []nft.ID
	for _, op := range ops {
		ids = append(ids, have.Tables[op.Index].ID())
	}
	return s.script(v, nft.Script(nil, ids...))
}

// setTables replaces tables that are there and adds those that are not, in one
// transaction. errRace if one of the latter turned up meanwhile.
func (s *session) setTables(v *view, have, want *netstate.State, ops []netstate.Op) error {
	var replace, add []nft.Table
	for _, op := range ops {
		t := want.Tables[op.Index]
		if slices.ContainsFunc(have.Tables, func(h nft.Table) bool { return h.ID() == t.ID() }) {
			replace = append(replace, t)
		} else {
			add = append(add, t)
		}
	}
	return s.script(v, nft.Script(replace)+nft.Addition(add))
}
