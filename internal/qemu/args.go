package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/weftnet/weft/internal/vmnet"
)

// ids of our own devices, by which events and commands name them.
const (
	idAgent   = "agent"
	idConsole = "console"
	idQMP     = "qmp"
	idSCSI    = "scsi0"
)

// AgentPort is the name under which a guest finds its agent's channel.
const AgentPort = "org.qemu.guest_agent.0"

// Args is QEMU's command line for m, without the program's name. m must have
// been through Default and Validate.
//
// The machine starts stopped (-S): whoever starts it first takes down the
// links that shall be down (DownLinks) and then lets it run.
func Args(m Machine) []string {
	a := &argv{}
	a.machine(m)
	a.channels(m)
	a.rootPorts(m.RootPorts)
	boot := bootIndexes(m)
	a.disks(m, boot)
	for _, nic := range m.NICs {
		a.nic(m, nic, boot)
	}
	return a.args
}

// DownLinks are the ids of the NICs whose cable shall be out when the guest
// starts; each is an argument of Client.SetLink.
func DownLinks(m Machine) []string {
	var ids []string
	for _, nic := range m.NICs {
		if !nic.LinkUp {
			ids = append(ids, DeviceID(nic.Network))
		}
	}
	return ids
}

type argv struct{ args []string }

func (a *argv) add(flag string, value ...string) { a.args = append(append(a.args, flag), value...) }

// device adds -device driver,id=...,bus=...,addr=...
func (a *argv) device(driver string, options ...string) {
	a.add("-device", join(append([]string{driver}, options...)...))
}

func (a *argv) machine(m Machine) {
	a.add("-name", join("guest="+escape(m.Name), "debug-threads=on"))
	a.add("-uuid", m.UUID)
	// Without graphics SeaBIOS and iPXE speak on the serial console.
	a.add("-machine", join(m.MachineType, "graphics=off", "dump-guest-core=off"))
	if m.Accel == KVM {
		a.add("-accel", "kvm")
	} else {
		// One host thread per vCPU; with one vCPU it costs nothing.
		a.add("-accel", "tcg,thread=multi")
	}
	a.add("-cpu", cpuModel(m))
	a.add("-smp", fmt.Sprintf("cpus=%d,sockets=%d,cores=%d,threads=%d", m.CPU.Count(), m.CPU.Sockets, m.CPU.Cores, m.CPU.Threads))
	a.add("-m", strconv.FormatInt(m.memoryMiB(), 10)+"M")
	a.add("-nodefaults")
	a.add("-no-user-config")
	a.add("-display", "none")
	a.add("-rtc", "base=utc")
	// Not allowed: obsolete calls, changing uid, starting programs.
	a.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	a.add("-S")
	if m.Kernel != "" {
		a.add("-kernel", m.Kernel)
		if m.Initrd != "" {
			// -initrd takes a comma as a separator for multiboot modules only; a
			// Linux kernel's initrd is one path, taken as it is.
			a.add("-initrd", m.Initrd)
		}
		if m.Cmdline != "" {
			a.add("-append", m.Cmdline)
		}
	}
}

// cpuModel: what a VMI calls host-model and host-passthrough is the host's own
// CPU under KVM. TCG's counterpart is max; it boots as fast as qemu64, which
// lacks what today's distributions need (x86-64-v2).
func cpuModel(m Machine) string {
	switch m.CPU.Model {
	case "", "host-model", "host-passthrough", "host":
		if m.Accel == KVM {
			return "host"
		}
		return "max"
	}
	return escape(m.CPU.Model)
}

func (a *argv) channels(m Machine) {
	a.add("-chardev", socketChardev(idQMP, m.Sockets.QMP))
	a.add("-mon", "chardev="+idQMP+",mode=control")

	console := socketChardev(idConsole, m.Sockets.Console)
	if m.SerialLog != "" {
		// Appending lets the launcher cut the file while QEMU has it open.
		console = join(console, "logfile="+escape(m.SerialLog), "logappend=on")
	}
	a.add("-chardev", console)
	a.device("isa-serial", "id=serial0", "chardev="+idConsole)

	misc := func(function int) []string {
		options := []string{"bus=pcie.0", "addr=" + pciAddr{slotMisc, function}.String()}
		if function == 0 {
			options = append(options, "multifunction=on")
		}
		return options
	}
	a.add("-chardev", socketChardev(idAgent, m.Sockets.Agent))
	a.device(virtio(m, "virtio-serial-pci"), append([]string{"id=virtio-serial0"}, misc(funcSerial)...)...)
	a.device("virtserialport", "id=channel0", "bus=virtio-serial0.0", "nr=1", "chardev="+idAgent, "name="+AgentPort)

	a.add("-object", "rng-random,id=rng0,filename=/dev/urandom")
	a.device(virtio(m, "virtio-rng-pci"), append([]string{"id=virtio-rng0", "rng=rng0"}, misc(funcRNG)...)...)
	if hasBus(m, BusSCSI) {
		a.device(virtio(m, "virtio-scsi-pci"), append([]string{"id=" + idSCSI}, misc(funcSCSI)...)...)
	}
	if m.Panic {
		a.device("pvpanic", "id=pvpanic0") // on the ISA bus, where every guest looks
	}
}

func (a *argv) rootPorts(count int) {
	for port := range count {
		addr := rootPortAddr(port)
		options := []string{
			"id=" + rootPortID(port), "bus=pcie.0", "addr=" + addr.String(),
			"chassis=" + strconv.Itoa(port+1), "port=" + strconv.Itoa(addr.slot<<3|addr.function),
		}
		if addr.function == 0 {
			options = append(options, "multifunction=on")
		}
		a.device("pcie-root-port", options...)
	}
}

