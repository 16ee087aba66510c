package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// run walks the operations. What deletes goes on after an error, so that one
// object that resists leaves nothing else behind; what builds stops at the
// first one, because the rest stands on it.
func (s *session) run(ctx context.Context, have netstate.Plan, ops []netstate.Op) error {
	have = have.Normalize()
	var errs []error
	for i := 0; i < len(ops); {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, fmt.Errorf("%s: %w", ops[i], err))...)
		}
		n := batch(ops[i:])
		var err error
		if ops[i].Verb == netstate.DelLink {
			err = s.delLinks(have, ops[i:i+n])
		} else {
			err = s.runBatch(have, ops[i:i+n])
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", ops[i], err))
			if !ops[i].Deletes() || errors.Is(err, errStopped) {
				break
			}
		}
		i += n
	}
	return errors.Join(errs...)
}

// batch gives how many of the first operations are carried out together: the
// deletions of links, the tables of one side.
func batch(ops []netstate.Op) int {
	switch ops[0].Verb {
	case netstate.DelLink, netstate.SetTable, netstate.DelTable, netstate.SetSysctl:
	default:
		return 1
	}
	n := 1
	for n < len(ops) && ops[n].Verb == ops[0].Verb && (ops[n].Side == ops[0].Side || ops[n].Verb == netstate.DelLink) {
		n++
	}
	return n
}

func (s *session) runBatch(have netstate.Plan, ops []netstate.Op) error {
	op := ops[0]
	v, err := s.at(op.Side)
	if err != nil {
		return err
	}
	h, w := have.At(op.Side), s.want.At(op.Side)
	switch op.Verb {
	case netstate.DelTable:
		return s.delTables(v, h, ops)
	case netstate.SetTable:
		return s.setTables(v, h, w, ops)
	case netstate.SetSysctl:
		return s.setSysctls(v, h, w, ops)
	case netstate.DelRule:
		return s.rule(v, unix.RTM_DELRULE, 0, h.Rules[op.Index])
	case netstate.DelRoute:
		return s.delRoute(v, h.Routes[op.Index])
	case netstate.DelFDB:
		return s.fdb(v, unix.RTM_DELNEIGH, 0, h.FDB[op.Index])
	case netstate.DelAddr:
		return s.delAddr(v, h.Addrs[op.Index])
	case netstate.AddLink:
		return s.addLink(v, w.Links[op.Index], op.Fields)
	case netstate.SetLink, netstate.SetUp:
		return s.setLink(v, w.Links[op.Index], op.Fields)
	case netstate.SetPort:
		return s.setPort(v, w.Links[op.Index], op.Fields)
	case netstate.AddAddr:
		return s.addAddr(v, w.Addrs[op.Index])
	case netstate.AddRoute:
		return s.addRoute(v, w.Routes[op.Index])
	case netstate.AddRule:
		return s.rule(v, unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, w.Rules[op.Index])
	case netstate.AddFDB:
		return s.fdb(v, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, w.FDB[op.Index])
	}
	return fmt.Errorf("operation %d is unknown", op.Verb)
}

// errStopped is what a test's hook returns to stop a run as a crash would.
var errStopped = errors.New("stopped")

// do writes one message, if the test hook lets it.
func (s *session) do(c *linux.Conn, step string, msgType uint16, flags int, payload ...nl.NetlinkRequestData) error {
	if err := s.step(step); err != nil {
		return err
	}
	return c.Do(msgType, flags, payload...)
}

func (s *session) step(step string) error { return s.d.step(step) }

func (d *Dataplane) step(step string) error {
	if d.beforeStep == nil {
		return nil
	}
	return d.beforeStep(step)
}

// index gives the ifindex of a link that must be there.
func (v *view) index(name netstate.IfName) (int, error) {
	l, err := v.link(name)
	if errors.Is(err, linux.ErrNoLink) {
		return 0, &hint.Error{
			Field: "link", Value: string(name), Problem: fmt.Sprintf("is not in the namespace of the %s", v.side),
			Err: err, Remedy: "see what is there with: ip link",
		}
	}
	return l.Index, err
}

