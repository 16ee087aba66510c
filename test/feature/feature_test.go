// Package feature tries what a virtual machine can be given, on real guests:
// one VM with one of everything, and one that boots from the network.
package feature

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/image"
	"github.com/weftnet/weft/test/machine"
)

func TestMain(m *testing.M) { machine.Main(m) }

// lab is a machine with the VM full on it.
type lab struct {
	*machine.Machine
	hostDisk string
}

func (l lab) in(t *testing.T) lab {
	l.Machine = l.Machine.In(t)
	return l
}

// guest runs a shell line in the guest.
func (l lab) guest(line string) string { return l.MustWeft("exec", "vmi/full", "--", "sh", "-c", line) }

// link is a NIC's name in the guest.
func (l lab) link(network string) string {
	name, _ := l.NIC("full", network)["interfaceName"].(string)
	return name
}

func (l lab) manifest(pulled string) string {
	text := strings.NewReplacer("PULLED", pulled, "HOSTDISK", l.hostDisk).Replace(full)
	return l.File(text)
}

// marker begins the container disk.
const marker = "weft container disk v1"

func (l lab) loadDisk(t *testing.T) {
	t.Helper()
	disk := make([]byte, 2<<20)
	copy(disk, marker)
	file := filepath.Join(t.TempDir(), "small.img")
	if err := os.WriteFile(file, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "disk.tar")
	if err := image.BuildArchive(context.Background(), archive, "localhost/test/disk:v1", map[string]string{"/disk/small.img": file}); err != nil {
		t.Fatal(err)
	}
	l.MustWeft("image", "load", archive)
}

func TestFeatures(t *testing.T) {
	machine.NeedVMs(t)
	m := machine.New(t)
	m.LoadGuest()
	l := lab{Machine: m, hostDisk: filepath.Join(m.Root, "kept.img")}
	l.loadDisk(t)
	fabric := l.watchFabric(t)
	l.MustWeft("up", "-f", l.File(networks), "-f", l.manifest("down"), "-f", l.File(netboot))

	for _, step := range []struct {
		name string
		try  func(*testing.T, lab)
	}{
		{"network boot", tryNetworkBoot},
		{"status", tryStatus},
		{"devices", tryDevices},
		{"cloud-init", tryCloudInit},
		{"options", tryOptions},
		{"ports", tryPorts},
		{"console", tryConsole},
		{"link state", tryLinkState},
		{"new address", tryNewAddress},
		{"domain XML", tryDomainXML},
		{"rogue servers", fabric.tryRogue},
		{"disks over restart", tryRestart},
		{"ejected NIC", tryEjected},
		{"stop and start", tryStop},
	} {
		t.Run(step.name, func(t *testing.T) { step.try(t, l.in(t)) })
	}
	fabric.judge(t)
}

func tryStatus(t *testing.T, l lab) {
	for network, want := range map[string]string{
		"default": "2 up", "blue": "2 up", "fixed": "2 up", "lan": "2 up", "pulled": "2 down",
		"e1000": "1 up", "e1000e": "1 up", "rtl8139": "1 up", "pcnet": "1 up", "ne2k": "1 up",
	} {
		nic := l.NIC("full", network)
		if got := fmt.Sprint(nic["queueCount"], " ", nic["linkState"]); got != want {
			t.Errorf("%s has queues and link %q, want %q", network, got, want)
		}
		want := "domain, guest-agent, multus-status"
		if network == "default" {
			want = "domain, guest-agent"
		} else if nic["interfaceName"] == nil {
			want = "domain, multus-status" // the guest has no driver for it
		}
		if nic["infoSource"] != want {
			t.Errorf("%s is known from %v, want %s", network, nic["infoSource"], want)
		}
		if pod, _ := nic["podInterfaceName"].(string); network != "default" && len(pod) != len("pod")+11 {
			t.Errorf("%s has the Pod link %q, want pod and 11 digits", network, pod)
		}
	}
	for network, want := range map[string]string{
		"blue": "[10.30.0.3 fd30::3]", "lan": "[172.16.1.100 fd00:100::100]", "fixed": "[10.31.0.5]",
	} {
		if got := fmt.Sprint(l.NIC("full", network)["ipAddresses"]); got != want {
			t.Errorf("%s has %s, want %s", network, got, want)
		}
	}
}