func (a *argv) disks(m Machine, boot map[string]int) {
	count := map[Bus]int{}
	for i, disk := range m.Disks {
		node := "disk" + strconv.Itoa(i)
		readOnly := "read-only=" + onOff(disk.ReadOnly)
		// qemu-img made the file; the host's page cache serves all VMs that share
		// a base image, and discard keeps overlays small.
		a.add("-blockdev", join("driver=file", "node-name="+node+"-file", "filename="+escape(disk.Path), readOnly, "discard=unmap"))
		a.add("-blockdev", join("driver="+string(disk.Format), "node-name="+node, "file="+node+"-file", readOnly, "discard=unmap"))
		driver, options := diskDevice(m, disk, count[disk.Bus])
		options = append([]string{"id=" + DeviceID(disk.Name), "drive=" + node}, options...)
		if index := boot[DeviceID(disk.Name)]; index > 0 {
			options = append(options, "bootindex="+strconv.Itoa(index))
		}
		if disk.Serial != "" {
			options = append(options, "serial="+escape(disk.Serial))
		}
		a.device(driver, options...)
		count[disk.Bus]++
	}
}

// diskDevice is the driver of the index-th disk on its bus, and its place.
func diskDevice(m Machine, disk Disk, index int) (driver string, options []string) {
	switch disk.Bus {
	case BusSATA:
		driver = "ide-hd"
		if disk.CDROM {
			driver = "ide-cd"
		}
		return driver, []string{"bus=ide." + strconv.Itoa(index)}
	case BusSCSI:
		driver = "scsi-hd"
		if disk.CDROM {
			driver = "scsi-cd"
		}
		return driver, []string{"bus=" + idSCSI + ".0", "channel=0", "scsi-id=0", "lun=" + strconv.Itoa(index)}
	}
	addr := virtioDiskAddr(index)
	options = []string{"bus=pcie.0", "addr=" + addr.String()}
	if addr.function == 0 {
		options = append(options, "multifunction=on")
	}
	return virtio(m, "virtio-blk-pci"), options
}

func (a *argv) nic(m Machine, nic vmnet.NIC, boot map[string]int) {
	// The TAP was made with several queues exactly if the NIC has them: the flag
	// must match or the kernel refuses the attachment. There is no vhost: it
	// would need a device node of its own, and does nothing under TCG.
	netdev := []string{"tap", "id=" + NetdevID(nic.Network), "ifname=" + escape(string(nic.TAP)), "script=no", "downscript=no", "vhost=off"}
	if nic.Queues > 1 {
		netdev = append(netdev, "queues="+strconv.Itoa(nic.Queues))
	}
	a.add("-netdev", join(netdev...))
	driver, options := nicDevice(m, nic)
	if index := boot[DeviceID(nic.Network)]; index > 0 {
		options = append(options, "bootindex="+strconv.Itoa(index))
	} else {
		// No option ROM: iPXE would take seconds of every boot.
		options = append(options, "romfile=")
	}
	a.device(driver, options...)
}

// nicDevice is the guest side of a NIC, but for booting; hotplug gives the same.
func nicDevice(m Machine, nic vmnet.NIC) (driver string, options []string) {
	place := placeNIC(nic)
	options = []string{
		"id=" + DeviceID(nic.Network), "netdev=" + NetdevID(nic.Network), "mac=" + string(nic.MAC),
		"bus=" + place.bus, "addr=" + place.addr.String(),
	}
	driver = nicModels[nic.Model]
	if nic.Model == "virtio" {
		driver = virtio(m, driver)
		if nic.Queues > 1 {
			// A vector for each queue of each pair, one for configuration changes and
			// one for the control queue (virtio 1.2 section 5.1.2).
			options = append(options, "mq=on", "vectors="+strconv.Itoa(2*nic.Queues+2))
		}
		if nic.MTU > 0 {
			options = append(options, "host_mtu="+strconv.Itoa(nic.MTU))
		}
	}
	if nic.ACPIIndex > 0 {
		options = append(options, "acpi-index="+strconv.Itoa(nic.ACPIIndex))
	}
	return driver, options
}

// bootIndexes numbers the devices firmware tries, by device id. If nothing was
// asked for and no kernel is given, it is the first disk, as libvirt does.
func bootIndexes(m Machine) map[string]int {
	boot := map[string]int{}
	for _, disk := range m.Disks {
		boot[DeviceID(disk.Name)] = int(disk.BootOrder)
	}
	asked := false
	for _, nic := range m.NICs {
		boot[DeviceID(nic.Network)] = int(nic.BootOrder)
	}
	for _, index := range boot {
		asked = asked || index > 0
	}
	if !asked && m.Kernel == "" && len(m.Disks) > 0 {
		boot[DeviceID(m.Disks[0].Name)] = 1
	}
	return boot
}

func socketChardev(id, name string) string {
	// tight: the name is exactly as long as its text, not padded with NULs.
	return join("socket", "id="+id, "path="+escape(name), "abstract=on", "tight=on", "server=on", "wait=off")
}

// virtio gives the form of a virtio device that matches m.Transitional;
// KubeVirt's default is non-transitional too.
func virtio(m Machine, device string) string {
	if m.Transitional {
		return device + "-transitional"
	}
	return device + "-non-transitional"
}

func hasBus(m Machine, bus Bus) bool {
	for _, disk := range m.Disks {
		if disk.Bus == bus {
			return true
		}
	}
	return false
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func join(parts ...string) string { return strings.Join(parts, ",") }

// escape doubles commas, which separate options otherwise.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }
