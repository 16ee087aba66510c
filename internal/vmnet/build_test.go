package vmnet_test

import (
	"net/netip"
	"testing"

	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/vmnet"
	"github.com/weftnet/weft/test/golden"
)

func pfx(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func route(dst, via string, protocol int) netstate.Route {
	r := netstate.Route{Dst: netip.MustParsePrefix(dst), Protocol: protocol}
	if via != "" {
		r.Via = netip.MustParseAddr(via)
	}
	return r
}

// alias is the mark on everything the plans make.
const alias = "weft:test:vm-a"

// eth0 is the default network's link, dual stack.
func eth0() vmnet.PodLink {
	return vmnet.PodLink{
		Name: "eth0", Index: 2, MAC: "0a:58:0a:58:00:07", MTU: 1450, Kind: netstate.KindVeth,
		Addrs: pfx("10.88.0.7/16", "fd00:88::7/64"),
		Routes: []netstate.Route{
			route("10.88.0.0/16", "", 2), route("0.0.0.0/0", "10.88.0.1", 0),
			route("fd00:88::/64", "", 2), route("::/0", "fd00:88::1", 0),
		},
	}
}

func secondary(network string, kind netstate.Kind, addrs ...string) vmnet.PodLink {
	link := vmnet.PodLink{Name: vmnet.PodIfName(network), Index: 3, MAC: "0a:58:c0:a8:01:05", MTU: 1500, Kind: kind, Addrs: pfx(addrs...)}
	for _, addr := range link.Addrs {
		link.Routes = append(link.Routes, netstate.Route{Dst: addr.Masked(), Protocol: 2})
	}
	return link
}

func request(ifaces []vmnet.Interface, links ...vmnet.PodLink) vmnet.Request {
	req := vmnet.Request{
		VM:    vmnet.VM{Hostname: "vm-a", VCPUs: 2, Interfaces: ifaces},
		Links: map[string]vmnet.PodLink{}, Identities: map[string]vmnet.Identity{},
		LauncherUID: 107, Alias: alias, Group: netstate.GroupOf(alias),
		DNS: vmnet.DNS{Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")}, Search: []string{"lab.example"}},
	}
	for i := range ifaces {
		ifaces[i].NetworkIndex = i
		req.Links[ifaces[i].Network] = links[i]
		mac := links[i].MAC
		if ifaces[i].Binding == vmnet.Masquerade {
			mac = "0a:00:00:00:00:01"
		}
		req.Identities[ifaces[i].Network] = vmnet.Identity{MAC: mac, Slot: i}
	}
	return req
}

func masq(changes ...func(*vmnet.Interface)) []vmnet.Interface {
	iface := vmnet.Interface{Network: "default", Primary: true, Binding: vmnet.Masquerade}
	for _, change := range changes {
		change(&iface)
	}
	return []vmnet.Interface{iface}
}

func bridged(network string, changes ...func(*vmnet.Interface)) []vmnet.Interface {
	iface := vmnet.Interface{Network: network, Binding: vmnet.Bridge}
	for _, change := range changes {
		change(&iface)
	}
	return []vmnet.Interface{iface}
}

// cases are whole requests; the golden file of the same name holds the plan.
func cases() map[string]vmnet.Request {
	only4 := eth0()
	only4.Addrs = only4.Addrs[:1]
	only4.Routes = only4.Routes[:2]

	ports := masq(func(i *vmnet.Interface) {
		i.Ports = []vmnet.PortRange{{"tcp", 80, 80}, {"udp", 53, 53}, {"tcp", 8000, 8010}, {"tcp", 80, 80}}
		i.CIDR4, i.CIDR6 = "172.20.5.64/30", "fd20::/126"
	})
	options := request(masq(func(i *vmnet.Interface) {
		i.Model = "e1000e"
		i.BootOrder, i.ACPIIndex, i.PCIAddress = 1, 101, "0000:00:08.0"
		i.DHCP = vmnet.DHCPOptions{
			BootFile: "pxe.0", TFTP: "tftp.example", NTP: []netip.Addr{netip.MustParseAddr("192.0.2.123")},
			Private: []vmnet.PrivateOption{{Code: 224, Value: "site"}},
		}
	}), only4)
	options.VM.Subdomain = "sub"
	options.DNS = vmnet.DNS{
		Nameservers: []netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("fe80::1%eth0")},
		Search:      []string{"default.svc.cluster.local", "SVC.cluster.local.", "10.0.0.1", ".", "bad domain", "DHCP"},
	}
	withNetfilter := request(masq(), eth0())
	withNetfilter.BridgeNetfilter = true
	noIPv6 := request(append(masq(), bridged("lan")...), eth0(), secondary("lan", netstate.KindVeth, "192.168.1.5/24", "2001:db8:1::5/64"))
	noIPv6.NoIPv6, noIPv6.BridgeNetfilter = true, true
	single := false
	oneQueue := request(masq(), only4)
	oneQueue.VM.MultiQueue, oneQueue.VM.VCPUs = &single, 4

	veth := secondary("lan", netstate.KindVeth, "192.168.1.5/24")
	veth.Routes = append(veth.Routes, route("0.0.0.0/0", "192.168.1.1", 0), route("10.9.0.0/16", "192.168.1.2", 0), route("10.8.0.0/16", "172.31.0.1", 0))
	veth.DNS = vmnet.DNS{Nameservers: []netip.Addr{netip.MustParseAddr("192.168.1.53")}, Domain: "lan.example"}
	dual := secondary("lan", netstate.KindVeth, "192.168.1.5/24", "2001:db8:1::5/64", "2001:db8:1::6/64")
	dual.Routes = append(dual.Routes, route("::/0", "2001:db8:1::1", 0))
	mac := secondary("lan", netstate.KindMacvlan, "192.168.1.5/24")
	otherMAC := request(bridged("lan"), mac)
	otherMAC.Identities["lan"] = vmnet.Identity{MAC: "0a:0a:0a:0a:0a:0a", Slot: 3}

	four := []vmnet.Interface{
		{Network: "default", Primary: true, Binding: vmnet.Masquerade},
		{Network: "n3", Binding: vmnet.Bridge},
		{Network: "n4", Binding: vmnet.Bridge},
		{Network: "n6", Binding: vmnet.Bridge, State: vmnet.Down},
	}
	n3 := secondary("n3", netstate.KindMacvlan, "10.3.0.5/24")
	n4 := secondary("n4", netstate.KindVeth, "2001:db8:4::5/64")
	n6 := secondary("n6", netstate.KindVeth)
	n4.MAC, n6.MAC = "0a:58:c0:a8:04:05", "0a:58:c0:a8:06:05"
	absent := append(four[:3:3], vmnet.Interface{Network: "n6", Binding: vmnet.Bridge, State: vmnet.Absent})

	return map[string]vmnet.Request{
		"masquerade-v4":           request(masq(), only4),
		"masquerade-dual":         request(masq(), eth0()),
		"masquerade-ports":        request(ports, eth0()),
		"masquerade-options":      options,
		"masquerade-noqueues":     oneQueue,
		"masquerade-br-netfilter": withNetfilter,
		"no-ipv6":                 noIPv6,
		"masquerade-noaddr":       request(masq(), vmnet.PodLink{Name: "eth0", MAC: "0a:58:0a:58:00:07", MTU: 1500}),
		"bridge-veth":             request(bridged("lan"), veth),
		"bridge-macvlan":          request(bridged("lan"), mac),
		"bridge-dual":             request(bridged("lan"), dual),
		"bridge-noipam":           request(bridged("lan"), secondary("lan", netstate.KindVeth)),
		"bridge-other-mac":        otherMAC,
		"bridge-down":             request(bridged("lan", func(i *vmnet.Interface) { i.State = vmnet.Down }), mac),
		"four-nics":               request(four, eth0(), n3, n4, n6),
		"absent":                  request(absent, eth0(), n3, n4, n6),
	}
}

func TestGolden(t *testing.T) {
	for name, req := range cases() {
		t.Run(name, func(t *testing.T) {
			plan, err := vmnet.Build(req)
			if err != nil {
				t.Fatal(err)
			}
			golden.Check(t, name+".txt", plan.String())
		})
	}
}
