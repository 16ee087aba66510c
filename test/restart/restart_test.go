// Package restart proves that what weft gave outlives the end of whatever gave
// it: the agent, the VM, the instance, the machine.
package restart

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/test/machine"
)

func TestMain(m *testing.M) { machine.Main(m) }

const network = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: blue}
spec:
  config: |
    {"cniVersion": "1.0.0", "type": "bridge", "bridge": "blue0",
     "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.65.0.0/24"}], [{"subnet": "fd65::/64"}]]}}
`

const vm = `---
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: keeper}
spec:
  runStrategy: Always
  template:
    spec:
      domain:
        memory: {guest: 256Mi}
        firmware:
          kernelBoot:
            kernelArgs: console=ttyS0 quiet
            container: {image: localhost/weft/guest:latest, kernelPath: /boot/vmlinuz, initrdPath: /boot/initrd}
        devices:
          interfaces:
            - {name: default, masquerade: {}}
            - {name: blue, bridge: {}}
      networks:
        - {name: default, pod: {}}
        - {name: blue, multus: {networkName: blue}}
`

func pod(name string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata:
  name: %s
  annotations: {k8s.v1.cni.cncf.io/networks: blue}
spec:
  containers: [{name: app, image: localhost/app}]
`, name)
}

var slot = regexp.MustCompile(`in slot \d+`)

// nics is what must stay the same of a VM: MAC and addresses of each NIC, and
// the PCI slots.
func nics(m *machine.Machine) string {
	out := slot.FindAllString(m.MustWeft("describe", "vmi", "keeper"), -1)
	for _, name := range []string{"default", "blue"} {
		nic := m.NIC("keeper", name)
		out = append(out, fmt.Sprint(name, " ", nic["mac"], " ", nic["ipAddresses"]))
	}
	return strings.Join(out, "\n")
}

// TestVMKeepsItsAddresses goes through everything that may end under a VM.
func TestVMKeepsItsAddresses(t *testing.T) {
	machine.NeedVMs(t)
	m := machine.New(t)
	m.LoadGuest()
	first := m.File(network + pod("before") + vm)
	// Killed again and again on its way, the agent still makes one machine.
	for range 4 {
		killDuring(m, time.Duration(rand.IntN(1500))*time.Millisecond, "up", "--timeout", "5s", "-f", first)
	}
	m.MustWeft("up", "-f", first)
	if got := m.Processes("qemu-system-x86_64"); len(got) != 1 {
		t.Errorf("%d machines run for one VM", len(got))
	}
	want := nics(m)
	same := func(after string) {
		t.Helper()
		if got := nics(m); got != want {
			t.Errorf("after %s the VM has\n%s\nwant\n%s", after, got, want)
		}
		m.Ping("before", m.Address("keeper", "blue"))
		m.Ping("vmi/keeper", "203.0.113.1")
	}
	same("the first start")

	// The agent dies: nobody notices.
	qemu := m.Processes("qemu-system-x86_64")
	netns := "/run/netns/" + m.Tag() + "_default_before"
	address := m.Address("keeper", "blue")
	m.Kill("weftd")
	m.Eventually("a Pod reaches the VM without an agent", func() (string, error) {
		return m.On("node", "nsenter", "--net="+netns, "ping", "-c", "1", "-W", "2", address)
	})
	m.MustWeft("up", "-f", first)
	if got := m.Processes("qemu-system-x86_64"); !slices.Equal(got, qemu) {
		t.Errorf("QEMU was %v and is %v after the agent's crash", qemu, got)
	}
	same("the agent's crash")
	if out := m.MustWeft("exec", "vmi/keeper", "--", "/bin/busybox", "udhcpc", "-f", "-q", "-n", "-i", guestLink(m), "-s", "/bin/true"); !strings.Contains(out, "lease of "+address) {
		t.Errorf("the adopted VM gets no lease of %s:\n%s", address, out)
	}

	m.MustWeft("vm", "restart", "keeper")
	m.Eventually("another machine takes over", func() (string, error) {
		if got := m.Processes("qemu-system-x86_64"); len(got) == 0 || slices.Equal(got, qemu) {
			return "", fmt.Errorf("QEMU is %v", got)
		}
		return "", nil
	})
	m.MustWeft("up", "-f", first)
	same("a restart")

	// Stopped, it keeps its addresses from others.
	m.MustWeft("vm", "stop", "keeper")
	m.Eventually("the VM stops", func() (string, error) {
		out, err := m.Weft("get", "vmi", "keeper")
		if err == nil {
			return out, fmt.Errorf("its instance is still there")
		}
		return out, nil
	})
	m.MustWeft("up", "-f", m.File(pod("during")))
	for _, ip := range m.NetworkStatus("during")["net1"].IPs {
		if strings.Contains(want, ip) {
			t.Errorf("a Pod got %s, which is the stopped VM's", ip)
		}
	}
	m.MustWeft("vm", "start", "keeper")
	m.MustWeft("up", "-f", first)
	same("a stop and start")

	m.MustWeft("down")
	if left := m.Leftovers(); len(left) > 0 {
		t.Errorf("down leaves %v", left)
	}
	m.MustWeft("up", "-f", m.File(pod("early")))
	m.MustWeft("up", "-f", first)
	same("down and up")

	m.Reboot()
	m.MustWeft("up", "-f", first)
	same("a reboot")

	// With the VM its addresses go, and not before the guest has.
	m.MustWeft("delete", "vm", "keeper")
	m.Eventually("the VM's addresses come free", func() (string, error) {
		out, err := m.Weft("up", "--timeout", "20s", "-f", m.File(strings.Replace(pod("heir"), "networks: blue", "networks: '[{\"name\": \"blue\", \"ips\": [\""+address+"\"]}]'", 1)))
		return out, err
	})
}

