// Package kubevirt reads and writes KubeVirt's objects at the edge: it turns
// VirtualMachineInstance and VirtualMachine documents into our own plain
// Instance, checks them as KubeVirt's admission does, and builds the launcher
// Pod and the parts of a status. Nothing else in weft knows kubevirt.io/v1.
//
// It is pure: it stores nothing and asks nobody.
package kubevirt

import (
	"net/netip"
	"strings"

	"github.com/weftnet/weft/internal/vmnet"
)

// Instance is one VirtualMachineInstance as weft runs it.
type Instance struct {
	Namespace, Name, UID string
	Labels, Annotations  map[string]string
	// Owner is the VirtualMachine this instance belongs to; nil: a bare one.
	Owner *Owner

	CPU         CPU
	MemoryBytes int64
	// MachineType as spec.domain.machine.type; empty: weft's choice.
	MachineType string
	Firmware    Firmware
	// Disks in the order of the spec, those added for volumes without one last.
	Disks []Disk
	// Transitional: devices.useVirtioTransitional.
	Transitional bool

	// Hostname the guest is told, a DNS label: spec.hostname or the name's first label.
	Hostname, Subdomain string
	// MultiQueue as networkInterfaceMultiqueue; nil: not said.
	MultiQueue *bool
	// Interfaces in the order of the spec, Networks likewise. Every interface has
	// its network and every network its interface.
	Interfaces []Interface
	Networks   []Network
	DNS        DNSConfig

	// TerminationGraceSeconds is how long the guest may take to shut down.
	TerminationGraceSeconds int64
}

// Owner names the VirtualMachine of an instance.
type Owner struct{ Name, UID string }

// CPU is the guest's processor; all three numbers are at least 1.
type CPU struct {
	Sockets, Cores, Threads int
	Model                   string
}

// VCPUs is the number of virtual processors.
func (c CPU) VCPUs() int { return c.Sockets * c.Cores * c.Threads }

// Firmware says what the guest starts from.
type Firmware struct {
	UUID, Serial string
	// Bootloader is bios, efi or empty (weft's choice).
	Bootloader string
	SecureBoot bool
	// KernelBoot starts a kernel directly; nil: from a disk or the network.
	KernelBoot *KernelBoot
}

// KernelBoot is spec.domain.firmware.kernelBoot.
type KernelBoot struct {
	Image                  string
	PullPolicy             string
	KernelPath, InitrdPath string
	Args                   string
}

// Disk is a disk together with its volume.
type Disk struct {
	Name string
	// Device is disk, cdrom or lun; Bus virtio, sata, scsi or usb.
	Device, Bus string
	ReadOnly    bool
	BootOrder   uint
	Serial      string
	Volume      Volume
}

// Volume is what a disk's bytes come from. Exactly one field is set.
type Volume struct {
	ContainerDisk *ContainerDisk
	HostDisk      *HostDisk
	EmptyDisk     *EmptyDisk
	CloudInit     *CloudInit
}

// ContainerDisk is a disk image inside a container image.
type ContainerDisk struct {
	Image, PullPolicy string
	// Path of the file inside; empty: the one file below /disk.
	Path string
}

// HostDisk is an image file on this machine.
type HostDisk struct {
	Path string
	// Create makes a sparse file of CapacityBytes if there is none.
	Create        bool
	CapacityBytes int64
	Shared        bool
}

// EmptyDisk lives as long as the instance.
type EmptyDisk struct{ CapacityBytes int64 }

// CloudInit is the content of a NoCloud medium, already decoded.
type CloudInit struct{ UserData, NetworkData []byte }

// Interface is one NIC as the spec asks for it.
type Interface struct {
	Name    string
	Model   string
	Binding vmnet.Binding
	// MAC is spec text, unchanged: the networks annotation carries it verbatim.
	MAC        string
	Ports      []Port
	PortRanges []vmnet.PortRange
	BootOrder  uint
	PCIAddress string
	ACPIIndex  int
	State      vmnet.LinkState
	DHCP       vmnet.DHCPOptions
	Tag        string
}

