package chain

import (
	"errors"

	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// Status projects a sandbox's record onto the network-status annotation: one
// element per attachment that is attached, and per interface in the sandbox
// where a plugin made several. An attachment without interface or address has
// an element too, with its name alone.
func Status(sandbox *record.Sandbox) ([]netattach.NetworkStatus, error) {
	var out []netattach.NetworkStatus
	var errs []error
	for _, a := range sandbox.Attachments {
		if a.Stage != record.Attached {
			continue
		}
		result, err := Result(a)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if result == nil {
			result = &cni.Result{}
		}
		out = append(out, statusOf(a, result)...)
	}
	return out, errors.Join(errs...)
}

func statusOf(a *record.Attachment, result *cni.Result) []netattach.NetworkStatus {
	base := netattach.NetworkStatus{
		Name: a.Network, DeviceInfo: deviceInfo(a),
		DNS: netattach.DNS{Nameservers: result.DNS.Nameservers, Domain: result.DNS.Domain, Search: result.DNS.Search, Options: result.DNS.Options},
	}
	// The kernel's gateways: a result may leave them out where they are those of
	// its addresses.
	for _, r := range a.HasDefaults {
		if r.Via.IsValid() {
			base.Gateway = append(base.Gateway, r.Via.String())
		}
	}
	var out []netattach.NetworkStatus
	place := map[int]int{} // index in the result -> index in out
	for i, made := range result.Interfaces {
		if made == nil || made.Sandbox == "" {
			continue
		}
		el := base
		el.Interface, el.MAC, el.MTU = made.Name, made.Mac, made.Mtu
		if l := linkOf(a, made.Name); l != nil {
			// What the kernel says goes before what a plugin left out.
			el.MAC, el.MTU = string(l.MAC), l.MTU
		}
		place[i] = len(out)
		out = append(out, el)
	}
	if len(out) == 0 {
		// Plugins of old say nothing of interfaces: ours is known all the same.
		if l := linkOf(a, string(a.Interface)); l != nil {
			base.Interface, base.MAC, base.MTU = string(l.Name), string(l.MAC), l.MTU
		}
		out = append(out, base)
	}
	withGateway := -1
	for _, ip := range result.IPs {
		at := len(out) - 1
		if ip.Interface != nil && len(result.Interfaces) > 1 {
			known, ok := place[*ip.Interface]
			if !ok {
				continue // on a link that is not in the sandbox
			}
			at = known
		}
		out[at].IPs = append(out[at].IPs, ip.Address.IP.String())
		if ip.Gateway != nil && withGateway < 0 {
			withGateway = at
		}
	}
	if a.Default {
		out[max(withGateway, 0)].Default = true
	}
	return out
}

// linkOf gives what was observed of a link in the sandbox.
func linkOf(a *record.Attachment, name string) *record.Link {
	for i, l := range a.Links {
		if l.Side == netstate.Pod && string(l.Name) == name {
			return &a.Links[i]
		}
	}
	return nil
}

// isDefault says whether a route is a default route of the main table.
func isDefault(r *types.Route) bool {
	if r == nil || r.Table != nil && *r.Table != 0 && *r.Table != tableMain {
		return false
	}
	if r.Dst.IP == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return r.Dst.IP.IsUnspecified() && ones == 0
}

// tableMain is RT_TABLE_MAIN (include/uapi/linux/rtnetlink.h).
const tableMain = 254
