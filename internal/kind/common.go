package kind

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/netstate"
)

// commonConf is what every plugin config holds.
type commonConf struct {
	DNS  rawDNS `json:"dns"`
	MAC  string `json:"mac"`
	Args struct {
		CNI struct {
			MAC string `json:"mac"`
		} `json:"cni"`
	} `json:"args"`
	RuntimeConfig struct {
		MAC string `json:"mac"`
	} `json:"runtimeConfig"`
}

type rawDNS struct {
	Nameservers []string `json:"nameservers"`
	Domain      string   `json:"domain"`
	Search      []string `json:"search"`
	Options     []string `json:"options"`
}

// commonKeys are the keys of the CNI spec and of libcni.
var commonKeys = []string{
	"cniVersion", "name", "type", "ipam", "dns", "args", "runtimeConfig", "capabilities", "prevResult",
	"cni.dev/valid-attachments", "cni.dev/attachments", "disableCheck",
	"allowPersistentIPs", // of VMs: chain and cluster read it
}

// parsed is what the configs of all kinds have in common after parsing.
type parsed struct {
	ipam     ipam.Config
	dns      ipam.DNS
	mac      netstate.MAC
	mtu      int
	warnings []string
}

// IPAM says which addresses to allocate.
func (p parsed) IPAM() ipam.Config { return p.ipam }

// Warnings are for the person who wrote the config.
func (p parsed) Warnings() []string { return p.warnings }

// parseCommon reads what all kinds share, given the kind's own keys.
func parseCommon(in Input, common commonConf, mtu int, ownKeys []string) (parsed, error) {
	out := parsed{dns: ipam.DNS(common.DNS), mtu: mtu}
	addresses, ipamErr := ipam.Parse(in.Config, in.CNIArgs)
	mac, macErr := requestedMAC(in.CNIArgs, common)
	var mtuErr error
	if mtu < 0 || mtu > maxMTU {
		mtuErr = &hint.Error{
			Field: "mtu", Value: fmt.Sprint(mtu), Problem: "is no MTU", Remedy: "use 68 to 65535 bytes, or leave it out",
		}
	}
	if err := errors.Join(ipamErr, macErr, mtuErr); err != nil {
		return out, err
	}
	out.ipam, out.mac = addresses, mac
	out.warnings = append(unknownKeys(in.Config, ownKeys), addresses.Warnings...)
	return out, nil
}

// maxMTU is what a veth or macvlan takes at most (ETH_MAX_MTU, linux/if_ether.h).
const maxMTU = 65535

// minIPv6MTU is the least IPv6 runs on (RFC 8200, section 5); the kernel takes
// IPv6 off a link with less.
const minIPv6MTU = 1280

// requestedMAC takes the MAC as the reference plugins do: config, CNI_ARGS,
// args.cni, runtimeConfig, the last one given.
func requestedMAC(cniArgs string, common commonConf) (netstate.MAC, error) {
	field, text := "mac", common.MAC
	for pair := range strings.SplitSeq(cniArgs, ";") {
		if name, value, ok := strings.Cut(pair, "="); ok && name == "MAC" && value != "" {
			field, text = "CNI_ARGS.MAC", value
		}
	}
	if mac := common.Args.CNI.MAC; mac != "" {
		field, text = "args.cni.mac", mac
	}
	if mac := common.RuntimeConfig.MAC; mac != "" {
		field, text = "runtimeConfig.mac", mac
	}
	if text == "" {
		return "", nil
	}
	return checkMAC(field, text)
}

func checkMAC(field, text string) (netstate.MAC, error) {
	mac, err := netstate.ParseMAC(text)
	if err != nil {
		return "", &hint.Error{
			Field: field, Value: text, Problem: "is no 48-bit MAC address", Remedy: "write it like 02:00:00:00:00:01",
		}
	}
	hw := mac.HardwareAddr()
	if hw[0]&1 != 0 || mac == "00:00:00:00:00:00" {
		return "", &hint.Error{
			Field: field, Value: text, Problem: "is a group or null address, which no link can have",
			Remedy: "make the first byte even and not all bytes zero, like 02:00:00:00:00:01",
		}
	}
	return mac, nil
}

// unknownKeys names the keys nobody here reads. They are no error: CNI configs
// carry keys of other tools.
func unknownKeys(conf []byte, own []string) []string {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(conf, &keys); err != nil {
		return nil // Parse has refused it already
	}
	var out []string
	for key := range keys {
		is := func(known string) bool { return strings.EqualFold(known, key) }
		if !slices.ContainsFunc(commonKeys, is) && !slices.ContainsFunc(own, is) {
			out = append(out, fmt.Sprintf("%s: is no key of this plugin type and has no effect", key))
		}
	}
	slices.Sort(out)
	return out
}

func decode(conf []byte, into any) error {
	if err := json.Unmarshal(conf, into); err != nil {
		return hint.JSON("", err)
	}
	return nil
}

// wantMAC is the MAC of the Pod's link: requested, else configured, else one
// made up from names, so that it is the same whenever it is planned.
func (p parsed) wantMAC(r Request) netstate.MAC {
	switch {
	case r.MAC != "":
		return r.MAC
	case p.mac != "":
		return p.mac
	}
	return madeUpMAC(r.Machine, r.Instance, r.Sandbox, string(r.IfName))
}

func (p parsed) wantMTU(r Request) int {
	if r.MTU > 0 {
		return r.MTU
	}
	return p.mtu
}

