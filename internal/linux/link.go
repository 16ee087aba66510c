package linux

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
)

// ErrNoLink means that the namespace has no link of that name or index.
var ErrNoLink = errors.New("no such link")

// extMask leaves statistics out of what the kernel tells of links
// (RTEXT_FILTER_SKIP_STATS, include/uapi/linux/rtnetlink.h).
const extMask = 1 << 3

// AddrGenModeNone is IN6_ADDR_GEN_MODE_NONE (include/uapi/linux/if_link.h).
const AddrGenModeNone = 1

// Link is one link as the kernel tells it.
type Link struct {
	Index int
	Name  netstate.IfName
	// Kind is IFLA_INFO_KIND; empty for physical devices.
	Kind       netstate.Kind
	Alias      string
	Group      uint32
	MAC        netstate.MAC
	MTU        int
	TxQueueLen int
	// Flags are IFF_*; IFF_PROMISC and IFF_ALLMULTI say what was asked for, not
	// what ports and monitors add.
	Flags  uint32
	Master int // index, 0: none
	// Parent is the index in IFLA_LINK: a veth's peer, a macvlan's lower link. It
	// counts in the namespace ParentNS names, or in this one if ParentNS is -1.
	Parent   int
	ParentNS int
	// AddrGenModeNone says that the kernel makes no IPv6 link-local address.
	AddrGenModeNone bool
	// OperUp says whether the link is operational (IFF_RUNNING).
	OperUp bool

	Bridge  *netstate.Bridge
	Port    *netstate.Port
	Macvlan *netstate.Macvlan // Mode and BCQueueLen only
	Tap     *netstate.Tap
	// TapPersists and TapOwned: a persistent TAP, and one with an owner.
	TapPersists, TapOwned bool

	// conf4 and conf6 are the bytes of IFLA_INET_CONF and IFLA_INET6_CONF; Sysctl
	// reads them.
	conf4, conf6 string
}

// LinkByName looks one link up. The error is ErrNoLink if there is none.
func (c *Conn) LinkByName(name netstate.IfName) (Link, error) {
	return c.link(name, 0)
}

// LinkByIndex looks one link up. The error is ErrNoLink if there is none.
func (c *Conn) LinkByIndex(index int) (Link, error) {
	return c.link("", index)
}

func (c *Conn) link(name netstate.IfName, index int) (Link, error) {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	payload := []nl.NetlinkRequestData{msg, nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(extMask))}
	if name != "" {
		payload = append(payload, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(string(name))))
	}
	var l Link
	err := c.Get(unix.RTM_GETLINK, func(answer []byte) (err error) {
		l, err = parseLink(answer)
		return err
	}, payload...)
	if errors.Is(err, unix.ENODEV) {
		return Link{}, ErrNoLink
	}
	if err != nil {
		return Link{}, fmt.Errorf("get link %s: %w", linkText(name, index), err)
	}
	return l, nil
}

func linkText(name netstate.IfName, index int) string {
	if name != "" {
		return string(name)
	}
	return fmt.Sprintf("with index %d", index)
}

// KindHint explains that the kernel knows no links of a kind.
func KindHint(kind netstate.Kind, err error) error {
	return &hint.Error{
		Field: "type", Value: string(kind), Problem: "the kernel has no links of this type", Err: err,
		Remedy: fmt.Sprintf("load the module: modprobe %s; if there is none, the kernel was built without it", kind),
	}
}

// Links lists every link of the namespace.
func (c *Conn) Links() ([]Link, error) {
	var links []Link
	err := c.Dump(unix.RTM_GETLINK, func() { links = nil }, func(data []byte) error {
		l, err := parseLink(data)
		if err != nil {
			return err
		}
		links = append(links, l)
		return nil
	}, nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(extMask)))
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return links, nil
}

// parseLink decodes a RTM_NEWLINK message: struct ifinfomsg and attributes.
func parseLink(data []byte) (Link, error) {
	if len(data) < unix.SizeofIfInfomsg {
		return Link{}, fmt.Errorf("decode link: %d bytes, want %d at least", len(data), unix.SizeofIfInfomsg)
	}
	head := nl.DeserializeIfInfomsg(data)
	l := Link{Index: int(head.Index), Flags: head.Flags, ParentNS: -1, OperUp: head.Flags&unix.IFF_RUNNING != 0}
	for kind, v := range attributes(data[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = netstate.IfName(text(v))
		case unix.IFLA_IFALIAS:
			l.Alias = text(v)
		case unix.IFLA_GROUP:
			l.Group = uint32(number(v))
		case unix.IFLA_ADDRESS:
			if len(v) == 6 {
				l.MAC = netstate.MAC(net.HardwareAddr(v).String())
			}
		case unix.IFLA_MTU:
			l.MTU = int(number(v))
		case unix.IFLA_TXQLEN:
			l.TxQueueLen = int(number(v))
		case unix.IFLA_MASTER:
			l.Master = int(number(v))
		case unix.IFLA_LINK:
			l.Parent = int(number(v))
		case unix.IFLA_LINK_NETNSID:
			l.ParentNS = int(int32(number(v)))
		case unix.IFLA_AF_SPEC:
			l.afSpec(v)
		case unix.IFLA_LINKINFO:
			l.info(v)
		}
	}
	return l, nil
}

