package netattach

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// API version and kind of an IPAMClaim.
const (
	ClaimAPIVersion = "k8s.cni.cncf.io/v1alpha1"
	ClaimKind       = "IPAMClaim"
)

// ClaimCondition is the condition of a claim that tells about its addresses.
const ClaimCondition = "IPsAllocated"

// Reasons of ClaimCondition, as OVN-Kubernetes has them.
const (
	ClaimAllocated   = "SuccessfulAllocation"
	ClaimExhausted   = "SubnetExhausted"
	ClaimIPConflict  = "IPAddressConflict"
	ClaimMACConflict = "MACAddressConflict"
	ClaimFailed      = "InternalError"
)

// IPAMClaim is what weft uses of the object of that kind: addresses that outlive
// the Pods that have them.
type IPAMClaim struct {
	Name, Namespace string
	// UID and Revision as read.
	UID, Revision string
	Finalizers    []string
	// Deleting: it goes when its finalizers have.
	Deleting bool
	// Network and Interface it was made for.
	Network, Interface string
	// IPs with prefix length. Once there, they are for the life of the claim.
	IPs []string
	// OwnerPod has the addresses now; empty: nobody.
	OwnerPod   string
	Conditions []Condition
}

// Condition is a condition of a Kubernetes object.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// ObservedGeneration is the metadata.generation it is about.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// LastTransitionTime in the form of RFC 3339.
	LastTransitionTime string `json:"lastTransitionTime"`
}

// nameMost is how long the name of an object may be (DNS-1123 subdomain, RFC 1123).
const nameMost = 253

// ClaimOfVM is the name of the claim that keeps the addresses of a VM's NIC, by the
// interface that the launcher Pod has for it. KubeVirt hashes the name of the network
// into that, so that names Kubernetes does not allow (a_b) neither fail nor meet those
// of others (a.b), and it has no dot, so that two VMs never meet.
func ClaimOfVM(vm, ifName string) string {
	name := vm + "." + ifName
	if len(name) <= nameMost {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "x" + hex.EncodeToString(sum[:16]) + "." + ifName
}

// PersistentIPs says whether VMs keep their addresses of a network, which they do
// unless its config says otherwise (allowPersistentIPs, a key of OVN-Kubernetes').
func (c *NetConf) PersistentIPs() bool {
	var document struct {
		Allow *bool `json:"allowPersistentIPs"`
	}
	if err := json.Unmarshal(c.Plugins[0].Bytes, &document); err != nil {
		return true // it is told where the config is read
	}
	return document.Allow == nil || *document.Allow
}

// TakesMAC says whether what attaches to a network gives the link the MAC that is asked
// for: weft itself, if the first plugin's type is native, or a plugin that declares it.
func (c *NetConf) TakesMAC(native bool) bool { return native || c.Declares("mac") }

// ClaimFromObject reads an IPAMClaim from a decoded document.
func ClaimFromObject(obj map[string]any) (*IPAMClaim, error) {
	raw, err := json.Marshal(obj)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", ClaimKind, err)
	}
	var doc struct {
		Metadata struct {
			Name              string   `json:"name"`
			Namespace         string   `json:"namespace"`
			UID               string   `json:"uid"`
			ResourceVersion   string   `json:"resourceVersion"`
			Finalizers        []string `json:"finalizers"`
			DeletionTimestamp string   `json:"deletionTimestamp"`
		} `json:"metadata"`
		Spec struct {
			Network   string `json:"network"`
			Interface string `json:"interface"`
		} `json:"spec"`
		Status claimStatus `json:"status"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("read %s %s/%s: %w", ClaimKind, doc.Metadata.Namespace, doc.Metadata.Name, err)
	}
	c := &IPAMClaim{
		Name: doc.Metadata.Name, Namespace: doc.Metadata.Namespace, UID: doc.Metadata.UID, Revision: doc.Metadata.ResourceVersion,
		Finalizers: doc.Metadata.Finalizers, Deleting: doc.Metadata.DeletionTimestamp != "",
		Network: doc.Spec.Network, Interface: doc.Spec.Interface, IPs: doc.Status.IPs, Conditions: doc.Status.Conditions,
	}
	if doc.Status.OwnerPod != nil {
		c.OwnerPod = doc.Status.OwnerPod.Name
	}
	return c, nil
}

type claimStatus struct {
	IPs        []string     `json:"ips"`
	OwnerPod   *claimHolder `json:"ownerPod,omitempty"`
	Conditions []Condition  `json:"conditions,omitempty"`
}

type claimHolder struct {
	Name string `json:"name"`
}

// StatusPatch gives what a merge patch of the claim's status is to hold: nothing
// else of the object changes.
func (c *IPAMClaim) StatusPatch() map[string]any {
	ips := []any{} // required
	for _, ip := range c.IPs {
		ips = append(ips, ip)
	}
	status := map[string]any{"ips": ips, "ownerPod": nil}
	if c.OwnerPod != "" {
		status["ownerPod"] = map[string]any{"name": c.OwnerPod}
	}
	if len(c.Conditions) > 0 {
		var list []any
		for _, condition := range c.Conditions {
			fields := map[string]any{
				"type": condition.Type, "status": condition.Status, "reason": condition.Reason, "message": condition.Message,
				"lastTransitionTime": condition.LastTransitionTime,
			}
			if condition.ObservedGeneration != 0 {
				fields["observedGeneration"] = condition.ObservedGeneration
			}
			list = append(list, fields)
		}
		status["conditions"] = list
	}
	return map[string]any{"status": status}
}
