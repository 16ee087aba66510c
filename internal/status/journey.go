// Package status tells how far each NIC has come on its journey from request
// to guest. It joins three sources that never overwrite each other (the Pod's
// attachment, the machine, the guest) into what KubeVirt's status shows and
// what `weft describe` explains. It is pure: facts come in as values.
package status

import (
	"net/netip"
	"slices"
	"strings"
)

// Stage is how far a NIC has come.
//
//	requested ──► attached ──► wired ──► plugged ──► seen
//	 (spec)     (Pod link)   (TAP, NAT,  (machine   (guest has
//	                          DHCP)       has it)    an address)
//
// Pods end at attached: wired and later are a VM's.
type Stage string

// Stages in order.
const (
	Requested Stage = "requested"
	Attached  Stage = "attached"
	Wired     Stage = "wired"
	Plugged   Stage = "plugged"
	Seen      Stage = "seen"
)

// Sources of a fact, the words of KubeVirt's infoSource.
const (
	SourceMultus = "multus-status"
	SourceDomain = "domain"
	SourceGuest  = "guest-agent"
)

// Request is what the spec or annotation asks for.
type Request struct {
	// Network is the logical name in a VM, the NAD's in a Pod.
	Network string `json:"network"`
	// Source says where the Pod's side comes from: "pod" or the NAD's namespace/name.
	Source string `json:"source"`
	// Binding is masquerade or bridge; empty for a Pod.
	Binding string `json:"binding,omitempty"`
	// PodLink is the link's name in the Pod.
	PodLink string `json:"podLink"`
	// Primary is set for the NIC on the Pod network.
	Primary bool `json:"primary,omitempty"`
	// LinkDown: the user wants the cable unplugged.
	LinkDown bool `json:"linkDown,omitempty"`
}

