package qemu

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/vmnet"
	"github.com/weftnet/weft/test/golden"
)

// small is a machine that boots a kernel with one NIC.
func small() Machine {
	m := Machine{
		Name: "default_vm1", UUID: StableUUID("default", "vm1", ""), MemoryBytes: 256 << 20,
		Kernel: "/k/vmlinuz", Initrd: "/k/initrd", Cmdline: "console=ttyS0 a,b",
		NICs: []vmnet.NIC{{
			Network: "default", PodLink: "eth0", TAP: "tap0", MAC: "02:00:00:00:00:01", Queues: 1, MTU: 1450, LinkUp: true,
		}},
		Sockets: SocketsFor("5b8e"), SerialLog: "/run/weft/vm1/serial.log",
	}
	m.Default()
	return m
}

// full has one of everything.
func full() Machine {
	nic := func(network string, slot int, change func(*vmnet.NIC)) vmnet.NIC {
		n := vmnet.NIC{
			Network: network, TAP: netstate.IfName("tap-" + network), MAC: netstate.MAC("02:00:00:00:01:0" + string(rune('0'+slot))),
			Model: "virtio", Queues: 1, MTU: 1500, Slot: slot, LinkUp: true,
		}
		if change != nil {
			change(&n)
		}
		return n
	}
	m := Machine{
		Name: "lab_big, odd", UUID: StableUUID("lab", "big", "7"), Accel: KVM, MemoryBytes: 1_000_000_000,
		CPU: CPU{Sockets: 1, Cores: 2, Threads: 2},
		Disks: []Disk{
			{Name: "root", Path: "/d/root,1.qcow2", Format: QCOW2, BootOrder: 1, Serial: "R-1"},
			{Name: "data", Path: "/d/data.raw", ReadOnly: true},
			{Name: "seed", Path: "/d/seed.iso", CDROM: true},
			{Name: "old", Path: "/d/old.raw", Bus: BusSATA},
			{Name: "scsi", Path: "/d/scsi.qcow2", Format: QCOW2, Bus: BusSCSI},
		},
		NICs: []vmnet.NIC{
			nic("mgmt", 0, func(n *vmnet.NIC) { n.BootOrder = 2 }),
			nic("n3", 1, func(n *vmnet.NIC) { n.Queues = 4; n.ACPIIndex = 3 }),
			nic("n6", 2, func(n *vmnet.NIC) { n.LinkUp = false; n.MTU = 0 }),
			nic("fixed", 3, func(n *vmnet.NIC) { n.PCIAddress = "0000:00:0a.0" }),
			nic("e1000", 9, func(n *vmnet.NIC) { n.Model = "e1000e" }),
		},
		Sockets: SocketsFor("77"), SerialLog: "/s.log", Panic: true,
	}
	m.Default()
	return m
}

// shape is a command line, an option a line.
func shape(args []string) string {
	var b strings.Builder
	for i, arg := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(arg, "-"):
			b.WriteByte('\n')
		default:
			b.WriteByte(' ')
		}
		b.WriteString(arg)
	}
	return b.String() + "\n"
}

