// Package netattach holds the public types of the Network Plumbing Working
// Group's de-facto standard (multi-net-spec v1.3): the network selection
// annotation of a Pod, the NetworkAttachmentDefinition and the CNI config in
// it, and the network-status annotation.
//
// It parses strictly and writes exactly; every refusal is a *hint.Error that
// names the field, the value and the remedy. It does no I/O, looks nothing up
// and decides nothing: which networks exist and what they do is internal/chain's.
package netattach

// Annotation keys of a Pod or of a NetworkAttachmentDefinition.
const (
	// NetworksAnnotation selects the networks of a Pod beside the default one.
	NetworksAnnotation = "k8s.v1.cni.cncf.io/networks"
	// StatusAnnotation tells what each network of a Pod got.
	StatusAnnotation = "k8s.v1.cni.cncf.io/network-status"
	// DefaultNetworkAnnotation replaces the default network of a Pod.
	DefaultNetworkAnnotation = "v1.multus-cni.io/default-network"
	// ResourceNameAnnotation, on a NetworkAttachmentDefinition, names the device
	// plugin resource its attachments take a device from.
	ResourceNameAnnotation = "k8s.v1.cni.cncf.io/resourceName"
)

// Group, version and kind of a NetworkAttachmentDefinition.
const (
	APIVersion = "k8s.cni.cncf.io/v1"
	Kind       = "NetworkAttachmentDefinition"
)