// PodFact is one attachment, from the agent's record.
type PodFact struct {
	Link      string         `json:"link"`
	HostLink  string         `json:"hostLink,omitempty"`
	MAC       string         `json:"mac"`
	MTU       int            `json:"mtu,omitempty"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	Gateways  []netip.Addr   `json:"gateways,omitempty"`
	// Failure is why there is no attachment, if it was tried.
	Failure string `json:"failure,omitempty"`
}

// WireFact is what stands between Pod link and machine.
type WireFact struct {
	TAP string `json:"tap"`
	// MAC the guest's NIC is to have.
	MAC    string `json:"mac"`
	Bridge string `json:"bridge"`
	// Serving lists dhcpv4, dhcpv6, ra as far as they are served on the TAP.
	Serving []string `json:"serving,omitempty"`
	// Offered are the addresses our servers give to the guest.
	Offered []netip.Addr `json:"offered,omitempty"`
	// Leased says that the guest has taken its DHCP lease since the agent began
	// to watch.
	Leased bool `json:"leased"`
	// LastExchange is the newest DHCP transaction as text.
	LastExchange string `json:"lastExchange,omitempty"`
}

// MachineFact is what QEMU says of a NIC.
type MachineFact struct {
	Model  string `json:"model"`
	MAC    string `json:"mac"`
	Queues int    `json:"queues"`
	LinkUp bool   `json:"linkUp"`
	Slot   int    `json:"slot"`
	// MACInUse is the address the guest receives on, from query-rx-filter; empty
	// if unknown.
	MACInUse string `json:"macInUse,omitempty"`
}

// GuestFact is one interface as the guest agent reports it.
type GuestFact struct {
	Name      string       `json:"name"`
	MAC       string       `json:"mac"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// NIC is one interface with everything known of it, per source.
type NIC struct {
	Request Request      `json:"request"`
	Stage   Stage        `json:"stage"`
	Pod     *PodFact     `json:"pod,omitempty"`
	Wire    *WireFact    `json:"wire,omitempty"`
	Machine *MachineFact `json:"machine,omitempty"`
	Guest   *GuestFact   `json:"guest,omitempty"`
	// Missing says what is not there yet, or is wrong; Remedy what to do.
	Missing string `json:"missing,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
}

// Journey is what `weft describe` shows of a Pod or VM.
type Journey struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Phase     string `json:"phase"`
	Pod       string `json:"pod,omitempty"` // the launcher Pod of a VM
	NetNS     string `json:"netns,omitempty"`
	NICs      []NIC  `json:"nics"`
	// Others are guest interfaces that are none of ours.
	Others []GuestFact `json:"others,omitempty"`
	// Messages are conditions and warnings of the whole object.
	Messages []string `json:"messages,omitempty"`
}

// Facts are the three sources' reports on one VM, by logical network name.
type Facts struct {
	Pod     map[string]PodFact
	Wire    map[string]WireFact
	Machine map[string]MachineFact
	// MachineRuns is false while there is no QEMU; MachineReason says why.
	MachineRuns   bool
	MachineReason string
	Guest         []GuestFact
	// AgentConnected says that the guest agent answers.
	AgentConnected bool
}

// JoinVM gives the NICs of a VM in the order of the requests, and the guest's
// interfaces that belong to none of them. Guest interfaces are matched by MAC.
func JoinVM(requests []Request, facts Facts) (nics []NIC, others []GuestFact) {
	matched := make([]bool, len(facts.Guest))
	for _, request := range requests {
		nic := NIC{Request: request, Stage: Requested}
		if fact, ok := facts.Pod[request.Network]; ok {
			nic.Pod = &fact
		}
		if fact, ok := facts.Wire[request.Network]; ok {
			nic.Wire = &fact
		}
		if fact, ok := facts.Machine[request.Network]; ok && facts.MachineRuns {
			nic.Machine = &fact
			i := slices.IndexFunc(facts.Guest, func(g GuestFact) bool { return strings.EqualFold(g.MAC, fact.MAC) })
			if i >= 0 {
				nic.Guest, matched[i] = &facts.Guest[i], true
			}
		}
		nic.Stage = stageOf(nic)
		nic.Missing, nic.Remedy = explain(nic, facts)
		nics = append(nics, nic)
	}
	for i, guest := range facts.Guest {
		if !matched[i] {
			others = append(others, guest)
		}
	}
	return nics, others
}

func stageOf(nic NIC) Stage {
	switch {
	case nic.Pod == nil || nic.Pod.Failure != "":
		return Requested
	case nic.Wire == nil:
		return Attached
	case nic.Machine == nil:
		return Wired
	case nic.seen():
		return Seen
	default:
		return Plugged
	}
}

// seen: the guest has an address of ours, or any global one where we offer
// none. Without a guest agent a lease taken from our server is proof enough.
func (n NIC) seen() bool {
	if n.Guest == nil {
		return n.Wire.Leased
	}
	if len(n.Wire.Offered) == 0 {
		return len(GlobalOnly(n.Guest.Addresses)) > 0
	}
	return slices.ContainsFunc(n.Wire.Offered, func(a netip.Addr) bool { return slices.Contains(n.Guest.Addresses, a) })
}

func explain(nic NIC, facts Facts) (missing, remedy string) {
	switch {
	case nic.Pod == nil:
		return "no link " + nic.Request.PodLink + " in the Pod yet", "see the Pod's conditions (weft get pod -o yaml) and the agent's log"
	case nic.Pod.Failure != "":
		return nic.Pod.Failure, ""
	case nic.Wire == nil:
		return "on the Pod, but TAP and bridge are not made", "see the VMI's conditions and the agent's log"
	case nic.Machine == nil && !facts.MachineRuns:
		return "wired, but no machine runs: " + facts.MachineReason, "see weft logs --machine for its last words"
	case nic.Machine == nil:
		return "on the Pod, but the machine has no such NIC", "restart the VM so that the machine is built with it"
	case nic.Stage == Seen:
		return explainSeen(nic)
	case nic.Request.LinkDown:
		return "the cable is unplugged (state: down)", "set state: up on the interface"
	}
	return explainPlugged(nic, facts)
}

func explainSeen(nic NIC) (missing, remedy string) {
	if nic.foreignMAC() {
		return "the guest uses MAC " + nic.Machine.MACInUse + " instead of " + nic.Machine.MAC, "frames to another MAC are not forwarded to the guest: take the MAC setting out of the guest"
	}
	return "", ""
}

func explainPlugged(nic NIC, facts Facts) (missing, remedy string) {
	served := len(nic.Wire.Serving) > 0
	switch {
	case nic.foreignMAC():
		return explainSeen(nic)
	case served && nic.Wire.LastExchange == "" && nic.Guest == nil:
		return "in the machine, but the guest has not asked for an address", "look at weft console: has the guest a driver for " + nic.Machine.Model + ", and a DHCP client on that NIC?"
	case served && nic.Guest == nil && !facts.AgentConnected:
		return "in the machine; last DHCP exchange: " + nic.Wire.LastExchange, "wait, or look at weft console"
	case facts.AgentConnected && nic.Guest == nil:
		return "attached, but not in the guest: no guest interface has MAC " + nic.Machine.MAC, "look for the NIC with weft exec (lspci, dmesg): a missing driver is the usual cause"
	case nic.Guest != nil && served:
		return "guest interface " + nic.Guest.Name + " has none of the addresses offered", "start a DHCP client on " + nic.Guest.Name + " in the guest"
	case nic.Guest != nil:
		return "guest interface " + nic.Guest.Name + " has no address, and this network has no IPAM to give one", "configure it in the guest, or add ipam to the network"
	default:
		return "in the machine; nothing is known from the guest, and this network has no IPAM", "install qemu-guest-agent in the guest to see its addresses"
	}
}

func (n NIC) foreignMAC() bool {
	return n.Machine != nil && n.Machine.MACInUse != "" && !strings.EqualFold(n.Machine.MACInUse, n.Machine.MAC)
}

// GlobalOnly gives the addresses that are neither loopback nor link-local.
func GlobalOnly(addrs []netip.Addr) []netip.Addr {
	var global []netip.Addr
	for _, a := range addrs {
		if !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() {
			global = append(global, a)
		}
	}
	return global
}

// InfoSource gives KubeVirt's list of sources for a NIC, in its order.
func (n NIC) InfoSource() string {
	var sources []string
	if n.Machine != nil {
		sources = append(sources, SourceDomain)
	}
	if n.Guest != nil {
		sources = append(sources, SourceGuest)
	}
	if n.Pod != nil && n.Pod.Failure == "" && !n.Request.Primary {
		sources = append(sources, SourceMultus)
	}
	return strings.Join(sources, ", ")
}
