package qemu

import (
	"fmt"

	"libvirt.org/go/libvirtxml"

	"github.com/weftnet/weft/internal/vmnet"
)

// DomainXML is the machine as a libvirt domain, for people who want to read it
// in the form they know or hand the VM to libvirt. Nothing in weft reads it.
// m must have been through Default and Validate; emulator is QEMU's path, empty
// leaves the choice to libvirt.
//
// It agrees with Args in all the guest sees. The ways in differ, because
// libvirt cannot say "abstract socket": the console is a pty, and the agent's
// channel is where libvirt puts it.
func DomainXML(m Machine, emulator string) (string, error) {
	boot := bootIndexes(m)
	domain := libvirtxml.Domain{
		Type: "qemu", Name: m.Name, UUID: m.UUID,
		Memory: &libvirtxml.DomainMemory{Value: uint(m.memoryMiB()), Unit: "MiB"},
		VCPU:   &libvirtxml.DomainVCPU{Placement: "static", Value: uint(m.CPU.Count())},
		OS: &libvirtxml.DomainOS{
			Type:   &libvirtxml.DomainOSType{Arch: "x86_64", Machine: m.MachineType, Type: "hvm"},
			Kernel: m.Kernel, Initrd: m.Initrd, Cmdline: m.Cmdline,
		},
		Features:   &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}, APIC: &libvirtxml.DomainFeatureAPIC{}},
		CPU:        domainCPU(m),
		Clock:      &libvirtxml.DomainClock{Offset: "utc"},
		OnPoweroff: "destroy", OnReboot: "restart", OnCrash: "destroy",
		Devices: &libvirtxml.DomainDeviceList{
			Emulator:    emulator,
			Controllers: domainControllers(m),
			Disks:       domainDisks(m, boot),
			Serials:     []libvirtxml.DomainSerial{domainSerial(m)},
			Channels: []libvirtxml.DomainChannel{{
				Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "bind"}},
				Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: AgentPort}},
			}},
			RNGs: []libvirtxml.DomainRNG{{
				Model:   domainVirtio(m),
				Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
				Address: domainAddress(0, pciAddr{slotMisc, funcRNG}, false),
			}},
			MemBalloon: &libvirtxml.DomainMemBalloon{Model: "none"},
		},
	}
	if m.Accel == KVM {
		domain.Type = "kvm"
	}
	for _, nic := range m.NICs {
		domain.Devices.Interfaces = append(domain.Devices.Interfaces, domainInterface(m, nic, boot))
	}
	if m.Panic {
		domain.Devices.Panics = []libvirtxml.DomainPanic{{Model: "isa"}}
	}
	text, err := domain.Marshal()
	if err != nil {
		return "", fmt.Errorf("write domain XML of %s: %w", m.Name, err)
	}
	return text + "\n", nil
}

func domainCPU(m Machine) *libvirtxml.DomainCPU {
	cpu := &libvirtxml.DomainCPU{Topology: &libvirtxml.DomainCPUTopology{
		Sockets: m.CPU.Sockets, Dies: 1, Cores: m.CPU.Cores, Threads: m.CPU.Threads,
	}}
	switch model := cpuModel(m); model {
	case "host":
		cpu.Mode, cpu.Check = "host-passthrough", "none"
	case "max":
		cpu.Mode, cpu.Check = "maximum", "none"
	default:
		cpu.Mode, cpu.Match, cpu.Check = "custom", "exact", "none"
		cpu.Model = &libvirtxml.DomainCPUModel{Fallback: "forbid", Value: m.CPU.Model}
	}
	return cpu
}

// domainVirtio is libvirt's word for the form of our virtio devices.
func domainVirtio(m Machine) string {
	if m.Transitional {
		return "virtio-transitional"
	}
	return "virtio-non-transitional"
}

// domainAddress has the bus as libvirt numbers it: the index of the controller
// that makes it, which here is also the number the guest gives it.
func domainAddress(bus int, addr pciAddr, multifunction bool) *libvirtxml.DomainAddress {
	pci := &libvirtxml.DomainAddressPCI{Domain: number(0), Bus: number(bus), Slot: number(addr.slot), Function: number(addr.function)}
	if multifunction {
		pci.MultiFunction = "on"
	}
	return &libvirtxml.DomainAddress{PCI: pci}
}

func number(n int) *uint {
	u := uint(n)
	return &u
}

