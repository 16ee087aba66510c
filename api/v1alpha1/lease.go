package v1alpha1

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// AddressLeaseKind is the kind of AddressLease.
var AddressLeaseKind = GroupVersion.WithKind("AddressLease")

// AddressLease says who holds an address that is unique in the cluster. It is
// cluster-scoped, and its name is made of scope and address (lease.Name): that
// there is one of that name is the lock.
type AddressLease struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec AddressLeaseSpec `json:"spec"`
}

// AddressLeaseSpec is the content of a lease.
type AddressLeaseSpec struct {
	IP netip.Addr `json:"ip"`
	// Scope is where the address is held once, see ipam.Scope; Pool the subnet it
	// was taken from, empty for a static address outside all of them.
	Scope string `json:"scope"`
	Pool  string `json:"pool,omitempty"`
	// Network is the NetworkAttachmentDefinition, Interface and Sandbox have the
	// address, and Node gives it back; they are empty if it is a claim's, whose Holders
	// have it.
	Network   string     `json:"network,omitempty"`
	Interface string     `json:"interface,omitempty"`
	Sandbox   string     `json:"sandbox,omitempty"`
	Node      string     `json:"node,omitempty"`
	Owner     LeaseOwner `json:"owner"`
	// Journal is where a node that keeps the address ahead of its Pods writes down who
	// gets it: a boot of the node, and its records.
	Journal string `json:"journal,omitempty"`
	// Of is how many addresses a claim gets together.
	Of int `json:"of,omitempty"`
	// StickyFor is for how many seconds a name keeps the address without a Pod.
	StickyFor int `json:"stickyFor,omitempty"`
	// Holders are the Pods that have the address of a claim, in the order in which
	// they came: several while a VM migrates.
	Holders []LeaseHolder `json:"holders,omitempty"`
	// Untried: no Pod has used the address of a claim yet. The one that is to asks first
	// whether a stranger does; then it is not the claim's.
	Untried bool `json:"untried,omitempty"`
	// Since is when a stranger was found to use the address; of owner Quarantine only.
	Since time.Time `json:"since,omitzero"`
}

// LeaseHolder is a Pod that has the address of a claim. A sandbox that ends takes its
// own entry away, which is not that of the Pod's next sandbox.
type LeaseHolder struct {
	Pod    string    `json:"pod,omitempty"`
	PodUID types.UID `json:"podUID,omitempty"`
	// VM is the machine whose launcher the Pod is.
	VM        string `json:"vm,omitempty"`
	Node      string `json:"node"`
	Sandbox   string `json:"sandbox"`
	Interface string `json:"interface,omitempty"`
}

// LeaseOwner is whose an address is.
type LeaseOwner struct {
	// Kind is one of the Owner constants.
	Kind      string    `json:"kind"`
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name,omitempty"`
	UID       types.UID `json:"uid,omitempty"`
}

// Kinds of owners. A Pod's address goes with its sandbox, the others' outlive it.
// What a Node took ahead of its Pods is a Pod's once NodeAddresses tells so.
const (
	OwnerPod   = "Pod"
	OwnerClaim = "IPAMClaim"
	OwnerNIC   = "NICIdentity"
	// OwnerQuarantine has an address that is given to nobody, because somebody uses it
	// without a lease; the owner's name is that station's link-layer address.
	OwnerQuarantine = "Quarantine"
	// OwnerWhereabouts is of an address that Whereabouts gave to what was not found, or
	// about which its objects disagree; the name is that which stands there.
	OwnerWhereabouts = "Whereabouts"
	OwnerNode        = "Node"
	// OwnerSticky is a Pod's name, such as a StatefulSet gives again and again: the
	// address is kept for the next Pod of that name.
	OwnerSticky = "StickyPod"
)

// Labels of a lease, by which the API server selects.
const (
	NodeLabel     = "weft.network/node"
	PoolLabel     = "weft.network/pool"
	OwnerUIDLabel = "weft.network/owner-uid"
	StickyLabel   = "weft.network/sticky"
	// ImportedLabel is on the leases of what Whereabouts gave.
	ImportedLabel = "weft.network/imported"
	// ReservedLabel is on those whose address is reserved as Whereabouts does, which
	// gives addresses at the same time.
	ReservedLabel = "weft.network/reserved"
)

// LeaseFromObject reads a lease.
func LeaseFromObject(obj *unstructured.Unstructured) (*AddressLease, error) {
	text, err := json.Marshal(obj.Object["spec"])
	if err != nil {
		return nil, fmt.Errorf("read address lease %s: %w", obj.GetName(), err)
	}
	var lease AddressLease
	if err := json.Unmarshal(text, &lease.Spec); err != nil {
		return nil, fmt.Errorf("read address lease %s: %w", obj.GetName(), err)
	}
	lease.Name, lease.UID, lease.ResourceVersion, lease.Labels = obj.GetName(), obj.GetUID(), obj.GetResourceVersion(), obj.GetLabels()
	return &lease, nil
}

// Object gives the lease as a document.
func (l *AddressLease) Object() *unstructured.Unstructured {
	spec := map[string]any{"ip": l.Spec.IP.String(), "scope": l.Spec.Scope}
	owner := map[string]any{"kind": l.Spec.Owner.Kind}
	for key, value := range map[string]string{
		"pool": l.Spec.Pool, "network": l.Spec.Network, "interface": l.Spec.Interface, "sandbox": l.Spec.Sandbox, "node": l.Spec.Node,
		"journal": l.Spec.Journal,
	} {
		if value != "" {
			spec[key] = value
		}
	}
	for key, value := range map[string]string{"namespace": l.Spec.Owner.Namespace, "name": l.Spec.Owner.Name, "uid": string(l.Spec.Owner.UID)} {
		if value != "" {
			owner[key] = value
		}
	}
	spec["owner"] = owner
	if l.Spec.Of > 0 {
		spec["of"] = int64(l.Spec.Of)
	}
	if l.Spec.StickyFor > 0 {
		spec["stickyFor"] = int64(l.Spec.StickyFor)
	}
	if len(l.Spec.Holders) > 0 {
		spec["holders"] = HolderList(l.Spec.Holders)
	}
	if l.Spec.Untried {
		spec["untried"] = true
	}
	if !l.Spec.Since.IsZero() {
		spec["since"] = l.Spec.Since.UTC().Format(time.RFC3339)
	}
	obj := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	obj.SetGroupVersionKind(AddressLeaseKind)
	obj.SetName(l.Name)
	obj.SetLabels(l.Labels)
	return obj
}

// HolderList gives holders as a part of a document.
func HolderList(holders []LeaseHolder) []any {
	list := []any{}
	for _, h := range holders {
		fields := map[string]any{}
		for key, value := range map[string]string{
			"pod": h.Pod, "podUID": string(h.PodUID), "vm": h.VM, "node": h.Node, "sandbox": h.Sandbox, "interface": h.Interface,
		} {
			if value != "" {
				fields[key] = value
			}
		}
		list = append(list, fields)
	}
	return list
}