// info reads IFLA_LINKINFO: the kind comes before the data that depends on it.
func (l *Link) info(b []byte) {
	slave := ""
	for kind, v := range attributes(b) {
		switch kind {
		case unix.IFLA_INFO_KIND:
			l.Kind = netstate.Kind(text(v))
		case unix.IFLA_INFO_SLAVE_KIND:
			slave = text(v)
		case unix.IFLA_INFO_SLAVE_DATA:
			if slave == "bridge" {
				l.Port = parsePort(v)
			}
		case unix.IFLA_INFO_DATA:
			l.data(v)
		}
	}
}

func (l *Link) data(b []byte) {
	switch l.Kind {
	case netstate.KindBridge:
		l.Bridge = parseBridge(b)
	case netstate.KindMacvlan:
		l.Macvlan = parseMacvlan(b)
	case netstate.KindTap:
		l.tap(b)
	}
}

func flag(v []byte) *bool {
	on := number(v) != 0
	return &on
}

func parseBridge(b []byte) *netstate.Bridge {
	br := &netstate.Bridge{}
	for kind, v := range attributes(b) {
		switch kind {
		case unix.IFLA_BR_VLAN_FILTERING:
			br.VLANFiltering = flag(v)
		case unix.IFLA_BR_STP_STATE:
			br.STP = flag(v)
		case unix.IFLA_BR_MCAST_SNOOPING:
			br.MulticastSnooping = flag(v)
		case unix.IFLA_BR_AGEING_TIME:
			br.AgeingTime = int(number(v)) / userHZ
		}
	}
	return br
}

// userHZ is the unit of clock_t values in netlink, per second (USER_HZ,
// include/asm-generic/param.h).
const userHZ = 100

func parsePort(b []byte) *netstate.Port {
	p := &netstate.Port{}
	for kind, v := range attributes(b) {
		switch kind {
		case unix.IFLA_BRPORT_MODE:
			p.Hairpin = flag(v)
		case unix.IFLA_BRPORT_ISOLATED:
			p.Isolated = flag(v)
		case unix.IFLA_BRPORT_LEARNING:
			p.Learning = flag(v)
		}
	}
	return p
}

// macvlanModes are the values of enum macvlan_mode (include/uapi/linux/if_link.h)
// by the names `ip link` gives them.
var macvlanModes = map[string]uint32{
	"private": 1, "vepa": 2, "bridge": 4, "passthru": 8, "source": 16,
}

// MacvlanMode gives the kernel's number of a mode.
func MacvlanMode(name string) (uint32, bool) {
	n, ok := macvlanModes[name]
	return n, ok
}

func parseMacvlan(b []byte) *netstate.Macvlan {
	m := &netstate.Macvlan{}
	for kind, v := range attributes(b) {
		switch kind {
		case unix.IFLA_MACVLAN_MODE:
			for name, n := range macvlanModes {
				if uint64(n) == number(v) {
					m.Mode = name
				}
			}
		case unix.IFLA_MACVLAN_BC_QUEUE_LEN:
			m.BCQueueLen = uint32(number(v))
		}
	}
	return m
}

// Attributes of a TUN/TAP device (enum in include/uapi/linux/if_link.h, Linux 4.20).
const (
	tunOwner      = 1 // IFLA_TUN_OWNER
	tunType       = 3 // IFLA_TUN_TYPE
	tunPersist    = 6 // IFLA_TUN_PERSIST
	tunMultiQueue = 7 // IFLA_TUN_MULTI_QUEUE
)

// tap reads the data of a tun device; a TUN (layer 3) device gives no Tap.
func (l *Link) tap(b []byte) {
	t := &netstate.Tap{}
	isTap := false
	for kind, v := range attributes(b) {
		switch kind {
		case tunOwner:
			t.Owner = uint32(number(v))
			l.TapOwned = true
		case tunType:
			isTap = number(v) == unix.IFF_TAP
		case tunPersist:
			l.TapPersists = number(v) != 0
		case tunMultiQueue:
			t.MultiQueue = number(v) != 0
		}
	}
	if isTap {
		l.Tap = t
	}
}
