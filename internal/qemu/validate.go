package qemu

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/vmnet"
)

// nicModels are the models a NIC may have, with QEMU's name for the device.
var nicModels = map[string]string{
	"virtio": "virtio-net-pci", "e1000": "e1000", "e1000e": "e1000e", "igb": "igb",
	"ne2k_pci": "ne2k_pci", "pcnet": "pcnet", "rtl8139": "rtl8139",
}

// idRE is what may stand in a QEMU id after its first letter
// (util/id.c, id_wellformed).
var idRE = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// socketNameMax is sizeof(sun_path) less the leading NUL of an abstract name
// (include/uapi/linux/un.h: UNIX_PATH_MAX 108).
const socketNameMax = 107

// Validate says all that is wrong with m, for a QEMU of this version; a zero
// version skips what depends on it. Fields are those of a VMI's spec.
func Validate(m Machine, version Version) error {
	var errs []error
	add := func(field, value, problem, remedy string) {
		errs = append(errs, &hint.Error{Field: field, Value: value, Problem: problem, Remedy: remedy})
	}
	if m.Name == "" {
		add("metadata.name", "", "the machine has no name", "name it")
	}
	if m.Accel != TCG && m.Accel != KVM {
		add("accelerator", string(m.Accel), "unknown accelerator", "use tcg or kvm (WEFT_ACCEL)")
	}
	if n := m.CPU.Count(); n < 1 || n > 255 {
		add("domain.cpu", strconv.Itoa(n), "number of vCPUs out of range", "choose sockets, cores and threads whose product is 1 to 255")
	}
	if m.MemoryBytes < 16<<20 {
		add("domain.memory.guest", strconv.FormatInt(m.MemoryBytes, 10), "too little memory", "give the guest at least 16Mi")
	}
	if m.Kernel == "" && (m.Initrd != "" || m.Cmdline != "") {
		add("domain.firmware.kernelBoot", "", "an initrd or kernel arguments without a kernel", "set kernelBoot.container.kernelPath")
	}
	if m.RootPorts < 0 || m.RootPorts > MaxRootPorts {
		add("rootPorts", strconv.Itoa(m.RootPorts), "number of root ports out of range", fmt.Sprintf("use 1 to %d", MaxRootPorts))
	}
	for _, socket := range []string{m.Sockets.QMP, m.Sockets.Agent, m.Sockets.Console} {
		if socket == "" || len(socket) > socketNameMax || strings.ContainsRune(socket, 0) {
			add("sockets", socket, fmt.Sprintf("a socket name must have 1 to %d bytes and no NUL", socketNameMax), "use SocketsFor with a short id")
		}
	}
	errs = append(errs, validateDisks(m), validateNICs(m, version), validateBootOrder(m))
	return errors.Join(errs...)
}

func validateDisks(m Machine) error {
	var errs []error
	names := map[string]bool{}
	count := map[Bus]int{}
	for i, disk := range m.Disks {
		field := fmt.Sprintf("domain.devices.disks[%d]", i)
		add := func(sub, value, problem, remedy string) {
			errs = append(errs, &hint.Error{Field: field + sub, Value: value, Problem: problem, Remedy: remedy})
		}
		if !idRE.MatchString(disk.Name) {
			add(".name", disk.Name, "not a usable disk name", "use letters, digits, dots, dashes and underscores")
		}
		if names[disk.Name] {
			add(".name", disk.Name, "two disks have this name", "name each disk differently")
		}
		names[disk.Name] = true
		if disk.Path == "" {
			add("", disk.Name, "the disk has no file", "give it a volume")
		}
		if disk.Format != Raw && disk.Format != QCOW2 {
			add("", string(disk.Format), "unknown disk format", "use raw or qcow2")
		}
		if disk.CDROM && disk.Bus == BusVirtio {
			add(".cdrom.bus", string(disk.Bus), "a CD-ROM drive cannot be on the virtio bus", "use sata or scsi")
		}
		if disk.Bus != BusVirtio && disk.Bus != BusSATA && disk.Bus != BusSCSI {
			add(".disk.bus", string(disk.Bus), "unknown disk bus", "use virtio, sata or scsi")
		}
		if disk.Bus == BusSATA && disk.ReadOnly && !disk.CDROM {
			add(".disk.readonly", "true", "a SATA disk cannot be read-only", "use bus virtio or scsi, or make it a cdrom")
		}
		count[disk.Bus]++
	}
	for _, limit := range []struct {
		bus Bus
		max int
	}{{BusVirtio, maxVirtioDisk}, {BusSATA, maxSATA}, {BusSCSI, 256}} {
		if count[limit.bus] > limit.max {
			errs = append(errs, &hint.Error{
				Field: "domain.devices.disks", Value: strconv.Itoa(count[limit.bus]),
				Problem: fmt.Sprintf("too many disks on the %s bus", limit.bus),
				Remedy:  fmt.Sprintf("put at most %d there, the others on another bus", limit.max),
			})
		}
	}
	return errors.Join(errs...)
}

