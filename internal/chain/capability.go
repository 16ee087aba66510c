package chain

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/weftnet/weft/internal/hint"
)

// Names of capabilities (CNI conventions document, "Dynamic Plugin specific
// Fields").
const (
	capIPs            = "ips"
	capMAC            = "mac"
	capInfinibandGUID = "infinibandGUID"
	capPortMappings   = "portMappings"
	capBandwidth      = "bandwidth"
	capDeviceID       = "deviceID"
	capDeviceInfo     = "CNIDeviceInfoFile" // Device Information Specification 1.1.0, section 4
)

// capabilities gives the capability arguments of a delegate, and refuses a
// request no plugin of the network is there to honour. ips and mac have a
// second way, CNI_ARGS; whether a foreign plugin took them is seen afterwards
// (honoured).
func (r *resolver) capabilities(d *Delegate) (map[string]json.RawMessage, error) {
	args := map[string]json.RawMessage{}
	if d.Default {
		for name, value := range r.RuntimeConfig {
			if d.Conf.Declares(name) {
				args[name] = value
			}
		}
	}
	s := d.Selection
	var errs []error
	set := func(name string, value any, must bool, field, remedy string) {
		if !d.Conf.Declares(name) {
			if must {
				errs = append(errs, &hint.Error{Field: s.Field + "." + field, Problem: fmt.Sprintf("no plugin of network %s declares the capability %s", d.Network, name), Remedy: remedy})
			}
			return
		}
		raw, err := json.Marshal(value)
		if err != nil {
			errs = append(errs, fmt.Errorf("encode %s: %w", name, err))
			return
		}
		args[name] = raw
	}
	if d.Device != "" {
		set(capDeviceID, d.Device, false, "", "")
	}
	if d.DeviceFile != "" {
		set(capDeviceInfo, d.DeviceFile, false, "", "")
	}
	if s == nil {
		return args, errors.Join(errs...)
	}
	if len(s.IPs) > 0 {
		texts := make([]string, len(s.IPs))
		for i, ip := range s.IPs {
			texts[i] = ip.String()
		}
		set(capIPs, texts, false, "ips", "")
	}
	if s.MAC != "" {
		set(capMAC, s.MAC, false, "mac", "")
	}
	if s.InfinibandGUID != "" {
		set(capInfinibandGUID, s.InfinibandGUID, true, "infiniband-guid", `use a network whose plugin declares "capabilities": {"infinibandGUID": true}, or drop the request`)
	}
	if len(s.PortMappings) > 0 {
		set(capPortMappings, s.PortMappings, true, "portMappings", `add {"type": "portmap", "capabilities": {"portMappings": true}} to the plugins of the network, or drop the request`)
	}
	if s.Bandwidth != nil {
		set(capBandwidth, s.Bandwidth, true, "bandwidth", `add {"type": "bandwidth", "capabilities": {"bandwidth": true}} to the plugins of the network, or drop the request`)
	}
	return args, errors.Join(errs...)
}

// notForNative refuses what no native kind can honour.
func notForNative(d *Delegate) error {
	s := d.Selection
	if s == nil {
		return nil
	}
	var errs []error
	main := d.Conf.Plugins[0]
	if s.DeviceID != "" && !d.Conf.Declares(capDeviceID) {
		errs = append(errs, &hint.Error{Field: s.Field + ".deviceID", Value: s.DeviceID, Problem: fmt.Sprintf("network %s is of type %s, which attaches no device", d.Network, main.Type), Remedy: "use a network whose plugin attaches devices, or drop the request"})
	}
	if len(s.IPs) > 0 && main.IPAMType == "" {
		errs = append(errs, &hint.Error{Field: s.Field + ".ips", Value: s.IPs[0].String(), Problem: fmt.Sprintf("network %s has no ipam, so nobody can give the address", d.Network), Remedy: `add "ipam": {"type": "static"} to the network's config, or drop the request`})
	}
	if len(s.IPs) > 0 && d.IPAM == "dhcp" {
		errs = append(errs, &hint.Error{Field: s.Field + ".ips", Value: s.IPs[0].String(), Problem: fmt.Sprintf("network %s takes its addresses by DHCP, whose server decides", d.Network), Remedy: "reserve the address for the MAC on the DHCP server, or use another ipam"})
	}
	return errors.Join(errs...)
}

// claimable refuses a claim whose addresses somebody else gives.
func claimable(d *Delegate, native bool) error {
	s := d.Selection
	if s == nil || s.IPAMClaimReference == "" || native && d.Conf.Plugins[0].IPAMType != "" && d.IPAM == "" {
		return nil
	}
	return &hint.Error{
		Field: s.Field + ".ipam-claim-reference", Value: s.IPAMClaimReference,
		Problem: fmt.Sprintf("the addresses of network %s are not given by weft, so it cannot keep them for a claim", d.Network),
		Remedy:  "use a bridge or macvlan network with ipam of type host-local, static or whereabouts, or drop the reference",
	}
}
