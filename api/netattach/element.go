package netattach

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/internal/hint"
)

// wire is the standard's JSON shape of a Selection, in its order of keys.
type wire struct {
	Name               string                     `json:"name"`
	Namespace          string                     `json:"namespace,omitempty"`
	IPs                []string                   `json:"ips,omitempty"`
	MAC                string                     `json:"mac,omitempty"`
	InfinibandGUID     string                     `json:"infiniband-guid,omitempty"`
	Interface          string                     `json:"interface,omitempty"`
	PortMappings       []PortMapping              `json:"portMappings,omitempty"`
	Bandwidth          *Bandwidth                 `json:"bandwidth,omitempty"`
	DeviceID           string                     `json:"deviceID,omitempty"`
	CNIArgs            map[string]json.RawMessage `json:"cni-args,omitempty"`
	DefaultRoute       []netip.Addr               `json:"default-route,omitzero"` // empty and absent differ
	IPAMClaimReference string                     `json:"ipam-claim-reference,omitempty"`
}

// MarshalJSON writes the element as the annotation has it.
func (s Selection) MarshalJSON() ([]byte, error) {
	w := wire{
		Name: s.Name, Namespace: s.Namespace, MAC: s.MAC, InfinibandGUID: s.InfinibandGUID, Interface: s.Interface,
		PortMappings: s.PortMappings, Bandwidth: s.Bandwidth, DeviceID: s.DeviceID, CNIArgs: s.CNIArgs,
		DefaultRoute: s.DefaultRoute, IPAMClaimReference: s.IPAMClaimReference,
	}
	for _, ip := range s.IPs {
		w.IPs = append(w.IPs, ip.String())
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads one element; the namespace stays empty if none is given.
func (s *Selection) UnmarshalJSON(raw []byte) error {
	parsed, err := parseElement("", raw, "")
	if err != nil {
		return err
	}
	*s = parsed
	return nil
}

// elementKeys are the keys an element may have, with their readers.
var elementKeys = []struct {
	key  string
	read func(s *Selection, field string, raw json.RawMessage) error
}{
	{"name", func(s *Selection, field string, raw json.RawMessage) (err error) {
		s.Name, err = text(field, raw)
		return err
	}},
	{"namespace", func(s *Selection, field string, raw json.RawMessage) (err error) {
		s.Namespace, err = text(field, raw)
		return err
	}},
	{"ips", readIPs},
	{"mac", readMAC},
	{"infiniband-guid", readGUID},
	{"interface", readInterface},
	{"interfaceRequest", readInterface},
	{"portMappings", readPortMappings},
	{"bandwidth", readBandwidth},
	{"deviceID", func(s *Selection, field string, raw json.RawMessage) (err error) {
		s.DeviceID, err = text(field, raw)
		return err
	}},
	{"cni-args", readCNIArgs},
	{"default-route", readDefaultRoute},
	{"ipam-claim-reference", func(s *Selection, field string, raw json.RawMessage) (err error) {
		if s.IPAMClaimReference, err = text(field, raw); err != nil || s.IPAMClaimReference == "" {
			return err
		}
		return validName(field, s.IPAMClaimReference)
	}},
}

func knownKeys() string {
	names := make([]string, len(elementKeys))
	for i, k := range elementKeys {
		names[i] = k.key
	}
	return strings.Join(names, ", ")
}

// parseElement reads one element. A field that is null counts as absent:
// clients whose structs lack omitempty write "cni-args": null.
func parseElement(field string, raw json.RawMessage, namespace string) (Selection, error) {
	s := Selection{Field: field}
	fields, err := members(field, raw)
	if err != nil {
		return s, err
	}
	var errs []error
	for _, f := range fields {
		if err := s.readKey(field, f); err != nil {
			errs = append(errs, err)
		}
	}
	if s.Namespace == "" {
		s.Namespace = namespace
	}
	errs = append(errs, validName(join(field, "name"), s.Name))
	if s.Namespace != "" {
		errs = append(errs, validNamespace(join(field, "namespace"), s.Namespace))
	}
	if len(s.IPs) > 0 && s.IPAMClaimReference != "" {
		errs = append(errs, &hint.Error{Field: join(field, "ipam-claim-reference"), Value: s.IPAMClaimReference, Problem: "stands beside ips, and both say which addresses", Remedy: "keep one of the two"})
	}
	return s, errors.Join(errs...)
}

func (s *Selection) readKey(field string, f member) error {
	for _, known := range elementKeys {
		if known.key != f.key {
			continue
		}
		if isNull(f.value) {
			return nil
		}
		return known.read(s, join(field, f.key), f.value)
	}
	if strings.Contains(f.key, ".") {
		return nil // of somebody else: the standard reserves the others (section 4.1.2.1)
	}
	return &hint.Error{Field: join(field, shown(f.key)), Value: shownJSON(f.value), Problem: "is no key of a network selection", Remedy: "known keys are " + knownKeys()}
}

func readIPs(s *Selection, field string, raw json.RawMessage) error {
	list, err := texts(field, raw)
	if err != nil {
		return err
	}
	var errs []error
	for i, item := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		ip, err := parseIPRequest(at, item)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, other := range s.IPs {
			if other.Addr == ip.Addr {
				errs = append(errs, &hint.Error{Field: at, Value: item, Problem: "is asked for twice", Remedy: "name each address once"})
			}
		}
		s.IPs = append(s.IPs, ip)
	}
	return errors.Join(errs...)
}

func parseIPRequest(field, item string) (IPRequest, error) {
	ip := IPRequest{Bits: -1}
	if strings.Contains(item, "/") {
		prefix, err := netip.ParsePrefix(item)
		if err != nil {
			return ip, &hint.Error{Field: field, Value: shown(item), Problem: "is no address with prefix length", Remedy: "write it like 10.1.2.3/24 or fd00::5/64"}
		}
		ip.Addr, ip.Bits = prefix.Addr(), prefix.Bits()
	} else {
		addr, err := netip.ParseAddr(item)
		if err != nil {
			return ip, &hint.Error{Field: field, Value: shown(item), Problem: "is no IP address", Remedy: "write it like 10.1.2.3 or 10.1.2.3/24"}
		}
		ip.Addr = addr
	}
	if a := ip.Addr; a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" || a.Is4In6() {
		return ip, &hint.Error{Field: field, Value: shown(item), Problem: "is no address an interface can have", Remedy: "write a unicast address without zone"}
	}
	return ip, nil
}

