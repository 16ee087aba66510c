// Package qemu runs what a virtual machine is made of: it turns a Machine, our
// own value, into QEMU's command line and into libvirt domain XML (both pure),
// speaks QMP and the guest agent's protocol, prepares disks and cloud-init
// media, and finds out whether /dev/kvm really runs guest code.
//
// It starts no QEMU (package launcher does), plans no network (vmnet does) and
// writes no network state.
package qemu

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/weftnet/weft/internal/vmnet"
)

// Accel is what executes guest code.
type Accel string

// The two accelerators weft uses.
const (
	// TCG is QEMU's own translator: works everywhere.
	TCG Accel = "tcg"
	// KVM is the kernel's; only where Probe says that it truly runs.
	KVM Accel = "kvm"
)

// Format is how a disk's bytes are laid out.
type Format string

// Disk formats.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
)

// Bus is what a disk hangs on.
type Bus string

// Disk buses.
const (
	BusVirtio Bus = "virtio"
	BusSATA   Bus = "sata"
	BusSCSI   Bus = "scsi"
)

// Disk is one drive of the machine.
type Disk struct {
	// Name is the disk's name in the VM's spec; the device's id is "ua-"+Name.
	Name   string
	Path   string
	Format Format
	Bus    Bus
	// ReadOnly also lets several machines open the same file.
	ReadOnly bool
	// CDROM makes it a drive with a read-only medium; only sata and scsi have one.
	CDROM bool
	// BootOrder, lowest first; 0: not asked for.
	BootOrder uint
	// Serial is what the guest sees as the drive's serial number; empty: none.
	Serial string
}

// CPU is the processor the guest sees. Sockets, Cores and Threads are at least
// 1 after Default; their product is the number of vCPUs.
type CPU struct {
	Sockets, Cores, Threads int
	// Model as `qemu -cpu` says it. Empty, host-model and host-passthrough: the
	// host's own under KVM, the most featureful one under TCG.
	Model string
}

// Count is the number of vCPUs.
func (c CPU) Count() int { return c.Sockets * c.Cores * c.Threads }

// Sockets are the names of the abstract unix sockets QEMU listens on, without
// the leading NUL or "@". They live in the network namespace QEMU runs in, so
// no path, mount or permission is involved; who answers there is checked by
// its credentials (DialAbstract in package launcher).
type Sockets struct {
	// QMP is the agent's monitor; the launcher has one of its own.
	QMP string
	// Agent is the host's end of the guest agent's channel.
	Agent string
	// Console is the serial console. One client at a time.
	Console string
}

// SocketsFor gives the names used by the VM with this id (its UID).
func SocketsFor(id string) Sockets {
	return Sockets{QMP: "weft/" + id + "/qmp", Agent: "weft/" + id + "/agent", Console: "weft/" + id + "/console"}
}

// Machine is all that QEMU needs to know. Fill it, call Default, then
// Validate; Args and DomainXML take the result.
type Machine struct {
	// Name shows in process lists and as libvirt's domain name.
	Name string
	// UUID is the SMBIOS system UUID; see StableUUID.
	UUID  string
	Accel Accel
	// MachineType as `qemu -machine` says it: q35 or one of its versions.
	MachineType string
	CPU         CPU
	// MemoryBytes is rounded up to whole MiB.
	MemoryBytes int64

	// Kernel boots directly; empty: firmware looks for a bootable device.
	Kernel, Initrd, Cmdline string

	Disks []Disk
	NICs  []vmnet.NIC
	// RootPorts is how many PCIe root ports the machine has from its first start
	// on; NIC slot k is port k. It must not change while the machine lives.
	RootPorts int

	Sockets Sockets
	// SerialLog is the file all console output is appended to; empty: none.
	SerialLog string
	// Panic adds the pvpanic device, by which a guest tells that it crashed.
	Panic bool
	// Transitional makes virtio devices take drivers from before virtio 1.0 too.
	Transitional bool
}

// Default fills what was left open.
func (m *Machine) Default() {
	if m.Accel == "" {
		m.Accel = TCG
	}
	if m.MachineType == "" {
		m.MachineType = "q35"
	}
	m.CPU.Sockets = max(m.CPU.Sockets, 1)
	m.CPU.Cores = max(m.CPU.Cores, 1)
	m.CPU.Threads = max(m.CPU.Threads, 1)
	if m.RootPorts == 0 {
		m.RootPorts = RootPortsFor(m.NICs)
	}
	for i := range m.NICs {
		m.NICs[i].Queues = max(m.NICs[i].Queues, 1)
		if m.NICs[i].Model == "" {
			m.NICs[i].Model = "virtio"
		}
	}
	for i := range m.Disks {
		d := &m.Disks[i]
		if d.Format == "" {
			d.Format = Raw
		}
		if d.Bus == "" {
			d.Bus = BusVirtio
			if d.CDROM {
				d.Bus = BusSATA
			}
		}
		if d.CDROM {
			d.ReadOnly = true
		}
	}
}

// DeviceID is the id of a NIC's or disk's device in QEMU, and its alias in
// libvirt: libvirt keeps the prefix "ua-" for names a user chose.
func DeviceID(name string) string { return "ua-" + name }

// NetdevID is the id of the host side of a NIC.
func NetdevID(network string) string { return "host-" + network }

// StableUUID derives the machine's UUID from what identifies the VM: the same
// three strings give the same UUID, on every node and after every restart.
// It is of version 8 (RFC 9562 section 5.8: custom, here SHA-256).
func StableUUID(namespace, name, uid string) string {
	sum := sha256.Sum256([]byte("weft.network/vm\x00" + namespace + "\x00" + name + "\x00" + uid))
	id := sum[:16]
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	h := hex.EncodeToString(id)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// memoryMiB is the memory in MiB, rounded up: QEMU wants whole pages and guests
// whole megabytes.
func (m Machine) memoryMiB() int64 { return (m.MemoryBytes + 1<<20 - 1) >> 20 }