// killDuring runs weft and kills the agent after a while. Whether the command
// succeeds is up to that.
func killDuring(m *machine.Machine, after time.Duration, args ...string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = m.Weft(args...)
	}()
	time.Sleep(after) // the moment
	m.Kill("weftd")
	<-done
}

// guestLink is how the guest calls its NIC on network blue.
func guestLink(m *machine.Machine) string {
	name, _ := m.NIC("keeper", "blue")["interfaceName"].(string)
	return name
}

// TestCrashAtAnyMoment kills the agent while Pods come and go. Whatever it was
// at is finished or taken back, and no address is given twice.
func TestCrashAtAnyMoment(t *testing.T) {
	m := machine.New(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const pods, rounds = 6, 8
	text := network
	var names []string
	for i := range pods {
		names = append(names, fmt.Sprintf("p%d", i))
		text += pod(names[i])
	}
	all := m.File(text)
	m.MustWeft("up", "-f", all)
	for range rounds {
		gone := names[random.IntN(pods)]
		killDuring(m, time.Duration(random.IntN(100))*time.Millisecond, "delete", "pod", gone)
		killDuring(m, time.Duration(random.IntN(400))*time.Millisecond, "up", "--timeout", "5s", "-f", all)
	}
	m.MustWeft("up", "-f", all)
	holders := map[string]string{}
	for _, name := range names {
		for link, e := range m.NetworkStatus(name) {
			for _, ip := range e.IPs {
				if other, taken := holders[ip]; taken {
					t.Errorf("%s is given to %s and to %s %s", ip, other, name, link)
				}
				holders[ip] = name + " " + link
			}
		}
		for _, ip := range m.NetworkStatus(names[0])["net1"].IPs {
			m.Ping(name, ip)
		}
	}
	if n := len(m.Namespaces()); n != pods {
		t.Errorf("%d namespaces for %d Pods", n, pods)
	}
	// Nothing of what was taken and not used is held: the addresses are the lowest.
	for ip := range holders {
		addr := netip.MustParseAddr(ip)
		if b := addr.As16(); (strings.HasPrefix(ip, "10.65.") || strings.HasPrefix(ip, "fd65:")) && int(b[15]) > pods+2 {
			t.Errorf("%s is given while lower ones must be free: addresses leaked", ip)
		}
	}
}
