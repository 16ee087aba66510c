// Package netstate describes network state as plain values: what links,
// addresses, routes, rules, FDB entries, sysctls and nftables tables one
// network namespace has or should have.
//
// Planners return it, dataplane observes and applies it, Diff orders the
// operations between the two, and String gives the one text form that tests
// and people read. Nothing here touches the kernel.
package netstate

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/weftnet/weft/internal/nft"
)

// IfName is the name of a link inside its namespace: 1 to 15 bytes
// (IFNAMSIZ-1, include/uapi/linux/if.h), no '/', no white space.
type IfName string

// MAC is a 48-bit link-layer address in canonical text: lower case, colons.
// The empty value means "not set": the kernel chooses.
type MAC string

// ParseMAC gives the canonical form of a 48-bit address in any notation
// net.ParseMAC takes.
func ParseMAC(text string) (MAC, error) {
	hw, err := net.ParseMAC(text)
	if err != nil {
		return "", fmt.Errorf("parse MAC %q: %w", text, err)
	}
	if len(hw) != 6 {
		return "", fmt.Errorf("parse MAC %q: %d bytes, want 6", text, len(hw))
	}
	return MAC(hw.String()), nil
}

// HardwareAddr gives the six bytes, or nil for the empty value.
func (m MAC) HardwareAddr() net.HardwareAddr {
	hw, err := net.ParseMAC(string(m))
	if err != nil {
		return nil
	}
	return hw
}

// Side says which namespace of a Plan something is in.
type Side string

// The two namespaces an attachment touches.
const (
	// Host is the namespace the agent runs in.
	Host Side = "host"
	// Pod is the namespace of the sandbox.
	Pod Side = "pod"
)

// Plan is the desired state on both sides of one sandbox.
type Plan struct {
	// Alias is the mark of whatever in the plan has none of its own (see Alias
	// the function); it may stay empty where every link and table brings one.
	Alias string
	Host  State
	Pod   State
}

// At gives the state of one side.
func (p *Plan) At(side Side) *State {
	if side == Host {
		return &p.Host
	}
	return &p.Pod
}

// State is what one namespace has or should have. Order within the slices
// carries no meaning; Normalize sorts them.
type State struct {
	Links   []Link
	Addrs   []Addr
	Routes  []Route
	Rules   []Rule
	FDB     []FDBEntry
	Sysctls []Sysctl
	Tables  []nft.Table
}

// Presence says how far a link is ours.
type Presence string

// Presences of a link.
const (
	// Owned: we make it and delete it; it carries our alias.
	Owned Presence = "owned"
	// Shared: made if absent and then ours to prune once no attachment claims
	// it; if a stranger made it, it is used as it is and never deleted. A bridge
	// of the bridge plugin is one. Its MAC, MTU and queue length are set when it
	// is made and never after, since those who share it may differ about them.
	Shared Presence = "shared"
	// Existing: somebody else made it; only the attributes given here are set,
	// it is never created or deleted. A Pod link made by a foreign plugin is one.
	Existing Presence = "existing"
)

// Kind is the link type as `ip link add ... type KIND` says it.
type Kind string

// The kinds weft makes. A State may also name others in an Existing link.
const (
	KindVeth    Kind = "veth"
	KindBridge  Kind = "bridge"
	KindMacvlan Kind = "macvlan"
	KindTap     Kind = "tun" // IFLA_INFO_KIND of a TAP device is "tun"
)

// Link is one link. Zero values of optional fields mean "leave it as it is".
type Link struct {
	Name     IfName
	Kind     Kind
	Presence Presence
	// Alias is our mark (IFLA_IFALIAS), see Alias the function. Empty on Existing
	// links; empty on others: the plan's.
	Alias string
	// Group is the link group (IFLA_GROUP); links of one sandbox share one, so
	// that they are deleted together and pay the kernel's grace period once. It
	// is the only mark the kernel takes in the message that creates a link, so
	// zero means GroupOf(Alias) on links we make.
	Group uint32
	// MAC, MTU (bytes) and TxQueueLen (packets): zero leaves the kernel's choice.
	MAC        MAC
	MTU        int
	TxQueueLen int
	// Up is the administrative state, IFF_UP.
	Up bool
	// Promisc and AllMulticast, nil: leave.
	Promisc      *bool
	AllMulticast *bool
	// Master is the bridge this link is a port of; Port its settings there.
	Master IfName
	Port   *Port
	// NoAddrs says that the link must have no address but its IPv6 link-local
	// one, and not even that with NoIPv6LinkLocal: the guest behind it has them.
	NoAddrs bool
	// NoIPv6LinkLocal keeps the kernel from giving the link a link-local address
	// (IN6_ADDR_GEN_MODE_NONE, include/uapi/linux/if_link.h).
	NoIPv6LinkLocal bool

	// Exactly the one that fits Kind may be set.
	Veth    *Veth
	Bridge  *Bridge
	Macvlan *Macvlan
	Tap     *Tap
}

