package v1alpha1

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weftnet/weft/internal/netstate"
)

// MACLeaseKind is the kind of MACLease.
var MACLeaseKind = GroupVersion.WithKind("MACLease")

// MACLease says whose a MAC is on a network. It is cluster-scoped, and its name is made
// of both: that there is one of that name is the lock. The controller alone writes it.
type MACLease struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec MACLeaseSpec `json:"spec"`
}

// MACLeaseSpec is the content of a lease. It never changes.
type MACLeaseSpec struct {
	MAC netstate.MAC `json:"mac"`
	// Network is the NetworkAttachmentDefinition.
	Network string `json:"network"`
	// Interface of the Pod that has the MAC, and Owner: a Pod, or a virtual machine,
	// whose launchers have it one after the other, and both while it migrates.
	Interface string     `json:"interface,omitempty"`
	Owner     LeaseOwner `json:"owner"`
}

// MACLeaseName is the name of the lease of a MAC on a network, NAMESPACE/NAME. No
// namespace has a dot, so no two networks meet.
func MACLeaseName(network string, mac netstate.MAC) string {
	const most = 253 // of an object's name (DNS-1123 subdomain)
	text := strings.ReplaceAll(string(mac), ":", "-")
	if name := text + "." + strings.Replace(network, "/", ".", 1); len(name) <= most {
		return name
	}
	sum := sha256.Sum256([]byte(network))
	return text + ".x" + hex.EncodeToString(sum[:16])
}

// MACLeaseFromObject reads a lease.
func MACLeaseFromObject(obj *unstructured.Unstructured) (*MACLease, error) {
	text, err := json.Marshal(obj.Object["spec"])
	if err != nil {
		return nil, fmt.Errorf("read MAC lease %s: %w", obj.GetName(), err)
	}
	var lease MACLease
	if err := json.Unmarshal(text, &lease.Spec); err != nil {
		return nil, fmt.Errorf("read MAC lease %s: %w", obj.GetName(), err)
	}
	lease.Name, lease.UID, lease.ResourceVersion = obj.GetName(), obj.GetUID(), obj.GetResourceVersion()
	return &lease, nil
}

// Object gives the lease as a document.
func (l *MACLease) Object() *unstructured.Unstructured {
	o := l.Spec.Owner
	spec := map[string]any{
		"mac": string(l.Spec.MAC), "network": l.Spec.Network,
		"owner": map[string]any{"kind": o.Kind, "namespace": o.Namespace, "name": o.Name, "uid": string(o.UID)},
	}
	if l.Spec.Interface != "" {
		spec["interface"] = l.Spec.Interface
	}
	obj := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	obj.SetGroupVersionKind(MACLeaseKind)
	obj.SetName(MACLeaseName(l.Spec.Network, l.Spec.MAC))
	return obj
}