func readMAC(s *Selection, field string, raw json.RawMessage) error {
	written, err := text(field, raw)
	if err != nil || written == "" {
		return err
	}
	hw, err := net.ParseMAC(written)
	switch {
	case err == nil && len(hw) == 20: // IP over InfiniBand, RFC 4391 section 9.1.1
	case err != nil || len(hw) != 6:
		return &hint.Error{Field: field, Value: shown(written), Problem: "is no MAC address", Remedy: "give six bytes like 02:00:00:12:34:56, or the twenty of an InfiniBand link"}
	case hw[0]&1 != 0:
		return &hint.Error{Field: field, Value: written, Problem: "is a multicast address, which no link can have", Remedy: "clear the lowest bit of the first byte, as in 02:..."}
	case hw.String() == "00:00:00:00:00:00":
		return &hint.Error{Field: field, Value: written, Problem: "is all zeros, which no link can have", Remedy: "write an address or leave mac out"}
	}
	s.MAC = hw.String()
	return nil
}

func readGUID(s *Selection, field string, raw json.RawMessage) error {
	written, err := text(field, raw)
	if err != nil || written == "" {
		return err
	}
	hw, err := net.ParseMAC(written)
	if err != nil || len(hw) != 8 {
		return &hint.Error{Field: field, Value: shown(written), Problem: "is no 64-bit GUID", Remedy: "write eight bytes like c2:11:22:33:44:55:66:77"}
	}
	s.InfinibandGUID = hw.String()
	return nil
}

func readInterface(s *Selection, field string, raw json.RawMessage) error {
	name, err := text(field, raw)
	if err != nil || name == "" {
		return err
	}
	if err := validInterface(field, name); err != nil {
		return err
	}
	if s.Interface != "" && s.Interface != name {
		return &hint.Error{Field: field, Value: name, Problem: "differs from its alias, " + s.Interface, Remedy: "give interface alone"}
	}
	s.Interface = name
	return nil
}

func readPortMappings(s *Selection, field string, raw json.RawMessage) error {
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return &hint.Error{Field: field, Value: shownJSON(raw), Problem: "is " + jsonKind(raw) + " where a list is wanted", Remedy: `write [{"hostPort":8080,"containerPort":80}]`}
	}
	var errs []error
	for i, item := range items {
		pm, err := readPortMapping(fmt.Sprintf("%s[%d]", field, i), item)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.PortMappings = append(s.PortMappings, pm)
	}
	return errors.Join(errs...)
}