func (s *session) setSysctls(v *view, have, want *netstate.State, ops []netstate.Op) error {
	return v.ns.Do(func() error {
		for _, op := range ops {
			c := want.Sysctls[op.Index]
			if err := s.step("sysctl " + c.Path); err != nil {
				return err
			}
			if err := linux.SetSysctl(c.Path, c.Value); err != nil {
				return err
			}
			for _, old := range have.Sysctls {
				if old.Path == c.Path {
					s.oldSysctls = append(s.oldSysctls, SysctlFact{Side: v.side, Sysctl: old})
				}
			}
		}
		return nil
	})
}

// addrMessage is struct ifaddrmsg with what names an address.
func addrMessage(index int, a netstate.Addr) []nl.NetlinkRequestData {
	msg := nl.NewIfAddrmsg(family(a.Prefix.Addr()))
	msg.Index = uint32(index)
	msg.Prefixlen = uint8(a.Prefix.Bits())
	other := a.Prefix.Addr()
	if a.Peer.IsValid() {
		other = a.Peer
	}
	return []nl.NetlinkRequestData{
		msg,
		nl.NewRtAttr(unix.IFA_LOCAL, a.Prefix.Addr().AsSlice()),
		nl.NewRtAttr(unix.IFA_ADDRESS, other.AsSlice()),
	}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (s *session) addAddr(v *view, a netstate.Addr) error {
	index, err := v.index(a.Link)
	if err != nil {
		return err
	}
	payload := append(addrMessage(index, a), nl.NewRtAttr(linux.AddrProtocol, nl.Uint8Attr(netstate.RouteProtocol)))
	if a.Prefix.Addr().Is4() && a.Prefix.Bits() < 31 && !a.Peer.IsValid() {
		payload = append(payload, nl.NewRtAttr(unix.IFA_BROADCAST, broadcast(a.Prefix)))
	}
	switch {
	case !a.Prefix.Addr().Is6():
	case a.NoDAD:
		payload = append(payload, nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(unix.IFA_F_NODAD)))
	case !a.Settle:
		// Usable while detection runs (RFC 4429), where the link's optimistic_dad
		// says so; the kernel drops the flag elsewhere.
		payload = append(payload, nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(unix.IFA_F_OPTIMISTIC)))
	}
	err = s.do(v.conn, "add address", unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, payload...)
	if errors.Is(err, unix.EEXIST) {
		return nil // somebody else added the very same one meanwhile
	}
	return err
}

// broadcast is the last address of an IPv4 network.
func broadcast(p netip.Prefix) []byte {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return b[:]
}

func (s *session) delAddr(v *view, a netstate.Addr) error {
	index, err := v.index(a.Link)
	if err == nil {
		err = s.do(v.conn, "delete address", unix.RTM_DELADDR, 0, addrMessage(index, a)...)
	}
	if errGone(err, unix.EADDRNOTAVAIL, unix.ENODEV) {
		return nil // the kernel or somebody else was faster
	}
	return err
}

func (s *session) routeMessage(v *view, r netstate.Route) ([]nl.NetlinkRequestData, error) {
	index, err := v.index(r.Link)
	if err != nil {
		return nil, err
	}
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: uint8(family(r.Dst.Addr())), Dst_len: uint8(r.Dst.Bits()),
		Protocol: uint8(r.Protocol), Scope: r.Scope, Type: unix.RTN_UNICAST, Table: unix.RT_TABLE_UNSPEC,
	}}
	if r.Local {
		msg.Type = unix.RTN_LOCAL
	}
	if r.OnLink {
		msg.Flags |= unix.RTNH_F_ONLINK
	}
	payload := []nl.NetlinkRequestData{msg}
	add := func(kind int, value []byte) { payload = append(payload, nl.NewRtAttr(kind, value)) }
	if r.Dst.Bits() > 0 {
		add(unix.RTA_DST, r.Dst.Addr().AsSlice())
	}
	add(unix.RTA_TABLE, nl.Uint32Attr(uint32(r.Table)))
	add(unix.RTA_OIF, nl.Uint32Attr(uint32(index)))
	if r.Metric != 0 {
		add(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(r.Metric)))
	}
	switch {
	case !r.Via.IsValid():
	case r.Via.Is4() == r.Dst.Addr().Is4():
		add(unix.RTA_GATEWAY, r.Via.AsSlice())
	default: // struct rtvia (RFC 5549): family, then the address
		add(unix.RTA_VIA, append(nl.Uint16Attr(uint16(family(r.Via))), r.Via.AsSlice()...))
	}
	if r.Src.IsValid() {
		add(unix.RTA_PREFSRC, r.Src.AsSlice())
	}
	if r.MTU != 0 || r.AdvMSS != 0 {
		metrics := nl.NewRtAttr(unix.RTA_METRICS, nil)
		if r.MTU != 0 {
			metrics.AddRtAttr(unix.RTAX_MTU, nl.Uint32Attr(uint32(r.MTU)))
		}
		if r.AdvMSS != 0 {
			metrics.AddRtAttr(unix.RTAX_ADVMSS, nl.Uint32Attr(uint32(r.AdvMSS)))
		}
		payload = append(payload, metrics)
	}
	return payload, nil
}

