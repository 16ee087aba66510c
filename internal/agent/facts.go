package agent

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	cnitypes "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/status"
	"github.com/weftnet/weft/internal/vmnet"
)

// attached is one attachment of a record with its CNI result taken apart.
type attached struct {
	*record.Attachment
	link     record.Link // the Pod's side
	host     record.Link // the host's, if there is one
	prefixes []netip.Prefix
	gateways []netip.Addr
	routes   []netstate.Route
	dns      vmnet.DNS
}

func readAttachment(a *record.Attachment) (attached, error) {
	out := attached{Attachment: a}
	for _, link := range a.Links {
		switch {
		case link.Side == netstate.Pod && link.Name == a.Interface:
			out.link = link
		case link.Side == netstate.Host && out.host.Name == "" && link.Alias == a.Alias:
			out.host = link
		}
	}
	if len(a.Result) == 0 {
		return out, nil
	}
	var result cnitypes.Result
	if err := json.Unmarshal(a.Result, &result); err != nil {
		return out, fmt.Errorf("read CNI result of %s: %w", a.Interface, err)
	}
	for _, ip := range result.IPs {
		if ip.Interface != nil && !onLink(result.Interfaces, *ip.Interface, a.Interface) {
			continue
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			continue
		}
		bits, _ := ip.Address.Mask.Size()
		out.prefixes = append(out.prefixes, netip.PrefixFrom(addr.Unmap(), bits))
		if gateway, ok := netip.AddrFromSlice(ip.Gateway); ok {
			out.gateways = append(out.gateways, gateway.Unmap())
		}
	}
	out.routes = routesOf(result, a.Interface, out.gateways)
	for _, text := range result.DNS.Nameservers {
		if addr, err := netip.ParseAddr(text); err == nil {
			out.dns.Nameservers = append(out.dns.Nameservers, addr)
		}
	}
	out.dns.Domain, out.dns.Search = result.DNS.Domain, result.DNS.Search
	return out, nil
}

// onLink says whether a result's interface is the Pod's link.
func onLink(interfaces []*cnitypes.Interface, index int, link netstate.IfName) bool {
	return index >= 0 && index < len(interfaces) && interfaces[index].Name == string(link) && interfaces[index].Sandbox != ""
}

// routesOf gives the routes of a result. One without a next hop goes by the
// gateway of its family, as the CNI specification has it (section 5.2).
func routesOf(result cnitypes.Result, link netstate.IfName, gateways []netip.Addr) []netstate.Route {
	var routes []netstate.Route
	for _, r := range result.Routes {
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		if !ok {
			continue
		}
		bits, _ := r.Dst.Mask.Size()
		route := netstate.Route{Dst: netip.PrefixFrom(addr.Unmap(), bits), Link: link, Metric: r.Priority, MTU: r.MTU, AdvMSS: r.AdvMSS}
		if via, ok := netip.AddrFromSlice(r.GW); ok {
			route.Via = via.Unmap()
		} else if i := slices.IndexFunc(gateways, func(g netip.Addr) bool { return g.Is4() == addr.Unmap().Is4() }); i >= 0 {
			route.Via = gateways[i]
		}
		routes = append(routes, route)
	}
	return routes
}

// podLink is what the VM network planner is told of an attachment. Routes come
// from the plan where we made them, because that is what really stands (a
// default route may have been moved elsewhere), else from the result.
func podLink(a *record.Attachment) (vmnet.PodLink, error) {
	facts, err := readAttachment(a)
	if err != nil {
		return vmnet.PodLink{}, err
	}
	link := vmnet.PodLink{
		Name: a.Interface, Index: facts.link.Index, MAC: facts.link.MAC, MTU: facts.link.MTU,
		Addrs: facts.prefixes, Routes: facts.routes, DNS: facts.dns,
	}
	for _, planned := range a.Plan.Pod.Links {
		if planned.Name == a.Interface {
			link.Kind = planned.Kind
		}
	}
	if a.NativeMain {
		link.Routes = slices.DeleteFunc(slices.Clone(a.Plan.Pod.Routes), func(r netstate.Route) bool { return r.Link != a.Interface })
	}
	return link, nil
}

// podFact is what status is told of an attachment.
func podFact(a *record.Attachment) (status.PodFact, error) {
	facts, err := readAttachment(a)
	if err != nil {
		return status.PodFact{}, err
	}
	fact := status.PodFact{
		Link: string(a.Interface), HostLink: string(facts.host.Name), MAC: string(facts.link.MAC), MTU: facts.link.MTU,
		Addresses: facts.prefixes, Gateways: facts.gateways,
	}
	if a.Stage != record.Attached {
		fact.Failure = string(a.Stage) + ": " + a.Reason
	}
	return fact, nil
}

// requestsOf lists what an instance asks for, in the order of its interfaces.
func requestsOf(inst *kubevirt.Instance) []status.Request {
	var requests []status.Request
	for _, iface := range inst.Interfaces {
		if iface.State == vmnet.Absent {
			continue
		}
		network, _ := inst.Network(iface.Name) // FromVMI has checked that it is there
		source := "pod"
		if network.Multus != nil {
			namespace, name := network.Multus.Ref(inst.Namespace)
			source = namespace + "/" + name
		}
		requests = append(requests, status.Request{
			Network: iface.Name, Source: source, Binding: string(iface.Binding), PodLink: network.PodLink(),
			Primary: network.Primary(), LinkDown: iface.State == vmnet.Down,
		})
	}
	return requests
}
