package kubevirt

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1 "kubevirt.io/api/core/v1"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/vmnet"
)

// defaultGraceSeconds is KubeVirt's default for a VMI without
// terminationGracePeriodSeconds.
const defaultGraceSeconds = 30

// converter turns a spec that passed validation into an Instance.
type converter struct {
	spec     *v1.VirtualMachineInstanceSpec
	path     string
	errs     []error
	warnings []Warning
}

func (c *converter) fail(field, value, problem, remedy string) {
	c.errs = append(c.errs, &hint.Error{Field: c.path + "." + field, Value: value, Problem: problem, Remedy: remedy})
}

func (c *converter) instance(meta *metav1.ObjectMeta) *Instance {
	spec := c.spec
	inst := &Instance{
		Namespace: meta.Namespace, Name: meta.Name, UID: string(meta.UID),
		Labels: meta.Labels, Annotations: meta.Annotations,
		MemoryBytes: memoryBytes(spec), Hostname: hostname(meta.Name, spec), Subdomain: spec.Subdomain,
		MultiQueue: spec.Domain.Devices.NetworkInterfaceMultiQueue, DNS: c.dns(),
		TerminationGraceSeconds: defaultGraceSeconds,
	}
	if inst.Namespace == "" {
		inst.Namespace = metav1.NamespaceDefault
	}
	if owner := metav1.GetControllerOfNoCopy(meta); owner != nil && owner.Kind == MachineKind.Kind {
		inst.Owner = &Owner{Name: owner.Name, UID: string(owner.UID)}
	}
	if seconds := spec.TerminationGracePeriodSeconds; seconds != nil {
		inst.TerminationGraceSeconds = max(*seconds, 0)
	}
	if spec.Domain.Machine != nil {
		inst.MachineType = spec.Domain.Machine.Type
	}
	if on := spec.Domain.Devices.UseVirtioTransitional; on != nil {
		inst.Transitional = *on
	}
	inst.CPU = cpuOf(spec)
	inst.Firmware = c.firmware()
	c.disks(inst)
	c.networks(inst)
	return inst
}

// cpuOf gives the topology: each number at least 1. Without domain.cpu the
// requested (or limited) CPUs become sockets, as in KubeVirt.
func cpuOf(spec *v1.VirtualMachineInstanceSpec) CPU {
	cpu := CPU{Sockets: 1, Cores: 1, Threads: 1}
	given := spec.Domain.CPU
	if given != nil {
		cpu.Model = given.Model
	}
	if given == nil || given.Sockets == 0 && given.Cores == 0 && given.Threads == 0 {
		for _, list := range []corev1.ResourceList{spec.Domain.Resources.Limits, spec.Domain.Resources.Requests} {
			if q, ok := list[corev1.ResourceCPU]; ok && q.Value() > 0 {
				cpu.Sockets = int(min(q.Value(), maxVCPUs))
				break
			}
		}
		return cpu
	}
	cpu.Sockets = max(1, int(given.Sockets))
	cpu.Cores = max(1, int(given.Cores))
	cpu.Threads = max(1, int(given.Threads))
	return cpu
}

// memoryBytes is what the guest sees: memory.guest, else the request, else the limit.
func memoryBytes(spec *v1.VirtualMachineInstanceSpec) int64 {
	if m := spec.Domain.Memory; m != nil && m.Guest != nil {
		return m.Guest.Value()
	}
	for _, list := range []corev1.ResourceList{spec.Domain.Resources.Requests, spec.Domain.Resources.Limits} {
		if q, ok := list[corev1.ResourceMemory]; ok {
			return q.Value()
		}
	}
	return 0
}

func (c *converter) firmware() Firmware {
	given := c.spec.Domain.Firmware
	if given == nil {
		return Firmware{}
	}
	f := Firmware{UUID: string(given.UUID), Serial: given.Serial}
	if b := given.Bootloader; b != nil {
		switch {
		case b.EFI != nil:
			f.Bootloader = "efi"
			// KubeVirt's default for EFI is secure boot.
			f.SecureBoot = b.EFI.SecureBoot == nil || *b.EFI.SecureBoot
		case b.BIOS != nil:
			f.Bootloader = "bios"
		}
	}
	if k := given.KernelBoot; k != nil && k.Container != nil {
		f.KernelBoot = &KernelBoot{
			Image: k.Container.Image, PullPolicy: string(k.Container.ImagePullPolicy),
			KernelPath: k.Container.KernelPath, InitrdPath: k.Container.InitrdPath, Args: k.KernelArgs,
		}
	}
	return f
}

func (c *converter) dns() DNSConfig {
	dns := DNSConfig{Policy: string(c.spec.DNSPolicy)}
	if c.spec.DNSConfig == nil {
		return dns
	}
	for i, text := range c.spec.DNSConfig.Nameservers {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			c.fail(fmt.Sprintf("dnsConfig.nameservers[%d]", i), text, "is not an IP address", "write an address such as 192.0.2.53")
			continue
		}
		dns.Nameservers = append(dns.Nameservers, addr)
	}
	dns.Search = c.spec.DNSConfig.Searches
	return dns
}

