package kind

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/nft"
)

// defaultBridge is the bridge of a config that names none, as the reference
// plugin has it.
const defaultBridge = "cni0"

// rawBridge is the config of the bridge plugin, v1.9.
type rawBridge struct {
	commonConf
	Bridge                    string      `json:"bridge"`
	IsGateway                 bool        `json:"isGateway"`
	IsDefaultGateway          bool        `json:"isDefaultGateway"`
	ForceAddress              bool        `json:"forceAddress"`
	IPMasq                    bool        `json:"ipMasq"`
	IPMasqBackend             *string     `json:"ipMasqBackend"`
	MTU                       int         `json:"mtu"`
	HairpinMode               bool        `json:"hairpinMode"`
	PromiscMode               bool        `json:"promiscMode"`
	VLAN                      int         `json:"vlan"`
	VLANTrunk                 []vlanTrunk `json:"vlanTrunk"`
	PreserveDefaultVLAN       bool        `json:"preserveDefaultVlan"`
	MACSpoofChk               bool        `json:"macspoofchk"`
	EnableDAD                 bool        `json:"enabledad"`
	DisableContainerInterface bool        `json:"disableContainerInterface"`
	PortIsolation             bool        `json:"portIsolation"`
}

var bridgeKeys = []string{
	"bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "mtu", "hairpinMode",
	"promiscMode", "vlan", "vlanTrunk", "preserveDefaultVlan", "macspoofchk", "enabledad",
	"disableContainerInterface", "portIsolation", "mac",
}

// bridgeConf is a parsed config of type bridge.
type bridgeConf struct {
	parsed
	raw   rawBridge
	name  netstate.IfName
	vlans *netstate.PortVLANs // of the Pod's port; nil: no VLANs
}

var _ Conf = (*bridgeConf)(nil)

func parseBridge(in Input) (Conf, error) {
	raw := rawBridge{Bridge: defaultBridge}
	if err := decode(in.Config, &raw); err != nil {
		return nil, err
	}
	if raw.Bridge == "" {
		raw.Bridge = defaultBridge
	}
	common, err := parseCommon(in, raw.commonConf, raw.MTU, bridgeKeys)
	vlans, vlanErr := raw.portVLANs()
	if err := errors.Join(err, raw.check(common), vlanErr); err != nil {
		return nil, err
	}
	raw.IsGateway = raw.IsGateway || raw.IsDefaultGateway
	if raw.IsGateway {
		// The bridge will have that address: nobody else may.
		common.ipam = common.ipam.ImplyGateways()
	}
	return &bridgeConf{parsed: common, raw: raw, name: netstate.IfName(raw.Bridge), vlans: vlans}, nil
}

func (b rawBridge) check(common parsed) error {
	errs := []error{checkLinkName("bridge", b.Bridge)}
	if common.ipam.Type != "" && b.DisableContainerInterface {
		errs = append(errs, &hint.Error{
			Field: "disableContainerInterface", Value: "true", Problem: "a disabled interface can have no addresses, but ipam is set",
			Remedy: "remove ipam, or disableContainerInterface",
		})
	}
	if b.HairpinMode && b.PromiscMode {
		errs = append(errs, &hint.Error{
			Field: "promiscMode", Value: "true", Problem: "hairpinMode is set too, and both send a Pod's packets back to it twice",
			Remedy: "keep one of the two",
		})
	}
	if backend := b.IPMasqBackend; backend != nil && *backend != "nftables" && *backend != "iptables" {
		errs = append(errs, &hint.Error{
			Field: "ipMasqBackend", Value: *backend, Problem: "is no backend",
			Remedy: "leave it out: weft masquerades with nftables",
		})
	}
	return errors.Join(errs...)
}

// checkLinkName refuses what the kernel refuses as a link name (dev_valid_name,
// net/core/dev.c).
func checkLinkName(field, name string) error {
	bad := name == "." || name == ".."
	for _, r := range name {
		bad = bad || r == '/' || r == ':' || r <= ' ' || r == 0x7f
	}
	if bad || name == "" || len(name) > 15 {
		return &hint.Error{
			Field: field, Value: name, Problem: "is no link name",
			Remedy: "use 1 to 15 bytes without space, slash or colon",
		}
	}
	return nil
}

