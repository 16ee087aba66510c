package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// Result reads the CNI result of an attachment, in the newest version.
func Result(a *record.Attachment) (*cni.Result, error) {
	if len(a.Result) == 0 {
		return nil, nil
	}
	parsed, err := cni.NewResult(a.Result)
	if err != nil {
		return nil, fmt.Errorf("read result of %s: %w", a.Interface, err)
	}
	result, err := cni.GetResult(parsed)
	if err != nil {
		return nil, fmt.Errorf("read result of %s: %w", a.Interface, err)
	}
	return result, nil
}

// written is cni.Result for writing: to leave out an empty dns its own MarshalJSON
// reads what it wrote into a map and writes that, which takes half as long as to
// make a link.
type written struct {
	CNIVersion string           `json:"cniVersion,omitempty"`
	Interfaces []*cni.Interface `json:"interfaces,omitempty"`
	IPs        []*cni.IPConfig  `json:"ips,omitempty"`
	Routes     []*types.Route   `json:"routes,omitempty"`
	DNS        *types.DNS       `json:"dns,omitempty"`
}

// encodeResult gives a result as it is recorded.
func encodeResult(result *cni.Result) (json.RawMessage, error) {
	result.CNIVersion = cni.ImplementedSpecVersion
	out := written{CNIVersion: result.CNIVersion, Interfaces: result.Interfaces, IPs: result.IPs, Routes: result.Routes}
	if !result.DNS.IsEmpty() {
		out.DNS = &result.DNS
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode CNI result: %w", err)
	}
	return raw, nil
}

// nativeResult makes a CNI result of a native kind's. links says what the
// kernel made of the interfaces.
func nativeResult(r kind.Result, netns string, links []record.Link) *cni.Result {
	out := &cni.Result{CNIVersion: cni.ImplementedSpecVersion, DNS: types.DNS{
		Nameservers: r.DNS.Nameservers, Domain: r.DNS.Domain, Search: r.DNS.Search, Options: r.DNS.Options,
	}}
	for _, i := range r.Interfaces {
		made := &cni.Interface{Name: string(i.Name), Mac: string(i.MAC)}
		if i.Side == netstate.Pod {
			made.Sandbox = netns
		}
		for _, l := range links {
			if l.Side == i.Side && l.Name == i.Name {
				made.Mac, made.Mtu = string(l.MAC), l.MTU
			}
		}
		out.Interfaces = append(out.Interfaces, made)
	}
	for _, ip := range r.IPs {
		out.IPs = append(out.IPs, &cni.IPConfig{Interface: cni.Int(ip.Interface), Address: toIPNet(ip.Prefix), Gateway: toIP(ip.Gateway)})
	}
	for _, route := range r.Routes {
		out.Routes = append(out.Routes, &types.Route{
			Dst: toIPNet(route.Dst), GW: toIP(route.Via), MTU: route.MTU, AdvMSS: route.AdvMSS, Priority: route.Priority,
			Table: route.Table, Scope: route.Scope,
		})
	}
	return out
}

// addressesOf gives what an IPAM plugin's result says, in our types.
func addressesOf(result *cni.Result) (ipam.Result, error) {
	var out ipam.Result
	var errs []error
	for i, ip := range result.IPs {
		prefix, err := fromIPNet(ip.Address)
		if err != nil {
			errs = append(errs, fmt.Errorf("ips[%d]: %w", i, err))
			continue
		}
		out.Addresses = append(out.Addresses, ipam.Address{Prefix: prefix, Gateway: fromIP(ip.Gateway)})
	}
	for i, r := range result.Routes {
		dst, err := fromIPNet(r.Dst)
		if err != nil {
			errs = append(errs, fmt.Errorf("routes[%d]: %w", i, err))
			continue
		}
		out.Routes = append(out.Routes, ipam.Route{
			Dst: dst.Masked(), Via: fromIP(r.GW), MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table, Scope: r.Scope,
		})
	}
	out.DNS = ipam.DNS{Nameservers: result.DNS.Nameservers, Domain: result.DNS.Domain, Search: result.DNS.Search, Options: result.DNS.Options}
	return out, errors.Join(errs...)
}

func toIP(a netip.Addr) net.IP {
	if !a.IsValid() {
		return nil
	}
	return a.AsSlice()
}

func toIPNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: toIP(p.Addr()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func fromIP(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return netip.Addr{}
	}
	return a.Unmap()
}

func fromIPNet(n net.IPNet) (netip.Prefix, error) {
	a := fromIP(n.IP)
	ones, bits := n.Mask.Size()
	if a.Is4() && bits == 128 {
		ones -= 96 // a mapped address
	}
	if !a.IsValid() || bits == 0 || ones < 0 {
		return netip.Prefix{}, fmt.Errorf("%q is no address with prefix length", n.String())
	}
	return netip.PrefixFrom(a, ones), nil
}
