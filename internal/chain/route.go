package chain

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// Default routes, one family at a time, over all attachments of a sandbox:
//
//	somebody gives a gateway of the family     that gateway, on that attachment; all others of the family go
//	else somebody gives an empty list and      its own ones; all others of the family go
//	  has default routes of the family
//	else                                       the first of each metric, in the order of the attachments
//
// The other family is never touched.

// isDefaultRoute says whether a planned or observed route is a default route of
// the main table.
func isDefaultRoute(r netstate.Route) bool {
	return r.Dst.Bits() == 0 && r.Dst.IsValid() && (r.Table == 0 || r.Table == tableMain)
}

// steer decides which default routes each attachment has, by the index in list.
// Unless all is made, an attachment without addresses may still get some.
func steer(list []*record.Attachment, allMade bool) ([][]netstate.Route, error) {
	wanted := make([][]netstate.Route, len(list))
	for _, v4 := range []bool{true, false} {
		if err := steerFamily(list, wanted, v4, allMade); err != nil {
			return nil, err
		}
	}
	return wanted, nil
}

func steerFamily(list []*record.Attachment, wanted [][]netstate.Route, v4, allMade bool) error {
	keeper := -1
	for i, a := range list {
		if a.Selection == nil || a.Selection.DefaultRoute == nil {
			continue
		}
		for j, gw := range a.Selection.DefaultRoute {
			if gw.Is4() != v4 {
				continue
			}
			subnets := addressesIn(a)
			if len(subnets) > 0 || allMade {
				if err := reachable(a, j, gw, subnets); err != nil {
					return err
				}
			}
			wanted[i] = append(wanted[i], gatewayRoute(a, gw))
			return nil
		}
		if keeper < 0 && len(a.Selection.DefaultRoute) == 0 && len(ofFamily(a.Defaults, v4)) > 0 {
			keeper = i
		}
	}
	if keeper >= 0 {
		wanted[keeper] = append(wanted[keeper], ofFamily(list[keeper].Defaults, v4)...)
		return nil
	}
	metrics := map[int]bool{}
	for i, a := range list {
		for _, r := range ofFamily(a.Defaults, v4) {
			if !metrics[metricOf(r)] {
				metrics[metricOf(r)] = true
				wanted[i] = append(wanted[i], r)
			}
		}
	}
	return nil
}

// metricOf spells out the metric the kernel gives an IPv6 route that has none
// (IP6_RT_PRIO_USER, include/uapi/linux/ipv6_route.h).
func metricOf(r netstate.Route) int {
	if r.Metric == 0 && r.Dst.Addr().Is6() {
		return 1024
	}
	return r.Metric
}

func ofFamily(routes []netstate.Route, v4 bool) []netstate.Route {
	var out []netstate.Route
	for _, r := range routes {
		if r.Dst.Addr().Is4() == v4 {
			out = append(out, r)
		}
	}
	return out
}

