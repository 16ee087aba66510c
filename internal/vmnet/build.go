package vmnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
)

// ReservedMAC is the in-Pod bridge's, the same on every Pod as in KubeVirt, so
// that a guest's neighbour entry for it survives a migration. No guest may have it.
const ReservedMAC netstate.MAC = "02:00:00:00:00:00"

// serverLL is the link-local address of ReservedMAC (EUI-64, RFC 4291 appendix
// A): the source of our RA and DHCPv6.
var serverLL = netip.MustParseAddr("fe80::ff:fe00:0")

// LeaseLifetime is the lifetime of addresses, prefixes and DNS given to guests.
// A guest renews from half of it on, so an agent may be away for twelve hours,
// let alone a restart or a node upgrade, before a guest even tries in vain, and
// for a whole day before it loses anything. It is not KubeVirt's 999 days,
// because a guest that never renews never learns a changed route, DNS server or
// MTU either.
const LeaseLifetime = 24 * time.Hour

// RouterLifetime is how long a masqueraded guest keeps our default route
// without a new RA: the longest the field can say (65535 s, RFC 8319).
const RouterLifetime = 65535 * time.Second

// maxQueues bounds the queue pairs of a NIC; more cost memory and vectors and
// give a guest of that size nothing.
const maxQueues = 8

// maxSlot bounds the slots a plan may name: the PCI buses of a machine.
const maxSlot = 255

// Virtio is the default model, the only one with queues and host_mtu.
const Virtio = "virtio"

// builder collects a plan.
type builder struct {
	req    Request
	plan   Plan
	rules  ruleset
	names  map[netstate.IfName]string // names we make -> network that took it
	errs   []error
	masqIn string // network of the one masqueraded NIC
}

// Build plans the network of a VM's Pod. Several problems come back joined;
// those a user can fix are *hint.Error with the field's path in the VMI.
func Build(req Request) (Plan, error) {
	b := &builder{req: req, names: map[netstate.IfName]string{}}
	for i, iface := range req.VM.Interfaces {
		if iface.State == Absent {
			continue
		}
		nic, err := b.nic(iface)
		if err != nil {
			b.errs = append(b.errs, locate(i, iface, err))
			continue
		}
		b.plan.NICs = append(b.plan.NICs, nic)
	}
	if len(b.errs) > 0 {
		return Plan{}, errors.Join(b.errs...)
	}
	for _, nic := range b.plan.NICs {
		b.plan.State.Links = append(b.plan.State.Links, nic.State.Links...)
		b.plan.State.Addrs = append(b.plan.State.Addrs, nic.State.Addrs...)
		b.plan.State.Routes = append(b.plan.State.Routes, nic.State.Routes...)
		b.plan.State.FDB = append(b.plan.State.FDB, nic.State.FDB...)
		b.plan.State.Sysctls = append(b.plan.State.Sysctls, nic.State.Sysctls...)
	}
	b.plan.State.Sysctls = append(b.plan.State.Sysctls, b.bridgeNetfilter()...)
	b.plan.State.Tables = b.rules.tables()
	return b.plan, nil
}

// locate gives err its place in the VMI. A hint that begins with "network."
// means the interface's network.
func locate(i int, iface Interface, err error) error {
	var h *hint.Error
	if errors.As(err, &h) {
		if field, ok := strings.CutPrefix(h.Field, "network."); ok {
			moved := *h
			moved.Field = fmt.Sprintf("spec.networks[%d].%s", iface.NetworkIndex, field)
			return &moved
		}
		return hint.At(fmt.Sprintf("spec.domain.devices.interfaces[%d]", i), err)
	}
	return fmt.Errorf("plan interface %s: %w", iface.Network, err)
}

func (b *builder) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !slices.Contains(b.plan.Warnings, text) {
		b.plan.Warnings = append(b.plan.Warnings, text)
	}
}

// job is one NIC on its way.
type job struct {
	iface Interface
	link  PodLink
	id    Identity
	// bridge and tap are the names of what stands between link and guest.
	bridge, tap netstate.IfName
	queues      int
	model       string
}

func (b *builder) nic(iface Interface) (NICPlan, error) {
	j, err := b.prepare(iface)
	if err != nil {
		return NICPlan{}, err
	}
	var plan NICPlan
	switch iface.Binding {
	case Bridge:
		plan, err = b.bridge(j)
	case Masquerade:
		plan, err = b.masquerade(j)
	default:
		err = &hint.Error{
			Field: "binding", Value: string(iface.Binding), Problem: "is not a binding weft wires",
			Remedy: "use bridge or masquerade",
		}
	}
	return plan, err
}

