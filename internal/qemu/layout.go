package qemu

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/weftnet/weft/internal/vmnet"
)

// The PCI layout. Every address is fixed by what a device is, never by the
// order in which devices were added, so that it is the same after a restart,
// after hotplug and on a migration target:
//
//	pcie.0 (the root bus, bus 0 of the guest; nothing can be hotplugged here)
//	 00.0        host bridge                                (q35)
//	 01          left free
//	 02.0 .1 .2  virtio-serial, virtio-rng, virtio-scsi (if a disk wants it)
//	 03          left free
//	 04.0-07.7   virtio disks: disk i at (04+i/8).(i%8)     at most 32
//	 08-0f       free for a NIC with a pciAddress
//	 10.0-13.7   root ports: port k at (10+k/8).(k%8)       at most 32
//	 14-1e       free for a NIC with a pciAddress
//	 1f.0 .2 .3  LPC, AHCI (SATA disks), SMBus              (q35)
//
//	root port k = device "rp<k>" = bus "rp<k>" = bus k+1 of the guest
//	 00.0        NIC of slot k, or empty: room for a later NIC
//
// Firmware and kernels number buses in the order of the bridges, and the root
// ports are the only bridges, so a guest that names links by path calls the
// NIC of slot k enp<k+1>s0.
const (
	slotMisc      = 0x02
	slotDisk      = 0x04
	slotRootPort  = 0x10
	funcSerial    = 0
	funcRNG       = 1
	funcSCSI      = 2
	maxVirtioDisk = 32
	// MaxRootPorts bounds the NICs of a machine, present and future.
	MaxRootPorts = 32
	// maxSATA is the number of ports of q35's AHCI controller.
	maxSATA = 6
	// roomForNICs is how many NICs can be added to a running machine at least.
	roomForNICs = 8
)

// pciAddr is a device and function on some bus.
type pciAddr struct{ slot, function int }

func (a pciAddr) String() string { return fmt.Sprintf("%02x.%x", a.slot, a.function) }

func rootPortAddr(port int) pciAddr {
	return pciAddr{slotRootPort + port/8, port % 8}
}

func virtioDiskAddr(index int) pciAddr { return pciAddr{slotDisk + index/8, index % 8} }

func rootPortID(port int) string { return "rp" + strconv.Itoa(port) }

// RootPortsFor is the number of root ports a machine gets that starts with
// these NICs: a multiple of 8 with room for at least 8 more. Ask once, at the
// machine's first start, and keep the answer.
func RootPortsFor(nics []vmnet.NIC) int {
	used := 0
	for _, nic := range nics {
		used = max(used, nic.Slot+1)
	}
	ports := (used + roomForNICs + 7) / 8 * 8
	return min(ports, MaxRootPorts)
}

// pciAddressRE is the form KubeVirt admits: DDDD:BB:SS.F in hexadecimal.
var pciAddressRE = regexp.MustCompile(`^([[:xdigit:]]{4}):([[:xdigit:]]{2}):([[:xdigit:]]{2})\.([0-7])$`)

// parsePCIAddress reads DDDD:BB:SS.F. The text was matched before the numbers
// are read, so they cannot be malformed.
func parsePCIAddress(text string) (domain, bus int, addr pciAddr, ok bool) {
	match := pciAddressRE.FindStringSubmatch(text)
	if match == nil {
		return 0, 0, pciAddr{}, false
	}
	var parts [4]int
	for i := range parts {
		number, err := strconv.ParseUint(match[i+1], 16, 32)
		if err != nil {
			return 0, 0, pciAddr{}, false
		}
		parts[i] = int(number)
	}
	return parts[0], parts[1], pciAddr{parts[2], parts[3]}, true
}

// userSlot says whether a NIC with a pciAddress may sit there: the devices of
// the root bus that the layout leaves free.
func userSlot(slot int) bool {
	return slot >= 0x08 && slot <= 0x0f || slot >= 0x14 && slot <= 0x1e
}

// nicPlace is where a NIC sits: on a bus by QEMU's name for it, with the number
// the guest gives that bus.
type nicPlace struct {
	bus    string
	number int
	addr   pciAddr
}

func placeNIC(nic vmnet.NIC) nicPlace {
	if _, _, addr, ok := parsePCIAddress(nic.PCIAddress); ok {
		return nicPlace{bus: "pcie.0", addr: addr}
	}
	return nicPlace{bus: rootPortID(nic.Slot), number: nic.Slot + 1}
}
