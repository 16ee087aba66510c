package vmnet

import (
	"net/netip"

	"github.com/weftnet/weft/internal/netstate"
)

// Request is everything a plan is made from.
type Request struct {
	VM VM
	// Links are the observed Pod links by network name. Every interface whose
	// state is not absent needs one.
	Links map[string]PodLink
	// Identities by network name: what belongs to the VM's NIC and outlives Pods.
	Identities map[string]Identity
	// LauncherUID is the user QEMU runs as; it owns the TAPs.
	LauncherUID uint32
	// Alias is our mark on every link the plan makes ("weft:" + owner), Group
	// their link group.
	Alias string
	Group uint32
	// DNS is the resolver configuration of the node (or what the Pod's policy
	// made of it): the content of resolv.conf.
	DNS DNS
	// KeepPorts are the TCP ports of the Pod's address that stay with the
	// launcher when the guest gets the others. nil: MigrationPorts.
	KeepPorts []uint16
	// NoIPv6 says that the kernel has no IPv6 (no /proc/sys/net/ipv6).
	NoIPv6 bool
	// BridgeNetfilter says that the kernel has br_netfilter
	// (/proc/sys/net/bridge/bridge-nf-call-iptables is there).
	BridgeNetfilter bool
}

// VM is what the planner needs of a virtual machine.
type VM struct {
	Hostname  string
	Subdomain string
	VCPUs     int
	// MultiQueue as spec.domain.devices.networkInterfaceMultiqueue; nil: the
	// default, which is on.
	MultiQueue *bool
	// Interfaces in the order of spec.domain.devices.interfaces, absent ones
	// included, so that an index is a position in the user's document.
	Interfaces []Interface
}

// Binding says how a NIC is joined to its Pod link.
type Binding string

// Bindings the planner knows.
const (
	// Bridge gives the guest the Pod link's MAC, addresses and wire.
	Bridge Binding = "bridge"
	// Masquerade hides the guest behind the Pod link's addresses.
	Masquerade Binding = "masquerade"
)

// LinkState is spec.domain.devices.interfaces[*].state.
type LinkState string

// States of an interface; empty is Up.
const (
	Up     LinkState = "up"
	Down   LinkState = "down"
	Absent LinkState = "absent"
)

// Interface is one interface of a VM together with its network.
type Interface struct {
	// Network is the logical name both carry.
	Network string
	// NetworkIndex is the network's position in spec.networks, for error texts.
	NetworkIndex int
	// Primary: it sits on the Pod's default network (pod, or multus default).
	Primary bool
	Binding Binding
	State   LinkState
	// Model, empty: virtio.
	Model      string
	PCIAddress string
	ACPIIndex  int
	BootOrder  uint
	// Ports the guest is reached at (masquerade); empty: all.
	Ports []PortRange
	DHCP  DHCPOptions
	// CIDR4 and CIDR6 of the network behind a masquerade; empty: DefaultCIDR4
	// and DefaultCIDR6.
	CIDR4, CIDR6 string
}

// PortRange is a range of ports of one protocol; First equals Last for a
// single one.
type PortRange struct {
	Protocol    string // tcp or udp
	First, Last uint16
}

// DHCPOptions are extra options of one interface.
type DHCPOptions struct {
	BootFile string
	TFTP     string
	NTP      []netip.Addr
	Private  []PrivateOption
}

// PodLink is what was observed of one link in the Pod's namespace.
type PodLink struct {
	Name  netstate.IfName
	Index int
	MAC   netstate.MAC
	MTU   int
	// Kind as the kernel names it (veth, macvlan, ...), for messages only.
	Kind netstate.Kind
	// Addrs are those the attachment was given (its CNI result), first one first.
	// Addresses the kernel made for itself (link-local, SLAAC) do not belong here:
	// they would be leased to the guest.
	Addrs []netip.Prefix
	// Routes through this link, of both families, the kernel's own included.
	Routes []netstate.Route
	// DNS of the attachment's CNI result; zero: none.
	DNS DNS
}

// Identity is what a VM's NIC keeps over restarts and migrations.
type Identity struct {
	MAC  netstate.MAC
	Slot int
}

// DNS is the content of a resolv.conf as far as guests are told of it.
// Nameservers and search domains are as found; the planner drops what a guest
// cannot use and says so.
type DNS struct {
	Nameservers []netip.Addr
	Domain      string
	Search      []string
}

// Plan is the whole network state of a VM's Pod.
type Plan struct {
	// NICs in the order of VM.Interfaces, without absent ones.
	NICs []NICPlan
	// State is the desired state of the Pod's namespace: that of all NICs
	// together, with the one set of tables they share.
	State netstate.State
	// Warnings say what was asked for and not done, for events and describe.
	Warnings []string
}

// NICPlan is the plan of one NIC.
type NICPlan struct {
	NIC NIC
	// State is this NIC's part of Plan.State, without tables.
	State netstate.State
	// Taken is what bridge binding takes from the Pod link to give it to the
	// guest. Record it before applying State, and put it back before the plugin
	// that set it is asked to delete.
	Taken netstate.State
	// Serve is nil when the guest is served nothing: it then has a plain wire.
	Serve *Serve
}
