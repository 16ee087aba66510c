// Package v1alpha1 holds weft's own kinds, group weft.network. Types and their
// (de)serialisation, no I/O.
package v1alpha1

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/vmnet"
)

// GroupVersion of weft's own kinds.
var GroupVersion = schema.GroupVersion{Group: "weft.network", Version: "v1alpha1"}

// NICIdentityKind is the kind of NICIdentity.
var NICIdentityKind = GroupVersion.WithKind("NICIdentity")

// NICIdentity is what a VM's NIC keeps as long as the VM exists: over restarts,
// over Pods, over migrations. The controller alone writes it.
type NICIdentity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec NICIdentitySpec `json:"spec"`
}

// NICIdentitySpec is the identity.
type NICIdentitySpec struct {
	// VM is the name of the VirtualMachine, or of the instance that has none.
	VM string `json:"vm"`
	// Network is the logical name of the interface.
	Network string `json:"network"`
	// Definition is the NetworkAttachmentDefinition on which the MAC is nobody else's;
	// on a cluster only.
	Definition string       `json:"definition,omitempty"`
	MAC        netstate.MAC `json:"mac"`
	// Slot is the number of the PCIe root port; assigned once.
	Slot int `json:"slot"`
	// Leases the NIC was given first; its next Pod asks for the same, and nobody
	// else gets them meanwhile.
	Leases []Lease `json:"leases,omitempty"`
}

// IdentityName is the name of the identity of a VM's NIC. The network's name is
// hashed as its link's is, so that names Kubernetes does not allow (a_b) neither
// fail nor meet those of others (a.b).
func IdentityName(vm, network string) string {
	return vm + "." + string(vmnet.PodIfName(network))
}

// FromObject reads an identity.
func FromObject(obj *unstructured.Unstructured) (*NICIdentity, error) {
	text, err := obj.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("read NIC identity: %w", err)
	}
	var id NICIdentity
	if err := json.Unmarshal(text, &id); err != nil {
		return nil, fmt.Errorf("read NIC identity %s: %w", obj.GetName(), err)
	}
	return &id, nil
}

// Object gives the identity as a document.
func (id *NICIdentity) Object() (*unstructured.Unstructured, error) {
	// By way of JSON: addresses are text there, and the converter does not know it.
	text, err := json.Marshal(id)
	if err != nil {
		return nil, fmt.Errorf("write NIC identity %s: %w", id.Name, err)
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, fmt.Errorf("write NIC identity %s: %w", id.Name, err)
	}
	obj := &unstructured.Unstructured{Object: fields}
	obj.SetGroupVersionKind(NICIdentityKind)
	unstructured.RemoveNestedField(obj.Object, "metadata", "creationTimestamp")
	return obj, nil
}
