// Package examples holds manifests people can start from. Each is a test: it
// is brought up on a machine of its own, and what it promises is tried.
package examples

import (
	"strings"
	"testing"

	"github.com/weftnet/weft/test/machine"
)

func TestMain(m *testing.M) { machine.Main(m) }

func TestMultusLab(t *testing.T) {
	m := machine.New(t)
	m.MustWeft("up", "-f", machine.Example("multus-lab.yaml"))
	b := m.NetworkStatus("pod-b")
	for _, link := range []string{"eth0", "net1"} {
		m.Ping("pod-a", b[link].IPs[0])
	}
	m.NoPing("pod-c", b["net1"].IPs[0])
	if got := b["net1"].Name; got != "default/macvlan-conf" {
		t.Errorf("network-status calls net1 %q, want default/macvlan-conf", got)
	}
	if !b["eth0"].Default || b["net1"].Default {
		t.Errorf("network-status: default is %v on eth0 and %v on net1", b["eth0"].Default, b["net1"].Default)
	}
	routes := m.MustWeft("exec", "pod-a", "--", "ip", "route")
	for _, want := range []string{"default via 10.243.", "192.168.77.0/24 via 192.168.1.1 dev net1"} {
		if !strings.Contains(routes, want) {
			t.Errorf("pod-a has no route %q:\n%s", want, routes)
		}
	}
	m.Ping("pod-a", "203.0.113.1") // outside, through NAT
	m.Ping("pod-d", "192.168.1.1") // a host of the LAN, by macvlan
	if ips := m.NetworkStatus("pod-d")["third"].IPs; len(ips) != 1 || ips[0] != "10.30.0.1" {
		t.Errorf("third network of pod-d gave %v, want the lowest free address 10.30.0.1", ips)
	}
	if out := m.MustWeft("up", "-f", machine.Example("multus-lab.yaml")); strings.Contains(out, "created") || strings.Contains(out, "configured") {
		t.Errorf("a second up changes something:\n%s", out)
	}
}

func TestAMF(t *testing.T) {
	m := machine.New(t)
	m.MustWeft("up", "-f", machine.Example("5g-amf.yaml"))
	amf := m.NetworkStatus("amf")
	if got := amf["n2"].IPs; len(got) != 1 || got[0] != "10.100.2.20" {
		t.Errorf("n2 has %v, want the address asked for, 10.100.2.20", got)
	}
	m.Ping("gnb-2", "10.100.2.20")
	for _, ip := range amf["sbi"].IPs {
		m.Ping("nrf", ip)
	}
}

func TestThreeNetworks(t *testing.T) {
	machine.NeedVMs(t)
	m := machine.New(t)
	m.LoadGuest()
	m.MustWeft("up", "-f", machine.Example("three-networks.yaml"))
	for _, vm := range []string{"db", "web"} {
		for _, network := range []string{"backend", "lan"} {
			m.Ping("client", m.Address(vm, network))
			if got := m.NIC(vm, network)["infoSource"]; got != "domain, guest-agent, multus-status" {
				t.Errorf("infoSource of %s on %s is %v", vm, network, got)
			}
		}
		m.Ping("vmi/"+vm, m.NetworkStatus("client")["net1"].IPs[0])
		m.Ping("vmi/"+vm, "203.0.113.1")
	}
	if got := m.NIC("web", "lan")["mac"]; got != "02:00:00:00:1a:02" {
		t.Errorf("web has MAC %v on lan, want the one of its spec", got)
	}
	m.Eventually("outside reaches db by Pod address and port", func() (string, error) {
		return m.On("node", "busybox", "nc", "-w", "2", m.Address("db", "default"), "8080")
	})
	if xml := m.MustWeft("vm", "domxml", "db"); !strings.Contains(xml, "<domain") {
		t.Errorf("domxml prints no domain:\n%s", xml)
	}
	if out := m.MustWeft("up", "-f", machine.Example("three-networks.yaml")); strings.Contains(out, "created") {
		t.Errorf("a second up changes something:\n%s", out)
	}
}

func TestDualStack(t *testing.T) {
	machine.NeedVMs(t)
	m := machine.New(t)
	m.LoadGuest()
	m.MustWeft("up", "-f", machine.Example("dual-stack.yaml"))
	for _, ip := range m.NetworkStatus("peer")["net1"].IPs {
		m.Ping("vmi/dual", ip)
	}
	m.Ping("vmi/dual", "203.0.113.1")
	m.Ping("vmi/dual", "2001:db8:51::1")
}
