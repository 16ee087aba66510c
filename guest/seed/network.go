package seed

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// NIC is how one link is to be configured.
type NIC struct {
	// Name and MAC say which link it is; one of them may be empty.
	Name string
	MAC  string // lower case, colons
	// DHCP4 and DHCP6 ask for a client.
	DHCP4, DHCP6 bool
	Addrs        []netip.Prefix
	Routes       []Route
	MTU          int
	DNS, Search  []string
}

// Route of a link. Via is zero if the destination is on the link.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr
	Metric int
}

func (s *Seed) readNetwork(raw []byte) error {
	var head struct {
		Version int `json:"version"`
		Network any `json:"network"`
	}
	if err := yaml.Unmarshal(raw, &head); err != nil {
		return err
	}
	if head.Network != nil { // both versions may stand under this key
		inner, err := yaml.Marshal(head.Network)
		if err != nil {
			return err
		}
		return s.readNetwork(inner)
	}
	switch head.Version {
	case 0:
		if len(strings.TrimSpace(string(raw))) > 0 {
			s.Ignored = append(s.Ignored, "network-config without version")
		}
		return nil
	case 1:
		return s.readVersion1(raw)
	case 2:
		return s.readVersion2(raw)
	}
	return fmt.Errorf("version: %d is not supported", head.Version)
}

type version2 struct {
	Ethernets map[string]ethernet2 `json:"ethernets"`
}

type ethernet2 struct {
	Match struct {
		MACAddress string `json:"macaddress"`
		Name       string `json:"name"`
	} `json:"match"`
	MACAddress  string   `json:"macaddress"`
	DHCP4       bool     `json:"dhcp4"`
	DHCP6       bool     `json:"dhcp6"`
	Addresses   []string `json:"addresses"`
	Gateway4    string   `json:"gateway4"`
	Gateway6    string   `json:"gateway6"`
	MTU         int      `json:"mtu"`
	Nameservers struct {
		Addresses []string `json:"addresses"`
		Search    []string `json:"search"`
	} `json:"nameservers"`
	Routes []struct {
		To     string `json:"to"`
		Via    string `json:"via"`
		Metric int    `json:"metric"`
	} `json:"routes"`
}

func (s *Seed) readVersion2(raw []byte) error {
	var config version2
	if err := yaml.Unmarshal(raw, &config); err != nil {
		return err
	}
	var keys map[string]any
	if err := yaml.Unmarshal(raw, &keys); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if key != "version" && key != "ethernets" && key != "renderer" {
			s.Ignored = append(s.Ignored, "network-config key "+key)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(config.Ethernets)) {
		nic, err := config.Ethernets[id].nic(id)
		if err != nil {
			return fmt.Errorf("ethernets.%s.%w", id, err)
		}
		s.NICs = append(s.NICs, nic)
	}
	return nil
}

func (e ethernet2) nic(id string) (NIC, error) {
	nic := NIC{
		Name: e.Match.Name, DHCP4: e.DHCP4, DHCP6: e.DHCP6, MTU: e.MTU,
		DNS: e.Nameservers.Addresses, Search: e.Nameservers.Search,
	}
	var err error
	if nic.MAC, err = parseMAC(e.Match.MACAddress); err != nil {
		return nic, fmt.Errorf("match.macaddress: %w", err)
	}
	if nic.Name == "" && nic.MAC == "" {
		nic.Name = id
	}
	for i, text := range e.Addresses {
		prefix, err := parsePrefix(text)
		if err != nil {
			return nic, fmt.Errorf("addresses[%d]: %w", i, err)
		}
		nic.Addrs = append(nic.Addrs, prefix)
	}
	for _, gateway := range []string{e.Gateway4, e.Gateway6} {
		if err := nic.addDefault(gateway, 0); err != nil {
			return nic, fmt.Errorf("gateway: %w", err)
		}
	}
	for i, r := range e.Routes {
		if r.To == "default" {
			err = nic.addDefault(r.Via, r.Metric)
		} else {
			err = nic.addRoute(r.To, r.Via, r.Metric)
		}
		if err != nil {
			return nic, fmt.Errorf("routes[%d]: %w", i, err)
		}
	}
	return nic, nil
}

type version1 struct {
	Config []struct {
		Type       string    `json:"type"`
		Name       string    `json:"name"`
		MACAddress string    `json:"mac_address"`
		MTU        int       `json:"mtu"`
		Subnets    []subnet1 `json:"subnets"`
		Address    any       `json:"address"`
		Search     any       `json:"search"`
	} `json:"config"`
}