// Port is one port of a masqueraded guest.
type Port struct {
	Name     string
	Protocol string // tcp or udp
	Port     uint16
}

// Network is one network of an instance: exactly one of Pod and Multus is set.
type Network struct {
	Name   string
	Pod    *PodNetwork
	Multus *MultusNetwork
}

// PodNetwork is the Pod's own network. Empty CIDRs: KubeVirt's.
type PodNetwork struct{ CIDR4, CIDR6 string }

// MultusNetwork names a NetworkAttachmentDefinition.
type MultusNetwork struct {
	// NetworkName is NAME or NAMESPACE/NAME as written.
	NetworkName string
	// Default puts it in the place of the Pod network.
	Default bool
}

// Ref takes NetworkName apart; an unqualified one is in the VMI's namespace.
func (m MultusNetwork) Ref(vmiNamespace string) (namespace, name string) {
	if before, after, ok := strings.Cut(m.NetworkName, "/"); ok {
		return before, after
	}
	return vmiNamespace, m.NetworkName
}

// Primary says whether n is the Pod's default network, eth0.
func (n Network) Primary() bool { return n.Pod != nil || n.Multus != nil && n.Multus.Default }

// DNSConfig is what the spec says of name servers.
type DNSConfig struct {
	// Policy is Default, ClusterFirst, ClusterFirstWithHostNet or None.
	Policy      string
	Nameservers []netip.Addr
	Search      []string
}

// primaryLink is the link of the Pod's default network, by everybody's custom.
const primaryLink = "eth0"

// PodLink is the name of the link in the Pod that stands for a network.
func (n Network) PodLink() string {
	if n.Primary() {
		return primaryLink
	}
	return string(vmnet.PodIfName(n.Name))
}

// Network gives the network of that name.
func (inst *Instance) Network(name string) (Network, bool) {
	for _, network := range inst.Networks {
		if network.Name == name {
			return network, true
		}
	}
	return Network{}, false
}

// GuestDNS is the resolver configuration guests are told of, made from the
// node's as a Pod's is: with policy None only what the spec says, otherwise the
// spec's after the node's.
func (inst *Instance) GuestDNS(node vmnet.DNS) vmnet.DNS {
	var dns vmnet.DNS
	if inst.DNS.Policy != "None" {
		dns.Domain = node.Domain
		dns.Nameservers = append(dns.Nameservers, node.Nameservers...)
		dns.Search = append(dns.Search, node.Search...)
	}
	dns.Nameservers = append(dns.Nameservers, inst.DNS.Nameservers...)
	dns.Search = append(dns.Search, inst.DNS.Search...)
	return dns
}

// VMNet is what the network planner needs to know of the instance.
func (inst *Instance) VMNet() vmnet.VM {
	vm := vmnet.VM{Hostname: inst.Hostname, Subdomain: inst.Subdomain, VCPUs: inst.CPU.VCPUs(), MultiQueue: inst.MultiQueue}
	for _, iface := range inst.Interfaces {
		out := vmnet.Interface{
			Network: iface.Name, Binding: iface.Binding, State: iface.State, Model: iface.Model,
			PCIAddress: iface.PCIAddress, ACPIIndex: iface.ACPIIndex, BootOrder: iface.BootOrder, DHCP: iface.DHCP,
			Ports: append([]vmnet.PortRange(nil), iface.PortRanges...),
		}
		for _, p := range iface.Ports {
			out.Ports = append(out.Ports, vmnet.PortRange{Protocol: p.Protocol, First: p.Port, Last: p.Port})
		}
		for i, network := range inst.Networks {
			if network.Name != iface.Name {
				continue
			}
			out.NetworkIndex, out.Primary = i, network.Primary()
			if network.Pod != nil {
				out.CIDR4, out.CIDR6 = network.Pod.CIDR4, network.Pod.CIDR6
			}
		}
		vm.Interfaces = append(vm.Interfaces, out)
	}
	return vm
}
