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

// Plan is the desired state on both sides of one sandbox. In JSON, which records
// are made of, what is not set is left out.
type Plan struct {
	// Alias is the mark of whatever in the plan has none of its own (see Alias
	// the function); it may stay empty where every link and table brings one.
	Alias string `json:",omitzero"`
	Host  State  `json:",omitzero"`
	Pod   State  `json:",omitzero"`
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
	Links   []Link      `json:",omitempty"`
	Addrs   []Addr      `json:",omitempty"`
	Routes  []Route     `json:",omitempty"`
	Rules   []Rule      `json:",omitempty"`
	FDB     []FDBEntry  `json:",omitempty"`
	Sysctls []Sysctl    `json:",omitempty"`
	Tables  []nft.Table `json:",omitempty"`
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
	Name     IfName   `json:",omitzero"`
	Kind     Kind     `json:",omitzero"`
	Presence Presence `json:",omitzero"`
	// Alias is our mark (IFLA_IFALIAS), see Alias the function. Empty on Existing
	// links; empty on others: the plan's.
	Alias string `json:",omitzero"`
	// Group is the link group (IFLA_GROUP); links of one sandbox share one, so
	// that they are deleted together and pay the kernel's grace period once. It
	// is the only mark the kernel takes in the message that creates a link, so
	// zero means GroupOf(Alias) on links we make.
	Group uint32 `json:",omitzero"`
	// MAC, MTU (bytes) and TxQueueLen (packets): zero leaves the kernel's choice.
	MAC        MAC `json:",omitzero"`
	MTU        int `json:",omitzero"`
	TxQueueLen int `json:",omitzero"`
	// Up is the administrative state, IFF_UP.
	Up bool `json:",omitzero"`
	// Promisc and AllMulticast, nil: leave.
	Promisc      *bool `json:",omitzero"`
	AllMulticast *bool `json:",omitzero"`
	// Master is the bridge this link is a port of; Port its settings there.
	Master IfName `json:",omitzero"`
	Port   *Port  `json:",omitzero"`
	// NoAddrs says that the link must have no address but its IPv6 link-local
	// one, and not even that with NoIPv6LinkLocal: the guest behind it has them.
	NoAddrs bool `json:",omitzero"`
	// NoIPv6LinkLocal keeps the kernel from giving the link a link-local address
	// (IN6_ADDR_GEN_MODE_NONE, include/uapi/linux/if_link.h).
	NoIPv6LinkLocal bool `json:",omitzero"`

	// Exactly the one that fits Kind may be set.
	Veth    *Veth    `json:",omitzero"`
	Bridge  *Bridge  `json:",omitzero"`
	Macvlan *Macvlan `json:",omitzero"`
	Tap     *Tap     `json:",omitzero"`
}

// Veth is what a veth end knows of its other end. One of the two ends carries
// the creation; Diff makes the pair once.
type Veth struct {
	PeerSide Side   `json:",omitzero"`
	PeerName IfName `json:",omitzero"`
}

// Bridge settings, as `ip link set type bridge`. nil: leave the kernel's.
type Bridge struct {
	VLANFiltering     *bool `json:",omitzero"`
	STP               *bool `json:",omitzero"`
	MulticastSnooping *bool `json:",omitzero"`
	// AgeingTime in seconds; 0: leave.
	AgeingTime int `json:",omitzero"`
}

// Port settings of a bridge port, as `bridge link set`. nil: leave.
type Port struct {
	Hairpin  *bool `json:",omitzero"`
	Isolated *bool `json:",omitzero"`
	Learning *bool `json:",omitzero"`
	// VLANs of the port on a bridge with VLAN filtering; nil: the bridge's default.
	VLANs *PortVLANs `json:",omitzero"`
}

// PortVLANs are all VLANs of a bridge port, as `bridge vlan` has them; a port
// is taken out of every other. Order within the slices carries no meaning.
type PortVLANs struct {
	// PVID is the VLAN of untagged frames, in and out.
	PVID uint16 `json:",omitzero"`
	// Untagged are further VLANs whose frames leave without tag.
	Untagged []uint16 `json:",omitempty"`
	Tagged   []uint16 `json:",omitempty"`
}

