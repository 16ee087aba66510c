package netattach

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/internal/hint"
)

// Selection is one element of the networks annotation: one attachment a Pod
// asks for.
type Selection struct {
	// Name and Namespace of the NetworkAttachmentDefinition.
	Name, Namespace string
	// IPs the attachment shall have, in order.
	IPs []IPRequest
	// MAC it shall have: 48 bits, unicast, or 160 bits of an InfiniBand link;
	// canonical text. Empty: not asked.
	MAC string
	// InfinibandGUID: 64 bits, canonical text. Empty: not asked.
	InfinibandGUID string
	// Interface is the name of the link in the Pod. Empty: net<N>. The key
	// interfaceRequest, an old alias, is read and never written.
	Interface string
	// PortMappings and Bandwidth go to the plugins that declare the capability.
	PortMappings []PortMapping
	Bandwidth    *Bandwidth
	// DeviceID of the device to attach, such as a PCI address.
	DeviceID string
	// CNIArgs are put into args.cni of the CNI config, key by key.
	CNIArgs map[string]json.RawMessage
	// DefaultRoute says that the Pod's default routes go through this attachment:
	// nil: not asked; empty: with the gateways the network itself gives; else by
	// these gateways, at most one a family.
	DefaultRoute []netip.Addr
	// IPAMClaimReference names the IPAMClaim that holds the addresses.
	IPAMClaimReference string
	// Field is where in the user's document this element stands, for hints.
	Field string
}

// IPRequest is an address asked for, with its prefix length if one was given.
type IPRequest struct {
	Addr netip.Addr
	// Bits of the prefix; -1 if the address came bare.
	Bits int
}

// String gives ADDRESS/LENGTH, or ADDRESS if it came bare.
func (r IPRequest) String() string {
	if r.Bits < 0 {
		return r.Addr.String()
	}
	return netip.PrefixFrom(r.Addr, r.Bits).String()
}

// PortMapping asks for a port of the node to lead to a port of the Pod.
type PortMapping struct {
	HostPort      int `json:"hostPort"`
	ContainerPort int `json:"containerPort"`
	// Protocol is tcp, udp or sctp; empty is tcp.
	Protocol string `json:"protocol,omitempty"`
	HostIP   string `json:"hostIP,omitempty"`
}

// Bandwidth limits, in bits per second; bursts in bits. Zero: no limit.
type Bandwidth struct {
	IngressRate  int64 `json:"ingressRate,omitempty"`
	IngressBurst int64 `json:"ingressBurst,omitempty"`
	EgressRate   int64 `json:"egressRate,omitempty"`
	EgressBurst  int64 `json:"egressBurst,omitempty"`
}

// FullName gives namespace/name.
func (s *Selection) FullName() string { return s.Namespace + "/" + s.Name }

// ParseNetworks reads the networks annotation of a Pod in namespace
// podNamespace, in the short form (ns/name@if,...) or as a JSON list. An empty
// annotation selects nothing. All errors found are returned, joined.
func ParseNetworks(annotation, podNamespace string) ([]Selection, error) {
	return parse("annotation "+NetworksAnnotation, annotation, podNamespace)
}

// ParseDefaultNetwork reads the annotation that replaces the default network:
// exactly one element; a missing namespace is defaultNamespace. Empty gives nil.
func ParseDefaultNetwork(annotation, defaultNamespace string) (*Selection, error) {
	field := "annotation " + DefaultNetworkAnnotation
	list, err := parse(field, annotation, defaultNamespace)
	if err != nil {
		return nil, err
	}
	switch {
	case annotation == "":
		return nil, nil
	case len(list) != 1:
		return nil, &hint.Error{Field: field, Value: shown(annotation), Problem: fmt.Sprintf("names %d networks where one is wanted", len(list)), Remedy: "name one network; the others belong into " + NetworksAnnotation}
	}
	return &list[0], nil
}

