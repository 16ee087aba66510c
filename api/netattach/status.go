package netattach

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/weftnet/weft/internal/hint"
)

// NetworkStatus is one element of the network-status annotation. The types are
// the standard's own: addresses are text, because what others wrote there must
// survive being read.
type NetworkStatus struct {
	// Name is namespace/name of the NetworkAttachmentDefinition, or the CNI
	// network's name if there is none.
	Name      string `json:"name"`
	Interface string `json:"interface,omitempty"`
	// IPs without prefix length.
	IPs []string `json:"ips,omitempty"`
	MAC string   `json:"mac,omitempty"`
	MTU int      `json:"mtu,omitempty"` // bytes
	// Default is true on the Pod's default network alone.
	Default bool `json:"default,omitempty"`
	// DNS is always written, as {} if there is nothing to say.
	DNS        DNS         `json:"dns"`
	DeviceInfo *DeviceInfo `json:"device-info,omitempty"`
	Gateway    []string    `json:"gateway,omitempty"`
}

// DNS as a network gave it.
type DNS struct {
	Nameservers []string `json:"nameservers,omitempty"`
	Domain      string   `json:"domain,omitempty"`
	Search      []string `json:"search,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// DeviceInfoVersion is the version of the device information specification
// these types follow.
const DeviceInfoVersion = "1.1.0"

// DeviceInfo describes the device of an attachment. The member that fits Type
// (pci, vdpa, vhost-user, memif) is set.
type DeviceInfo struct {
	Type      string       `json:"type,omitempty"`
	Version   string       `json:"version,omitempty"`
	PCI       *PCIDevice   `json:"pci,omitempty"`
	VDPA      *VDPADevice  `json:"vdpa,omitempty"`
	VhostUser *VhostDevice `json:"vhost-user,omitempty"`
	Memif     *MemifDevice `json:"memif,omitempty"`
}

// PCIDevice is a PCI function.
type PCIDevice struct {
	PCIAddress        string `json:"pci-address,omitempty"`
	VhostNet          string `json:"vhost-net,omitempty"`
	RDMADevice        string `json:"rdma-device,omitempty"`
	PFPCIAddress      string `json:"pf-pci-address,omitempty"`
	RepresentorDevice string `json:"representor-device,omitempty"`
}

// VDPADevice is a vDPA device.
type VDPADevice struct {
	ParentDevice      string `json:"parent-device,omitempty"`
	Driver            string `json:"driver,omitempty"`
	Path              string `json:"path,omitempty"`
	PCIAddress        string `json:"pci-address,omitempty"`
	PFPCIAddress      string `json:"pf-pci-address,omitempty"`
	RepresentorDevice string `json:"representor-device,omitempty"`
}

// VhostDevice is a vhost-user socket; Mode is client or server.
type VhostDevice struct {
	Mode string `json:"mode,omitempty"`
	Path string `json:"path,omitempty"`
}

// MemifDevice is a memif socket.
type MemifDevice struct {
	Role string `json:"role,omitempty"`
	Path string `json:"path,omitempty"`
	Mode string `json:"mode,omitempty"`
}

// MarshalStatus writes the network-status annotation in the text layout that
// Multus gives it: elements indented by four spaces and joined by a bare comma.
// Tools and people compare it as text.
func MarshalStatus(list []NetworkStatus) (string, error) {
	elements := make([]string, len(list))
	for i := range list {
		out, err := json.MarshalIndent(&list[i], "", "    ")
		if err != nil {
			return "", fmt.Errorf("marshal network status of %s: %w", list[i].Name, err)
		}
		elements[i] = string(out)
	}
	return "[" + strings.Join(elements, ",") + "]", nil
}

// ParseStatus reads a network-status annotation, ours or another's. Keys nobody
// here knows are passed over: the annotation is a report, not a request.
func ParseStatus(annotation string) ([]NetworkStatus, error) {
	if strings.TrimSpace(annotation) == "" {
		return nil, nil
	}
	field := "annotation " + StatusAnnotation
	if err := document(field, []byte(annotation)); err != nil {
		return nil, err
	}
	var list []*NetworkStatus
	if err := json.Unmarshal([]byte(annotation), &list); err != nil {
		return nil, &hint.Error{Field: field, Value: shown(annotation), Problem: "is no list of network status elements", Remedy: "remove the annotation; weft writes it anew", Err: err}
	}
	out := make([]NetworkStatus, 0, len(list))
	for i, s := range list {
		if s == nil {
			return nil, &hint.Error{Field: fmt.Sprintf("%s[%d]", field, i), Value: "null", Problem: "is null where an object is wanted", Remedy: "remove the annotation; weft writes it anew"}
		}
		out = append(out, *s)
	}
	return out, nil
}