// tryDevices looks from inside at what the machine was asked to have.
func tryDevices(t *testing.T, l lab) {
	ids := l.guest("cat /sys/bus/pci/devices/*/uevent")
	for model, id := range map[string]string{
		"e1000": "8086:100E", "e1000e": "8086:10D3", "rtl8139": "10EC:8139", "pcnet": "1022:2000", "ne2k_pci": "10EC:8029",
	} {
		if !strings.Contains(ids, "PCI_ID="+id) {
			t.Errorf("the guest sees no %s (%s)", model, id)
		}
	}
	for what, test := range map[string]struct{ line, want string }{
		"pciAddress":  {"basename $(readlink -f /sys/class/net/" + l.link("blue") + "/device/..)", "0000:00:08.0"},
		"acpiIndex":   {"cat /sys/class/net/" + l.link("default") + "/device/../acpi_index", "101"},
		"CPUs":        {"grep -c ^processor /proc/cpuinfo", "2"},
		"queues":      {"ls -d /sys/class/net/" + l.link("lan") + "/queues/rx-* | wc -l", "2"},
		"MTU of blue": {"cat /sys/class/net/" + l.link("blue") + "/mtu", "1400"},
		"host CIDR":   {"ip -4 -o addr show dev " + l.link("default") + " | tr -s ' ' | cut -d' ' -f4", "10.77.0.2/24"},
		"host CIDR 6": {"ip -6 -o addr show dev " + l.link("default") + " scope global | grep -o 'fd77:77::[^ ]*'", "fd77:77::2/128"},
		"cable":       {"cat /sys/class/net/" + l.link("pulled") + "/carrier", "0"},
		"disk system": {"head -c " + fmt.Sprint(len(marker)) + " /dev/vda", marker},
		"disk serial": {"cat /sys/block/vdb/serial", "SCRATCH01"},
		"empty disk":  {"cat /sys/block/vdb/size", fmt.Sprint(16 << 20 / 512)},
		"host disk":   {"cat /sys/block/sda/size", fmt.Sprint(8 << 20 / 512)},
	} {
		if got := strings.TrimSpace(l.guest(test.line)); got != test.want {
			t.Errorf("%s: the guest has %q, want %q", what, got, test.want)
		}
	}
}

func tryCloudInit(t *testing.T, l lab) {
	for line, want := range map[string]string{
		"hostname": "from-seed", "cat /etc/motd": "by cloud-init", "stat -c %a /etc/motd": "640",
		"ip route show 10.99.0.0/16 | tr -s ' '": "10.99.0.0/16 via 10.31.0.1 dev " + l.link("fixed"),
	} {
		if got := strings.TrimSpace(l.guest(line)); got != want {
			t.Errorf("%s gives %q, want %q", line, got, want)
		}
	}
	if log := l.MustWeft("logs", "full"); !strings.Contains(log, "runcmd-says from-seed") {
		t.Errorf("runcmd did not run:\n%s", log)
	}
	l.MustWeft("exec", "peer", "--", "ip", "addr", "add", "10.31.0.1/24", "dev", "plain0")
	l.Ping("peer", "10.31.0.5") // configured by the guest alone
}

func tryOptions(t *testing.T, l lab) {
	lease := l.guest("cat /run/lease/" + l.link("default"))
	for _, want := range []string{
		"tftp=192.0.2.69", "bootfile=boot/full.ipxe", "next=192.0.2.69", `ntp="192.0.2.123 192.0.2.124"`,
		fmt.Sprintf("opt224=%x", "colour=blue"), fmt.Sprintf("opt240=%x", "last"), "hostname=full", "router=10.77.0.1",
	} {
		if !strings.Contains(lease, want) {
			t.Errorf("the guest's lease has no %s:\n%s", want, lease)
		}
	}
	if lease := l.guest("cat /run/lease/" + l.link("blue")); strings.Contains(lease, "opt2") || !strings.Contains(lease, "mtu=1400") {
		t.Errorf("blue has another NIC's options, or not its own:\n%s", lease)
	}
}

func tryPorts(t *testing.T, l lab) {
	pod := l.Address("full", "default")
	l.Eventually("port 8080 by the Pod's address", func() (string, error) {
		return l.On("node", "busybox", "nc", "-w", "2", pod, "8080")
	})
	l.UDP("peer", pod+":9090", "a question")
	if out, err := l.On("node", "busybox", "nc", "-w", "2", pod, "8081"); err == nil {
		t.Errorf("port 8081 is not listed and answers: %s", out)
	}
	// On its other networks every port is the guest's.
	l.Eventually("port 8081 on blue", func() (string, error) {
		return l.Weft("exec", "peer", "--", "busybox", "nc", "-w", "2", "10.30.0.3", "8081")
	})
}