func parse(field, annotation, namespace string) ([]Selection, error) {
	if annotation == "" {
		return nil, nil
	}
	if strings.TrimSpace(annotation) == "" {
		return nil, &hint.Error{Field: field, Problem: "is blank", Remedy: "name a network or remove the annotation"}
	}
	var list []Selection
	var err error
	// The same test as everywhere this annotation is read: any of these three
	// characters makes it JSON.
	if strings.ContainsAny(annotation, `[{"`) || strings.TrimSpace(annotation) == "null" {
		list, err = parseJSON(field, annotation, namespace)
	} else {
		list, err = parseShort(field, annotation, namespace)
	}
	if err = errors.Join(err, distinct(list)); err != nil {
		return nil, err
	}
	return list, nil
}

// distinct checks what elements may not share: interface names, and one default
// route per family over all.
func distinct(list []Selection) error {
	var errs []error
	names := map[string]string{}
	routes := map[bool]string{}
	for i := range list {
		s := &list[i]
		if first, taken := names[s.Interface]; taken && s.Interface != "" {
			errs = append(errs, &hint.Error{Field: s.Field + ".interface", Value: s.Interface, Problem: "is already the interface of " + first, Remedy: "give each attachment an interface name of its own, or none"})
		}
		names[s.Interface] = s.Field
		for j, gw := range s.DefaultRoute {
			if first, taken := routes[gw.Is4()]; taken {
				errs = append(errs, &hint.Error{Field: fmt.Sprintf("%s.default-route[%d]", s.Field, j), Value: gw.String(), Problem: "is a second default route of its family; " + first + " is the first", Remedy: "keep one gateway per address family"})
				continue
			}
			routes[gw.Is4()] = fmt.Sprintf("%s.default-route[%d]", s.Field, j)
		}
	}
	return errors.Join(errs...)
}

// parseShort reads the comma list: [namespace/]name[@interface].
func parseShort(field, annotation, namespace string) ([]Selection, error) {
	var list []Selection
	var errs []error
	for i, item := range strings.Split(annotation, ",") {
		s := Selection{Namespace: namespace, Field: fmt.Sprintf("%s[%d]", field, i)}
		item = strings.TrimSpace(item)
		if item == "" {
			errs = append(errs, &hint.Error{Field: s.Field, Problem: "is empty", Remedy: "remove the comma too many, or name a network"})
			continue
		}
		rest, ifname, named := strings.Cut(item, "@")
		s.Name = rest
		var bad []error
		if ns, name, ok := strings.Cut(rest, "/"); ok {
			s.Namespace, s.Name = ns, name
			bad = append(bad, validNamespace(join(s.Field, "namespace"), ns))
		}
		bad = append(bad, validName(join(s.Field, "name"), s.Name))
		if named {
			s.Interface = ifname
			bad = append(bad, validInterface(join(s.Field, "interface"), ifname))
		}
		errs = append(errs, bad...)
		list = append(list, s)
	}
	return list, errors.Join(errs...)
}

// parseJSON reads the list of objects.
func parseJSON(field, annotation, namespace string) ([]Selection, error) {
	if err := document(field, []byte(annotation)); err != nil {
		return nil, err
	}
	var items []json.RawMessage
	raw := json.RawMessage(annotation)
	switch kind := jsonKind(raw); kind {
	case "a list":
		if err := json.Unmarshal(raw, &items); err != nil {
			return nil, syntax(field, raw, err)
		}
	case "an object":
		return nil, &hint.Error{Field: field, Value: shown(annotation), Problem: "is an object where a list is wanted", Remedy: "put [ ] around it"}
	default:
		return nil, &hint.Error{Field: field, Value: shown(annotation), Problem: "is " + kind + " where a list is wanted", Remedy: `write name,name or [{"name":"..."}], or remove the annotation`}
	}
	list := make([]Selection, 0, len(items))
	var errs []error
	for i, item := range items {
		s, err := parseElement(fmt.Sprintf("%s[%d]", field, i), item, namespace)
		if err != nil {
			errs = append(errs, err)
		}
		list = append(list, s)
	}
	return list, errors.Join(errs...)
}

// MarshalNetworks writes the JSON form of the networks annotation.
func MarshalNetworks(list []Selection) (string, error) {
	if list == nil {
		list = []Selection{}
	}
	out, err := json.Marshal(list)
	if err != nil {
		return "", fmt.Errorf("marshal networks: %w", err)
	}
	return string(out), nil
}