// Veth is what a veth end knows of its other end. One of the two ends carries
// the creation; Diff makes the pair once.
type Veth struct {
	PeerSide Side
	PeerName IfName
}

// Bridge settings, as `ip link set type bridge`. nil: leave the kernel's.
type Bridge struct {
	VLANFiltering     *bool
	STP               *bool
	MulticastSnooping *bool
	// AgeingTime in seconds; 0: leave.
	AgeingTime int
}

// Port settings of a bridge port, as `bridge link set`. nil: leave.
type Port struct {
	Hairpin  *bool
	Isolated *bool
	Learning *bool
	// VLANs of the port on a bridge with VLAN filtering; nil: the bridge's default.
	VLANs *PortVLANs
}

// PortVLANs are all VLANs of a bridge port, as `bridge vlan` has them; a port
// is taken out of every other. Order within the slices carries no meaning.
type PortVLANs struct {
	// PVID is the VLAN of untagged frames, in and out.
	PVID uint16
	// Untagged are further VLANs whose frames leave without tag.
	Untagged []uint16
	Tagged   []uint16
}

// Macvlan settings.
type Macvlan struct {
	ParentSide Side
	Parent     IfName
	// Mode is bridge, private, vepa or passthru.
	Mode string
	// BCQueueLen is the broadcast queue length in packets; 0: the kernel's.
	BCQueueLen uint32
}

// Tap settings; they cannot be changed after creation.
type Tap struct {
	// Owner is the uid that may attach (TUNSETOWNER). Required: a TAP without an
	// owner can be attached by anyone.
	Owner uint32
	// MultiQueue must match what the program that attaches asks for (IFF_MULTI_QUEUE).
	MultiQueue bool
}

// Addr is one address on a link.
type Addr struct {
	Link   IfName
	Prefix netip.Prefix // address with its prefix length, host bits kept
	// NoDAD skips duplicate address detection (IFA_F_NODAD), IPv6 only.
	NoDAD bool
	// Peer is the other side of a point-to-point address; zero: none.
	Peer netip.Addr
	// Settle waits until duplicate address detection has passed, IPv6 only.
	Settle bool
	// Shared is Presence of the address: shared ones (a bridge's gateway address)
	// stay while any attachment claims them.
	Shared bool
}

// RouteProtocol is the rtm_protocol our own routes carry, our mark on them
// (not one of the values in include/uapi/linux/rtnetlink.h or iproute2's rt_protos).
const RouteProtocol = 119

// Route is one unicast route.
type Route struct {
	Dst    netip.Prefix // 0.0.0.0/0 or ::/0 for a default route
	Link   IfName
	Via    netip.Addr // zero: on-link
	Src    netip.Addr // preferred source; zero: none
	Table  int        // 0: main (254)
	Metric int        // 0: the kernel's default
	MTU    int
	AdvMSS int
	// Scope as rtm_scope: 0 universe, 253 link. Meaningful for IPv4 only.
	Scope  uint8
	OnLink bool
	// Protocol as rtm_protocol; 0 in desired state means RouteProtocol.
	Protocol int
	// IfAbsent leaves another route to the same destination, with the same table
	// and metric, as it is: the first one wins, as the reference plugins do it.
	IfAbsent bool
	// Local makes the route's destination this host (`ip route add local`). It is
	// how ::1 can arrive over a link: IPv6 has no route_localnet.
	Local bool
}

// Rule is one policy routing rule, as `ip rule`. Ours carry RouteProtocol.
type Rule struct {
	Family   int // 4 or 6
	Priority int
	From, To netip.Prefix
	IIF      IfName
	Mark     uint32
	Table    int
}

// FDBEntry is a static forwarding entry of a bridge port:
// `bridge fdb replace MAC dev PORT master static`.
type FDBEntry struct {
	MAC  MAC
	Port IfName
}

// Sysctl is one value under /proc/sys, dots in link names allowed because the
// path is given in parts: {"net","ipv4","conf","eth0.5","arp_ignore"}.
type Sysctl struct {
	Path  string // slash-separated below /proc/sys: net/ipv4/ip_forward
	Value string
}
