package dataplane

import (
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// head is struct ifinfomsg with the flags a link shall have.
func head(index int, l netstate.Link, f netstate.Fields) *nl.IfInfomsg {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	set := func(field netstate.Fields, flag uint32, on bool) {
		if !f.Has(field) {
			return
		}
		msg.Change |= flag
		if on {
			msg.Flags |= flag
		}
	}
	set(netstate.FieldUp, unix.IFF_UP, l.Up)
	set(netstate.FieldPromisc, unix.IFF_PROMISC, l.Promisc != nil && *l.Promisc)
	set(netstate.FieldAllMulticast, unix.IFF_ALLMULTI, l.AllMulticast != nil && *l.AllMulticast)
	return msg
}

// createAttrs are the attributes the kernel takes in the message that creates
// any link (rtnl_create_link, net/core/rtnetlink.c).
func createAttrs(l netstate.Link, f netstate.Fields) []*nl.RtAttr {
	attrs := []*nl.RtAttr{nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(string(l.Name)))}
	add := func(kind int, value []byte) { attrs = append(attrs, nl.NewRtAttr(kind, value)) }
	if f.Has(netstate.FieldMAC) {
		add(unix.IFLA_ADDRESS, l.MAC.HardwareAddr())
	}
	if f.Has(netstate.FieldMTU) {
		add(unix.IFLA_MTU, nl.Uint32Attr(uint32(l.MTU)))
	}
	if f.Has(netstate.FieldTxQueueLen) {
		add(unix.IFLA_TXQLEN, nl.Uint32Attr(uint32(l.TxQueueLen)))
	}
	if f.Has(netstate.FieldGroup) {
		add(unix.IFLA_GROUP, nl.Uint32Attr(l.Group))
	}
	return attrs
}

// lateAttrs are those it takes only once the link is there.
func lateAttrs(l netstate.Link, f netstate.Fields) []*nl.RtAttr {
	var attrs []*nl.RtAttr
	if f.Has(netstate.FieldAlias) {
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(l.Alias)))
	}
	if f.Has(netstate.FieldAddrGenMode) {
		spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
		spec.AddRtAttr(unix.AF_INET6, nil).
			AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(linux.AddrGenModeNone))
		attrs = append(attrs, spec)
	}
	return attrs
}

// linkInfo is IFLA_LINKINFO for a link of the kind with its settings.
func linkInfo(l netstate.Link, f netstate.Fields) *nl.RtAttr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated(string(l.Kind)))
	switch {
	case l.Bridge != nil && f.Has(netstate.FieldBridge):
		bridgeData(info.AddRtAttr(unix.IFLA_INFO_DATA, nil), *l.Bridge)
	case l.Macvlan != nil:
		macvlanData(info.AddRtAttr(unix.IFLA_INFO_DATA, nil), *l.Macvlan, f)
	}
	return info
}

func addBool(to *nl.RtAttr, kind int, value *bool) {
	if value != nil {
		to.AddRtAttr(kind, nl.Uint8Attr(bit(*value)))
	}
}

func bit(on bool) uint8 {
	if on {
		return 1
	}
	return 0
}

// userHZ is the unit of clock_t values in netlink, per second (USER_HZ,
// include/asm-generic/param.h).
const userHZ = 100

func bridgeData(data *nl.RtAttr, b netstate.Bridge) {
	if b.VLANFiltering != nil {
		data.AddRtAttr(unix.IFLA_BR_VLAN_FILTERING, nl.Uint8Attr(bit(*b.VLANFiltering)))
	}
	if b.STP != nil {
		data.AddRtAttr(unix.IFLA_BR_STP_STATE, nl.Uint32Attr(uint32(bit(*b.STP))))
	}
	addBool(data, unix.IFLA_BR_MCAST_SNOOPING, b.MulticastSnooping)
	if b.AgeingTime != 0 {
		data.AddRtAttr(unix.IFLA_BR_AGEING_TIME, nl.Uint32Attr(uint32(b.AgeingTime*userHZ)))
	}
}

func macvlanData(data *nl.RtAttr, m netstate.Macvlan, f netstate.Fields) {
	if mode, ok := linux.MacvlanMode(m.Mode); ok {
		data.AddRtAttr(unix.IFLA_MACVLAN_MODE, nl.Uint32Attr(mode))
	}
	if f.Has(netstate.FieldBCQueueLen) {
		data.AddRtAttr(unix.IFLA_MACVLAN_BC_QUEUE_LEN, nl.Uint32Attr(m.BCQueueLen))
	}
}

// portInfo is IFLA_LINKINFO for the settings of a port of a bridge.
func portInfo(p netstate.Port) *nl.RtAttr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(unix.IFLA_INFO_SLAVE_DATA, nil)
	addBool(data, unix.IFLA_BRPORT_MODE, p.Hairpin)
	addBool(data, unix.IFLA_BRPORT_ISOLATED, p.Isolated)
	addBool(data, unix.IFLA_BRPORT_LEARNING, p.Learning)
	return info
}