// Needs asks for the bridge.
func (c *bridgeConf) Needs() []Query { return []Query{c.query()} }

func (c *bridgeConf) query() Query {
	return Query{Side: netstate.Host, Name: c.name, Addrs: c.raw.IsGateway}
}

// Plan attaches a veth pair to the bridge.
func (c *bridgeConf) Plan(r Request) (Output, error) {
	if c.raw.IsGateway {
		r.Addresses = r.Addresses.ImplyGateways() // those of a foreign IPAM may lack them
	}
	there, exists := r.Facts.Links[c.query()]
	if exists && there.Kind != netstate.KindBridge {
		return Output{}, &hint.Error{
			Field: "bridge", Value: string(c.name), Problem: fmt.Sprintf("is a link of kind %s, no bridge", there.Kind),
			Remedy: "name another bridge, or remove that link",
		}
	}
	if err := checkIPv6(r, c.wantMTU(r)); err != nil {
		return Output{}, err
	}
	p := bridgePlan{conf: c, req: r, there: there, exists: exists, ours: !exists || there.Alias == r.SharedAlias}
	p.mac, p.port = c.wantMAC(r), hostVeth(r)
	p.bridge()
	p.veth()
	if c.layer3(r) {
		p.addresses()
		if err := p.gateway(); err != nil {
			return Output{}, err
		}
	}
	p.spoofCheck()
	p.result()
	return p.out, nil
}

// hostVeth names the host's end of an attachment's veth pair.
func hostVeth(r Request) netstate.IfName {
	return linkName("veth", r.Instance, r.Sandbox, string(r.IfName))
}

// bridgePlan is one plan in the making.
type bridgePlan struct {
	conf   *bridgeConf
	req    Request
	there  Link // the bridge, if it exists
	exists bool
	ours   bool // the bridge is made by us, now or before
	mac    netstate.MAC
	port   netstate.IfName
	out    Output
	routes []ipam.Route
	gws    []netip.Prefix // addresses of the bridge
}

func (p *bridgePlan) host() *netstate.State { return &p.out.Plan.Host }
func (p *bridgePlan) pod() *netstate.State  { return &p.out.Plan.Pod }

// bridge plans the bridge itself. Its MAC is set, because a bridge without one
// of its own takes that of a port and so changes it as Pods come and go.
func (p *bridgePlan) bridge() {
	br := netstate.Link{
		Name: p.conf.name, Kind: netstate.KindBridge, Presence: netstate.Shared, Alias: p.req.SharedAlias, Up: true,
	}
	if p.ours {
		br.MAC = p.bridgeMAC()
	}
	if !p.exists {
		br.MTU = p.conf.wantMTU(p.req)
	}
	if p.conf.raw.PromiscMode {
		br.Promisc = ptr(true)
	}
	if p.conf.vlans != nil {
		br.Bridge = &netstate.Bridge{VLANFiltering: ptr(true)}
	}
	p.host().Links = append(p.host().Links, br)
	if p.ours && !p.req.Facts.NoIPv6 {
		p.host().Sysctls = append(p.host().Sysctls, linkSysctl("ipv6", br.Name, "accept_ra", "0"))
	}
}

func (p *bridgePlan) bridgeMAC() netstate.MAC {
	if p.ours {
		return madeUpMAC("bridge", p.req.Machine, p.req.Instance, string(p.conf.name))
	}
	return p.there.MAC
}