// domainControllers are the root bus, a root port per slot, and what disks and
// channels hang on. USB is named only to say that there is none.
func domainControllers(m Machine) []libvirtxml.DomainController {
	controllers := []libvirtxml.DomainController{
		{Type: "usb", Index: number(0), Model: "none"},
		{Type: "pci", Index: number(0), Model: "pcie-root"},
	}
	for port := range m.RootPorts {
		addr := rootPortAddr(port)
		controllers = append(controllers, libvirtxml.DomainController{
			Type: "pci", Index: number(port + 1), Model: "pcie-root-port",
			PCI: &libvirtxml.DomainControllerPCI{
				Model:  &libvirtxml.DomainControllerPCIModel{Name: "pcie-root-port"},
				Target: &libvirtxml.DomainControllerPCITarget{Chassis: number(port + 1), Port: number(addr.slot<<3 | addr.function)},
			},
			Address: domainAddress(0, addr, addr.function == 0),
		})
	}
	controllers = append(controllers, libvirtxml.DomainController{
		Type: "virtio-serial", Index: number(0), Model: domainVirtio(m),
		Address: domainAddress(0, pciAddr{slotMisc, funcSerial}, true),
	})
	if hasBus(m, BusSCSI) {
		controllers = append(controllers, libvirtxml.DomainController{
			Type: "scsi", Index: number(0), Model: domainVirtio(m),
			Address: domainAddress(0, pciAddr{slotMisc, funcSCSI}, false),
		})
	}
	return controllers
}

func domainDisks(m Machine, boot map[string]int) []libvirtxml.DomainDisk {
	var disks []libvirtxml.DomainDisk
	count := map[Bus]int{}
	letters := 0 // sata and scsi disks share the names sda, sdb, ...
	for _, disk := range m.Disks {
		d := libvirtxml.DomainDisk{
			Device: "disk",
			Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: string(disk.Format), Discard: "unmap"},
			Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: disk.Path}},
			Serial: disk.Serial,
			Boot:   domainBoot(boot[DeviceID(disk.Name)]),
			Alias:  &libvirtxml.DomainAlias{Name: DeviceID(disk.Name)},
			Target: &libvirtxml.DomainDiskTarget{Bus: string(disk.Bus)},
		}
		if disk.CDROM {
			d.Device = "cdrom"
		}
		if disk.ReadOnly {
			d.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
		}
		index := count[disk.Bus]
		count[disk.Bus]++
		drive := &libvirtxml.DomainAddressDrive{Controller: number(0), Bus: number(0), Target: number(0), Unit: number(index)}
		switch disk.Bus {
		case BusVirtio:
			addr := virtioDiskAddr(index)
			d.Model, d.Target.Dev = domainVirtio(m), "vd"+driveLetters(index)
			d.Address = domainAddress(0, addr, addr.function == 0)
		case BusSATA, BusSCSI:
			d.Target.Dev = "sd" + driveLetters(letters)
			d.Address = &libvirtxml.DomainAddress{Drive: drive}
			letters++
		}
		disks = append(disks, d)
	}
	return disks
}

// driveLetters counts a, b, ..., z, aa, ab, ... as kernels name disks.
func driveLetters(index int) string {
	text := ""
	for n := index; n >= 0; n = n/26 - 1 {
		text = string(rune('a'+n%26)) + text
	}
	return text
}

func domainBoot(index int) *libvirtxml.DomainDeviceBoot {
	if index <= 0 {
		return nil
	}
	return &libvirtxml.DomainDeviceBoot{Order: uint(index)}
}

func domainSerial(m Machine) libvirtxml.DomainSerial {
	serial := libvirtxml.DomainSerial{
		Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}},
		Target: &libvirtxml.DomainSerialTarget{Type: "isa-serial", Port: number(0)},
	}
	if m.SerialLog != "" {
		serial.Log = &libvirtxml.DomainChardevLog{File: m.SerialLog, Append: "on"}
	}
	return serial
}

func domainInterface(m Machine, nic vmnet.NIC, boot map[string]int) libvirtxml.DomainInterface {
	place := placeNIC(nic)
	iface := libvirtxml.DomainInterface{
		MAC:     &libvirtxml.DomainInterfaceMAC{Address: string(nic.MAC)},
		Source:  &libvirtxml.DomainInterfaceSource{Ethernet: &libvirtxml.DomainInterfaceSourceEthernet{}},
		Target:  &libvirtxml.DomainInterfaceTarget{Dev: string(nic.TAP), Managed: "no"},
		Model:   &libvirtxml.DomainInterfaceModel{Type: nic.Model},
		Alias:   &libvirtxml.DomainAlias{Name: DeviceID(nic.Network)},
		Boot:    domainBoot(boot[DeviceID(nic.Network)]),
		Address: domainAddress(place.number, place.addr, false),
	}
	if nic.Model == "virtio" {
		iface.Model.Type = domainVirtio(m)
		// Not vhost: see argv.nic.
		iface.Driver = &libvirtxml.DomainInterfaceDriver{Name: "qemu"}
		if nic.Queues > 1 {
			iface.Driver.Queues = uint(nic.Queues)
		}
	}
	if nic.MTU > 0 {
		iface.MTU = &libvirtxml.DomainInterfaceMTU{Size: uint(nic.MTU)}
	}
	if iface.Boot == nil {
		iface.ROM = &libvirtxml.DomainROM{Enabled: "no"}
	}
	if !nic.LinkUp {
		iface.Link = &libvirtxml.DomainInterfaceLink{State: "down"}
	}
	if nic.ACPIIndex > 0 {
		iface.ACPI = &libvirtxml.DomainDeviceACPI{Index: uint(nic.ACPIIndex)}
	}
	return iface
}