func (s *session) addRoute(v *view, r netstate.Route) error {
	payload, err := s.routeMessage(v, r)
	if err != nil {
		return err
	}
	err = s.do(v.conn, "add route", unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, payload...)
	switch {
	case errors.Is(err, unix.EEXIST) && r.IfAbsent:
		return nil
	case errors.Is(err, unix.EEXIST):
		return &hint.Error{
			Field: "route", Value: r.String(), Problem: "another route to the same destination has the same metric", Err: err,
			Remedy: "give one of the two networks' routes another metric, or leave the route out",
		}
	case errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH):
		return &hint.Error{
			Field: "route", Value: r.String(), Problem: "its gateway is on none of the link's networks", Err: err,
			Remedy: "use a gateway inside the link's subnet",
		}
	}
	return err
}

func (s *session) delRoute(v *view, r netstate.Route) error {
	payload, err := s.routeMessage(v, r)
	if err == nil {
		err = s.do(v.conn, "delete route", unix.RTM_DELROUTE, 0, payload...)
	}
	if errGone(err, unix.ESRCH, unix.ENODEV) {
		return nil // it went with an address or a link
	}
	return err
}

// rule adds or deletes a policy rule: struct fib_rule_hdr has the layout of
// struct rtmsg (include/uapi/linux/fib_rules.h).
func (s *session) rule(v *view, msgType uint16, flags int, r netstate.Rule) error {
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: uint8(addressFamily(r.Family)), Table: unix.RT_TABLE_UNSPEC, Type: ruleToTable,
		Src_len: uint8(max(r.From.Bits(), 0)), Dst_len: uint8(max(r.To.Bits(), 0)),
	}}
	payload := []nl.NetlinkRequestData{msg}
	add := func(kind int, value []byte) { payload = append(payload, nl.NewRtAttr(kind, value)) }
	add(unix.FRA_PRIORITY, nl.Uint32Attr(uint32(r.Priority)))
	add(unix.FRA_TABLE, nl.Uint32Attr(uint32(r.Table)))
	add(unix.FRA_PROTOCOL, nl.Uint8Attr(netstate.RouteProtocol))
	if r.From.IsValid() {
		add(unix.FRA_SRC, r.From.Addr().AsSlice())
	}
	if r.To.IsValid() {
		add(unix.FRA_DST, r.To.Addr().AsSlice())
	}
	if r.IIF != "" {
		add(unix.FRA_IIFNAME, nl.ZeroTerminated(string(r.IIF)))
	}
	if r.Mark != 0 {
		add(unix.FRA_FWMARK, nl.Uint32Attr(r.Mark))
		add(unix.FRA_FWMASK, nl.Uint32Attr(^uint32(0)))
	}
	err := s.do(v.conn, "rule", msgType, flags, payload...)
	if msgType == unix.RTM_NEWRULE && errors.Is(err, unix.EEXIST) || msgType == unix.RTM_DELRULE && errors.Is(err, unix.ENOENT) {
		return nil // already there, already gone
	}
	return err
}

// ruleToTable is FR_ACT_TO_TBL (include/uapi/linux/fib_rules.h).
const ruleToTable = 1

// fdb adds or deletes a static forwarding entry of a bridge port.
func (s *session) fdb(v *view, msgType uint16, flags int, e netstate.FDBEntry) error {
	index, err := v.index(e.Port)
	if err == nil {
		msg := &netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(index), State: unix.NUD_NOARP, Flags: unix.NTF_MASTER}
		err = s.do(v.conn, "fdb", msgType, flags, msg, nl.NewRtAttr(unix.NDA_LLADDR, e.MAC.HardwareAddr()))
	}
	if msgType == unix.RTM_DELNEIGH && errGone(err, unix.ENOENT, unix.ENODEV) {
		return nil // it went with its port
	}
	return err
}
