package kubevirt

import (
	"fmt"
	"net"
	"regexp"
	"slices"

	v1 "kubevirt.io/api/core/v1"

	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/vmnet"
)

var (
	nameChars = regexp.MustCompile(`^[A-Za-z0-9-_]+$`)
	// pciAddress is DDDD:BB:SS.F.
	pciAddress = regexp.MustCompile(`^[\da-fA-F]{4}:[\da-fA-F]{2}:[\da-fA-F]{2}\.[0-7]$`)
)

// models a NIC may have.
func models() []string {
	return []string{"e1000", "e1000e", "igb", "ne2k_pci", "pcnet", "rtl8139", "virtio"}
}

func networkField(i int) string { return fmt.Sprintf("networks[%d]", i) }
func ifaceField(i int) string   { return fmt.Sprintf("domain.devices.interfaces[%d]", i) }

func (v *validator) networks() {
	ifaces := map[string]bool{}
	for _, iface := range v.spec.Domain.Devices.Interfaces {
		ifaces[iface.Name] = true
	}
	seen := map[string]bool{}
	pods, defaults := 0, 0
	for i, network := range v.spec.Networks {
		field := networkField(i)
		if seen[network.Name] {
			v.add(field+".name", network.Name, fmt.Sprintf("Network with name %q already exists, every network must have a unique name", network.Name), "rename one of the two")
		}
		seen[network.Name] = true
		if !ifaces[network.Name] {
			v.add(field+".name", network.Name, v.sub("networks[%d].name '%s' not found.", i, network.Name), "add an interface of this name to domain.devices.interfaces")
		}
		v.networkSource(i, &network)
		if network.Pod != nil {
			pods++
		}
		if network.Multus != nil && network.Multus.Default {
			defaults++
		}
	}
	switch {
	case pods > 1:
		v.add("domain.devices.interfaces", "", "more than one interface is connected to a pod network in "+v.sub("domain.devices.interfaces"), "keep one network with pod: {}; use multus for the others")
	case defaults > 1:
		v.add("networks", "", "Multus CNI should only have one default network", "keep default: true on one network")
	case pods > 0 && defaults > 0:
		v.add("networks", "", "Pod network cannot be defined when Multus default network is defined", "take out the pod network, or default: true")
	}
}

func (v *validator) networkSource(i int, network *v1.Network) {
	field := networkField(i)
	sources := 0
	for _, set := range []bool{network.Pod != nil, network.Multus != nil, network.ResourceClaim != nil} {
		if set {
			sources++
		}
	}
	switch {
	case sources == 0:
		v.add(field, network.Name, "should have a network type", "add pod: {} or multus: {networkName: NAME}")
		return
	case sources > 1:
		v.add(field, network.Name, "should have only one network type", "keep one of pod and multus")
		return
	}
	switch {
	case network.ResourceClaim != nil:
		v.add(field+".resourceClaim", network.Name, "vmi.spec.networks contains DRA networks but NetworkDevicesWithDRA feature gate is not enabled", "use multus")
	case network.Multus != nil && network.Multus.NetworkName == "":
		v.add(field, network.Name, "CNI delegating plugin must have a networkName", "name the NetworkAttachmentDefinition: NAME or NAMESPACE/NAME")
	case network.Pod != nil:
		for _, cidr := range []struct {
			key, text string
			six       bool
		}{{"vmNetworkCIDR", network.Pod.VMNetworkCIDR, false}, {"vmIPv6NetworkCIDR", network.Pod.VMIPv6NetworkCIDR, true}} {
			if problem, remedy := vmnet.CheckCIDR(cidr.text, cidr.six); problem != "" {
				v.add(field+".pod."+cidr.key, cidr.text, problem, remedy)
			}
		}
	}
}

func (v *validator) interfaces() {
	networks := map[string]*v1.Network{}
	for i := range v.spec.Networks {
		networks[v.spec.Networks[i].Name] = &v.spec.Networks[i]
	}
	seen := map[string]bool{}
	portNames := map[string]bool{}
	for i := range v.spec.Domain.Devices.Interfaces {
		iface := &v.spec.Domain.Devices.Interfaces[i]
		field := ifaceField(i)
		if seen[iface.Name] {
			v.add(field+".name", iface.Name, "Only one interface can be connected to one specific network", "give each interface a network of its own")
		}
		seen[iface.Name] = true
		if !nameChars.MatchString(iface.Name) {
			v.add(field+".name", iface.Name, "Network interface name can only contain alphabetical characters, numbers, dashes (-) or underscores (_)", "rename interface and network")
		}
		network := networks[iface.Name]
		if network == nil {
			v.add(field+".name", iface.Name, v.sub("domain.devices.interfaces[%d].name '%s' not found.", i, iface.Name), "add a network of this name to networks")
		}
		v.binding(field, iface, network)
		v.state(field, iface, network)
		v.ifaceModel(i, iface)
		v.dhcp(field, iface)
		v.portRanges(field, iface)
		if network != nil && network.Pod != nil {
			v.ports(field, iface, portNames)
		}
	}
}

