package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/nft"
)

// delLinks deletes links of one namespace, together if there are several: the
// kernel's grace period (about 17 ms) is then paid once.
func (s *session) delLinks(v *view, have *netstate.State, ops []netstate.Op) error {
	var links []linux.Link
	for _, op := range ops {
		l, err := v.link(have.Links[op.Index].Name)
		if errors.Is(err, linux.ErrNoLink) {
			continue
		}
		if err != nil {
			return err
		}
		links = append(links, l)
	}
	for _, l := range links {
		v.changed(l.Name)
	}
	if other := s.otherOf(v); other != nil {
		clear(other.links) // ends of veth pairs go along
		other.complete = false
	}
	return s.d.deleteTogether(v.conn, links, s.step)
}

func (s *session) otherOf(v *view) *view {
	if v == s.host {
		return s.pod
	}
	return s.host
}

// deleteTogether deletes links that were seen to be ours.
func (d *Dataplane) deleteTogether(c *linux.Conn, links []linux.Link, step func(string) error) error {
	if len(links) > 1 {
		group, err := d.gather(c, links, step)
		if err != nil {
			return err
		}
		if group != 0 {
			if err := step("delete group"); err != nil {
				return err
			}
			return c.Do(unix.RTM_DELLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
		}
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

// gather gives a link group that holds these links and no others. If their own
// group has other members, they are put into one nobody is in. 0: a link changed
// meanwhile; delete one by one.
func (d *Dataplane) gather(c *linux.Conn, links []linux.Link, step func(string) error) (uint32, error) {
	all, err := c.Links()
	if err != nil {
		return 0, err
	}
	ours := map[int]bool{}
	for _, l := range links {
		ours[l.Index] = true
	}
	members := map[uint32]int{}
	strangers := map[uint32]bool{}
	found := 0
	for _, l := range all {
		members[l.Group]++
		switch same := slices.IndexFunc(links, func(o linux.Link) bool { return o.Index == l.Index && o.Alias == l.Alias }); {
		case same >= 0:
			found++
		case ours[l.Index]:
			return 0, nil // the index is another link's by now
		default:
			strangers[l.Group] = true
		}
	}
	group := links[0].Group
	if group != 0 && !strangers[group] && members[group] == found && found == len(links) {
		return group, nil
	}
	for group = netstate.GroupOf("delete " + links[0].Alias); members[group] > 0; group++ {
	}
	for _, l := range links {
		if err := step("gather link"); err != nil {
			return 0, err
		}
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(l.Index)
		err := c.Do(unix.RTM_NEWLINK, 0, msg, nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return 0, fmt.Errorf("gather link %s: %w", l.Name, err)
		}
	}
	return group, nil
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
	return told, errors.Join(err, d.deleteTogether(d.host, gone, s.step))
}
