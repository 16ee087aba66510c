package v1alpha1

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// NodeAddressesKind is the kind of NodeAddresses.
var NodeAddressesKind = GroupVersion.WithKind("NodeAddresses")

// NodeAddresses tells which Pods of a node have addresses that the node took ahead of
// them. It is cluster-scoped and has the node's name.
type NodeAddresses struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec NodeAddressesSpec `json:"spec"`
}

// NodeAddressesSpec is the content of NodeAddresses.
type NodeAddressesSpec struct {
	Bindings []Binding `json:"bindings"`
}

// Binding is what the lease of a Pod would say that is the node's.
type Binding struct {
	// Lease and UID are those of the AddressLease. It serves one Pod, so what a binding
	// says is so as long as that lease is there.
	Lease string    `json:"lease"`
	UID   types.UID `json:"uid"`

	Network   string     `json:"network,omitempty"`
	Interface string     `json:"interface"`
	Sandbox   string     `json:"sandbox"`
	Owner     LeaseOwner `json:"owner"`
}

// Bind makes a node's lease the Pod's that a binding names.
func (l *AddressLease) Bind(b Binding) {
	if l.Spec.Owner.Kind == OwnerNode && l.UID == b.UID {
		l.Spec.Network, l.Spec.Interface, l.Spec.Sandbox, l.Spec.Owner = b.Network, b.Interface, b.Sandbox, b.Owner
	}
}

// NodeAddressesFromObject reads the bindings of a node.
func NodeAddressesFromObject(obj *unstructured.Unstructured) (*NodeAddresses, error) {
	text, err := json.Marshal(obj.Object["spec"])
	if err != nil {
		return nil, fmt.Errorf("read addresses of node %s: %w", obj.GetName(), err)
	}
	var all NodeAddresses
	if err := json.Unmarshal(text, &all.Spec); err != nil {
		return nil, fmt.Errorf("read addresses of node %s: %w", obj.GetName(), err)
	}
	all.Name, all.UID, all.ResourceVersion = obj.GetName(), obj.GetUID(), obj.GetResourceVersion()
	return &all, nil
}

// Object gives the bindings as a document.
func (a *NodeAddresses) Object() (*unstructured.Unstructured, error) {
	spec, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&a.Spec)
	if err != nil {
		return nil, fmt.Errorf("write addresses of node %s: %w", a.Name, err)
	}
	obj := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	obj.SetGroupVersionKind(NodeAddressesKind)
	obj.SetName(a.Name)
	obj.SetUID(a.UID)
	obj.SetResourceVersion(a.ResourceVersion)
	return obj, nil
}