func (p *bridgePlan) veth() {
	r, raw := p.req, p.conf.raw
	host := netstate.Link{
		Name: p.port, Kind: netstate.KindVeth, Presence: netstate.Owned, Alias: r.Alias, Group: r.Group,
		MAC: madeUpMAC("veth", r.Machine, r.Instance, r.Sandbox, string(r.IfName)),
		MTU: p.conf.wantMTU(r), Up: true, Master: p.conf.name, Port: p.portSettings(),
		Veth: &netstate.Veth{PeerSide: netstate.Pod, PeerName: r.IfName},
	}
	pod := netstate.Link{
		Name: r.IfName, Kind: netstate.KindVeth, Presence: netstate.Owned, Alias: r.Alias, Group: r.Group,
		MAC: p.mac, MTU: p.conf.wantMTU(r), Up: !raw.DisableContainerInterface,
		Veth: &netstate.Veth{PeerSide: netstate.Host, PeerName: p.port},
	}
	p.host().Links = append(p.host().Links, host)
	p.pod().Links = append(p.pod().Links, pod)
	if !r.Facts.NoIPv6 {
		p.host().Sysctls = append(p.host().Sysctls, linkSysctl("ipv6", p.port, "accept_ra", "0"))
	}
}

// portSettings names only what differs from a new port's, which saves a
// message to the kernel.
func (p *bridgePlan) portSettings() *netstate.Port {
	port := netstate.Port{VLANs: p.conf.vlans}
	if p.conf.raw.HairpinMode {
		port.Hairpin = ptr(true)
	}
	if p.conf.raw.PortIsolation {
		port.Isolated = ptr(true)
	}
	if port == (netstate.Port{}) {
		return nil
	}
	return &port
}

// addresses plans what the Pod's end gets, as the reference plugin does:
// without duplicate address detection unless enabledad says so.
func (p *bridgePlan) addresses() {
	r, pod := p.req, p.pod()
	detection := dadOff
	if p.conf.raw.EnableDAD {
		detection = dadWait
	}
	pod.Addrs = podAddrs(r, detection)
	pod.Sysctls = append(pod.Sysctls, linkSysctl("ipv4", r.IfName, "arp_notify", "1"))
	if !r.Facts.NoIPv6 {
		if p.conf.raw.EnableDAD {
			pod.Sysctls = append(pod.Sysctls, linkSysctl("ipv6", r.IfName, "enhanced_dad", "1"))
			pod.Sysctls = append(pod.Sysctls, linkSysctl("ipv6", r.IfName, "accept_dad", "1"))
		} else {
			pod.Sysctls = append(pod.Sysctls, linkSysctl("ipv6", r.IfName, "accept_dad", "0"))
		}
	}
	pod.Sysctls = append(pod.Sysctls, podIPv6Sysctls(r)...)
	p.routes = slices.Clone(r.Addresses.Routes)
	if p.conf.raw.IsDefaultGateway {
		p.defaultRoutes()
	}
	pod.Routes = podRoutes(r, p.routes)
	if p.conf.raw.IPMasq {
		for _, a := range r.Addresses.Addresses {
			if subnet := a.Prefix.Masked(); !slices.Contains(p.out.Masquerade, subnet) {
				p.out.Masquerade = append(p.out.Masquerade, subnet)
			}
		}
	}
}

// defaultRoutes adds the default route of each family by its first gateway,
// unless the config brings one.
func (p *bridgePlan) defaultRoutes() {
	for _, a := range p.req.Addresses.Addresses {
		dst := anyPrefix(a.Prefix.Addr())
		has := func(r ipam.Route) bool { return r.Dst == dst && r.Table == nil }
		if !slices.ContainsFunc(p.routes, has) {
			p.routes = append(p.routes, ipam.Route{Dst: dst, Via: a.Gateway})
		}
	}
}

