package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/nft"
)

// delLinks deletes links of both sides. The kernel waits for each side apart, so
// neither waits for the other here.
func (s *session) delLinks(have netstate.Plan, ops []netstate.Op) error {
	links := map[netstate.Side][]linux.Link{}
	for _, op := range ops {
		v, err := s.at(op.Side)
		if err != nil {
			return err
		}
		l, err := v.link(have.At(op.Side).Links[op.Index].Name)
		if errors.Is(err, linux.ErrNoLink) {
			continue
		}
		if err != nil {
			return err
		}
		links[op.Side] = append(links[op.Side], l)
	}
	s.forget() // the other ends of veth pairs go along
	if len(links[netstate.Pod]) == 0 {
		return s.d.remover.remove(links[netstate.Host])
	}
	var host error
	var group sync.WaitGroup
	if len(links[netstate.Host]) > 0 {
		group.Go(func() { host = s.d.remover.remove(links[netstate.Host]) })
	}
	pod := deleteTogether(s.pod.conn, links[netstate.Pod], s.step)
	group.Wait()
	return errors.Join(host, pod)
}

// deleteTogether deletes links that were seen to be ours: all in one go, for which
// the kernel waits for its grace period (about 17 ms) once.
func deleteTogether(c *linux.Conn, links []linux.Link, step func(string) error) error {
	if len(links) > 1 {
		group, rest, err := gather(c, links, step)
		if err != nil {
			return err
		}
		if group != 0 {
			if err := step("delete group"); err != nil {
				return err
			}
			err := c.Do(unix.RTM_DELLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
			// ENODEV: they went with their other ends or their namespace.
			if err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("delete links of group %d: %w", group, err)
			}
		}
		links = rest
	}
	var errs []error
	for _, l := range links {
		if err := step("delete link"); err != nil {
			return err
		}
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(l.Index)
		// ENODEV: it went with its other end or its namespace.
		if err := c.Do(unix.RTM_DELLINK, 0, msg); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete link %s: %w", l.Name, err))
		}
	}
	return errors.Join(errs...)
}

// gather gives a link group that holds links of these and no others: one they have,
// or else one nobody is in. Those that are in another one are moved. The rest must
// be deleted one by one: links whose only mark is the group they were made in.
func gather(c *linux.Conn, links []linux.Link, step func(string) error) (group uint32, rest []linux.Link, err error) {
	all, err := c.Links()
	if err != nil {
		return 0, nil, err
	}
	mine := map[int]linux.Link{}
	for _, l := range links {
		mine[l.Index] = l
	}
	members, strangers := map[uint32]bool{}, map[uint32]bool{}
	var there []linux.Link // in the order of the kernel
	for _, l := range all {
		members[l.Group] = true
		if m, ok := mine[l.Index]; ok && m.Alias == l.Alias {
			there = append(there, l)
		} else {
			strangers[l.Group] = true
		}
	}
	if i := slices.IndexFunc(there, func(l linux.Link) bool { return l.Group != 0 && !strangers[l.Group] }); i >= 0 {
		group = there[i].Group
	} else {
		for group = netstate.GroupOf("delete " + links[0].Alias); group == 0 || members[group]; group++ {
		}
	}
	for _, l := range there {
		switch {
		case l.Group == group:
		case l.Alias == "":
			rest = append(rest, l)
		default:
			if err := move(c, l, group, step); err != nil {
				return 0, nil, err
			}
		}
	}
	return group, rest, nil
}

func move(c *linux.Conn, l linux.Link, group uint32, step func(string) error) error {
	if err := step("gather link"); err != nil {
		return err
	}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(l.Index)
	err := c.Do(unix.RTM_NEWLINK, 0, msg, nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	// ENODEV: it is gone already.
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("gather link %s: %w", l.Name, err)
	}
	return nil
}

// Prune removes the host's links and tables that carry this instance's mark and
// whose owner keep does not know, and tells what they were. Call it only once
// every owner is known.
func (d *Dataplane) Prune(_ context.Context, keep func(owner string) bool) ([]string, error) {
	stale := func(alias string) bool {
		instance, owner, ok := netstate.ParseAlias(alias)
		return ok && instance == d.instance && !keep(owner)
	}
	links, err := d.host.Links()
	if err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	var gone []linux.Link
	var told []string
	for _, l := range links {
		alias := l.Alias
		if shared := netstate.SharedAlias(d.instance, l.Name); alias == "" && l.Group == netstate.GroupOf(shared) {
			alias = shared // made by a run that died before it gave the mark
		}
		if stale(alias) {
			gone = append(gone, l)
			told = append(told, fmt.Sprintf("link %s (%s)", l.Name, alias))
		}
	}
	tables, err := readTables(d.hostNS)
	if err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	var ids []nft.ID
	for _, t := range tables {
		if alias, _, ok := nft.ParseComment(t.Comment); ok && stale(alias) {
			ids = append(ids, t.ID)
			told = append(told, fmt.Sprintf("table %s %s (%s)", t.Family, t.Name, alias))
		}
	}
	s := session{d: d}
	if len(ids) > 0 {
		err = s.script(&view{ns: d.hostNS}, nft.Script(nil, ids...))
	}
	return told, errors.Join(err, d.remover.remove(gone))
}
