package kubevirt

import (
	"fmt"
	"net/netip"

	"k8s.io/apimachinery/pkg/util/validation"
	v1 "kubevirt.io/api/core/v1"
)

// maxPortRanges a masqueraded interface may have.
const maxPortRanges = 10

func validPort(n int32) bool { return n > 0 && n < 65536 }

func (v *validator) ports(field string, iface *v1.Interface, names map[string]bool) {
	for j, port := range iface.Ports {
		at := fmt.Sprintf("%s.ports[%d]", field, j)
		switch {
		case port.Port == 0:
			v.add(at+".port", "", "Port field is mandatory.", "write a port number")
		case !validPort(port.Port):
			v.add(at+".port", fmt.Sprint(port.Port), "Port field must be in range 0 < x < 65536.", "write a port number in that range")
		}
		if p := port.Protocol; p != "" && p != "TCP" && p != "UDP" {
			v.add(at+".protocol", p, "Unknown protocol, only TCP or UDP allowed", "write TCP or UDP, in capitals")
		}
		if port.Name == "" {
			continue
		}
		if names[port.Name] {
			v.add(at+".name", port.Name, "Duplicate name of the port: "+port.Name, "give each port a name of its own")
		}
		names[port.Name] = true
		if len(validation.IsValidPortName(port.Name)) > 0 {
			v.add(at+".name", port.Name, "Invalid name of the port: "+port.Name, "use at most 15 lower-case letters, digits and '-', one letter at least")
		}
	}
}

func (v *validator) portRanges(field string, iface *v1.Interface) {
	ranges := iface.PortRanges
	if len(ranges) == 0 {
		return
	}
	if len(iface.Ports) > 0 {
		v.add(field+".name", iface.Name, "Cannot define both ports and portRanges on interface", "write single ports as ranges with equal start and end")
	}
	if iface.Masquerade == nil {
		v.add(field+".name", iface.Name, "portRanges are only supported on masquerade interfaces", "take portRanges out: with this binding every port reaches the guest")
	}
	if len(ranges) > maxPortRanges {
		v.add(field+".portRanges", fmt.Sprint(len(ranges)), fmt.Sprintf("No more than %d portRanges are allowed", maxPortRanges), "join ranges, or leave ports and portRanges out to get every port")
	}
	for j, r := range ranges {
		at := fmt.Sprintf("%s.portRanges[%d]", field, j)
		if r.Protocol != "TCP" && r.Protocol != "UDP" {
			v.add(at+".protocol", r.Protocol, "Unknown protocol, only TCP or UDP allowed", "write TCP or UDP, in capitals")
		}
		switch {
		case !validPort(r.Start):
			v.add(at+".start", fmt.Sprint(r.Start), "Start must be a valid port number, 0 < x < 65536", "write a port number in that range")
		case !validPort(r.End):
			v.add(at+".end", fmt.Sprint(r.End), "End must be a valid port number, 0 < x < 65536", "write a port number in that range")
		case r.Start > r.End:
			v.add(at+".start", fmt.Sprint(r.Start), "Start must be less than or equal to end", "swap start and end")
		}
		for _, o := range ranges[:j] {
			if r.Protocol == o.Protocol && r.Start <= o.End && o.Start <= r.End {
				v.add(field+".portRanges", "", fmt.Sprintf("%s portRanges [%d-%d] and [%d-%d] overlap", r.Protocol, o.Start, o.End, r.Start, r.End), "join the two")
			}
		}
	}
}

func (v *validator) dhcp(field string, iface *v1.Interface) {
	d := iface.DHCPOptions
	if d == nil {
		return
	}
	for k, text := range d.NTPServers {
		if addr, err := netip.ParseAddr(text); err != nil || !addr.Unmap().Is4() {
			v.add(fmt.Sprintf("%s.dhcpOptions.ntpServers[%d]", field, k), text, "NTP servers must be a list of valid IPv4 addresses.", "write an IPv4 address")
		}
	}
	seen := map[int]bool{}
	for k, o := range d.PrivateOptions {
		at := fmt.Sprintf("%s.dhcpOptions.privateOptions[%d].option", field, k)
		if o.Option < 224 || o.Option > 254 {
			v.add(at, fmt.Sprint(o.Option), "provided DHCPPrivateOptions are out of range, must be in range 224 to 254", "choose a number in that range")
		}
		if seen[o.Option] {
			v.add(at, fmt.Sprint(o.Option), "Found Duplicates: you have provided duplicate DHCPPrivateOptions", "keep one option of each number")
		}
		seen[o.Option] = true
		if len(o.Value) > 255 {
			v.add(fmt.Sprintf("%s.dhcpOptions.privateOptions[%d].value", field, k), "", "is longer than the 255 bytes of a DHCP option", "shorten it")
		}
	}
	for _, text := range []struct{ key, value string }{{"bootFileName", d.BootFileName}, {"tftpServerName", d.TFTPServerName}} {
		if len(text.value) > 255 {
			v.add(field+".dhcpOptions."+text.key, "", "is longer than the 255 bytes of a DHCP option", "shorten it")
		}
	}
}
