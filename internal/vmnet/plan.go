// Package vmnet plans how a Pod's links reach a virtual machine: from the
// networks and interfaces of a VM and the facts observed on its Pod's links it
// returns, per NIC, the desired state of the Pod's namespace, the leases and
// router advertisements for the guest, and the facts the machine is built from.
//
// It is pure: no clock, files, sockets or logs.
package vmnet

import (
	"net/netip"
	"time"

	"github.com/weftnet/weft/internal/netstate"
)

// NIC is what the machine needs to know of one interface.
type NIC struct {
	// Network is the logical name: spec.domain.devices.interfaces[*].name.
	Network string
	// PodLink is the link in the Pod's namespace the NIC stands for.
	PodLink netstate.IfName
	// TAP is the device QEMU attaches to.
	TAP netstate.IfName
	MAC netstate.MAC
	// Model is virtio, e1000, e1000e, igb, ne2k_pci, pcnet or rtl8139.
	Model string
	// Queues is the number of queue pairs, at least 1.
	Queues int
	// MTU in bytes, told to virtio guests by host_mtu; 0: not told.
	MTU int
	// Slot is the number of the PCIe root port the NIC sits on, from 0. Assigned
	// once, kept for the life of the VM.
	Slot int
	// PCIAddress as the user fixed it, DDDD:BB:SS.F; empty: by Slot.
	PCIAddress string
	// ACPIIndex names the NIC in the guest (eno<N>); 0: none.
	ACPIIndex int
	// BootOrder, 0: the NIC is no boot device and its option ROM stays off.
	BootOrder uint
	// LinkUp is the state of the virtual cable.
	LinkUp bool
}

// Route is one route told to a guest (RFC 3442). Via zero: on-link.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// PrivateOption is a site-specific DHCPv4 option, code 224 to 254 (RFC 3942).
type PrivateOption struct {
	Code  uint8
	Value string
}

// Lease4 is what DHCPv4 tells the guest of one NIC.
type Lease4 struct {
	// MAC is the only client answered; empty: whoever asks on this TAP.
	MAC netstate.MAC
	// Addr is the guest's address with its prefix length.
	Addr netip.Prefix
	// ServerID is option 54 and the source of our packets.
	ServerID netip.Addr
	// Router is option 3; zero: none.
	Router netip.Addr
	// Routes is option 121, complete, default route last; empty: none.
	Routes   []Route
	DNS      []netip.Addr
	Domain   string   // option 15
	Search   []string // option 119
	Hostname string   // option 12
	MTU      int      // option 26, bytes
	NTP      []netip.Addr
	TFTP     string // option 66
	BootFile string // option 67
	Private  []PrivateOption
	Lifetime time.Duration // 0: infinite
}

// Lease6 is what DHCPv6 tells the guest of one NIC.
type Lease6 struct {
	// MAC is the only client answered; empty: whoever asks on this TAP.
	MAC      netstate.MAC
	Addr     netip.Addr
	DNS      []netip.Addr
	Search   []string
	Lifetime time.Duration // preferred and valid; 0: infinite
}

// RA is the router advertisement sent to the guest of one NIC (RFC 4861).
type RA struct {
	// RouterLifetime is 0 when somebody else is the default router.
	RouterLifetime time.Duration
	// Managed is the M flag: addresses by DHCPv6.
	Managed bool
	// OtherConfig is the O flag.
	OtherConfig bool
	// MTU option in bytes; 0: none.
	MTU int
	// Prefixes are advertised on-link (L), never autonomous (A): the address
	// comes from DHCPv6.
	Prefixes []netip.Prefix
	// Routes are advertised as route information options (RFC 4191).
	Routes []netip.Prefix
	DNS    []netip.Addr // RDNSS, RFC 8106
	Search []string     // DNSSL, RFC 8106
	// Lifetime of prefixes, routes, RDNSS and DNSSL; 0: infinite.
	Lifetime time.Duration
}

// Serve is what the guest-facing servers do on one TAP. Lease4, Lease6 and RA
// are nil where that protocol is not served.
type Serve struct {
	TAP netstate.IfName
	// ServerMAC and ServerLL are the link-layer and IPv6 link-local source of
	// every frame we send to the guest.
	ServerMAC netstate.MAC
	ServerLL  netip.Addr
	Lease4    *Lease4
	Lease6    *Lease6
	RA        *RA
}