func tryConsole(t *testing.T, l lab) {
	console := l.Background("the console", "console", "full")
	console.Type("echo con$((1))sole\n")
	console.Wait("con1sole")
	console.Type("\x1d") // Ctrl-]
	console.WaitEnd()
	l.Eventually("the log has what the console showed", func() (string, error) {
		out, err := l.Weft("logs", "full")
		if err == nil && !strings.Contains(out, "con1sole") {
			err = fmt.Errorf("no con1sole")
		}
		return out, err
	})
}

// bootID tells boots of the guest apart.
func (l lab) bootID() string { return l.guest("cat /proc/sys/kernel/random/boot_id") }

func tryRestart(t *testing.T, l lab) {
	l.guest("echo scribble | dd of=/dev/vda conv=notrunc; echo precious | dd of=/dev/sda conv=notrunc; sync")
	kept, err := os.ReadFile(l.hostDisk)
	if err != nil || !bytes.HasPrefix(kept, []byte("precious")) {
		t.Errorf("the host's file does not hold what the guest wrote: %v %q", err, kept[:min(len(kept), 16)])
	}
	boot, before := l.bootID(), l.nics()
	pci := l.guest("ls /sys/bus/pci/devices")
	console := l.Background("the guest's end", "logs", "-f", "full")
	console.Wait("ready from-seed")
	l.MustWeft("delete", "pod", "peer") // a lower address on blue is free now, and is not taken
	l.MustWeft("vm", "restart", "full")
	console.Wait("power button") // a clean shutdown, not a pulled plug
	l.awaitGuest()
	if l.bootID() == boot {
		t.Error("the guest was not started anew")
	}
	if after := l.nics(); after != before {
		t.Errorf("NICs after a restart\n%s\nbefore\n%s", after, before)
	}
	if after := l.guest("ls /sys/bus/pci/devices"); after != pci {
		t.Errorf("PCI devices after a restart\n%s\nbefore\n%s", after, pci)
	}
	if got := l.guest("head -c 22 /dev/vda"); got != marker {
		t.Errorf("the container disk begins with %q after a restart, want the image's %q", got, marker)
	}
	if got := l.guest("head -c 8 /dev/sda"); got != "precious" {
		t.Errorf("the host disk lost its data: %q", got)
	}
}

func tryStop(t *testing.T, l lab) {
	l.MustWeft("vm", "stop", "full")
	l.awaitStatus("Stopped")
	if out, err := l.Weft("exec", "vmi/full", "--", "true"); err == nil {
		t.Errorf("a stopped guest runs a program: %s", out)
	}
	l.MustWeft("vm", "start", "full")
	l.awaitStatus("Running")
}

// awaitStatus waits for what a VM says of itself.
func (l lab) awaitStatus(want string) {
	l.Eventually("the VM is "+want, func() (string, error) {
		out, err := l.Weft("get", "vm", "full", "-o", "json")
		if err == nil && !strings.Contains(out, `"printableStatus": "`+want+`"`) {
			err = fmt.Errorf("it is not")
		}
		return out, err
	})
}

// awaitGuest waits until every NIC is in the guest.
func (l lab) awaitGuest() {
	l.Eventually("the guest is there", func() (string, error) {
		out, err := l.Weft("get", "vm", "full", "-o", "json")
		if err == nil && !strings.Contains(out, `"ready": true`) {
			err = fmt.Errorf("not ready")
		}
		if err != nil {
			return out, err
		}
		return l.Weft("exec", "vmi/full", "--", "true")
	})
}

// nics is what must not change over a restart.
func (l lab) nics() string {
	var text strings.Builder
	for _, network := range []string{"default", "blue", "fixed", "lan", "pulled", "e1000", "e1000e", "rtl8139", "pcnet", "ne2k"} {
		nic := l.NIC("full", network)
		addresses := nic["ipAddresses"]
		if network == "default" {
			addresses = nil // the Pod's, a new one
		}
		fmt.Fprintln(&text, network, nic["mac"], nic["podInterfaceName"], nic["interfaceName"], addresses, nic["linkState"])
	}
	return text.String()
}