// Macvlan settings.
type Macvlan struct {
	ParentSide Side   `json:",omitzero"`
	Parent     IfName `json:",omitzero"`
	// Mode is bridge, private, vepa or passthru.
	Mode string `json:",omitzero"`
	// BCQueueLen is the broadcast queue length in packets; 0: the kernel's.
	BCQueueLen uint32 `json:",omitzero"`
}

// Tap settings; they cannot be changed after creation.
type Tap struct {
	// Owner is the uid that may attach (TUNSETOWNER). Required: a TAP without an
	// owner can be attached by anyone.
	Owner uint32 `json:",omitzero"`
	// MultiQueue must match what the program that attaches asks for (IFF_MULTI_QUEUE).
	MultiQueue bool `json:",omitzero"`
}

// Addr is one address on a link.
type Addr struct {
	Link   IfName       `json:",omitzero"`
	Prefix netip.Prefix `json:",omitzero"` // address with its prefix length, host bits kept
	// NoDAD skips duplicate address detection (IFA_F_NODAD), IPv6 only.
	NoDAD bool `json:",omitzero"`
	// Peer is the other side of a point-to-point address; zero: none.
	Peer netip.Addr `json:",omitzero"`
	// Settle waits until duplicate address detection has passed, IPv6 only.
	Settle bool `json:",omitzero"`
	// Shared is Presence of the address: shared ones (a bridge's gateway address)
	// stay while any attachment claims them.
	Shared bool `json:",omitzero"`
}

// RouteProtocol is the rtm_protocol our own routes carry, our mark on them
// (not one of the values in include/uapi/linux/rtnetlink.h or iproute2's rt_protos).
const RouteProtocol = 119

// Route is one unicast route.
type Route struct {
	Dst    netip.Prefix `json:",omitzero"` // 0.0.0.0/0 or ::/0 for a default route
	Link   IfName       `json:",omitzero"`
	Via    netip.Addr   `json:",omitzero"` // zero: on-link
	Src    netip.Addr   `json:",omitzero"` // preferred source; zero: none
	Table  int          `json:",omitzero"` // 0: main (254)
	Metric int          `json:",omitzero"` // 0: the kernel's default
	MTU    int          `json:",omitzero"`
	AdvMSS int          `json:",omitzero"`
	// Scope as rtm_scope: 0 universe, 253 link. Meaningful for IPv4 only.
	Scope  uint8 `json:",omitzero"`
	OnLink bool  `json:",omitzero"`
	// Protocol as rtm_protocol; 0 in desired state means RouteProtocol.
	Protocol int `json:",omitzero"`
	// IfAbsent leaves another route to the same destination, with the same table
	// and metric, as it is: the first one wins, as the reference plugins do it.
	IfAbsent bool `json:",omitzero"`
	// Local makes the route's destination this host (`ip route add local`). It is
	// how ::1 can arrive over a link: IPv6 has no route_localnet.
	Local bool `json:",omitzero"`
}

// Rule is one policy routing rule, as `ip rule`. Ours carry RouteProtocol.
type Rule struct {
	Family   int          `json:",omitzero"` // 4 or 6
	Priority int          `json:",omitzero"`
	From, To netip.Prefix `json:",omitzero"`
	IIF      IfName       `json:",omitzero"`
	Mark     uint32       `json:",omitzero"`
	Table    int          `json:",omitzero"`
}

// FDBEntry is a static forwarding entry of a bridge port:
// `bridge fdb replace MAC dev PORT master static`.
type FDBEntry struct {
	MAC  MAC    `json:",omitzero"`
	Port IfName `json:",omitzero"`
}

// Sysctl is one value under /proc/sys, dots in link names allowed because the
// path is given in parts: {"net","ipv4","conf","eth0.5","arp_ignore"}.
type Sysctl struct {
	Path  string `json:",omitzero"` // slash-separated below /proc/sys: net/ipv4/ip_forward
	Value string `json:",omitzero"`
}