func (b *builder) prepare(iface Interface) (job, error) {
	link, ok := b.req.Links[iface.Network]
	if !ok {
		return job{}, errors.New("its link is not in the Pod: attach the network first")
	}
	id, ok := b.req.Identities[iface.Network]
	if !ok {
		return job{}, errors.New("no identity (MAC, slot) was assigned to it")
	}
	if id.Slot < 0 || id.Slot > maxSlot {
		return job{}, fmt.Errorf("slot %d of its identity is not between 0 and %d", id.Slot, maxSlot)
	}
	if err := checkPorts(iface.Ports); err != nil {
		return job{}, err
	}
	bridge, tap, err := linkNames(link.Name, iface.Primary)
	if err != nil {
		return job{}, err
	}
	for _, name := range []netstate.IfName{bridge, tap} {
		if other, taken := b.names[name]; taken {
			return job{}, &hint.Error{
				Field: "name", Value: iface.Network,
				Problem: fmt.Sprintf("needs the device name %s that network %s has", name, other),
				Remedy:  "ask for another interface name in one of the two networks",
			}
		}
		b.names[name] = iface.Network
	}
	j := job{iface: iface, link: link, id: id, bridge: bridge, tap: tap, queues: 1, model: iface.Model}
	if j.model == "" {
		j.model = Virtio
	}
	if on := b.req.VM.MultiQueue; j.model == Virtio && (on == nil || *on) {
		j.queues = max(1, min(b.req.VM.VCPUs, maxQueues))
	}
	return j, nil
}

// checkPorts refuses what would become another rule than meant: plans are read
// from Pods too, where anybody may write them.
func checkPorts(ports []PortRange) error {
	for i, p := range ports {
		if p.Protocol != "" && p.Protocol != "tcp" && p.Protocol != "udp" || p.First == 0 || p.Last < p.First {
			return &hint.Error{
				Field: fmt.Sprintf("ports[%d]", i), Value: fmt.Sprintf("%s %d-%d", p.Protocol, p.First, p.Last),
				Problem: "is not a range of tcp or udp ports", Remedy: "write tcp or udp and ports from 1 to 65535",
			}
		}
	}
	return nil
}

// facts is what the machine is told of j.
func (j job) facts(mac netstate.MAC) NIC {
	nic := NIC{
		Network: j.iface.Network, PodLink: j.link.Name, TAP: j.tap, MAC: mac,
		Model: j.model, Queues: j.queues, Slot: j.id.Slot,
		PCIAddress: j.iface.PCIAddress, ACPIIndex: j.iface.ACPIIndex, BootOrder: j.iface.BootOrder,
		LinkUp: j.iface.State != Down,
	}
	if j.model == Virtio {
		nic.MTU = j.link.MTU
	}
	return nic
}

// bridgeLink is the in-Pod bridge. It never speaks on its own: no spanning
// tree, no multicast queries, no link-local address.
func (b *builder) bridgeLink(j job) netstate.Link {
	off := false
	return netstate.Link{
		Name: j.bridge, Kind: netstate.KindBridge, Presence: netstate.Owned, Alias: b.req.Alias, Group: b.req.Group,
		MAC: ReservedMAC, MTU: j.link.MTU, Up: true, NoIPv6LinkLocal: true,
		Bridge: &netstate.Bridge{STP: &off, MulticastSnooping: &off},
	}
}

func (b *builder) tapLink(j job) netstate.Link {
	return netstate.Link{
		Name: j.tap, Kind: netstate.KindTap, Presence: netstate.Owned, Alias: b.req.Alias, Group: b.req.Group,
		MTU: j.link.MTU, Up: true, NoIPv6LinkLocal: true, Master: j.bridge,
		Tap: &netstate.Tap{Owner: b.req.LauncherUID, MultiQueue: j.queues > 1},
	}
}

// noIPv6 are the sysctls that keep the Pod's own IPv6 off links. TAP and bridge
// port would otherwise send router solicitations and MLD reports of their own.
func (b *builder) noIPv6(links ...netstate.IfName) []netstate.Sysctl {
	if b.req.NoIPv6 {
		return nil
	}
	var sysctls []netstate.Sysctl
	for _, link := range links {
		sysctls = append(sysctls, conf("ipv6", link, "disable_ipv6", 1))
	}
	return sysctls
}

// bridgeNetfilter keeps bridged frames out of the IP hooks, where br_netfilter
// sends them by default: they would be tracked for nothing, and an answer to the
// Pod's ::1 would be translated on the bridge already, after which IPv6 drops a
// loopback address coming from a link.
func (b *builder) bridgeNetfilter() []netstate.Sysctl {
	if !b.req.BridgeNetfilter || len(b.plan.NICs) == 0 {
		return nil
	}
	sysctls := []netstate.Sysctl{{Path: "net/bridge/bridge-nf-call-arptables", Value: "0"}, {Path: "net/bridge/bridge-nf-call-iptables", Value: "0"}}
	if !b.req.NoIPv6 {
		sysctls = append(sysctls, netstate.Sysctl{Path: "net/bridge/bridge-nf-call-ip6tables", Value: "0"})
	}
	return sysctls
}

// conf is a sysctl of one link.
func conf(family string, link netstate.IfName, key string, value int) netstate.Sysctl {
	return netstate.Sysctl{Path: "net/" + family + "/conf/" + string(link) + "/" + key, Value: strconv.Itoa(value)}
}