// madeUpMAC gives a locally administered unicast address (IEEE 802, 8.2.2)
// from names.
func madeUpMAC(names ...string) netstate.MAC {
	sum := digest(names...)
	sum[0] = sum[0]&^0x01 | 0x02
	text := hex.EncodeToString(sum[:6])
	parts := make([]string, 6)
	for i := range parts {
		parts[i] = text[2*i : 2*i+2]
	}
	return netstate.MAC(strings.Join(parts, ":"))
}

// linkName gives a host link a name of 15 bytes (IFNAMSIZ-1) from names.
func linkName(names ...string) netstate.IfName {
	sum := digest(names...)
	return netstate.IfName("weft" + hex.EncodeToString(sum[:])[:11])
}

func digest(names ...string) [sha256.Size]byte {
	return sha256.Sum256([]byte(strings.Join(names, "\x00")))
}

// dad says what is done about duplicate address detection of IPv6 addresses.
type dad int

const (
	dadOff  dad = iota
	dadWait     // it runs, and the attachment waits for the outcome
	dadUse      // it runs while the address is used (RFC 4429)
)

// podAddrs plans the addresses of the Pod's link.
func podAddrs(r Request, detection dad) []netstate.Addr {
	var out []netstate.Addr
	for _, a := range r.Addresses.Addresses {
		is6 := a.Prefix.Addr().Is6()
		out = append(out, netstate.Addr{
			Link: r.IfName, Prefix: a.Prefix, NoDAD: is6 && detection == dadOff, Settle: is6 && detection == dadWait,
		})
	}
	return out
}

// layer3 says whether the link is to have addresses.
func (p parsed) layer3(r Request) bool { return p.ipam.Type != "" || len(r.Addresses.Addresses) > 0 }

// podRoutes plans the routes of the Pod's link: one without a next hop goes
// by the first gateway of its family, if there is one; 0.0.0.0 or :: as next
// hop means none.
func podRoutes(r Request, routes []ipam.Route) []netstate.Route {
	var out []netstate.Route
	for _, route := range routes {
		n := netstate.Route{
			Dst: route.Dst, Link: r.IfName, Via: route.Via, MTU: route.MTU, AdvMSS: route.AdvMSS, Metric: route.Priority,
		}
		switch {
		case n.Via.IsValid() && n.Via.IsUnspecified():
			n.Via = netip.Addr{} // written out: on-link, whatever gateway there is
		case !n.Via.IsValid():
			for _, a := range r.Addresses.Addresses {
				if a.Gateway.IsValid() && a.Gateway.Is4() == route.Dst.Addr().Is4() {
					n.Via = a.Gateway
					break
				}
			}
		}
		if route.Table != nil {
			n.Table = *route.Table
		}
		if route.Scope != nil {
			n.Scope = uint8(*route.Scope) // 0 to 255, checked when parsed
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// hasIPv6 says whether an address of the request is IPv6.
func hasIPv6(r Request) bool {
	return slices.ContainsFunc(r.Addresses.Addresses, func(a ipam.Address) bool { return a.Prefix.Addr().Is6() })
}

// checkIPv6 refuses IPv6 addresses on a link that cannot have them.
func checkIPv6(r Request, mtu int) error {
	if !hasIPv6(r) {
		return nil
	}
	if r.Facts.NoIPv6 {
		return &hint.Error{
			Field: "ipam", Problem: "gives an IPv6 address, but this kernel has no IPv6",
			Remedy: "enable IPv6 in the kernel (boot without ipv6.disable=1), or use IPv4 ranges only",
		}
	}
	if mtu > 0 && mtu < minIPv6MTU {
		return &hint.Error{
			Field: "mtu", Value: fmt.Sprint(mtu), Problem: "is too small for the IPv6 address ipam gives",
			Remedy: fmt.Sprintf("use at least %d", minIPv6MTU),
		}
	}
	return nil
}

// linkSysctl is a setting of one link.
func linkSysctl(family string, link netstate.IfName, key, value string) netstate.Sysctl {
	return netstate.Sysctl{Path: "net/" + family + "/conf/" + string(link) + "/" + key, Value: value}
}

// podIPv6Sysctls let a link have IPv6 addresses, and keep them when it goes
// down for a moment.
func podIPv6Sysctls(r Request) []netstate.Sysctl {
	if !hasIPv6(r) {
		return nil
	}
	return []netstate.Sysctl{
		linkSysctl("ipv6", "lo", "disable_ipv6", "0"),
		linkSysctl("ipv6", r.IfName, "disable_ipv6", "0"),
		linkSysctl("ipv6", r.IfName, "keep_addr_on_down", "1"),
	}
}

// resultIPs puts all addresses on the interface of one index.
func resultIPs(r Request, index int) []IP {
	var out []IP
	for _, a := range r.Addresses.Addresses {
		out = append(out, IP{Interface: index, Address: a})
	}
	return out
}

// resultDNS prefers the network's own DNS to its IPAM's.
func (p parsed) resultDNS(r Request) ipam.DNS {
	if !p.dns.IsZero() {
		return p.dns
	}
	return r.Addresses.DNS
}

// names lists links for a remedy.
func (f Facts) names(side netstate.Side) string {
	if len(f.Names[side]) == 0 {
		return ""
	}
	var out []string
	for _, n := range f.Names[side] {
		if n != "lo" {
			out = append(out, string(n))
		}
	}
	slices.Sort(out)
	return "; there are " + strings.Join(out, ", ")
}
