// Package macvlan tries bridge binding on every mode of macvlan with a real
// guest: none needs another wiring than the others.
package macvlan

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/weftnet/weft/test/machine"
)

func TestMain(m *testing.M) { machine.Main(m) }

// modes of macvlan (ip-link(8)) a network can have; source needs a list of MACs
// that no config carries.
var modes = []string{"bridge", "private", "vepa", "passthru"}

// TestGuestOnEveryMode boots one guest with a NIC on each mode, each on an uplink
// of its own to the LAN, and lets both sides begin to talk.
func TestGuestOnEveryMode(t *testing.T) {
	machine.NeedVMs(t)
	m := machine.New(t)
	m.LoadGuest()
	var nads, interfaces, networks strings.Builder
	for i, mode := range modes {
		uplink := "up" + mode
		for _, command := range []string{
			fmt.Sprintf("link add %s type veth peer name %s netns %s-lan", uplink, uplink, m.Name),
			"link set " + uplink + " up",
		} {
			ip(t, m.Name+"-node", command)
		}
		subnet := fmt.Sprintf("10.70.%d", i)
		ip(t, m.Name+"-lan", "addr add "+subnet+".1/24 dev "+uplink)
		ip(t, m.Name+"-lan", "link set "+uplink+" up")
		fmt.Fprintf(&nads, `---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: %s}
spec:
  config: '{"cniVersion":"1.0.0","type":"macvlan","master":"%s","mode":"%s","ipam":{"type":"host-local","subnet":"%s.0/24"}}'
`, mode, uplink, mode, subnet)
		fmt.Fprintf(&interfaces, "        - {name: %s, bridge: {}}\n", mode)
		fmt.Fprintf(&networks, "    - {name: %s, multus: {networkName: %s}}\n", mode, mode)
	}
	m.MustWeft("up", "-f", m.File(nads.String()+`---
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: many}
spec:
  domain:
    memory: {guest: 256Mi}
    firmware:
      kernelBoot:
        kernelArgs: console=ttyS0 quiet
        container: {image: localhost/weft/guest:latest, kernelPath: /boot/vmlinuz, initrdPath: /boot/initrd}
    devices:
      interfaces:
`+interfaces.String()+"  networks:\n"+networks.String()))
	for i, mode := range modes {
		lan := fmt.Sprintf("10.70.%d.1", i)
		address := m.Address("many", mode)
		m.Eventually("LAN reaches the guest on mode "+mode, func() (string, error) {
			return m.On("lan", "ping", "-c", "1", "-W", "2", address)
		})
		m.Ping("vmi/many", lan)
		// The guest's own MAC is on the wire, as a switch that counts MACs wants it.
		mac, _ := m.NIC("many", mode)["mac"].(string)
		if out, err := m.On("lan", "ip", "neigh", "show", address); err != nil || !strings.Contains(out, mac) {
			t.Errorf("mode %s: the LAN knows %s as %q (%v), want MAC %s", mode, address, out, err, mac)
		}
	}
	m.MustWeft("down")
	for _, mode := range modes { // the test's own uplinks
		ip(t, m.Name+"-node", "link del up"+mode)
	}
}

func ip(t *testing.T, namespace, command string) {
	t.Helper()
	if out, err := exec.Command("ip", append([]string{"-n", namespace}, strings.Fields(command)...)...).CombinedOutput(); err != nil {
		t.Fatalf("ip -n %s %s: %v\n%s", namespace, command, err, out)
	}
}
