package kind

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/netstate"
)

// rawMacvlan is the config of the macvlan plugin, v1.9.
type rawMacvlan struct {
	commonConf
	Master          string `json:"master"`
	Mode            string `json:"mode"`
	MTU             int    `json:"mtu"`
	LinkInContainer bool   `json:"linkInContainer"`
	BCQueueLen      uint32 `json:"bcqueuelen"`
}

var macvlanKeys = []string{"master", "mode", "mtu", "mac", "linkInContainer", "bcqueuelen"}

// Modes of a macvlan, as ip-link(8) has them; the first is the default.
var macvlanModes = []string{"bridge", "private", "vepa", passthru}

// passthru gives the whole of the master to one macvlan, MAC included.
const passthru = "passthru"

// macvlanConf is a parsed config of type macvlan.
type macvlanConf struct {
	parsed
	raw rawMacvlan
}

var _ Conf = (*macvlanConf)(nil)

func parseMacvlan(in Input) (Conf, error) {
	var raw rawMacvlan
	if err := decode(in.Config, &raw); err != nil {
		return nil, err
	}
	if raw.Mode == "" {
		raw.Mode = macvlanModes[0]
	}
	common, err := parseCommon(in, raw.commonConf, raw.MTU, macvlanKeys)
	errs := []error{err}
	if raw.Master != "" {
		errs = append(errs, checkLinkName("master", raw.Master))
	}
	if !slices.Contains(macvlanModes, raw.Mode) {
		errs = append(errs, &hint.Error{
			Field: "mode", Value: raw.Mode, Problem: "is no macvlan mode",
			Remedy: "use one of " + strings.Join(macvlanModes, ", "),
		})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &macvlanConf{parsed: common, raw: raw}, nil
}

// Needs asks for the master: the link of the default route if none is named.
func (c *macvlanConf) Needs() []Query { return []Query{c.query()} }

func (c *macvlanConf) query() Query {
	side := netstate.Host
	if c.raw.LinkInContainer {
		side = netstate.Pod
	}
	return Query{Side: side, Name: netstate.IfName(c.raw.Master)}
}

// Plan puts a macvlan of the master into the Pod.
func (c *macvlanConf) Plan(r Request) (Output, error) {
	master, err := c.master(r)
	if err != nil {
		return Output{}, err
	}
	mac := c.wantMAC(r)
	if c.raw.Mode == passthru && r.MAC == "" && c.mac == "" {
		mac = master.MAC // the kernel gives it the master's
	}
	link := netstate.Link{
		Name: r.IfName, Kind: netstate.KindMacvlan, Presence: netstate.Owned, Alias: r.Alias, Group: r.Group,
		MAC: mac, MTU: c.wantMTU(r), Up: true,
		Macvlan: &netstate.Macvlan{
			ParentSide: c.query().Side, Parent: master.Name, Mode: c.raw.Mode, BCQueueLen: c.raw.BCQueueLen,
		},
	}
	var out Output
	out.Plan.Pod.Links = []netstate.Link{link}
	out.Result = Result{Interfaces: []Interface{{Side: netstate.Pod, Name: r.IfName, MAC: mac}}, DNS: c.resultDNS(r)}
	if c.layer3(r) {
		c.addresses(r, &out)
	}
	return out, nil
}

// addresses plans what the link gets. Others live on the master's network, so
// duplicate address detection stays on; where the kernel can, the address is
// used meanwhile (RFC 4429) instead of waiting for the outcome.
func (c *macvlanConf) addresses(r Request, out *Output) {
	pod := &out.Plan.Pod
	detection := dadWait
	if r.Facts.OptimisticDAD {
		detection = dadUse
	}
	pod.Addrs = podAddrs(r, detection)
	pod.Routes = podRoutes(r, r.Addresses.Routes)
	pod.Sysctls = []netstate.Sysctl{linkSysctl("ipv4", r.IfName, "arp_notify", "1")}
	if !r.Facts.NoIPv6 {
		pod.Sysctls = append(pod.Sysctls, linkSysctl("ipv6", r.IfName, "ndisc_notify", "1"))
	}
	if hasIPv6(r) && detection == dadUse {
		pod.Sysctls = append(pod.Sysctls,
			linkSysctl("ipv6", r.IfName, "optimistic_dad", "1"), linkSysctl("ipv6", r.IfName, "use_optimistic", "1"))
	}
	pod.Sysctls = append(pod.Sysctls, podIPv6Sysctls(r)...)
	out.Result.IPs = resultIPs(r, 0)
	out.Result.Routes = append([]ipam.Route(nil), r.Addresses.Routes...)
}

// master finds the link to build on, and checks what the kernel would refuse
// with fewer words.
func (c *macvlanConf) master(r Request) (Link, error) {
	query := c.query()
	where := "this machine"
	if query.Side == netstate.Pod {
		where = "the Pod (linkInContainer is set)"
	}
	master, ok := r.Facts.Links[query]
	switch {
	case !ok && query.Name == "":
		return master, &hint.Error{
			Field: "master", Problem: "is not set, and " + where + " has no default route whose link could stand in",
			Remedy: `set "master" to the link to build on` + r.Facts.names(query.Side),
		}
	case !ok:
		return master, &hint.Error{
			Field: "master", Value: c.raw.Master, Problem: "there is no such link on " + where,
			Remedy: `set "master" to a link that exists` + r.Facts.names(query.Side),
		}
	case master.Name == r.IfName && query.Side == netstate.Pod:
		return master, &hint.Error{
			Field: "master", Value: string(master.Name), Problem: "is the interface to be made",
			Remedy: "name another link of the Pod",
		}
	}
	mtu := c.wantMTU(r)
	if master.MTU > 0 && mtu > master.MTU {
		return master, &hint.Error{
			Field: "mtu", Value: fmt.Sprint(mtu), Problem: fmt.Sprintf("is more than the %d of master %s", master.MTU, master.Name),
			Remedy: fmt.Sprintf("use at most %d, or leave it out to take the master's", master.MTU),
		}
	}
	if mtu == 0 {
		mtu = master.MTU
	}
	return master, checkIPv6(r, mtu)
}