func (v *validator) binding(field string, iface *v1.Interface, network *v1.Network) {
	given := 0
	for _, set := range []bool{
		iface.Bridge != nil, iface.DeprecatedSlirp != nil, iface.Masquerade != nil, iface.SRIOV != nil,
		iface.DeprecatedMacvtap != nil, iface.DeprecatedPasst != nil, iface.PasstBinding != nil, iface.Binding != nil,
	} {
		if set {
			given++
		}
	}
	const remedy = "use masquerade: {} on the pod network, bridge: {} on any"
	if given != 1 {
		v.add(field, iface.Name, fmt.Sprintf("logical %s interface must have exactly one binding method or binding plugin", iface.Name), remedy)
		return
	}
	switch {
	case iface.DeprecatedSlirp != nil:
		v.add(field+".slirp", iface.Name, "Slirp interface support has been discontinued since v1.3", remedy)
	case iface.DeprecatedPasst != nil:
		v.add(field+".passt", iface.Name, "Passt network binding has been discontinued since v1.3", remedy)
	case iface.DeprecatedMacvtap != nil:
		v.add(field+".macvtap", iface.Name, "Macvtap network binding has been discontinued since v1.3", remedy)
	case iface.PasstBinding != nil:
		v.add(field+".name", iface.Name, "PasstBinding feature gate is not enabled", remedy)
	case iface.Binding != nil:
		v.add(field+".binding", iface.Binding.Name, fmt.Sprintf("unable to find the network binding plugin '%s' in Kubevirt configuration", iface.Binding.Name), remedy)
	case iface.SRIOV != nil:
		v.add(field+".sriov", iface.Name, "SR-IOV NICs are not supported on one machine yet", remedy)
	case iface.Masquerade != nil && (network == nil || network.Pod == nil):
		v.add(field+".name", iface.Name, "Masquerade interface only implemented with pod network", "use bridge: {} on this network")
	}
}

func (v *validator) state(field string, iface *v1.Interface, network *v1.Network) {
	primary := network != nil && (network.Pod != nil || network.Multus != nil && network.Multus.Default)
	switch iface.State {
	case "", v1.InterfaceStateLinkUp, v1.InterfaceStateLinkDown:
		if iface.State != "" && iface.SRIOV != nil {
			v.add(field+".state", string(iface.State), fmt.Sprintf("%q interface's state %q is not supported for SR-IOV NICs", iface.Name, iface.State), "take state out")
		}
	case v1.InterfaceStateAbsent:
		if iface.Bridge == nil && iface.SRIOV == nil {
			v.add(field+".state", string(iface.State), fmt.Sprintf("%q interface's state %q is supported only for bridge binding", iface.Name, iface.State), "remove the interface from the spec and restart the VM")
		}
		if primary {
			v.add(field+".state", string(iface.State), fmt.Sprintf("%q interface's state %q is not supported on default networks", iface.Name, iface.State), "use down, or remove the interface and restart the VM")
		}
	default:
		v.add(field+".state", string(iface.State), fmt.Sprintf("logical %s interface state value is unsupported: %s", iface.Name, iface.State), "use up, down or absent")
	}
}

func (v *validator) ifaceModel(i int, iface *v1.Interface) {
	field := ifaceField(i)
	name := v.sub("%s.name", field)
	if iface.Model != "" && !slices.Contains(models(), iface.Model) {
		v.add(field+".model", iface.Model, fmt.Sprintf("interface %s uses model %s that is not supported.", name, iface.Model), fmt.Sprintf("use one of %v", models()))
	}
	if text := iface.MacAddress; text != "" {
		hw, err := net.ParseMAC(text)
		switch {
		case err != nil:
			v.add(field+".macAddress", text, fmt.Sprintf("interface %s has malformed MAC address (%s).", name, text), "write six bytes such as 02:11:22:33:44:55")
		case len(hw) > 6:
			v.add(field+".macAddress", text, fmt.Sprintf("interface %s has too long MAC address (%s).", name, text), "write six bytes such as 02:11:22:33:44:55")
		case hw.String() == string(vmnet.ReservedMAC):
			v.add(field+".macAddress", text, "The requested MAC address is reserved for the in-pod bridge. Please choose another one.", "choose another address")
		case hw[0]&1 != 0:
			v.add(field+".macAddress", text, "is a multicast address, which no NIC can have", "make the first byte even")
		case hw.String() == "00:00:00:00:00:00":
			v.add(field+".macAddress", text, "is the zero address, which no NIC can have", "choose another address, or leave it out")
		}
	}
	if text := iface.PciAddress; text != "" && !pciAddress.MatchString(text) {
		v.add(field+".pciAddress", text, fmt.Sprintf("interface %s has malformed PCI address (%s).", name, text), "write DDDD:BB:SS.F such as 0000:00:0a.0")
	}
}

// macs: no two NICs of a VM may have one MAC.
func (v *validator) macs() {
	owner := map[netstate.MAC]string{}
	for i, iface := range v.spec.Domain.Devices.Interfaces {
		mac, err := netstate.ParseMAC(iface.MacAddress)
		if err != nil {
			continue // none, or refused already
		}
		if other, ok := owner[mac]; ok {
			v.add(ifaceField(i)+".macAddress", iface.MacAddress, fmt.Sprintf("duplicate MAC address %s found on interfaces: %s and %s", mac, other, iface.Name), "change or leave out one of the two")
			continue
		}
		owner[mac] = iface.Name
	}
}

// maxACPIIndex is 16*1024-1, the range of the PCI firmware specification's
// device index as QEMU takes it.
const maxACPIIndex = 16*1024 - 1

func (v *validator) acpiIndexes() {
	owner := map[int]string{}
	for i, iface := range v.spec.Domain.Devices.Interfaces {
		index := iface.ACPIIndex
		if index == 0 {
			continue
		}
		field := ifaceField(i) + ".acpiIndex"
		if index < 0 || index > maxACPIIndex {
			v.add(field, fmt.Sprint(index), fmt.Sprintf("is not between 1 and %d", maxACPIIndex), "choose a number in that range")
			continue
		}
		if other, ok := owner[index]; ok {
			v.add(field, fmt.Sprint(index), "is taken by interface "+other, "choose another number")
			continue
		}
		owner[index] = iface.Name
	}
}