// gatewayRoute is the default route by gw: the network's own one if it has that.
func gatewayRoute(a *record.Attachment, gw netip.Addr) netstate.Route {
	for _, r := range a.Defaults {
		if r.Via == gw {
			return r
		}
	}
	dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if gw.Is6() {
		dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netstate.Route{Dst: dst, Link: a.Interface, Via: gw}
}

// reachable refuses a gateway that is in no subnet of the attachment: the
// kernel would say "network is unreachable" and no more.
func reachable(a *record.Attachment, j int, gw netip.Addr, addresses []netip.Prefix) error {
	if gw.IsLinkLocalUnicast() {
		return nil
	}
	var subnets []string
	for _, p := range addresses {
		if p.Masked().Contains(gw) {
			return nil
		}
		subnets = append(subnets, p.Masked().String())
	}
	problem := fmt.Sprintf("the interface has no address, so no gateway can be reached by network %s", a.Network)
	if len(subnets) > 0 {
		problem = fmt.Sprintf("is in no subnet of network %s (%s)", a.Network, strings.Join(subnets, ", "))
	}
	return &hint.Error{Field: fmt.Sprintf("%s.default-route[%d]", a.Selection.Field, j), Value: gw.String(), Problem: problem, Remedy: "name a gateway on that network"}
}

// addressesIn lists the addresses of an attachment: planned, or of its result.
func addressesIn(a *record.Attachment) []netip.Prefix {
	var out []netip.Prefix
	for _, addr := range a.Plan.Pod.Addrs {
		out = append(out, addr.Prefix)
	}
	if len(out) > 0 {
		return out
	}
	result, err := Result(a)
	if err != nil || result == nil {
		return nil
	}
	for _, ip := range result.IPs {
		if p, err := fromIPNet(ip.Address); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// planDefaults puts the wanted default routes into a plan that is not applied
// yet, in place of its own.
func planDefaults(a *record.Attachment, wanted []netstate.Route) {
	if len(a.Plan.Pod.Addrs) == 0 {
		wanted = nil // a foreign IPAM has not been asked yet
	}
	a.Plan.Pod.Routes = append(slices.DeleteFunc(slices.Clone(a.Plan.Pod.Routes), isDefaultRoute), wanted...)
	a.HasDefaults = wanted
}

// changeDefaults gives the change of kernel state that leads attachments which
// are made from the default routes they have to those wanted; settle then makes
// plans and results say so.
func (l *look) changeDefaults(list []*record.Attachment, wanted [][]netstate.Route) (last, want netstate.Plan, settle func() error, err error) {
	var changed []int
	for i, a := range list {
		if slices.Equal(a.HasDefaults, wanted[i]) {
			continue
		}
		changed = append(changed, i)
		rewired, err := l.rewired(a)
		if err != nil {
			return last, want, nil, err
		}
		if len(a.Moved) > 0 || len(rewired) > 0 {
			continue // a guest has the addresses, and its own routes
		}
		link := netstate.Link{Name: a.Interface, Presence: netstate.Existing}
		last.Pod.Links, want.Pod.Links = append(last.Pod.Links, link), append(want.Pod.Links, link)
		last.Pod.Routes, want.Pod.Routes = append(last.Pod.Routes, a.HasDefaults...), append(want.Pod.Routes, wanted[i]...)
	}
	return last, want, func() error {
		for _, i := range changed {
			if err := setDefaults(list[i], wanted[i]); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// setDefaults makes plan and result of an attachment say which default routes
// it has.
func setDefaults(a *record.Attachment, wanted []netstate.Route) error {
	result, err := Result(a)
	if err != nil {
		return err
	}
	if result != nil {
		resultDefaults(result, a.HasDefaults, wanted)
		if a.Result, err = encodeResult(result); err != nil {
			return err
		}
	}
	if a.NativeMain {
		planDefaults(a, wanted)
	}
	a.HasDefaults = wanted
	return nil
}

// resteer makes the default routes of a sandbox what steer says, in the kernel,
// the plans and the results.
func (e *Engine) resteer(ctx context.Context, box *record.Sandbox) error {
	var list []*record.Attachment
	for _, a := range box.Attachments {
		if a.Stage == record.Attached || a.Stage == record.Intent {
			list = append(list, a) // the others are on their way out
		}
	}
	wanted, err := steer(list, true)
	if err != nil {
		return err
	}
	eyes := e.look(box.NetNS)
	defer eyes.close()
	last, want, settle, err := eyes.changeDefaults(list, wanted)
	if err != nil {
		return err
	}
	if len(want.Pod.Links) > 0 {
		if _, err := e.Dataplane.Replace(ctx, box.NetNS, last, want); err != nil {
			return fmt.Errorf("set default routes: %w", err)
		}
	}
	return settle()
}

// resultDefaults makes a result say what default routes there are: own are
// those it was made with.
func resultDefaults(result *cni.Result, own, wanted []netstate.Route) {
	if slices.Equal(own, wanted) {
		return // untouched, so that it stays as the plugin wrote it
	}
	kept := result.Routes[:0:0]
	said := map[netstate.Route]bool{}
	for _, r := range result.Routes {
		if !isDefault(r) {
			kept = append(kept, r)
			continue
		}
		// One that stands keeps what the plugin said of it.
		i := slices.IndexFunc(wanted, func(w netstate.Route) bool { return sameDefault(w, r) })
		if i >= 0 && !said[wanted[i]] {
			said[wanted[i]] = true
			kept = append(kept, r)
		}
	}
	for _, w := range wanted {
		if !said[w] {
			kept = append(kept, &types.Route{Dst: toIPNet(w.Dst), GW: toIP(w.Via), MTU: w.MTU, AdvMSS: w.AdvMSS, Priority: w.Metric})
		}
	}
	result.Routes = kept
}

// sameDefault says whether a result's default route is that one. A route
// without gateway goes by the one of its address, so it matches any.
func sameDefault(w netstate.Route, r *types.Route) bool {
	v4 := r.Dst.IP == nil || r.Dst.IP.To4() != nil
	if r.GW != nil {
		v4 = r.GW.To4() != nil
	}
	if v4 != w.Dst.Addr().Is4() {
		return false
	}
	gw := fromIP(r.GW)
	return gw == w.Via || !gw.IsValid()
}