func (c *converter) disks(inst *Instance) {
	volumes := map[string]int{}
	for i, volume := range c.spec.Volumes {
		volumes[volume.Name] = i
	}
	for i, disk := range c.spec.Domain.Devices.Disks {
		index, ok := volumes[disk.Name]
		if !ok {
			continue // validate refused it
		}
		out := Disk{Name: disk.Name, Serial: disk.Serial, Volume: c.volume(index)}
		if disk.BootOrder != nil {
			out.BootOrder = *disk.BootOrder
		}
		switch {
		case disk.CDRom != nil:
			out.Device, out.Bus = "cdrom", string(disk.CDRom.Bus)
			out.ReadOnly = disk.CDRom.ReadOnly == nil || *disk.CDRom.ReadOnly
		case disk.LUN != nil:
			c.fail(fmt.Sprintf("domain.devices.disks[%d].lun", i), "", "LUN pass-through is not supported on one machine", "use disk")
		case disk.Disk != nil:
			out.Device, out.Bus, out.ReadOnly = "disk", string(disk.Disk.Bus), disk.Disk.ReadOnly
		}
		inst.Disks = append(inst.Disks, out)
	}
}

func (c *converter) volume(i int) Volume {
	source := &c.spec.Volumes[i].VolumeSource
	field := fmt.Sprintf("volumes[%d]", i)
	switch {
	case source.ContainerDisk != nil:
		d := source.ContainerDisk
		return Volume{ContainerDisk: &ContainerDisk{Image: d.Image, PullPolicy: string(d.ImagePullPolicy), Path: d.Path}}
	case source.HostDisk != nil:
		d := source.HostDisk
		return Volume{HostDisk: &HostDisk{
			Path: d.Path, Create: d.Type == v1.HostDiskExistsOrCreate,
			CapacityBytes: d.Capacity.Value(), Shared: d.Shared != nil && *d.Shared,
		}}
	case source.EmptyDisk != nil:
		return Volume{EmptyDisk: &EmptyDisk{CapacityBytes: source.EmptyDisk.Capacity.Value()}}
	case source.CloudInitNoCloud != nil:
		return Volume{CloudInit: c.cloudInit(field+".cloudInitNoCloud", source.CloudInitNoCloud)}
	}
	return Volume{} // validate refused it
}

func (c *converter) cloudInit(field string, source *v1.CloudInitNoCloudSource) *CloudInit {
	return &CloudInit{
		UserData:    c.cloudData(field, "userData", source.UserData, source.UserDataBase64),
		NetworkData: c.cloudData(field, "networkData", source.NetworkData, source.NetworkDataBase64),
	}
}

func (c *converter) cloudData(field, name, plain, encoded string) []byte {
	if plain != "" || encoded == "" {
		return []byte(plain)
	}
	data, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		c.fail(field+"."+name+"Base64", "", fmt.Sprintf("is not base64: %v", err), "encode it with `base64 -w0`, or use "+name)
	}
	return data
}

func (c *converter) networks(inst *Instance) {
	for _, network := range c.spec.Networks {
		out := Network{Name: network.Name}
		if p := network.Pod; p != nil {
			out.Pod = &PodNetwork{CIDR4: p.VMNetworkCIDR, CIDR6: p.VMIPv6NetworkCIDR}
		}
		if m := network.Multus; m != nil {
			out.Multus = &MultusNetwork{NetworkName: m.NetworkName, Default: m.Default}
		}
		inst.Networks = append(inst.Networks, out)
	}
	for i := range c.spec.Domain.Devices.Interfaces {
		inst.Interfaces = append(inst.Interfaces, c.iface(&c.spec.Domain.Devices.Interfaces[i]))
	}
}

func (c *converter) iface(given *v1.Interface) Interface {
	out := Interface{
		Name: given.Name, Model: given.Model, MAC: given.MacAddress, PCIAddress: given.PciAddress,
		ACPIIndex: given.ACPIIndex, State: vmnet.LinkState(given.State), Tag: given.Tag,
	}
	if out.State == "" {
		out.State = vmnet.Up
	}
	if out.Model == "" {
		out.Model = vmnet.Virtio
	}
	if given.BootOrder != nil {
		out.BootOrder = *given.BootOrder
	}
	out.Binding = vmnet.Bridge
	if given.Masquerade != nil {
		out.Binding = vmnet.Masquerade
	}
	for _, p := range given.Ports {
		out.Ports = append(out.Ports, Port{Name: p.Name, Protocol: protocol(p.Protocol), Port: uint16(p.Port)})
	}
	for _, r := range given.PortRanges {
		out.PortRanges = append(out.PortRanges, vmnet.PortRange{Protocol: protocol(r.Protocol), First: uint16(r.Start), Last: uint16(r.End)})
	}
	if d := given.DHCPOptions; d != nil {
		out.DHCP = vmnet.DHCPOptions{BootFile: d.BootFileName, TFTP: d.TFTPServerName}
		for _, text := range d.NTPServers {
			if addr, err := netip.ParseAddr(text); err == nil { // validate refused others
				out.DHCP.NTP = append(out.DHCP.NTP, addr.Unmap())
			}
		}
		for _, o := range d.PrivateOptions {
			out.DHCP.Private = append(out.DHCP.Private, vmnet.PrivateOption{Code: uint8(o.Option), Value: o.Value})
		}
	}
	return out
}

func protocol(text string) string {
	if text == "" {
		return "tcp"
	}
	return strings.ToLower(text)
}

// bytesOf is q in bytes, refusing what no file or memory can be.
func bytesOf(q resource.Quantity) (int64, error) {
	if q.Sign() < 0 {
		return 0, errors.New("is negative")
	}
	return q.Value(), nil
}