type subnet1 struct {
	Type    string `json:"type"`
	Address string `json:"address"`
	Netmask string `json:"netmask"`
	Gateway string `json:"gateway"`
	DNS     any    `json:"dns_nameservers"`
	Search  any    `json:"dns_search"`
	Routes  []struct {
		Network     string `json:"network"`
		Destination string `json:"destination"`
		Netmask     string `json:"netmask"`
		Gateway     string `json:"gateway"`
		Metric      int    `json:"metric"`
	} `json:"routes"`
}

func (s *Seed) readVersion1(raw []byte) error {
	var config version1
	if err := yaml.Unmarshal(raw, &config); err != nil {
		return err
	}
	for i, item := range config.Config {
		switch item.Type {
		case "nameserver":
			s.DNS = append(s.DNS, words(item.Address)...)
			s.Search = append(s.Search, words(item.Search)...)
		case "physical":
			mac, err := parseMAC(item.MACAddress)
			if err != nil {
				return fmt.Errorf("config[%d].mac_address: %w", i, err)
			}
			nic := NIC{Name: item.Name, MAC: mac, MTU: item.MTU}
			for j, subnet := range item.Subnets {
				if err := nic.addSubnet(subnet); err != nil {
					return fmt.Errorf("config[%d].subnets[%d].%w", i, j, err)
				}
			}
			s.NICs = append(s.NICs, nic)
		default:
			s.Ignored = append(s.Ignored, "network-config type "+item.Type)
		}
	}
	return nil
}

func (n *NIC) addSubnet(subnet subnet1) error {
	n.DNS = append(n.DNS, words(subnet.DNS)...)
	n.Search = append(n.Search, words(subnet.Search)...)
	switch subnet.Type {
	case "dhcp", "dhcp4":
		n.DHCP4 = true
		return nil
	case "dhcp6", "ipv6_dhcpv6-stateful":
		n.DHCP6 = true
		return nil
	case "manual":
		return nil
	case "static", "static6":
	default:
		return fmt.Errorf("type: %q is not supported", subnet.Type)
	}
	prefix, err := parsePrefix(withMask(subnet.Address, subnet.Netmask))
	if err != nil {
		return fmt.Errorf("address: %w", err)
	}
	n.Addrs = append(n.Addrs, prefix)
	if err := n.addDefault(subnet.Gateway, 0); err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	for i, r := range subnet.Routes {
		destination := r.Network
		if destination == "" {
			destination = r.Destination
		}
		if err := n.addRoute(withMask(destination, r.Netmask), r.Gateway, r.Metric); err != nil {
			return fmt.Errorf("routes[%d]: %w", i, err)
		}
	}
	return nil
}

func (n *NIC) addDefault(gateway string, metric int) error {
	if gateway == "" {
		return nil
	}
	via, err := netip.ParseAddr(gateway)
	if err != nil {
		return err
	}
	everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if via.Is6() {
		everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	n.Routes = append(n.Routes, Route{Dst: everything, Via: via, Metric: metric})
	return nil
}

func (n *NIC) addRoute(to, gateway string, metric int) error {
	dst, err := parsePrefix(to)
	if err != nil {
		return err
	}
	route := Route{Dst: dst.Masked(), Metric: metric}
	if gateway != "" {
		if route.Via, err = netip.ParseAddr(gateway); err != nil {
			return err
		}
	}
	n.Routes = append(n.Routes, route)
	return nil
}

// withMask puts a netmask, dotted or a length, behind an address without one.
func withMask(addr, mask string) string {
	if mask == "" || strings.Contains(addr, "/") {
		return addr
	}
	if ip, err := netip.ParseAddr(mask); err == nil && ip.Is4() {
		ones, bits := net.IPMask(ip.AsSlice()).Size()
		if bits == 0 {
			return addr + "/" + mask // not a mask: refused when parsed
		}
		mask = strconv.Itoa(ones)
	}
	return addr + "/" + mask
}

// parsePrefix reads ADDRESS/LENGTH; without a length it is the address alone.
func parsePrefix(text string) (netip.Prefix, error) {
	if !strings.Contains(text, "/") {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return netip.Prefix{}, err
		}
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	return netip.ParsePrefix(text)
}

func parseMAC(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	mac, err := net.ParseMAC(text)
	return mac.String(), err
}

// words reads what cloud-init takes as one text or a list.
func words(value any) []string {
	switch value := value.(type) {
	case string:
		return strings.Fields(value)
	case []any:
		var out []string
		for _, item := range value {
			out = append(out, fmt.Sprint(item))
		}
		return out
	}
	return nil
}
