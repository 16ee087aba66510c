package linux

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// confPlaces are the settings below /proc/sys/net/FAMILY/conf/LINK that weft asks
// for, by their place in what the kernel tells along with a link: IFLA_INET_CONF
// (IPV4_DEVCONF_*, include/uapi/linux/ip.h, less one) and IFLA_INET6_CONF
// (DEVCONF_*, include/uapi/linux/ipv6.h). To read one below /proc takes a visit
// to the namespace.
var confPlaces = map[string]map[string]int{
	"ipv4": {"arp_notify": 21, "route_localnet": 25},
	"ipv6": {
		"accept_ra": 3, "optimistic_dad": 23, "disable_ipv6": 26, "accept_dad": 27, "ndisc_notify": 29,
		"use_optimistic": 34, "keep_addr_on_down": 42, "enhanced_dad": 46,
	},
}

// Sysctl gives the setting net/FAMILY/conf/LINK/KEY of the link as it was when
// the link was read. ok is false if the kernel did not tell it.
func (l Link) Sysctl(path string) (value string, ok bool) {
	family, key, ok := strings.Cut(strings.TrimPrefix(path, "net/"), "/conf/"+string(l.Name)+"/")
	place, known := confPlaces[family][key]
	conf := l.conf6
	if family == "ipv4" {
		conf = l.conf4
	}
	if !ok || !known || len(conf) < 4*place+4 {
		return "", false
	}
	return strconv.Itoa(int(int32(number([]byte(conf[4*place : 4*place+4]))))), true
}

// afSpec reads IFLA_AF_SPEC: what the address families have to say of a link.
func (l *Link) afSpec(b []byte) {
	for family, spec := range attributes(b) {
		for kind, v := range attributes(spec) {
			switch {
			case family == unix.AF_INET && kind == unix.IFLA_INET_CONF:
				l.conf4 = string(v)
			case family == unix.AF_INET6 && kind == unix.IFLA_INET6_CONF:
				l.conf6 = string(v)
			case family == unix.AF_INET6 && kind == unix.IFLA_INET6_ADDR_GEN_MODE:
				l.AddrGenModeNone = number(v) == AddrGenModeNone
			}
		}
	}
}