func readPortMapping(field string, raw json.RawMessage) (PortMapping, error) {
	var pm PortMapping
	fields, err := members(field, raw)
	if err != nil {
		return pm, err
	}
	var errs []error
	for _, f := range fields {
		at := join(field, f.key)
		var err error
		var n int64
		switch f.key {
		case "hostPort":
			n, err = whole(at, f.value, 1, math.MaxUint16)
			pm.HostPort = int(n)
		case "containerPort":
			n, err = whole(at, f.value, 1, math.MaxUint16)
			pm.ContainerPort = int(n)
		case "protocol":
			pm.Protocol, err = text(at, f.value)
			pm.Protocol = strings.ToLower(pm.Protocol)
			if err == nil && pm.Protocol != "" && pm.Protocol != "tcp" && pm.Protocol != "udp" && pm.Protocol != "sctp" {
				err = &hint.Error{Field: at, Value: shown(pm.Protocol), Problem: "is no protocol with ports", Remedy: "write tcp, udp or sctp"}
			}
		case "hostIP":
			pm.HostIP, err = text(at, f.value)
			if _, bad := netip.ParseAddr(pm.HostIP); err == nil && pm.HostIP != "" && bad != nil {
				err = &hint.Error{Field: at, Value: shown(pm.HostIP), Problem: "is no IP address", Remedy: "write an address of the node or leave hostIP out"}
			}
		default:
			err = &hint.Error{Field: at, Value: shownJSON(f.value), Problem: "is no key of a port mapping", Remedy: "known keys are hostPort, containerPort, protocol, hostIP"}
		}
		errs = append(errs, err)
	}
	if joined := errors.Join(errs...); joined != nil {
		return pm, joined
	}
	if pm.HostPort == 0 || pm.ContainerPort == 0 {
		return pm, &hint.Error{Field: field, Value: shownJSON(raw), Problem: "lacks hostPort or containerPort", Remedy: "give both"}
	}
	return pm, nil
}

func readBandwidth(s *Selection, field string, raw json.RawMessage) error {
	fields, err := members(field, raw)
	if err != nil {
		return err
	}
	var b Bandwidth
	slots := map[string]*int64{"ingressRate": &b.IngressRate, "ingressBurst": &b.IngressBurst, "egressRate": &b.EgressRate, "egressBurst": &b.EgressBurst}
	var errs []error
	for _, f := range fields {
		slot, ok := slots[f.key]
		if !ok {
			errs = append(errs, &hint.Error{Field: join(field, shown(f.key)), Value: shownJSON(f.value), Problem: "is no key of bandwidth", Remedy: "known keys are ingressRate, ingressBurst, egressRate, egressBurst"})
			continue
		}
		*slot, err = whole(join(field, f.key), f.value, 0, math.MaxInt64)
		errs = append(errs, err)
	}
	// A token bucket needs both (tc-tbf(8)); the bandwidth plugin refuses one alone.
	for _, pair := range []struct {
		name        string
		rate, burst int64
	}{{"ingress", b.IngressRate, b.IngressBurst}, {"egress", b.EgressRate, b.EgressBurst}} {
		if (pair.rate == 0) != (pair.burst == 0) {
			errs = append(errs, &hint.Error{Field: join(field, pair.name+"Burst"), Value: fmt.Sprint(pair.burst), Problem: fmt.Sprintf("does not fit %sRate %d: rate and burst need each other", pair.name, pair.rate), Remedy: "give both, in bits per second and bits"})
		}
	}
	s.Bandwidth = &b
	return errors.Join(errs...)
}

func readCNIArgs(s *Selection, field string, raw json.RawMessage) error {
	fields, err := members(field, raw)
	if err != nil {
		return err
	}
	s.CNIArgs = make(map[string]json.RawMessage, len(fields))
	for _, f := range fields {
		s.CNIArgs[f.key] = f.value
	}
	return nil
}

func readDefaultRoute(s *Selection, field string, raw json.RawMessage) error {
	list, err := texts(field, raw)
	if err != nil {
		return err
	}
	s.DefaultRoute = make([]netip.Addr, 0, len(list))
	var errs []error
	for i, item := range list {
		gw, err := netip.ParseAddr(item)
		if err != nil || gw.IsUnspecified() || gw.IsMulticast() || gw.Zone() != "" || gw.Is4In6() {
			errs = append(errs, &hint.Error{Field: fmt.Sprintf("%s[%d]", field, i), Value: shown(item), Problem: "is no gateway address", Remedy: "write an address without prefix length, like 10.1.2.1"})
			continue
		}
		s.DefaultRoute = append(s.DefaultRoute, gw)
	}
	return errors.Join(errs...)
}