func TestArgs(t *testing.T) {
	for name, m := range map[string]Machine{"small": small(), "full": full()} {
		if err := Validate(m, Version{7, 2, 22}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		golden.Check(t, name+".args", shape(Args(m)))
	}
	if diff := cmp.Diff([]string{"ua-n6"}, DownLinks(full())); diff != "" {
		t.Errorf("down links: %s", diff)
	}
	if diff := cmp.Diff(Args(full()), Args(full())); diff != "" {
		t.Errorf("two calls differ: %s", diff)
	}
}

func TestTransitional(t *testing.T) {
	m := full()
	m.Transitional = true
	text := shape(Args(m))
	if strings.Contains(text, "non-transitional") || !strings.Contains(text, "virtio-net-pci-transitional") {
		t.Errorf("transitional machine:\n%s", text)
	}
}

// TestLayoutIsStable holds what hotplug and migration count on: devices of a
// machine keep their addresses when others come or go.
func TestLayoutIsStable(t *testing.T) {
	all := full()
	devices := func(m Machine) map[string]string {
		found := map[string]string{}
		args := Args(m)
		for i, arg := range args {
			if arg != "-device" {
				continue
			}
			var id, bus, addr string
			for option := range strings.SplitSeq(args[i+1], ",") {
				key, value, _ := strings.Cut(option, "=")
				switch key {
				case "id":
					id = value
				case "bus":
					bus = value
				case "addr":
					addr = value
				}
			}
			if id == "" {
				t.Fatalf("device without id: %s", args[i+1])
			}
			if _, twice := found[id]; twice {
				t.Errorf("two devices %s", id)
			}
			found[id] = bus + "/" + addr
		}
		return found
	}
	want := devices(all)
	places := map[string]string{}
	for id, place := range want {
		if strings.HasSuffix(place, "/") {
			continue // not on PCI
		}
		if other, taken := places[place]; taken {
			t.Errorf("%s and %s are both at %s", id, other, place)
		}
		places[place] = id
	}
	for i := range all.NICs {
		less := all
		less.NICs = slices.Delete(slices.Clone(all.NICs), i, i+1)
		for id, place := range devices(less) {
			if want[id] != place {
				t.Errorf("without NIC %d: %s moves from %s to %s", i, id, want[id], place)
			}
		}
	}
}

func TestRootPortsFor(t *testing.T) {
	for _, tt := range []struct{ lastSlot, want int }{{-1, 8}, {0, 16}, {7, 16}, {8, 24}, {15, 24}, {16, 32}, {31, 32}} {
		var nics []vmnet.NIC
		if tt.lastSlot >= 0 {
			nics = []vmnet.NIC{{Slot: tt.lastSlot}}
		}
		if got := RootPortsFor(nics); got != tt.want {
			t.Errorf("last slot %d: %d root ports, want %d", tt.lastSlot, got, tt.want)
		}
	}
}

func TestStableUUID(t *testing.T) {
	got := StableUUID("default", "vm1", "")
	if len(got) != 36 || got[14] != '8' || !strings.Contains("89ab", got[19:20]) {
		t.Errorf("%s is not of RFC 9562's version 8", got)
	}
	golden.Check(t, "uuid.golden", got+"\n") // it must never change
	seen := map[string]bool{got: true}
	for _, id := range [][3]string{{"defaul", "tvm1", ""}, {"default", "vm", "1"}, {"", "", ""}} {
		other := StableUUID(id[0], id[1], id[2])
		if seen[other] {
			t.Errorf("%q has another's UUID", id)
		}
		seen[other] = true
	}
}

func TestValidate(t *testing.T) {
	nic := func(change func(*vmnet.NIC)) func(*Machine) {
		return func(m *Machine) { change(&m.NICs[0]) }
	}
	disk := func(d Disk) func(*Machine) {
		return func(m *Machine) { m.Disks = append(m.Disks, d); m.Default() }
	}
	for _, tt := range []struct {
		name   string
		change func(*Machine)
		want   string // field, value and problem
	}{
		{"no name", func(m *Machine) { m.Name = "" }, `metadata.name: the machine has no name`},
		{"accelerator", func(m *Machine) { m.Accel = "hvf" }, `accelerator "hvf": unknown accelerator`},
		{"memory", func(m *Machine) { m.MemoryBytes = 1 << 20 }, `domain.memory.guest "1048576": too little memory`},
		{"cpus", func(m *Machine) { m.CPU = CPU{Sockets: 16, Cores: 16, Threads: 1} }, `domain.cpu "256": number of vCPUs out of range`},
		{"initrd only", func(m *Machine) { m.Kernel = "" }, `domain.firmware.kernelBoot: an initrd or kernel arguments without a kernel`},
		{"root ports", func(m *Machine) { m.RootPorts = 33 }, `rootPorts "33": number of root ports out of range`},
		{"socket", func(m *Machine) { m.Sockets.QMP = strings.Repeat("x", 108) }, `sockets "` + strings.Repeat("x", 108) + `": a socket name must have 1 to 107 bytes and no NUL`},
		{"model", nic(func(n *vmnet.NIC) { n.Model = "ne2k" }), `domain.devices.interfaces[0].model "ne2k": unknown NIC model`},
		{"igb", nic(func(n *vmnet.NIC) { n.Model = "igb" }), `domain.devices.interfaces[0].model "igb": this QEMU, 7.2.0, has no igb; 8.0 is the first that has`},
		{"queues", nic(func(n *vmnet.NIC) { n.Model = "e1000"; n.Queues = 2 }), `domain.devices.interfaces[0].model "e1000": only virtio NICs have several queues`},
		{"mtu", nic(func(n *vmnet.NIC) { n.MTU = 60 }), `domain.devices.interfaces[0].mtu "60": MTU out of range`},
		{"no mac", nic(func(n *vmnet.NIC) { n.MAC = "" }), `domain.devices.interfaces[0].macAddress: not a MAC address`},
		{"multicast", nic(func(n *vmnet.NIC) { n.MAC = "03:00:00:00:00:01" }), `domain.devices.interfaces[0].macAddress "03:00:00:00:00:01": a multicast address`},
		{"no tap", nic(func(n *vmnet.NIC) { n.TAP = "" }), `domain.devices.interfaces[0] "default": the NIC has no TAP`},
		{"slot", nic(func(n *vmnet.NIC) { n.Slot = 16 }), `domain.devices.interfaces[0] "16": PCI slot out of range`},
		{"pci text", nic(func(n *vmnet.NIC) { n.PCIAddress = "0:1:2.3" }), `domain.devices.interfaces[0].pciAddress "0:1:2.3": malformed PCI address`},
		{"pci bus", nic(func(n *vmnet.NIC) { n.PCIAddress = "0000:81:01.0" }), `domain.devices.interfaces[0].pciAddress "0000:81:01.0": only bus 0000:00 can be chosen`},
		{"pci slot", nic(func(n *vmnet.NIC) { n.PCIAddress = "0000:00:10.0" }), `domain.devices.interfaces[0].pciAddress "0000:00:10.0": this device number belongs to the machine`},
		{"pci function", nic(func(n *vmnet.NIC) { n.PCIAddress = "0000:00:08.1" }), `domain.devices.interfaces[0].pciAddress "0000:00:08.1": only function 0 can be chosen`},
		{"same slot", func(m *Machine) { n := m.NICs[0]; n.Network = "other"; m.NICs = append(m.NICs, n) }, `domain.devices.interfaces[1] "0": NIC default has this PCI slot`},
		{"same network", func(m *Machine) { n := m.NICs[0]; n.Slot = 1; m.NICs = append(m.NICs, n) }, `domain.devices.interfaces[1].name "default": two NICs have this name`},
		{"disk and NIC", disk(Disk{Name: "default", Path: "/d"}), `domain.devices.interfaces[0].name "default": a disk and a NIC have this name`},
		{"disk path", disk(Disk{Name: "d"}), `domain.devices.disks[0] "d": the disk has no file`},
		{"disk name", disk(Disk{Name: "a b", Path: "/d"}), `domain.devices.disks[0].name "a b": not a usable disk name`},
		{"disk format", disk(Disk{Name: "d", Path: "/d", Format: "vmdk"}), `domain.devices.disks[0] "vmdk": unknown disk format`},
		{"disk bus", disk(Disk{Name: "d", Path: "/d", Bus: "usb"}), `domain.devices.disks[0].disk.bus "usb": unknown disk bus`},
		{"virtio cdrom", disk(Disk{Name: "d", Path: "/d", Bus: BusVirtio, CDROM: true}), `domain.devices.disks[0].cdrom.bus "virtio": a CD-ROM drive cannot be on the virtio bus`},
		{"sata read-only", disk(Disk{Name: "d", Path: "/d", Bus: BusSATA, ReadOnly: true}), `domain.devices.disks[0].disk.readonly "true": a SATA disk cannot be read-only`},
		{"boot order", func(m *Machine) {
			m.NICs[0].BootOrder = 1
			m.Disks = []Disk{{Name: "d", Path: "/d", BootOrder: 1}}
			m.Default()
		}, `domain.devices.interfaces[0].bootOrder "1": device d has this boot order`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := small()
			m.NICs = slices.Clone(m.NICs)
			tt.change(&m)
			err := Validate(m, Version{7, 2, 0})
			if err == nil {
				t.Fatal("valid")
			}
			if !strings.HasPrefix(err.Error(), tt.want+"; ") || strings.Contains(err.Error(), "\n") {
				t.Errorf("got  %s\nwant %s; REMEDY", err, tt.want)
			}
			var h *hint.Error
			if !errors.As(err, &h) {
				t.Errorf("%v is no hint", err)
			}
		})
	}
	if err := Validate(small(), Version{}); err != nil {
		t.Error(err)
	}
	m := small()
	m.NICs[0].Model = "igb"
	for _, version := range []Version{{}, {8, 0, 0}, {10, 0, 2}} {
		if err := Validate(m, version); err != nil {
			t.Errorf("igb with QEMU %s: %v", version, err)
		}
	}
}

func TestParseVersion(t *testing.T) {
	got, err := ParseVersion("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n")
	if err != nil || got != (Version{7, 2, 22}) || got.String() != "7.2.22" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, text := range []string{"", "version 7", "version 99999.1.1"} {
		if got, err := ParseVersion(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func FuzzParsePCIAddress(f *testing.F) {
	for _, seed := range []string{"0000:00:08.0", "0:0:0.0", "ffff:ff:1f.7", "0000:00:0a.8"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		domain, bus, addr, ok := parsePCIAddress(text)
		if !ok {
			return
		}
		if len(text) != 12 || domain > 0xffff || bus > 0xff || addr.slot > 0xff || addr.function > 7 {
			t.Errorf("%q read as %x:%x:%v", text, domain, bus, addr)
		}
	})
}
