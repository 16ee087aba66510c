package dataplane

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// Rename gives the link with that index in a Pod's namespace a name. Another link
// that has the name is moved aside, and keeps all else it has.
func (d *Dataplane) Rename(_ context.Context, netns string, index int, name netstate.IfName) error {
	s, err := d.open(netns, netstate.Plan{}, netstate.Plan{})
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.pod.readAll(); err != nil {
		return err
	}
	link, err := s.pod.byIndex(index)
	if err != nil {
		return fmt.Errorf("link with index %d: %w", index, err)
	}
	if link.Name == name {
		return nil
	}
	if holder, err := s.pod.link(name); err == nil {
		if err := s.rename(holder, s.freeName()); err != nil {
			return err
		}
	}
	return s.rename(link, name)
}

// freeName is a name no link of the Pod has.
func (s *session) freeName() netstate.IfName {
	for n := 0; ; n++ {
		name := netstate.IfName(fmt.Sprintf("aside%d", n))
		if _, err := s.pod.link(name); errors.Is(err, linux.ErrNoLink) {
			return name
		}
	}
}

func (s *session) rename(l linux.Link, name netstate.IfName) error {
	set := func(flags, change uint32, attrs ...nl.NetlinkRequestData) error {
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index, msg.Flags, msg.Change = int32(l.Index), flags, change
		return s.do(s.pod.conn, "rename link", unix.RTM_NEWLINK, 0, append([]nl.NetlinkRequestData{msg}, attrs...)...)
	}
	attr := nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(string(name)))
	err := set(0, 0, attr)
	if errors.Is(err, unix.EBUSY) { // it is up, which kernels before 6.2 mind
		// Not in one message: the kernel takes the name before the flags (do_setlink,
		// net/core/rtnetlink.c).
		if err = set(0, unix.IFF_UP); err == nil {
			err = errors.Join(set(0, 0, attr), set(unix.IFF_UP, unix.IFF_UP))
		}
	}
	if err != nil {
		return fmt.Errorf("rename link %s to %s: %w", l.Name, name, err)
	}
	return nil
}