// anyPrefix is the default destination of an address's family.
func anyPrefix(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// gateway gives the bridge the gateways' addresses and turns forwarding on.
func (p *bridgePlan) gateway() error {
	if !p.conf.raw.IsGateway {
		return nil
	}
	on := p.conf.name
	if p.conf.raw.VLAN != 0 {
		on = p.vlanGateway()
	}
	for _, a := range p.req.Addresses.Addresses {
		if !a.Gateway.IsValid() {
			continue // a subnet of one address has no room for one
		}
		if a.Gateway == a.Prefix.Addr() {
			return &hint.Error{
				Field: "ipam", Value: a.Prefix.String(), Problem: "is the address the bridge gets, because isGateway is set and no other gateway is",
				Remedy: "give the address another gateway, or choose another address",
			}
		}
		gw := netip.PrefixFrom(a.Gateway, a.Prefix.Bits())
		if slices.Contains(p.gws, gw) {
			continue
		}
		p.gws = append(p.gws, gw)
		p.host().Addrs = append(p.host().Addrs, netstate.Addr{Link: on, Prefix: gw, Shared: true})
		p.host().Sysctls = appendOnce(p.host().Sysctls, forwarding(a.Prefix.Addr()))
	}
	if on != p.conf.name {
		return nil
	}
	return p.displaced()
}

func appendOnce[T comparable](list []T, v T) []T {
	if slices.Contains(list, v) {
		return list
	}
	return append(list, v)
}

func forwarding(a netip.Addr) netstate.Sysctl {
	if a.Is4() {
		return netstate.Sysctl{Path: "net/ipv4/ip_forward", Value: "1"}
	}
	return netstate.Sysctl{Path: "net/ipv6/conf/all/forwarding", Value: "1"}
}

// displaced finds addresses on the bridge that are in the way of the
// gateways': any other IPv4 address, and IPv6 ones of an overlapping subnet.
func (p *bridgePlan) displaced() error {
	for _, have := range p.there.Addrs {
		inTheWay := func(gw netip.Prefix) bool {
			return gw.Addr().Is4() == have.Addr().Is4() && (gw.Addr().Is4() || gw.Masked().Overlaps(have.Masked()))
		}
		if slices.Contains(p.gws, have) || !slices.ContainsFunc(p.gws, inTheWay) {
			continue
		}
		if !p.conf.raw.ForceAddress {
			return &hint.Error{
				Field: "bridge", Value: string(p.conf.name),
				Problem: fmt.Sprintf("has the address %s already, and isGateway wants %s", have, p.gws[0]),
				Remedy:  `use the same subnet and gateway on every network of this bridge, name another bridge, or set "forceAddress": true to replace the address`,
			}
		}
		p.out.Remove = append(p.out.Remove, netstate.Addr{Link: p.conf.name, Prefix: have})
	}
	return nil
}

// spoofCheck drops what the Pod sends with another source MAC.
func (p *bridgePlan) spoofCheck() {
	if !p.conf.raw.MACSpoofChk {
		return
	}
	p.host().Tables = append(p.host().Tables, nft.Table{
		Family: nft.Bridge, Name: string(p.port), Alias: p.req.Alias,
		Chains: []nft.Chain{{
			Name: "prerouting", Type: "filter", Hook: "prerouting", Priority: bridgeDstnat,
			Rules: []nft.Rule{nft.Rule(fmt.Sprintf("iifname %q ether saddr != %s drop", p.port, p.mac))},
		}},
	})
}

// bridgeDstnat is where the reference plugin puts its check (NF_BR_PRI_NAT_DST_BRIDGED,
// include/uapi/linux/netfilter_bridge.h).
const bridgeDstnat = -300

// result tells of the bridge, the host's end and the Pod's, in that order.
func (p *bridgePlan) result() {
	hostMAC := p.host().Links[1].MAC
	p.out.Result = Result{
		Interfaces: []Interface{
			{Side: netstate.Host, Name: p.conf.name, MAC: p.bridgeMAC()},
			{Side: netstate.Host, Name: p.port, MAC: hostMAC},
			{Side: netstate.Pod, Name: p.req.IfName, MAC: p.mac},
		},
		IPs: resultIPs(p.req, 2), Routes: p.routes, DNS: p.conf.resultDNS(p.req),
	}
	for _, l := range p.host().Links[2:] {
		if l.Name == p.vlanLink() {
			p.out.Result.Interfaces = append(p.out.Result.Interfaces, Interface{Side: netstate.Host, Name: l.Name, MAC: l.MAC})
		}
	}
}

func ptr[T any](v T) *T { return &v }