func validateNICs(m Machine, version Version) error {
	var errs []error
	networks, slots, addrs := map[string]bool{}, map[int]string{}, map[pciAddr]string{}
	disks := map[string]bool{}
	for _, disk := range m.Disks {
		disks[disk.Name] = true
	}
	for i, nic := range m.NICs {
		field := fmt.Sprintf("domain.devices.interfaces[%d]", i)
		add := func(sub, value, problem, remedy string) {
			errs = append(errs, &hint.Error{Field: field + sub, Value: value, Problem: problem, Remedy: remedy})
		}
		switch {
		case !idRE.MatchString(nic.Network):
			add(".name", nic.Network, "not a usable network name", "use letters, digits, dashes and underscores")
		case networks[nic.Network]:
			add(".name", nic.Network, "two NICs have this name", "name each network differently")
		case disks[nic.Network]:
			add(".name", nic.Network, "a disk and a NIC have this name", "rename one of them")
		}
		networks[nic.Network] = true
		if nic.TAP == "" {
			add("", nic.Network, "the NIC has no TAP", "plan the VM's network first")
		}
		if err := validateNICModel(nic, version); err != nil {
			errs = append(errs, hint.At(field, err))
		}
		if nic.PCIAddress != "" {
			addr, err := validatePCIAddress(nic)
			if err != nil {
				errs = append(errs, hint.At(field, err))
			} else if other, taken := addrs[addr]; taken {
				add(".pciAddress", nic.PCIAddress, "NIC "+other+" has this address", "choose another")
			} else {
				addrs[addr] = nic.Network
			}
			continue
		}
		if nic.Slot < 0 || nic.Slot >= m.RootPorts {
			add("", strconv.Itoa(nic.Slot), "PCI slot out of range", fmt.Sprintf("the machine has %d root ports; restart it to get more", m.RootPorts))
		} else if other, taken := slots[nic.Slot]; taken {
			add("", strconv.Itoa(nic.Slot), "NIC "+other+" has this PCI slot", "give each NIC a slot of its own")
		}
		slots[nic.Slot] = nic.Network
	}
	return errors.Join(errs...)
}

func validateNICModel(nic vmnet.NIC, version Version) error {
	var errs []error
	add := func(field, value, problem, remedy string) {
		errs = append(errs, &hint.Error{Field: field, Value: value, Problem: problem, Remedy: remedy})
	}
	if _, known := nicModels[nic.Model]; !known {
		add("model", nic.Model, "unknown NIC model", "use virtio, e1000, e1000e, igb, ne2k_pci, pcnet or rtl8139")
	}
	if nic.Model == "igb" && version != (Version{}) && version.Major < 8 {
		add("model", nic.Model, "this QEMU, "+version.String()+", has no igb; 8.0 is the first that has", "install QEMU 8.0 or later, or use model e1000e")
	}
	if nic.Model != "virtio" && nic.Queues > 1 {
		add("model", nic.Model, "only virtio NICs have several queues", "use model virtio, or one queue")
	}
	if nic.Queues > 256 {
		add("queues", strconv.Itoa(nic.Queues), "too many queues", "a TAP has at most 256")
	}
	if nic.MTU != 0 && (nic.MTU < 68 || nic.MTU > 65535) {
		add("mtu", strconv.Itoa(nic.MTU), "MTU out of range", "use 68 to 65535")
	}
	if hw := nic.MAC.HardwareAddr(); len(hw) != 6 {
		add("macAddress", string(nic.MAC), "not a MAC address", "write six octets such as 02:00:00:00:00:01")
	} else if hw[0]&1 != 0 {
		add("macAddress", string(nic.MAC), "a multicast address", "make the first octet even")
	}
	return errors.Join(errs...)
}

func validatePCIAddress(nic vmnet.NIC) (pciAddr, error) {
	wrong := func(problem, remedy string) error {
		return &hint.Error{Field: "pciAddress", Value: nic.PCIAddress, Problem: problem, Remedy: remedy}
	}
	const free = "use 0000:00:08.0 to 0000:00:0f.0 or 0000:00:14.0 to 0000:00:1e.0, or leave it out: weft keeps a NIC's place anyway"
	domain, bus, addr, ok := parsePCIAddress(nic.PCIAddress)
	switch {
	case !ok:
		return pciAddr{}, wrong("malformed PCI address", "write DDDD:BB:SS.F, such as 0000:00:08.0")
	case domain != 0 || bus != 0:
		return pciAddr{}, wrong("only bus 0000:00 can be chosen", free)
	case !userSlot(addr.slot):
		return pciAddr{}, wrong("this device number belongs to the machine", free)
	case addr.function != 0:
		return pciAddr{}, wrong("only function 0 can be chosen", free)
	}
	return addr, nil
}

func validateBootOrder(m Machine) error {
	var errs []error
	seen := map[uint]string{}
	check := func(order uint, field, name string) {
		if order == 0 {
			return
		}
		if other, taken := seen[order]; taken {
			errs = append(errs, &hint.Error{
				Field: field + ".bootOrder", Value: strconv.FormatUint(uint64(order), 10),
				Problem: "device " + other + " has this boot order", Remedy: "give each device an order of its own",
			})
			return
		}
		seen[order] = name
	}
	for i, disk := range m.Disks {
		check(disk.BootOrder, fmt.Sprintf("domain.devices.disks[%d]", i), disk.Name)
	}
	for i, nic := range m.NICs {
		check(nic.BootOrder, fmt.Sprintf("domain.devices.interfaces[%d]", i), nic.Network)
	}
	return errors.Join(errs...)
}

// DependsOnVersion says whether Validate needs QEMU's version to judge m.
func DependsOnVersion(m Machine) bool {
	return slices.ContainsFunc(m.NICs, func(nic vmnet.NIC) bool { return nic.Model == "igb" })
}

// NICModels lists the models a NIC may have.
func NICModels() []string {
	models := make([]string, 0, len(nicModels))
	for model := range nicModels {
		models = append(models, model)
	}
	slices.Sort(models)
	return models
}
